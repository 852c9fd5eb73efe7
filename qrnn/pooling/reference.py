"""The pooling equations in plain PyTorch: the definition of truth for every backend.

Equations 3 to 5 of Bradbury et al. 2016 (arXiv 1611.01576), zoneout of its section 2.1.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

GATES = {"f": 2, "fo": 3, "ifo": 4}
"""Blocks of pre-activations per pooling, in the order z, f, o, i."""

DIRECTIONS = {"forward": 1, "reverse": 1, "both": 2}

_SPLITMIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def offsets(shift: int) -> tuple[int, int]:
    """The row of the gates that belongs to step 0, of the forward and of the reverse direction."""
    return max(-shift, 0), max(shift, 0)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def uniform(seed: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1), float64: entry n depends on `seed` and n alone.

    The splitmix64 generator (Steele, Lea and Flood 2014) evaluated at its n-th state, so that
    every backend can make any entry when it needs it and none has to be stored.
    """

    def shift(x: Tensor, bits: int) -> Tensor:
        return (x >> bits) & ((1 << (64 - bits)) - 1)

    step, mix1, mix2 = map(_signed, _SPLITMIX)
    x = seed + step * torch.arange(1, count + 1, device=seed.device)
    x = (x ^ shift(x, 30)) * mix1
    x = (x ^ shift(x, 27)) * mix2
    return shift(x ^ shift(x, 31), 40).double() / (1 << 24)


class _Activated(NamedTuple):
    """The activations (T, B, D, H), in at least float32, with padding at zero pre-activation."""

    z: Tensor
    sigmoid_f: Tensor
    alive: Tensor | float  # what zoneout makes of the update gate, as a factor
    o: Tensor | None
    i: Tensor | None
    valid: Tensor | None  # (T, B, 1, 1), False in padding

    @property
    def update(self) -> Tensor:
        return self.alive * (1 - self.sigmoid_f)


def _activate(
    gates: Tensor,
    lengths: Tensor | None,
    seed: Tensor | None,
    pooling: str,
    direction: str,
    zoneout: float,
    shift: int,
) -> _Activated:
    rows, B, N = gates.shape
    T, D, G = rows - abs(shift), DIRECTIONS[direction], GATES[pooling]
    x_TBDGH = _widen(gates).reshape(rows, B, D, G, N // (D * G))
    if shift:
        halves = zip(x_TBDGH.unbind(2), offsets(shift), strict=True)
        x_TBDGH = torch.stack([half[first : first + T] for half, first in halves], 2)
    valid = None
    if lengths is not None:
        valid = (torch.arange(T, device=gates.device)[:, None] < lengths)[:, :, None, None]
        x_TBDGH = x_TBDGH.where(valid[..., None], 0)
    z, f, *rest = x_TBDGH.unbind(3)
    alive: Tensor | float = 1 - zoneout
    if seed is not None:
        alive = (uniform(seed, z.numel()).view(z.shape) >= zoneout).to(z.dtype)
    o, i = (*(gate.sigmoid() for gate in rest), None, None)[:2]
    return _Activated(z.tanh(), f.sigmoid(), alive, o, i, valid)


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
    """See `operator.pool`, whose arguments and results these are."""
    gate = _activate(gates, lengths, seed, pooling, direction, zoneout, shift)
    z, update, valid = gate.z, gate.update, gate.valid
    added = (update if gate.i is None else gate.i) * z
    T, B, D, H = z.shape
    start = z.new_zeros(D, B, H) if c0 is None else _widen(c0)
    cells, last = [], []
    for d in range(D):
        c, column = start[d], []
        for t in _order(T, direction, d):
            new = (1 - update[t, :, d]) * c + added[t, :, d]
            c = new if valid is None else new.where(valid[t, :, 0], c)
            column.append(c)
        cells.append(torch.stack([column[s] for s in _order(T, direction, d)]) if T else z[:, :, d])
        last.append(c)
    c_TBDH = torch.stack(cells, 2)
    if valid is not None:
        c_TBDH = c_TBDH.where(valid, 0)
    c = c_TBDH.flatten(2)
    # no views, see cpu.pool
    h = c if gate.o is None else gate.o.flatten(2) * c
    c_n = torch.cat([c[None] for c in last])
    kept = c if keep_cells and pooling != "f" else c.new_empty(0)
    final = _is_final(T, lengths, direction, gates.device)
    h_n = h.view(z.shape).where(final, 0).sum(0).transpose(0, 1)
    h_n = h_n.clone(memory_format=torch.contiguous_format)
    return h.to(gates.dtype), kept.to(gates.dtype), h_n.to(gates.dtype), c_n.to(gates.dtype)


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
    """The gradients at gates and c0; see `operator`. `cells` are all cells (h, for "f").

    Those at h, h_n and c_n are zero where they are None.
    """
    gate = _activate(gates, lengths, seed, pooling, direction, zoneout, shift)
    z, f, update, o, i, valid = gate.z, gate.sigmoid_f, gate.update, gate.o, gate.i, gate.valid
    T, B, D, H = z.shape
    c_TBDH = _widen(cells).view(z.shape)
    grad = torch.zeros_like(z) if grad_h is None else _widen(grad_h).reshape(z.shape)
    if grad_h_n is not None:
        final = _is_final(T, lengths, direction, gates.device)
        grad = grad + _widen(grad_h_n).transpose(0, 1).where(final, 0)
    if valid is not None:
        grad = grad.where(valid, 0)
    grad_new = grad if o is None else grad * o
    start = z.new_zeros(D, B, H) if c0 is None else _widen(c0)
    end = torch.zeros_like(start) if grad_c_n is None else _widen(grad_c_n)
    grad_cells, before, grad_start = [], [], []
    for d in range(D):
        g, column = end[d], []
        order = list(_order(T, direction, d))
        for t in reversed(order):
            at_step = grad_new[t, :, d] + g
            column.append(at_step)
            g_before = at_step * (1 - update[t, :, d])
            g = g_before if valid is None else g_before.where(valid[t, :, 0], g)
        column.reverse()
        grad_cells.append(torch.stack([column[s] for s in order]) if T else z[:, :, d])
        grad_start.append(g)
        shifted = [start[d] if s == 0 else c_TBDH[order[s - 1], :, d] for s in range(T)]
        before.append(torch.stack([shifted[s] for s in order]) if T else z[:, :, d])
    g_TBDH, c_before = torch.stack(grad_cells, 2), torch.stack(before, 2)
    if lengths is not None and valid is not None:
        g_TBDH = g_TBDH.where(valid, 0)
        # in reverse a sequence starts at its own last step, not at the batch's
        at_end = torch.arange(T, device=gates.device)[:, None] == lengths - 1
        for d in range(D):
            if direction == "reverse" or d == 1:
                c_before[:, :, d] = start[d].where(at_end[:, :, None], c_before[:, :, d])
    grads = [
        g_TBDH * (update if i is None else i) * (1 - z * z),
        g_TBDH * (c_before - z if i is None else c_before) * gate.alive * f * (1 - f),
    ]
    if o is not None:
        grads.append(grad * c_TBDH * o * (1 - o))
    if i is not None:
        grads.append(g_TBDH * z * i * (1 - i))
    grad_TBDGH = torch.stack(grads, 3)
    if shift:
        first, second = (
            F.pad(half, (0, 0, 0, 0, 0, 0, before, abs(shift) - before))
            for half, before in zip(grad_TBDGH.unbind(2), offsets(shift), strict=True)
        )
        grad_TBDGH = torch.stack([first, second], 2)
    grad_gates = grad_TBDGH.flatten(2)
    return grad_gates.to(gates.dtype), torch.stack(grad_start).to(gates.dtype)


def _order(T: int, direction: str, d: int) -> range:
    """The steps in the order in which direction d takes them; it is its own inverse."""
    return range(T - 1, -1, -1) if direction == "reverse" or d == 1 else range(T)


def _is_final(T: int, lengths: Tensor | None, direction: str, device: torch.device) -> Tensor:
    """(T, B or 1, D, 1): whether a direction's last step of a sequence is this one.

    In reverse the first one is, also of a sequence of length 0, whose h is zero there.
    """
    steps = torch.arange(T, device=device)[:, None]
    last = steps == (T - 1 if lengths is None else lengths - 1)
    first = (steps == 0).expand_as(last)
    ends = {"forward": [last], "reverse": [first], "both": [last, first]}[direction]
    return torch.stack(ends, 2)[..., None]


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def linear_recurrence(f: Tensor, x: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """h_t = f_t h_{t-1} + x_t over the first dimension; see `functional.linear_recurrence`."""
    T = f.shape[0]
    h, out = _widen(h0), []
    for t in range(T - 1, -1, -1) if reverse else range(T):
        h = f[t] * h + x[t]
        out.append(h)
    return torch.stack(out[::-1] if reverse else out).to(f.dtype) if T else x.clone()


def linear_recurrence_backward(
    grad_h: Tensor, f: Tensor, h0: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients at f, x and h0."""
    T = f.shape[0]
    g, grad_f, grad_x = _widen(torch.zeros_like(h0)), [], []
    for t in range(T) if reverse else range(T - 1, -1, -1):
        g = grad_h[t] + g
        before = t + 1 if reverse else t - 1
        grad_f.append(g * (h[before] if 0 <= before < T else h0))
        grad_x.append(g)
        g = f[t] * g
    if not T:
        return f.clone(), f.clone(), g.to(f.dtype)
    order = slice(None) if reverse else slice(None, None, -1)
    at_f, at_x = (torch.stack(grads[order]).to(f.dtype) for grads in (grad_f, grad_x))
    return at_f, at_x, g.to(f.dtype)


def windows(x: Tensor, k: int, before: int, after: int) -> Tensor:
    """See `operator.windows`."""
    padded = F.pad(x, (0, 0, 0, 0, before, after)) if before or after else x
    rows = padded.shape[0] - k + 1
    return torch.cat([padded[j : j + rows] for j in range(k)], -1)


def windows_backward(grad: Tensor, k: int, before: int, after: int) -> Tensor:
    """The gradient at x."""
    parts = _widen(grad).chunk(k, 2)  # unflatten has no rule for batched gradients
    rows = [F.pad(part, (0, 0, 0, 0, j, k - 1 - j)) for j, part in enumerate(parts)]
    padded = torch.stack(rows).sum(0)
    return padded[before : padded.shape[0] - after].to(grad.dtype)
