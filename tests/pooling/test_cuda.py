"""pooling.cu without a GPU: compiled for the host, launched by cuda.py's own code, checked against
the reference; and, where there is an nvcc, compiled for the GPUs that it is meant for.

What only a GPU can show (streams, graphs, races, speed) is not tested here.
"""

import ctypes
import importlib
import itertools
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch

from qrnn.pooling import operator, reference

SOURCE = Path(reference.__file__).with_name("pooling.cu")
HOST = Path(__file__).with_name("host.cpp")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
PAIRED = (torch.float16, torch.bfloat16)


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
    fake.__version__ = "14.0.0"
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.delitem(sys.modules, "qrnn.pooling.cuda", raising=False)
    module = importlib.import_module("qrnn.pooling.cuda")
    module.launched = []

    def launch(kernel, template, like, grid, arguments):
        kernel = f"{kernel}<{template}>"
        module.launched.append((kernel, grid))
        values = [a if isinstance(a, np.ndarray) else np.array([a]) for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        sizes = [ctypes.c_longlong(n) for n in (*grid, module.BLOCK)]
        assert library.launch(kernel.encode(), *sizes, pointers) == 0, f"no kernel {kernel}"

    monkeypatch.setattr(module, "_launch", launch)
    monkeypatch.setattr(module, "_multiprocessors", lambda device: 132)
    monkeypatch.setattr(module, "PAIRS_FROM", 0)  # also where a GPU would not be full
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
    grad_h, grad_c_n = torch.randn(T, B, D * H).to(dtype), torch.randn(D, B, H).to(dtype)
    if with_lengths:
        lengths = torch.tensor([[T, 9], [0, 9], [T // 2, 9]])[:, 0]  # not contiguous
        padding = (torch.arange(T)[:, None] >= lengths)[:, :, None]
        gates, grad_h = (v.masked_fill(padding, torch.nan) for v in (gates, grad_h))
    seed = torch.tensor(2**62 + 12345)
    for start, own_seed, rate in ((None, None, 0.0), (c0, None, 0.3), (c0, seed, 0.4)):
        options = (pooling, direction, rate)
        inputs = (gates, start, lengths, own_seed)
        expected = reference.pool(*inputs, *options, True)
        agree(cuda.pool(*inputs, *options, True), expected, dtype)
        agree(cuda.pool(*inputs, *options, False)[::2], expected[::2], dtype)
        cells = expected[0] if pooling == "f" else expected[1]
        backward = (grad_h, grad_c_n, *inputs, cells, *options)
        agree(cuda.pool_backward(*backward), reference.pool_backward(*backward), dtype)
        backward = (grad_h, None, *backward[2:])
        agree(cuda.pool_backward(*backward), reference.pool_backward(*backward), dtype)
    chunks = {grid[1] for _, grid in cuda.launched}
    assert chunks == ({1} if T < 100 else {1, 4})  # carry runs in one
    assert all(("pair<" in kernel) == (H == 44) for kernel, _ in cuda.launched)


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
    [(dtype, 39) for dtype in TOLERANCE] + [(dtype, 40) for dtype in PAIRED],
)
def test_the_linear_recurrence(cuda, dtype, H, T, reverse):
    f, x, h0 = (v.to(dtype) for v in (torch.rand(T, 2, H), torch.randn(T, 2, H), torch.randn(2, H)))
    expected = reference.linear_recurrence(f, x, h0, reverse)
    agree([cuda.linear_recurrence(f, x, h0, reverse)], [expected], dtype)
    backward = (torch.randn(T, 2, H).to(dtype), f, h0, expected, reverse)
    got = cuda.linear_recurrence_backward(*backward)
    agree(got, reference.linear_recurrence_backward(*backward), dtype)
    assert {grid[1] for _, grid in cuda.launched} == ({1} if T < 300 else {1, 5})


def test_special_values_go_through(cuda):
    values = [torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 0.0]
    for dtype in (torch.float32, torch.bfloat16):
        gates = torch.cartesian_prod(*[torch.tensor(values)] * 3).T.reshape(1, 1, -1).to(dtype)
        got = cuda.pool(gates, None, None, None, "fo", "forward", 0.0, True)
        expected = reference.pool(gates, None, None, None, "fo", "forward", 0.0, True)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def test_inputs_need_not_be_contiguous(cuda):
    gates = torch.randn(15, 4, 6).permute(2, 1, 0)
    assert not gates.is_contiguous()
    arguments = (None, None, None, "fo", "forward", 0.0, True)
    agree(cuda.pool(gates, *arguments), reference.pool(gates, *arguments), torch.float32)


@pytest.mark.parametrize(
    ("T", "H", "chunks"), [(192, 64, 1), (193, 64, 4), (65_536, 320, 211), (10_000, 30_000, 1)]
)
def test_chunks_fill_the_gpu_and_are_whole_blocks_of_loads(cuda, T, H, chunks):
    grid = cuda._Grid([torch.empty(0)], T, 1, 1, H, None, False)
    assert grid.chunks == chunks
    assert chunks == 1 or grid.shape["chunk"][0] % cuda.UNROLL == 0


def test_many_columns_are_not_cut_into_chunks(cuda):
    gates = torch.randn(70, 256, 3 * 300)
    cuda.pool(gates, None, None, None, "fo", "forward", 0.0, False)
    assert cuda.launched == [("pool_forward<float, 3, false>", (1200, 1))]


def test_channels_are_paired_where_they_fill_the_gpu_and_lie_as_pairs(cuda, monkeypatch):
    monkeypatch.setattr(cuda, "PAIRS_FROM", 2)
    f = torch.rand(3, 1, 2 * 132 * cuda.BLOCK + 2, dtype=torch.float16)

    def launched(f):
        cuda.launched.clear()
        cuda.linear_recurrence(f, f, f[0], False)
        return [kernel for kernel, _ in cuda.launched]

    assert launched(f) == ["recurrence<pair<half16>>"]
    assert launched(f[..., : -1 - cuda.BLOCK].contiguous()) == ["recurrence<half16>"]  # odd, few
    assert launched(f[..., : -2 - cuda.BLOCK].contiguous()) == ["recurrence<half16>"]  # few
    off_by_one = torch.empty(f.numel() + 1, dtype=f.dtype)[1:].view(f.shape).copy_(f)
    assert launched(off_by_one) == ["recurrence<half16>"]
    assert launched(f.float()) == ["recurrence<float>"]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_compiles_for_the_gpu_with_everything_in_registers(tmp_path, architecture):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    text = '#include "pooling.cu"\n'
    for T in ("float", "double", "half16", "bfloat16", "pair<half16>", "pair<bfloat16>"):
        wide, read = f"wide<{T}>::type", f"const {T}*"
        signatures = {
            f"carry<{T}>": ["i64", read, f"{wide}*", "int"],
            f"recurrence_summarise<{T}>": [read, read, f"{wide}*"],
            f"recurrence<{T}>": [*[read] * 3, f"const {wide}*", f"{T}*"],
            f"recurrence_backward_summarise<{T}>": [read, read, f"{wide}*"],
            f"recurrence_backward<{T}>": [*[read] * 4, f"const {wide}*", *[f"{T}*"] * 3],
        }
        for G, drawn in itertools.product(reference.GATES.values(), ("false", "true")):
            written, arguments = [f"{T}*"] * 3, f"<{T}, {G}, {drawn}>"
            signatures |= {
                f"pool_summarise{arguments}": ["Zoneout", read, f"{wide}*"],
                f"pool_forward{arguments}": ["Zoneout", read, read, f"const {wide}*", *written],
                f"pool_backward_summarise{arguments}": ["Zoneout", read, read, f"{wide}*"],
                f"pool_backward{arguments}": [
                    *("Zoneout", *[read] * 5, f"const {wide}*"),
                    *written[:2],
                ],
            }
        for kernel, parameters in signatures.items():
            text += f"template __global__ void {kernel}({', '.join(['Shape', *parameters])});\n"
    file = tmp_path / "all.cu"
    file.write_text(text)
    command = [nvcc, "-std=c++17", "-ftz=true", f"-arch={architecture}", "-cubin", "-Xptxas", "-v"]
    command += [f"-I{SOURCE.parent}", str(file), "-o", str(tmp_path / "all.cubin")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    uses = {line.strip() for line in run.stderr.splitlines() if "spill" in line}
    assert uses == {"0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"}


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
