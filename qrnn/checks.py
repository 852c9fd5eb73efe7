"""Checks of arguments. Their TypeError or ValueError names the argument, what was expected and what
it was."""

import warnings
from collections.abc import Collection
from numbers import Real

import torch
from torch import Tensor

from qrnn.pooling import operator
from qrnn.pooling.reference import GATES

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
    """Options that `pool` shares with a layer, whose attributes may be set after __init__."""
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
    expected = "device cpu" if device.type == "cpu" else f"device {device} or cpu"
    check(on_cpu or lengths.device == device, argument, expected, lengths.device)
    if on_cpu and batch and not torch.compiler.is_compiling() and not operator.is_transformed():
        values = lengths.tolist()
        check(
            0 <= min(values) and max(values) <= steps, argument, f"values from 0 to {steps}", values
        )
    # a copy, as the caller may change it before autograd has used it
    return lengths.to(device, torch.int64, copy=True)


def check_size(argument: str, value: object, least: int = 1) -> None:
    traced = isinstance(value, Tensor) and torch.jit.is_tracing()  # type: ignore[attr-defined]
    if traced or isinstance(value, torch.SymInt):
        return  # known when the program runs that is being made
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument}: expected an int, got {type(value).__name__}")
    check(value >= least, argument, f"at least {least}", value)


def check_flag(argument: str, value: object) -> None:
    # "false" would count as true
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError(f"{argument}: expected True or False, got {value!r}")


def check_dropout(rate: float, num_layers: int) -> None:
    """Of a stack. Warns as nn.LSTM does."""
    check_probability("dropout", rate)
    if rate and num_layers == 1:
        warnings.warn("dropout: has no effect with num_layers=1", stacklevel=3)


def check_index(argument: str, value: object) -> None:
    if not isinstance(value, Tensor) or value.dtype not in (torch.int64, torch.int32):
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{argument}: expected a Tensor of int64 or int32, got {got}")
    check(value.dim() == 1, argument, "1 dimension", tuple(value.shape))


def check_input(x: object, weight: Tensor, input_size: int) -> None:
    check_floating("input", x)
    assert isinstance(x, Tensor)
    check(x.dim() == 3, "input", "3 dimensions", tuple(x.shape))
    check(x.shape[2] == input_size, "input", f"a last dimension of {input_size}", x.shape[2])
    check(x.device == weight.device, "input", f"device {weight.device}", x.device)
    wide = torch.float64 in (x.dtype, weight.dtype)  # autocast leaves it alone
    if x.dtype != weight.dtype and (wide or not autocasts(x.device)):
        raise TypeError(f"input: expected dtype {weight.dtype}, got {x.dtype}")
