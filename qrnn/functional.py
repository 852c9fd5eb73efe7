"""The pooling equations as functions of a convolution's pre-activations.

Equations 3 to 5 of Bradbury et al. 2016 (arXiv 1611.01576), in the paper's gate convention:
f is what is kept, c_t = f_t c_{t-1} + i_t z_t, and i = 1 - f unless the pooling is "ifo".
"""

from typing import TypedDict, Unpack

import torch
from torch import Tensor

from qrnn.checks import (
    autocasts,
    check,
    check_choice,
    check_flag,
    check_floating,
    check_lengths,
    check_like,
    check_options,
)
from qrnn.pooling import operator
from qrnn.pooling.reference import DIRECTIONS, GATES


def pool(
    pooling: str,
    gates: Tensor,
    c0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    direction: str = "forward",
    zoneout: float = 0.0,
    zoneout_eval: str = "mean",
    training: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, zoneout, recurrence and output gate in one step.

    Args:
        pooling: "f", "fo" or "ifo": G = 2, 3 or 4 blocks of pre-activations.
        gates: (T, B, D * G * H), in each direction the blocks z, f, o, i (the first G); float32,
            float64, float16 or bfloat16 (16-bit types accumulate in float32).
        c0: first cells (D, B, H); zeros when None. Of the gates' type, or, under autocast, any.
        lengths: valid steps of each sequence, integers (B,); T when None. Padding is never read,
            gives zeros and changes no state; in reverse a sequence starts at its own last step.
        direction: "forward", "reverse" or "both" (D = 2: a forward half, then a reverse half).
        zoneout: the rate at which a forget gate is set to 1 in training, so that (with i = 1 - f)
            the cell stays as it is (section 2.1 of the paper). Random numbers come from torch's
            generator of the gates' device.
        zoneout_eval: what stands for it outside training, which the paper does not say: "mean"
            scales the update gate 1 - f by 1 - zoneout, "none" uses f as it is.
        training: whether zoneout is drawn at random.

    Returns:
        h (T, B, D * H); h_n and c_n (D, B, H), outputs and cells after each sequence's last step,
        zero and c0 where it has none.

    Raises:
        ValueError, TypeError: for an argument of the wrong shape, dtype, device or value.
    """
    check_options(pooling, zoneout, zoneout_eval)
    check_flag("training", training)
    check_choice("direction", direction, DIRECTIONS)
    check_floating("gates", gates)
    check(gates.dim() == 3, "gates", "3 dimensions (T, B, D * G * H)", tuple(gates.shape))
    T, B, N = gates.shape
    D, G = DIRECTIONS[direction], GATES[pooling]
    check(N % (D * G) == 0, "gates", f"a last dimension divisible by {D * G}", tuple(gates.shape))
    if c0 is not None:
        check_like("c0", c0, (D, B, N // (D * G)), gates, cast=autocasts(gates.device))
    if lengths is not None:
        lengths = check_lengths(lengths, B, T, gates.device)
    return pool_checked(pooling, gates, c0, lengths, direction, zoneout, zoneout_eval, training)


def pool_checked(
    pooling: str,
    gates: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    direction: str,
    zoneout: float,
    zoneout_eval: str,
    training: bool,
    shift: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`pool` without its checks; lengths are int64, on the device of the gates. shift: see
    `operator.pool`."""
    if c0 is not None:
        c0 = c0.to(gates.dtype)
    seed = None
    if zoneout and training:
        seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device=gates.device)
    elif zoneout_eval == "none":
        zoneout = 0.0
    h, _, h_n, c_n = operator.pool(
        gates, c0, lengths, seed, pooling, direction, float(zoneout), False, shift
    )
    return h, h_n, c_n


class PoolOptions(TypedDict, total=False):
    """The keyword arguments of `pool`."""

    lengths: Tensor | None
    direction: str
    zoneout: float
    zoneout_eval: str
    training: bool


def f_pool(
    gates: Tensor, c0: Tensor | None = None, **options: Unpack[PoolOptions]
) -> tuple[Tensor, Tensor]:
    """h_t = c_t = f_t c_{t-1} + (1 - f_t) z_t (equation 3).

    gates (T, B, D * 2 * H), in each direction the pre-activations of z and f; c0 (D, B, H), or None
    for zeros. Returns h (T, B, D * H) and c_n (D, B, H), the cells after each sequence's last step.
    Options, dtypes and errors: see `qrnn.functional.pool`.
    """
    h, _, c_n = pool("f", gates, c0, **options)
    return h, c_n


def fo_pool(
    gates: Tensor, c0: Tensor | None = None, **options: Unpack[PoolOptions]
) -> tuple[Tensor, Tensor]:
    """c_t = f_t c_{t-1} + (1 - f_t) z_t, h_t = o_t c_t (equation 4).

    As `f_pool`, with gates (T, B, D * 3 * H): z, f, o.
    """
    h, _, c_n = pool("fo", gates, c0, **options)
    return h, c_n


def ifo_pool(
    gates: Tensor, c0: Tensor | None = None, **options: Unpack[PoolOptions]
) -> tuple[Tensor, Tensor]:
    """c_t = f_t c_{t-1} + i_t z_t, h_t = o_t c_t (equation 5).

    As `f_pool`, with gates (T, B, D * 4 * H): z, f, o, i.
    """
    h, _, c_n = pool("ifo", gates, c0, **options)
    return h, c_n


def linear_recurrence(
    f: Tensor, x: Tensor, h0: Tensor | None = None, *, reverse: bool = False
) -> Tensor:
    """h_t = f_t h_{t-1} + x_t, with no activations: the scan for other architectures.

    >>> f, x = torch.full((3, 1, 1), 0.5), torch.tensor([8.0, 2.0, 1.0]).view(3, 1, 1)
    >>> linear_recurrence(f, x).flatten().tolist()
    [8.0, 6.0, 4.0]

    Args:
        f: factors (T, B, H); float32, float64, float16 or bfloat16. On a GPU up to 512 consecutive
            factors are multiplied with each other: where that overflows, h is infinite or NaN.
        x: what is added (T, B, H).
        h0: the value before the first step (B, H); zeros when None. All are of one type; under
            autocast h is of the wider one of f and x.
        reverse: start at the last step and run to the first.

    Returns:
        h (T, B, H). Differentiable any number of times.

    Raises:
        ValueError, TypeError: for an argument of the wrong shape, dtype or device.
    """
    check_flag("reverse", reverse)
    check_floating("f", f)
    check(f.dim() == 3, "f", "3 dimensions (T, B, H)", tuple(f.shape))
    cast = autocasts(f.device)
    check_like("x", x, tuple(f.shape), f, cast)
    if h0 is None:
        h0 = f.new_zeros(f.shape[1:])
    check_like("h0", h0, tuple(f.shape[1:]), f, cast)
    if cast:
        dtype = torch.promote_types(f.dtype, x.dtype)
        f, x, h0 = f.to(dtype), x.to(dtype), h0.to(dtype)
    return operator.linear_recurrence(f, x, h0, reverse)
