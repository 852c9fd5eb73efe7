"""Downloads and prepares the IMDb sentiment corpus: python scripts/imdb.py [--mirror ...]

Maas et al., "Learning Word Vectors for Sentiment Analysis" (ACL 2011): 25,000 reviews to train on
and 25,000 to test on, half of each in favour. Writes train.jsonl, dev.jsonl and test.jsonl, a line
{"id": "train/pos/0_9", "text": tokens joined by single spaces, "label": "pos" or "neg"} per review,
and last of all meta.json: where that exists, the rest is complete.

Where the archive has the 50,000 unlabelled reviews (the official one does), or a mirror has them in
aclImdb_unsup.tar.xz, unsup.jsonl is written as well, without labels.

dev.jsonl is a tenth of the training reviews, the same on every machine. Lines are in a fixed random
order, so that any first n of them are a fair sample.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fetch import (
    FetchError,
    NotThere,
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
from tqdm import tqdm

URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
UNSUP_URL = URL.replace("_v1.tar.gz", "_unsup.tar.xz")  # a name that only mirrors use
FOLDERS = ("train/pos", "train/neg", "test/pos", "test/neg")
UNSUP = "train/unsup"
OFFICIAL_COUNTS = dict.fromkeys(FOLDERS, 12_500)
# Of the contents of the 50,000 files FOLDERS/*_*.txt, in the order of fetch.fingerprint.
OFFICIAL_FINGERPRINT = "51b7f82e26a5992d64f95922903eeb491ed073331e7d63926bb9c9c4722b90a5"
SPLIT_SEED = 1
RECIPE = 2  # raise it when the same corpus is to give other files, so that old ones are replaced


class Review(NamedTuple):
    id: str  # part/label/number_stars
    text: str  # tokens joined by single spaces
    label: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mirror", help="folder or URL prefix that holds aclImdb_v1.tar.gz")
    parser.add_argument("--out", type=Path, default=Path("data/imdb"))
    parser.add_argument("--cache", type=Path, default=Path("data/download"))
    arguments = parser.parse_args()
    try:
        prepare(arguments.mirror, arguments.out, arguments.cache)
    except (FetchError, OSError) as error:
        sys.exit(f"error: {error}")


def prepare(mirror: str | None, out: Path, cache: Path) -> None:
    with alone(cache, "imdb"):
        finished = finished_meta(out, recipe())
        if finished and finished["official"] and not mirror:
            print(f"{out} is already prepared from the official corpus")
            if "unsup.jsonl" not in finished["files"]:
                print(
                    f"but for the reviews without labels: MIRROR={URL.rpartition('/')[0]} has them"
                )
            return
        origin = source(URL, mirror)
        archive = cache / "aclImdb_v1.tar.gz"
        download(origin, archive)
        with ExitStack() as folders:
            root = folders.enter_context(unpacked(archive)) / "aclImdb"
            files = find_reviews(root, origin)
            unlabelled = reviews_in(root / UNSUP)
            apart = cache / "aclImdb_unsup.tar.xz"
            if not unlabelled and (mirror or apart.exists()):
                try:
                    download(source(UNSUP_URL, mirror), apart)
                except NotThere:
                    print(
                        f"{origin} has no reviews without labels, "
                        f"and nor has {apart.name} beside it"
                    )
                else:
                    root = folders.enter_context(unpacked(apart)) / "aclImdb"
                    unlabelled = reviews_in(root / UNSUP)
            found = {"fingerprint": fingerprint(file for group in files.values() for file in group)}
            found["unsup_fingerprint"] = fingerprint(unlabelled)
            if not is_of(finished, found, out):
                write(out, files, unlabelled, found)


def find_reviews(root: Path, origin: str) -> dict[str, list[Path]]:
    """The labelled reviews of each of FOLDERS."""
    files = {folder: reviews_in(root / folder) for folder in FOLDERS}
    for folder, group in files.items():
        if not group:
            raise FetchError(
                f"{origin} is not an IMDb archive: no reviews aclImdb/{folder}/NUMBER_STARS.txt"
            )
    return files


def reviews_in(folder: Path) -> list[Path]:
    """Whatever else an archive holds is passed over."""
    return [file for file in folder.glob("*.txt") if re.match(r"\d+_\d+\.txt$", file.name)]


def write(
    out: Path, files: dict[str, list[Path]], unlabelled: list[Path], found: dict[str, str]
) -> None:
    reviews = {folder: read_reviews(folder, files[folder]) for folder in FOLDERS}
    unsup = shuffled(read_reviews(UNSUP, unlabelled))
    train, dev = split(reviews["train/pos"] + reviews["train/neg"])
    test = shuffled(reviews["test/pos"] + reviews["test/neg"])
    official = found["fingerprint"] == OFFICIAL_FINGERPRINT
    meta: dict[str, Any] = {
        "name": "imdb",
        "official": official,
        **found,
        "note": "content verified: the official 50,000 reviews" if official else describe(files),
        "counts": {},
        "files": {},  # see write_prepared
        **recipe(),
    }
    texts = {}
    for part, members in (("train", train), ("dev", dev), ("test", test)):
        lines = (json.dumps(r._asdict(), ensure_ascii=False) + "\n" for r in members)
        texts[f"{part}.jsonl"] = "".join(lines)
        meta["counts"][part] = {
            "pos": sum(r.label == "pos" for r in members),
            "neg": sum(r.label == "neg" for r in members),
            "tokens": sum(len(r.text.split()) for r in members),
        }
    if unsup:
        lines = (json.dumps({"id": r.id, "text": r.text}, ensure_ascii=False) + "\n" for r in unsup)
        texts["unsup.jsonl"] = "".join(lines)
        tokens = sum(len(r.text.split()) for r in unsup)
        meta["counts"]["unsup"] = {"reviews": len(unsup), "tokens": tokens}
    else:
        (out / "unsup.jsonl").unlink(missing_ok=True)
    write_prepared(out, texts, meta)
    for part, counts in meta["counts"].items():
        print(f"{out}/{part}.jsonl: " + ", ".join(f"{n:,} {what}" for what, n in counts.items()))
    if not official:
        warn(meta["note"])


def read_reviews(folder: str, files: list[Path]) -> list[Review]:
    from qrnn.allennlp.tokenize import tokenize  # slow to import: not before it is needed

    reviews = []
    for file in tqdm(files, desc=f"tokenising {folder}", unit=" reviews"):
        try:
            text = " ".join(tokenize(file.read_text("utf-8")))
        except UnicodeDecodeError as error:
            raise FetchError(f"{folder}/{file.name} is not UTF-8: {error}") from error
        if not text:
            raise FetchError(f"{folder}/{file.name} holds no words")
        reviews.append(Review(f"{folder}/{file.stem}", text, folder.split("/")[1]))
    return reviews


def split(reviews: list[Review]) -> tuple[list[Review], list[Review]]:
    """Training and development part: a tenth of each label goes into the second, and reviews of
    the same text go together, whatever their labels."""
    same_text: dict[str, list[Review]] = {}
    for review in shuffled(reviews):
        same_text.setdefault(review.text, []).append(review)
    room = {label: (n + 5) // 10 for label, n in Counter(r.label for r in reviews).items()}
    train, dev = [], []
    for group in same_text.values():
        wanted = Counter(r.label for r in group)
        if all(n <= room[label] for label, n in wanted.items()):
            dev += group
            room = {label: n - wanted[label] for label, n in room.items()}
        else:
            train += group
    for name, part in (("training", train), ("development", dev)):
        if len({r.label for r in part}) < 2:
            raise FetchError(f"too few different reviews: one label is missing in the {name} part")
    return train, dev


def shuffled(reviews: list[Review]) -> list[Review]:
    """An order that depends on the ids and SPLIT_SEED alone."""
    return sorted(reviews, key=lambda r: hashlib.sha256(f"{SPLIT_SEED} {r.id}".encode()).digest())


def recipe() -> dict[str, Any]:
    """What, beside the corpus, decides what is written."""
    return {"recipe": RECIPE, "split_seed": SPLIT_SEED, "tokenizer": f"spacy {version('spacy')}"}


def describe(files: dict[str, list[Path]]) -> str:
    counts = {folder: len(group) for folder, group in files.items()}
    found = ", ".join(f"{folder} {n:,}" for folder, n in counts.items())
    if counts == OFFICIAL_COUNTS:
        return f"NOT OFFICIAL: the official counts ({found}), but other content"
    return f"NOT OFFICIAL: {found} reviews, where the official corpus has 12,500 in each"


if __name__ == "__main__":
    main()
