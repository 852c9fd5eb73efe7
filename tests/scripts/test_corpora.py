"""What imdb.py, ptb.py and iwslt.py have in common: nothing is lost, half-written or done twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import imdb
import iwslt
import ptb
import pytest
import sample
import sample_translation
from corpora import archive_name, archive_of, mirror_of
from fetch import FetchError

SCRIPTS = Path(ptb.__file__).parent


class Corpus(NamedTuple):
    """kill: code for a run that is killed; moments: at which that can be done."""

    module: ModuleType
    archive: bytes
    other: bytes
    text: str
    removed: str
    stale: dict[str, object]
    moments: int
    kill: str = ""


def ptb_of(verb: str) -> bytes:
    texts = {"train": f" the dogs {verb} \n", "valid": " the dogs \n", "test": f" dogs {verb} \n"}
    return archive_of(
        {f"simple-examples/data/ptb.{part}.txt": text.encode() for part, text in texts.items()}
    )


# which would take long to load
NO_TOKENIZER = """
imdb.read_reviews = lambda folder, files: [
    imdb.Review(f"{folder}/{file.stem}", file.read_text(), folder[-3:]) for file in files
]
"""
# moments: the archive and its records 3, the folder 1, then the data
CORPORA = {
    "imdb": Corpus(
        imdb,
        sample.archive({"train": 60, "test": 20}),
        sample.archive({"train": 40, "test": 10}),
        "train.jsonl",
        "dev.jsonl",
        {"tokenizer": "spacy 0.1"},
        4 + 4,
        NO_TOKENIZER,
    ),
    "ptb": Corpus(ptb, ptb_of("sat"), ptb_of("ran"), "train.txt", "test.txt", {"recipe": 0}, 4 + 4),
    "iwslt": Corpus(
        iwslt,
        sample_translation.archive({"train": 60, "dev": 20, "test": 20}),
        sample_translation.archive({"train": 40, "dev": 10, "test": 10}),
        "train.de",
        "vocab.txt",
        {"recipe": 0},
        4 + 8,
    ),
}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=CORPORA)
def corpus(request) -> Corpus:
    return CORPORA[request.param]


@pytest.fixture
def mirror(corpus, tmp_path) -> Path:
    return mirror_of(corpus.module, tmp_path / "mirror", corpus.archive)


@pytest.fixture
def other(corpus, tmp_path) -> Path:
    return mirror_of(corpus.module, tmp_path / "other", corpus.other)


def run(corpus: Corpus, mirror: Path | None, out: str = "out") -> dict[str, bytes]:
    corpus.module.prepare(mirror and str(mirror), Path(out), Path("cache"))
    return content(out)


def content(folder: str = "out") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_second_run_does_nothing(corpus, mirror, capsys, monkeypatch):
    before = run(corpus, mirror)
    assert not any("unpacked" in name for name in os.listdir("cache"))
    monkeypatch.setattr(corpus.module, "write", None)
    capsys.readouterr()
    assert run(corpus, mirror) == before
    printed = capsys.readouterr()
    assert "already prepared" in printed.out and "WARNING" in printed.err


def test_official_data_needs_no_network(corpus, mirror, other, monkeypatch, capsys):
    meta = json.loads(run(corpus, mirror)["meta.json"])
    assert meta["official"] is False
    Path("out/meta.json").write_text(json.dumps(meta | {"official": True}))
    before = content()
    with monkeypatch.context() as patch:
        patch.setattr(corpus.module, "download", None)
        assert run(corpus, None) == before
    assert "already prepared" in capsys.readouterr().out
    assert json.loads(run(corpus, other)["meta.json"])["official"] is False


@pytest.mark.parametrize("change", ["edited", "removed", "recipe", "meta"])
def test_what_was_spoilt_is_written_again(corpus, mirror, change):
    before = run(corpus, mirror)
    if change == "edited":
        Path("out", corpus.text).write_bytes(before[corpus.text][:-9])
    elif change == "removed":
        Path("out", corpus.removed).unlink()
    elif change == "recipe":
        old = json.loads(before["meta.json"]) | corpus.stale
        Path("out/meta.json").write_text(json.dumps(old))
    else:
        Path("out/meta.json").write_bytes(b"{")
    assert run(corpus, mirror) == before


def test_another_corpus_replaces_the_old_one(corpus, mirror, other):
    clean = run(corpus, other, "clean")
    run(corpus, mirror)
    assert run(corpus, other) == clean


KILLED = """
import os, signal, sys
sys.path.insert(0, {scripts!r})
from pathlib import Path
import {name}

moment, replace = int(sys.argv[1]), os.replace

def replace_or_die(*names):
    global moment
    moment -= 1
    if moment < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)

os.replace = replace_or_die
{more}
{name}.prepare({mirror!r}, Path("out"), Path("cache"))
"""


def test_killed_at_any_moment(corpus, mirror, other):
    """Every file and folder gets its name by os.replace: kill -9 right before each one."""
    clean = run(corpus, mirror, "clean")
    name = corpus.module.__name__
    code = KILLED.format(name=name, scripts=str(SCRIPTS), mirror=str(mirror), more=corpus.kill)
    moment = 0
    while True:
        before = run(corpus, other)  # something finished, which must not vouch for the new files
        status = subprocess.run(
            [sys.executable, "-c", code, str(moment)], stderr=subprocess.DEVNULL
        ).returncode
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if Path("out/meta.json").exists():
            assert before.items() <= content().items()
        assert run(corpus, mirror) == clean
        moment += 1
    assert moment == corpus.moments


def test_a_damaged_archive_is_an_error(corpus, mirror):
    archive = mirror / archive_name(corpus.module)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(FetchError, match="damaged or incomplete"):
        run(corpus, mirror)
    assert not Path("out").exists()


def test_the_command(corpus, mirror, tmp_path, monkeypatch):
    script = f"{corpus.module.__name__}.py"
    command = [script, "--out", "out", "--cache", "cache", "--mirror"]
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, *command[1:], "nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 1
    absent = tmp_path / "nowhere" / archive_name(corpus.module)
    assert done.stderr.startswith(f"error: there is no file {absent}")
    monkeypatch.setattr(sys, "argv", [*command, str(mirror)])
    corpus.module.main()
    assert run(corpus, mirror, "here") == content()
