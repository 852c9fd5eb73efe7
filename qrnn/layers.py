"""The layer and the stack: QRNNLayer and QRNN (Bradbury et al. 2016, section 2).

Inside everything is time-major: T steps, B sequences, I inputs, H channels, D directions.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from qrnn.checks import (
    autocasts,
    check,
    check_dropout,
    check_flag,
    check_floating,
    check_index,
    check_input,
    check_lengths,
    check_like,
    check_number,
    check_options,
    check_probability,
    check_size,
)
from qrnn.convolution import convolve
from qrnn.functional import pool_checked
from qrnn.pooling.reference import GATES


class QRNNState(NamedTuple):
    """What a QRNN of L layers and one direction carries from one piece of a sequence to the next.

    h (L, B, H): the last outputs. c (L, B, H): the last cells.
    window: for each layer its last kernel_size - 1 inputs, (kernel_size - 1, B, I).

    B is dimension 1 of all: to begin some of the sequences anew, multiply h, c and every window by
    a mask (1, B, 1) that is 0 for them and 1 for the others.
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
    """Lets torch.load, and torch.export.save of a program with such an input, accept the class."""
    torch.serialization.add_safe_globals([state])
    name = f"qrnn.{state.__name__}"
    torch.utils._pytree._register_namedtuple(state, serialized_type_name=name)


register_state(QRNNState)

State = QRNNState | tuple[Tensor, Tensor]


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
        forget_bias: initial value of the forget gate's bias (the paper states none).
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
        self.zoneout = float(zoneout)
        self.zoneout_eval = zoneout_eval
        self.weight_dropout = float(weight_dropout)
        self.forget_bias = forget_bias
        self.directions = 2 if bidirectional else 1
        rows = self.directions * GATES[pooling] * hidden_size
        weight = torch.empty(rows, kernel_size * input_size, device=device, dtype=dtype)
        check_floating("dtype", weight)
        self.weight = nn.Parameter(weight)
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
    def like(self) -> Tensor:
        """A tensor with the parameters' dtype and device.

        Not the weight where pruning, or a norm of it, makes it anew from others: it may be an old
        one, as hooks do that when the layer is called, or take time.
        """
        for parameter in self._parameters.values():
            if parameter is not None:
                return parameter
        return self.weight

    @property
    def shift(self) -> int:
        """By how many steps the reverse direction's windows lie later; see `operator.pool`."""
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
        return convolve(x, weight, bias, k, before, after), x

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
        apart: return, in the output's place, the pair whose product it is: the cells (T, B, H), and
            the output gate (T, B, H), or None with "f" pooling. Needs a condition and one
            direction; h_n is then the last cell.
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
    check_input(x, layers[0].like, layers[0].input_size)
    if state is not None:
        _check_state(state, layers, x)
    if lengths is not None:
        lengths = check_lengths(lengths, x.shape[1], x.shape[0], x.device)
        padding = torch.arange(x.shape[0], device=x.device)[:, None] >= lengths
        x = x.masked_fill(padding[:, :, None], 0)
    return x, lengths


def _initial_state(layers: Sequence[QRNNLayer], batch_size: int) -> QRNNState:
    check_size("batch_size", batch_size, 0)
    for layer in layers:
        layer.check_streaming()
    like, H = layers[0].like, layers[0].hidden_size
    # not like.new_zeros: where FSDP has the parameters these would be in parts
    make = partial(torch.zeros, dtype=like.dtype, device=like.device)
    window = [make(v.kernel_size - 1, batch_size, v.input_size) for v in layers]
    h, c = make(len(layers), batch_size, H), make(len(layers), batch_size, H)
    return QRNNState(h, c, tuple(window))


def _check_state(state: object, layers: Sequence[QRNNLayer], x: Tensor) -> None:
    if not isinstance(state, QRNNState) and not (
        isinstance(state, (tuple, list)) and len(state) == 2
    ):
        of = f" of {len(state)}" if isinstance(state, (tuple, list)) else ""
        raise TypeError(
            f"state: expected a QRNNState or a tuple (h, c), got {type(state).__name__}{of}"
        )
    B, H = x.shape[1], layers[0].hidden_size
    shape: tuple[int, ...] = (len(layers) * layers[0].directions, B, H)
    named = [("state h", state[0], shape), ("state c", state[1], shape)]
    if isinstance(state, QRNNState):
        for layer in layers:
            layer.check_streaming()
        named += named_windows(state.window, layers, B)
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


def named_windows(
    window: Any, layers: Sequence[QRNNLayer], batch: int
) -> list[tuple[str, Tensor, tuple[int, ...]]]:
    """A state's windows, with the name and the shape for which `check_like` checks each."""
    if not isinstance(window, (tuple, list)):
        raise TypeError(f"state window: expected a tuple, got {type(window).__name__}")
    check(len(window) == len(layers), "state window", f"{len(layers)} tensors", len(window))
    return [
        (f"state window[{n}]", window[n], (layer.kernel_size - 1, batch, layer.input_size))
        for n, layer in enumerate(layers)
    ]


def as_state(state: Any, kind: type) -> Any:
    """A state of class `kind` again, where other code has made a plain tuple or list of it."""
    return kind(*state) if type(state) in (tuple, list) and len(state) == 3 else state


class QRNN(nn.Module):
    """A stack of quasi-recurrent layers, in the place of an nn.LSTM.

    The first seven arguments are nn.LSTM's, in its order. It differs in having no recurrent
    weights: of an initial state only c is used, h is accepted and returned for compatibility (one
    that is learnt gets no gradient, which DistributedDataParallel has to be told). So what
    conditions a decoder goes into c; and code that keeps (h, c) and goes step by step needs
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
        zoneout: rate at which forget gates are set to 1 in training, so that (with i_t = 1 - f_t)
            the cell stays as it is; zoneout_eval: what stands for it in evaluation, "mean"
            (1 - f_t is scaled by 1 - zoneout) or "none".
        weight_dropout: rate at which the elements of every layer's weight are dropped in training,
            the same ones for all steps and sequences of a call.
        dense: every layer's input is concatenated to its output to make the next layer's input
            (section 2.1 of the paper); the output is still the last layer's alone.
        masked: whether windows end at their own step (the paper's masked convolution) or are
            centred on it, which an encoder may use.
        forget_bias: initial value of the forget gates' bias.
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
                call that returned it ended. For (T, input_size), h and c without B, or
                a QRNNState of one sequence.
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
        if isinstance(input, Tensor):
            check(input.dim() == 3, "input", "2 or 3 dimensions", tuple(input.shape))
        if isinstance(input, Tensor) and self.batch_first:
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
            shape = (len(self._layers) * self._layers[0].directions, self.hidden_size)
            for name, value in zip(("state h", "state c"), state, strict=False):
                check_floating(name, value)
                expected = f"shape {shape} for a single sequence"
                check(value.shape == shape, name, expected, tuple(value.shape))
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
