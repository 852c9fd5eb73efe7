"""Generates a tiny stand-in for the IMDb archive: python scripts/sample.py FOLDER

FOLDER/aclImdb_v1.tar.gz has the official archive's name and layout, so that scripts/imdb.py
prepares it as it prepares the real one: 2,000 synthetic reviews to train on and 500 to test on,
always the same ones.

Each mixes opinions in favour and against with neutral filler, and its label is its verdict: the
one opinion that begins with "But". The opinions before it agree with it 60 % of the time, and a
fifth of all are negated ("not good", "far from dull"), so that neither the words nor their nearest
neighbours settle it. On the words, lower-cased, logistic regression gets 71 % of the test
reviews right, on words and pairs of words 75 %; order and negation give the rest.
"""

import argparse
import gzip
import io
import random
import tarfile
from pathlib import Path

SEED = 1
REVIEWS = {"train": 2_000, "test": 500}
AGREEING = 0.6  # share of the opinions before the verdict
NEGATED = 0.2  # share of all opinions

STARS = {"pos": (7, 8, 9, 10), "neg": (1, 2, 3, 4)}
GOOD = ("good", "great", "funny", "clever", "moving", "brilliant")
BAD = ("bad", "awful", "dull", "clumsy", "boring", "silly")
NEGATIONS = ("not", "never", "hardly", "far from")
DEGREES = ("", "", "", "very ", "really ")
SUBJECTS = ("acting", "plot", "music", "ending", "dialogue", "cast", "script", "pacing", "hero")
FRAMES = ("the {} is {}", "the {} was {}", "I found the {} {}", "my wife called the {} {}")
ENDS = (".", ".", ".", "!", "...", ";")
FILLER = (
    "I saw it on a rainy Tuesday.",
    "It runs for about ninety minutes.",
    "The director's first film came out in 1987.",
    "We rented the DVD, as most people did.",
    "(The story is set in a small harbour town.)",
    "My sister had read the book before.",
    "It's based on a TRUE story, they say.",
    "There were five of us in the cinema.<br /><br />",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "aclImdb_v1.tar.gz"
    part = path.with_name(path.name + ".part")
    part.write_bytes(archive())
    part.replace(path)
    print(f"{path}: {' + '.join(map(str, REVIEWS.values()))} synthetic reviews")


def archive(reviews: dict[str, int] = REVIEWS) -> bytes:
    """The .tar.gz; `reviews` says how many, half of each label, are in train and in test."""
    rng = random.Random(SEED)
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tar,
    ):
        for part, number in reviews.items():
            for i in range(number):
                label = ("pos", "neg")[i % 2]
                text = review(rng, label).encode()
                file = tarfile.TarInfo(
                    f"aclImdb/{part}/{label}/{i // 2}_{rng.choice(STARS[label])}.txt"
                )
                file.size = len(text)
                tar.addfile(file, io.BytesIO(text))
    return packed.getvalue()


def review(rng: random.Random, label: str) -> str:
    favourable = label == "pos"
    sentences = [rng.choice(FILLER)]
    for _ in range(rng.randrange(2, 6)):
        agrees = rng.random() < AGREEING
        sentences.append(opinion(rng, favourable == agrees))
        if rng.random() < 0.3:
            sentences.append(rng.choice(FILLER))
    sentences.append("But " + opinion(rng, favourable))
    if rng.random() < 0.3:
        sentences.append(rng.choice(FILLER))
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def opinion(rng: random.Random, favourable: bool) -> str:
    negated = rng.random() < NEGATED
    quality = rng.choice(GOOD if favourable != negated else BAD)
    if rng.random() < 0.1:
        quality = quality.upper()
    quality = rng.choice(DEGREES) + quality
    if negated:
        quality = f"{rng.choice(NEGATIONS)} {quality}"
    return rng.choice(FRAMES).format(rng.choice(SUBJECTS), quality) + rng.choice(ENDS)


if __name__ == "__main__":
    main()
