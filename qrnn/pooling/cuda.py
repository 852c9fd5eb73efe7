"""The pooling operator on NVIDIA GPUs: launches pooling.cu, which CuPy compiles at run time.

Everything runs on the tensors' device and on torch's current stream there, also in the autograd
thread and while a CUDA graph is captured, and nothing waits for the GPU. Results in float32 below
1e-38 are zero: CuPy compiles everything that way.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, lru_cache
from math import prod
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
LANES = 32  # as in pooling.cu: columns of a block
MOST_ROWS = 65_535  # of a grid
# Warps that fill a multiprocessor: about as many as pooling.cu's BOUNDS leave registers for.
WARPS = {
    "pool_forward": 24,
    "pool_backward": 16,
    "recurrence": 32,
    "recurrence_backward": 24,
}
PAIRS_WARPS = {**WARPS, "pool_backward": 24}
# Warps per multiprocessor from which on a lane takes a pair of channels: with fewer, one channel a
# lane is more parallel. These numbers and those up to MOST_INTERVAL are what was best on an H100.
PAIRS_FROM = {
    "pool_forward": 24,
    "pool_backward": 12,
    "recurrence": 36,
    "recurrence_backward": 36,
}
PAIRS_STEPS = {  # as in pooling.cu: of a slice of pairs where blocks hand on the state
    "pool_forward": 16,
    "pool_backward": 8,
    "recurrence": 16,
    "recurrence_backward": 16,
}
FEWEST_TILES = 4  # fewer do not make up for what it costs to hand the state on between blocks
# Tiles after which a block hands its state on: about as many steps (of LANES columns) as the memory
# moves meanwhile.
INTERVAL_STEPS, MOST_INTERVAL = 12_000, 32
SLIDING_WARPS = 8  # of a block that moves the convolution's windows; not tuned

Grid = tuple[int, int, int]
SHAPE = np.dtype(
    [(name, np.int64) for name in ("T", "B", "D", "H", "columns")]
    + [(name, np.int32) for name in ("groups", "tiles", "interval")]
    + [("lengths", np.int64)]
    + [(name, np.int32) for name in ("reverse", "shift")],
    align=True,
)
WINDOWS = np.dtype([(name, np.int64) for name in ("rows", "T", "B", "I", "k", "before")])
ZONEOUT = np.dtype([("seed", np.int64), ("threshold", np.uint64), ("keep", np.float64)], align=True)


if int(cupy.__version__.split(".")[0]) < OLDEST_CUPY:
    raise ImportError(f"CuPy {cupy.__version__} is older than {OLDEST_CUPY}", name="cupy")


@cache
def _function(kernel: str, template: str) -> Any:
    """One kernel with one choice of template arguments: no more is compiled than is used."""
    name = f"{kernel}<{template}>"
    source = Path(__file__).with_name("pooling.cu").read_text(encoding="utf-8")
    module = cupy.RawModule(code=source, options=("--std=c++17",), name_expressions=[name])
    return module.get_function(name)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class _Stream(NamedTuple):
    """A stream as CuPy's launch takes it; making it the current one would cost more."""

    ptr: int


def _launch(
    kernel: str, template: str, like: Tensor, grid: Grid, warps: int, arguments: Sequence[Any]
) -> None:
    # torch.cuda's functions for these take as long as the launch
    device = like.get_device()
    here = torch._C._cuda_getDevice() == device
    stream = _Stream(torch._C._cuda_getCurrentRawStream(device))
    with nullcontext() if here else torch.cuda.device(device):
        _function(kernel, template)(grid, (LANES, warps), arguments, stream=stream)


@lru_cache(maxsize=1024)  # NumPy takes longer to make these than the GPU for a short scan
def _struct(dtype: np.dtype[Any], *fields: Any) -> Any:
    # as plain bytes: of a struct with fields CuPy would have NumPy describe all of them
    return np.array([fields], dtype=dtype).view(f"V{dtype.itemsize}")


class _Plan(NamedTuple):
    """How the columns and the steps of one launch are divided."""

    columns: int
    parts: int  # of 32 bits that a column's state has
    groups: int  # of LANES columns
    slices: int  # of a tile: the warps of a block
    tiles: int
    relayed: bool  # each tile has a block of its own
    interval: int  # tiles after which those hand the state on

    @property
    def grid(self) -> Grid:
        """Blocks: the groups, and their tiles in two dimensions."""
        tiles = self.tiles if self.relayed else 1
        depth = -(-tiles // MOST_ROWS)
        return self.groups, -(-tiles // depth), depth


@lru_cache(maxsize=1024)
def _plan(kernel: str, size: int, parts: int, T: int, columns: int, processors: int) -> _Plan:
    """For elements of `size` bytes and states of `parts` times 32 bits, both 2 for a pair."""
    groups = -(-columns // LANES)
    slices, steps = 8, 8 // parts  # as Cut in pooling.cu
    paired = parts == 2 and size == 2
    warps = processors * (16 if size == 8 else (PAIRS_WARPS if paired else WARPS)[kernel])
    fit = warps // max(groups, 1)  # of them for each group
    # warps for a group from which on handing on pays: few in float32
    enough = 3 if size == 4 else 2 * slices
    cut = (4, PAIRS_STEPS[kernel]) if paired else (slices, steps)  # where blocks hand it on
    relayed = fit >= enough and T > (FEWEST_TILES - 1) * prod(cut)
    if paired and kernel != "recurrence":
        relayed |= fit >= slices and T >= 128 * FEWEST_TILES
    if relayed:
        slices, steps = cut
    else:
        # in float32, and in this kernel, a second warp pays even where they no longer fit
        fewest = 2 if size == 4 or kernel == "recurrence" else 1
        slices = max(1, min(max(fit, fewest), slices, -(-T // steps)))
    tiles = -(-T // (slices * steps))
    wanted = INTERVAL_STEPS // max(groups * slices * steps, 1)
    interval = min(1 << wanted.bit_length(), MOST_INTERVAL)
    return _Plan(columns, parts, groups, slices, tiles, relayed, interval)


class _Grid:
    """What one launch takes.

    A lane owns a channel, or, of `inputs` in 16 bits, a pair of channels; `more` are the template
    arguments that follow the one that says so.
    """

    def __init__(
        self,
        kernel: str,
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
        self.kernel, self.like = kernel, inputs[0]
        kind, size = TYPES[self.like.dtype], self.like.itemsize
        processors = _multiprocessors(self.like.device)
        plan = _plan(kernel, size, max(1, size // 4), T, B * D * H, processors)
        if size == 2 and H % 2 == 0 and all(v is None or v.data_ptr() % 4 == 0 for v in inputs):
            pairs = _plan(kernel, size, 2, T, B * D * H // 2, processors)
            warps = plan.groups * plan.slices
            if pairs.relayed:
                warps *= plan.tiles
            if warps >= PAIRS_FROM[kernel] * processors:
                H, kind, plan = H // 2, f"pair<{kind}>", pairs
        self.plan, self.template = plan, f"{kind}{more}, {str(plan.relayed).lower()}"
        start = 0 if lengths is None else lengths.data_ptr()
        sizes = (T, B, D, H, plan.columns, plan.groups, plan.tiles, plan.interval)
        self.shape = _struct(SHAPE, *sizes, start, reverse, shift)

    def run(self, *arguments: Any) -> None:
        """Launches the kernel, with these arguments after its Shape and the words of its Relay."""
        plan, words = self.plan, None
        if not plan.groups:
            return
        if plan.relayed:
            count = plan.tiles * plan.columns * plan.parts
            words = self.like.new_zeros(count, dtype=torch.int64)
        values = [self.shape]
        for a in (words, *arguments):
            values.append(0 if a is None else a.data_ptr() if isinstance(a, Tensor) else a)
        _launch(self.kernel, self.template, self.like, plan.grid, plan.slices, values)


def _pool_grid(
    kernel: str,
    inputs: Sequence[Tensor | None],
    lengths: Tensor | None,
    seed: Tensor | None,
    pooling: str,
    direction: str,
    zoneout: float,
    shift: int,
) -> tuple[_Grid, Any, tuple[int, int, int, int]]:
    """The grid, the Zoneout and (T, B, D, H). The first of `inputs` are the gates."""
    assert inputs[0] is not None
    (rows, B, N), D, G = inputs[0].shape, DIRECTIONS[direction], GATES[pooling]
    shape = (rows - abs(shift), B, D, N // (D * G))
    drawn = seed is not None
    more = f", {G}, {str(drawn).lower()}"
    grid = _Grid(kernel, inputs, *shape, lengths, direction == "reverse", shift, more)
    threshold = int(np.ceil(zoneout * (1 << 24)))
    start = 0 if seed is None else seed.data_ptr()
    return grid, _struct(ZONEOUT, start, threshold, 1 - zoneout), shape


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `operator.pool`."""
    gates = gates.contiguous()
    c0, lengths = (None if v is None else v.contiguous() for v in (c0, lengths))
    options = (lengths, seed, pooling, direction, zoneout, shift)
    grid, drop, (T, B, D, H) = _pool_grid("pool_forward", (gates, c0), *options)
    h = gates.new_empty(T, B, D * H)
    h_n, c_n = gates.new_empty(D, B, H), gates.new_empty(D, B, H)
    kept = keep_cells and pooling != "f"
    cells = gates.new_empty((T, B, D * H) if kept else (0,))
    stored = cells if kept else None
    grid.run(drop, gates, c0, h, stored, h_n, c_n)
    return h, cells, h_n, c_n


def pool_backward(
    gates: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | None,
    cells: Tensor,
    grad_h: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    pooling: str,
    direction: str,
    zoneout: float,
    shift: int = 0,
) -> tuple[Tensor, Tensor]:
    """See `reference.pool_backward`."""
    gates, cells = gates.contiguous(), cells.contiguous()
    grad_h, grad_h_n, grad_c_n, c0, lengths = (
        None if v is None else v.contiguous() for v in (grad_h, grad_h_n, grad_c_n, c0, lengths)
    )
    inputs = (gates, c0, cells, grad_h, grad_h_n, grad_c_n)
    options = (lengths, seed, pooling, direction, zoneout, shift)
    grid, drop, (_, B, D, H) = _pool_grid("pool_backward", inputs, *options)
    grad_gates, grad_c0 = torch.empty_like(gates), gates.new_empty(D, B, H)
    grid.run(drop, *inputs, grad_gates, grad_c0)
    return grad_gates, grad_c0


def linear_recurrence(f: Tensor, x: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """See `functional.linear_recurrence`."""
    T, B, H = f.shape
    f, x, h0 = f.contiguous(), x.contiguous(), h0.contiguous()
    grid = _Grid("recurrence", (f, x, h0), T, B, 1, H, None, reverse)
    h = torch.empty_like(f)
    grid.run(f, x, h0, h)
    return h


def linear_recurrence_backward(
    grad_h: Tensor, f: Tensor, h0: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.linear_recurrence_backward`."""
    T, B, H = f.shape
    grad_h, f, h0, h = (v.contiguous() for v in (grad_h, f, h0, h))
    grid = _Grid("recurrence_backward", (f, h0, h, grad_h), T, B, 1, H, None, reverse)
    grad_f, grad_x, grad_h0 = torch.empty_like(f), torch.empty_like(f), torch.empty_like(h0)
    grid.run(f, h0, h, grad_h, grad_f, grad_x, grad_h0)
    return grad_f, grad_x, grad_h0


def windows(x: Tensor, k: int, before: int, after: int) -> Tensor:
    """See `operator.windows`."""
    x = x.contiguous()
    T, B, I = x.shape
    rows = T + before + after - k + 1
    out = x.new_empty(rows, B, k * I)
    _slide("windows", x, out, (rows, T, B, I, k, before), rows + k - 1)
    return out


def windows_backward(grad: Tensor, k: int, before: int, after: int) -> Tensor:
    """See `reference.windows_backward`."""
    grad = grad.contiguous()
    rows, B, N = grad.shape
    T, I = rows - before - after + k - 1, N // k
    grad_x = grad.new_empty(T, B, I)
    _slide("windows_backward", grad, grad_x, (rows, T, B, I, k, before), T)
    return grad_x


def _slide(kernel: str, source: Tensor, target: Tensor, sizes: tuple[int, ...], steps: int) -> None:
    """`sizes` are those of WINDOWS; `steps`, of B * I elements, are what the lanes are for."""
    rows, T, B, I, k, before = sizes
    each = 16 // source.itemsize  # elements of a lane: 16 bytes where they lie so
    if I % each or source.data_ptr() % 16:
        each = 1
    I //= each
    blocks = -(-steps * B * I // (LANES * SLIDING_WARPS))
    if blocks:
        shape = _struct(WINDOWS, rows, T, B, I, k, before)
        arguments = (shape, source.data_ptr(), target.data_ptr())
        template = f"{TYPES[source.dtype]}, {each}"
        _launch(kernel, template, source, (blocks, 1, 1), SLIDING_WARPS, arguments)
