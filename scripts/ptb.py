"""Downloads and prepares the Penn Treebank's words: python scripts/ptb.py [--mirror ...]

The Wall Street Journal text as Mikolov prepared it for language models (Mikolov et al., "Recurrent
neural network based language model", Interspeech 2010): lower-cased, numbers as N, the 9,999 most
frequent words and <unk>. Writes train.txt, valid.txt and test.txt, a sentence a line, byte for byte
as they are in the archive; and last of all meta.json: where that exists, the rest is complete.

Tokens are words and ends of lines, as everybody counts them.
"""

import argparse
import sys
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

URL = "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"
PARTS = ("train", "valid", "test")
OFFICIAL_TOKENS = {"train": 929_589, "valid": 73_760, "test": 82_430}
# Of the contents of the three files, in the order of fetch.fingerprint.
OFFICIAL_FINGERPRINT = "39cf4301ecc124718d817f8af327e3d197c3b7d507574325cfd7aa8bfd291459"
RECIPE = {"recipe": 1}  # raise it when the same corpus is to give other files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mirror", help="folder or URL prefix that holds simple-examples.tgz")
    parser.add_argument("--out", type=Path, default=Path("data/ptb"))
    parser.add_argument("--cache", type=Path, default=Path("data/download"))
    arguments = parser.parse_args()
    try:
        prepare(arguments.mirror, arguments.out, arguments.cache)
    except (FetchError, OSError) as error:
        sys.exit(f"error: {error}")


def prepare(mirror: str | None, out: Path, cache: Path) -> None:
    with alone(cache, "ptb"):
        finished = finished_meta(out, RECIPE)
        if finished and finished["official"] and not mirror:
            print(f"{out} is already prepared from the official corpus")
            return
        origin = source(URL, mirror)
        archive = cache / "simple-examples.tgz"
        download(origin, archive)
        with unpacked(archive) as folder:
            files = find_files(folder / "simple-examples" / "data", origin)
            found = {"fingerprint": fingerprint(files.values())}
            if not is_of(finished, found, out):
                write(out, files, found)


def find_files(root: Path, origin: str) -> dict[str, Path]:
    """The file of each part; whatever else an archive holds is passed over."""
    files = {part: root / f"ptb.{part}.txt" for part in PARTS}
    for file in files.values():
        if not file.is_file():
            raise FetchError(f"{origin} is not a PTB archive: no simple-examples/data/{file.name}")
    return files


def write(out: Path, files: dict[str, Path], found: dict[str, str]) -> None:
    texts = {part: read(file) for part, file in files.items()}
    counts = {part: count(text) for part, text in texts.items()}
    vocabulary = {*texts["train"].split()}
    official = found["fingerprint"] == OFFICIAL_FINGERPRINT
    meta: dict[str, Any] = {
        "name": "ptb",
        "official": official,
        **found,
        "note": "content verified: the official three files" if official else describe(counts),
        "counts": counts,
        "vocabulary": len(vocabulary) + 1,  # and the end of a line
        "files": {},  # see write_prepared
        **RECIPE,
    }
    write_prepared(out, {f"{part}.txt": text for part, text in texts.items()}, meta)
    for part, numbers in counts.items():
        print(f"{out}/{part}.txt: " + ", ".join(f"{n:,} {what}" for what, n in numbers.items()))
    print(f"vocabulary of {out}/train.txt: {meta['vocabulary']:,} words")
    if not official:
        warn(meta["note"])


def read(file: Path) -> str:
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise FetchError(f"{file.name} is not UTF-8: {error}") from error
    if not text.split():
        raise FetchError(f"{file.name} holds no words")
    return text


def count(text: str) -> dict[str, int]:
    lines = text.count("\n") + (not text.endswith("\n"))
    return {"lines": lines, "tokens": len(text.split()) + lines}


def describe(counts: dict[str, dict[str, int]]) -> str:
    tokens = {part: numbers["tokens"] for part, numbers in counts.items()}
    if tokens == OFFICIAL_TOKENS:
        return "NOT OFFICIAL: the official numbers of tokens, but other content"
    found = ", ".join(f"{part} {n:,} of {OFFICIAL_TOKENS[part]:,}" for part, n in tokens.items())
    return f"NOT OFFICIAL: tokens in {found}"


if __name__ == "__main__":
    main()
