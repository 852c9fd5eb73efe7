"""configs/ptb.jsonnet on a tiny corpus, through what the commands of allennlp call."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import ptb_cache
import pytest
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model_from_file
from allennlp.training import TrainerCallback

import qrnn.allennlp  # noqa: F401  registers what the archive names

ROOT = Path(__file__).parents[2]
ALLENNLP = Path(sys.executable).with_name("allennlp")
SMALL = {
    "model.rnn.input_size": 16,
    "model.rnn.hidden_size": 16,
    "model.rnn.dropout": 0.2,
    "model.dropout": 0.2,
    "data_loader.batch_size": 4,
    "data_loader.bptt": 15,
    "trainer.num_epochs": 3,
    "trainer.optimizer.lr": 0.3,
}
NEXT = {f"w{i}": [f"w{7 * i % 20}", f"w{(7 * i + 1) % 20}"] for i in range(20)}


def text(seed, lines):
    """A Markov chain in which each of 20 words has two equally probable successors."""
    rng = random.Random(seed)
    word, text = "w0", ""
    for _ in range(lines):
        words = [word := rng.choice(NEXT[word]) for _ in range(rng.randrange(5, 15))]
        text += " ".join(words) + "\n"
    return text


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with configs/ and data/ptb/ as in the repository, but with 3,000 words."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "configs", root / "configs")
    data = root / "data" / "ptb"
    data.mkdir(parents=True)
    for seed, (part, lines) in enumerate({"train": 300, "valid": 40, "test": 40}.items()):
        (data / f"{part}.txt").write_text(text(seed, lines), encoding="utf-8")
    (data / "meta.json").write_text('{"name": "ptb", "official": false, "note": "tiny"}')
    return root


@pytest.fixture(scope="module")
def trained(project):
    """`allennlp train configs/ptb.jsonnet`, verbatim but for the size: no -s, no plugin flag."""
    done = subprocess.run(
        [ALLENNLP, "train", "configs/ptb.jsonnet", "-o", json.dumps(SMALL)],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"exit status {done.returncode}: {output[-4000:]}"
    assert "NOT THE OFFICIAL DATA" in output
    return project / "runs" / "ptb"


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def test_train_learns_and_tells_what_it_was_trained_on(trained):
    run = read(trained / "run.json")
    assert run["data"] == {"name": "ptb", "official": False, "note": "tiny"}
    words, H = 21, 16
    layers = 2 * (3 * H * 2 * H + 3 * H)
    assert run["parameters"] == words * H + layers + words * H + words
    history = run["history"]
    assert [epoch["epoch"] for epoch in history] == [0, 1, 2]
    valid = [epoch["validation_perplexity"] for epoch in history]
    assert read(trained / "metrics.json")["best_validation_perplexity"] == min(valid) < 5 < words
    steps = len(text(0, 300).split()) + 300
    for epoch in history:
        assert 1 < epoch["training_perplexity"] < 2 * words
        # the loss is per batch: of at most 15 steps, summed, and of 4 rows, averaged
        pieces = math.ceil(steps // 4 / 15)
        nats = epoch["training_loss"] * pieces / (steps // 4)
        assert epoch["training_perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
        assert epoch["training_tokens_per_second"] > steps / epoch["seconds"]


def test_evaluation_is_of_the_best_epoch_and_of_every_word(trained, tmp_path):
    data = trained.parents[1] / "data" / "ptb"
    pieces = json.dumps({"validation_data_loader.bptt": 7})
    perplexity = {
        part: evaluate_from_archive(
            trained / "model.tar.gz", str(data / f"{part}.txt"), cmd_overrides=pieces
        )["perplexity"]
        for part in ("valid", "test")
    }
    best = read(trained / "metrics.json")["best_validation_perplexity"]
    assert perplexity["valid"] == pytest.approx(best, rel=1e-5)
    assert perplexity["test"] < 5 and perplexity["test"] != perplexity["valid"]


def test_a_cache_is_chosen_on_validation(project, trained, tmp_path, monkeypatch):
    """The text is a chain of random steps: a cache has nothing to gain, and little to lose."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(ptb_cache, "WINDOWS", (20,))
    found = json.loads(
        ptb_cache.measure(trained / "model.tar.gz", "cache", "", tmp_path).read_text()
    )
    metrics = found["metrics"]
    best = read(trained / "metrics.json")["best_validation_perplexity"]
    assert metrics["valid_perplexity_without"] == pytest.approx(best, rel=1e-4)
    assert 1 < metrics["valid_perplexity"] < best * 1.05
    assert 1 < metrics["test_perplexity"] < 5 and metrics["window"] == 20


class Killed(Exception):
    pass


@TrainerCallback.register("kill", exist_ok=True)
class Kill(TrainerCallback):
    """Ends the run, once, in the middle of the second epoch."""

    armed = False

    def on_batch(self, trainer, inputs, outputs, metrics, epoch, batch_number, *rest, **kwargs):
        if Kill.armed and epoch == 1 and batch_number == 2:
            Kill.armed = False
            raise Killed


AWD = {
    **{k: v for k, v in SMALL.items() if not k.startswith("model.rnn") and k != "model.dropout"},
    "model.num_layers": 2,
    "model.embedding_size": 16,
    "model.hidden_size": 16,
    **{f"model.{name}_dropout": 0.1 for name in ("input", "hidden", "output")},
    "trainer.grad_norm": 5,
    "trainer.optimizer.lr": 20,
}


def train(project, config, directory, overrides, recover=False):
    path = project / "configs" / f"{config}.jsonnet"
    train_model_from_file(path, directory, json.dumps(overrides), recover=recover)
    return read(directory / "run.json")["history"]


@pytest.mark.parametrize(
    ("config", "overrides", "callbacks"),
    [
        ("ptb", SMALL, []),
        (
            "ptb_awd",
            AWD,
            [{"type": "nt_asgd", "triggered": True}, {"type": "rate_by_length", "bptt": 70}],
        ),
    ],
)
def test_recover_continues_a_killed_run_to_the_same_end(
    project, tmp_path, config, overrides, callbacks
):
    callbacks = ["run_file", "random_state", *callbacks, "kill"]
    overrides = {**overrides, "trainer.callbacks": callbacks}
    whole = train(project, config, tmp_path / "whole", overrides)
    Kill.armed = True
    with pytest.raises(Killed):
        train(project, config, tmp_path / "killed", overrides)
    assert [epoch["epoch"] for epoch in read(tmp_path / "killed/run.json")["history"]] == [0]
    recovered = train(project, config, tmp_path / "killed", overrides, recover=True)
    assert [epoch["epoch"] for epoch in recovered] == [0, 1, 2]
    for a, b in zip(whole, recovered, strict=True):
        for name in ("training_loss", "training_perplexity", "validation_perplexity"):
            assert a[name] == pytest.approx(b[name], rel=1e-6)


def test_fine_tuning_goes_on_from_the_result(project):
    """ptb_awd.jsonnet and then ptb_awd_finetune.jsonnet, which averages from the first step."""
    runs = project / "runs"
    base = train(project, "ptb_awd", runs / "ptb_awd", AWD)
    best = min(epoch["validation_perplexity"] for epoch in base)
    options = AWD | {"trainer.optimizer.lr": 1e-9, "trainer.num_epochs": 1}
    [epoch] = train(project, "ptb_awd_finetune", runs / "tuned", options)
    assert epoch["validation_perplexity"] == pytest.approx(best, rel=1e-4)
    shutil.rmtree(runs / "ptb_awd")  # the new archive does not need it
    perplexity = evaluate_from_archive(
        runs / "tuned" / "model.tar.gz", str(project / "data" / "ptb" / "valid.txt")
    )["perplexity"]
    assert perplexity == pytest.approx(best, rel=1e-4) and best < 12  # of 21 words


def test_the_replications_model_learns(project, tmp_path, monkeypatch):
    overrides = {
        "model.rnn.input_size": 8,
        "model.rnn.hidden_size": 16,
        "trainer.optimizer.lr": 3e-2,
        "trainer.num_epochs": 3,
    }
    history = train(project, "ptb_replication", tmp_path / "run", overrides)
    valid = [epoch["validation_perplexity"] for epoch in history]
    assert valid[-1] < 10 and valid == sorted(valid, reverse=True)
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit, match="run: expected a language model over a token_stream"):
        ptb_cache.measure(tmp_path / "run/model.tar.gz", "cache", "", tmp_path)
