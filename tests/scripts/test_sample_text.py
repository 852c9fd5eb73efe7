import math
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import ptb
import sample_text
from corpora import files_of

SCRIPT = Path(sample_text.__file__)


def texts() -> dict[str, str]:
    files = files_of(sample_text.archive())
    names = {part: f"simple-examples/data/ptb.{part}.txt" for part in sample_text.WORDS}
    return {part: files[name].decode() for part, name in names.items()}


def test_the_bytes_never_change(tmp_path):
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, SCRIPT, tmp_path / seed],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
    first, second = ((tmp_path / n / "simple-examples.tgz").read_bytes() for n in ("1", "2"))
    assert first == second == sample_text.archive()


def test_it_is_prepared_as_the_real_one_is(tmp_path):
    sample_text.write(tmp_path / "mirror")
    ptb.prepare(str(tmp_path / "mirror"), tmp_path / "out", tmp_path / "cache")
    for part, text in texts().items():
        assert (tmp_path / "out" / f"{part}.txt").read_text() == text
        words = len(text.split())
        assert sample_text.WORDS[part] <= words < sample_text.WORDS[part] + 200
    train, *others = (set(text.split()) for text in texts().values())
    assert all(words <= train for words in others)


def test_the_perplexity_is_the_entropy_of_the_source():
    """What is counted in 50,000 words comes to what follows from NEXT and END."""
    text = texts()["train"]

    def entropy(*p):
        return -sum(x * math.log(x) for x in p)

    successor = entropy(*sample_text.NEXT)
    end = entropy(sample_text.END, 1 - sample_text.END)
    words = 1 / sample_text.END  # of a sentence, its topic and its end not counted
    nats = entropy(1 / 2, 1 / 2) + words * (successor + end)
    expected = math.exp(nats / (words + 2))
    assert abs(sample_text.perplexity(text) / expected - 1) < 0.01


def test_who_forgets_the_topic_is_far_from_it():
    """The word before alone, counted on the very text, leaves much to remember the topic for."""
    text = texts()["train"]
    stream = ["</s>", *text.replace("\n", " </s> ").split()]
    pairs = Counter(pairwise(stream))
    firsts = Counter(stream[:-1])
    nats = -sum(n * math.log(n / firsts[a]) for (a, _), n in pairs.items())
    assert math.exp(nats / (len(stream) - 1)) > 1.3 * sample_text.perplexity(text)
