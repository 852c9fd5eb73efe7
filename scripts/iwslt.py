"""Downloads and prepares IWSLT 2016 German-English: python scripts/iwslt.py [--mirror ...]

Transcripts of TED talks with their translations (Cettolo, Girardi, Federico: "WIT3: Web Inventory
of Transcribed and Translated Talks", EAMT 2012). Writes {train,dev,test}.{de,en}, a sentence a line
and line n of the one side the translation of line n of the other, for joeynmt's `plain` dataset at
`level: char`; vocab.txt, one list of characters for both sides' `voc_file`; and last of all
meta.json: where that exists, the rest is complete.

dev is TED.tst2013 and test is TED.tst2014, every segment of them. From the training text go the
pairs with an empty side, with a line separator inside a side (joeynmt reads it as two lines), and
with more than 300 characters on a side. Entities are resolved and runs of white space become one
space; there is no Unicode normalisation, since dev and test are in NFC as they come.

The official site has replaced de-en.tgz, which URL still names, by a bundle of all languages on
Google Drive, 2016-01.tgz, and that has been reported gone as well: expect to need --mirror.
"""

import argparse
import html
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fetch import (
    FetchError,
    alone,
    download,
    fingerprint,
    finished_meta,
    is_of,
    source,
    unpacked,
    warn,
    write_prepared,
)

URL = "https://wit3.fbk.eu/archive/2016-01/texts/de/en/de-en.tgz"
LANGUAGES = ("de", "en")
FILES = {
    "train": "train.tags.de-en.{}",
    "dev": "IWSLT16.TED.tst2013.de-en.{}.xml",
    "test": "IWSLT16.TED.tst2014.de-en.{}.xml",
}
# Before cleaning, as torchtext counts the official text, whose hash nobody could take here. The
# paper's 209,772 is this and the tag lines: 8 in each of 1,611 talks.
OFFICIAL_PAIRS = 196_884
# Of the contents of the part's two files, in the order of fetch.fingerprint.
OFFICIAL_FINGERPRINTS = {
    "dev": "863f48d378d51c0225701fb8c4328bbfc3152fa485555754e7e82a64dfb23e53",
    "test": "9c6da9cd46d662807af8bcb8de9d84c85c0763900a63352690c8dbc1512a35e0",
}
LONGEST = 300  # characters, spaces included
SPECIALS = 4  # joeynmt puts <unk>, <pad>, <s> and </s> in front of what voc_file lists
VOCABULARY = 187  # code points, specials included
SPACE = "▁"  # U+2581, what joeynmt's character level makes of a space
RECIPE = 1  # raise it when the same corpus is to give other files, so that old ones are replaced

Pair = tuple[str, str]  # in the order of LANGUAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mirror", help="folder or URL prefix that holds de-en.tgz")
    parser.add_argument("--out", type=Path, default=Path("data/iwslt"))
    parser.add_argument("--cache", type=Path, default=Path("data/download"))
    parser.add_argument("--lower", action="store_true", help="lower-case both sides of every part")
    arguments = parser.parse_args()
    try:
        prepare(arguments.mirror, arguments.out, arguments.cache, arguments.lower)
    except (FetchError, OSError) as error:
        sys.exit(f"error: {error}")


def prepare(mirror: str | None, out: Path, cache: Path, lower: bool = False) -> None:
    with alone(cache, "iwslt"):
        finished = finished_meta(out, recipe(lower))
        if finished and finished["official"] and not mirror:
            print(f"{out} is already prepared from the official corpus")
            return
        origin = source(URL, mirror)
        archive = cache / "de-en.tgz"
        try:
            download(origin, archive)
        except FetchError as error:
            if mirror:
                raise
            raise FetchError(
                f"{error}\nThe official site, https://wit3.fbk.eu/2016-01, offered one bundle of "
                "all languages instead, and that has been reported gone: unpack a 2016-01.tgz and "
                "give MIRROR=2016-01/texts/de/en"
            ) from error
        with unpacked(archive) as folder:
            files = find_files(folder / "de-en", origin)
            found = {"fingerprint": fingerprint(file for pair in files.values() for file in pair)}
            if not is_of(finished, found, out):
                write(out, files, found, lower)


def find_files(root: Path, origin: str) -> dict[str, list[Path]]:
    """The files of each part, in the order of LANGUAGES; whatever else an archive holds is passed
    over."""
    files = {part: [root / name.format(l) for l in LANGUAGES] for part, name in FILES.items()}
    for file in (file for pair in files.values() for file in pair):
        if not file.is_file():
            raise FetchError(f"{origin} is not an IWSLT 2016 archive: no file de-en/{file.name}")
    return files


def write(out: Path, files: dict[str, list[Path]], found: dict[str, str], lower: bool) -> None:
    lines = read_train(files["train"])
    train, dropped = clean(lines, lower)
    if not lower:
        refuse_lower_cased(train)
    parts = {"train": train} | {
        part: [tidied(pair, lower) for pair in read_segments(files[part])]
        for part in ("dev", "test")
    }
    symbols = vocabulary(train)
    texts = {
        f"{part}.{language}": "".join(pair[i] + "\n" for pair in pairs)
        for part, pairs in parts.items()
        for i, language in enumerate(LANGUAGES)
    } | {"vocab.txt": "".join(symbol + "\n" for symbol in symbols)}
    problems = differences(files, len(lines), lower)
    meta: dict[str, Any] = {
        "name": "iwslt",
        "official": not problems,
        **found,
        "note": "NOT OFFICIAL: " + "; ".join(problems)
        if problems
        else "dev and test verified by content, the training text by its number of pairs",
        "counts": {part: count(pairs) for part, pairs in parts.items()},
        "vocabulary": {
            "size": len(symbols) + SPECIALS,
            "coverage": {part: coverage(pairs, symbols) for part, pairs in parts.items()},
        },
        "files": {},  # see write_prepared
        **recipe(lower),
    }
    meta["counts"]["train"] |= {"lines": len(lines), "dropped": dropped}
    write_prepared(out, texts, meta)
    for part, counts in meta["counts"].items():
        means = ", ".join(f"{counts[l]['mean_characters']} {l}" for l in LANGUAGES)
        print(
            f"{out}/{part}.{{de,en}}: {counts['pairs']:,} pairs, characters per sentence: {means}, "
            f"{meta['vocabulary']['coverage'][part]:.4%} of them in the vocabulary"
        )
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())
    print(f"of {len(lines):,} training pairs were dropped: {reasons}")
    print(
        f"{out}/vocab.txt: {len(symbols)} symbols, {meta['vocabulary']['size']} with the specials"
    )
    if problems:
        warn(meta["note"])


def read_train(files: list[Path]) -> list[Pair]:
    """The lines that are text: those which do not begin with "<" (the archive's README)."""
    sides = []
    for file in files:
        try:
            # Not splitlines(): it would split at what clean() is to find.
            lines = file.read_bytes().decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise FetchError(f"{file.name} is not UTF-8: {error}") from error
        sides.append([line for line in lines if not line.startswith("<")])
    german, english = sides
    if len(german) != len(english):
        raise FetchError(
            f"the training text is not aligned: {len(german):,} lines without the tags in "
            f"{files[0].name}, {len(english):,} in {files[1].name}"
        )
    return list(zip(german, english, strict=True))


def clean(lines: Iterable[Pair], lower: bool) -> tuple[list[Pair], dict[str, int]]:
    """The pairs to train on, and how many were dropped for which reason (the first that holds)."""
    kept = []
    dropped = {"empty": 0, "separator": 0, "long": 0}
    for german, english in lines:
        pair = html.unescape(german).strip(), html.unescape(english).strip()
        tidy = tidied(pair, lower)
        if not all(pair):
            dropped["empty"] += 1
        elif any(len(text.splitlines()) > 1 for text in pair):
            dropped["separator"] += 1
        elif any(len(text) > LONGEST for text in tidy):
            dropped["long"] += 1
        else:
            kept.append(tidy)
    if not kept:
        raise FetchError(f"no training pairs are left; dropped: {dropped}")
    return kept, dropped


def tidied(pair: Pair, lower: bool) -> Pair:
    """With single spaces in the place of white space, which all line separators are."""
    german, english = (" ".join(text.split()) for text in pair)
    return (german.lower(), english.lower()) if lower else (german, english)


def refuse_lower_cased(train: list[Pair]) -> None:
    """Cased dev and test sets for a model that never saw an upper-case letter would give a result
    that is wrong and looks like one."""
    for language, texts in zip(LANGUAGES, zip(*train, strict=True), strict=True):
        text = "".join(texts)
        if text == text.lower() != text.upper():
            raise FetchError(
                f"the {language} training text is all in lower case: give LOWER=1 (--lower) "
                "to lower-case the dev and test sets as well"
            )


def read_segments(files: list[Path]) -> list[Pair]:
    """All segments: none may be dropped, so that scores stay comparable."""
    german, english = (read_xml(file) for file in files)
    for a, b in zip(german, english, strict=False):
        if a[:2] != b[:2]:
            raise FetchError(
                f"{files[0].name} and {files[1].name} are not aligned: "
                f"document {a[0]} segment {a[1]} meets document {b[0]} segment {b[1]}"
            )
    if len(german) != len(english):
        raise FetchError(
            f"{files[0].name} and {files[1].name} are not aligned: "
            f"{len(german):,} and {len(english):,} segments"
        )
    return [(a[2], b[2]) for a, b in zip(german, english, strict=True)]


def read_xml(file: Path) -> list[tuple[str | None, str | None, str]]:
    """(document, segment, text) of each segment. An empty one is an error: joeynmt would drop it on
    its side alone."""
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise FetchError(f"{file.name} is not XML: {error}") from error
    segments = [
        (document.get("docid"), segment.get("id"), "".join(segment.itertext()))
        for document in root.iter("doc")
        for segment in document.iter("seg")
    ]
    if not segments:
        raise FetchError(f"{file.name} holds no segments")
    for document, segment, text in segments:
        if not text.strip():
            raise FetchError(f"{file.name}: document {document} segment {segment} is empty")
    return segments


def vocabulary(train: list[Pair]) -> list[str]:
    """The most frequent characters of both sides together, those equally frequent by code point."""
    counts = Counter(SPACE if c == " " else c for pair in train for text in pair for c in text)
    ranked = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
    return ranked[: VOCABULARY - SPECIALS]


def coverage(pairs: list[Pair], symbols: list[str]) -> float:
    """Share of the characters that are in the vocabulary."""
    known = {*symbols, " "} if SPACE in symbols else {*symbols}
    counts = Counter(c for pair in pairs for text in pair for c in text)
    return round(sum(n for c, n in counts.items() if c in known) / counts.total(), 6)


def count(pairs: list[Pair]) -> dict[str, Any]:
    counts: dict[str, Any] = {"pairs": len(pairs)}
    for language, texts in zip(LANGUAGES, zip(*pairs, strict=True), strict=True):
        characters = sum(map(len, texts))
        mean = round(characters / len(texts), 1)
        counts[language] = {"characters": characters, "mean_characters": mean}
    return counts


def differences(files: dict[str, list[Path]], pairs: int, lower: bool) -> list[str]:
    """What, `pairs` being those before cleaning, keeps the corpus from being the official one."""
    problems = []
    if pairs != OFFICIAL_PAIRS:
        problems.append(f"{pairs:,} of {OFFICIAL_PAIRS:,} training pairs")
    for part, official in OFFICIAL_FINGERPRINTS.items():
        if fingerprint(files[part]) != official:
            problems.append(f"another {part} set")
    if lower:
        problems.append("lower-cased")
    return problems


def recipe(lower: bool) -> dict[str, Any]:
    """What, beside the corpus, decides what is written."""
    return {"recipe": RECIPE, "lower": lower}


if __name__ == "__main__":
    main()
