"""What only a GPU can show. `make gpu-check` runs this file there; elsewhere it is skipped.

Errors are measured against float64, and may be at most twice those of the same equations composed
of PyTorch operations in the same type. New memory holds NaN, so that what a kernel leaves out
shows.
"""

import importlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from examples import graphs
from torch import Tensor, nn
from torch.library import opcheck

from qrnn import QRNN, QRNNLayer, convolution, linear_recurrence
from qrnn.functional import pool
from qrnn.pooling import operator, reference
from qrnn.pooling.reference import DIRECTIONS, GATES

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("cupy", reason="no CuPy: the kernels cannot be compiled")
cuda = importlib.import_module("qrnn.pooling.cuda")

# cuBLAS is deterministic with this only, and the mode that fills new memory wants it to be
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
DEVICE = "cuda"
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def true_float32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def composition(
    gates: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | None,
    pooling: str,
    direction: str,
    zoneout: float,
) -> tuple[Tensor, ...]:
    """qrnn::pool of PyTorch's own operations, each in the type of the gates: h, h_n and c_n."""
    T, B, N = gates.shape
    D, G = DIRECTIONS[direction], GATES[pooling]
    blocks = gates.view(T, B, D, G, N // (D * G))
    z, f = blocks[:, :, :, 0].tanh(), blocks[:, :, :, 1].sigmoid()
    alive: Any = 1 - zoneout
    if seed is not None:
        alive = (reference.uniform(seed, z.numel()).view(z.shape) >= zoneout).to(z.dtype)
    update = alive * (1 - f)
    added = z * (blocks[:, :, :, 3].sigmoid() if pooling == "ifo" else update)
    outputs, last = [], []
    for d in range(D):
        backwards = direction == "reverse" or d == 1
        c = gates.new_zeros(B, N // (D * G)) if c0 is None else c0[d]
        column = {}
        for t in range(T - 1, -1, -1) if backwards else range(T):
            new = (1 - update[t, :, d]) * c + added[t, :, d]
            valid = torch.ones(B, dtype=torch.bool, device=gates.device)
            if lengths is not None:
                valid = t < lengths
            c = new.where(valid[:, None], c)
            column[t] = c * valid[:, None]
        outputs.append(torch.stack([column[t] for t in range(T)]) if T else z[:, :, d])
        last.append(c)
    h = torch.stack(outputs, 2)
    if pooling != "f":
        h = blocks[:, :, :, 2].sigmoid() * h
    h = h.flatten(2)
    return h, last_outputs(h, lengths, direction), torch.stack(last)


def last_outputs(h: Tensor, lengths: Tensor | None, direction: str) -> Tensor:
    """What h_n (D, B, H) is of h (T, B, D * H), zero where a sequence has no step."""
    T, B, _ = h.shape
    t = torch.arange(T, device=h.device)[:, None]
    n = torch.full((B,), T, device=h.device) if lengths is None else lengths
    ends = []
    for d, half in enumerate(h.chunk(DIRECTIONS[direction], 2)):
        is_last = t == (0 if direction == "reverse" or d == 1 else n - 1)
        ends.append(half.where((is_last & (n > 0))[..., None], 0).sum(0))
    return torch.stack(ends)


def with_gradients(function: Any, inputs: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    inputs = [v.detach().requires_grad_() for v in inputs]
    outputs = function(*inputs)
    cast = [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, inputs, cast)]


def error(got: Tensor, truth: Tensor) -> float:
    difference = got.detach().double() - truth.detach()
    return float(difference.norm() / truth.detach().norm().clamp(min=1e-30))


def assert_as_good(ours: list[Tensor], same_type: list[Tensor], truth: list[Tensor]) -> None:
    for n, (a, b, t) in enumerate(zip(ours, same_type, truth, strict=True)):
        assert a.shape == t.shape and a.dtype == b.dtype
        assert not a.isnan().any(), n
        bound = 1e-13 if a.dtype == torch.float64 else 2 * error(b, t)
        assert error(a, t) <= bound, (n, error(a, t), error(b, t))


def check_operator(
    dtype: torch.dtype, direction: str, pooling: str, T: int, B: int, H: int
) -> None:
    D, G = DIRECTIONS[direction], GATES[pooling]
    gates, c0 = 2 * random(T, B, D * G * H, dtype=dtype), random(D, B, H, dtype=dtype)
    grads = [random(T, B, D * H), random(D, B, H), random(D, B, H)]
    lengths = torch.tensor([T, 0, T // 2, min(T, 1), T][:B], device=DEVICE)
    seed = torch.tensor(2**62 + 12345, device=DEVICE)
    for case in ((None, None, 0.0), (lengths, seed, 0.4), (lengths, None, 0.3)):
        options = (*case[:2], pooling, direction, case[2])

        def own(g: Tensor, c: Tensor, o: Any = options) -> tuple[Tensor, ...]:
            h, _, *last = operator.pool(g, c, *o, True)
            return h, *last

        def composed(g: Tensor, c: Tensor, o: Any = options) -> tuple[Tensor, ...]:
            return composition(g, c, *o)

        ours = with_gradients(own, [gates, c0], grads)

        same_type, truth = (
            with_gradients(composed, [gates.to(t), c0.to(t)], grads) for t in (dtype, torch.float64)
        )
        # h_n has too few elements to compare errors by, and has to be of h to the bit
        assert torch.equal(ours[1], last_outputs(ours[0], case[0], direction))
        for results in (ours, same_type, truth):
            del results[1]
        assert_as_good(ours, same_type, truth)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("pooling", GATES)
@pytest.mark.parametrize("T", [0, 1, 7, 64, 300])  # 300: tiles have blocks of their own
def test_the_operator(dtype: torch.dtype, direction: str, pooling: str, T: int) -> None:
    check_operator(dtype, direction, pooling, T, B=5, H=40)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("pooling", GATES)
@pytest.mark.parametrize(("T", "relayed"), [(20, False), (300, True)])
def test_the_operator_on_pairs_of_channels(
    dtype: torch.dtype, direction: str, pooling: str, T: int, relayed: bool
) -> None:
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    most = cuda.PAIRS_FROM["pool_forward"]
    H = cuda.LANES * processors * (1 if relayed else most) // 2
    grid = cuda._Grid("pool_backward", [random(1, dtype=dtype)], T, 2, 1, H, None, False)
    assert grid.template.startswith("pair") and grid.plan.relayed == relayed
    check_operator(dtype, direction, pooling, T, B=2, H=H)


def test_padding_is_not_read_and_gives_zeros() -> None:
    T, B, H = 100, 3, 33
    lengths = torch.tensor([100, 0, 41], device=DEVICE)
    padding = (torch.arange(T, device=DEVICE)[:, None] >= lengths)[:, :, None]
    gates = random(T, B, 6 * H).masked_fill(padding, torch.nan).requires_grad_()
    h, h_n, c_n = pool("fo", gates, lengths=lengths, direction="both")
    (grad,) = torch.autograd.grad(h.sum() + h_n.sum() + c_n.sum(), gates)
    for v in (h, grad):
        assert v.isfinite().all() and not v.masked_select(padding.expand(v.shape)).any()


def test_wrong_lengths_on_the_device_reach_no_foreign_memory() -> None:
    gates, whole = random(9, 2, 12), torch.tensor([9, 0], device=DEVICE)
    wild = torch.tensor([10**12, -5], device=DEVICE)
    torch.testing.assert_close(
        pool("fo", gates, lengths=wild), pool("fo", gates, lengths=whole), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(0, 2, 3), (1, 2, 3), (70, 3, 50), (1700, 1, 7), (20, 2, None)])
def test_linear_recurrence(dtype: torch.dtype, reverse: bool, shape: tuple[Any, ...]) -> None:
    if shape[2] is None:  # enough for pairs of channels
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        shape = (*shape[:2], cuda.LANES * processors * cuda.PAIRS_FROM["recurrence"] // 2)
    T = shape[0]
    inputs = [random(*shape).sigmoid().to(dtype), random(*shape, dtype=dtype)]
    inputs.append(random(*shape[1:], dtype=dtype))
    grads = [random(*shape)]

    def loop(f: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor]:
        out = {}
        for t in range(T - 1, -1, -1) if reverse else range(T):
            h = out[t] = f[t] * h + x[t]
        return (torch.stack([out[t] for t in range(T)]) if T else x + 0 * (f + h),)

    def ours(f: Tensor, x: Tensor, h0: Tensor) -> tuple[Tensor]:
        return (linear_recurrence(f, x, h0, reverse=reverse),)

    same_type, truth = (
        with_gradients(loop, [v.to(t) for v in inputs], grads) for t in (dtype, torch.float64)
    )
    assert_as_good(with_gradients(ours, inputs, grads), same_type, truth)


def test_gradients_of_gradients() -> None:
    gates = torch.randn(4, 2, 9, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda g: pool("fo", g), (gates,))


def test_opcheck() -> None:
    gates, c0 = random(70, 2, 12).requires_grad_(), random(2, 2, 2).requires_grad_()
    lengths, seed = torch.tensor([70, 3], device=DEVICE), torch.tensor(7, device=DEVICE)
    arguments = (gates, c0, lengths, seed, "fo", "both", 0.3, True)
    opcheck(torch.ops.qrnn.pool.default, arguments)
    f = random(70, 2, 3).sigmoid().requires_grad_()
    opcheck(torch.ops.qrnn.linear_recurrence.default, (f, f.detach(), f[0].detach(), False))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "pooling": "ifo", "num_layers": 2},
        {"bidirectional": True, "dense": True, "num_layers": 3},
        {"bidirectional": True, "masked": False, "kernel_size": 4, "pooling": "f"},
        {"first_kernel_size": 6, "zoneout": 0.2, "batch_first": True},
    ],
)
def test_the_module_is_that_of_the_cpu(options: dict[str, Any]) -> None:
    on_cpu = QRNN(12, 20, dtype=torch.float64, **options).eval()
    on_gpu = QRNN(12, 20, dtype=torch.float64, device=DEVICE, **options).eval()
    on_gpu.load_state_dict(on_cpu.state_dict())
    x = torch.randn(130, 4, 12, dtype=torch.float64)
    if on_cpu.batch_first:
        x = x.transpose(0, 1)
    steps = x.shape[1 if on_cpu.batch_first else 0]
    lengths = torch.tensor([steps, 1, 77, 128])
    for own_lengths in (None, lengths):
        expected, (h, c) = on_cpu(x, lengths=own_lengths)
        got, (h_gpu, c_gpu) = on_gpu(x.to(DEVICE), lengths=own_lengths)
        for a, b in ((got, expected), (h_gpu, h), (c_gpu, c)):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-11, atol=1e-11)
    expected.sum().backward()
    got.sum().backward()
    for a, b in zip(on_gpu.parameters(), on_cpu.parameters(), strict=True):
        torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=1e-10, atol=1e-10)


def test_streaming_equals_one_run() -> None:
    rnn = QRNN(8, 16, 2, kernel_size=3, device=DEVICE, dtype=torch.float64)
    x = random(90, 3, 8, dtype=torch.float64)
    whole, _ = rnn(x, rnn.initial_state(3))
    state, pieces = rnn.initial_state(3), []
    for piece in x.split([1, 1, 30, 58]):
        output, state = rnn(piece, state)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("few", "many"), [(1 << 60, 1 << 60), (0, 1 << 60), (0, 1)])
def test_the_convolution_is_that_of_the_host(
    bidirectional: bool, few: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "FEW_WINDOWS", few)
    monkeypatch.setattr(convolution, "MANY_WINDOWS", many)
    layer = QRNNLayer(24, 16, kernel_size=3, bidirectional=bidirectional, dtype=torch.float64)
    x = torch.randn(256, 4, 24, dtype=torch.float64)
    results = []
    for device in ("cpu", DEVICE):
        layer, x = layer.to(device), x.detach().to(device).requires_grad_()
        gates, _ = layer.convolve(x)
        grads = torch.autograd.grad(gates.sin().sum(), (x, *layer.parameters()))
        results.append([value.detach().cpu() for value in (gates, *grads)])
    for host, device_value in zip(*results, strict=True):
        torch.testing.assert_close(device_value, host, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("k", "before", "after"), [(1, 0, 0), (2, 1, 0), (6, 5, 5)])
@pytest.mark.parametrize("I", [5, 320])
def test_the_windows(dtype: torch.dtype, k: int, before: int, after: int, I: int) -> None:
    x, sizes = random(100, 7, I, dtype=dtype), (k, before, after)
    expected = reference.windows(x, *sizes)
    assert torch.equal(operator.windows(x, *sizes), expected)
    grads = [random(*expected.shape, dtype=dtype)]
    same, wide = (
        with_gradients(lambda x: [reference.windows(x, *sizes)], [own], grads)
        for own in (x, x.double())
    )
    assert_as_good([operator.windows_backward(grads[0], *sizes)], same[1:], wide[1:])


def test_the_convolution_can_be_differentiated_twice() -> None:
    layer = QRNNLayer(3, 2, kernel_size=3, device=DEVICE, dtype=torch.float64)
    x = random(5, 2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: layer.convolve(x)[0].sin(), x)


def test_zoneout_keeps_cells_at_its_rate_and_a_seed_fixes_it() -> None:
    gates = random(2, 64, 2 * 500)
    torch.cuda.manual_seed(3)
    h, *_ = pool("f", gates, zoneout=0.3, training=True)
    kept = (h[1] == h[0]).float().mean()
    assert abs(kept - 0.3) < 0.02
    torch.cuda.manual_seed(3)
    again, *_ = pool("f", gates, zoneout=0.3, training=True)
    assert torch.equal(h, again)


def test_autocast_reaches_the_kernel_without_casts() -> None:
    oracle.check_autocast(DEVICE)


class TestStreams:
    """The kernels must run where torch would: a wrong stream reads what is not there yet."""

    def test_forward_and_backward_on_a_side_stream(self) -> None:
        rnn = QRNN(16, 32, 2, device=DEVICE)
        x = random(200, 4, 16)
        expected, _ = rnn(x)
        (grad,) = torch.autograd.grad(expected.square().sum(), rnn.layers[0].weight)
        late = torch.zeros_like(x)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            late.copy_(x)
            got, _ = rnn(late)
            got.register_hook(lambda g: (torch.cuda._sleep(50_000_000), g.clone())[1])
            (late_grad,) = torch.autograd.grad(got.square().sum(), rnn.layers[0].weight)
        stream.synchronize()
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(late_grad, grad)

    def test_threads_with_streams_of_their_own(self) -> None:
        gates = [random(300, 4, 3 * 64) for _ in range(4)]
        expected = [pool("fo", g)[0] for g in gates]
        got: dict[int, Tensor] = {}
        torch.cuda.synchronize()

        def work(n: int) -> None:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(20):
                    torch.cuda._sleep(100_000)
                    got[n] = pool("fo", gates[n].clone())[0]
                torch.cuda.current_stream().synchronize()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for n in range(4):
            torch.testing.assert_close(got[n], expected[n], rtol=0, atol=0)

    def test_nothing_waits_for_the_gpu(self) -> None:
        rnn = QRNN(16, 32, 2, bidirectional=True, zoneout=0.1, device=DEVICE)
        x, lengths = random(100, 4, 16), torch.tensor([100, 3, 50, 1], device=DEVICE)
        rnn(x, lengths=lengths)[0].sum().backward()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            rnn(x, lengths=lengths)[0].sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_graph_capture_of_a_training_step(self) -> None:
        rnn = QRNN(16, 32, 2, zoneout=0.2, device=DEVICE)
        x = random(200, 4, 16)

        def step() -> tuple[Tensor, Tensor]:
            output, _ = rnn(x)
            return output, torch.autograd.grad(output.square().sum(), rnn.layers[0].weight)[0]

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        results = []
        for _ in range(2):
            graph.replay()
            results.append([v.clone() for v in captured])
        assert not torch.equal(results[0][0], results[1][0])  # zoneout is drawn anew
        rnn.eval()
        expected = step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for _ in range(2):
            graph.replay()
            torch.testing.assert_close(captured, expected)

    def test_torch_makes_graphs_of_a_module(self) -> None:
        rnn = QRNN(16, 32, 2, device=DEVICE)
        first, x = (random(50, 4, 16).requires_grad_() for _ in range(2))

        def step() -> tuple[Tensor, ...]:
            output, (_, c_n) = rnn(x)
            loss = output.square().sum() + c_n.sum()
            # no graph may live on: torch captures none whose leaves another stream has seen
            return output.detach(), *torch.autograd.grad(loss, (x, *rnn.parameters()))

        expected = step()
        torch.cuda.make_graphed_callables(rnn, (first,))  # changes it in place
        torch.testing.assert_close(step(), expected)

    def test_the_example(self) -> None:
        step, *_ = graphs.make(DEVICE)
        expected = [step() for _ in range(6)]
        step, *_ = graphs.make(DEVICE)
        replay = graphs.captured(step, warm_up=3)
        torch.testing.assert_close([replay().clone() for _ in range(3)], expected[3:])


def test_compile_with_gradients() -> None:
    rnn = QRNN(16, 32, 2, bidirectional=True, device=DEVICE)
    compiled = torch.compile(rnn, fullgraph=True)
    x = random(20, 4, 16)
    expected, got = rnn(x)[0], compiled(x)[0]
    torch.testing.assert_close(got, expected)
    grads = [
        torch.autograd.grad(v.square().sum(), rnn.layers[0].weight)[0] for v in (got, expected)
    ]
    torch.testing.assert_close(*grads)


class TestLarge:
    def test_more_elements_than_32_bits_count(self) -> None:
        H = 2**31 + 1  # odd: pairs of channels would be half as many
        if torch.cuda.mem_get_info()[0] < 20 * H:
            pytest.skip("not enough GPU memory")
        gates = torch.empty(1, 1, 2 * H, dtype=torch.float16, device=DEVICE).normal_()
        h, h_n, c_n = pool("f", gates)
        assert torch.equal(h_n, h) and torch.equal(c_n, h)
        options = ("f", "forward", 0.0)
        grad, _ = cuda.pool_backward(gates, None, None, None, h, h, None, None, *options)
        for part in (slice(0, 1000), slice(H - 1000, H)):
            own, own_h = gates.view(2, H)[:, part].reshape(1, 1, -1), h[..., part]
            expected, *_ = reference.pool(own, None, None, None, *options, False)
            torch.testing.assert_close(own_h, expected, rtol=2e-3, atol=2e-3)
            expected, _ = reference.pool_backward(
                own, None, None, None, own_h, own_h, None, None, *options
            )
            own_grad = grad.view(2, H)[:, part].reshape(1, 1, -1)
            torch.testing.assert_close(own_grad, expected, rtol=2e-3, atol=2e-3)

    def test_more_windows_than_32_bits_count(self) -> None:
        I = 2**30 + 1  # odd: 16 bytes a lane would be fewer
        if torch.cuda.mem_get_info()[0] < 20 * I:
            pytest.skip("not enough GPU memory")
        x = random(1, 1, I, dtype=torch.float16)
        out = operator.windows(x, 3, 1, 1).view(3, I)
        assert torch.equal(out[1], x[0, 0]) and not out[0].any() and not out[2].any()
        assert torch.equal(operator.windows_backward(out.view(1, 1, -1), 3, 1, 1), x)

    def test_a_very_long_sequence_equals_its_pieces(self) -> None:
        T = 1_000_000
        gates = random(T, 1, 2 * 3, dtype=torch.float64)
        whole, _, c_n = pool("f", gates)
        c, pieces = None, []
        for piece in gates.split(300_000):
            h, _, c = pool("f", piece, c)
            pieces.append(h)
        torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(c, c_n, rtol=1e-11, atol=1e-11)


class TestSeveralDevices:
    @pytest.fixture(autouse=True)
    def two(self) -> None:
        if torch.cuda.device_count() < 2:
            pytest.skip("one GPU only")

    def test_tensors_decide_on_the_device(self) -> None:
        gates = random(100, 2, 12)
        expected = pool("fo", gates)[0]
        other = gates.to("cuda:1").requires_grad_()
        got = pool("fo", other)[0]  # while cuda:0 is current
        got.sum().backward()
        assert got.device == other.grad.device == torch.device("cuda:1")
        torch.testing.assert_close(got.cpu(), expected.cpu(), rtol=0, atol=0)

    def test_data_parallel(self) -> None:
        rnn = QRNN(16, 32, batch_first=True, device="cuda:0")
        x = random(6, 50, 16)
        expected = rnn(x)[0]
        torch.testing.assert_close(nn.DataParallel(rnn)(x)[0], expected)


def test_distributed_data_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")  # there may be no network
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        rnn = QRNN(16, 32, 2, device=DEVICE)
        x = random(50, 4, 16)
        (expected,) = torch.autograd.grad(rnn(x)[0].sum(), rnn.layers[0].weight)
        parallel = nn.parallel.DistributedDataParallel(rnn)
        parallel(x)[0].sum().backward()
        torch.testing.assert_close(rnn.layers[0].weight.grad, expected)
    finally:
        torch.distributed.destroy_process_group()


SANITIZED = """
import sys
import torch
from qrnn.functional import linear_recurrence, pool
from qrnn.pooling import cuda, operator
cuda.PAIRS_FROM = dict.fromkeys(cuda.PAIRS_FROM, 0)  # also where they do not fill the GPU
whole = sys.argv[1] == "memcheck"
for dtype, H in ((torch.float32, 43), (torch.bfloat16, 44)) if whole else ((torch.float32, 43),):
    for T in (5, 200) if whole else (200,):
        for pooling, G in (("f", 2), ("fo", 3), ("ifo", 4)) if whole else (("fo", 3),):
            lengths = torch.tensor([T, 0, T // 2], device="cuda")
            gates = torch.randn(T, 3, 2 * G * H, device="cuda", dtype=dtype, requires_grad=True)
            c0 = torch.randn(2, 3, H, device="cuda", dtype=dtype)
            options = {"lengths": lengths, "direction": "both", "zoneout": 0.2, "training": True}
            h, h_n, c_n = pool(pooling, gates, c0, **options)
            (h.sum() + h_n.sum() + c_n.sum()).backward()
        f = torch.rand(T, 3, H, device="cuda", dtype=dtype, requires_grad=True)
        linear_recurrence(f, f, f[0].clone()).sum().backward()  # memory that ends with h0
        for inputs in (40, 43):  # 16 bytes a lane, and one element
            x = torch.randn(T, 3, inputs, device="cuda", dtype=dtype)
            operator.windows_backward(operator.windows(x, 3, 2, 1), 3, 2, 1)
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer")
    # libraries try calls to find out what there is: such errors are none
    options = ["--tool", tool, "--error-exitcode", "17"]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]
    # `timeout` ends what the sanitizer has started as well
    command = ["timeout", "-s", "KILL", "200", sanitizer, *options, sys.executable, "-c", SANITIZED]
    command.append(tool)
    # its cache hides where torch's memory ends
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    text = run.stdout + run.stderr
    if "Device not supported" in text:
        pytest.skip("compute-sanitizer does not support this device")
    assert run.returncode == 0, text[-3000:]
