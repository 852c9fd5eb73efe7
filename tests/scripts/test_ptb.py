import hashlib
import json
import os
import random
from pathlib import Path

import ptb
import pytest
from corpora import archive_of, mirror_of
from fetch import FetchError
from ptb import OFFICIAL_FINGERPRINT, OFFICIAL_TOKENS, PARTS, URL, prepare

ROOT = Path(ptb.__file__).parents[1]
MIRROR = Path(os.environ.get("QRNN_MIRROR", ROOT.parent / "shared/data/mirror"))
ARCHIVE = "simple-examples.tgz"
FOLDER = "simple-examples/data"
SMALL = {
    f"{FOLDER}/ptb.train.txt": b" the <unk> sat \n N dogs sat \n\n",
    f"{FOLDER}/ptb.valid.txt": b" the dogs \n",
    f"{FOLDER}/ptb.test.txt": b" N <unk>\n sat",
}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mirror(tmp_path) -> Path:
    return mirror_of(ptb, tmp_path / "mirror", archive_of(SMALL))


def run(mirror: Path | None, out: str = "out") -> dict[str, bytes]:
    prepare(mirror and str(mirror), Path(out), Path("cache"))
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


def fingerprint_of(files: dict[str, bytes]) -> str:
    parts = [files[f"{FOLDER}/ptb.{part}.txt"] for part in ("test", "train", "valid")]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_what_is_written(mirror):
    written = run(mirror)
    meta = json.loads(written.pop("meta.json"))
    assert written == {name.split("ptb.")[1]: text for name, text in SMALL.items()}
    assert meta["counts"] == {
        "train": {"lines": 3, "tokens": 9},
        "valid": {"lines": 1, "tokens": 3},
        "test": {"lines": 2, "tokens": 5},
    }
    assert meta["vocabulary"] == 6  # the <unk> sat N dogs, and the end of a line
    assert meta["fingerprint"] == fingerprint_of(SMALL)
    for name, digest in meta["files"].items():
        assert hashlib.sha256(written[name]).hexdigest() == digest
    assert not any("unpacked" in name for name in os.listdir("cache"))


def test_other_content_is_not_official(mirror, capsys, monkeypatch):
    meta = json.loads(run(mirror)["meta.json"])
    assert meta["name"] == "ptb" and meta["official"] is False
    found = "train 9 of 929,589, valid 3 of 73,760, test 5 of 82,430"
    assert meta["note"] == f"NOT OFFICIAL: tokens in {found}"
    warning = capsys.readouterr().err
    assert "# WARNING" in warning and meta["note"] in warning
    monkeypatch.setattr(ptb, "OFFICIAL_TOKENS", {"train": 9, "valid": 3, "test": 5})
    meta = json.loads(run(mirror, "same counts")["meta.json"])
    assert meta["official"] is False and "other content" in meta["note"]


def test_official_content_is_official(mirror, monkeypatch, capsys):
    monkeypatch.setattr(ptb, "OFFICIAL_FINGERPRINT", fingerprint_of(SMALL))
    meta = json.loads(run(mirror)["meta.json"])
    assert meta["official"] is True and "NOT" not in meta["note"]
    assert "WARNING" not in capsys.readouterr().err


def test_what_else_is_in_the_archive_and_its_order_do_not_matter(mirror, tmp_path):
    files = [*SMALL.items(), (f"{FOLDER}/README", b"\xff"), ("simple-examples/1-train/x", b"\xff")]
    random.Random(1).shuffle(files)
    dotted = {f"./{name}": text for name, text in files}  # the official archive's names
    assert run(mirror, "a") == run(mirror_of(ptb, tmp_path / "other", archive_of(dotted)), "b")


@pytest.mark.parametrize(
    ("part", "content", "error"),
    [
        ("test", None, "no simple-examples/data/ptb.test.txt"),
        ("train", b"caf\xe9\n", "ptb.train.txt is not UTF-8"),
        ("valid", b" \n", "ptb.valid.txt holds no words"),
    ],
)
def test_an_unusable_archive_is_an_error(tmp_path, part, content, error):
    files = SMALL | {f"{FOLDER}/ptb.{part}.txt": content}
    archive = archive_of({name: text for name, text in files.items() if text is not None})
    with pytest.raises(FetchError, match=error):
        run(mirror_of(ptb, tmp_path / "mirror", archive))
    assert not Path("out").exists()
    assert not any("unpacked" in name for name in os.listdir("cache"))


def test_the_real_corpus_is_official():
    """The sums of torchtext, which takes the files from Zaremba's repository."""
    archive = MIRROR / URL.rsplit("/", 1)[1]
    if not archive.exists():
        pytest.skip(f"no real data: there is no {archive} (QRNN_MIRROR)")
    written = run(MIRROR)
    meta = json.loads(written["meta.json"])
    assert meta["official"] is True and meta["fingerprint"] == OFFICIAL_FINGERPRINT
    assert [hashlib.md5(written[f"{part}.txt"]).hexdigest() for part in PARTS] == [
        "f26c4b92c5fdc7b3f8c7cdcb991d8420",
        "aa0affc06ff7c36e977d7cd49e3839bf",
        "8b80168b89c18661a38ef683c0dc3721",
    ]
    assert {part: n["tokens"] for part, n in meta["counts"].items()} == OFFICIAL_TOKENS
    lines = {part: n["lines"] for part, n in meta["counts"].items()}
    assert lines == {"train": 42_068, "valid": 3_370, "test": 3_761}
    assert meta["vocabulary"] == 10_000
