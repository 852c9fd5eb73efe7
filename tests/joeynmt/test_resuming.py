"""Training that is killed with -9, on a tiny corpus, and its twin that is not."""

import logging
import os
import random
import signal
import time
import traceback
from pathlib import Path

import iwslt
import pytest
import sample_translation
import torch
import torch._dynamo  # optimisers import it: once, not in every fork
import yaml
from joeynmt import config, training
from joeynmt.config import ConfigurationError
from joeynmt.helpers import make_model_dir

from qrnn.joeynmt.resuming import ResumableTraining

ROOT = Path(__file__).parents[2]
SHORT = {
    "epochs": 3,
    "batch_size": 16,
    "validation_freq": 7,
    "logging_freq": 1,
    "print_valid_sents": [],
}
NOISY = {"dropout": 0.2, "hidden_size": 16, "embeddings": {"embedding_dim": 8, "dropout": 0.1}}
VARIANTS = {
    # a rate that changes with epochs; ends within an epoch, at a step that is validated
    "qrnn": {"decrease_factor": 0.8, "updates": 21},
    # accumulated batches; a rate that changes with validations; checkpoints that are deleted
    "lstm": {
        **{"batch_type": "token", "batch_size": 500, "bucket": None, "batch_multiplier": 2},
        **{"validation_freq": 4, "updates": 1000},
        **{"scheduling": "plateau", "decrease_factor": 0.5, "patience": 0, "keep_best_ckpts": 1},
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    archive = sample_translation.archive({"train": 150, "dev": 4, "test": 2})
    (root / "de-en.tgz").write_bytes(archive)
    iwslt.prepare(str(root), root / "data/sample/iwslt", root / "download")
    return root


@pytest.fixture
def here(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has none of its parent's

    yield tmp_path
    torch.set_num_threads(threads)


def settings(folder, variant, **options):
    name = "iwslt_quick_lstm" if variant == "lstm" else "iwslt_quick"
    config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8"))
    given = {**SHORT, **VARIANTS[variant], "state_file": str(folder / "state.ckpt")}
    given |= {"print_valid_sents": [], **options}
    config["training"] |= given
    config["testing"]["max_output_length"] = 5
    for part in ("encoder", "decoder"):
        config["model"][part] |= NOISY
        if variant != "lstm":
            config["model"][part]["zoneout"] = 0.1
    config["model_dir"] = str(folder / f"attempt-{len(list(folder.glob('attempt-*')))}")
    return config


def train(config):
    """As `python -m joeynmt train`, which imports and logs more."""
    make_model_dir(Path(config["model_dir"]))
    logging.disable()
    training.train(rank=0, world_size=None, cfg=config, skip_test=True)


def forked(function):
    """The status of a copy of this process that calls it: what is slow to import is there."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def ended(function):
    return os.waitstatus_to_exitcode(os.waitpid(forked(function), 0)[1])


def kill_at(name, count, after):
    """Makes this process end at the count-th call of a method, before it or after it."""
    original = getattr(ResumableTraining, name)
    calls = []

    def replaced(self, *args, **kwargs):
        calls.append(name)
        if len(calls) == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, *args, **kwargs)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(ResumableTraining, name, replaced)


def read(folder):
    return torch.load(folder / "state.ckpt", map_location="cpu")


def check_same(found, expected):
    """Bit for bit, in all that they hold."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            check_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_anywhere_it_ends_as_if_undisturbed(here, variant):
    whole, killed = here / "whole", here / "killed"
    whole.mkdir()
    killed.mkdir()
    assert ended(lambda: train(settings(whole, variant))) == 0
    expected = read(whole)
    assert len(expected["validations"].splitlines()) >= 3 and expected["best_state"]

    seed = time.time_ns()
    rng = random.Random(seed)
    points = [
        ("_train_step", rng.randrange(1, 5), True),  # before the first validation
        ("_save_checkpoint", 1, True),  # joeynmt's is there, ours is not
        ("_train_step", rng.randrange(5, 8), True),
        ("_keep", 1, True),
    ]
    for point in points:
        config = settings(killed, variant)

        def work(point=point, config=config):
            kill_at(*point)
            train(config)

        assert ended(work) == -signal.SIGKILL, f"{point}, seed {seed}"
    assert ended(lambda: train(settings(killed, variant))) == 0
    check_same(read(killed), expected)
    # what is over stays over
    assert ended(lambda: train(settings(killed, variant))) == 0
    check_same(read(killed), expected)


def test_ctrl_c_is_not_the_end_of_training(here):
    config = settings(here, "qrnn")

    def work():
        def interrupted(self, batch):
            os.kill(os.getpid(), signal.SIGINT)

        ResumableTraining._train_step = interrupted
        train(config)

    assert ended(work) == -signal.SIGINT
    assert not (here / "state.ckpt").exists()


def test_a_state_that_cannot_be_written_leaves_the_one_before(here):
    config = settings(here, "qrnn", validation_freq=10, logging_freq=10)

    def work():
        keep = ResumableTraining._keep

        def failing(self):
            if self.stats.steps > 10:
                import resource

                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
            keep(self)

        ResumableTraining._keep = failing
        train(config)

    assert ended(work) == 1
    assert read(here)["stats_state"]["steps"] == 10
    assert not (here / "state.ckpt.part").exists()


def test_without_the_option_training_is_joeynmts(here):
    options = settings(here, "qrnn")["training"]
    del options["state_file"]
    parsed = config.parse_train_args(options, "train")
    assert type(parsed).__name__ == "TrainConfig"


@pytest.mark.parametrize("wrong", [7, "", ["a"]])
def test_a_wrong_path_is_named(here, wrong):
    with pytest.raises(ConfigurationError, match="state_file: expected the path"):
        train(settings(here, "qrnn", state_file=wrong))


def test_a_place_that_joeynmt_empties_is_refused(here):
    config = settings(here, "qrnn", state_file=str(here / "attempt-0/state.ckpt"))
    with pytest.raises(ConfigurationError, match="outside of model_dir"):
        train(config)


def test_several_processes_are_refused(here):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{here}/rendezvous", rank=0, world_size=1
    )
    try:
        with pytest.raises(ConfigurationError, match="in one process"):
            train(settings(here, "qrnn"))
    finally:
        torch.distributed.destroy_process_group()
