"""The pooling operator on NVIDIA GPUs: launches pooling.cu, which CuPy compiles at run time.

Everything runs on the tensors' device and on torch's current stream there, also in the autograd
thread and while a CUDA graph is captured, and nothing waits for the GPU. Results in float32 below
1e-38 are zero: CuPy compiles everything that way.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cupy
import numpy as np
import torch
from torch import Tensor

from qrnn.pooling.reference import DIRECTIONS, GATES

TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "half16",
    torch.bfloat16: "bfloat16",
}
OLDEST_CUPY = 13
POOLS = ("pool_summarise", "pool_forward", "pool_backward_summarise", "pool_backward")
SCANS = (
    *("carry", "recurrence_summarise", "recurrence"),
    *("recurrence_backward_summarise", "recurrence_backward"),
)
BLOCK = 64  # threads; small, so that few columns still reach many multiprocessors
COLUMNS_PER_SM = 512  # with this many, one multiprocessor has enough loads in flight
LEAST_CHUNK = 64  # steps, a multiple of UNROLL
FEWEST_CHUNKS = 4  # fewer do not make up for reading the input twice
MOST_CHUNKS = 65_535  # CUDA's limit on a grid's second dimension
PAIRS_FROM = 2  # blocks per multiprocessor: with fewer, one channel a thread is more parallel
UNROLL = 8  # as in pooling.cu

SHAPE = np.dtype(
    [(name, np.int64) for name in ("T", "B", "D", "H", "chunk", "lengths")]
    + [(name, np.int32) for name in ("reverse", "shift")],
    align=True,
)
ZONEOUT = np.dtype([("seed", np.int64), ("threshold", np.uint64), ("keep", np.float64)], align=True)


if int(cupy.__version__.split(".")[0]) < OLDEST_CUPY:
    raise ImportError(f"CuPy {cupy.__version__} is older than {OLDEST_CUPY}", name="cupy")


@cache
def _module(template: str) -> Any:
    """The kernels of one choice of template arguments: no more is compiled than is used."""
    kernels = [f"{name}<{template}>" for name in (POOLS if "," in template else SCANS)]
    source = Path(__file__).with_name("pooling.cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=source, options=("--std=c++17",), name_expressions=kernels)


@cache
def _function(kernel: str, template: str) -> Any:
    return _module(template).get_function(f"{kernel}<{template}>")


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class _Stream(NamedTuple):
    """A stream as CuPy's launch takes it; making it the current one would cost more."""

    ptr: int


def _launch(
    kernel: str, template: str, like: Tensor, grid: tuple[int, int], arguments: Sequence[Any]
) -> None:
    with torch.cuda.device(like.device):
        stream = _Stream(torch.cuda.current_stream().cuda_stream)
        _function(kernel, template)(grid, (BLOCK,), arguments, stream=stream)


@lru_cache(maxsize=1024)  # NumPy takes longer to make these than the GPU for a short scan
def _struct(dtype: np.dtype[Any], *fields: Any) -> Any:
    return np.array([fields], dtype=dtype)


def _pointer(x: Tensor | None) -> np.uint64:
    return np.uint64(0 if x is None else x.data_ptr())


class _Grid:
    """The columns and chunks of one call, and what the kernels are told about its shape.

    A thread owns a channel, or, of `inputs` in 16 bits, a pair of channels; `more` are the template
    arguments that follow the one that says so.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor | None],
        T: int,
        B: int,
        D: int,
        H: int,
        lengths: Tensor | None,
        reverse: bool,
        shift: int = 0,
        more: str = "",
    ) -> None:
        assert inputs[0] is not None
        self.like, self.channels, self.lengths = inputs[0], B * D * H, lengths
        self.type = TYPES[self.like.dtype]
        self._divide(T, self.channels)
        if (
            self.like.itemsize == 2
            and H % 2 == 0
            and self.blocks * self.chunks >= PAIRS_FROM * _multiprocessors(self.like.device)
            and all(v is None or v.data_ptr() % 4 == 0 for v in inputs)
        ):
            H, self.type = H // 2, f"pair<{self.type}>"
            self._divide(T, self.channels // 2)
        self.template = self.type + more
        start = 0 if lengths is None else lengths.data_ptr()
        self.shape = _struct(SHAPE, T, B, D, H, self.chunk, start, reverse, shift)

    def _divide(self, T: int, columns: int) -> None:
        wanted = _multiprocessors(self.like.device) * COLUMNS_PER_SM // max(columns, 1)
        chunk = max(LEAST_CHUNK, -(-T // min(max(wanted, 1), MOST_CHUNKS)))
        chunk += -chunk % UNROLL
        self.chunks = -(-T // chunk)
        if self.chunks < FEWEST_CHUNKS:
            self.chunks, chunk = 1, max(T, 1)
        self.chunk, self.blocks = chunk, -(-columns // BLOCK)

    def run(self, kernel: str, *arguments: Any) -> None:
        """Launches `kernel` on all columns and chunks."""
        pointers = [_pointer(a) if a is None or isinstance(a, Tensor) else a for a in arguments]
        if self.blocks:
            grid = (self.blocks, self.chunks)
            _launch(kernel, self.template, self.like, grid, [self.shape, *pointers])

    def states(
        self, kernel: str, *arguments: Any, start: Tensor | None, backward: bool
    ) -> Tensor | None:
        """The state at which each chunk starts, from `kernel` and `carry`; None for one chunk."""
        if self.chunks == 1:
            return None
        wide = torch.float64 if self.like.dtype == torch.float64 else torch.float32
        summary = self.like.new_empty((2, self.chunks, self.channels), dtype=wide)
        self.run(kernel, *arguments, summary)
        pointers = [np.int64(self.chunks), _pointer(start), _pointer(summary), np.int32(backward)]
        if self.blocks:
            _launch("carry", self.type, self.like, (self.blocks, 1), [self.shape, *pointers])
        return summary[1]


def _pool_grid(
    inputs: Sequence[Tensor | None],
    lengths: Tensor | None,
    seed: Tensor | None,
    pooling: str,
    direction: str,
    zoneout: float,
    shift: int,
) -> tuple[_Grid, Any, tuple[int, int, int, int]]:
    """The grid, the Zoneout and (T, B, D, H); a tensor `seed` has to outlive the launch.

    The first of `inputs` are the gates.
    """
    assert inputs[0] is not None
    (rows, B, N), D, G = inputs[0].shape, DIRECTIONS[direction], GATES[pooling]
    shape = (rows - abs(shift), B, D, N // (D * G))
    drawn = seed is not None
    more = f", {G}, {str(drawn).lower()}"
    grid = _Grid(inputs, *shape, lengths, direction == "reverse", shift, more)
    threshold = int(np.ceil(zoneout * (1 << 24)))
    start = 0 if seed is None else seed.data_ptr()
    return grid, _struct(ZONEOUT, start, threshold, 1.0 if drawn else 1 - zoneout), shape


def pool(
    gates: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | None,
    pooling: str,
    direction: str,
    zoneout: float,
    keep_cells: bool,
    shift: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `operator.pool`."""
    gates = gates.contiguous()
    c0, lengths = (None if v is None else v.contiguous() for v in (c0, lengths))
    options = (lengths, seed, pooling, direction, zoneout, shift)
    grid, drop, (T, B, D, H) = _pool_grid((gates, c0), *options)
    states = grid.states("pool_summarise", drop, gates, start=c0, backward=False)
    h, c_n = gates.new_empty(T, B, D * H), gates.new_empty(D, B, H)
    kept = keep_cells and pooling != "f"
    cells = gates.new_empty((T, B, D * H) if kept else (0,))
    stored = cells if kept else None
    grid.run("pool_forward", drop, gates, c0, states, h, stored, c_n)
    return h, cells, c_n


def pool_backward(
    grad_h: Tensor,
    grad_c_n: Tensor | None,
    gates: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | None,
    cells: Tensor,
    pooling: str,
    direction: str,
    zoneout: float,
    shift: int = 0,
) -> tuple[Tensor, Tensor]:
    """See `operator.pool_backward`."""
    grad_h, gates, cells = grad_h.contiguous(), gates.contiguous(), cells.contiguous()
    grad_c_n, c0, lengths = (None if v is None else v.contiguous() for v in (grad_c_n, c0, lengths))
    inputs = (gates, c0, cells, grad_h, grad_c_n)
    options = (lengths, seed, pooling, direction, zoneout, shift)
    grid, drop, (_, B, D, H) = _pool_grid(inputs, *options)
    states = grid.states(
        "pool_backward_summarise", drop, gates, grad_h, start=grad_c_n, backward=True
    )
    grad_gates, grad_c0 = torch.empty_like(gates), gates.new_empty(D, B, H)
    grid.run("pool_backward", drop, *inputs, states, grad_gates, grad_c0)
    return grad_gates, grad_c0


def linear_recurrence(f: Tensor, x: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """See `functional.linear_recurrence`."""
    T, B, H = f.shape
    f, x, h0 = f.contiguous(), x.contiguous(), h0.contiguous()
    grid = _Grid((f, x, h0), T, B, 1, H, None, reverse)
    states = grid.states("recurrence_summarise", f, x, start=h0, backward=False)
    h = torch.empty_like(f)
    grid.run("recurrence", f, x, h0, states, h)
    return h


def linear_recurrence_backward(
    grad_h: Tensor, f: Tensor, h0: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `operator`: the gradients at f, x and h0."""
    T, B, H = f.shape
    grad_h, f, h0, h = (v.contiguous() for v in (grad_h, f, h0, h))
    grid = _Grid((f, h0, h, grad_h), T, B, 1, H, None, reverse)
    states = grid.states("recurrence_backward_summarise", f, grad_h, start=None, backward=True)
    grad_f, grad_x, grad_h0 = torch.empty_like(f), torch.empty_like(f), torch.empty_like(h0)
    grid.run("recurrence_backward", f, h0, h, grad_h, states, grad_f, grad_x, grad_h0)
    return grad_f, grad_x, grad_h0
