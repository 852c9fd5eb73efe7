"""scripts/examples and those in docstrings: that each runs, and what its recurrences compute."""

import doctest
import runpy
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from examples import deploy, directions, graphs, parallel, recurrences
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from qrnn import QRNN, convert, functional, layers, torchqrnn

FOLDER = Path(recurrences.__file__).parent


def test_moving_average() -> None:
    x, weight = torch.randn(6, 2, 3), 0.3
    want = [x[0]]
    for step in x[1:]:
        want.append(weight * step + (1 - weight) * want[-1])
    torch.testing.assert_close(recurrences.moving_average(x, weight), torch.stack(want))


@pytest.mark.parametrize("given", [False, True])
def test_min_gru(given: bool) -> None:
    model, x = recurrences.MinGRU(3, 4), torch.randn(6, 2, 3)
    h0 = torch.randn(2, 4) if given else None
    h, want = torch.zeros(2, 4) if h0 is None else h0, []
    for step in x:
        y = model.linear(step)
        z = torch.sigmoid(y[:, :4])
        h = (1 - z) * h + z * y[:, 4:]
        want.append(h)
    torch.testing.assert_close(model(x, h0), torch.stack(want))


def test_sru() -> None:
    model, x, c = recurrences.SRULayer(4), torch.randn(6, 2, 4), torch.randn(2, 4)
    got, last = model(x, c)
    want = []
    for step in x:
        y = torch.sigmoid(model.gates(step))
        f, r = y[:, :4], y[:, 4:]
        c = f * c + (1 - f) * (step @ model.candidate.weight.T)
        want.append(r * torch.tanh(c) + (1 - r) * step)
    torch.testing.assert_close((got, last), (torch.stack(want), c))


@pytest.mark.parametrize("cell", ["MinGRU", "SRULayer"])
def test_cells_learn(cell: str) -> None:
    """To tell at the last step which of two numbers came first, 20 steps earlier."""
    first = torch.randint(2, (64,))
    x = torch.randn(20, 64, 8)
    x[0, :, 0] = 4.0 * first - 2
    rnn = recurrences.MinGRU(8, 8) if cell == "MinGRU" else recurrences.SRULayer(8)
    head = nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], 0.02)
    for _ in range(150):
        output = rnn(x)
        output = output if isinstance(output, torch.Tensor) else output[0]
        loss = nn.functional.cross_entropy(head(output[-1]), first)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_directions() -> None:
    assert directions.both_ways().shape == (6, 2, 8)
    output, h_n = directions.packed()
    assert isinstance(output, PackedSequence) and h_n.shape == (4, 3, 4)


def test_parallel() -> None:
    """Each compares itself with one process."""
    parallel.data_parallel()
    assert len(parallel.distributed_data_parallel()) == 4


def test_the_step_that_graphs_captures_learns() -> None:
    step, *_ = graphs.make("cpu")
    assert step() > 2 * [step() for _ in range(50)][-1]


class TestDeploy:
    def setup_method(self) -> None:
        self.rnn = QRNN(8, 16, num_layers=2).eval().requires_grad_(False)
        self.x = torch.randn(12, 3, 8)

    def check(self, got: torch.Tensor) -> None:
        torch.testing.assert_close(got, self.rnn(self.x)[0], rtol=0, atol=1e-5)

    def test_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # for inductor, which takes long: tests/pooling/test_operator.py
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        self.check(deploy.compiled(self.rnn, self.x))
        torch.compiler.reset()

    def test_exported(self, tmp_path: Path) -> None:
        self.check(deploy.exported(self.rnn, self.x, tmp_path / "rnn.pt2"))

    @pytest.mark.filterwarnings(
        "ignore:.isinstance.treespec, LeafSpec.:FutureWarning", "ignore:# The axis name"
    )
    def test_onnx(self, tmp_path: Path) -> None:
        for module in ("onnxscript", "onnxruntime"):
            pytest.importorskip(module, reason="ONNX export is optional: pip install onnxscript")
        self.check(deploy.onnx(self.rnn, self.x, tmp_path / "rnn.onnx"))
        assert [file.name for file in tmp_path.iterdir()] == ["rnn.onnx"]


@pytest.mark.parametrize("name", ["directions", "recurrences"])
def test_as_a_script(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.count("\n") >= 2


def test_a_missing_folder_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["deploy.py", str(tmp_path / "missing")])
    with pytest.raises(SystemExit):
        runpy.run_path(str(FOLDER / "deploy.py"), run_name="__main__")
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("module", [convert, functional, layers, torchqrnn])
def test_docstrings(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted and not results.failed
