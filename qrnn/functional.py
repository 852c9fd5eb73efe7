"""The pooling equations as functions of a convolution's pre-activations.

Equations 3 to 5 of Bradbury et al. 2016 (arXiv 1611.01576), in the paper's gate convention:
f is what is kept, c_t = f_t c_{t-1} + i_t z_t, and i = 1 - f unless the pooling is "ifo".
"""

from collections.abc import Collection
from numbers import Real
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from qrnn.pooling import operator
from qrnn.pooling.reference import DIRECTIONS, GATES

ZONEOUT_EVAL = ("mean", "none")


def check(condition: bool, argument: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{argument}: expected {expected}, got {got}")


def check_choice(argument: str, value: object, choices: Collection[str]) -> None:
    valid = isinstance(value, str) and value in choices
    check(valid, argument, f"one of {', '.join(choices)}", repr(value))


def check_number(argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument}: expected a number, got {type(value).__name__}")


def check_probability(argument: str, value: float) -> None:
    check_number(argument, value)
    check(0 <= value <= 1, argument, "a probability from 0 to 1", value)


def check_options(pooling: object, zoneout: float, zoneout_eval: object) -> None:
    """Those of `pool` that are a layer's as well, whose attributes may have been set since."""
    check_choice("pooling", pooling, GATES)
    check_probability("zoneout", zoneout)
    check_choice("zoneout_eval", zoneout_eval, ZONEOUT_EVAL)


def check_floating(argument: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{argument}: expected a dense Tensor, got {value.layout}")
    if value.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise TypeError(
            f"{argument}: expected float32, float64, float16 or bfloat16, got {value.dtype}"
        )


def autocasts(device: torch.device) -> bool:
    """Whether torch.autocast is on for this device."""
    # torch.amp.is_autocast_available would say this, but torch 2.11 cannot compile it
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def check_like(
    argument: str, value: object, shape: tuple[int, ...], like: Tensor, cast: bool = False
) -> None:
    """Raises unless `value` is a tensor of this shape, on the device and of the dtype of `like`.

    With `cast` any floating dtype will do, as under autocast.
    """
    check_floating(argument, value)
    assert isinstance(value, Tensor)
    check(value.shape == shape, argument, f"shape {tuple(shape)}", tuple(value.shape))
    check(value.device == like.device, argument, f"device {like.device}", value.device)
    if value.dtype != like.dtype and not cast:
        raise TypeError(f"{argument}: expected dtype {like.dtype}, got {value.dtype}")


def check_lengths(
    lengths: object, batch: int, steps: int, device: torch.device, argument: str = "lengths"
) -> Tensor:
    """`lengths` as int64 on `device`; values are looked at only where that costs no GPU sync."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{argument}: expected a Tensor, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"{argument}: expected integers, got {lengths.dtype}")
    check(lengths.shape == (batch,), argument, f"shape {(batch,)}", tuple(lengths.shape))
    on_cpu = lengths.device.type == "cpu"
    check(on_cpu or lengths.device == device, argument, f"device {device} or cpu", lengths.device)
    if on_cpu and batch and not torch.compiler.is_compiling() and not operator.is_transformed():
        values = lengths.tolist()
        check(
            0 <= min(values) and max(values) <= steps, argument, f"values from 0 to {steps}", values
        )
    return lengths.to(device, torch.int64)


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
    shift: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, zoneout, recurrence and output gate in one step.

    Args:
        pooling: "f", "fo" or "ifo": G = 2, 3 or 4 blocks of pre-activations.
        gates: (T + |shift|, B, D * G * H), in each direction the blocks z, f, o, i (the first G);
            float32, float64, float16 or bfloat16 (16-bit types accumulate in float32).
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
        shift: for "both", by how many rows the reverse half of the gates lies later than the
            forward half, so that one convolution can make both: step t of the two is in rows t
            and t + shift, or, when shift is negative, t - shift and t.

    Returns:
        h (T, B, D * H); h_n and c_n (D, B, H), outputs and cells after each sequence's last step,
        zero and c0 where it has none.

    Raises:
        ValueError, TypeError: for an argument of the wrong shape, dtype, device or value.
    """
    check_options(pooling, zoneout, zoneout_eval)
    check_choice("direction", direction, DIRECTIONS)
    check_floating("gates", gates)
    check(gates.dim() == 3, "gates", "3 dimensions (T, B, D * G * H)", tuple(gates.shape))
    rows, B, N = gates.shape
    D, G = DIRECTIONS[direction], GATES[pooling]
    if isinstance(shift, bool) or not isinstance(shift, int):
        raise TypeError(f"shift: expected an int, got {type(shift).__name__}")
    check(D == 2 or not shift, "shift", f"0 with direction {direction!r}", shift)
    check(abs(shift) <= rows, "shift", "at most the rows of gates", shift)
    T = rows - abs(shift)
    check(N % (D * G) == 0, "gates", f"a last dimension divisible by {D * G}", tuple(gates.shape))
    if c0 is not None:
        check_like("c0", c0, (D, B, N // (D * G)), gates, cast=autocasts(gates.device))
    if lengths is not None:
        lengths = check_lengths(lengths, B, T, gates.device)
    return pool_checked(
        pooling, gates, c0, lengths, direction, zoneout, zoneout_eval, training, shift
    )


def pool_checked(
    pooling: str,
    gates: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    direction: str,
    zoneout: float,
    zoneout_eval: str,
    training: bool,
    shift: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`pool` of what is known to be right; lengths are int64, on the device of the gates."""
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
    shift: int


def f_pool(
    gates: Tensor, c0: Tensor | None = None, **options: Unpack[PoolOptions]
) -> tuple[Tensor, Tensor]:
    """h and c_n of h_t = c_t = f_t c_{t-1} + (1 - f_t) z_t (equation 3), gates z, f; see
    `qrnn.functional.pool`."""
    h, _, c_n = pool("f", gates, c0, **options)
    return h, c_n


def fo_pool(
    gates: Tensor, c0: Tensor | None = None, **options: Unpack[PoolOptions]
) -> tuple[Tensor, Tensor]:
    """h and c_n of c_t as in `f_pool`, h_t = o_t c_t (equation 4), gates z, f, o; see
    `qrnn.functional.pool`."""
    h, _, c_n = pool("fo", gates, c0, **options)
    return h, c_n


def ifo_pool(
    gates: Tensor, c0: Tensor | None = None, **options: Unpack[PoolOptions]
) -> tuple[Tensor, Tensor]:
    """h and c_n of c_t = f_t c_{t-1} + i_t z_t, h_t = o_t c_t (equation 5), gates z, f, o, i; see
    `qrnn.functional.pool`."""
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
        f: factors (T, B, H); float32, float64, float16 or bfloat16. On a GPU up to 256 of them that
            follow each other are multiplied: what is infinite then makes h infinite or NaN.
        x: what is added (T, B, H).
        h0: the value before the first step (B, H); zeros when None. All are of one type; under
            autocast h is of the wider one of f and x.
        reverse: start at the last step and run to the first.

    Returns:
        h (T, B, H). Differentiable any number of times.

    Raises:
        ValueError, TypeError: for an argument of the wrong shape, dtype or device.
    """
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
