import hashlib
import os
import subprocess
import sys
from pathlib import Path

import sample
from corpora import files_of

SCRIPT = Path(sample.__file__)


def contents(archive: bytes) -> dict[str, str]:
    return {name: text.decode() for name, text in files_of(archive).items()}


def test_the_bytes_never_change(tmp_path):
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, SCRIPT, tmp_path / seed],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
    first, second = (tmp_path / seed / "aclImdb_v1.tar.gz" for seed in ("1", "2"))
    assert first.read_bytes() == second.read_bytes() == sample.archive()
    # Runs on the sample are compared over time: a change of its reviews has to be meant.
    digest = hashlib.sha256("".join(contents(sample.archive()).values()).encode()).hexdigest()
    assert digest == "3b42133034f5f8a4f90be42fec36d9a7f7bbdd323b082620a3710fcd39ed19f6"


def test_the_layout_is_the_official_one():
    files = contents(sample.archive({"train": 6, "test": 4}))
    folders = [name.rsplit("/", 1)[0] for name in files]
    assert {folder: folders.count(folder) for folder in folders} == {
        "aclImdb/train/pos": 3,
        "aclImdb/train/neg": 3,
        "aclImdb/test/pos": 2,
        "aclImdb/test/neg": 2,
    }
    for name in files:
        number, stars = name.removesuffix(".txt").rsplit("/", 1)[1].split("_")
        assert int(number) in range(3)
        assert int(stars) in (range(7, 11) if "/pos/" in name else range(1, 5))


def test_the_label_is_the_verdict():
    for name, text in contents(sample.archive({"train": 200, "test": 0})).items():
        _, verdict = text.split("But ")
        for filler in sample.FILLER:
            verdict = verdict.replace(filler, "")
        favourable = any(word in verdict.lower() for word in sample.GOOD)
        assert favourable != any(word in verdict.lower() for word in sample.BAD)
        negated = any(f" {negation} " in verdict for negation in sample.NEGATIONS)
        assert (favourable != negated) == ("/pos/" in name)


def test_reviews_are_short_and_all_different():
    texts = list(contents(sample.archive()).values())
    assert len(set(texts)) == len(texts) == 2_500
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 15 and max(lengths) <= 90
