"""pooling.cu without a GPU: compiled for the host, launched by cuda.py's own code, checked against
the reference; and, where there is an nvcc, compiled for the GPUs that it is meant for.

What only a GPU can show (streams, graphs, races, speed) is not tested here.
"""

import ctypes
import importlib
import itertools
import math
import re
import shutil
import subprocess
import sys
import types
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from benchmark_layers import composed
from torch.utils.checkpoint import checkpoint

from qrnn import QRNN, QRNNLayer, convolution
from qrnn.pooling import operator, reference

SOURCE = Path(reference.__file__).with_name("pooling.cu")
HOST = Path(__file__).with_name("host.cpp")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SIZES = {"float": 4, "double": 8, "half16": 2, "bfloat16": 2}
PAIRED = (torch.float16, torch.bfloat16)
WAYS = {  # multiprocessors, INTERVAL_STEPS, FEWEST_TILES, MOST_ROWS
    # a block for each tile, all of the tests' tiles in one interval
    "relay": (132, 12_000, 4, 65_535),
    # the same with a few tiles in each, and a few in a layer of the grid
    "intervals": (132, 700, 4, 3),
    # a block walks over all tiles
    "walk": (1, 12_000, 1 << 30, 65_535),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The kernels as a shared library that aborts on undefined behaviour."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile pooling.cu for the host")
    target = tmp_path_factory.mktemp("host") / "pooling.so"
    command = [compiler, "-std=c++17", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover"]
    command += ["-shared", "-fPIC", f"-I{SOURCE.parent}", str(HOST), "-o", str(target)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode and "_Float16" in run.stderr:
        pytest.skip("this g++ has no 16-bit floating point")
    assert run.returncode == 0, run.stderr
    return ctypes.CDLL(str(target))


@pytest.fixture
def cuda(library, monkeypatch):
    """qrnn.pooling.cuda, whose launches run on the host; `cuda.launched` lists them."""
    fake = types.ModuleType("cupy")
    fake.__version__ = "13.0.0"  # the oldest that will do
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.delitem(sys.modules, "qrnn.pooling.cuda", raising=False)
    module = importlib.import_module("qrnn.pooling.cuda")
    module.launched, module.launch_on_gpu = [], module._launch

    def launch(kernel, template, like, grid, warps, arguments):
        kernel = f"{kernel}<{template}>"
        module.launched.append((kernel, grid, warps))
        values = [a if isinstance(a, np.ndarray) else np.array([a]) for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        sizes = (*grid, module.LANES, warps)
        assert library.launch(kernel.encode(), *sizes, pointers) == 0, kernel

    def use(how):
        processors, module.INTERVAL_STEPS, module.FEWEST_TILES, module.MOST_ROWS = WAYS[how]
        module._multiprocessors = lambda device: processors
        module._plan.cache_clear()

    monkeypatch.setattr(module, "_launch", launch)
    # also where a GPU would not be full
    monkeypatch.setattr(module, "PAIRS_FROM", dict.fromkeys(module.PAIRS_FROM, 0))
    module.use = use
    use("relay")
    yield module
    sys.modules.pop("qrnn.pooling.cuda", None)


@pytest.fixture(autouse=True)
def poison():
    """New memory holds NaN, so that what a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def agree(got, expected, dtype):
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        error = (a.double() - b.double()).abs() / (1 + b.double().abs())
        assert not error.numel() or error.max() <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("dtype", "H"),  # more columns than a block has threads
    [(dtype, 43) for dtype in TOLERANCE] + [(dtype, 44) for dtype in PAIRED],
)
@pytest.mark.parametrize("direction", reference.DIRECTIONS)
@pytest.mark.parametrize("pooling", reference.GATES)
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("T", [0, 1, 7, 200])
def test_the_kernels_are_the_reference(cuda, dtype, direction, pooling, with_lengths, T, H):
    B = 3
    D, G = reference.DIRECTIONS[direction], reference.GATES[pooling]
    gates = (2 * torch.randn(T, B, D * G * H)).to(dtype)
    c0, lengths = torch.randn(D, B, H).to(dtype), None
    grads = [torch.randn(s).to(dtype) for s in ((T, B, D * H), (D, B, H), (D, B, H))]
    if with_lengths:
        lengths = torch.tensor([[T, 9], [0, 9], [T // 2, 9]])[:, 0]  # not contiguous
        padding = (torch.arange(T)[:, None] >= lengths)[:, :, None]
        gates, grads[0] = (v.masked_fill(padding, torch.nan) for v in (gates, grads[0]))
    seed = torch.tensor(2**62 + 12345)
    cases = ((None, None, 0.0), (c0, None, 0.3), (c0, seed, 0.4))
    for (start, own_seed, rate), way in zip(cases, WAYS, strict=True):
        cuda.use(way)
        options = (pooling, direction, rate)
        inputs = (gates, start, lengths, own_seed)
        expected = reference.pool(*inputs, *options, True)
        agree(cuda.pool(*inputs, *options, True), expected, dtype)
        h, _, *last = cuda.pool(*inputs, *options, False)
        agree((h, *last), (expected[0], *expected[2:]), dtype)
        cells = expected[0] if pooling == "f" else expected[1]
        for given in (grads, [grads[0], None, None], [None, grads[1], None]):
            backward = (*inputs, cells, *given, *options)
            agree(cuda.pool_backward(*backward), reference.pool_backward(*backward), dtype)
    relayed = ["true>" in kernel.rsplit(",")[-1] for kernel, *_ in cuda.launched]
    assert relayed == ([True] * 10 + [False] * 5 if T == 200 else [False] * 15)
    assert all(("pair<" in kernel) == (H == 44) for kernel, *_ in cuda.launched)


@pytest.mark.parametrize("T", [0, 1, 9, 300])
@pytest.mark.parametrize("shift", [1, 5, -1, -4])
@pytest.mark.parametrize("pooling", reference.GATES)
def test_halves_that_lie_apart(cuda, pooling, shift, T):
    dtype = torch.float32 if shift % 2 else torch.bfloat16
    oracle.check_shift(cuda, pooling, shift, T, dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("T", [0, 1, 300])
@pytest.mark.parametrize(
    ("dtype", "H"),
    [(dtype, 79) for dtype in TOLERANCE] + [(dtype, 80) for dtype in PAIRED],
)
def test_the_linear_recurrence(cuda, dtype, H, T, reverse):
    f, x, h0 = (v.to(dtype) for v in (torch.rand(T, 2, H), torch.randn(T, 2, H), torch.randn(2, H)))
    expected = reference.linear_recurrence(f, x, h0, reverse)
    backward = (torch.randn(T, 2, H).to(dtype), f, h0, expected, reverse)
    gradients = reference.linear_recurrence_backward(*backward)
    for way in WAYS:
        cuda.use(way)
        agree([cuda.linear_recurrence(f, x, h0, reverse)], [expected], dtype)
        agree(cuda.linear_recurrence_backward(*backward), gradients, dtype)
    assert sum("true>" in kernel for kernel, *_ in cuda.launched) == (4 if T == 300 else 0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("T", [0, 1, 9])
@pytest.mark.parametrize(("k", "before", "after"), [(1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 3, 3)])
@pytest.mark.parametrize("I", [5, 48])
def test_the_windows(cuda, dtype, T, k, before, after, I):
    B = 7
    x = torch.randn(T, B, I).to(dtype)
    expected = reference.windows(x, k, before, after)
    assert torch.equal(cuda.windows(x, k, before, after), expected)
    grad = torch.randn_like(expected)
    expected = reference.windows_backward(grad, k, before, after)
    agree([cuda.windows_backward(grad, k, before, after)], [expected], dtype)
    each = 16 // dtype.itemsize if I == 48 else 1
    assert all(f", {each}>" in kernel for kernel, *_ in cuda.launched)


def test_windows_of_memory_that_is_not_aligned(cuda):
    x = torch.randn(9 * 48 + 2)[2:].view(9, 1, 48)  # 8 bytes off
    assert torch.equal(cuda.windows(x, 2, 1, 0), reference.windows(x, 2, 1, 0))
    flipped = torch.randn(48, 1, 9).transpose(0, 2)
    assert torch.equal(cuda.windows(flipped, 2, 1, 0), reference.windows(flipped, 2, 1, 0))
    assert [kernel for kernel, *_ in cuda.launched] == ["windows<float, 1>", "windows<float, 4>"]


@pytest.fixture
def on_host(cuda, monkeypatch):
    """As `cuda`, and what the layer runs: tensors on the host are taken for a GPU's."""
    monkeypatch.setattr(operator, "_backend", lambda device: cuda)
    monkeypatch.setattr(convolution, "_has_own_backward", lambda *_: True)
    monkeypatch.setattr(convolution, "_is_large", lambda *_: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    return cuda


@pytest.mark.parametrize("few", [0, convolution.FEW_WINDOWS])
def test_gradients_of_the_windows(on_host, monkeypatch, few):
    monkeypatch.setattr(convolution, "FEW_WINDOWS", few)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    for kernel_size, options in ((2, {}), (4, {"bidirectional": True}), (3, {"masked": False})):
        layer = QRNNLayer(3, 2, kernel_size=kernel_size, dtype=torch.float64, **options)
        leaves = (x, *layer.parameters())

        def gates(x, weight, bias, layer=layer):
            parameters = {"weight": weight, "bias": bias}
            return torch.func.functional_call(layer, parameters, x, strict=True)[0]

        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(gates, leaves, check_batched_grad=True)
    kernels = {kernel for kernel, *_ in on_host.launched if kernel.startswith("windows")}
    assert kernels == {"windows<double, 1>", "windows_backward<double, 1>"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_under_autocast(on_host, dtype):
    layer = QRNNLayer(8, 6, kernel_size=3)
    x = torch.randn(20, 3, 8).to(dtype).requires_grad_()
    leaves = (x, *layer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(x)
    assert output.dtype == torch.bfloat16
    found = torch.autograd.grad(output.float().sin().sum(), leaves)
    wide, _ = layer(x.float())
    for a, b, leaf in zip(
        found, torch.autograd.grad(wide.sin().sum(), leaves), leaves, strict=True
    ):
        assert a.dtype == leaf.dtype
        assert (a - b).float().norm() < 0.02 * b.float().norm()  # eight bits


def test_what_is_frozen_costs_no_kernel(on_host, monkeypatch):
    layer, x = QRNNLayer(3, 2), torch.randn(5, 2, 3, requires_grad=True)

    def run():
        on_host.launched.clear()
        layer(x)[0].sum().backward()
        return [kernel.partition("<")[0] for kernel, *_ in on_host.launched]

    forward = ["windows", "pool_forward"]
    for few in (0, convolution.FEW_WINDOWS):  # of which backward makes no windows, but keeps them
        monkeypatch.setattr(convolution, "FEW_WINDOWS", few)
        again = [] if few else ["windows"]
        assert run() == [*forward, "pool_backward", "windows_backward", *again]
        layer.weight.requires_grad_(False)
        assert run() == [*forward, "pool_backward", "windows_backward"]
        layer.weight.requires_grad_(True)
        x.requires_grad_(False)
        assert run() == [*forward, "pool_backward", *again]
        x.requires_grad_(True)


def test_a_layer_is_few_kernels(on_host):
    """In eager torch a short sequence takes as long as it has kernels."""
    layer, x = QRNNLayer(3, 2), torch.randn(5, 2, 3, requires_grad=True)
    torch.use_deterministic_algorithms(False)  # which would fill all new memory

    def run(backward):
        on_host.launched.clear()
        with torch.profiler.profile() as profiler, torch.set_grad_enabled(backward):
            output, (h_n, _) = layer(x)
            if backward:
                torch.autograd.grad([output, h_n], (x, *layer.parameters()), [output, h_n])
        calculating = {"addmm", "mm", "sum", "add", "add_", "mul", "copy_", "cat", "zero_", "index"}
        called = [event.name.removeprefix("aten::") for event in profiler.events()]
        own = [kernel.partition("<")[0] for kernel, *_ in on_host.launched]
        return own, sorted(name for name in called if name in calculating)

    # copy_: the bias into the product, which on a GPU adds it by itself
    assert run(backward=False) == (["windows", "pool_forward"], ["addmm", "copy_"])
    own = ["windows", "pool_forward", "pool_backward", "windows_backward"]
    assert run(backward=True) == (own, ["addmm", "copy_", "mm", "mm", "sum"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("few", [0, convolution.FEW_WINDOWS])
def test_a_layer_holds_less_memory_than_torchqrnns(on_host, monkeypatch, dtype, few):
    monkeypatch.setattr(convolution, "FEW_WINDOWS", few)
    torch.use_deterministic_algorithms(False)
    layer = QRNNLayer(32, 32, dtype=dtype)
    x, grad = torch.randn(2, 200, 20, 32).to(dtype)
    leaves = (x.requires_grad_(), *layer.parameters())

    def peak(function):
        """As a multiple of the output's size, all that forward and backward hold at once."""
        with torch.profiler.profile(profile_memory=True) as profiler:
            output = function(x)
            torch.autograd.grad(output, leaves, grad)
        changes = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        changes.sort(key=lambda event: event.start_ns())
        return max(itertools.accumulate(event.nbytes() for event in changes)) / output.nbytes

    ours, torchqrnns = peak(lambda x: layer(x)[0]), peak(composed(layer))
    # the output, gates and their gradient, and cells; the weight's gradient comes on top
    assert 8 < ours < (10 if few else 8) + 0.5 < torchqrnns


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 2, 5])
def test_the_layer(on_host, monkeypatch, kernel_size, masked, bidirectional):
    layer = QRNNLayer(8, 6, bidirectional=bidirectional, kernel_size=kernel_size, masked=masked)
    x, lengths = torch.randn(20, 3, 8, requires_grad=True), torch.tensor([20, 0, 11])

    def run():
        output, (h, c) = layer(x, None, lengths)
        return output, h, c, *torch.autograd.grad(output.sin().sum(), (x, *layer.parameters()))

    found = run()
    kernels = [kernel.partition("<")[0] for kernel, *_ in on_host.launched]
    slid = ["windows", "windows_backward"] if kernel_size > 1 else []
    assert sorted(kernels) == sorted(["pool_forward", "pool_backward", *slid])
    monkeypatch.setattr(operator, "_backend", lambda device: reference)
    agree(found, run(), torch.float32)


def test_a_checkpoint_makes_the_windows_again(on_host):
    layer, x = QRNNLayer(3, 2), torch.randn(5, 2, 3, requires_grad=True)
    leaves = (x, *layer.parameters())
    want = torch.autograd.grad(layer(x)[0].sin().sum(), leaves)
    output = checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(output.sin().sum(), leaves), want)


def test_pieces_through_the_windows(on_host):
    rnn = QRNN(8, 6, 2, kernel_size=3)
    x, state = torch.randn(9, 2, 8), rnn.initial_state(2)
    with torch.no_grad():
        whole, _ = rnn(x)
        pieces = []
        for piece in x.split([1, 5, 3]):
            output, state = rnn(piece, state)
            pieces.append(output)
    agree([torch.cat(pieces)], [whole], torch.float32)


def test_a_transform_sees_torch_s_own_operators(on_host):
    x = torch.randn(5, 2, 3)
    (found,) = torch.func.vmap(lambda v: operator.windows(v, 2, 1, 0))(x[None])
    assert torch.equal(found, reference.windows(x, 2, 1, 0))
    assert not on_host.launched


def test_a_profiler_changes_no_kernel(on_host):
    layer, x = QRNNLayer(3, 2), torch.randn(5, 2, 3)
    kernels = []
    for context in (nullcontext, torch.profiler.profile):
        on_host.launched.clear()
        with context():
            layer(x.requires_grad_())[0].sum().backward()
        kernels.append(list(on_host.launched))
    assert kernels[0] == kernels[1] and len(kernels[0]) == 4


@pytest.mark.parametrize("way", WAYS)
def test_the_last_outputs_and_cells_are_those_of_the_last_steps(cuda, way):
    T, lengths = 200, torch.tensor([200, 1, 131])
    cuda.use(way)
    gates = torch.randn(T, 3, 3 * 43)
    h, cells, h_n, c_n = cuda.pool(gates, None, lengths, None, "fo", "forward", 0.0, True)
    assert torch.equal(h_n[0], h[lengths - 1, torch.arange(3)])
    assert torch.equal(c_n[0], cells[lengths - 1, torch.arange(3)])


def test_special_values_go_through(cuda):
    values = [torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 0.0]
    for dtype in (torch.float32, torch.bfloat16):
        gates = torch.cartesian_prod(*[torch.tensor(values)] * 3).T.reshape(1, 1, -1).to(dtype)
        got = cuda.pool(gates, None, None, None, "fo", "forward", 0.0, True)
        expected = reference.pool(gates, None, None, None, "fo", "forward", 0.0, True)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "H"), [(torch.float32, 3), (torch.bfloat16, 3), (torch.bfloat16, 4)]
)
def test_more_tiles_than_warps_look_back_at(cuda, dtype, H):
    """Each warp looks at several Maps of an interval, and there are several intervals."""
    f, x, grad = torch.rand(3, 5000, 1, H).to(dtype)
    h0, gates = torch.randn(1, H).to(dtype), torch.randn(5000, 1, 3 * H).to(dtype)
    f = 1 - f / 64  # what is far back matters
    h = reference.linear_recurrence(f, x / 64, h0, False)
    for name, arguments in (
        ("linear_recurrence", (f, x / 64, h0, False)),
        ("linear_recurrence_backward", (grad / 64, f, h0, h, False)),
        ("pool", (gates + 3, None, None, None, "fo", "reverse", 0.0, True)),
    ):
        got, want = (getattr(module, name)(*arguments) for module in (cuda, reference))
        one = isinstance(got, torch.Tensor)
        agree([got] if one else got, [want] if one else want, dtype)
    assert all("true>" in kernel for kernel, *_ in cuda.launched)
    assert all(math.prod(grid) > 64 for _, grid, _ in cuda.launched)


def test_nan_of_any_bits_goes_from_block_to_block(cuda):
    f = torch.ones(300, 1, 40)
    f[:64] = torch.full((64, 1, 40), -1, dtype=torch.int32).view(torch.float32)
    assert cuda.linear_recurrence(f, f, f[-1], False).isnan().all()
    assert all("true>" in kernel for kernel, *_ in cuda.launched)


def calls(dtype):
    """Each function of the backend with all the tensors that it may be given, but for lengths."""
    gates, cells, c0 = (torch.randn(s).to(dtype) for s in ((5, 4, 6), (5, 4, 2), (1, 4, 2)))
    options = ("fo", "forward", 0.0)
    return {
        "pool": (gates, c0, None, None, *options, True),
        "pool_backward": (gates, c0, None, None, cells, cells, c0, c0, *options),
        "linear_recurrence": (cells, cells, c0[0], False),
        "linear_recurrence_backward": (cells, cells, c0[0], cells, False),
        "windows": (gates, 2, 1, 0),
        "windows_backward": (gates, 3, 1, 1),
    }


def replaced(arguments, change):
    """For each tensor, the arguments with this one changed."""
    for n, value in enumerate(arguments):
        if isinstance(value, torch.Tensor):
            yield *arguments[:n], change(value), *arguments[n + 1 :]


def test_inputs_need_not_be_contiguous(cuda):
    def spread(value):
        return torch.stack([value, torch.full_like(value, torch.nan)], -1)[..., 0]

    for name, own in calls(torch.float64).items():
        for arguments in replaced(own, spread):
            got, want = (getattr(module, name)(*arguments) for module in (cuda, reference))
            one = isinstance(got, torch.Tensor)
            agree([got] if one else got, [want] if one else want, torch.float64)


def test_an_input_that_is_not_aligned_makes_no_pairs(cuda):
    def off_by_one(value):
        return torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)

    for name, own in calls(torch.float16).items():
        if not name.startswith("windows"):
            getattr(cuda, name)(*own)
            assert "pair<half16>" in cuda.launched[-1][0]
            for arguments in replaced(own, off_by_one):
                getattr(cuda, name)(*arguments)
                assert "pair<" not in cuda.launched[-1][0]


def test_where_there_is_nothing_no_kernel_runs(cuda):
    for name, own in calls(torch.float32).items():
        arguments = [v[:, :0] if isinstance(v, torch.Tensor) and v.dim() == 3 else v for v in own]
        if name.startswith("linear"):
            arguments[2] = own[2][:0]  # h0 (B, H)
        got, want = (getattr(module, name)(*arguments) for module in (cuda, reference))
        one = isinstance(got, torch.Tensor)
        agree([got] if one else got, [want] if one else want, torch.float32)
    assert cuda.windows(torch.empty(0, 2, 3), 1, 0, 0).shape == (0, 2, 3)
    assert not cuda.launched


def test_wrong_lengths_reach_no_foreign_memory(cuda):
    gates, rest = torch.randn(9, 2, 12), (None, "fo", "forward", 0.0, True)
    got = cuda.pool(gates, None, torch.tensor([10**12, -5]), *rest)
    agree(got, cuda.pool(gates, None, torch.tensor([9, 0]), *rest), torch.float32)


# the first is itself a number drawn, which must be below the rate, as it is for the second
@pytest.mark.parametrize("rate", [oracle.uniform(1, 50), oracle.uniform(1, 50) + 2**-25])
def test_draws_the_same_entries_as_the_reference(cuda, rate):
    gates, rest = torch.randn(1, 2, 2 * 40), (torch.tensor(1), "f", "forward", rate, False)
    got, want = (module.pool(gates, None, None, *rest) for module in (cuda, reference))
    agree(got, want, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sums_are_rounded_as_torch_rounds_them(cuda, dtype):
    # by quarters of the last place, with ties
    x = (torch.arange(-16, 16) * torch.finfo(dtype).eps / 4).to(dtype).view(1, 1, 32)
    arguments = (torch.ones_like(x), x, torch.ones_like(x[0]), False)
    assert torch.equal(cuda.linear_recurrence(*arguments), reference.linear_recurrence(*arguments))


@pytest.mark.parametrize("current", [0, 1])
def test_a_launch_is_on_the_tensor_s_device_and_stream(cuda, monkeypatch, current):
    seen = []

    @contextmanager
    def device(index):
        seen.append(index)
        yield
        seen.append("left")

    def function(*names):
        return lambda *sizes, stream: seen.append((names, *sizes, stream.ptr))

    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current, raising=False)
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", lambda index: 70 + index, raising=False
    )
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(cuda, "_function", function)
    like = types.SimpleNamespace(get_device=lambda: 1)
    cuda.launch_on_gpu("windows", "float, 1", like, (7, 1, 1), 8, ["shape"])
    launch = (("windows", "float, 1"), (7, 1, 1), (32, 8), ["shape"], 71)
    assert seen == ([launch] if current else [1, launch, "left"])


def test_a_kernel_is_compiled_once(cuda, monkeypatch):
    compiled = []

    class RawModule:
        def __init__(self, *, code, options, name_expressions):
            compiled.append((options, name_expressions))
            self.get_function = {name: code for name in name_expressions}.get

    monkeypatch.setattr(cuda.cupy, "RawModule", RawModule, raising=False)
    for _ in range(2):
        assert cuda._function("windows", "float, 1") == SOURCE.read_text()
    assert compiled == [(("--std=c++17",), ["windows<float, 1>"])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["relay", "intervals"])
def test_results_do_not_depend_on_the_order_of_the_blocks(cuda, way, dtype):
    f, x = torch.rand(2000, 1, 40).to(dtype), torch.randn(2000, 1, 40).to(dtype)
    cuda.use(way)
    # the host draws another order each time
    first, *others = (cuda.linear_recurrence(f, x, x[0], False) for _ in range(5))
    agree([first], [reference.linear_recurrence(f, x, x[0], False)], dtype)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("T", "columns", "slices", "tiles", "blocks"),
    [
        (32, 2560, 4, 1, 80),  # no more slices than there are steps for
        (192, 2560, 8, 3, 80),  # too short to hand the state on between blocks
        (193, 2560, 8, 4, 4 * 80),
        (65_536, 320, 8, 1024, 1024 * 10),
        (105, 20 * 640, 7, 2, 400),  # walks
        (8192, 64 * 320, 8, 128, 128 * 640),
        (8192, 256 * 320, 2, 512, 2560),
        (512, 1 << 20, 2, 32, 1 << 15),
    ],
)
def test_blocks_fill_the_gpu(cuda, T, columns, slices, tiles, blocks):
    grid = cuda._Grid("pool_forward", [torch.empty(0)], T, 1, 1, columns, None, False)
    plan = grid.plan
    assert (plan.slices, plan.tiles, math.prod(plan.grid)) == (slices, tiles, blocks)
    assert plan.relayed == (blocks > columns / cuda.LANES)
    assert plan.interval in (1, 2, 4, 8, 16, 32)


def test_both_cut_pairs_into_the_same_slices(cuda):
    pattern = r"__global__ BOUNDS.*? void (\w+)\(.*?typedef Cut<T, RELAYED, (\d+)> CUT;"
    found = re.findall(pattern, SOURCE.read_text("utf-8"), re.S)
    assert {kernel: int(steps) for kernel, steps in found} == cuda.PAIRS_STEPS


def test_channels_are_paired_where_they_fill_the_gpu_and_lie_as_pairs(cuda, monkeypatch):
    monkeypatch.setattr(cuda, "PAIRS_FROM", dict.fromkeys(cuda.PAIRS_FROM, 24))
    f = torch.rand(3, 1, 24 * 132 * cuda.LANES + 2, dtype=torch.float16)

    def launched(f):
        cuda.launched.clear()
        cuda.linear_recurrence(f, f, f[0], False)
        return [kernel for kernel, *_ in cuda.launched]

    def template(kernel, like):
        return cuda._Grid(kernel, [like], 8192, 8, 1, 320, None, False).template

    assert launched(f) == ["recurrence<pair<half16>, false>"]
    for few in (f[..., : -1 - cuda.LANES], f[..., : -2 - cuda.LANES]):  # the first one is odd, too
        assert launched(few.contiguous()) == ["recurrence<half16, false>"]
    off_by_one = torch.empty(f.numel() + 1, dtype=f.dtype)[1:].view(f.shape).copy_(f)
    assert launched(off_by_one) == ["recurrence<half16, false>"]
    assert launched(f.float()) == ["recurrence<float, false>"]
    assert template("pool_forward", f) == "pair<half16>, true"
    assert template("recurrence", f) == "pair<half16>, true"
    assert template("recurrence_backward", f) == "pair<half16>, true"


def test_compiles_for_the_gpus_with_all_arrays_in_registers(tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    text = '#include "pooling.cu"\n'
    for T in ("float", "double", "half16", "bfloat16", "pair<half16>", "pair<bfloat16>"):
        read, write = f"const {T}*", f"{T}*"
        signatures = {}
        for relayed in ("false", "true"):
            own = f"<{T}, {relayed}>"
            signatures |= {
                f"recurrence{own}": [*[read] * 3, write],
                f"recurrence_backward{own}": [*[read] * 4, *[write] * 3],
            }
            for G, drawn in itertools.product(reference.GATES.values(), ("false", "true")):
                own = f"<{T}, {G}, {drawn}, {relayed}>"
                signatures |= {
                    f"pool_forward{own}": ["Zoneout", *[read] * 2, *[write] * 4],
                    f"pool_backward{own}": ["Zoneout", *[read] * 6, *[write] * 2],
                }
        for kernel, parameters in signatures.items():
            declared = ", ".join(["Shape", "u64*", *parameters])
            text += f"template __global__ void {kernel}({declared});\n"
    for T, each in itertools.product(("float", "double", "half16", "bfloat16"), (1, 16)):
        N = max(1, each // SIZES[T])
        for kernel in ("windows", "windows_backward"):
            values = f"several<{T}, {N}>*"
            text += (
                f"template __global__ void {kernel}<{T}, {N}>(Windows, const {values}, {values});\n"
            )
    file = tmp_path / "all.cu"
    file.write_text(text)
    architectures = ("sm_80", "sm_90")
    command = [nvcc, "-std=c++17", "-ftz=true", "-fatbin", "-Xptxas", "-v", "--threads", "2"]
    command += [f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in architectures]
    command += [f"-I{SOURCE.parent}", str(file), "-o", str(tmp_path / "all.fatbin")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", run.stderr)]
    kernels = 6 * 2 * (2 + 2 * 3 * 2) + 4 * 2 * 2
    assert len(spilled) == kernels * len(architectures)
    assert max(spilled) <= 64  # some values, where BOUNDS leaves too few registers; no array
    # a multiprocessor has few; a number that is not known when compiling would reserve all of them
    assert set(re.findall(r"used (\d+) barriers", run.stderr)) == {"0", "1"}


def test_an_old_cupy_is_said_once_and_the_reference_runs(monkeypatch):
    fake = types.ModuleType("cupy")
    fake.__version__ = "9.6.0"
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.delitem(sys.modules, "qrnn.pooling.cuda", raising=False)
    operator._backend.cache_clear()
    with pytest.warns(UserWarning, match=r"CuPy 9\.6\.0 is older than 13.*qrnn\[cuda13\]"):
        assert operator._backend("cuda") is reference
    assert operator._backend("cuda") is reference
    operator._backend.cache_clear()
