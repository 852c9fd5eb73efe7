"""A layer's convolution over time, and its gradients, by what is fastest for its shape.

x (T, B, I), with rows of zeros before and after it, to (T + before + after - k + 1, B, N); weight
(N, k * I), bias (N). A window is the k steps that one row is made of, side by side: (k * I).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from qrnn.checks import autocasts
from qrnn.pooling import operator


def _onednn_from() -> float:
    """How many multiplications a gradient's matrix product must have to be given to oneDNN.

    On AMD from Zen 5 on, MKL's float32 products take up to 2.2 times as long as oneDNN's; on Zen 4
    large ones take longer than oneDNN's, and small ones less. Intel is not measured.
    """
    capabilities = torch.cpu.get_capabilities()
    if "AMD" not in str(capabilities.get("cpu_name")):
        return torch.inf
    zen5 = capabilities.get("avx512_vp2intersect")  # of AMD's the first with it
    return 0 if zen5 else 5 << 29


ONEDNN_FROM = _onednn_from()

# Sizes from which on the convolution's backward builds no windows; below them its extra calls cost
# more than copying the windows. Measured by `scripts/benchmark.py convolution`.
MANY_ROWS = 256 if ONEDNN_FROM == 0 else 1024  # steps times sequences, on a CPU
MANY_WINDOWS = 3 << 24  # elements of all windows, on a GPU
FEW_WINDOWS = 1 << 20  # elements (a few MB): at most so many are kept for backward; not measured
PIECE = 2048  # rows per call of oneDNN for the weight's gradient: its copies then fit the cache
# torch gives oneDNN no smaller image than this, and with fewer channels oneDNN is not faster.
LEAST_IMAGE, LEAST_CHANNELS = 20_480, 16


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, before: int, after: int
) -> Tensor:
    """The convolution, differentiable any number of times; under autocast in its lower type."""
    sizes = (k, before, after)
    own = torch.is_grad_enabled() and _has_own_backward(x, *sizes)
    if autocasts(x.device) and x.dtype != torch.float64:
        # as F.linear would, but of k times as much
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if not own or operator.is_transformed():
        return _convolve(x, weight, bias, *sizes)
    if weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
    gates: Tensor = _Convolution.apply(x, weight, bias, *sizes)
    return gates


def _is_large(x: Tensor, k: int, before: int, after: int) -> bool:
    """Whether the backward of `_Convolution` makes no windows."""
    T, B, I = x.shape
    rows = (T + before + after - k + 1) * B
    return rows >= MANY_ROWS if x.is_cpu else rows * k * I >= MANY_WINDOWS


def _has_own_backward(x: Tensor, *sizes: int) -> bool:
    """Whether the convolution is left neither to torch's autograd nor to a compiler."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return x.is_cuda or _is_large(x, *sizes)


def _takes_onednn(x: Tensor, weight: Tensor, *sizes: int) -> bool:
    """Whether `_convolve` is oneDNN's convolution."""
    if not (x.is_cpu and x.dtype == torch.float32 and _has_own_backward(x, *sizes)):
        return False
    channels = min(x.shape[2], len(weight))  # of x, and of the gradient of what is made of it
    large = len(x) * x.shape[1] * channels > LEAST_IMAGE and channels >= LEAST_CHANNELS
    return large and torch.backends.mkldnn.is_available()


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, before: int, after: int
) -> Tensor:
    """By oneDNN's convolution, or by one matrix product over the windows."""
    if _takes_onednn(x, weight, k, before, after):
        image = _image(_pad(x, before, after))
        return _steps(F.conv2d(image, _kernel(weight, k), bias))
    return F.linear(operator.windows(x, k, before, after), weight, bias)


def _pad(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, before, after)) if before or after else x


def _image(x: Tensor) -> Tensor:
    """(T, B, N) as conv2d takes it: (1, N, T, B), with the channels last in memory."""
    return x.permute(2, 0, 1)[None]


def _steps(image: Tensor) -> Tensor:
    """The reverse of `_image`."""
    return image[0].permute(1, 2, 0)


def _kernel(weight: Tensor, k: int) -> Tensor:
    """(N, k * I) as conv2d takes it: (N, I, k, 1)."""
    return weight.unflatten(1, (k, 1, -1)).permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    """`_convolve`, which keeps few windows: of many, backward makes them again, or does without.

    Differentiable again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, *sizes: int) -> Tensor:
        ctx.sizes, kept = sizes, None
        if _is_large(x, *sizes):
            gates = _convolve(x, weight, bias, *sizes)
        else:
            windows = operator.windows(x, *sizes)
            gates = F.linear(windows, weight, bias)
            if ctx.needs_input_grad[1] and windows.numel() <= FEW_WINDOWS:
                kept = windows
        ctx.save_for_backward(x, weight, kept)
        return gates

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, windows = ctx.saved_tensors  # torch.utils.checkpoint lets them be read only once
        if not _is_large(x, *ctx.sizes):
            grad_x, grad_weight = _with_windows(ctx, grad, x, weight, windows)
        elif grad.numel() * weight.shape[1] >= ONEDNN_FROM and _takes_onednn(x, weight, *ctx.sizes):
            grad_x, grad_weight = _by_onednn(ctx, grad, x, weight)
        else:
            grad_x, grad_weight = _without_windows(ctx, grad, x, weight)
        grad_bias = grad.sum((0, 1)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None, None, None


def _with_windows(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, windows: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of `_Convolution` for x and weight, each by one matrix product."""
    (rows, B, N), width = grad.shape, weight.shape[1]
    grad = grad.reshape(-1, N)  # flatten has no rule for batched gradients
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:  # the product, as large as the windows, is freed at once
        grad_x = operator.windows_backward((grad @ weight).view(rows, B, width), *ctx.sizes)
    if ctx.needs_input_grad[1]:
        if windows is None or torch.is_grad_enabled():  # the kept ones are cut from x's graph
            windows = operator.windows(x, *ctx.sizes)
        grad_weight = grad.t() @ windows.view(-1, width)
    return grad_x, grad_weight


@torch.autocast("cpu", enabled=False)  # for a backward inside autocast
def _by_onednn(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """As `_with_windows`, by the gradients of oneDNN's convolution."""
    (k, before, after), (T, B, I), rows = ctx.sizes, x.shape, len(grad)
    image, kernel = _image(grad), _kernel(weight, k)
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = _steps(F.conv_transpose2d(image, kernel)).narrow(0, before, T)
    if ctx.needs_input_grad[1]:
        padded = _image(_pad(x, before, after))
        steps = -(-rows // -(-rows * B // PIECE))  # of pieces of nearly one size
        gradients = (
            conv2d_weight(padded[:, :, t : t + steps + k - 1], kernel.shape, piece)
            for t, piece in zip(range(0, rows, steps), image.split(steps, 2), strict=True)
        )
        total = sum(gradients, next(gradients))  # one after the other, not all at once
        grad_weight = total.permute(0, 2, 3, 1).reshape(-1, k * I)
    return grad_x, grad_weight


def _without_windows(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """As `_with_windows`, by a product for each step of the window."""
    (k, before, _), (T, B, I) = ctx.sizes, x.shape
    x, grad = x.reshape(-1, I), grad.reshape(-1, grad.shape[2])
    rows = len(grad)
    grad_x = grad.new_zeros(x.shape) if ctx.needs_input_grad[0] else None
    parts = []
    for j in range(k):
        # row n of the windows has at its step j row n - shift of x, where there is one
        shift = (before - j) * B
        first = max(0, shift)
        last = max(first, min(rows, T * B + shift))
        own, at = grad[first:last], slice(first - shift, last - shift)
        if grad_x is not None:
            grad_x[at].addmm_(own, weight[:, j * I : (j + 1) * I])
        if ctx.needs_input_grad[1]:
            parts.append(own.t() @ x[at])
    if grad_x is not None:
        grad_x = grad_x.view(T, B, I)
    return grad_x, torch.cat(parts, 1) if parts else None
