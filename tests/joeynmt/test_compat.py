import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from qrnn.joeynmt import compat

ROOT = Path(__file__).parents[2]


class TestVersions:
    def test_those_in_use_are_accepted(self):
        compat._check_versions()

    @pytest.mark.parametrize("found", ["2.2.1", "2.3.0.post1", "3.0.0"])
    def test_another_joeynmt(self, monkeypatch, found):
        monkeypatch.setattr(compat, "version", lambda name: found)
        with pytest.raises(ImportError) as error:
            compat.extend()
        for text in [found, "2.3.0", "QRNN_STARTUP=0"]:
            assert text in str(error.value)

    def test_joeynmt_without_metadata(self, monkeypatch):
        def missing(name):
            raise PackageNotFoundError(name)

        monkeypatch.setattr(compat, "version", missing)
        with pytest.raises(ImportError, match="without metadata"):
            compat.extend()
        monkeypatch.setattr(compat, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match="is not installed"):
            compat.extend()

    @pytest.mark.parametrize("found", ["1.12.1", "2.10.2+cu128", "2.16.0", "3.0.0a0"])
    def test_another_torch(self, monkeypatch, found):
        monkeypatch.setattr(torch, "__version__", found)
        with pytest.raises(ImportError) as error:
            compat.extend()
        for text in [found, "torch >= 2.11, < 2.16", "QRNN_STARTUP=0"]:
            assert text in str(error.value)

    def test_setup_has_the_same_versions(self):
        setup = (ROOT / "setup.py").read_text(encoding="utf-8")
        low, high = (".".join(map(str, version)) for version in compat.TORCH)
        assert f'"torch>={low},<{high}"' in setup
        assert f'"joeynmt=={compat.JOEYNMT}"' in setup


def run(code, **env):
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, env={**env, "PATH": ""})
    return (process.stdout + process.stderr).splitlines()


def test_the_hook_works_where_search_imports_model():
    code = """if True:
        import joeynmt.search, sys
        print(sorted(name for name in sys.modules if name.split(".")[0] == "qrnn"))
        from joeynmt import builders, config, datasets, model, search
        from joeynmt.prediction import build_model
        replaced = [
            model.RecurrentEncoder, model.RecurrentDecoder, model.initialize_model,
            config.parse_global_args, config.parse_train_args, config.parse_test_args,
            builders.ReduceLROnPlateau, datasets.SentenceBatchSampler.__iter__,
            search.beam_search,
        ]
        import qrnn.joeynmt  # which changes nothing any more
        print([hasattr(r, "__wrapped__") + hasattr(r.__wrapped__, "__wrapped__") for r in replaced])
        print(build_model is model.build_model)
    """
    assert run(code) == ["['qrnn.joeynmt.compat']", str([1] * 9), "True"]


def test_plateau():
    from joeynmt.builders import build_scheduler

    compat.extend()
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    options = {"scheduling": "plateau", "patience": 0, "decrease_factor": 0.25}
    scheduler, when = build_scheduler(options, optimizer, "max")
    assert when == "validation"
    rates = []
    for bleu in (1.0, 2.0, 2.0, 3.0):
        scheduler.step(metrics=bleu)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1, 1, 0.25, 0.25]
