"""The convolution, the layer and the stack: QRNNLayer and QRNN (Bradbury et al. 2016, section 2).

Inside everything is time-major: T steps, B sequences, I inputs, H channels, D directions.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from qrnn.functional import (
    autocasts,
    check,
    check_floating,
    check_lengths,
    check_like,
    check_number,
    check_options,
    check_probability,
    pool_checked,
)
from qrnn.pooling import operator
from qrnn.pooling.reference import GATES


class QRNNState(NamedTuple):
    """What a QRNN carries from one piece of a sequence to the next; L layers, D directions.

    h (L * D, B, H): the last outputs. c (L * D, B, H): the last cells.
    window: for each layer its last kernel_size - 1 inputs, (kernel_size - 1, B, I).

    B is dimension 1 of all: to begin some sequences anew, multiply h, c and every window by a mask
    (1, B, 1), as torch.utils._pytree.tree_map does.
    """

    h: Tensor
    c: Tensor
    window: tuple[Tensor, ...]

    def detach(self) -> "QRNNState":
        """The same values, cut from the graph: for truncated back-propagation through time."""
        return QRNNState(
            self.h.detach(), self.c.detach(), tuple(window.detach() for window in self.window)
        )

    def select(self, index: Tensor) -> "QRNNState":
        """The states of these sequences, integers (N,), in this order: for beam search."""
        check_index("index", index)
        h, c, *window = (value.index_select(1, index) for value in (self.h, self.c, *self.window))
        return QRNNState(h, c, tuple(window))


def register_state(state: type) -> None:
    """So that torch.load, and torch.export.save for a program that takes it, know the class."""
    torch.serialization.add_safe_globals([state])
    name = f"qrnn.{state.__name__}"
    torch.utils._pytree._register_namedtuple(state, serialized_type_name=name)


register_state(QRNNState)

State = QRNNState | tuple[Tensor, Tensor]


def _onednn_from() -> float:
    """The multiplications of a product from which on oneDNN is wanted for the gradients as well.

    On AMD's processors from Zen 5 on MKL's products in float32 take up to 2.2 times oneDNN's time,
    on a Zen 4 more than it where they are large, and less where they are small. Intel's are not
    measured.
    """
    capabilities = torch.cpu.get_capabilities()
    if "AMD" not in str(capabilities.get("cpu_name")):
        return torch.inf
    zen5 = capabilities.get("avx512_vp2intersect")  # of AMD's the first with it
    return 0 if zen5 else 5 << 29


ONEDNN_FROM = _onednn_from()

# From how much on the convolution's backward makes no windows; with less, what that needs in calls
# costs more than moving data. Measured by `scripts/benchmark.py convolution`.
MANY_ROWS = 256 if ONEDNN_FROM == 0 else 1024  # steps times sequences, on a CPU
MANY_WINDOWS = 3 << 24  # elements of all windows, on a GPU
FEW_WINDOWS = 1 << 20  # so few, a few MB, are kept for backward; not measured
PIECE = 2048  # rows that oneDNN takes at a time for the weight's gradient, whose copies fit a cache
# Smaller images than this torch does not give to oneDNN, and of few channels oneDNN makes little.
LEAST_IMAGE, LEAST_CHANNELS = 20_480, 16


def check_size(argument: str, value: object, least: int = 1) -> None:
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


class QRNNLayer(nn.Module):
    """One quasi-recurrent layer: a convolution over time, then pooling. Always time-major.

    Args:
        input_size: I, features of a step.
        hidden_size: H, channels of each direction.
        bias: whether the convolution adds one.
        bidirectional: a second set of weights runs from the end; outputs are concatenated.
        kernel_size: k, width of the window. A window longer than the sequence is allowed.
        pooling: "f", "fo" or "ifo".
        masked: True: step t sees steps t-k+1 ... t, as in the paper. False: the window is centred
            (an even one reaches one step further ahead). In reverse all this is mirrored.
        zoneout, zoneout_eval: see `functional.pool`.
        weight_dropout: rate at which the weight's elements are dropped in training, the same ones
            for all steps and sequences of a call (DropConnect, as in Merity et al. 2017).
        forget_bias: start value of the forget gate's bias (the paper states none).
        device, dtype: of the parameters, as everywhere in torch.nn.

    Parameters:
        weight (D * G * H, k * I): per direction the blocks z, f, o, i, and in a row the window
            from its oldest step to its newest. Starts as N(0, 1 / (k * I)).
        bias (D * G * H): starts at zero, but for the forget gate's.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        bidirectional: bool = False,
        *,
        kernel_size: int = 2,
        pooling: str = "fo",
        masked: bool = True,
        zoneout: float = 0.0,
        zoneout_eval: str = "mean",
        weight_dropout: float = 0.0,
        forget_bias: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_size("input_size", input_size)
        check_size("hidden_size", hidden_size)
        check_flag("bias", bias)
        check_flag("bidirectional", bidirectional)
        check_size("kernel_size", kernel_size)
        check_options(pooling, zoneout, zoneout_eval)
        check_flag("masked", masked)
        check_probability("weight_dropout", weight_dropout)
        check_number("forget_bias", forget_bias)
        check(abs(forget_bias) < torch.inf, "forget_bias", "a finite number", forget_bias)
        check(bias or not forget_bias, "forget_bias", "0 in a layer without bias", forget_bias)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bidirectional = bidirectional
        self.kernel_size = kernel_size
        self.pooling = pooling
        self.masked = masked
        self.zoneout = zoneout
        self.zoneout_eval = zoneout_eval
        self.weight_dropout = float(weight_dropout)
        self.forget_bias = forget_bias
        self.directions = 2 if bidirectional else 1
        rows = self.directions * GATES[pooling] * hidden_size
        self.weight = nn.Parameter(
            torch.empty(rows, kernel_size * input_size, device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        if self.bias is not None:
            with torch.no_grad():
                self.bias.zero_()
                self.bias.view(self.directions, -1, self.hidden_size)[:, 1] = self.forget_bias

    def extra_repr(self) -> str:
        text = (
            f"{self.input_size}, {self.hidden_size}, kernel_size={self.kernel_size}, "
            f"pooling={self.pooling!r}"
        )
        for name, default in (
            ("bidirectional", False),
            ("masked", True),
            ("zoneout", 0.0),
            ("zoneout_eval", "mean"),
            ("weight_dropout", 0.0),
        ):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)!r}"
        return text if self.bias is not None else text + ", bias=False"

    def __prepare_scriptable__(self) -> None:
        raise TypeError("torch.jit.script cannot compile a QRNN; torch.jit.trace can")

    @property
    def shift(self) -> int:
        """By how many steps the reverse direction's windows lie later; see `functional.pool`."""
        if not self.bidirectional:
            return 0
        k = self.kernel_size
        return k - 1 if self.masked else -((k - 1) % 2)

    def convolve(self, x: Tensor, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The pre-activations of x (T, B, I), to be pooled.

        window: the k - 1 inputs before x, (k - 1, B, I); zeros when None. Not checked.
        Returns the gates (T + |shift|, B, D * G * H), and x with `window` before it, of which with
        masked windows in one direction the last k - 1 rows are the window for what comes after.
        """
        k = self.kernel_size
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.weight_dropout and self.training:
            weight = F.dropout(weight, self.weight_dropout)
        if k == 1:
            return F.linear(x, weight, bias), x
        before = k - 1 if self.masked else (k - 1) // 2
        after = k - 1 - before
        if window is not None:
            x, before = torch.cat([window, x]), 0
        elif self.bidirectional:
            # both directions read the same windows, the reverse one `shift` rows later and each
            # window from its end
            before = after = max(before, after)
            forward, reverse = weight.chunk(2)
            mirrored = reverse.unflatten(1, (k, self.input_size)).flip(1).flatten(1)
            weight = torch.cat([forward, mirrored])
        inputs, sizes = x, (k, before, after)
        if autocasts(x.device) and x.dtype != torch.float64:
            # as F.linear would, but of k times as much
            inputs = x.to(torch.get_autocast_dtype(x.device.type))
        if torch.is_grad_enabled() and _is_own(x, *sizes) and not operator.is_transformed():
            if weight.dtype != inputs.dtype:
                weight = weight.to(inputs.dtype)
                bias = None if bias is None else bias.to(inputs.dtype)
            return _Convolution.apply(inputs, weight, bias, *sizes), x
        return _convolve(inputs, weight, bias, *sizes), x

    def pool(
        self, gates: Tensor, c0: Tensor | None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`functional.pool` of what `convolve` returns; checks the layer's options alone."""
        check_options(self.pooling, self.zoneout, self.zoneout_eval)
        return pool_checked(
            self.pooling,
            gates,
            c0,
            lengths,
            "both" if self.bidirectional else "forward",
            self.zoneout,
            self.zoneout_eval,
            self.training,
            self.shift,
        )

    def check_streaming(self) -> None:
        """Raises ValueError unless the layer runs from left to right only."""
        if self.bidirectional or not (self.masked or self.kernel_size == 1):
            raise ValueError(
                "state: running in pieces needs bidirectional=False and masked=True; "
                f"this layer has bidirectional={self.bidirectional}, masked={self.masked}"
            )

    def initial_state(self, batch_size: int) -> QRNNState:
        """The zero state of `batch_size` sequences: pass it, and get one back to pass next."""
        return _initial_state([self], batch_size)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        checked: bool = False,
        condition: Tensor | None = None,
        apart: bool = False,
    ) -> tuple[Any, State]:
        """As `QRNN.forward`, for one layer and an x of (T, B, I).

        checked: all three are known to be right, and the padding of x to be zero.
        condition (B, D * G * H): is added to the pre-activations of every step.
        apart: with a condition and in one direction, the output's factors in its place, a pair: the
            cells (T, B, H), and the output gate, None in "f" pooling. h_n then has no gate either.
        """
        if not checked:
            state = as_state(state, QRNNState)
            x, lengths = _check_arguments([self], x, state, lengths)
        T, B, _ = x.shape
        window = state.window[0].to(x.dtype) if isinstance(state, QRNNState) else None
        gates, extended = self.convolve(x, window)
        if condition is not None:
            # not in place: a linear layer's output may be a view, for which autograd copies more
            gates = gates + condition.to(gates.dtype)
        o = None
        if apart and self.pooling != "f":
            own = slice(2 * self.hidden_size, 3 * self.hidden_size)
            o = gates[..., own].sigmoid()
            gates[..., own] = torch.inf  # opens the gate: the pooling returns its cells
        output, h_n, c_n = self.pool(gates, None if state is None else state[1], lengths)
        if state is not None and (lengths is not None or not T):
            h0 = state[0].to(h_n.dtype)  # the output of a sequence of no steps
            h_n = h0.clone() if lengths is None else h_n.where((lengths > 0)[:, None], h0)
        result = (output, o) if apart else output
        if window is None:
            return result, (h_n, c_n)
        k = self.kernel_size
        if lengths is None:
            window = extended[T:].clone() if k > 1 else window
        else:
            rows = lengths + torch.arange(k - 1, device=x.device)[:, None]
            window = extended[rows, torch.arange(B, device=x.device)]
        return result, QRNNState(h_n, c_n, (window,))


def _check_arguments(
    layers: Sequence[QRNNLayer], x: Any, state: State | None, lengths: Any
) -> tuple[Tensor, Tensor | None]:
    """Of a stack's forward: x (T, B, I) with zeros in the padding, and lengths on its device.

    The scan does not read padding, but windows that look ahead and the weight's gradient do.
    """
    check_input(x, layers[0].weight, layers[0].input_size)
    if state is not None:
        _check_state(state, layers, x)
    if lengths is not None:
        lengths = check_lengths(lengths, x.shape[1], x.shape[0], x.device)
        padding = torch.arange(x.shape[0], device=x.device)[:, None] >= lengths
        x = x.masked_fill(padding[:, :, None], 0)
    return x, lengths


def _is_much(x: Tensor, k: int, before: int, after: int) -> bool:
    """Whether the backward of `_Convolution` makes no windows."""
    T, B, I = x.shape
    rows = (T + before + after - k + 1) * B
    return rows >= MANY_ROWS if x.is_cpu else rows * k * I >= MANY_WINDOWS


def _is_own(x: Tensor, *sizes: int) -> bool:
    """Whether the convolution is left neither to torch's autograd nor to a compiler."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return x.is_cuda or _is_much(x, *sizes)


def _takes_onednn(x: Tensor, weight: Tensor, *sizes: int) -> bool:
    """Whether `_convolve` is oneDNN's convolution."""
    if not (x.is_cpu and x.dtype == torch.float32 and _is_own(x, *sizes)):
        return False
    channels = min(x.shape[2], len(weight))  # of x, and of the gradient of what is made of it
    large = len(x) * x.shape[1] * channels > LEAST_IMAGE and channels >= LEAST_CHANNELS
    return large and torch.backends.mkldnn.is_available()


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, before: int, after: int
) -> Tensor:
    """x (T, B, I), with rows of zeros before and after it, to (rows of windows, B, N).

    weight (N, k * I), bias (N).
    """
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
        if _is_much(x, *sizes):
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
        x, weight, windows = ctx.saved_tensors  # a checkpoint hands them out once
        if not _is_much(x, *ctx.sizes):
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
    """Of `_Convolution`, the gradients at x and weight: a product each."""
    (rows, B, N), width = grad.shape, weight.shape[1]
    grad = grad.reshape(-1, N)  # flatten has no rule for batched gradients
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:  # no name for what is as large as the windows
        grad_x = operator.windows_backward((grad @ weight).view(rows, B, width), *ctx.sizes)
    if ctx.needs_input_grad[1]:
        if windows is None or torch.is_grad_enabled():  # of the kept ones x has no derivative
            windows = operator.windows(x, *ctx.sizes)
        grad_weight = grad.t() @ windows.view(-1, width)
    return grad_x, grad_weight


@torch.autocast("cpu", enabled=False)
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


def _initial_state(layers: Sequence[QRNNLayer], batch_size: int) -> QRNNState:
    check_size("batch_size", batch_size, 0)
    for layer in layers:
        layer.check_streaming()
    weight, H = layers[0].weight, layers[0].hidden_size
    # not weight.new_zeros: where FSDP has the weight these would be in parts
    make = partial(torch.zeros, dtype=weight.dtype, device=weight.device)
    window = [make(v.kernel_size - 1, batch_size, v.input_size) for v in layers]
    h, c = make(len(layers), batch_size, H), make(len(layers), batch_size, H)
    return QRNNState(h, c, tuple(window))


def check_input(x: object, weight: Tensor, input_size: int) -> None:
    check_floating("input", x)
    assert isinstance(x, Tensor)
    check(x.dim() == 3, "input", "3 dimensions", tuple(x.shape))
    check(x.shape[2] == input_size, "input", f"a last dimension of {input_size}", x.shape[2])
    check(x.device == weight.device, "input", f"device {weight.device}", x.device)
    wide = torch.float64 in (x.dtype, weight.dtype)  # autocast leaves it alone
    if x.dtype != weight.dtype and (wide or not autocasts(x.device)):
        raise TypeError(f"input: expected dtype {weight.dtype}, got {x.dtype}")


def _check_state(state: object, layers: Sequence[QRNNLayer], x: Tensor) -> None:
    if not isinstance(state, QRNNState) and not (
        isinstance(state, (tuple, list)) and len(state) == 2
    ):
        of = f" of {len(state)}" if isinstance(state, (tuple, list)) else ""
        raise TypeError(
            f"state: expected a QRNNState or a tuple (h, c), got {type(state).__name__}{of}"
        )
    B, H = x.shape[1], layers[0].hidden_size
    shape = (len(layers) * layers[0].directions, B, H)
    named = [("state h", state[0], shape), ("state c", state[1], shape)]
    if isinstance(state, QRNNState):
        for layer in layers:
            layer.check_streaming()
        if not isinstance(state.window, (tuple, list)):
            raise TypeError(f"state window: expected a tuple, got {type(state.window).__name__}")
        found = len(state.window)
        check(found == len(layers), "state window", f"{len(layers)} tensors", found)
        for n, layer in enumerate(layers):
            shape = (layer.kernel_size - 1, B, layer.input_size)
            named.append((f"state window[{n}]", state.window[n], shape))
    cast = autocasts(x.device)
    for name, value, shape in named:
        check_like(name, value, shape, x, cast)
    h, c = state[:2]
    if h.requires_grad and not c.requires_grad and not torch.compiler.is_compiling():
        warnings.warn(
            "state: h is not used, and c, which is, requires no gradient: what conditions a QRNN "
            "goes into c",
            stacklevel=2,
        )


def as_state(state: Any, kind: type) -> Any:
    """A QRNNState or DecoderState that has been through code which makes plain tuples of it."""
    plain = isinstance(state, (tuple, list)) and not isinstance(state, kind)
    return kind(*state) if plain and len(state) == 3 else state


class QRNN(nn.Module):
    """A stack of quasi-recurrent layers, in the place of an nn.LSTM.

    The first seven arguments are nn.LSTM's, in its order. It differs in having no recurrent
    weights: of an initial state only c is used, h is accepted and returned for compatibility. So
    what conditions a decoder goes into c; and code that keeps (h, c) and goes step by step needs
    kernel_size=1, whose whole state is c, or a QRNNState, which has the windows, too.

    Parameters are `layers.N.weight` and `layers.N.bias`, in each direction the blocks z, f, o, i of
    QRNNLayer: for the forget gates' bias there is `forget_bias`, not an LSTM's loop over quarters.

    >>> rnn = QRNN(8, 16, num_layers=2, bidirectional=True)
    >>> output, (h_n, c_n) = rnn(torch.randn(20, 4, 8))
    >>> output.shape, h_n.shape
    (torch.Size([20, 4, 32]), torch.Size([4, 4, 16]))

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, bidirectional: as in nn.LSTM.
        dropout: rate on the outputs of every layer but the last.
        kernel_size: k, the width of every layer's window; first_kernel_size: of the first
            layer's, when it is another.
        pooling: the gates, with c_t = f_t c_{t-1} + i_t z_t. "f": i_t = 1 - f_t and the output is
            c_t (equation 3 of the paper); "fo": the output is o_t c_t (equation 4); "ifo": i_t is a
            gate of its own as well (equation 5).
        zoneout: rate at which forget gates are set to 1 in training, so that the cell stays as it
            is; zoneout_eval: what stands for it in evaluation, "mean" (1 - f_t is scaled by
            1 - zoneout) or "none".
        weight_dropout: rate at which the elements of every layer's weight are dropped in training,
            the same ones for all steps and sequences of a call.
        dense: every layer's input is concatenated to its output to make the next layer's input
            (section 2.1 of the paper); the output is still the last layer's alone.
        masked: whether windows end at their own step (the paper's masked convolution) or are
            centred on it, which an encoder may use.
        forget_bias: start value of the forget gates' bias.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: for an option of the wrong type or value, by name.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        kernel_size: int = 2,
        first_kernel_size: int | None = None,
        pooling: str = "fo",
        zoneout: float = 0.0,
        zoneout_eval: str = "mean",
        weight_dropout: float = 0.0,
        dense: bool = False,
        masked: bool = True,
        forget_bias: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_size("num_layers", num_layers)
        check_flag("batch_first", batch_first)
        check_dropout(dropout, num_layers)
        check_flag("dense", dense)
        check_size("kernel_size", kernel_size)
        if first_kernel_size is None:
            first_kernel_size = kernel_size
        check_size("first_kernel_size", first_kernel_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.dense = dense
        self.layers = nn.ModuleList()
        size = input_size
        for n in range(num_layers):
            layer = QRNNLayer(
                size,
                hidden_size,
                bias,
                bidirectional,
                kernel_size=kernel_size if n else first_kernel_size,
                pooling=pooling,
                masked=masked,
                zoneout=zoneout,
                zoneout_eval=zoneout_eval,
                weight_dropout=weight_dropout,
                forget_bias=forget_bias,
                device=device,
                dtype=dtype,
            )
            self.layers.append(layer)
            width = layer.directions * hidden_size
            size = size + width if dense else width

    def reset_parameters(self) -> None:
        for layer in self._layers:
            layer.reset_parameters()

    def flatten_parameters(self) -> None:
        """Does nothing: nn.LSTM's callers expect it, and there is nothing to flatten."""

    def extra_repr(self) -> str:
        names = ("batch_first", "dropout", "dense")
        return ", ".join(f"{n}={getattr(self, n)}" for n in names if getattr(self, n))

    @property
    def _layers(self) -> list[QRNNLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def initial_state(self, batch_size: int) -> QRNNState:
        """The zero state of `batch_size` sequences: pass it, and get one back to pass next.

        Running in pieces then equals running at once, but for what is drawn at random in training.
        Needs bidirectional=False, masked=True.
        """
        return _initial_state(self._layers, batch_size)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """nn.LSTM's contract, and two things more: `lengths`, and a state that holds windows.

        Args:
            input: (T, B, input_size), or (B, T, input_size) with batch_first, or
                (T, input_size) for one sequence, or a PackedSequence, sorted or not.
            hx: None for zeros; (h, c), each (num_layers * D, B, hidden_size), with zeros to
                the left of the window; or a QRNNState, which continues exactly where the
                call that returned it ended. For (T, input_size), h and c without B.
            lengths: valid steps of each sequence, integers (B,): the padding after them is never
                read and gives zeros. A PackedSequence brings its own.

        Returns:
            output: the last layer's h, (T, B, D * hidden_size), in the form of the input.
            state: h_n, the outputs after each sequence's last step (before its first, in
                reverse; what came in, for a sequence of length 0) and c_n, the cells there.
                A QRNNState if `hx` was one, otherwise a tuple (h_n, c_n).

        Raises:
            ValueError, TypeError: for an argument of the wrong shape, dtype, device or value.
        """
        hx = as_state(hx, QRNNState)
        if isinstance(input, PackedSequence):
            check(lengths is None, "lengths", "None with a PackedSequence", lengths)
            return self._forward_packed(input, hx)
        if isinstance(input, Tensor) and input.dim() == 2:
            return self._forward_unbatched(input, hx, lengths)
        if isinstance(input, Tensor) and input.dim() == 3 and self.batch_first:
            output, state = self._forward(input.transpose(0, 1), hx, lengths)
            return output.transpose(0, 1), state
        return self._forward(input, hx, lengths)

    def _forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        layers = self._layers
        x, lengths = _check_arguments(layers, x, state, lengths)
        D = layers[0].directions
        output, states = x, []
        for n, layer in enumerate(layers):
            own: State | None = None
            if state is not None:
                own = (state[0][n * D : (n + 1) * D], state[1][n * D : (n + 1) * D])
                if isinstance(state, QRNNState):
                    own = QRNNState(*own, state.window[n : n + 1])
            output, own = layer(x, own, lengths, checked=True)
            states.append(own)
            if n + 1 < len(layers):
                dropped = F.dropout(output, self.dropout, self.training)
                x = torch.cat([x, dropped], -1) if self.dense else dropped
        h_n, c_n = states[0][:2]
        if len(states) > 1:
            h_n, c_n = torch.cat([s[0] for s in states]), torch.cat([s[1] for s in states])
        windows = [window for s in states if isinstance(s, QRNNState) for window in s.window]
        if isinstance(state, QRNNState):
            return output, QRNNState(h_n, c_n, tuple(windows))
        return output, (h_n, c_n)

    def _forward_unbatched(
        self, x: Tensor, state: Any, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        check(lengths is None, "lengths", "None for a single sequence", lengths)
        if isinstance(state, (tuple, list)) and not isinstance(state, QRNNState):
            for name, value in zip(("state h", "state c"), state, strict=False):
                check_floating(name, value)
                expected = "2 dimensions for a single sequence"
                check(value.dim() == 2, name, expected, tuple(value.shape))
            state = tuple(value[:, None] for value in state)
        output, state = self._forward(x[:, None], state, None)
        if not isinstance(state, QRNNState):
            state = (state[0][:, 0], state[1][:, 0])
        return output[:, 0], state

    def _forward_packed(
        self, packed: PackedSequence, state: State | None
    ) -> tuple[PackedSequence, State]:
        """Runs in the packed order, longest first, and returns states in the caller's order."""
        order, back = packed.sorted_indices, packed.unsorted_indices
        x, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
        if state is not None:
            _check_state(state, self._layers, x)
            state = _reorder(state, order)
        output, state = self._forward(x, state, lengths)
        data = pack_padded_sequence(output, lengths).data
        return PackedSequence(data, packed.batch_sizes, order, back), _reorder(state, back)


def _reorder(state: State, order: Tensor | None) -> State:
    if order is None:
        return state
    if isinstance(state, QRNNState):
        return state.select(order)
    return state[0].index_select(1, order), state[1].index_select(1, order)
