import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import ptb
import pytest
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
OTHER = {name: text.replace(b"sat", b"ran") for name, text in SMALL.items()}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mirror(tmp_path) -> Path:
    return mirror_of(tmp_path / "mirror", archive_of(SMALL))


def mirror_of(folder: Path, archive: bytes) -> Path:
    folder.mkdir()
    (folder / ARCHIVE).write_bytes(archive)
    return folder


def archive_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


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


def test_official_data_needs_no_network_and_no_second_run(mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ptb, "OFFICIAL_FINGERPRINT", fingerprint_of(SMALL))
    before = run(mirror)
    meta = json.loads(before["meta.json"])
    assert meta["official"] is True and "NOT" not in meta["note"]
    assert "WARNING" not in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(ptb, "download", None)
        assert run(None) == before
    assert "already prepared" in capsys.readouterr().out
    other = mirror_of(tmp_path / "other", archive_of(OTHER))
    assert json.loads(run(other)["meta.json"])["official"] is False


def test_what_else_is_in_the_archive_and_its_order_do_not_matter(mirror, tmp_path):
    files = [*SMALL.items(), (f"{FOLDER}/README", b"\xff"), ("simple-examples/1-train/x", b"\xff")]
    random.Random(1).shuffle(files)
    dotted = {f"./{name}": text for name, text in files}  # the official archive's names
    assert run(mirror, "a") == run(mirror_of(tmp_path / "other", archive_of(dotted)), "b")


def test_a_second_run_does_nothing(mirror, capsys, monkeypatch):
    before = run(mirror)
    monkeypatch.setattr(ptb, "write", None)
    capsys.readouterr()
    assert run(mirror) == before
    printed = capsys.readouterr()
    assert "already prepared" in printed.out and "WARNING" in printed.err


@pytest.mark.parametrize("change", ["edited", "removed", "recipe", "meta"])
def test_what_was_spoilt_is_written_again(mirror, change):
    before = run(mirror)
    if change == "edited":
        Path("out/train.txt").write_bytes(before["train.txt"][:-9])
    elif change == "removed":
        Path("out/test.txt").unlink()
    elif change == "recipe":
        old = json.loads(before["meta.json"]) | {"recipe": 0}
        Path("out/meta.json").write_text(json.dumps(old))
    else:
        Path("out/meta.json").write_bytes(b"{")
    assert run(mirror) == before


KILLED = """
import os, signal, sys
sys.path.insert(0, {scripts!r})
from pathlib import Path
import ptb

moment, replace = int(sys.argv[1]), os.replace

def replace_or_die(*names):
    global moment
    moment -= 1
    if moment < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)

os.replace = replace_or_die
ptb.prepare({mirror!r}, Path("out"), Path("cache"))
"""


def test_killed_at_any_moment(mirror, tmp_path):
    """Every file and folder gets its name by os.replace: kill -9 right before each one."""
    other = mirror_of(tmp_path / "other", archive_of(OTHER))
    clean = run(mirror, "clean")
    code = KILLED.format(scripts=str(ROOT / "scripts"), mirror=str(mirror))
    moment = 0
    while True:
        before = run(other)  # something finished, which must not vouch for the new files
        status = subprocess.run(
            [sys.executable, "-c", code, str(moment)], stderr=subprocess.DEVNULL
        ).returncode
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if Path("out/meta.json").exists():
            assert before.items() <= {p.name: p.read_bytes() for p in Path("out").iterdir()}.items()
        assert run(mirror) == clean
        moment += 1
    assert moment == 8  # the archive and its records 3, the folder 1, the data 4


def test_the_command(mirror, tmp_path, monkeypatch):
    command = ["scripts/ptb.py", "--out", "out", "--cache", "cache", "--mirror"]
    done = subprocess.run(
        [sys.executable, ROOT / command[0], *command[1:], "nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: there is no file {tmp_path}/nowhere/{ARCHIVE}")
    monkeypatch.setattr(sys, "argv", [*command, str(mirror)])
    ptb.main()
    assert run(mirror, "here") == {path.name: path.read_bytes() for path in Path("out").iterdir()}


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
        run(mirror_of(tmp_path / "mirror", archive))
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
