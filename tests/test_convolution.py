"""Many steps take another way to the same pre-activations: in float32 on a CPU oneDNN's
convolution, and in backward its gradients or products without windows."""

import weakref
from typing import Any

import pytest
import torch
from oracle import WIDE, close, equal
from torch import Tensor
from torch.nn import functional as F

from qrnn import QRNN, QRNNLayer, convolution

ROWS = 2200  # many, and also so many that a piece of them is large enough for oneDNN


@pytest.fixture(autouse=True, params=[False, True])
def onednn(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(convolution, "ONEDNN_FROM", 0 if request.param else torch.inf)
    monkeypatch.setattr(convolution, "PIECE", 1400)  # less than ROWS
    return bool(request.param)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the images that conv2d was given."""
    taken, original = [], F.conv2d

    def conv2d(image: Tensor, *arguments: Any) -> Tensor:
        taken.append(tuple(image.shape))
        return original(image, *arguments)

    monkeypatch.setattr(F, "conv2d", conv2d)
    return taken


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("kernel_size", "sizes"), [(2, (24, 8)), (3, (20, 7)), (3, (3, 9)), (6, (22, 8))]
)
def test_equals_few_rows(
    kernel_size: int,
    sizes: tuple[int, int],
    masked: bool,
    bidirectional: bool,
    taken: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"kernel_size": kernel_size, "masked": masked, "bidirectional": bidirectional}
    layer = QRNNLayer(*sizes, **options)
    for T, B in ((ROWS, 1), (64, ROWS // 64 + 1), (2, ROWS)):
        x = torch.randn(T, B, sizes[0], requires_grad=True)
        lengths = torch.randint(0, T + 1, (B,))
        grad = torch.randn(T, B, layer.directions * sizes[1])

        def run(x: Tensor = x, lengths: Tensor = lengths, grad: Tensor = grad) -> Any:
            output, after = layer(x, None, lengths)
            leaves = (x, *layer.parameters())
            return output.detach(), *after, *torch.autograd.grad(output, leaves, grad)

        with monkeypatch.context() as context:
            context.setattr(convolution, "MANY_ROWS", 10**9)
            want = run()
            assert not taken
        close(run(), want, 1e-4)
        with torch.no_grad():
            gates, _ = layer.convolve(x)
            close(layer(x, None, lengths)[0], want[0], 1e-5)
        assert len(taken) == (3 if sizes[0] >= convolution.LEAST_CHANNELS else 0)
        assert gates.is_contiguous()
        taken.clear()


def test_batched_gradients() -> None:
    layer = QRNNLayer(24, 8, kernel_size=2)
    x = torch.randn(ROWS // 4, 4, 24, requires_grad=True)
    leaves = (x, *layer.parameters())
    output, _ = layer(x)
    v = torch.randn(2, *output.shape)
    found = torch.autograd.grad(output, leaves, v, retain_graph=True, is_grads_batched=True)
    for n in range(2):
        want = torch.autograd.grad(output, leaves, v[n], retain_graph=True)
        close([g[n] for g in found], want, 1e-4)


@pytest.mark.parametrize(("I", "T", "B", "many"), [(1024, 128, 128, True), (1024, 127, 128, False)])
def test_elsewhere_than_on_a_cpu_the_windows_count(I: int, T: int, B: int, many: bool) -> None:
    layer = QRNNLayer(I, 8, kernel_size=3, device="meta")
    gates, _ = layer.convolve(torch.empty(T, B, I, device="meta"))
    assert (type(gates.grad_fn).__name__ == "_ConvolutionBackward") == many


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
def test_is_onednn(onednn: bool) -> None:
    x = torch.randn(ROWS, 1, 24, requires_grad=True)
    with torch.profiler.profile() as profile:
        QRNNLayer(24, 8)(x)[0].sum().backward()
    ran = [event.key for event in profile.key_averages()]
    assert "aten::mkldnn_convolution" in ran
    assert ("aten::convolution_backward" in ran) == onednn
    assert not [name for name in ran if "thnn" in name or "slow_conv" in name]


def test_one_gradient_of_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "PIECE", 100)
    layer, most = QRNNLayer(24, 8, kernel_size=3), 0
    made: list[weakref.ref[Tensor]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None):
            nonlocal most
            out = function(*args, **(kwargs or {}))
            results = out if isinstance(out, tuple) else (out,)
            made.extend(
                weakref.ref(v) for v in results if isinstance(v, Tensor) and v.numel() == 24 * 72
            )
            most = max(most, sum(v() is not None for v in made))
            return out

    gates, _ = layer.convolve(torch.randn(ROWS, 1, 24))
    with Watch():
        gates.sum().backward()
    assert most < 8


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_under_autocast_are_those_without(autocast: bool) -> None:
    layer, x = QRNNLayer(24, 8), torch.randn(ROWS, 1, 24, requires_grad=True)
    gates, _ = layer.convolve(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (found,) = torch.autograd.grad(gates, x, torch.ones_like(gates))
    weight = layer.weight.detach().sum(0).view(2, 24).double()
    assert (found[1:-1].double() - weight.sum(0)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("capabilities", "least"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_vp2intersect": True}, 0),
        ({"cpu_name": "AMD EPYC", "avx512_vp2intersect": False}, 5 << 29),
        ({"cpu_name": "Intel Xeon", "avx512_vp2intersect": True}, torch.inf),
        ({"architecture": "aarch64"}, torch.inf),
    ],
)
def test_which_processors_prefer_onednn(
    capabilities: dict[str, Any], least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert convolution._onednn_from() == least


@pytest.mark.parametrize("more", [0, 1])
def test_only_large_products_prefer_onednn(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "ONEDNN_FROM", ROWS * 24 * 48 + more)
    called: list[int] = []
    monkeypatch.setattr(convolution, "_by_onednn", lambda *_: called.append(1) or (None, None))
    QRNNLayer(24, 8)(torch.randn(ROWS, 1, 24))[0].sum().backward()
    assert len(called) == 1 - more


@pytest.mark.parametrize("bidirectional", [False, True])
def test_second_gradients(bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QRNNLayer(24, 8, bidirectional=bidirectional, kernel_size=3)
    x = torch.randn(ROWS // 4, 4, 24, requires_grad=True)
    leaves = (x, *layer.parameters())

    def run() -> tuple[Tensor, ...]:
        gates, _ = layer.convolve(x)
        first = torch.autograd.grad(gates.sin().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    found = run()
    monkeypatch.setattr(convolution, "MANY_ROWS", 10**9)
    for a, b in zip(found, run(), strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()


def test_no_windows_are_kept_nor_made_in_backward(onednn: bool) -> None:
    k, T, B, I = 4, 64, 16, 24
    layer = QRNNLayer(I, 8, kernel_size=k)
    kept = []
    x = torch.randn(T, B, I, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        gates, _ = layer.convolve(x)
    assert max(kept) == T * B * I
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None):
            out = function(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, Tensor) else 0)
            return out

    with Watch():
        gates.sum().backward()
    assert max(sizes) == (T + k - 1 if onednn else T) * B * I


@pytest.mark.parametrize("bidirectional", [False, True])
def test_under_autocast(bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QRNNLayer(4, 3, kernel_size=3, bidirectional=bidirectional)
    x = torch.randn(convolution.MANY_ROWS // 8, 8, 4, requires_grad=True)
    leaves = (x, *layer.parameters())

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            gates, same = layer.convolve(x)
        assert gates.dtype == torch.bfloat16 and same is x
        return gates.detach().float(), *torch.autograd.grad(gates.float().sin().sum(), leaves)

    found = run()
    monkeypatch.setattr(convolution, "MANY_ROWS", 10**9)
    for a, b in zip(found, run(), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()  # eight bits


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "no bias"])
def test_gradients_of_some(frozen: str) -> None:
    layer = QRNNLayer(24, 8, bias=frozen != "no bias")
    x = torch.randn(ROWS, 1, 24, requires_grad=frozen != "x")
    if frozen in ("weight", "bias"):
        layer.get_parameter(frozen).requires_grad_(False)
    layer(x)[0].sum().backward()
    leaves = {"x": x, **dict(layer.named_parameters())}
    assert {n for n, p in leaves.items() if p.grad is not None} == leaves.keys() - {frozen}


def test_pieces_of_either_kind(taken: list[tuple[int, ...]]) -> None:
    rnn = QRNN(24, 24, 2, kernel_size=3)
    x = torch.randn(2 * ROWS, 1, 24)
    with torch.no_grad():
        whole, last = rnn(x, rnn.initial_state(1))
        assert len(taken) == 2
        outputs, state = [], rnn.initial_state(1)
        for piece in x.split([7, 2 * ROWS - 14, 7]):
            output, state = rnn(piece, state)
            outputs.append(output)
    assert len(taken) == 4
    close(torch.cat(outputs), whole, 1e-5)
    close(state[:2], last[:2], 1e-5)
    equal(state.window[0], last.window[0])


def test_is_not_for_other_calls(taken: list[tuple[int, ...]]) -> None:
    layer, x = QRNNLayer(24, 8, kernel_size=2), torch.randn(ROWS, 1, 24)
    with torch.no_grad():
        layer(x[ROWS - convolution.MANY_ROWS + 1 :])
        QRNNLayer(24, 5)(x)
        QRNNLayer(18, 8)(torch.randn(1100, 1, 18))
        QRNNLayer(24, 8, kernel_size=1)(x)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        for dtype in (torch.float16, torch.bfloat16, WIDE):
            QRNNLayer(24, 8, dtype=dtype)(x.to(dtype))
        torch.compile(layer, fullgraph=True, backend="eager")(x)
        torch.export.export(layer, (x,))
    assert not taken
    with torch.inference_mode():
        layer(x)
    layer(x)
    assert taken == [(1, 24, ROWS + 1, 1)] * 2
