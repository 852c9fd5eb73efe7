"""Generates a tiny stand-in for the IMDb archive: python scripts/sample.py FOLDER

FOLDER/aclImdb_v1.tar.gz has the official archive's name and layout, so that scripts/imdb.py
prepares it as it prepares the real one: 2,000 synthetic reviews to train on and 500 to test on,
always the same ones.

Each mixes opinions in favour and against with neutral filler, and its label is its verdict: the
one opinion that begins with "But". The opinions before it agree with it 60 % of the time, and a
fifth of all are negated ("not good", "far from dull"), so that neither the words nor their nearest
neighbours settle it. On the words, lower-cased, logistic regression gets 72 % of the test
reviews right, on words and pairs of words 76 %; order and negation give the rest.
"""

import random
from pathlib import Path

import packing

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


def write(folder: Path) -> None:
    what = f"{' + '.join(map(str, REVIEWS.values()))} synthetic reviews"
    packing.write(folder / "aclImdb_v1.tar.gz", archive(), what)


def archive(reviews: dict[str, int] = REVIEWS) -> bytes:
    """The .tar.gz; `reviews` says how many, half of each label, are in train and in test."""
    rng = random.Random(SEED)
    texts: dict[str, str] = {}
    for part, number in reviews.items():
        for i in range(number):
            label = ("pos", "neg")[i % 2]
            text = review(rng, label)
            texts[f"aclImdb/{part}/{label}/{i // 2}_{rng.choice(STARS[label])}.txt"] = text
    return packing.pack(texts)


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
    packing.main(write, __doc__)
