"""The pooling operators as PyTorch sees them: schemas, shapes, gradients, choice of backend.

qrnn::pool                        pre-activations to outputs, one fused step
qrnn::pool_backward               its gradient, itself differentiable (through the reference)
qrnn::linear_recurrence           h_t = f_t h_{t-1} + x_t
qrnn::linear_recurrence_backward  its gradient
"""

import importlib
import warnings
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from qrnn.pooling import reference
from qrnn.pooling.reference import DIRECTIONS, GATES

torch.library.define(
    "qrnn::pool",
    "(Tensor gates, Tensor? c0, Tensor? lengths, Tensor? seed, str pooling, str direction,"
    " float zoneout, bool keep_cells, int shift=0) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "qrnn::pool_backward",
    "(Tensor gates, Tensor? c0, Tensor? lengths, Tensor? seed, Tensor cells, Tensor? grad_h,"
    " Tensor? grad_h_n, Tensor? grad_c_n, str pooling, str direction, float zoneout, int shift=0)"
    " -> (Tensor, Tensor)",
)
torch.library.define(
    "qrnn::linear_recurrence", "(Tensor f, Tensor x, Tensor h0, bool reverse) -> Tensor"
)
torch.library.define(
    "qrnn::linear_recurrence_backward",
    "(Tensor grad_h, Tensor f, Tensor h0, Tensor h, bool reverse) -> (Tensor, Tensor, Tensor)",
)

# Types of arguments that are no Tensors: isinstance(value, Tensor) would take long to say so.
_OPTIONS = frozenset((type(None), str, bool, int, float))

BACKENDS = {
    "cpu": ("qrnn.pooling.cpu", ("numba", "llvmlite", "numpy"), "numba", "cpu"),
    "cuda": ("qrnn.pooling.cuda", ("cupy", "cupy_backends", "numpy"), "cupy-cuda13x", "cuda13"),
}


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
    """The fused step. D is 2 when direction is "both", whose second half runs in reverse.

    Args:
        gates: pre-activations (T + |shift|, B, D * G * H), in a direction z, f[, o[, i]].
        c0: first cells (D, B, H), or None for zeros.
        lengths: valid steps (B,) int64, or None for T. Padding is not read and gives zeros;
            in reverse a sequence starts at its own last step.
        seed: int64 scalar. With it each forget gate is 1 at the rate `zoneout` (training);
            without it the update gate 1 - f is scaled by 1 - zoneout (its mean).
        keep_cells: also return all cells. Where a gradient is wanted it keeps them by itself.
        shift: for "both", by how many rows the reverse half of the gates lies later than the
            forward half: step t of the two is in rows t and t + shift, or, when it is negative,
            t - shift and t. The rows beside them are not read.

    Returns:
        h (T, B, D * H); cells (T, B, D * H), or empty when not kept and for "f", whose cells
        are h; h_n and c_n (D, B, H), output and cell after the last valid step (zero and c0 where
        there is none).
    """
    arguments = gates, c0, lengths, seed, pooling, direction, zoneout, keep_cells, shift
    if is_transformed():
        return reference.pool(*arguments)
    results: tuple[Tensor, Tensor, Tensor, Tensor] = _call("pool", _Pool, *arguments)
    return results


def linear_recurrence(f: Tensor, x: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """h_t = f_t h_{t-1} + x_t over the first dimension; see `functional.linear_recurrence`."""
    if is_transformed():
        return reference.linear_recurrence(f, x, h0, reverse)
    h: Tensor = _call("linear_recurrence", _LinearRecurrence, f, x, h0, reverse)
    return h


def windows(x: Tensor, k: int, before: int, after: int) -> Tensor:
    """The windows of x (T, B, I) with so many rows of zeros before and after it: k steps each.

    Returns (T + before + after - k + 1, B, k * I). No operator of torch's: a compiler does better
    with what the reference is made of.
    """
    return _slide("windows", x, k, before, after)


def windows_backward(grad: Tensor, k: int, before: int, after: int) -> Tensor:
    """The gradient of `windows` with respect to x (T, B, I)."""
    return _slide("windows_backward", grad, k, before, after)


def _slide(name: str, x: Tensor, *sizes: int) -> Tensor:
    differentiable = torch.is_grad_enabled() and x.requires_grad
    kernel = _is_plain(x) and not differentiable and hasattr(_backend(x.device.type), name)
    result: Tensor = _run(name, x, *sizes) if kernel else getattr(reference, name)(x, *sizes)
    return result


def is_transformed() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is at work.

    The operators do not support them: torch would take their tangents for zero. The reference is
    made of torch's own operators, which support them all.
    """
    return not torch.compiler.is_compiling() and _has_transforms()


def _has_transforms() -> bool:
    """`is_transformed` for where torch.compile does not look: inside the operators."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _is_eager(*values: Any) -> bool:
    """Whether the dispatcher can be bypassed: plain tensors in eager torch, and no compiler,
    tracer, transform, mode, profiler or tensor subclass that has to see the operator.

    For a short sequence on a GPU all time is kernel launches, and the dispatcher takes as long as
    some of them.
    """
    return _is_plain(*values) and not torch._C._autograd._profiler_enabled()


def _is_plain(*values: Any) -> bool:
    """As `_is_eager`, but a profiler may be on."""
    if torch.compiler.is_compiling() or (device := values[0].device.type) not in BACKENDS:
        return False
    if torch._C._get_tracing_state() or torch._C._len_torch_dispatch_stack() or _has_transforms():
        return False
    plain = _plain_keys(device)
    for value in values:
        if (
            type(value) not in _OPTIONS
            and isinstance(value, Tensor)
            and torch._C._dispatch_keys(value).raw_repr() not in plain
        ):
            return False
    return True


@cache
def _plain_keys(device: str) -> set[int]:
    """The dispatch keys of tensors that are nothing but their own values in memory."""
    keys = set()
    for inference in (False, True):
        with torch.inference_mode(inference):
            keys.add(torch._C._dispatch_keys(torch.empty(0, device=device)).raw_repr())
    return keys


@cache
def _backend(device: str) -> ModuleType:
    """The compiled backend of a device, or the reference when what it needs is not installed."""
    module, needs, package, extra = BACKENDS[device]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # numba that does not fit its numpy raises one without a name
        if error.name and error.name.partition(".")[0] not in needs:
            raise
        warnings.warn(
            f"qrnn runs its slow PyTorch loop on {device}, because {needs[0]} cannot be used "
            f"({error}); for the compiled path: pip install {package}, as qrnn[{extra}] does",
            stacklevel=2,
        )
        return reference


def _check_lengths(lengths: Tensor | None, T: int) -> None:
    if lengths is not None and len(lengths) and not 0 <= lengths.min() <= lengths.max() <= T:
        raise ValueError(f"lengths: expected values from 0 to {T}, got {lengths.tolist()}")


def _run(name: str, first: Tensor, *rest: Any) -> Any:
    """The operator of this name, by the backend of its first argument's device."""
    if name == "pool" and first.is_cpu:  # elsewhere a look at the values would wait for the device
        _, lengths, *options = rest
        _check_lengths(lengths, len(first) - abs(options[5] if len(options) > 5 else 0))
    return getattr(_backend(first.device.type), name)(first, *rest)


for _name in ("pool", "pool_backward", "linear_recurrence", "linear_recurrence_backward"):
    torch.library.impl(f"qrnn::{_name}", "default", getattr(reference, _name))
    for _device in BACKENDS:
        torch.library.impl(f"qrnn::{_name}", _device, partial(_run, _name))


def _call(name: str, function: type[torch.autograd.Function] | None, *arguments: Any) -> Any:
    """The operator of this name, which `function` makes differentiable."""
    if not _is_eager(*arguments):
        return getattr(torch.ops.qrnn, name).default(*arguments)
    if function and torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
        return function.apply(*arguments)
    return _run(name, *arguments)


@torch.library.register_fake("qrnn::pool")
def _pool_fake(
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
    T, B, N = gates.shape[0] - abs(shift), *gates.shape[1:]
    D = DIRECTIONS[direction]
    H = N // (D * GATES[pooling])
    kept = (T, B, D * H) if keep_cells and pooling != "f" else (0,)
    shapes = ((T, B, D * H), kept, (D, B, H), (D, B, H))
    h, cells, h_n, c_n = (gates.new_empty(shape) for shape in shapes)
    return h, cells, h_n, c_n


@torch.library.register_fake("qrnn::pool_backward")
def _pool_backward_fake(
    gates: Tensor,
    c0: Any,
    lengths: Any,
    seed: Any,
    cells: Any,
    grad_h: Any,
    grad_h_n: Any,
    grad_c_n: Any,
    pooling: str,
    direction: str,
    zoneout: float,
    shift: int = 0,
) -> tuple[Tensor, Tensor]:
    D = DIRECTIONS[direction]
    H = gates.shape[2] // (D * GATES[pooling])
    return gates.new_empty(gates.shape), gates.new_empty(D, gates.shape[1], H)


@torch.library.register_fake("qrnn::linear_recurrence")
def _linear_recurrence_fake(f: Tensor, x: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    return f.new_empty(f.shape)


@torch.library.register_fake("qrnn::linear_recurrence_backward")
def _linear_recurrence_backward_fake(
    grad_h: Tensor, f: Tensor, h0: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return f.new_empty(f.shape), f.new_empty(f.shape), f.new_empty(h0.shape)


def _differentiable(name: str, function: type[torch.autograd.Function]) -> None:
    """Makes `function` the operator's autograd formula.

    As torch.library.register_autograd does, in less time per call: for a short sequence on a GPU
    such time is most of what there is.
    """
    operator = getattr(torch.ops.qrnn, name).default

    def call(*arguments: Any) -> Any:
        if _has_transforms():
            return getattr(reference, name)(*arguments)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return function.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    torch.library.impl(f"qrnn::{name}", "Autograd", call)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gates, c0, lengths, seed, pooling, direction, zoneout, keep_cells, *shift = arguments
        inputs = (gates, c0, lengths, seed, pooling, direction, zoneout, True, *shift)
        with torch._C._AutoDispatchBelowAutograd():
            h, cells, h_n, c_n = _call("pool", None, *inputs)
        ctx.options = (pooling, direction, zoneout, *shift)
        ctx.save_for_backward(gates, c0, lengths, seed, h if pooling == "f" else cells)
        if not keep_cells:
            cells = cells.new_empty(0)
        ctx.mark_non_differentiable(cells)
        ctx.set_materialize_grads(False)  # zeros for h or the cells would be as large as they
        return h, cells, h_n, c_n

    @staticmethod
    def backward(ctx: Any, grad_h: Any, _: None, grad_h_n: Any, grad_c_n: Any) -> Any:
        saved = ctx.saved_tensors  # torch.utils.checkpoint lets them be read only once
        backward: Callable[..., tuple[Tensor, Tensor]] = partial(_call, "pool_backward", None)
        if _has_transforms():
            backward = reference.pool_backward
        elif torch.is_grad_enabled():  # this one can be differentiated again
            backward = torch.ops.qrnn.pool_backward.default
        grad_gates, grad_c0 = backward(*saved, grad_h, grad_h_n, grad_c_n, *ctx.options)
        return grad_gates, None if saved[1] is None else grad_c0, *[None] * 7


_differentiable("pool", _Pool)


def _pool_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gates, c0, lengths, seed, _, *grads, pooling, direction, zoneout, shift = inputs
    ctx.save_for_backward(gates, c0, lengths, seed, *grads)
    ctx.options = (pooling, direction, zoneout, shift)


def _pool_double_gradient(ctx: Any, *grad_grads: Tensor) -> tuple[Any, ...]:
    gates, c0, lengths, seed, *grads = ctx.saved_tensors
    pooling, direction, zoneout, shift = ctx.options
    T, B, D = len(gates) - abs(shift), gates.shape[1], DIRECTIONS[direction]
    H = gates.shape[2] // (D * GATES[pooling])
    higher = torch.is_grad_enabled()
    given = (gates, c0, *grads)
    shapes = (gates.shape, (D, B, H), (T, B, D * H), (D, B, H), (D, B, H))
    with torch.enable_grad():
        inputs = []
        for value, shape in zip(given, shapes, strict=True):
            whole = gates.new_zeros(shape) if value is None else value
            # a view of its own, because one of them may itself have been made from another
            own = whole.view_as(whole) if whole.requires_grad else whole.detach().requires_grad_()
            inputs.append(own)
        gates, start, *grads = inputs
        h, _, h_n, c_n = reference.pool(
            gates, start, lengths, seed, pooling, direction, zoneout, False, shift
        )
        once = torch.autograd.grad((h, h_n, c_n), (gates, start), grads, create_graph=True)
        twice = torch.autograd.grad(
            once, inputs, grad_grads, create_graph=higher, materialize_grads=True
        )
    at_gates, at_c0, *at_grads = (
        None if value is None else grad for value, grad in zip(given, twice, strict=True)
    )
    return at_gates, at_c0, None, None, None, *at_grads, *[None] * 4


torch.library.register_autograd(
    "qrnn::pool_backward", _pool_double_gradient, setup_context=_pool_backward_setup
)


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, x: Tensor, h0: Tensor, reverse: bool) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            h: Tensor = _call("linear_recurrence", None, f, x, h0, reverse)
        ctx.reverse = reverse
        ctx.save_for_backward(f, h0, h)
        return h

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Any, ...]:
        f, h0, h = ctx.saved_tensors
        if torch.is_grad_enabled() or _has_transforms():  # this one can be differentiated again
            return *_composed_gradient(grad_h, f, h0, h, ctx.reverse), None
        return *_call("linear_recurrence_backward", None, grad_h, f, h0, h, ctx.reverse), None


_differentiable("linear_recurrence", _LinearRecurrence)


def _composed_gradient(
    grad_h: Tensor, f: Tensor, h0: Tensor, h: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """linear_recurrence_backward as another linear recurrence."""
    if not len(f):
        return grad_h, grad_h, torch.zeros_like(h0)
    # the gradient runs against the scan, and meets at step t the factor that h_t met next
    zero = torch.zeros_like(f[:1])
    after = torch.cat([zero, f[:-1]] if reverse else [f[1:], zero])
    grad_x = torch.ops.qrnn.linear_recurrence.default(
        after, grad_h, torch.zeros_like(h0), not reverse
    )
    first = -1 if reverse else 0
    return grad_x * reference.previous(h, h0, reverse), grad_x, f[first] * grad_x[first]
