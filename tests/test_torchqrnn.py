import inspect
import io
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from qrnn import torchqrnn
from qrnn.torchqrnn import QRNN, BackwardForgetMult, ForgetMult, QRNNLayer

WIDE = torch.float64


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=WIDE)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def one_layer(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    window: int,
    output_gate: bool,
    zoneout: float = 0.0,
    hidden: np.ndarray | None = None,
    before: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The archived package's layer, from its documentation, in evaluation: one step at a time.

    x (T, B, I), before (window - 1, B, I) its inputs to the left, oldest first.
    Returns outputs (T, B, H) and the last cells (B, H).
    """
    T, B, I = x.shape
    H = len(bias) // (3 if output_gate else 2)
    h = np.zeros((B, H)) if hidden is None else hidden
    seen = list(np.zeros((window - 1, B, I)) if before is None else before)
    outputs = np.empty((T, B, H))
    for t in range(T):
        seen.append(x[t])
        source = np.concatenate([seen[-1 - j] for j in range(window)], 1)
        y = source @ weight.T + bias
        z, f = np.tanh(y[:, :H]), sigmoid(y[:, H : 2 * H]) * (1 - zoneout)
        h = f * z + (1 - f) * h
        outputs[t] = sigmoid(y[:, 2 * H :]) * h if output_gate else h
    return outputs, h


def run(
    weights: dict[str, np.ndarray], x: np.ndarray, hidden: Any = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """A stack of such layers with the weights of a checkpoint."""
    last = []
    for n in range(len(weights) // 2):
        weight, bias = (weights[f"layers.{n}.linear.{kind}"] for kind in ("weight", "bias"))
        own = None if hidden is None else hidden[n]
        x, h = one_layer(x, weight, bias, **options, hidden=own)
        last.append(h)
    return x, np.stack(last)


def values(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def close(got: Any, want: Any, tolerance: float = 1e-12) -> None:
    for a, b in zip(got, want, strict=True):
        b = torch.as_tensor(b, dtype=a.dtype)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@given(st.data())
def test_a_stack_in_evaluation(data: Any) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**32)))
    options = {"window": draw(st.integers(1, 4)), "output_gate": draw(st.booleans())}
    options["zoneout"] = draw(st.sampled_from([0, 0.3, 1]))
    I, H, layers = (draw(st.integers(1, 3)) for _ in range(3))
    rnn = QRNN(I, H, layers, dropout=0.5, **options).to(WIDE).eval()
    T, B = draw(st.integers(0, 5)), draw(st.integers(0, 3))
    x, hidden = randn(T, B, I), randn(layers, B, H) if draw(st.booleans()) else None
    got = rnn(x, hidden)
    close(got, run(values(rnn), x.numpy(), None if hidden is None else hidden.numpy(), **options))


def test_a_checkpoint_in_its_layout_gives_its_outputs() -> None:
    """In float32, to 1e-6, with numbers that the archived package's equations give here."""
    rng = np.random.default_rng(0)
    old = {}
    for n, inputs in enumerate((5, 7)):
        old[f"layers.{n}.linear.weight"] = rng.normal(size=(21, 2 * inputs)) / inputs
        old[f"layers.{n}.linear.bias"] = rng.normal(size=21)
    file = io.BytesIO()
    torch.save({name: torch.tensor(v, dtype=torch.float32) for name, v in old.items()}, file)
    file.seek(0)
    rnn = QRNN(5, 7, num_layers=2, window=2).eval()
    assert list(rnn.state_dict()) == list(old)
    rnn.load_state_dict(torch.load(file))
    x = rng.normal(size=(30, 4, 5))
    got = rnn(torch.tensor(x, dtype=torch.float32))
    close(got, run(old, x, window=2, output_gate=True), 1e-6)


def test_signatures_and_defaults_are_the_archived_ones() -> None:
    def arguments(callable_: Any) -> list[tuple[str, Any]]:
        found = inspect.signature(callable_).parameters.values()
        return [(p.name, p.default) for p in found if p.kind is not p.VAR_KEYWORD]

    need = inspect.Parameter.empty
    assert arguments(QRNNLayer) == [
        ("input_size", need),
        ("hidden_size", None),
        ("save_prev_x", False),
        ("zoneout", 0),
        ("window", 1),
        ("output_gate", True),
        ("use_cuda", True),
    ]
    assert arguments(QRNN) == [
        ("input_size", need),
        ("hidden_size", None),  # documented as optional, and required by its code
        ("num_layers", 1),
        ("bias", True),
        ("batch_first", False),
        ("dropout", 0),
        ("bidirectional", False),
        ("layers", None),
    ]
    assert arguments(QRNN(2, 2).forward) == [("input", need), ("hidden", None)]
    assert arguments(QRNNLayer(2).forward) == [("X", need), ("hidden", None)]
    assert arguments(ForgetMult().forward) == [
        ("f", need),
        ("x", need),
        ("hidden_init", None),
        ("use_cuda", True),
    ]
    assert not vars(ForgetMult()).keys() - vars(nn.Module()).keys()


def test_its_readme() -> None:
    """A size of its own for hidden states is documented as optional; a Variable is a Tensor."""
    X = torch.autograd.Variable(torch.rand(7, 20, 16), requires_grad=True)
    for rnn in (QRNN(16, 16, num_layers=2, dropout=0.4), QRNN(16, num_layers=2)):
        output, hidden = rnn(X)
        assert (output.size(), hidden.size()) == ((7, 20, 16), (2, 20, 16))
    output, hidden = QRNNLayer(16)(X)
    assert (output.size(), hidden.size()) == ((7, 20, 16), (1, 20, 16))


class TestHidden:
    def test_forms(self) -> None:
        """(B, H) as documented, and (1, B, H), which layers return and language models keep."""
        layer = QRNNLayer(3, 4, window=2).to(WIDE)
        x, hidden = randn(5, 2, 3), randn(2, 4)
        want = layer(x, hidden)
        close(layer(x, hidden[None]), want, 0)
        rnn = QRNN(3, 4, layers=[layer, QRNNLayer(4, 4).to(WIDE)])
        whole = randn(2, 2, 4)
        for each in (list(whole), tuple(v[None] for v in whole)):
            close(rnn(x, each), rnn(x, whole), 0)

    def test_is_carried_on(self) -> None:
        rnn = QRNN(3, 4, 3).to(WIDE)
        x, hidden, outputs = randn(7, 2, 3), None, []
        for piece in x.split([1, 4, 2]):
            output, hidden = rnn(piece, hidden)
            outputs.append(output)
        close((torch.cat(outputs), hidden), rnn(x))

    def test_gradients(self) -> None:
        layer = QRNNLayer(2, 3, window=3).to(WIDE)
        names = [name for name, _ in layer.named_parameters()]

        def call(x: Tensor, hidden: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
            named = dict(zip(names, weights, strict=True))
            return torch.func.functional_call(layer, named, (x, hidden))

        leaves = [randn(4, 2, 2), randn(2, 3), *(p.detach() for p in layer.parameters())]
        assert torch.autograd.gradcheck(call, [v.clone().requires_grad_() for v in leaves])


class TestSavePrevX:
    @pytest.mark.parametrize("window", [1, 2, 4])
    def test_pieces_are_the_whole(self, window: int) -> None:
        rnn = QRNN(3, 4, 2, save_prev_x=True, window=window).to(WIDE)
        x, hidden, outputs = randn(9, 2, 3), None, []
        for piece in x.split([1, 4, 1, 1, 2]):
            output, hidden = rnn(piece, hidden)
            outputs.append(output)
        rnn.reset()
        close((torch.cat(outputs), hidden), rnn(x))

    def test_what_is_saved_has_no_gradient_and_is_a_copy(self) -> None:
        layer = QRNNLayer(3, window=2, save_prev_x=True).to(WIDE)
        x = randn(4, 2, 3).requires_grad_()
        layer(x)
        saved = layer.prevX
        assert torch.equal(saved, x[-1:]) and not saved.requires_grad
        with torch.no_grad():
            x.zero_()
        assert saved.any() and saved.untyped_storage().nbytes() == 2 * 3 * 8
        assert "prevX" not in layer.state_dict()

    def test_reset_and_the_default_put_zeros_there(self) -> None:
        x, before = randn(4, 2, 3), randn(4, 2, 3)
        saving = QRNNLayer(3, window=2, save_prev_x=True).to(WIDE)
        plain = QRNNLayer(3, window=2).to(WIDE)
        plain.load_state_dict(saving.state_dict())
        want = saving(x)
        saving(before), plain(before)
        assert not torch.allclose(saving(x)[0], want[0])
        saving.reset()
        close(saving(x), want, 0)
        close(plain(x), want, 0)

    def test_follows_the_input_to_another_type(self) -> None:
        layer = QRNNLayer(3, window=2, save_prev_x=True)
        layer(torch.randn(4, 2, 3))
        assert layer.to(WIDE)(randn(4, 2, 3))[0].dtype == WIDE


class TestZoneout:
    def test_in_training_an_element_moves_wholly_or_not_at_all(self) -> None:
        layer = QRNNLayer(8, 64, zoneout=0.3, output_gate=False).to(WIDE)
        x = randn(40, 16, 8)
        got, _ = layer(x)
        y = layer.linear(x)
        z, f = y[..., :64].tanh(), y[..., 64:].sigmoid()
        before = torch.cat([torch.zeros_like(got[:1]), got[:-1]])
        moved = f * z + (1 - f) * before
        stays = (got - before).abs() < 1e-14
        torch.testing.assert_close(got, torch.where(stays, before, moved), rtol=0, atol=1e-12)
        # 40,960 draws: four standard deviations are 0.009
        assert abs(stays.double().mean().item() - 0.3) < 0.009

    def test_evaluation_has_gradients(self) -> None:
        """The archived code changed the gate in place, which lost them."""
        layer = QRNNLayer(3, zoneout=0.5).eval()
        layer(torch.randn(4, 2, 3))[0].sum().backward()
        assert layer.linear.weight.grad.abs().sum() > 0


def test_dropout_is_between_layers_only() -> None:
    rnn = QRNN(6, 6, 2, dropout=1.0).to(WIDE)
    x = randn(4, 2, 6)
    first, second = rnn.layers
    close(rnn(x), (second(torch.zeros_like(x))[0], torch.cat([first(x)[1], second(0 * x)[1]])))
    assert torch.equal(QRNN(6, 6, dropout=1.0, layers=[first])(x)[0], first(x)[0])


class Doubled(nn.Module):
    """A module around a layer that has none of its attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        output, last = self.inner(x, hidden)
        return 2 * output, last

    def reset(self) -> None:
        self.inner.reset()


def test_layers_of_ones_own() -> None:
    first = QRNNLayer(3, 4, window=2, save_prev_x=True).to(WIDE)
    second = QRNNLayer(4, 4, output_gate=False).to(WIDE)
    rnn = QRNN(3, 4, num_layers=7, layers=[first, Doubled(second)])
    assert rnn.num_layers == 2 and rnn.layers[0] is first
    x = randn(5, 2, 3)
    middle, h1 = first(x)
    output, h2 = second(middle)
    rnn.reset()
    assert first.prevX is None
    close(rnn(x), (2 * output, torch.cat([h1, h2])), 0)


class DropWeight(nn.Module):
    """Weight drop as language models for the archived package have it, around `layer.linear`."""

    def __init__(self, module: nn.Module, rate: float) -> None:
        super().__init__()
        self.module, self.rate = module, rate
        raw = module.weight
        del module.weight
        module.register_parameter("weight_raw", nn.Parameter(raw.data))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.dropout(self.module.weight_raw, self.rate, self.training)
        # in evaluation dropout returns the Parameter itself, which torch would not let go again
        self.module.weight = weight.view_as(weight)
        return self.module(x)


class TestWeightDrop:
    @pytest.mark.parametrize("window", [1, 2])
    def test_around_linear(self, window: int) -> None:
        layer = QRNNLayer(3, 16, window=window).to(WIDE)
        x = randn(5, 2, 3)
        want = layer(x)
        layer.linear = DropWeight(layer.linear, 0.5)
        layer.eval()
        close(layer(x), want, 0)
        layer.train()
        output, _ = layer(x)
        raw, used = layer.linear.module.weight_raw, layer.linear.module.weight
        dropped = used == 0
        assert 0.3 < dropped.double().mean() < 0.7
        weights = used.detach().numpy(), layer.linear.module.bias.detach().numpy()
        close([output], [one_layer(x.numpy(), *weights, window, True)[0]])
        output.sum().backward()
        assert torch.equal(raw.grad == 0, dropped)

    def test_a_weight_that_was_replaced_by_a_tensor(self) -> None:
        """The weight as a plain attribute, computed before the layer runs."""
        layer = QRNNLayer(3, 4, window=2).to(WIDE)
        x, raw = randn(5, 2, 3), layer.linear.weight.detach().clone().requires_grad_()
        del layer.linear.weight
        layer.linear.weight = 2 * raw
        output, _ = layer(x)
        layer.linear.weight = nn.Parameter(2 * raw.detach())
        close([output], [layer(x)[0]], 0)
        output.sum().backward()
        assert raw.grad.abs().sum() > 0

    def test_a_module_without_parameters_in_its_place(self) -> None:
        layer = QRNNLayer(3, 3, output_gate=False)
        layer.linear = nn.Identity()
        layer.input_size = 6
        assert layer(torch.randn(4, 2, 6))[0].shape == (4, 2, 3)


class TestForgetMult:
    @pytest.mark.parametrize("backward", [False, True])
    def test_against_a_loop(self, backward: bool) -> None:
        module = BackwardForgetMult() if backward else ForgetMult()
        f, x, first = torch.rand(6, 2, 3, dtype=WIDE), randn(6, 2, 3), randn(2, 3)
        for start in (None, first):
            h, want = torch.zeros(2, 3, dtype=WIDE) if start is None else start, []
            for t in reversed(range(6)) if backward else range(6):
                h = f[t] * x[t] + (1 - f[t]) * h
                want.append(h)
            got = [torch.stack(want[::-1] if backward else want)]
            close([module(f, x, start)], got)
            close([module(f, x, hidden_init=start, use_cuda=False)], got)
        close([module(f, x, first[None])], got)

    @pytest.mark.parametrize("module", [ForgetMult(), BackwardForgetMult()])
    def test_gradients(self, module: nn.Module) -> None:
        leaves = [torch.rand(3, 2, 2, dtype=WIDE), randn(3, 2, 2), randn(2, 2)]
        assert torch.autograd.gradcheck(module, [v.requires_grad_() for v in leaves])
        assert torch.autograd.gradgradcheck(module, leaves)


LAYER, STACK = QRNNLayer(3, 4, window=2, save_prev_x=True), QRNN(3, 4, 2)
ONES = torch.ones(5, 2, 3)


@pytest.mark.parametrize(
    "error, message, call",
    [
        (ValueError, "bias: .*True.*qrnn.QRNN", lambda: QRNN(3, 4, bias=False)),
        (ValueError, "batch_first: .*False.*qrnn.QRNN", lambda: QRNN(3, 4, batch_first=True)),
        (ValueError, "bidirectional: .*qrnn.QRNN", lambda: QRNN(3, 4, bidirectional=True)),
        (ValueError, "window: .*at least 1.*0", lambda: QRNN(3, 4, window=0)),
        (ValueError, "zoneout: .*1.5", lambda: QRNNLayer(3, zoneout=1.5)),
        (ValueError, "dropout: .*-1", lambda: QRNN(3, 4, dropout=-1)),
        (TypeError, "hidden_size: .*int.*float", lambda: QRNNLayer(3, 4.0)),
        (TypeError, "num_layers: .*int.*str", lambda: QRNN(3, 4, "2")),
        (TypeError, "kernel_size", lambda: QRNN(3, 4, kernel_size=2)),
        (TypeError, "output_gate: .*'False'", lambda: QRNNLayer(3, output_gate="False")),
        (TypeError, "save_prev_x: .*'no'", lambda: QRNN(3, 4, save_prev_x="no")),
        (ValueError, "input: .*3 dimensions", lambda: LAYER(ONES[0])),
        (ValueError, r"input: .*of 3, got 2", lambda: LAYER(ONES[..., :2])),
        (TypeError, "input: .*float32.*float64", lambda: LAYER(ONES.double())),
        (TypeError, "input: .*PackedSequence", lambda: STACK(nn.utils.rnn.pack_sequence([ONES]))),
        (ValueError, r"hidden: .*\(1, 2, 4\).*\(1, 3, 4\)", lambda: LAYER(ONES, torch.ones(3, 4))),
        (TypeError, "hidden: .*tuple", lambda: LAYER(ONES, (torch.ones(2, 4),) * 2)),
        (TypeError, "hidden: .*int", lambda: STACK(ONES, 0)),
        (ValueError, "hidden: .*2 layers, got 3", lambda: STACK(ONES, torch.ones(3, 2, 4))),
        (
            ValueError,
            "layers: .*one hidden size",
            lambda: QRNN(3, 4, layers=[QRNNLayer(3, 4), QRNNLayer(4, 5)])(ONES),
        ),
        (TypeError, "f: .*Tensor.*float", lambda: ForgetMult()(0.5, ONES)),
        (ValueError, "f: .*3 dim", lambda: ForgetMult()(ONES[0], ONES[0])),
        (ValueError, "x: .*shape", lambda: ForgetMult()(ONES, ONES[:1])),
        (ValueError, "hidden: .*shape", lambda: ForgetMult()(ONES, ONES, ONES)),
    ],
)
def test_misuse(error: type[Exception], message: str, call: Any) -> None:
    LAYER.reset()
    with pytest.raises(error, match=message):
        call()


def test_a_call_that_fails_saves_no_inputs() -> None:
    rnn = QRNN(3, 4, 2, window=2, save_prev_x=True)
    rnn(ONES)
    before = [layer.prevX.clone() for layer in rnn.layers]
    with pytest.raises(ValueError, match="hidden: "):
        rnn(2 * ONES, [None, torch.zeros(3, 4)])
    for layer, saved in zip(rnn.layers, before, strict=True):
        assert torch.equal(layer.prevX, saved)


def test_another_batch_size_asks_for_reset() -> None:
    LAYER.reset()
    LAYER(ONES)
    with pytest.raises(ValueError, match=r"input: .*batch of 2 .*reset\(\).*got 1"):
        LAYER(ONES[:, :1])
    LAYER.reset()
    LAYER(ONES[:, :1])


SCRIPT = """
import sys
import torch
from beside import HIDDEN
from torchqrnn import QRNN, QRNNLayer
from torchqrnn.forget_mult import ForgetMult
import torchqrnn.qrnn

assert torchqrnn.qrnn.QRNN is QRNN and torchqrnn.ForgetMult is ForgetMult
if __name__ == '__main__':
    qrnn = QRNN(HIDDEN, HIDDEN, num_layers=2, dropout=0.4)
    torch.save([qrnn], sys.argv[1])
    [again] = torch.load(sys.argv[1], weights_only=False)
    output, hidden = again(torch.rand(7, 2, HIDDEN))
    print(type(again).__module__, tuple(output.size()), tuple(hidden.size()))
"""


def test_an_old_script_as_it_is(tmp_path: Any) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    (folder / "beside.py").write_text("HIDDEN = 8\n")
    call = [sys.executable, "-m", "qrnn.torchqrnn"]
    script = [str(folder / "script.py"), str(tmp_path / "model.pt")]
    done = subprocess.run(call + script, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "qrnn.torchqrnn (7, 2, 8) (2, 2, 8)\n"
    assert "Warning" not in done.stderr
    for wrong, said in ([], ""), (["--help"], "error: there is no --help\n"):
        done = subprocess.run(call + wrong, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.startswith("usage: ")
        assert done.stderr.endswith(said)


def test_processes_that_an_old_script_starts(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import multiprocessing
import sys
from torchqrnn.qrnn import QRNN

def work():
    print(QRNN.__module__)

if __name__ == "__main__":
    assert sys.path[0] != __file__.rpartition("/")[0]
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
"""
    )
    # -P: no folder is to be added to the path, so neither is the script's
    call = [sys.executable, "-P", "-m", "qrnn.torchqrnn", str(script)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "qrnn.torchqrnn\n", done.stderr


def test_a_model_pickled_whole_by_the_archived_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the pickle: the archived modules' names, and the attributes of its classes."""
    archived = {}
    for path in ("torchqrnn", "torchqrnn.qrnn"):
        archived[path] = ModuleType(path)
        monkeypatch.setitem(sys.modules, path, archived[path])
    for name in ("QRNNLayer", "QRNN"):
        stand_in = type(name, (nn.Module,), {"__module__": "torchqrnn.qrnn"})
        setattr(archived["torchqrnn.qrnn"], name, stand_in)
    layer, model = archived["torchqrnn.qrnn"].QRNNLayer(), archived["torchqrnn.qrnn"].QRNN()
    layer.linear = nn.Linear(6, 12).to(WIDE)
    for name, value in {
        "window": 2,
        "input_size": 3,
        "hidden_size": 4,
        "zoneout": 0,
        "save_prev_x": True,
        "prevX": randn(1, 2, 3),
        "output_gate": True,
        "use_cuda": True,
    }.items():
        setattr(layer, name, value)
    model.layers = nn.ModuleList([layer])
    for name, value in {
        "input_size": 3,
        "hidden_size": 4,
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.2,
        "bidirectional": False,
    }.items():
        setattr(model, name, value)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    torchqrnn.install()
    loaded = torch.load(file, weights_only=False)
    for path in (*archived, "torchqrnn.forget_mult"):
        del sys.modules[path]
    assert type(loaded) is QRNN and type(loaded.layers[0]) is QRNNLayer
    x = randn(5, 2, 3)
    output, hidden = loaded(x)
    weights = (value.numpy() for value in layer.linear.state_dict().values())
    want, last = one_layer(x.numpy(), *weights, 2, True, before=layer.prevX.numpy())
    close((output, hidden), (want, last[None]))
    assert "3, 4, window=2, zoneout=0" in repr(loaded)


def test_forget_mult_under_autocast_takes_any_type() -> None:
    f, x = torch.rand(4, 2, 3), torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        got = ForgetMult()(f, x.bfloat16())
    torch.testing.assert_close(got, ForgetMult()(f, x.bfloat16().float()), rtol=0, atol=1e-6)
    with pytest.raises(TypeError, match=r"x: expected dtype torch\.float32"):
        ForgetMult()(f, x.bfloat16())
