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

_REVERSE = {"forward": [False], "reverse": [True], "both": [False, True]}

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
    """The activations (T, B, D, H), in at least float32.

    In padding z and the update gate are zero, so that the cell stays as it is.
    """

    z: Tensor
    sigmoid_f: Tensor
    alive: Tensor | float  # what zoneout and padding make of the update gate, as a factor
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
    if valid is not None:
        alive = alive * valid.to(z.dtype)
    o, i, *_ = *(gate.sigmoid() for gate in rest), None, None
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
    for d, reverse in enumerate(_REVERSE[direction]):
        c = linear_recurrence(1 - update[:, :, d], added[:, :, d], start[d], reverse)
        cells.append(c)
        last.append(c[0 if reverse else -1] if T else start[d])
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
    """The gradients with respect to gates and c0, of which `operator.pool` has the arguments.

    cells (T, B, D * H): all cells, which for "f" are h. grad_h (T, B, D * H), grad_h_n and grad_c_n
    (D, B, H): the gradients with respect to the results, None for zeros.
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
    # in reverse a sequence starts from its padding, which holds c0
    c = c_TBDH if valid is None else c_TBDH.where(valid, start.transpose(0, 1))
    grad_cells, before, grad_start = [], [], []
    for d, reverse in enumerate(_REVERSE[direction]):
        g, g_start = _gradient_scan(grad_new[:, :, d], 1 - update[:, :, d], end[d], reverse)
        grad_cells.append(g)
        grad_start.append(g_start)
        before.append(previous(c[:, :, d], start[d], reverse))
    g_TBDH, c_before = torch.stack(grad_cells, 2), torch.stack(before, 2)
    if valid is not None:
        g_TBDH = g_TBDH.where(valid, 0)
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


def _is_final(T: int, lengths: Tensor | None, direction: str, device: torch.device) -> Tensor:
    """(T, B or 1, D, 1): whether a direction's last step of a sequence is this one.

    In reverse the first one is, also of a sequence of length 0, whose h is zero there.
    """
    steps = torch.arange(T, device=device)[:, None]
    last = steps == (T - 1 if lengths is None else lengths - 1)
    first = (steps == 0).expand_as(last)
    ends = [first if reverse else last for reverse in _REVERSE[direction]]
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
    """The gradients with respect to f, x and h0."""
    grad_x, grad_h0 = _gradient_scan(grad_h, f, _widen(torch.zeros_like(h0)), reverse)
    grad_f = grad_x * previous(h, h0, reverse)
    return grad_f.to(f.dtype), grad_x.to(f.dtype), grad_h0.to(f.dtype)


def _gradient_scan(grad_h: Tensor, f: Tensor, g: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and h0; g is what reaches the last h besides grad_h."""
    T, grad_x = f.shape[0], []
    for t in range(T) if reverse else range(T - 1, -1, -1):
        grad_x.append(grad_h[t] + g)
        g = f[t] * grad_x[-1]
    return torch.stack(grad_x if reverse else grad_x[::-1]) if T else grad_h.clone(), g


def previous(h: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """h_{t-1}, from h0 on, of every step t."""
    return torch.cat([h, h0[None]])[1:] if reverse else torch.cat([h0[None], h])[:-1]


def windows(x: Tensor, k: int, before: int, after: int) -> Tensor:
    """See `operator.windows`."""
    padded = F.pad(x, (0, 0, 0, 0, before, after)) if before or after else x
    rows = padded.shape[0] - k + 1
    return torch.cat([padded[j : j + rows] for j in range(k)], -1)


def windows_backward(grad: Tensor, k: int, before: int, after: int) -> Tensor:
    """The gradient with respect to x."""
    parts = grad.chunk(k, 2)  # unflatten has no rule for batched gradients
    rows = [F.pad(part, (0, 0, 0, 0, j, k - 1 - j)) for j, part in enumerate(parts)]
    padded = torch.stack(rows).sum(0)
    return padded[before : padded.shape[0] - after]
