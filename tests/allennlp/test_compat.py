import importlib
import os
import pickle
import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy
import pytest
import torch

from qrnn.allennlp import compat

ROOT = Path(__file__).parents[2]
IMDB = str(ROOT / "configs/imdb.jsonnet")
TORCHVISION = ["torchvision", "torchvision.ops", "torchvision.ops.boxes"]


@pytest.fixture
def forget(monkeypatch):
    """Makes Python forget modules for the length of a test, and what it imports in their place."""

    def forget(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
            monkeypatch.delitem(sys.modules, name)

    return forget


class TestVersions:
    def test_those_in_use_are_accepted(self):
        compat._check_versions()

    @pytest.mark.parametrize("found", ["2.10.0", "2.10.1.post1", "3.0.0"])
    def test_another_allennlp(self, monkeypatch, found):
        monkeypatch.setattr(compat, "version", lambda name: found)
        with pytest.raises(ImportError) as error:
            compat._check_versions()
        for text in [found, "2.10.1", "QRNN_STARTUP=0"]:
            assert text in str(error.value)

    def test_allennlp_without_metadata(self, monkeypatch):
        def missing(name):
            raise PackageNotFoundError(name)

        monkeypatch.setattr(compat, "version", missing)
        with pytest.raises(ImportError, match="without metadata"):
            compat._check_versions()
        monkeypatch.setattr(compat, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match="is not installed"):
            compat._check_versions()

    @pytest.mark.parametrize("found", ["1.12.1", "2.10.2+cu128", "2.16.0", "3.0.0a0"])
    def test_another_torch(self, monkeypatch, found):
        monkeypatch.setattr(torch, "__version__", found)
        with pytest.raises(ImportError) as error:
            compat._check_versions()
        for text in [found, "torch >= 2.11, < 2.16", "QRNN_STARTUP=0"]:
            assert text in str(error.value)

    @pytest.mark.parametrize("found", ["2.11.0", "2.11.0a0+gitabc", "2.13.1+cu130"])
    def test_the_range_of_torch(self, monkeypatch, found):
        monkeypatch.setattr(torch, "__version__", found)
        compat._check_versions()

    def test_setup_has_the_same_range_of_torch(self):
        low, high = (".".join(map(str, version)) for version in compat.TORCH)
        assert f'"torch>={low},<{high}"' in (ROOT / "setup.py").read_text(encoding="utf-8")


class TestTorchvision:
    def test_what_is_missing_gets_a_stub(self, monkeypatch, forget):
        forget(*TORCHVISION)
        monkeypatch.setitem(sys.modules, "torchvision", None)  # not installed
        compat._mend_torchvision()

        import torchvision
        import torchvision.ops.boxes as box_ops

        assert box_ops is torchvision.ops.boxes
        assert importlib.util.find_spec("torchvision") is not None
        assert not hasattr(torchvision, "__path__")
        for use in [
            lambda: torchvision.io.read_image("a.png"),
            lambda: box_ops.nms(),
            lambda: torchvision.ops.boxes(),
        ]:
            with pytest.raises(ImportError, match="allennlp needs torchvision for images"):
                use()

    def test_what_is_broken_gets_a_stub(self, monkeypatch, tmp_path, forget):
        forget(*TORCHVISION)
        reason = "operator torchvision::nms does not exist"
        (tmp_path / "torchvision.py").write_text(f"raise RuntimeError({reason!r})")
        monkeypatch.syspath_prepend(tmp_path)
        compat._mend_torchvision()
        with pytest.raises(ImportError, match=reason):
            sys.modules["torchvision"].models  # noqa: B018

    def test_what_works_stays(self, monkeypatch, forget):
        forget(*TORCHVISION)
        real = types.ModuleType("torchvision")
        monkeypatch.setitem(sys.modules, "torchvision", real)
        compat._mend_torchvision()
        assert sys.modules["torchvision"] is real
        assert "torchvision.ops" not in sys.modules

    def test_transformers_looks_before_the_stub_is_there(self, monkeypatch, forget):
        import transformers.utils

        seen = []
        monkeypatch.setattr(
            transformers.utils,
            "is_torchvision_available",
            lambda: seen.append(sys.modules["torchvision"]),
        )
        forget(*TORCHVISION)
        monkeypatch.setitem(sys.modules, "torchvision", None)
        compat._mend_torchvision()
        assert seen == [None]


def test_huggingface_hub(monkeypatch):
    hub = types.ModuleType("huggingface_hub")
    hub.Repository = Repository = object()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    compat._mend_huggingface_hub()
    assert hub.Repository is Repository
    for use in [lambda: hub.HfFolder(), lambda: hub.HfFolder.get_token()]:
        with pytest.raises(ImportError, match="push-to-hf` needs huggingface_hub < 1"):
            use()


class TestTransformers:
    def test_adamw_survives_the_new_package_module(self, monkeypatch, tmp_path, forget):
        names = [name for name in sys.modules if name.partition(".")[0] == "transformers"]
        forget("transformers", "transformers.processing_utils", *names)
        (tmp_path / "transformers").mkdir()
        (tmp_path / "transformers/__init__.py").touch()
        (tmp_path / "transformers/processing_utils.py").write_text(
            "import sys, types; sys.modules['transformers'] = types.ModuleType('transformers')"
        )
        monkeypatch.syspath_prepend(tmp_path)
        compat._mend_transformers()

        import transformers.processing_utils

        class Derived(transformers.AdamW):
            pass

        with pytest.raises(ImportError, match=r"needs transformers < 4\.50"):
            Derived([torch.nn.Parameter(torch.zeros(1))])

    def test_an_adamw_that_is_there_stays(self, monkeypatch):
        fake = types.ModuleType("transformers")
        fake.AdamW = AdamW = object()
        monkeypatch.setitem(sys.modules, "transformers", fake)
        compat._mend_transformers()
        assert fake.AdamW is AdamW


def test_recover_loads_numpy_scalars(tmp_path):
    metrics = {
        "loss": numpy.float64(0.5),
        "accuracy": numpy.float32(0.25),
        "epoch": numpy.int64(3),
        "best": numpy.bool_(True),
    }
    torch.save(metrics, tmp_path / "state.th")
    trusted = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "state.th")
        compat._mend_recover()
        assert torch.load(tmp_path / "state.th") == metrics
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(trusted)


class TestCommands:
    @pytest.fixture(autouse=True)
    def extended(self, tmp_path, monkeypatch):
        compat.extend()
        monkeypatch.chdir(tmp_path)

    @pytest.fixture
    def train(self, monkeypatch):
        """Runs `allennlp train` up to the training, for which it calls `doing` if given; returns
        what the training is called with."""
        from allennlp import commands

        def train(*arguments, doing=None):
            called = {}

            def train_model_from_file(**args):
                called.update(args)
                if doing:
                    doing(**args)

            monkeypatch.setattr(
                "allennlp.commands.train.train_model_from_file", train_model_from_file
            )
            monkeypatch.setattr(sys, "argv", ["allennlp", "train", *arguments])
            monkeypatch.setattr(commands, "import_plugins", lambda: None)
            commands.main()
            return called

        return train

    def test_the_plugin_is_a_default_one(self):
        from allennlp.common import plugins

        compat.extend()
        assert plugins.DEFAULT_PLUGINS.count("qrnn.allennlp") == 1
        assert "allennlp_models" in plugins.DEFAULT_PLUGINS

    @pytest.mark.parametrize("options", [[], ["--recover"], ["--force", "-o", "{}"]])
    def test_train_writes_to_runs(self, train, options):
        default = train(IMDB, *options)
        assert default["serialization_dir"] == os.path.join("runs", "imdb")
        named = train(IMDB, "-s", os.path.join("runs", "imdb"), *options)
        assert default == named

    def test_train_writes_where_it_is_told(self, train):
        assert train(IMDB, "-s", "there")["serialization_dir"] == "there"

    def test_a_run_that_is_there_is_not_overwritten(self, tmp_path, monkeypatch):
        from allennlp import commands
        from allennlp.common.checks import ConfigurationError

        (tmp_path / "runs/mine").mkdir(parents=True)
        (tmp_path / "runs/mine/model.tar.gz").touch()
        (tmp_path / "mine.jsonnet").write_text("{}")
        monkeypatch.setattr(sys, "argv", ["allennlp", "train", "mine.jsonnet"])
        monkeypatch.setattr(commands, "import_plugins", lambda: None)
        with pytest.raises(ConfigurationError, match="already exists and is not empty"):
            commands.main()

    @pytest.mark.parametrize(
        ("written", "kept"),
        [
            ("out.log", False),
            ("training begins", True),
            ("best.th", True),
            ("out_worker0.log", True),
        ],
    )
    def test_a_new_folder_goes_unless_training_has_begun(
        self, train, tmp_path, monkeypatch, written, kept
    ):
        from allennlp.training import GradientDescentTrainer

        def fail(serialization_dir, **_):
            (Path(serialization_dir) / written).touch()
            if written == "training begins":
                GradientDescentTrainer._try_train(object())
            raise AttributeError

        (tmp_path / "mine.jsonnet").write_text("{}")
        with pytest.raises(AttributeError):
            train("mine.jsonnet", doing=fail)
        assert Path("runs/mine").exists() == kept

    @pytest.mark.parametrize("named", [False, True])
    def test_a_dry_run_leaves_no_folder_that_nobody_named(
        self, train, tmp_path, monkeypatch, named
    ):
        (tmp_path / "mine.jsonnet").write_text("{}")
        directory = Path("runs/mine")
        options = ["-s", str(directory)] if named else []
        train("mine.jsonnet", "--dry-run", *options)
        assert directory.exists() == named
        directory.mkdir(parents=True, exist_ok=True)
        train("mine.jsonnet", "--dry-run", "--force")
        assert directory.exists()  # it was there before

    def test_a_folder_that_another_process_has_just_made_stays(self, train, tmp_path, monkeypatch):
        def fail(**_):
            raise AttributeError

        check = compat._check_config

        def check_slowly(config):
            check(config)
            Path("runs/mine").mkdir(parents=True)  # by the other one

        monkeypatch.setattr(compat, "_check_config", check_slowly)
        (tmp_path / "mine.jsonnet").write_text("{}")
        with pytest.raises(AttributeError):
            train("mine.jsonnet", doing=fail)
        assert Path("runs/mine").exists()

    def test_a_trainer_may_be_its_name_alone(self, train, tmp_path):
        config = tmp_path / "mine.jsonnet"
        config.write_text('{"trainer": "gradient_descent"}')
        assert train(str(config), "-s", str(tmp_path / "run"))

    def test_the_old_name_of_the_trainers_checks_is_taken(self, train, tmp_path):
        from allennlp.common.checks import ConfigurationError

        config = tmp_path / "mine.jsonnet"
        config.write_text('{"trainer": {"run_sanity_checks": false}}')
        assert train(str(config), "-s", str(tmp_path / "run"))
        config.write_text('{"trainer": {"run_sanity_check": false}}')
        with pytest.raises(ConfigurationError, match=r"options run_sanity_check$"):
            train(str(config))

    def test_an_initializer_may_have_no_file(self, train, tmp_path):
        config = tmp_path / "mine.jsonnet"
        config.write_text('{"model": {"initializer": {"weights_file_path": null}}}')
        assert train(str(config), "-s", str(tmp_path / "run"))

    def test_evaluate_and_predict_are_untouched(self):
        from allennlp.commands.subcommand import Subcommand

        for name in ["evaluate", "predict"]:
            assert Subcommand.by_name(name).__module__ == f"allennlp.commands.{name}"

    def test_reduce_on_plateau(self):
        from allennlp.common import Params
        from allennlp.training.learning_rate_schedulers import LearningRateScheduler

        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        params = Params({"type": "reduce_on_plateau", "mode": "max", "patience": 0, "factor": 0.5})
        scheduler = LearningRateScheduler.from_params(params, optimizer=optimizer)
        rates = []
        for accuracy in [0.7, 0.8, 0.8, 0.6, 0.9]:
            scheduler.step(accuracy)
            rates.append(optimizer.param_groups[0]["lr"])
        assert rates == [1.0, 1.0, 0.5, 0.25, 0.25]


def test_python_m_without_the_hook(tmp_path):
    """Also that allennlp loads at all, in a process that nothing has prepared."""
    env = {**os.environ, "QRNN_STARTUP": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "qrnn.allennlp", "train", "--help"]
    process = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "(default = runs/<name of param_path>)" in " ".join(process.stdout.split())
