"""The commands that people type, on a tiny corpus, each in its own process and directory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = {"pos": "good fine lovely", "neg": "bad poor dull"}
SMALL = {
    "vocabulary": {},
    "model.text_field_embedder.token_embedders.tokens.embedding_dim": 8,
    "model.seq2vec_encoder.input_size": 8,
    "model.seq2vec_encoder.hidden_size": 8,
    "model.seq2vec_encoder.num_layers": 1,
    "trainer.num_epochs": 3,
    "trainer.optimizer.lr": 0.03,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with configs/ and data/imdb/ as in the repository, but with 60 reviews."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "configs", root / "configs")
    data = root / "data" / "imdb"
    data.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        lines = [
            {"text": f"a {word} film number {n}", "label": label}
            for n in range(10)
            for label, words in WORDS.items()
            for word in words.split()
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (data / f"{part}.jsonl").write_text(text, encoding="utf-8")
    (data / "meta.json").write_text('{"name": "imdb", "official": false, "note": "tiny"}')
    return root


def allennlp(cwd, *arguments, **overrides):
    command = [Path(sys.executable).with_name("allennlp"), *arguments]
    if arguments[0] == "train":
        command += ["-o", json.dumps({**SMALL, **overrides})]
    run = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = run.stdout[-2000:] + run.stderr[-4000:]
    assert run.returncode == 0, f"exit status {run.returncode}: {said}"
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def trained(project):
    """`allennlp train configs/imdb.jsonnet`, verbatim but for the size: no -s, no plugin flag."""
    output = allennlp(project, "train", "configs/imdb.jsonnet")
    assert "NOT THE OFFICIAL IMDb DATA" in output and "NO WORD VECTORS" in output
    return project / "runs" / "imdb"


def history(directory):
    return json.loads((directory / "run.json").read_text(encoding="utf-8"))["history"]


def test_train_learns_and_tells_what_it_was_trained_on(trained):
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["best_validation_accuracy"] > 0.9
    run = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    assert run["data"] == {"name": "imdb", "official": False, "note": "tiny"}
    assert run["vectors"] == "none (random start)" and run["seed"] == 1
    assert [epoch["epoch"] for epoch in run["history"]] == [0, 1, 2]
    reviews = len((trained.parents[1] / "data" / "imdb" / "train.jsonl").read_text().splitlines())
    for epoch in run["history"]:  # the first step and validation are not in the rate's time
        assert epoch["training_reviews_per_second"] > reviews / epoch["seconds"] * 0.5


def test_evaluate_and_predict_from_another_directory(trained, tmp_path):
    model = trained / "model.tar.gz"
    test = trained.parents[1] / "data" / "imdb" / "test.jsonl"
    allennlp(tmp_path, "evaluate", model, test, "--output-file", "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy"] > 0.9
    raw = tmp_path / "raw.jsonl"
    raw.write_text('{"sentence": "A lovely film."}\n{"sentence": "A film,<br />dull"}\n')
    allennlp(tmp_path, "predict", model, raw, "--output-file", "predicted.jsonl")
    lines = (tmp_path / "predicted.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["pos", "neg"]


def test_a_start_that_fails_leaves_nothing_in_the_way_of_the_next(project, tmp_path):
    shutil.copytree(project / "configs", tmp_path / "configs")
    with pytest.raises(AssertionError, match=r"data/imdb/train\.jsonl"):
        allennlp(tmp_path, "train", "configs/imdb.jsonnet")
    assert not (tmp_path / "runs" / "imdb").exists()
    shutil.copytree(project / "data", tmp_path / "data")
    with pytest.raises(
        AssertionError, match=r"weights_file_path: \S+/runs/imdb_lm/best\.th does not"
    ):
        allennlp(tmp_path, "train", "configs/imdb_best.jsonnet")
    for option, match in (
        ({"trainer.optimizer.wieght_decay": 1}, "wieght_decay"),
        ({"trainer.patiance": 1}, "trainer: unknown options patiance"),
    ):
        with pytest.raises(AssertionError, match=match):
            allennlp(tmp_path, "train", "configs/imdb.jsonnet", **option)
        assert not (tmp_path / "runs" / "imdb").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(AssertionError, match="not empty"):
        allennlp(tmp_path, "train", "configs/imdb.jsonnet", "-s", "mine")
    assert (tmp_path / "mine" / "notes.txt").exists()


CRASH = """
import os
from allennlp.training import TrainerCallback

@TrainerCallback.register("crash")
class Crash(TrainerCallback):
    def on_batch(self, trainer, inputs, outputs, metrics, epoch, batch_number, *rest, **kwargs):
        if "CRASH" in os.environ and epoch == 1 and batch_number == 2:
            os._exit(9)
"""


def test_recover_continues_a_killed_run_to_the_same_end(trained, tmp_path, monkeypatch):
    (tmp_path / "crash.py").write_text(CRASH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = trained.parents[1] / "configs" / "imdb.jsonnet"
    command = ["train", config, "-s", "run", "--include-package", "crash"]
    callbacks = {"trainer.callbacks": ["run_file", "random_state", "crash"]}
    with monkeypatch.context() as context:
        context.setenv("CRASH", "1")
        with pytest.raises(AssertionError, match="exit status 9"):
            allennlp(tmp_path, *command, **callbacks)
    assert [epoch["epoch"] for epoch in history(tmp_path / "run")] == [0]
    assert not (tmp_path / "run" / "model.tar.gz").exists()
    allennlp(tmp_path, *command, "--recover", **callbacks)
    whole, recovered = history(trained), history(tmp_path / "run")
    assert [epoch["epoch"] for epoch in recovered] == [0, 1, 2]
    for a, b in zip(whole, recovered, strict=True):
        for name in ("training_loss", "validation_loss", "validation_accuracy"):
            assert a[name] == pytest.approx(b[name], rel=1e-6)


def test_two_processes_train_together_in_bfloat16(project, tmp_path):
    options = {
        "distributed": {"cuda_devices": [-1, -1]},
        "trainer.callbacks": ["run_file", "random_state", "bfloat16_autocast"],
    }
    config = project / "configs" / "imdb_k4.jsonnet"
    allennlp(tmp_path, "train", config, **options)
    directory = tmp_path / "runs" / "imdb_k4"
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["best_validation_accuracy"] > 0.9
    assert [epoch["epoch"] for epoch in history(directory)] == [0, 1, 2]
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["seq2vec_encoder"]["first_kernel_size"] == 4
