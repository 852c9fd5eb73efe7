"""The pooling equations in plain PyTorch: the definition of truth for every backend.

Equations 3 to 5 of Bradbury et al. 2016 (arXiv 1611.01576), zoneout of its section 2.1.
"""

import torch
from torch import Tensor

GATES = {"f": 2, "fo": 3, "ifo": 4}
"""Blocks of pre-activations per pooling, in the order z, f, o, i."""

DIRECTIONS = {"forward": 1, "reverse": 1, "both": 2}

_SPLITMIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


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


def pool(
    gates: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | None,
    pooling: str,
    direction: str,
    zoneout: float,
    keep_cells: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `operator.pool`, whose arguments and results these are."""
    T, B, _ = gates.shape
    D, G = DIRECTIONS[direction], GATES[pooling]
    dtype = gates.dtype
    wide = torch.float32 if dtype.itemsize < 4 else dtype
    x_TBDGH = gates.to(wide).reshape(T, B, D, G, gates.shape[2] // (D * G))
    valid_TB = None
    if lengths is not None:
        valid_TB = torch.arange(T, device=gates.device)[:, None] < lengths
        x_TBDGH = x_TBDGH.where(valid_TB[:, :, None, None, None], 0)

    z, f = x_TBDGH[:, :, :, 0].tanh(), x_TBDGH[:, :, :, 1].sigmoid()
    if seed is not None:
        dropped = uniform(seed, z.numel()).view(z.shape) < zoneout
        f = f.masked_fill(dropped, 1)
    elif zoneout:
        f = 1 - (1 - zoneout) * (1 - f)
    i = x_TBDGH[:, :, :, 3].sigmoid() if pooling == "ifo" else 1 - f

    H = z.shape[3]
    start = z.new_zeros(D, B, H) if c0 is None else c0.to(wide)
    cells, last = [], []
    for d in range(D):
        c = start[d]
        column: list[Tensor] = []
        backwards = direction == "reverse" or d == 1
        for t in range(T - 1, -1, -1) if backwards else range(T):
            new = f[t, :, d] * c + i[t, :, d] * z[t, :, d]
            c = new if valid_TB is None else new.where(valid_TB[t, :, None], c)
            column.append(c)
        cells.append(torch.stack(column[::-1] if backwards else column) if T else z[:, :, d])
        last.append(c)
    c_TBDH, c_n = torch.stack(cells, 2), torch.stack(last)
    if valid_TB is not None:
        c_TBDH = c_TBDH.where(valid_TB[:, :, None, None], 0)
    h_TBDH = c_TBDH if pooling == "f" else x_TBDGH[:, :, :, 2].sigmoid() * c_TBDH
    kept = c_TBDH.flatten(2) if keep_cells and pooling != "f" else c_TBDH.new_empty(0)
    return h_TBDH.flatten(2).to(dtype), kept.to(dtype), c_n.to(dtype)


def linear_recurrence(f: Tensor, x: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """h_t = f_t h_{t-1} + x_t over the first dimension; see `functional.linear_recurrence`."""
    T = f.shape[0]
    wide = torch.float32 if f.dtype.itemsize < 4 else f.dtype
    h, out = h0.to(wide), []
    for t in range(T - 1, -1, -1) if reverse else range(T):
        h = f[t] * h + x[t]
        out.append(h)
    return torch.stack(out[::-1] if reverse else out).to(f.dtype) if T else x.clone()
