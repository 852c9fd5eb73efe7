"""scripts/reproduce.py --profile quick, shortened, on a few sentences: killed, on a full disk, with
a damaged archive. A twin that nothing disturbs has the records to compare with."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imdb
import iwslt
import ptb
import pytest
import sample
import sample_text
import sample_translation

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "scripts/reproduce.py", "--profile", "quick"]
RUNS = Path("runs/quick")
KILLS = 5
TIMED = ("wall_seconds", "seconds", "train_chars_per_second")
JOEYNMT = {"epochs: 12": "epochs: 4", "_freq: 378": "_freq: 7", "_freq: 63": "_freq: 7"}
SHORTER = {
    "imdb_quick.jsonnet": {"num_epochs: 5": "num_epochs: 4"},
    "ptb_quick.jsonnet": {"num_epochs: 10": "num_epochs: 6"},
    "iwslt_quick.yaml": JOEYNMT,
    "iwslt_quick_lstm.yaml": JOEYNMT,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The repository as far as the quick profile needs it, and smaller samples, prepared."""
    root = tmp_path_factory.mktemp("template")
    shutil.copytree(ROOT / "configs", root / "configs")
    for name, changes in SHORTER.items():
        file = root / "configs" / name
        text = file.read_text(encoding="utf-8")
        for old, new in changes.items():
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        file.write_text(text, encoding="utf-8")
    mirror, data = root / "mirror", root / "data/sample"
    mirror.mkdir()
    for name, archive in {
        "aclImdb_v1.tar.gz": sample.archive({"train": 200, "test": 40}),
        "simple-examples.tgz": sample_text.archive({"train": 4000, "valid": 400, "test": 400}),
        "de-en.tgz": sample_translation.archive({"train": 200, "dev": 10, "test": 5}),
    }.items():
        (mirror / name).write_bytes(archive)
    for module, name in ((imdb, "imdb"), (ptb, "ptb"), (iwslt, "iwslt")):
        module.prepare(str(mirror), data / name, root / "download")
    return root


def project(template, folder):
    shutil.copytree(template, folder)
    (folder / "scripts").symlink_to(ROOT / "scripts")
    return folder


def start(folder, only):
    """In a session of its own; what it says goes into reproduce.log."""
    with open(folder / "reproduce.log", "ab") as log:
        return subprocess.Popen(
            [*COMMAND, "--only", only],
            cwd=folder,
            env={**os.environ, "QRNN_COMMIT": "0" * 40},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def said(folder):
    return (folder / "reproduce.log").read_text(encoding="utf-8")


def run(folder, only, status=0):
    assert start(folder, only).wait() == status, said(folder)


def kill_all(process):
    """With -9, and all that it has started, as when the machine goes down; returns how many."""
    found = [process.pid]
    for pid in found:  # which grows
        try:
            os.kill(pid, signal.SIGSTOP)  # starts no more of them
            for file in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, file.read_text().split())
        except (ProcessLookupError, FileNotFoundError):
            continue
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    return len(found)


def results(folder):
    """The records, without what a clock says."""

    def stripped(value):
        if isinstance(value, dict):
            return {
                key: stripped(v)
                for key, v in value.items()
                if key not in TIMED and not key.endswith("_per_second")
            }
        return [stripped(v) for v in value] if isinstance(value, list) else value

    files = sorted((folder / RUNS / "results").iterdir())
    return {file.name: stripped(json.loads(file.read_text("utf-8"))) for file in files}


@pytest.fixture(scope="module")
def whole(template, tmp_path_factory):
    folder = project(template, tmp_path_factory.mktemp("whole") / "project")
    began = time.monotonic()
    run(folder, "imdb,ptb,iwslt")
    return folder, time.monotonic() - began


def test_killed_at_five_moments_it_ends_with_the_same_records(template, whole, tmp_path):
    undisturbed, seconds = whole
    folder = project(template, tmp_path / "project")
    seed = time.time_ns()
    rng = random.Random(seed)
    hit = 0
    for _ in range(KILLS):
        process = start(folder, "imdb,ptb,iwslt")
        time.sleep(seconds * rng.uniform(0.15, 0.3))
        hit += kill_all(process) > 1
    run(folder, "imdb,ptb,iwslt")
    print(f"seed {seed}, {seconds:.0f} s undisturbed, {hit} of {KILLS} kills met a step")
    assert hit >= 3
    expected = results(undisturbed)
    assert len(expected) == 4
    found = results(folder)
    for name, record in expected.items():
        assert found[name] == record, f"seed {seed}"
    assert found.keys() == expected.keys()


@pytest.fixture
def small_disk(tmp_path):
    """Puts a disk of so many bytes at a folder, and changes its size."""
    mounted = []

    def make(folder, size):
        remount = "remount," if folder in mounted else ""
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"{remount}size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
        mounted.append(folder)

    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    yield make
    for folder in set(mounted):
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_with_room_the_run_goes_on(template, whole, tmp_path, small_disk):
    folder = project(template, tmp_path / "project")
    small_disk(folder / RUNS, 500_000)  # too small for a second checkpoint
    run(folder, "ptb", status=1)
    text = said(folder)
    assert "ptb-quick-seed1: failed the disk is full; ended with exit status 1" in text
    assert "To continue: " in text
    assert not (folder / RUNS / "results").exists()
    small_disk(folder / RUNS, 50_000_000)
    run(folder, "ptb")
    name = "ptb-quick-seed1.json"
    assert results(folder) == {name: results(whole[0])[name]}


def test_a_damaged_archive_stops_what_needs_it(template, tmp_path):
    """Through the steps of the other profiles, which have a mirror."""
    folder = project(template, tmp_path / "project")
    archive = folder / "mirror/de-en.tgz"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    program = """
import sys
from pathlib import Path
sys.path.insert(0, "scripts")
import reproduce
import reproduce_runner
only = ("ptb", "iwslt")
options = reproduce.Options(
    only, "cpu", 1, "mirror", None, False, Path("runs"), Path("results"), "CPU"
)
steps = reproduce.data_steps(options)
code = "open('after.done', 'w')"
steps.append(reproduce_runner.Step("after", ("-c", code), Path("after.done"), ("data-iwslt",)))
outcomes = {}
reproduce_runner.Runner(steps, Path("runs"), [{}], outcomes).run()
print(reproduce.summary(steps, outcomes, Path("runs")))
"""

    def go():
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    text = go()
    assert re.search("data-iwslt: failed .*de-en.tgz is damaged or incomplete", text), text
    assert "after: not started because of data-iwslt" in text
    assert "1 of 3 steps are done" in text and (folder / "data/ptb/meta.json").exists()
    assert not (folder / "data/iwslt").exists()
    archive.write_bytes(content)
    assert "3 of 3 steps are done" in go()
