"""Generates a tiny stand-in for the PTB archive: python scripts/sample_text.py FOLDER

FOLDER/simple-examples.tgz has the official archive's name and layout, so that scripts/ptb.py
prepares it as it prepares the real one: 50,000 words to train on, 5,000 each to validate and to
test on, always the same ones.

A sentence begins with one of two topics, and each word then follows the one before it with the
probabilities NEXT, which word being which depending on the topic; after each word it ends with
probability END. So the entropy of the text is known: `perplexity` is what a model comes to that
knows the source, and no model can do better but by chance.
"""

import math
import random
from pathlib import Path

import packing

SEED = 1
WORDS = {"train": 50_000, "valid": 5_000, "test": 5_000}  # without ends of lines
TOPICS = ("sea", "hill")
NAMES = [a + b for a in "bdfklmnprst" for b in ("a", "e", "i", "o")]
NEXT = (0.5, 0.25, 0.125, 0.125)  # of the successors of a word
END = 0.1


def write(folder: Path) -> None:
    what = f"{' + '.join(map(str, WORDS.values()))} synthetic words"
    packing.write(folder / "simple-examples.tgz", archive(), what)


def archive(words: dict[str, int] = WORDS) -> bytes:
    """The .tgz; `words` says how many, at least, each part has."""
    rng = random.Random(SEED)
    table = successors()
    return packing.pack(
        {
            f"simple-examples/data/ptb.{part}.txt": generate(rng, table, number)
            for part, number in words.items()
        }
    )


def successors() -> dict[tuple[str, str], list[str]]:
    """What may follow a word, the most probable first, by topic and word."""
    rng = random.Random(SEED + 1)
    return {(t, w): rng.sample(NAMES, len(NEXT)) for t in TOPICS for w in (t, *NAMES)}


def generate(rng: random.Random, table: dict[tuple[str, str], list[str]], number: int) -> str:
    lines, count = [], 0
    while count < number:
        topic = rng.choice(TOPICS)
        line = [topic]
        while len(line) == 1 or rng.random() >= END:
            line += rng.choices(table[topic, line[-1]], NEXT)
        lines.append(" ".join(line) + "\n")
        count += len(line)
    return "".join(lines)


def perplexity(text: str) -> float:
    """Of text from here, under the source that it was drawn from; per word and end of line."""
    table = successors()
    nats, tokens = 0.0, 0
    for line in text.splitlines():
        topic, *words = line.split()
        nats -= math.log(1 / len(TOPICS)) + math.log(END)
        nats -= (len(words) - 1) * math.log(1 - END)
        for before, word in zip((topic, *words), words, strict=False):
            nats -= math.log(NEXT[table[topic, before].index(word)])
        tokens += len(words) + 2
    return math.exp(nats / tokens)


if __name__ == "__main__":
    packing.main(write, __doc__)
