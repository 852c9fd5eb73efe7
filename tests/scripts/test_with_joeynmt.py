import json
import subprocess
from pathlib import Path

import experiment
import pytest
import records
import torch
import with_joeynmt
import yaml

CONFIG = {
    "data": {"train": "data/iwslt/train", "dev": "data/iwslt/dev", "test": "data/iwslt/test"}
    | {"src": {"lang": "de"}, "trg": {"lang": "en"}},
    "testing": {"beam_size": 8},
    "training": {"epochs": 3},
}
REFERENCES = ["the cat sat on the mat today", "a dog ran home"]
LOG = (
    "2026-11-22 01:00:00,000 - INFO - root - Hello! This is Joey-NMT (version 2.3.0).\n"
    "2026-11-22 01:00:{:02},500 - INFO - joeynmt.training - Epoch   1, Step:      {}, "
    "Batch Loss:    87.5, Batch Acc: 0.2, Tokens per Sec:     {}, Lr: 0.001000\n"
)


class Commands:
    """Stands for `joeynmt`: notes what is called, and leaves the files that it would leave.

    Each training finds a better model at a step of its own, 100, 200, ...
    """

    def __init__(self) -> None:
        self.called: list[str] = []
        self.dies_at: set[str] = set()

    def __call__(self, mode: str, config: Path, *options: object) -> None:
        self.called.append(mode)
        settings = yaml.safe_load(Path(config).read_text())
        folder = Path(settings["model_dir"])
        if mode == "train":
            n = len(self.called)
            folder.mkdir(parents=True)
            (folder / "train.log").write_text(LOG.format(9 + n, 100 * n, 1000 * n))
            file = Path(settings["training"]["state_file"])
            before = torch.load(file)["validations"] if file.exists() else ""
            line = f"Steps: {100 * n}\tbleu: {n}.50000\tppl: 9.00000\tLR: 0.00100000\t*\n"
            stats = {"steps": 100 * n + 7, "total_tokens": 7 * n, "best_ckpt_iter": 100 * n}
            state = {"model_state": {"w": torch.zeros(3, 5)}, "stats_state": stats}
            state |= {"validations": before + line, "best_state": {"w": torch.ones(3, 5)}}
            torch.save(state, file)
            (folder / "100.ckpt").write_bytes(b"half of a check")
            self.die("train")
        else:
            [weights] = torch.load(settings["testing"]["load_model"])["model_state"].values()
            assert torch.equal(weights, torch.ones(3, 5))
            prefix = Path(options[1])
            Path(f"{prefix}.dev").write_text("\n".join(REFERENCES) + "\n")
            self.die("test")
            Path(f"{prefix}.test").write_text(REFERENCES[0] + "\n\n")

    def die(self, mode: str) -> None:
        if mode in self.dies_at:
            self.dies_at.remove(mode)
            raise subprocess.CalledProcessError(9, mode)


@pytest.fixture
def commands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data/iwslt"
    data.mkdir(parents=True)
    for part in ("dev", "test"):
        (data / f"{part}.en").write_text("\n".join(REFERENCES) + "\n")
    (data / "meta.json").write_text(json.dumps({"official": False, "note": "tiny"}))
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    fake = Commands()
    monkeypatch.setattr(with_joeynmt, "call", fake)
    monkeypatch.setattr(with_joeynmt, "scored", lambda directory: ({"dev_perplexity": 3.5}, {}))
    return fake


def run():
    overrides = {"training.epochs": 1, "data.src.lang": "nl", "use_cuda": False}
    path = experiment.run("iwslt", Path("config.yaml"), "qrnn", seed=3, overrides=overrides)
    return json.loads(path.read_text())


def test_a_run_ends_in_a_record(commands):
    record = run()
    records.check(record, "record")
    settings = yaml.safe_load(Path("runs/iwslt-qrnn-seed3/config.yaml").read_text())
    state_file = "runs/iwslt-qrnn-seed3/state.ckpt"
    assert settings["random_seed"] == 3
    assert settings["training"] == {"epochs": 1, "state_file": state_file}
    assert settings["data"]["src"]["lang"] == "nl" and settings["use_cuda"] is False
    metrics = record["metrics"]
    assert metrics["dev_bleu"] == pytest.approx(100) and 0 < metrics["test_bleu"] < 60
    assert (
        metrics["parameters"] == 15
        and metrics["characters"] == 7
        and metrics["train_chars_per_second"] == 1000
    )
    assert metrics["updates"] == 107 and metrics["best_step"] == 100
    assert record["history"] == [{"steps": 100, "bleu": 1.5, "ppl": 9, "lr": 0.001}]
    assert record["wall_seconds"] == 10.5
    assert record["data"]["official"] is False and "tok:13a" in record["data"]["bleu"]
    assert run() == record and commands.called == ["train", "test"]


def test_an_interrupted_training_goes_on_in_a_new_attempt(commands):
    commands.dies_at = {"train"}
    with pytest.raises(subprocess.CalledProcessError):
        run()
    folder = Path("runs/iwslt-qrnn-seed3")
    undisturbed = with_joeynmt.settings_of(folder)
    record = run()
    settings = with_joeynmt.settings_of(folder)
    assert settings["model_dir"].endswith("attempt-2")
    assert not (folder / "attempt-1/100.ckpt").exists()
    del undisturbed["model_dir"], undisturbed["training"]["state_file"]
    text = json.dumps(undisturbed, sort_keys=True)
    assert record["config_sha256"] == records.sha256(text)
    assert [step["steps"] for step in record["history"]] == [100, 200]
    assert record["metrics"]["best_step"] == 200
    assert record["metrics"]["train_chars_per_second"] == 1500
    assert record["wall_seconds"] == 10.5 + 11.5


@pytest.mark.parametrize("named", ["config", "data"])
def test_an_interrupted_training_goes_on_with_no_other_content(commands, named):
    commands.dies_at = {"train"}
    with pytest.raises(subprocess.CalledProcessError):
        run()
    if named == "config":
        Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "testing": {"beam_size": 1}}))
    else:
        Path("data/iwslt/meta.json").write_text('{"official": false, "files": {"train.de": "2"}}')
    told = f'runs/iwslt-qrnn-seed3 was begun with {{"{named}_sha256": .*: delete it'
    with pytest.raises(experiment.OtherRunError, match=told):
        run()
    assert commands.called == ["train"]


def test_an_attempt_that_was_killed_before_it_wrote_anything_counts_for_nothing(commands):
    Path("runs/iwslt-qrnn-seed3/attempt-1").mkdir(parents=True)
    record = run()
    assert Path("runs/iwslt-qrnn-seed3/attempt-2/train.log").exists()
    assert record["wall_seconds"] == 10.5 and len(record["history"]) == 1


def test_an_interrupted_evaluation_is_repeated_and_the_training_is_not(commands):
    commands.dies_at = {"test"}
    with pytest.raises(subprocess.CalledProcessError):
        run()
    assert not records.RESULTS.exists()
    run()
    assert commands.called == ["train", "test", "test"]


def test_a_damaged_state_is_not_used(commands, capsys):
    """Not even where training has ended."""
    run()
    folder = Path("runs/iwslt-qrnn-seed3")
    with open(folder / "state.ckpt", "r+b") as file:
        file.truncate(700)
    (folder / "hypotheses.test").unlink()
    next(records.RESULTS.iterdir()).unlink()
    record = run()
    assert "state.ckpt is damaged: training starts anew" in capsys.readouterr().out
    assert [step["steps"] for step in record["history"]] == [300]
    assert commands.called == ["train", "test", "train", "test"]


def test_a_training_without_a_validation_is_named(commands):
    run()
    folder = Path("runs/iwslt-qrnn-seed3")
    state = torch.load(folder / "state.ckpt")
    torch.save({**state, "best_state": None}, folder / "state.ckpt")
    (folder / "hypotheses.test").unlink()
    with pytest.raises(FileNotFoundError, match="validation_freq"):
        with_joeynmt.evaluate(folder)
