"""The pooling operator compiled for the CPU by numba.

A thread walks the time steps of some (sequence, direction) rows; its inner loop runs over
channels without branches, so that LLVM turns it into vector instructions. That is why exp is
written out here: a call into libm would stop it, and make the scan several times slower.

Threads are plain ones around kernels that release the GIL, as many as torch uses: numba's own
threading layers abort the process when two Python threads enter them at once.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from math import factorial
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload, register_jitable
from torch import Tensor

from qrnn.pooling.reference import DIRECTIONS, GATES, offsets

Kernel = Callable[..., None]

if numba.config.DISABLE_JIT:  # some functions below exist only as numba compiles them
    raise ImportError("NUMBA_DISABLE_JIT is set", name="numba")


def _jit(function: Callable[..., Any]) -> Any:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no writable folder for its cache
        return numba.njit(**options)(function)


_BLOCK = 16  # channels per vector, at most
_SERIAL = 1 << 14  # elements of h below which a second thread costs more than it saves


def _sigmoid(x: Any) -> Any:
    """Known to numba alone, for float32 and float64: see _activations."""


def _tanh(x: Any) -> Any:
    """Known to numba alone, for float32 and float64: see _activations."""


@cache
def _activations(real: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """sigmoid and tanh, in the precision `real`, as code that vectorises."""
    wide = real is np.float64
    integer = np.int64 if wide else np.int32
    bias, mantissa = (integer(1023), integer(52)) if wide else (integer(127), integer(23))
    limit = real(708 if wide else 87)
    log2_e, half, one, two = (real(v) for v in (np.log2(np.e), 0.5, 1, 2))
    ln2_high = real(0.693145751953125 if wide else 0.693359375)
    ln2_low = real(1.42860682030941723212e-6 if wide else -2.12194440e-4)
    c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = (real(1 / factorial(k)) for k in range(3, 14))

    @register_jitable
    def exp_parts(x):
        """s, q with exp(x) = s + s q, s a power of two; NaN goes through."""
        x = -limit if x < -limit else x
        x = limit if x > limit else x
        n = np.floor(x * log2_e + half)
        r = x - n * ln2_high
        r = r - n * ln2_low
        if wide:
            q = c13
            q = q * r + c12
            q = q * r + c11
            q = q * r + c10
            q = q * r + c9
            q = q * r + c8
            q = q * r + c7
        else:
            q = c7
        q = q * r + c6
        q = q * r + c5
        q = q * r + c4
        q = q * r + c3
        q = q * r + half
        q = q * r * r + r
        return integer((integer(n) + bias) << mantissa).view(real), q

    def sigmoid(x):
        s, q = exp_parts(-x)
        return one / (one + (s + s * q))

    def tanh(x):
        s, q = exp_parts(two * x)
        e = s * q + (s - one)  # exp(2x) - 1, without cancellation near 0
        return e / (e + two)

    return sigmoid, tanh


@overload(_sigmoid)
def _(x):
    return _activations(np.float64 if x == types.float64 else np.float32)[0]


@overload(_tanh)
def _(x):
    return _activations(np.float64 if x == types.float64 else np.float32)[1]


@numba.njit(inline="always")
def _dropped(seed, n, threshold):
    """Whether entry n of reference.uniform(seed) is below the rate, as 24-bit integers."""
    x = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(n + 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((x ^ (x >> np.uint64(31))) >> np.uint64(40)) < threshold


@_jit
def _forward(
    lo,
    hi,
    j0,
    j1,
    blocks,
    drawn,
    gates,
    rows,
    c0,
    lengths,
    seed,
    threshold,
    keep,
    reverse,
    h,
    cells,
    h_n,
    c_n,
):
    """The rows lo..hi of B * D and the channels j0..j1.

    How many `blocks` of gates there are, and whether zoneout is `drawn`, are lengths of tuples:
    these are constants to the compiler, as numbers would not be. Every row is sliced to one
    dimension first: only then does numba know its stride to be 1. `rows` holds where each direction
    has its gates of step 0.
    """
    T, B, D, H = h.shape
    one, zero = c0.dtype.type(1), c0.dtype.type(0)
    gated, own_input, random = len(blocks) > 2, len(blocks) > 3, len(drawn) > 0
    O, I = min(2, len(blocks) - 1), len(blocks) - 1
    store = cells.shape[0] > 0
    c = np.empty(j1 - j0, c0.dtype)
    for n in range(lo, hi):
        b, d = n // D, n % D
        length = lengths[b]
        c[:] = c0[d, b, j0:j1]
        for s in range(length):
            t = length - 1 - s if reverse or d == 1 else s
            row = rows[d] + t
            z_pre, f_pre = gates[row, b, d, 0, j0:j1], gates[row, b, d, 1, j0:j1]
            o_pre, i_pre = gates[row, b, d, O, j0:j1], gates[row, b, d, I, j0:j1]
            out = h[t, b, d, j0:j1]
            first = ((t * B + b) * D + d) * H + j0
            for j in range(j1 - j0):
                update = keep * (one - _sigmoid(f_pre[j]))
                if random:
                    update = zero if _dropped(seed, first + j, threshold) else update
                i = _sigmoid(i_pre[j]) if own_input else update
                c[j] = (one - update) * c[j] + i * _tanh(z_pre[j])
                out[j] = _sigmoid(o_pre[j]) * c[j] if gated else c[j]
            if store:
                cells[t, b, d, j0:j1] = c
        c_n[d, b, j0:j1] = c
        h_n[d, b, j0:j1] = zero
        if length > 0:
            h_n[d, b, j0:j1] = h[0 if reverse or d == 1 else length - 1, b, d, j0:j1]
        for t in range(length, T):
            h[t, b, d, j0:j1] = zero
            if store:
                cells[t, b, d, j0:j1] = zero


@_jit
def _backward(
    lo,
    hi,
    j0,
    j1,
    blocks,
    drawn,
    gates,
    rows,
    c0,
    lengths,
    seed,
    threshold,
    keep,
    reverse,
    cells,
    grad_h,
    grad_h_n,
    grad_c_n,
    grad_gates,
    grad_c0,
):
    """The gradient of `_forward`, with its arguments."""
    T, B, D, H = cells.shape
    one, zero = c0.dtype.type(1), c0.dtype.type(0)
    gated, own_input, random = len(blocks) > 2, len(blocks) > 3, len(drawn) > 0
    O, I = min(2, len(blocks) - 1), len(blocks) - 1
    grad_c, grad_last = np.empty(j1 - j0, c0.dtype), np.empty(j1 - j0, c0.dtype)
    for n in range(lo, hi):
        b, d = n // D, n % D
        length = lengths[b]
        grad_c[:] = grad_c_n[d, b, j0:j1]
        grad_last[:] = grad_h_n[d, b, j0:j1]
        for s in range(length - 1, -1, -1):
            t, before = (length - 1 - s, length - s) if reverse or d == 1 else (s, s - 1)
            row = rows[d] + t
            z_pre, f_pre = gates[row, b, d, 0, j0:j1], gates[row, b, d, 1, j0:j1]
            o_pre, i_pre = gates[row, b, d, O, j0:j1], gates[row, b, d, I, j0:j1]
            grad_z, grad_f = grad_gates[row, b, d, 0, j0:j1], grad_gates[row, b, d, 1, j0:j1]
            grad_o, grad_i = grad_gates[row, b, d, O, j0:j1], grad_gates[row, b, d, I, j0:j1]
            grad_out, c = grad_h[t, b, d, j0:j1], cells[t, b, d, j0:j1]
            c_before = cells[before, b, d, j0:j1] if s > 0 else c0[d, b, j0:j1]
            first = ((t * B + b) * D + d) * H + j0
            for j in range(j1 - j0):
                z, f = _tanh(z_pre[j]), _sigmoid(f_pre[j])
                alive = keep
                if random:
                    alive = zero if _dropped(seed, first + j, threshold) else keep
                update = alive * (one - f)
                g = grad_out[j] + grad_last[j]
                if gated:
                    o = _sigmoid(o_pre[j])
                    grad_o[j] = g * c[j] * o * (one - o)
                    g = g * o
                g = g + grad_c[j]
                slope = alive * f * (one - f)
                if own_input:
                    i = _sigmoid(i_pre[j])
                    grad_i[j] = g * z * i * (one - i)
                    grad_z[j] = g * i * (one - z * z)
                    grad_f[j] = g * c_before[j] * slope
                else:
                    grad_z[j] = g * update * (one - z * z)
                    grad_f[j] = g * (c_before[j] - z) * slope
                grad_c[j] = g * (one - update)
            if s == length - 1:
                grad_last[:] = zero
        grad_c0[d, b, j0:j1] = grad_c
        first, last = rows[d], rows[d] + length
        for row in range(len(gates)):
            if row < first or row >= last:
                for gate in range(len(blocks)):
                    grad_gates[row, b, d, gate, j0:j1] = zero


@_jit
def _recurrence(lo, hi, j0, j1, f, x, h0, reverse, h):
    T = f.shape[0]
    for b in range(lo, hi):
        last = h0[b, j0:j1]
        for s in range(T):
            t = T - 1 - s if reverse else s
            keep, new, out = f[t, b, j0:j1], x[t, b, j0:j1], h[t, b, j0:j1]
            for j in range(j1 - j0):
                out[j] = keep[j] * last[j] + new[j]
            last = out


@_jit
def _recurrence_backward(lo, hi, j0, j1, grad_h, f, h0, h, reverse, grad_f, grad_x, grad_h0):
    T = f.shape[0]
    g = np.empty(j1 - j0, h0.dtype)
    for b in range(lo, hi):
        g[:] = h0.dtype.type(0)
        for s in range(T - 1, -1, -1):
            t, before = (T - 1 - s, T - s) if reverse else (s, s - 1)
            grad, keep = grad_h[t, b, j0:j1], f[t, b, j0:j1]
            last = h[before, b, j0:j1] if s > 0 else h0[b, j0:j1]
            out_f, out_x = grad_f[t, b, j0:j1], grad_x[t, b, j0:j1]
            for j in range(j1 - j0):
                at_step = g[j] + grad[j]
                out_x[j] = at_step
                out_f[j] = at_step * last[j]
                g[j] = at_step * keep[j]
        grad_h0[b, j0:j1] = g


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """A pool for each process: a forked child inherits its parent's, but not the threads."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="qrnn")


def _launch(kernel: Kernel, rows: int, channels: int, work: int, *arguments: Any) -> None:
    """Calls `kernel` on all rows and channels, cut into one piece per torch thread."""
    pieces = torch.get_num_threads() if work >= _SERIAL else 1
    if rows >= pieces:
        cuts = [rows * p // pieces for p in range(pieces + 1)]
        calls = [(lo, hi, 0, channels) for lo, hi in pairwise(cuts)]
    else:
        # in whole vectors: the rest of a row is rounded otherwise, and would depend on the cut
        width = max(1, -(-channels // (pieces * _BLOCK))) * _BLOCK
        calls = [(0, rows, j, min(j + width, channels)) for j in range(0, channels, width)]
    others, refused = [], None
    for call in calls[1:]:
        pool = _threads(os.getpid())
        try:
            others.append(pool.submit(kernel, *call, *arguments))
        except RuntimeError:  # no thread can be started, or Python is about to end
            refused = pool
            break
    for call in (*calls[:1], *calls[1 + len(others) :]):
        kernel(*call, *arguments)
    for other in others:
        other.result()
    if refused is not None:  # it may have queued the call all the same: not to be run later
        _threads.cache_clear()
        refused.shutdown()


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What the kernels compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _array(x: Tensor) -> Any:
    return x.detach().to(_wide(x.dtype)).contiguous().numpy()


class _Call:
    """What forward and backward of one call share: shapes, and numpy views in one precision."""

    def __init__(
        self,
        gates: Tensor,
        c0: Tensor | None,
        lengths: Tensor | None,
        seed: Tensor | None,
        pooling: str,
        direction: str,
        zoneout: float,
        shift: int,
    ) -> None:
        T, B, N = gates.shape[0] - abs(shift), *gates.shape[1:]
        D, G = DIRECTIONS[direction], GATES[pooling]
        self.shape, self.dtype = (T, B, D, N // (D * G)), gates.dtype
        self.wide = _wide(gates.dtype)
        real = np.float64 if self.wide == torch.float64 else np.float32
        H = self.shape[3]
        self.gates_shape = (gates.shape[0], B, D, G, H)
        start = gates.new_zeros(D, B, H) if c0 is None else c0
        self.inputs = (
            (0,) * G,
            (0,) * (seed is not None),
            _array(gates.reshape(self.gates_shape)),
            offsets(shift),
            _array(start),
            np.full(B, T) if lengths is None else lengths.contiguous().numpy(),
            np.int64(0 if seed is None else seed.item()),
            np.int64(np.ceil(zoneout * (1 << 24))),
            real(1 if seed is not None else 1 - zoneout),
            direction == "reverse",
        )

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.wide, device="cpu")

    def run(self, kernel: Kernel, *arguments: Any) -> None:
        T, B, D, H = self.shape
        _launch(kernel, B * D, H, T * B * D * H, *self.inputs, *arguments)


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
    call = _Call(gates, c0, lengths, seed, pooling, direction, zoneout, shift)
    T, B, D, H = call.shape
    # no views of others, which autograd would not let its user change in place
    h, h_n, c_n = call.empty(T, B, D * H), call.empty(D, B, H), call.empty(D, B, H)
    keep_cells = keep_cells and pooling != "f"
    cells = call.empty(T, B, D * H) if keep_cells else call.empty(0)
    as_kernel = cells.view(T if keep_cells else 0, B, D, H)
    call.run(_forward, h.view(call.shape).numpy(), as_kernel.numpy(), h_n.numpy(), c_n.numpy())
    h, cells, h_n, c_n = (v.to(call.dtype) for v in (h, cells, h_n, c_n))
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
    call = _Call(gates, c0, lengths, seed, pooling, direction, zoneout, shift)
    T, B, D, H = call.shape
    grad_gates, grad_c0 = call.empty(*call.gates_shape), call.empty(D, B, H)
    grad_h, grad_h_n, grad_c_n = (
        gates.new_zeros(shape) if grad is None else grad
        for grad, shape in ((grad_h, call.shape), (grad_h_n, (D, B, H)), (grad_c_n, (D, B, H)))
    )
    call.run(
        _backward,
        _array(cells.view(call.shape)),
        _array(grad_h.reshape(call.shape)),
        _array(grad_h_n),
        _array(grad_c_n),
        grad_gates.numpy(),
        grad_c0.numpy(),
    )
    return grad_gates.flatten(2).to(call.dtype), grad_c0.to(call.dtype)


def linear_recurrence(f: Tensor, x: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """See `functional.linear_recurrence`."""
    h, *_ = _run_recurrence(_recurrence, (f, x, h0), reverse, [f.shape])
    return h


def linear_recurrence_backward(
    grad_h: Tensor, f: Tensor, h0: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.linear_recurrence_backward`."""
    shapes = [f.shape, f.shape, h0.shape]
    grad_f, grad_x, grad_h0 = _run_recurrence(
        _recurrence_backward, (grad_h, f, h0, h), reverse, shapes
    )
    return grad_f, grad_x, grad_h0


def _run_recurrence(
    kernel: Kernel, inputs: Sequence[Tensor], reverse: bool, shapes: Sequence[torch.Size]
) -> list[Tensor]:
    """The kernel's outputs of these shapes, from inputs the first of which is (T, B, H)."""
    (T, B, H), dtype = inputs[0].shape, inputs[0].dtype
    outputs = [torch.empty(shape, dtype=_wide(dtype), device="cpu") for shape in shapes]
    _launch(kernel, B, H, T * B * H, *map(_array, inputs), reverse, *(v.numpy() for v in outputs))
    return [v.to(dtype) for v in outputs]
