import json
import math
import subprocess

import pytest
import records

RECORD = {
    "experiment": "imdb",
    "row": "k2",
    "seed": 1,
    "metrics": {"test_accuracy": 0.5},
    "history": [{"epoch": 0}],
    "data": {"name": "imdb", "official": True},
    "device": "CPU",
    "config_sha256": "0" * 64,
    "wall_seconds": 1.5,
    "command": "python scripts/experiment.py",
}


def test_a_record_comes_back_with_what_every_record_says(tmp_path):
    path = records.write(tmp_path / "results", RECORD)
    assert path.name == "imdb-k2-seed1.json"
    [(name, record)] = records.load(path.parent).items()
    assert name == path.name
    assert record == {**record, **RECORD}
    assert record["schema"] == records.SCHEMA
    assert record["versions"]["torch"] and record["commit"]


def test_a_benchmark_has_a_table_and_no_seed(tmp_path):
    record = {**RECORD, "seed": None, "data": None, "table": [{"ratio": 1.0}]}
    assert records.write(tmp_path, record).name == "imdb-k2.json"


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": "1"}, "seed"),
        ({"seed": True}, "seed"),
        ({"wall_seconds": None}, "wall_seconds"),
        ({"schema": 99}, "schema"),
        ({"metrics": {"test_accuracy": "high"}}, "metrics"),
        ({"history": None}, "history"),
        ({"data": {"name": "imdb"}}, "official"),
        ({"table": [1]}, "table"),
        ({"wall_seconds": math.inf}, "wall_seconds: expected a finite number, got inf"),
        ({"metrics": {"test_accuracy": math.nan}}, r"metrics\.test_accuracy: .* got nan"),
        ({"history": [{}, {"loss": -math.inf}]}, r"history\[1\]\.loss: .* got -inf"),
        ({"data": {"official": True, "size": 10**400}}, r"data\.size: .* got 1000"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_not_written(tmp_path, change, named):
    with pytest.raises(records.RecordError, match=f"imdb-k2.*{named}"):
        records.write(tmp_path, {**RECORD, **change})
    assert not list(tmp_path.iterdir())


def test_the_commit_is_that_of_this_tree_and_not_of_a_repository_around_it(tmp_path, monkeypatch):
    monkeypatch.delenv("QRNN_COMMIT", raising=False)
    tree = tmp_path / "unpacked"
    tree.mkdir()
    (tree / "a").write_text("1")

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", tree, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(records, "ROOT", tree)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    git("add", "a")
    git("commit", "-qm", "around")
    assert records.commit() == "unknown"
    git("init", "-q", ".")
    git("add", "a")
    git("commit", "-qm", "own")
    assert records.commit() == git("rev-parse", "HEAD")
    (tree / "a").write_text("2")
    assert records.commit() == git("rev-parse", "HEAD") + "+changes"


def test_loading_names_the_file_that_does_not_fit(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(records.RecordError, match=r"broken\.json"):
        records.load(tmp_path)
    (tmp_path / "broken.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(records.RecordError, match=r"broken\.json: lacks"):
        records.load(tmp_path)
    path = records.write(tmp_path / "results", RECORD)
    path.write_text(path.read_text().replace("0.5", "NaN"))
    with pytest.raises(records.RecordError, match=r"k2-seed1\.json: metrics\.test_accuracy: .*nan"):
        records.load(path.parent)
    path.unlink()
    path.mkdir()
    with pytest.raises(records.RecordError, match=r"k2-seed1\.json: expected a file"):
        records.load(path.parent)
