import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import sample_translation
from corpora import files_of
from iwslt import prepare

SCRIPT = Path(sample_translation.__file__)


def contents(archive: bytes) -> dict[str, str]:
    return {name: text.decode() for name, text in files_of(archive).items()}


def prepared(tmp_path: Path) -> dict[str, list[tuple[str, str]]]:
    sample_translation.write(tmp_path / "mirror")
    prepare(str(tmp_path / "mirror"), tmp_path / "out", tmp_path / "cache")
    return {
        part: list(
            zip(
                *((tmp_path / f"out/{part}.{l}").read_text().splitlines() for l in ("de", "en")),
                strict=True,
            )
        )
        for part in ("train", "dev", "test")
    }


def test_the_bytes_never_change(tmp_path):
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, SCRIPT, tmp_path / seed],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
    first, second = (tmp_path / seed / "de-en.tgz" for seed in ("1", "2"))
    assert first.read_bytes() == second.read_bytes() == sample_translation.archive()
    # Runs on the sample are compared over time: a change of its sentences has to be meant.
    digest = hashlib.sha256("".join(contents(sample_translation.archive()).values()).encode())
    assert digest.hexdigest() == "3488bf3f00585e7f7fef2a41c1b56a94f51f603920fe0a76f3695d2d1db52ac5"


def test_the_layout_is_the_official_one():
    files = contents(sample_translation.archive({"train": 250, "dev": 120, "test": 10}))
    assert set(files) == {
        f"de-en/{name}"
        for l in ("de", "en")
        for name in (
            f"train.tags.de-en.{l}",
            f"IWSLT16.TED.tst2013.de-en.{l}.xml",
            f"IWSLT16.TED.tst2014.de-en.{l}.xml",
        )
    }
    for l in ("de", "en"):
        lines = files[f"de-en/train.tags.de-en.{l}"].removesuffix("\n").split("\n")
        tags = [re.match(r"<(\w+)>.*</\1>$", line) for line in lines]
        talks = "url keywords speaker talkid title description reviewer translator".split() * 3
        assert [tag[1] for tag in tags if tag] == talks
        assert sum(tag is None for tag in tags) == 253
        document = ElementTree.fromstring(files[f"de-en/IWSLT16.TED.tst2013.de-en.{l}.xml"])
        ids = [[seg.get("id") for seg in doc.iter("seg")] for doc in document.iter("doc")]
        assert [len(segments) for segments in ids] == [100, 20]
        assert ids[1] == [str(i) for i in range(1, 21)]


def test_the_nuisances_are_there_for_the_cleaner():
    files = contents(sample_translation.archive())
    for l in ("de", "en"):
        lines = files[f"de-en/train.tags.de-en.{l}"].split("\n")[:-1]
        assert sum("&amp;" in line for line in lines) == 1
        assert sum(len(line) > 300 for line in lines) == 1
        assert sum("\u2028" in line for line in lines) == (l == "de")
        assert sum(not line for line in lines) == (l == "de")
        assert "&amp;\u2028" in files[f"de-en/IWSLT16.TED.tst2013.de-en.{l}.xml"]


def test_sentences_are_short_and_all_different(tmp_path):
    parts = prepared(tmp_path)
    assert {part: len(pairs) for part, pairs in parts.items()} == sample_translation.PAIRS
    german, english = zip(*(pair for pairs in parts.values() for pair in pairs), strict=True)
    assert len(set(german)) == len(german) == 2_200
    assert all(len(text) <= 30 for text in german + english)
    assert len({word.lower() for text in english for word in re.findall("[a-zA-Z]+", text)}) < 40


ENGLISH = {
    "ich": "I",
    "er": "he",
    "sie": "she",
    "wir": "we",
    "mal": "paint",
    "hol": "get",
    "kauf": "buy",
    "lieb": "love",
    "kann": "can",
    "können": "can",
    "wenn": "when",
    "weil": "because",
    "dass": "that",
    "Hund": "dog",
    "Katze": "cat",
    "Ball": "ball",
    "Haus": "house",
    "Hunde": "dogs",
    "Katzen": "cats",
    "Bälle": "balls",
    "Häuser": "houses",
    "ein": "a",
    "eine": "a",
    "einen": "a",
}


def translated(german: str) -> str:
    """By a dictionary, the position of the verb and one rule of agreement."""
    words = german.rstrip(".").split()
    words[0] = words[0].lower()
    if words[0] in ("wenn", "weil", "dass"):
        words = [*words[:2], words[-1], *words[2:-1]]  # the verb from the end to the subject
    elif words[1] in ("kann", "können"):
        words = [*words[:2], words[-1], *words[2:-1]]
    out = []
    for word in words:
        verb = re.fullmatch("(mal|hol|kauf|lieb)(e|t|en)", word)
        if verb:
            third = out[-1] in ("he", "she")
            assert verb[2] == ("t" if third else "e" if out[-1] == "I" else "en") or "can" in out
            out.append(ENGLISH[verb[1]] + ("s" if third else ""))
        else:
            out.append(ENGLISH.get(word, word))
    return (" ".join(out) + ".").replace(out[0], out[0].capitalize(), 1)


def test_the_translations_are_right(tmp_path):
    parts = prepared(tmp_path)
    for part, pairs in parts.items():
        for german, english in pairs[0 if part == "test" else 1 :]:
            assert translated(german) == english
    starts = {german.split()[0] for german, _ in parts["test"]}
    assert starts == {"Ich", "Er", "Sie", "Wir", "Wenn", "Weil", "Dass"}
    kinds = [any(w in german for w in ("kann ", "können ")) for german, _ in parts["test"]]
    assert 15 <= sum(kinds) <= 60
