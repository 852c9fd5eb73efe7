"""Training that is killed with -9, on a tiny corpus, and its twin that is not."""

import logging
import os
import random
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import iwslt
import pytest
import sample_translation
import torch
import yaml
from joeynmt import config, training
from joeynmt.config import ConfigurationError
from joeynmt.helpers import make_model_dir
from processes import ended

from qrnn.checkpoints import random_state, set_random_state
from qrnn.joeynmt.resuming import Batches, ResumableTraining

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
    yield tmp_path
    logging.disable(logging.NOTSET)


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


def train(config, skip_test=True):
    """As `python -m joeynmt train`, which imports and logs more."""
    make_model_dir(Path(config["model_dir"]))
    logging.disable()
    training.train(rank=0, world_size=None, cfg=config, skip_test=skip_test)


def train_until(name, count, after, config):
    """Training that ends at the count-th call of a method, before it or after it."""
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
    train(config)


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
    assert ended(train, settings(whole, variant)) == 0
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
        code = ended(train_until, *point, settings(killed, variant))
        assert code == -signal.SIGKILL, f"{point}, seed {seed}"
    assert ended(train, settings(killed, variant)) == 0
    check_same(read(killed), expected)
    # what is over stays over, and has the weights that were best for its test
    config = settings(killed, variant)
    assert ended(train, config, False) == 0
    check_same(read(killed), expected)
    best = Path(config["model_dir"]) / "best.ckpt"
    assert best.resolve().name == f"{expected['stats_state']['best_ckpt_iter']}.ckpt"
    check_same(dict(torch.load(best)["model_state"]), expected["best_state"])
    assert len((best.parent / "best.hyps.test").read_text().splitlines()) == 2


def test_more_updates_go_on_from_where_fewer_ended(here):
    (here / "more").mkdir()
    (here / "whole").mkdir()
    for folder, updates in (("more", 10), ("more", 21), ("whole", 21)):
        config = settings(here / folder, "qrnn", updates=updates)
        assert ended(train, config) == 0
        assert read(here / folder)["stats_state"]["steps"] == updates
    check_same(read(here / "more")["model_state"], read(here / "whole")["model_state"])


def test_batches_that_are_made_at_random_are_made_again():
    class Loader:
        batch_sampler = None

        def __iter__(self):
            return (random.random() for _ in range(6))

    class Training:
        restored, file = None, Path("state.ckpt")
        stats = SimpleNamespace(is_min_lr=False, is_max_update=False)
        wrong = ResumableTraining.wrong

        def restore(self):
            set_random_state(self.restored["random"])
            self.restored = None

    training = Training()
    batches = Batches(Loader(), training)
    found = iter(batches)
    first = [next(found) for _ in range(2)]
    kept = {"random_of_epoch": batches.random, "batches": batches.seen, "random": random_state()}
    rest = list(found)
    random.seed(5)
    training.restored = kept
    assert list(batches) == rest and first != rest[:2]
    check_same(batches.random, kept["random_of_epoch"])
    training.restored = kept | {"batches": 7}
    with pytest.raises(ConfigurationError, match=r"epoch of 6 batches.* got state\.ckpt"):
        list(batches)


def train_interrupted(config):
    def interrupted(self, batch):
        os.kill(os.getpid(), signal.SIGINT)

    ResumableTraining._train_step = interrupted
    train(config)


def test_ctrl_c_is_not_the_end_of_training(here):
    assert ended(train_interrupted, settings(here, "qrnn")) == -signal.SIGINT
    assert not (here / "state.ckpt").exists()


def train_on_a_full_disk(config):
    """After the first state, of step 10."""
    keep = ResumableTraining._keep

    def failing(self):
        if self.stats.steps > 10:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        keep(self)

    ResumableTraining._keep = failing
    train(config)


def test_a_state_that_cannot_be_written_leaves_the_one_before(here):
    config = settings(here, "qrnn", validation_freq=10, logging_freq=10)
    assert ended(train_on_a_full_disk, config) == 1
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


@pytest.mark.parametrize(
    "place", ["attempt-0/state.ckpt", "x/../attempt-0/state.ckpt", "attempt-0"]
)
def test_a_place_that_joeynmt_empties_is_refused(here, place):
    (here / "x").mkdir()
    config = settings(here, "qrnn", state_file=str(here / place))
    with pytest.raises(ConfigurationError, match="outside of model_dir"):
        train(config)


def write_text(file):
    file.write_text("no checkpoint")


def write_checkpoint(file):
    torch.save({"model_state": {}, "optimizer_state": {}, "stats_state": {}}, file)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (write_text, "a file that torch.load can read"),
        (Path.mkdir, "a file that torch.load can read"),
        (write_checkpoint, "a file that this option made"),
    ],
)
def test_what_is_no_state_is_refused_and_stays(here, make, expected):
    file = here / "state.ckpt"
    make(file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(ConfigurationError, match=f"state_file: expected {expected}.*state.ckpt"):
        train(settings(here, "qrnn"))
    assert before == (file.read_bytes() if file.is_file() else None)


def test_a_state_of_more_epochs_is_refused(here):
    assert ended(train, settings(here, "qrnn", updates=1000)) == 0
    with pytest.raises(ConfigurationError, match="state_file: expected one of at most 2 epochs"):
        train(settings(here, "qrnn", epochs=2))


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("training", {"learning_rate": 0.1}, r"same learning_rate \(0.1; it has 0.003\)"),
        ("training", {"optimizer": "sgd"}, r"same optimizer \(sgd; it has adam\)"),
        ("training", {"bucket": None}, "same bucket"),
        ("encoder", {"reverse_source": False}, "same model,"),
        ("encoder", {"hidden_size": 8}, "same model,"),
        ("encoder", {"embeddings": {"embedding_dim": 8, "dropout": 0.2}}, "same model,"),
        ("decoder", {"freeze": True}, "same model,"),
        ("src", {"lowercase": True}, "same data,"),
        ("src", {"voc_file": "swapped.txt"}, "same model,"),
        (None, {"random_seed": 7}, r"same random_seed \(7; it has 1\)"),
    ],
)
def test_a_state_of_another_training_is_refused(here, part, change, expected):
    assert ended(train, settings(here, "qrnn", updates=7)) == 0
    before = (here / "state.ckpt").read_bytes()
    config = settings(here, "qrnn")
    *symbols, one, other = (
        Path(config["data"]["src"]["voc_file"]).read_text("utf-8").split("\n")[:-1]
    )
    Path("swapped.txt").write_text("\n".join([*symbols, other, one, ""]), "utf-8")
    parts = {None: config, "training": config["training"], **config["model"], **config["data"]}
    parts[part].update(change)
    with pytest.raises(ConfigurationError, match=f"state_file: expected one with the {expected}"):
        train(config)
    assert (here / "state.ckpt").read_bytes() == before
    assert not list(Path(config["model_dir"]).glob("*.ckpt"))


def test_a_file_that_cannot_be_made_is_named_at_the_start(here):
    (here / "file").touch()
    config = settings(here, "qrnn", state_file=str(here / "file/state.ckpt"))
    with pytest.raises(ConfigurationError, match=r"state_file: expected .* that can be written"):
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
