"""Generates a tiny stand-in for the PTB archive: python scripts/sample_text.py FOLDER

FOLDER/simple-examples.tgz has the official archive's name and layout, so that scripts/ptb.py
prepares it as it prepares the real one: 50,000 words to train on, 5,000 each to validate and to
test on, always the same ones.

A sentence begins with one of two topics, and each word then follows the one before it with the
probabilities NEXT, which word being which depending on the topic; after each word it ends with
probability END. So the entropy of the text is known: `perplexity` is what a model comes to that
knows the source, and no model can do better but by chance.
"""

import argparse
import gzip
import io
import math
import random
import tarfile
from pathlib import Path

SEED = 1
WORDS = {"train": 50_000, "valid": 5_000, "test": 5_000}  # without ends of lines
TOPICS = ("sea", "hill")
NAMES = [a + b for a in "bdfklmnprst" for b in ("a", "e", "i", "o")]
NEXT = (0.5, 0.25, 0.125, 0.125)  # of the successors of a word
END = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "simple-examples.tgz"
    part = path.with_name(path.name + ".part")
    part.write_bytes(archive())
    part.replace(path)
    print(f"{path}: {' + '.join(map(str, WORDS.values()))} synthetic words")


def archive(words: dict[str, int] = WORDS) -> bytes:
    """The .tgz; `words` says how many, at least, each part has."""
    rng = random.Random(SEED)
    table = successors()
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tar,
    ):
        for part, number in words.items():
            text = generate(rng, table, number).encode()
            file = tarfile.TarInfo(f"simple-examples/data/ptb.{part}.txt")
            file.size = len(text)
            tar.addfile(file, io.BytesIO(text))
    return packed.getvalue()


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
    main()
