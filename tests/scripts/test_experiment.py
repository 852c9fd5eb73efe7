import json
import subprocess
import sys
import tarfile
from pathlib import Path

import experiment
import pytest
import records
import torch
import with_allennlp

IMPORT = 'import "base.jsonnet"'
META = {"name": "imdb", "official": False, "note": "tiny", "fingerprint": "0"}


class Commands:
    """Stands for `allennlp`: notes what is called, and leaves the files that it would leave."""

    def __init__(self) -> None:
        self.called: list[list[str]] = []
        self.dies_at = ""

    def __call__(self, *arguments: object) -> None:
        called = list(map(str, arguments))
        self.called.append(called)
        if called[0] == "train":
            directory = Path(called[called.index("-s") + 1])
            directory.mkdir(parents=True, exist_ok=True)
            overrides = json.loads(called[called.index("-o") + 1])
            config = {"train_data_path": "data/imdb/train.jsonl", **overrides}
            (directory / "config.json").write_text(json.dumps(config | {"trainer": {}}))
            state = {
                "metric_tracker": {"best_epoch": 0, "epochs_with_no_improvement": 0},
                "epochs_completed": 1,
                "batches_in_epoch_completed": 0,
                "best_model_filename": str(directory / "best.th"),
            }
            for kind in ("model", "training"):
                torch.save(state, directory / f"{kind}_state_e1_b0.th")
            self.die("train", called)
            history = [
                {"epoch": e, "seconds": 2.5, "validation_accuracy": 0.8, "peak_memory_MB": 1}
                for e in range(2)
            ]
            run = {"history": history, "data": META, "vectors": None, "parameters": 7}
            (directory / "run.json").write_text(json.dumps(run))
            metrics = {"best_validation_accuracy": 0.8, "best_epoch": 1}
            (directory / "metrics.json").write_text(json.dumps(metrics))
            with tarfile.open(directory / "model.tar.gz", "w:gz") as tar:
                for name in ("config.json", "weights.th", "meta.json"):
                    tar.add(directory / "run.json", name)
        else:
            Path(called[called.index("--output-file") + 1]).write_text('{"accuracy": 0.75}')
            self.die("evaluate", called)

    def die(self, command: str, called: list[str]) -> None:
        if self.dies_at == command:
            raise subprocess.CalledProcessError(9, called)


@pytest.fixture
def commands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    for name in ("imdb", "imdb_lm", "base"):
        content = '{train_data_path: "data/imdb/train.jsonl"}' if name == "base" else IMPORT
        Path(f"configs/{name}.jsonnet").write_text(content)
    Path("data/imdb").mkdir(parents=True)
    Path("data/imdb/meta.json").write_text(json.dumps(META | {"files": {"train.jsonl": "1"}}))
    fake = Commands()
    monkeypatch.setattr(with_allennlp, "call", fake)
    return fake


def run(**options):
    return experiment.run("imdb", Path("configs/imdb.jsonnet"), "k2", seed=3, **options)


def test_a_run_ends_in_a_record(commands):
    path = run(overrides={"trainer.num_epochs": 2}, note="short")
    assert path == records.RESULTS / "imdb-k2-seed3.json"
    [record] = records.load(records.RESULTS).values()
    assert record["metrics"] == {
        "dev_accuracy": 0.8, "test_accuracy": 0.75, "best_epoch": 1, "parameters": 7
    }  # fmt: skip
    assert record["data"]["official"] is False and record["note"] == "short"
    assert record["wall_seconds"] == 5.0
    assert record["history"][0] == {"epoch": 0, "seconds": 2.5, "validation_accuracy": 0.8}
    train, evaluate = commands.called
    seeds = {"random_seed": 3, "numpy_seed": 3, "pytorch_seed": 3, "trainer.num_epochs": 2}
    assert json.loads(train[train.index("-o") + 1]) == seeds
    assert evaluate[2] == "data/imdb/test.jsonl"


def test_a_language_model_is_measured_by_its_perplexity(tmp_path):
    told = {"history": [], "data": META, "vectors": None, "parameters": 7}
    best = {"best_validation_perplexity": 82.1, "best_epoch": 70}
    for name, content in (("run", told), ("metrics", best), ("test", {"perplexity": 78.3})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text("{}")
    assert with_allennlp.outcome(tmp_path)["metrics"] == {
        "valid_perplexity": 82.1, "test_perplexity": 78.3, "best_epoch": 70, "parameters": 7
    }  # fmt: skip


def test_what_others_start_from_is_not_tested(commands):
    config = Path("configs/imdb_lm.jsonnet")
    path = experiment.run("imdb-lm", config, "forward", seed=3)
    assert "test_accuracy" not in json.loads(path.read_text())["metrics"]
    assert [call[0] for call in commands.called] == ["train"]


def test_a_finished_run_is_not_repeated(commands):
    assert run() == run()
    assert len(commands.called) == 2


def test_an_interrupted_training_is_recovered(commands):
    commands.dies_at = "train"
    with pytest.raises(subprocess.CalledProcessError):
        run()
    commands.dies_at = ""
    run()
    assert ["--recover" in call for call in commands.called] == [False, True, False]


def test_the_commit_is_that_of_the_training_which_made_the_result(commands, monkeypatch):
    commits = iter(["first", "second", "third"])
    monkeypatch.setattr(records, "commit", lambda: next(commits))
    commands.dies_at = "train"
    with pytest.raises(subprocess.CalledProcessError):
        run()
    for state in Path("runs/imdb-k2-seed3").glob("*_state_*.th"):
        state.unlink()  # as if it had been killed earlier: the next one starts anew
    with pytest.raises(subprocess.CalledProcessError):
        run()
    commands.dies_at = ""
    [record] = [json.loads(run().read_text())]
    assert ["--recover" in call for call in commands.called] == [False, False, True, False]
    assert record["commit"] == "second"


@pytest.mark.parametrize("dies_at", ["train", "evaluate", ""])
def test_a_run_of_another_command_is_not_taken_for_this_one(commands, dies_at):
    commands.dies_at = dies_at
    if dies_at:
        with pytest.raises(subprocess.CalledProcessError):
            run(overrides={"trainer.num_epochs": 2})
    else:
        run(overrides={"trainer.num_epochs": 2}).unlink()
    commands.dies_at = ""
    before = {file: file.read_bytes() for file in Path("runs").rglob("*.*") if file.is_file()}
    with pytest.raises(
        experiment.OtherRunError, match=r'imdb-k2-seed3 was begun with .*epochs": 2'
    ):
        run(overrides={"trainer.num_epochs": 3})
    assert all(file.read_bytes() == content for file, content in before.items())
    calls = len(commands.called)
    run(overrides={"trainer.num_epochs": 2})
    assert len(commands.called) - calls == {"train": 2, "evaluate": 1, "": 0}[dies_at]


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("configs/base.jsonnet", '{train_data_path: "data/imdb/train.jsonl", a: 1}', "config"),
        ("data/imdb/meta.json", '{"files": {"train.jsonl": "2"}}', "data"),
    ],
)
def test_a_run_goes_on_with_the_content_that_it_was_begun_with(commands, file, content, named):
    """Not with another under the same name; one that an older version began does not say."""
    commands.dies_at = "train"
    with pytest.raises(subprocess.CalledProcessError):
        run()
    commands.dies_at = ""
    Path("configs/imdb.jsonnet").write_text(f"({IMPORT}) + {{}}  # comes to the same")
    before = Path(file).read_text()
    Path(file).write_text(content)
    told = rf'runs/imdb-k2-seed3 was begun with {{"{named}_sha256": "\w+"}}, not with .*: delete it'
    with pytest.raises(experiment.OtherRunError, match=told):
        run()
    started = Path("runs/imdb-k2-seed3.json")
    known = json.loads(started.read_text())
    Path(file).write_text(before)
    run().unlink()
    Path(file).write_text(content)
    del known["trained"][f"{named}_sha256"]
    started.write_text(json.dumps(known))
    run()


def test_two_processes_do_not_train_the_same_run(commands, monkeypatch):
    monkeypatch.setattr(with_allennlp, "call", lambda *_: run())
    with pytest.raises(BlockingIOError, match="another process is at work on runs/imdb-k2-seed3"):
        run()


def test_an_interrupted_evaluation_is_repeated_and_the_training_is_not(commands):
    commands.dies_at = "evaluate"
    with pytest.raises(subprocess.CalledProcessError):
        run()
    assert not records.RESULTS.exists()
    commands.dies_at = ""
    run()
    assert [call[0] for call in commands.called] == ["train", "evaluate", "evaluate"]


@pytest.mark.parametrize(
    ("status", "text"),
    [(-9, "was killed by signal 9, perhaps out of memory"), (3, "ended with exit status 3")],
)
def test_what_failed_and_how_is_said(commands, monkeypatch, status, text):
    def call(*arguments):
        raise subprocess.CalledProcessError(status, ["allennlp", "train"])

    monkeypatch.setattr(with_allennlp, "call", call)
    arguments = ["imdb", "configs/imdb.jsonnet", "--row", "k2"]
    monkeypatch.setattr(sys, "argv", ["experiment.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        experiment.main()
    said = f"error: allennlp train {text}, see above; the same command continues it"
    assert ended.value.code == said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("missing.jsonnet --row k2", "there is no missing.jsonnet"),
        ("x.jsonnet --row /k", "--row: expected letters, digits"),
        ("x.yaml --row k2", "config: expected a file *.jsonnet, got x.yaml"),
        ("x.jsonnet --row k2 --runs a --results ./a", "--results: expected another folder than"),
        ("x.jsonnet --row k2 --results x.yaml/a/b", "--results: x.yaml is no folder"),
        ("x.jsonnet --row k2 --seed -1", "--seed: expected at least 0, got -1"),
        ("x.jsonnet --row k2 --overrides [1]", "--overrides: expected a JSON object, got [1]"),
    ],
)
def test_what_cannot_end_well_is_not_begun(commands, monkeypatch, capsys, arguments, told):
    Path("x.jsonnet").touch()
    Path("x.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["experiment.py", "imdb", *arguments.split()])
    with pytest.raises(SystemExit):
        experiment.main()
    assert told in capsys.readouterr().err and not commands.called


def test_a_config_of_another_corpus_is_not_begun(commands, monkeypatch):
    command = ["experiment.py", "ptb", "configs/imdb.jsonnet", "--row", "qrnn"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(
        SystemExit, match=r"imdb\.jsonnet trains on imdb, and the experiment is ptb"
    ):
        experiment.main()
    assert not commands.called and not Path("runs").exists()


def test_a_record_tells_where_training_began_and_in_what_environment(commands, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    commands.dies_at = "evaluate"
    monkeypatch.setattr(records, "device", lambda: "the first")
    with pytest.raises(subprocess.CalledProcessError):
        run()
    commands.dies_at = ""
    monkeypatch.setattr(records, "device", lambda: "the second")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    run()
    [record] = records.load(records.RESULTS).values()
    assert record["device"] == "the first"
    assert record["environment"]["OMP_NUM_THREADS"] == "3" and "trained" not in record
