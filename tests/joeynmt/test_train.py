"""The commands that people type, on the generated sample, each in its own process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import iwslt
import pytest
import sample_translation
import torch
import yaml
from joeynmt import config as joeynmt_config
from translation import SPECIALS, Vocabulary, joeynmt_model

from qrnn.joeynmt import compat

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with configs/ and a third of the sample, prepared as the real data is."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "configs", root / "configs")
    (root / "mirror").mkdir()
    archive = sample_translation.archive({"train": 640, "dev": 20, "test": 10})
    (root / "mirror/de-en.tgz").write_bytes(archive)
    iwslt.prepare(str(root / "mirror"), root / "data/sample/iwslt", root / "download")
    return root


def change(project, name, new, **sections):
    """A copy of a config with other values: training={"epochs": 1}, model_dir="..."."""
    config = yaml.safe_load((project / "configs" / name).read_text(encoding="utf-8"))
    for section, values in sections.items():
        config[section] = config[section] | values if isinstance(values, dict) else values
    (project / "configs" / new).write_text(yaml.safe_dump(config))
    return f"configs/{new}"


def python_m(project, *command, module="joeynmt", fails=False, stdin="", **env):
    process = subprocess.run(
        [sys.executable, "-m", module, *command],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    said = process.stdout + process.stderr
    assert (process.returncode != 0) == fails, said[-4000:]
    return said if fails else process.stdout


SHORT = {"epochs": 2, "validation_freq": 20, "logging_freq": 10, "keep_best_ckpts": -1}


@pytest.fixture(scope="module")
def trained(project):
    """`python -m joeynmt train`, shortened; model_dir as the config has it."""
    config = change(project, "iwslt_quick.yaml", "short.yaml", training=SHORT)
    python_m(project, "train", config)
    return project / "runs/iwslt_quick"


@pytest.mark.parametrize(
    ("module", "env", "changes", "told"),
    [
        (
            "joeynmt",
            {},
            {"data": {"train": "data/absent/train"}},
            "data/absent/train.de does not exist: prepare it first",
        ),
        (
            "qrnn.joeynmt",
            {"QRNN_STARTUP": "0"},
            {"testing": {"beam_ranking": "qrn"}},
            "beam_ranking: expected",
        ),
        ("joeynmt", {}, {"data": {"src": None}}, "data: src: expected a section, got None"),
    ],
)
def test_where_training_cannot_begin_nothing_stays(project, module, env, changes, told):
    config = change(project, "iwslt_quick.yaml", "bad.yaml", model_dir="runs/bad", **changes)
    said = python_m(project, "train", config, module=module, fails=True, **env)
    assert told in said.splitlines()[-1] and not (project / "runs/bad").exists()


@pytest.mark.parametrize(
    ("names", "stays"),
    [
        (compat.BEFORE_TRAINING, False),
        (compat.BEFORE_TRAINING | {"bpe.codes"}, False),
        (compat.BEFORE_TRAINING | {"0.ckpt"}, True),
        ({"train.log"}, True),  # not made by joeynmt's command
    ],
)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_model_dir_in_which_training_began_stays(tmp_path, names, stays, error):
    def fails(*arguments):
        raise error("no")

    for name in names:
        (tmp_path / name).touch()
    codes = {"tokenizer_cfg": {"codes": "data/bpe.codes", "dropout": 0.1}}
    config = {"model_dir": str(tmp_path), "data": {"src": codes, "trg": {"tokenizer_cfg": None}}}
    with pytest.raises(error, match="no"):
        compat._train(fails, 0, None, config)
    assert tmp_path.exists() == stays


def test_train_validates_tests_and_writes_what_joeynmt_writes(trained):
    names = {file.name for file in trained.iterdir()}
    for name in ["20.ckpt", "40.ckpt", "best.ckpt", "latest.ckpt", "config.yaml", "20.hyps"]:
        assert name in names
    assert {"att.20.1.png", "best.hyps.dev", "best.hyps.test"} <= names
    assert [f for f in (trained / "tensorboard").iterdir() if f.stat().st_size > 10_000]
    first, second = (trained / "validations.txt").read_text().splitlines()
    loss = [float(line.split("loss: ")[1].split()[0]) for line in (first, second)]
    assert loss[1] < 0.9 * loss[0]
    log = (trained / "train.log").read_text(encoding="utf-8")
    assert log.count("joeynmt.qrnn - QRNN encoder and decoder built") == 1
    assert "beam_alpha=0.6 (ranking by equation 9)" in log
    assert len((trained / "best.hyps.test").read_text().splitlines()) == 10


def test_resume_continues(project, trained):
    """Where an epoch ended, as the whole run: the same optimizer, weights and batches."""
    where = {"load_model": "runs/iwslt_quick/20.ckpt"}
    options = {"training": {**SHORT, **where, "print_valid_sents": []}, "model_dir": "runs/resumed"}
    config = change(project, "iwslt_quick.yaml", "resume.yaml", **options)
    python_m(project, "train", config, "--skip-test")
    first = torch.load(trained / "20.ckpt", weights_only=False)
    last = torch.load(project / "runs/resumed/latest.ckpt", weights_only=False)
    assert last["stats_state"]["steps"] > 20 and first["stats_state"]["steps"] == 20
    assert last["optimizer_state"]["state"][0]["step"] == last["stats_state"]["steps"]
    report = (project / "runs/resumed/validations.txt").read_text().splitlines()
    start = float((trained / "validations.txt").read_text().split("loss: ")[1].split()[0])
    assert float(report[0].split("loss: ")[1].split()[0]) < start


def test_test_with_attention_and_translate(project, trained):
    greedy = {"testing": {"beam_size": 1, "beam_ranking": "joeynmt", "return_prob": "none"}}
    config = change(project, "short.yaml", "greedy.yaml", **greedy)
    data = project / "data/sample/iwslt"
    # plots of all sentences, slow ones: of two
    for part, lines in (("dev", 0), ("test", 2)):
        for language in ("de", "en"):
            text = (data / f"{part}.{language}").read_text(encoding="utf-8").splitlines(True)
            (data / f"few_{part}.{language}").write_text("".join(text[: lines or 1]))
    config = change(
        project,
        "greedy.yaml",
        "greedy.yaml",
        data={"dev": "data/sample/iwslt/few_dev", "test": "data/sample/iwslt/few_test"},
    )
    python_m(project, "test", config, "-o", "out", "-a")
    assert len((project / "out.test").read_text().splitlines()) == 2
    assert len(list(project.glob("out.test.att.*"))) == 2
    german = (data / "test.de").read_text(encoding="utf-8")
    english = python_m(project, "translate", "configs/short.yaml", stdin=german)
    tested = (trained / "best.hyps.test").read_text(encoding="utf-8")
    assert english.splitlines()[-10:] == tested.splitlines()


def test_without_the_hook_the_config_stops_and_qrnn_joeynmt_does_not(project, trained):
    config = change(
        project,
        "short.yaml",
        "other.yaml",
        model_dir="runs/other",
        training={"updates": 10},
    )
    said = python_m(project, "train", config, fails=True, QRNN_STARTUP="0")
    assert "Unknown attention mechanism: qrnn-dot" in said
    python_m(project, "train", config, "--skip-test", module="qrnn.joeynmt", QRNN_STARTUP="0")
    log = (project / "runs/other/train.log").read_text(encoding="utf-8")
    assert "joeynmt.qrnn - QRNN encoder and decoder built" in log
    # from the same random_seed, which joeynmt itself sets when the weights are drawn already
    first = [(project / "runs" / run / "train.log").read_text() for run in ("iwslt_quick", "other")]
    loss = [log.split("Batch Loss:")[1].split(",")[0] for log in first]
    assert loss[0] == loss[1]


@pytest.mark.parametrize("name", ["iwslt_char", "iwslt_char_lstm", "iwslt_quick"])
def test_configs_build(name):
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert config["model_dir"] == f"runs/{name}" and config["name"] == name
    joeynmt_config.parse_train_args(config["training"])
    assert "equation 9" in str(joeynmt_config.parse_test_args(config["testing"]).beam_alpha)
    vocabulary = Vocabulary([chr(0x4E00 + n) for n in range(183)], SPECIALS)
    model = joeynmt_model.build_model(config["model"], vocabulary, vocabulary)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    expected = {"iwslt_char": 6.22, "iwslt_char_lstm": 6.19, "iwslt_quick": 0.2}[name]
    assert millions == pytest.approx(expected, abs=0.01 if expected > 1 else 0.1)
