import hashlib
import html
import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import iwslt
import pytest
import sample_translation
from corpora import archive_of, files_of, mirror_of
from fetch import FetchError
from iwslt import OFFICIAL_FINGERPRINTS, URL, prepare

ROOT = Path(iwslt.__file__).parents[1]
MIRROR = Path(os.environ.get("QRNN_MIRROR", ROOT.parent / "shared/data/mirror"))
SMALL = {"train": 60, "dev": 20, "test": 20}
TAGS = "url keywords speaker talkid title description reviewer translator doc".split()
PAIR = ("Ein Hund.", "A dog.")
WRITTEN = {f"{part}.{l}" for part in ("train", "dev", "test") for l in ("de", "en")}


@pytest.fixture
def mirror(tmp_path) -> Path:
    return mirror_of(iwslt, tmp_path / "mirror", sample_translation.archive(SMALL))


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def corpus(train: list[tuple[str, str]], dev: tuple[str, str] | None = None) -> dict[str, bytes]:
    """An archive's files from training lines, as they are, and the insides of dev's <mteval>."""
    files = {}
    document = '<doc docid="1"><seg id="1">{}</seg></doc>'
    for i, language in enumerate(("de", "en")):
        lines = "".join(pair[i] + "\n" for pair in train)
        test = document.format(PAIR[i])
        files |= {
            f"de-en/train.tags.de-en.{language}": lines.encode(),
            f"de-en/IWSLT16.TED.tst2013.de-en.{language}.xml": f"<a>{(dev or (test, test))[i]}</a>",
            f"de-en/IWSLT16.TED.tst2014.de-en.{language}.xml": f"<a>{test}</a>",
        }
    return {
        name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()
    }


def run(mirror: Path | None, out: str = "out", lower: bool = False) -> dict[str, bytes]:
    prepare(mirror and str(mirror), Path(out), Path("cache"), lower)
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


def run_on(files: dict[str, bytes], lower: bool = False) -> dict[str, bytes]:
    folder = Path(f"mirror {len(os.listdir())}").resolve()
    return run(mirror_of(iwslt, folder, archive_of(files)), f"out {folder.name}", lower)


def pairs(written: dict[str, bytes], part: str) -> list[tuple[str, str]]:
    sides = [written[f"{part}.{l}"].decode().removesuffix("\n").split("\n") for l in ("de", "en")]
    return list(zip(*sides, strict=True))


def test_what_is_written(mirror):
    written = run(mirror)
    assert set(written) == WRITTEN | {"vocab.txt", "meta.json"}
    originals = {
        name: html.unescape(text.decode().replace("\u2028", " "))
        for name, text in files_of((mirror / "de-en.tgz").read_bytes()).items()
    }
    for i, language in enumerate(("de", "en")):
        lines = originals[f"de-en/train.tags.de-en.{language}"].split("\n")
        assert sum(line.startswith("<") for line in lines) == 8
        dropped = {pair[i].replace("\u2028", " ") for pair in sample_translation.DROPPED}
        train = [line for line in lines if line and line[0] != "<" and line not in dropped]
        assert written[f"train.{language}"].decode().splitlines() == train
        for part, year in (("dev", 2013), ("test", 2014)):
            xml = originals[f"de-en/IWSLT16.TED.tst{year}.de-en.{language}.xml"]
            segments = re.findall(r'<seg id="\d+"> (.*) </seg>', xml)
            assert written[f"{part}.{language}"].decode().splitlines() == segments
            assert len(segments) == 20

    meta = json.loads(written["meta.json"])
    assert meta["counts"]["train"]["lines"] == 63
    assert meta["counts"]["train"]["dropped"] == {"empty": 1, "separator": 1, "long": 1}
    assert set(meta["files"]) == WRITTEN | {"vocab.txt"}
    for name, digest in meta["files"].items():
        assert hashlib.sha256(written[name]).hexdigest() == digest
    for part, number in SMALL.items():
        counts = meta["counts"][part]
        assert counts["pairs"] == number
        for language in ("de", "en"):
            characters = len(written[f"{part}.{language}"].decode().replace("\n", ""))
            mean = round(characters / number, 1)
            assert counts[language] == {"characters": characters, "mean_characters": mean}
    assert not any("unpacked" in name for name in os.listdir("cache"))


def test_tag_lines_are_dropped_and_nothing_else():
    train = [(f"<{tag}>Der {tag}</{tag}>", f'<{tag} x="1">') for tag in TAGS]
    train += [
        PAIR,
        ("</doc>", "</doc>"),
        ("2 < 3 <b>.", "Two < three <b>."),
        ("<title>", "<title>"),
    ]
    assert pairs(run_on(corpus(train)), "train") == [PAIR, ("2 < 3 <b>.", "Two < three <b>.")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("R&amp;D kostet &#8364;5, &quot;ja&quot;.", 'R&D kostet €5, "ja".'),
        ("&amp;lt; AT&T", "&lt; AT&T"),  # once, and only what is an entity
        ("  Ein\t Hund\u00a0\u2003da ", "Ein Hund da"),
        ("Ein Hund\r", "Ein Hund"),
        ("A" * 300, "A" * 300),
        ("A" * 301, "long"),
        (" A" + "  a" * 149 + "b ", "A" + " a" * 149 + "b"),
        ("A" * 299 + "&amp;", "A" * 299 + "&"),
        ("", "empty"),
        (" \u2028 ", "empty"),
        ("&nbsp;", "empty"),
        *((f"Ein{c}Hund", "separator") for c in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"),
        ("Ein&#8232;Hund", "separator"),
    ],
)
def test_cleaning_of_either_side(line, expected):
    for swap in (False, True):
        train = [PAIR, (line, "The other side."), PAIR]
        written = run_on(corpus([pair[::-1] for pair in train] if swap else train))
        found = [pair[::-1] if swap else pair for pair in pairs(written, "train")]
        dropped = json.loads(written["meta.json"])["counts"]["train"]["dropped"]
        if expected in dropped:
            assert found == [PAIR, PAIR]
            assert dropped == {reason: int(reason == expected) for reason in dropped}
        else:
            assert found == [PAIR, (expected, "The other side."), PAIR]
            assert not any(dropped.values())


def test_dev_keeps_every_segment():
    sides = []
    for text in ("Ja.", "Yes."):
        separators = "".join(f"{text}{c}" for c in "\u2028\u2029\x85\n\t\r ")
        sides.append(
            f'<doc docid="7"><title>No</title><seg id="1"> {text} &amp; &lt;i&gt; &#8364;</seg>'
            f'<seg id="2">{separators}</seg></doc>'
            f'<doc docid="3"><seg id="1">{text * 200}</seg>'
            f'<seg id="2">a <i>{text}</i> b</seg></doc>'
        )
    assert pairs(run_on(corpus([PAIR], tuple(sides))), "dev") == [
        ("Ja. & <i> €", "Yes. & <i> €"),
        (" ".join(["Ja."] * 7), " ".join(["Yes."] * 7)),
        ("Ja." * 200, "Yes." * 200),
        ("a Ja. b", "a Yes. b"),
    ]


SEGMENT = '<doc docid="1"><seg id="1">Ja</seg></doc>'


@pytest.mark.parametrize(
    ("german", "error"),
    [
        (
            SEGMENT.replace('<seg id="1"', '<seg id="2"'),
            "document 1 segment 2 meets document 1 seg",
        ),
        (SEGMENT.replace('docid="1"', 'docid="2"'), "document 2 segment 1 meets document 1 seg"),
        (SEGMENT * 2, "2 and 1 segments"),
        (SEGMENT.replace("Ja", " \u2028 "), "document 1 segment 1 is empty"),
        (SEGMENT.replace("seg", "s"), "tst2013.de-en.de.xml holds no segments"),
        (SEGMENT.replace("</doc>", ""), "tst2013.de-en.de.xml is not XML"),
    ],
)
def test_dev_that_is_not_aligned_is_an_error(german, error):
    with pytest.raises(FetchError, match=error):
        run_on(corpus([PAIR], (german, SEGMENT)))


def test_a_training_text_that_is_not_aligned_is_an_error():
    files = corpus([PAIR] * 3)
    files["de-en/train.tags.de-en.en"] += b"<title>x</title>\nOne more.\n"
    with pytest.raises(
        FetchError, match=r"3 lines .*train.tags.de-en.de, 4 in train.tags.de-en.en"
    ):
        run_on(files)


def test_the_vocabulary_is_the_most_frequent_of_both_sides():
    """250 letters: #0-#49 twice on each side, #50-#99 three times on one, the others once."""
    letters = [chr(0x4E00 + i) for i in range(250)]
    german = letters[:50] * 2 + letters[50:75] * 3 + letters[100:150]
    english = letters[:50] * 2 + letters[75:100] * 3 + letters[150:]
    for side in (german, english):
        random.Random(1).shuffle(side)
    written = run_on(corpus([("".join(german), "".join(english)), ("   ".join("ÄÄÄÄÄ"), "▁ A")]))
    symbols = written["vocab.txt"].decode().split("\n")[:-1]
    # Of a space joeynmt makes ▁: 4 + 1 + 1. With Ä it is before #0, with A among the last.
    expected = ["▁", "Ä", *letters[:100], "A", *letters[100:180]]
    assert symbols == expected and len(symbols) == 183
    meta = json.loads(written["meta.json"])["vocabulary"]
    assert meta["size"] == 187
    total = 50 * 4 + 50 * 3 + 150 + 9 + 3
    assert meta["coverage"] == {
        "train": round((total - 70) / total, 6),
        "dev": 0.2,  # of "Ein Hund." and "A dog." A and the two spaces
        "test": 0.2,
    }


def test_lower(mirror):
    cased, lower = run(mirror), run(mirror, lower=True)
    assert run(mirror) == cased  # another case is another recipe
    for name in WRITTEN:
        assert lower[name].decode() == cased[name].decode().lower() != cased[name].decode()
    assert not any(c.isupper() for c in lower["vocab.txt"].decode())
    meta = json.loads(lower["meta.json"])
    assert meta["lower"] is True and "lower-cased" in meta["note"]
    assert json.loads(cased["meta.json"])["lower"] is False
    # Lower-casing may lengthen: the limit is on what is written.
    written = run_on(corpus([("İ" * 300, "A"), PAIR]), lower=True)
    assert json.loads(written["meta.json"])["counts"]["train"]["dropped"]["long"] == 1


def test_lower_of_the_command(mirror, monkeypatch):
    command = ["iwslt.py", "--lower", "--cache", "cache", "--mirror", str(mirror)]
    monkeypatch.setattr(sys, "argv", command)
    iwslt.main()
    written = {path.name: path.read_bytes() for path in Path("data/iwslt").iterdir()}
    assert written == run(mirror, lower=True)


@pytest.mark.parametrize("side", ["de", "en"])
def test_a_lower_cased_training_text_needs_lower(side):
    low = ("ein hund, 2 katzen", "A dog.") if side == "de" else ("Ein Hund.", "a dog, 2 cats")
    with pytest.raises(FetchError, match=f"{side} training text is all in lower case.*LOWER=1"):
        run_on(corpus([low, low]))
    assert not any(name.startswith("out") for name in os.listdir())
    run_on(corpus([low, low]), lower=True)
    run_on(corpus([low, PAIR]))  # one capital letter
    run_on(corpus([("2 + 2", "四")]))  # no case at all


@pytest.fixture
def official(mirror, monkeypatch) -> Path:
    """The mirror, declared official."""
    files = files_of((mirror / "de-en.tgz").read_bytes())
    for part, year in (("dev", 2013), ("test", 2014)):
        names = [f"de-en/IWSLT16.TED.tst{year}.de-en.{l}.xml" for l in ("de", "en")]
        digest = hashlib.sha256(b"".join(files[name] for name in names)).hexdigest()
        monkeypatch.setitem(iwslt.OFFICIAL_FINGERPRINTS, part, digest)
    monkeypatch.setattr(iwslt, "OFFICIAL_PAIRS", 63)
    return mirror


def test_official(official, capsys):
    meta = json.loads(run(official)["meta.json"])
    assert meta["name"] == "iwslt" and meta["official"] is True and "NOT" not in meta["note"]
    assert "WARNING" not in capsys.readouterr().err
    meta = json.loads(run(official, lower=True)["meta.json"])
    assert meta["official"] is False and meta["note"] == "NOT OFFICIAL: lower-cased"


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("IWSLT16.TED.tst2013.de-en.de.xml", "another dev set"),
        ("IWSLT16.TED.tst2014.de-en.en.xml", "another test set"),
        ("train.tags.de-en.en", "64 of 63 training pairs"),
    ],
)
def test_what_differs_is_not_official(official, tmp_path, capsys, file, note):
    files = files_of((official / "de-en.tgz").read_bytes())
    before = json.loads(run(official)["meta.json"])["fingerprint"]
    capsys.readouterr()
    if "train" in file:
        for name in ("de-en/train.tags.de-en.de", "de-en/train.tags.de-en.en"):
            files[name] += b"one more\n"
    else:
        content = files[f"de-en/{file}"].decode()
        files[f"de-en/{file}"] = re.sub(r"\d+ (dogs|Hunde)", "", content, count=1).encode()
    meta = json.loads(run(mirror_of(iwslt, tmp_path / "other", archive_of(files)))["meta.json"])
    assert meta["official"] is False and meta["note"] == f"NOT OFFICIAL: {note}"
    assert meta["fingerprint"] != before
    warning = capsys.readouterr().err
    assert "# WARNING" in warning and meta["note"] in warning


def test_what_else_is_in_the_archive_and_its_order_do_not_matter(mirror, tmp_path):
    files = list(files_of((mirror / "de-en.tgz").read_bytes()).items())
    extras = ["README", "train.en", "IWSLT16.TED.tst2012.de-en.de.xml", "._train.tags.de-en.de"]
    files += [(f"de-en/{name}", b"\xff") for name in extras]
    random.Random(1).shuffle(files)
    assert run(mirror, "a") == run(
        mirror_of(iwslt, tmp_path / "other", archive_of(dict(files))), "b"
    )


def test_the_error_says_where_the_official_archive_went(monkeypatch):
    def missing(origin: str, target: Path) -> None:
        raise FetchError(f"cannot download {origin}: HTTP 404 Not Found")

    monkeypatch.setattr(iwslt, "download", missing)
    with pytest.raises(FetchError, match=rf"{URL}: HTTP 404[^\n]*\n.*MIRROR=2016-01/texts/de/en"):
        run(None)
    with pytest.raises(FetchError) as error:
        run(Path("here"))
    assert "2016-01/texts" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("train.tags.de-en.en", None, "no file de-en/train.tags.de-en.en"),
        (
            "IWSLT16.TED.tst2014.de-en.de.xml",
            None,
            "no file de-en/IWSLT16.TED.tst2014.de-en.de.xml",
        ),
        ("train.tags.de-en.de", b"caf\xe9\n", "train.tags.de-en.de is not UTF-8"),
        ("IWSLT16.TED.tst2013.de-en.de.xml", b"<a>caf\xe9</a>", "tst2013.de-en.de.xml is not XML"),
        ("train.tags.de-en.de", b"\n", "no training pairs are left; dropped: .*'empty': 1"),
    ],
)
def test_an_unusable_archive_is_an_error(name, content, error):
    files = corpus([PAIR]) | {f"de-en/{name}": content}
    with pytest.raises(FetchError, match=error):
        run_on({file: text for file, text in files.items() if text is not None})
    assert not any(name.startswith("out") for name in os.listdir())
    assert not any("unpacked" in name for name in os.listdir("cache"))


def test_joeynmt_reads_what_was_written(mirror):
    pytest.importorskip("joeynmt", reason="joeynmt is not installed")
    from joeynmt.config import _check_special_symbols
    from joeynmt.datasets import PlaintextDataset
    from joeynmt.tokenizers import BasicTokenizer
    from joeynmt.vocabulary import build_vocab

    written = run(mirror)
    side = {"voc_file": "out/vocab.txt", "voc_limit": 183, "level": "char"}
    symbols = SimpleNamespace(**_check_special_symbols({}))
    source, target = build_vocab({"src": side, "trg": side, "special_symbols": symbols})
    assert source == target
    assert len(source) == json.loads(written["meta.json"])["vocabulary"]["size"]
    characters = BasicTokenizer(level="char", max_length=300)
    for part, number in SMALL.items():
        data = PlaintextDataset(
            path=f"out/{part}",
            src_lang="de",
            trg_lang="en",
            split=part,
            has_trg=True,
            tokenizer={"de": characters, "en": characters},
            sequence_encoder={"de": None, "en": None},
            has_prompt={"de": False, "en": False},
        )
        sides = [data.get_list(l, tokenized=True) for l in ("de", "en")]
        read = [
            tuple("".join(s).replace("▁", " ") for s in pair) for pair in zip(*sides, strict=True)
        ]
        assert read == pairs(written, part) and len(read) == number
        if part == "train":
            assert not any(source.is_unk(s) for side in sides for line in side for s in line)


def test_the_real_dev_and_test_sets_are_official():
    archive = MIRROR / URL.rsplit("/", 1)[1]
    if not archive.exists():
        pytest.skip(f"no real data: there is no {archive} (QRNN_MIRROR)")
    files = files_of(archive.read_bytes())
    written = run(MIRROR, lower=True)
    for part, year, number in (("dev", 2013, 993), ("test", 2014, 1_305)):
        names = [f"de-en/IWSLT16.TED.tst{year}.de-en.{l}.xml" for l in ("de", "en")]
        digest = hashlib.sha256(b"".join(files[name] for name in names)).hexdigest()
        assert digest == OFFICIAL_FINGERPRINTS[part]
        sides = [re.findall(r"<seg[^>]*>(.*)</seg>", files[name].decode()) for name in names]
        expected = [[html.unescape(text).strip().lower() for text in side] for side in sides]
        assert pairs(written, part) == list(zip(*expected, strict=True))
        assert len(pairs(written, part)) == number
    train = pairs(written, "train")
    assert max(len(text) for pair in train for text in pair) <= 300 < len(train)
    meta = json.loads(written["meta.json"])
    assert meta["official"] is False and "set" not in meta["note"]
    counts = Counter(c for pair in train for text in pair for c in text.replace(" ", "▁"))
    symbols = written["vocab.txt"].decode().splitlines()
    assert len(symbols) == min(183, len(counts)) and set(symbols) <= set(counts)
