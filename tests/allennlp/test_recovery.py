"""`allennlp train --recover` after kill -9 between two files, against a run without."""

import json
import os
import random
import signal
import sys

import processes
import pytest
import torch
from allennlp import commands
from allennlp.training import checkpointer

import qrnn.allennlp  # noqa: F401  registers what the config names
from qrnn.allennlp import compat
from qrnn.allennlp.recovery import Checkpoint, newest_checkpoint, restore_best

CONFIG = {
    "dataset_reader": {"type": "text_classification_json", "tokenizer": "whitespace"},
    "train_data_path": "train.jsonl",
    "validation_data_path": "train.jsonl",
    "model": {
        "type": "basic_classifier",
        "text_field_embedder": {
            "token_embedders": {"tokens": {"type": "embedding", "embedding_dim": 4}}
        },
        "seq2vec_encoder": {"type": "qrnn", "input_size": 4, "hidden_size": 4},
        "dropout": 0.2,
    },
    "data_loader": {"batch_size": 8, "shuffle": True},
    "trainer": {
        "num_epochs": 2,
        "optimizer": {"type": "adam", "lr": 0.01},
        "callbacks": ["random_state"],
        "cuda_device": -1,
    },
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with 32 texts of random words, whose label is one of the words."""
    rng = random.Random(0)
    words = [[f"w{rng.randrange(9)}" for _ in range(6)] for _ in range(32)]
    lines = (json.dumps({"text": " ".join(w), "label": str("w0" in w)}) for w in words)
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(directory, *options, killed=None, **trainer):
    """Runs the command in a process, which kills itself "before" or "after" it saves the trainer's
    state of the second epoch; returns its exit code."""
    config = CONFIG | {"trainer": CONFIG["trainer"] | trainer}
    (directory.parent / "config.json").write_text(json.dumps(config))
    return processes.ended(train_here, directory, options, killed)


def train_here(directory, options, killed):
    save = torch.save

    def save_and_die(content, file):
        last = "training_state_e2" in str(file)
        if not last or killed == "after":
            save(content, file)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    if killed:
        checkpointer.torch.save = save_and_die
    compat.extend()
    sys.argv = ["allennlp", "train", "config.json", "-s", str(directory), *options]
    commands.main()


def results(directory):
    metrics = json.loads((directory / "metrics.json").read_text())
    return {
        k: v for k, v in metrics.items() if k.startswith(("best_", "training_loss", "validation_"))
    }


@pytest.mark.parametrize("killed", ["before", "after"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"moving_average": {"type": "exponential_average", "decay": 0.5}},
        {"learning_rate_scheduler": {"type": "linear_with_warmup", "warmup_steps": 2}},
    ],
)
def test_killed_between_two_files_it_ends_as_if_undisturbed(here, killed, options):
    whole, directory = here / "whole", here / "killed"
    assert train(whole, **options) == 0
    assert train(directory, killed=killed, **options) == -signal.SIGKILL
    assert (directory / "model_state_e2_b0.th").exists()
    assert (directory / "training_state_e2_b0.th").exists() == (killed == "after")
    assert train(directory, "--recover", **options) == 0
    expected = results(whole)
    assert expected["best_epoch"] == 1  # so that best.th has to be of the epoch that was killed
    if killed == "after":  # nothing is left to train
        expected = {k: v for k, v in expected.items() if k.startswith("best_")}
    assert results(directory) == expected
    weights = torch.load(whole / "best.th")
    for name, weight in torch.load(directory / "best.th").items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "loader",
    [
        {"batch_size": 8, "batches_per_epoch": 3},
        {"type": "simple", "batch_size": 8, "shuffle": True},
    ],
)
def test_a_loader_goes_on_from_its_place_or_order(here, monkeypatch, loader):
    monkeypatch.setitem(CONFIG, "data_loader", loader)
    monkeypatch.setitem(CONFIG, "validation_data_loader", {"batch_size": 8})
    assert train(here / "whole") == 0
    assert train(here / "killed", killed="before") == -signal.SIGKILL
    assert train(here / "killed", "--recover") == 0
    assert results(here / "killed") == results(here / "whole")


STATE = {
    "metric_tracker": {"best_epoch": 1},
    "epochs_completed": 2,
    "batches_in_epoch_completed": 0,
    "best_model_filename": "best.th",
}


@pytest.fixture
def checkpoint(tmp_path):
    model, training = tmp_path / "model_state_e2_b0.th", tmp_path / "training_state_e2_b0.th"
    torch.save({"w": torch.ones(2), "buffer": torch.ones(1)}, model)
    torch.save(STATE, training)
    torch.save({"w": torch.zeros(2)}, tmp_path / "best.th")
    return Checkpoint(model, training, STATE)


def best(directory):
    return {name: weight.tolist() for name, weight in torch.load(directory / "best.th").items()}


def test_best_weights_follow_the_checkpoint(tmp_path, checkpoint):
    assert restore_best(tmp_path, checkpoint)
    assert best(tmp_path) == {"w": [1, 1], "buffer": [1]}


@pytest.mark.parametrize(
    ("average", "expected"),
    [({"updates": 3}, 0.5), ({"steps": 3}, 0.5), ({"steps": 0}, 1)],  # the last has not begun
)
def test_best_weights_are_the_average_under_every_name(tmp_path, checkpoint, average, expected):
    w = torch.ones(2)
    torch.save({"w": w, "tied": w, "buffer": torch.ones(1)}, checkpoint.model)
    average = {**average, "shadows": {"w": torch.full((2,), 0.5)}}
    assert restore_best(tmp_path, checkpoint._replace(state=STATE | {"moving_average": average}))
    assert best(tmp_path) == {"w": [expected] * 2, "tied": [expected] * 2, "buffer": [1]}


@pytest.mark.parametrize(
    "state",
    [
        {"epochs_completed": 3},
        {"metric_tracker": {"best_epoch": 0}},
        {"batches_in_epoch_completed": 5},
    ],
)
def test_weights_of_an_earlier_epoch_have_to_be_there(tmp_path, checkpoint, state):
    checkpoint = checkpoint._replace(state=STATE | state)
    assert restore_best(tmp_path, checkpoint)
    assert best(tmp_path) == {"w": [0, 0]}
    (tmp_path / "best.th").write_bytes((tmp_path / "best.th").read_bytes()[:-20])
    assert not restore_best(tmp_path, checkpoint)


def test_inside_the_first_epoch_there_is_no_best(tmp_path, checkpoint):
    (tmp_path / "best.th").unlink()
    first = {"batches_in_epoch_completed": 5, "best_model_filename": None}
    assert restore_best(tmp_path, checkpoint._replace(state=STATE | first))
    assert not (tmp_path / "best.th").exists()


def test_the_first_best_weights_are_those_that_the_trainer_loads(tmp_path, checkpoint):
    """AllenNLP saves its state before it has written any best.th."""
    assert restore_best(tmp_path, checkpoint._replace(state=STATE | {"best_model_filename": None}))
    state = newest_checkpoint(tmp_path).state
    assert state == STATE | {"best_model_filename": str(tmp_path / "best.th")}


@pytest.mark.parametrize("best_epoch", [0, 1])
def test_best_weights_are_found_where_the_folder_has_been_moved_to(
    tmp_path, checkpoint, best_epoch
):
    moved = {
        "metric_tracker": {"best_epoch": best_epoch},
        "best_model_filename": "runs/before/best.th",
    }
    assert restore_best(tmp_path, checkpoint._replace(state=STATE | moved))
    assert newest_checkpoint(tmp_path).state["best_model_filename"] == str(tmp_path / "best.th")


def test_a_best_that_is_lost_is_an_error(here, capfd):
    directory = here / "run"
    assert train(directory) == 0
    state = torch.load(directory / "training_state_e2_b0.th")
    state["metric_tracker"]["best_epoch"] = 0
    torch.save(state, directory / "training_state_e2_b0.th")
    (directory / "best.th").unlink()
    assert train(directory, "--recover") == 1
    assert "best.th is missing or damaged" in capfd.readouterr().err
