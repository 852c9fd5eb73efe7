"""Training that is killed, on a tiny corpus, through the real `allennlp train`."""

import json
import random
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import processes
import pytest
import torch
import with_allennlp
from allennlp.commands.train import train_model_from_file

import qrnn.allennlp  # noqa: F401  registers what the config names

ROOT = Path(__file__).parents[2]
SMALL = {
    "model.rnn.input_size": 8,
    "model.rnn.hidden_size": 8,
    "data_loader.batch_size": 4,
    "data_loader.bptt": 15,
    "trainer.num_epochs": 6,
    "trainer.optimizer.lr": 0.3,
}
MEASURED = ("training_loss", "training_perplexity", "validation_perplexity")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with configs/ and data/ptb/ as in the repository, of a few hundred random words."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "configs", root / "configs")
    data = root / "data/ptb"
    data.mkdir(parents=True)
    rng = random.Random(0)
    for part, lines in {"train": 100, "valid": 20, "test": 20}.items():
        words = ("".join(f"w{rng.randrange(20)} " for _ in range(9)) for _ in range(lines))
        (data / f"{part}.txt").write_text("\n".join(words) + "\n")
    (data / "meta.json").write_text('{"name": "ptb", "official": false, "note": "tiny"}')
    return root


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(with_allennlp, "call", call_process)
    return project


def train(directory, **overrides):
    with_allennlp.train(Path("configs/ptb.jsonnet"), directory, 1, SMALL | overrides)


def call_here(_, config, *options):
    """What `allennlp train` calls; stands for with_allennlp.call."""
    directory = options[options.index("-s") + 1]
    overrides = options[options.index("-o") + 1]
    train_model_from_file(config, directory, overrides, recover="--recover" in options)


def call_process(*arguments):
    code = processes.ended(call_here, *arguments)
    if code:
        raise subprocess.CalledProcessError(code, "allennlp")


def train_here(directory):
    with_allennlp.call = call_here
    train(directory)


def killed(directory, file, delay):
    """Trains in a process that is killed with -9, `delay` seconds after `file` appears; False if it
    had ended before."""
    process, _ = processes.start(train_here, directory)
    while not file.exists():
        if not process.is_alive():
            return False
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(project):
    """A run that nothing disturbs, through the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("OMP_NUM_THREADS", "1")
        train(Path("whole"))
    return project / "whole"


@pytest.fixture
def copy(whole, here):
    """A copy of it, to be damaged."""
    shutil.rmtree("copy", ignore_errors=True)
    shutil.copytree(whole, "copy")
    return Path("copy")


def results(directory):
    history = json.loads((directory / "run.json").read_text())["history"]
    metrics = json.loads((directory / "metrics.json").read_text())
    best = {k: v for k, v in metrics.items() if k.startswith("best_")}
    return [[epoch["epoch"], *(epoch[name] for name in MEASURED)] for epoch in history], best


def weights(directory):
    with tarfile.open(directory / "model.tar.gz") as tar:
        return torch.load(tar.extractfile("weights.th"), weights_only=True)


def check_same(directory, whole):
    (history, best), (history_whole, best_whole) = results(directory), results(whole)
    assert history == history_whole and best == best_whole
    expected = weights(whole)
    for name, weight in weights(directory).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def cut(file, keep=0.6):
    with open(file, "r+b") as opened:
        opened.truncate(int(keep * file.stat().st_size))


def unfinish(directory, epochs):
    """The files as they were after so many epochs; the checkpoints are kept."""
    for name in ("metrics.json", "model.tar.gz"):
        (directory / name).unlink()
    for file in directory.glob("*_state_e*.th"):
        if int(file.stem.split("_e")[1].split("_")[0]) > epochs:
            file.unlink()


def test_killed_three_times_it_ends_as_if_undisturbed(whole, here):
    directory = Path("killed")
    seed = time.time_ns()
    rng = random.Random(seed)
    history = json.loads((whole / "run.json").read_text())["history"]
    epoch = min(told["seconds"] for told in history)
    for name in ("config.json", "model_state_e1_b0.th", "training_state_e4_b0.th"):
        file, delay = directory / name, epoch * rng.random()
        assert killed(directory, file, delay), f"seed {seed}"
    train(directory)
    check_same(directory, whole)


def test_a_cut_checkpoint_is_removed_and_the_one_before_is_taken(copy, whole, caplog):
    unfinish(copy, 6)
    cut(copy / "training_state_e6_b0.th")
    train(copy)
    assert "after 6 epochs is not whole" in caplog.text
    check_same(copy, whole)


def test_without_a_whole_checkpoint_training_starts_anew(copy, whole, capsys):
    unfinish(copy, 6)
    (copy / "training_state_e6_b0.th").unlink()
    cut(copy / "model_state_e5_b0.th", 0.99)
    (copy / "config.json").write_text("{")
    train(copy)
    assert "starts anew" in capsys.readouterr().out
    check_same(copy, whole)


def test_what_the_last_moments_leave_is_finished_without_training(copy, whole, monkeypatch):
    """Killed while config.json, best.th and the archive were written."""
    cut(copy / "model.tar.gz")
    (copy / "config.json").write_text('{"train')
    best = json.loads((copy / "metrics.json").read_text())["best_epoch"]
    (copy / "best.th").unlink()
    if best != 5:
        shutil.copyfile(whole / "best.th", copy / "best.th")
    assert not with_allennlp.finished(copy)
    train(copy)
    assert with_allennlp.finished(copy)
    check_same(copy, whole)
    monkeypatch.setattr(with_allennlp, "call", None)
    train(copy)  # is finished: calls nothing


@pytest.mark.parametrize("damage", ["cut", "empty", "no meta.json", "interrupted"])
def test_an_archive_that_is_not_whole_is_known(copy, damage):
    assert with_allennlp.finished(copy)
    archive = copy / "model.tar.gz"
    if damage == "cut":
        cut(archive, 0.999)
    elif damage == "empty":
        archive.write_bytes(b"")
    elif damage == "no meta.json":  # AllenNLP, stopped between two files, closes it properly
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(copy / "config.json", "config.json")
            tar.add(copy / "best.th", "weights.th")
    else:  # Ctrl-C: an archive of the best epoch so far
        (copy / "metrics.json").unlink()
    assert not with_allennlp.finished(copy)


def test_while_it_trains_nothing_says_that_it_is_finished(copy, monkeypatch):
    """Ctrl-C left an archive, which would be taken for the result once metrics.json is written."""
    unfinish(copy, 5)
    (copy / "model.tar.gz").touch()

    def call(*arguments):
        assert "--recover" in arguments
        assert not (copy / "model.tar.gz").exists() and not (copy / "metrics.json").exists()

    monkeypatch.setattr(with_allennlp, "call", call)
    train(copy)


def test_patience_that_is_over_stays_over(copy, monkeypatch):
    """--recover would train for another epoch."""
    unfinish(copy, 6)
    file = copy / "training_state_e6_b0.th"
    state = torch.load(file, weights_only=False)
    state["metric_tracker"] |= {"epochs_with_no_improvement": 3, "is_best_so_far": False}
    torch.save(state, file)
    config = json.loads((copy / "config.json").read_text())
    config["trainer"]["patience"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(with_allennlp, "call", None)
    train(copy)
    assert with_allennlp.finished(copy)
    tracker = state["metric_tracker"]
    metrics = json.loads((copy / "metrics.json").read_text())
    assert metrics["best_epoch"] == tracker["best_epoch"]
    assert metrics["best_validation_perplexity"] == tracker["best_epoch_metrics"]["perplexity"]


def test_the_start_up_hook_is_not_needed(monkeypatch):
    monkeypatch.setenv("QRNN_STARTUP", "0")
    with_allennlp.call("evaluate", "--help")
