"""The decoder with attention: QRNNDecoder (Bradbury et al. 2016, section 2.2, equations 7 and 8).

Inside everything is time-major: T steps, B sequences, I inputs, H channels, G blocks of gates;
S source steps, M features of the encoder, L layers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    check_probability,
    check_size,
)
from qrnn.layers import QRNNLayer, QRNNState, as_state, named_windows, register_state
from qrnn.pooling.reference import GATES


class DecoderState(NamedTuple):
    """What a QRNNDecoder carries from one piece of the target to the next. B is always dim 1.

    c (L, B, H): the last cells. window: for each layer its last kernel_size - 1 inputs,
    (kernel_size - 1, B, I). encoded (L, B, G * H): what the encoder adds to the pre-activations,
    V^l h~^l_T of equation 7, the same at every step.
    """

    c: Tensor
    window: tuple[Tensor, ...]
    encoded: Tensor  # not "condition": torch.export would take the name "c" for its prefix

    def detach(self) -> "DecoderState":
        """The same values, cut from the graph."""
        window = tuple(window.detach() for window in self.window)
        return DecoderState(self.c.detach(), window, self.encoded.detach())

    def select(self, index: Tensor) -> "DecoderState":
        """The states of these sequences, integers (N,), in this order: for beam search."""
        check_index("index", index)
        c, *window, encoded = (
            value.index_select(1, index) for value in (self.c, *self.window, self.encoded)
        )
        return DecoderState(c, tuple(window), encoded)


register_state(DecoderState)


class QRNNDecoder(nn.Module):
    """A stack of masked quasi-recurrent layers that reads an encoder's outputs.

    In layer l all pre-activations (z, f and those of o and i that the pooling has) get V^l h~^l_T,
    of the last output h~^l_T of encoder layer l (equation 7). The last layer attends with its cells
    c_t, before the output gate, to the encoder's outputs h~_s (equation 8):

        alpha_st = softmax_s(c_t . h~_s),  k_t = sum_s alpha_st h~_s,  h_t = o_t (W_k k_t + W_c c_t)

    without o_t in "f" pooling. If the encoder's features are not H, then P h~_s stands for h~_s,
    with a learned P. Nothing here is recurrent but the pooling, so that all steps of a known target
    are one convolution and one scan per layer, and one attention product.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first: as in QRNN.
        dropout: rate on the outputs of every layer but the last.
        encoder_size: M, features of the encoder's outputs and of its layers' last outputs;
            hidden_size when None.
        kernel_size, first_kernel_size, pooling, zoneout, zoneout_eval, forget_bias: as in QRNN.
        attention_dropout: rate on alpha, where it weights the sum.
        device, dtype: of the parameters.

    Parameters:
        layers: the QRNNLayers'. conditions: V of every layer (G * H, M). attention_k: W_k (H, H).
        attention_c: W_c (H, H). attention_memory: P (H, M), absent when M is H.
        All weights start as N(0, 1 / fan-in).

    Raises:
        ValueError, TypeError: for an option of the wrong type or value, by name.
    """

    attention_memory: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        encoder_size: int | None = None,
        kernel_size: int = 2,
        first_kernel_size: int | None = None,
        pooling: str = "fo",
        zoneout: float = 0.0,
        zoneout_eval: str = "mean",
        attention_dropout: float = 0.0,
        forget_bias: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_size("num_layers", num_layers)
        check_flag("batch_first", batch_first)
        check_dropout(dropout, num_layers)
        check_probability("attention_dropout", attention_dropout)
        check_size("kernel_size", kernel_size)
        if first_kernel_size is None:
            first_kernel_size = kernel_size
        check_size("first_kernel_size", first_kernel_size)
        if encoder_size is None:
            encoder_size = hidden_size
        self.layers = nn.ModuleList()
        for n in range(num_layers):
            layer = QRNNLayer(
                hidden_size if n else input_size,
                hidden_size,
                bias,
                kernel_size=kernel_size if n else first_kernel_size,
                pooling=pooling,
                zoneout=zoneout,
                zoneout_eval=zoneout_eval,
                forget_bias=forget_bias,
                device=device,
                dtype=dtype,
            )
            self.layers.append(layer)
        check_size("encoder_size", encoder_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.encoder_size = encoder_size
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.attention_dropout = float(attention_dropout)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)

        rows = GATES[pooling] * hidden_size
        self.conditions = nn.ModuleList(linear(encoder_size, rows) for _ in range(num_layers))
        self.attention_k = linear(hidden_size, hidden_size)
        self.attention_c = linear(hidden_size, hidden_size)
        # no nn.Linear, because it is used from both sides
        memory = None
        if encoder_size != hidden_size:
            memory = nn.Parameter(
                torch.empty(hidden_size, encoder_size, device=device, dtype=dtype)
            )
        self.register_parameter("attention_memory", memory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, QRNNLayer):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if self.attention_memory is not None:
            nn.init.normal_(self.attention_memory, std=self.encoder_size**-0.5)

    def extra_repr(self) -> str:
        names = ("batch_first", "dropout", "attention_dropout")
        return ", ".join(f"{n}={getattr(self, n)}" for n in names if getattr(self, n))

    @property
    def _layers(self) -> list[QRNNLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def initial_state(self, encoder_final: Tensor) -> DecoderState:
        """The state before the first step: zeros, and what the encoder conditions the layers on.

        encoder_final (L, B, M): the last output of each encoder layer, whatever batch_first is.
            Of a bidirectional QRNN, whose h_n is (2 * L, B, H), with M = 2 * H:
            h_n.unflatten(0, (L, 2)).transpose(1, 2).flatten(2).
        """
        like = self._layers[0].like
        check_floating("encoder_final", encoder_final)
        shape = tuple(encoder_final.shape)
        check(len(shape) == 3, "encoder_final", "3 dimensions (L, B, M)", shape)
        B = shape[1]
        own = (self.num_layers, B, self.encoder_size)
        check_like("encoder_final", encoder_final, own, like, cast=autocasts(like.device))
        encoded = torch.stack(
            [linear(final) for linear, final in zip(self.conditions, encoder_final, strict=True)]
        )
        window = [
            encoded.new_zeros(layer.kernel_size - 1, B, layer.input_size) for layer in self._layers
        ]
        zeros = encoded.new_zeros(self.num_layers, B, self.hidden_size)
        return DecoderState(zeros, tuple(window), encoded)

    def _check_state(self, state: object, x: Tensor) -> None:
        if not isinstance(state, DecoderState):
            raise TypeError(f"state: expected a DecoderState, got {type(state).__name__}")
        L, B, H, rows = self.num_layers, x.shape[1], self.hidden_size, len(self._layers[0].weight)
        named = [("state c", state.c, (L, B, H)), ("state encoded", state.encoded, (L, B, rows))]
        for name, value, shape in (*named, *named_windows(state.window, self._layers, B)):
            check_like(name, value, shape, x, cast=autocasts(x.device))

    def forward(
        self,
        input: Tensor,
        state: DecoderState,
        memory: Tensor,
        memory_lengths: Tensor | None = None,
    ) -> tuple[Tensor, DecoderState, Tensor]:
        """Any number of steps: in pieces, down to one step at a time, the results are the same.

        Args:
            input: (T, B, input_size), or (B, T, input_size) with batch_first.
            state: of `initial_state`, or of the call for the steps before.
            memory: the outputs of the last encoder layer (S, B, M), or (B, S, M) with batch_first.
            memory_lengths: valid source steps of each sequence, integers (B,). The padding after
                them is never read and gets no attention; without a valid step k_t is zero.

        Returns:
            output: h (T, B, H), or (B, T, H) with batch_first.
            state: after the last step.
            attention: alpha, before dropout, (T, B, S), or (B, T, S) with batch_first.

        Raises:
            ValueError, TypeError: for an argument of the wrong shape, dtype, device or value.
        """
        flip, state = self.batch_first, as_state(state, DecoderState)
        x = input
        if flip and isinstance(input, Tensor) and input.dim() == 3:
            x = input.transpose(0, 1)
        check_input(x, self._layers[0].like, self.input_size)
        self._check_state(state, x)
        check_floating("memory", memory)
        check(memory.dim() == 3, "memory", "3 dimensions", tuple(memory.shape))
        B, M, S = x.shape[1], self.encoder_size, memory.shape[1 if flip else 0]
        check_like("memory", memory, (B, S, M) if flip else (S, B, M), x, cast=autocasts(x.device))
        if memory_lengths is not None:
            memory_lengths = check_lengths(
                memory_lengths, B, S, x.device, argument="memory_lengths"
            )

        states = []
        for n, layer in enumerate(self._layers):
            if n:
                x = F.dropout(x, self.dropout, self.training)
            c, last = state.c[n : n + 1], n + 1 == self.num_layers
            own = QRNNState(c, c, (state.window[n],))  # of its h nothing is used
            x, own = layer(x, own, checked=True, condition=state.encoded[n], apart=last)
            states.append(own)
        x, o = x
        memory_BSM = memory if flip else memory.transpose(0, 1)
        output, alpha_BTS = self._attend(x, memory_BSM, memory_lengths)
        if o is not None:
            output = o * output
        windows = tuple(own.window[0] for own in states)
        after = DecoderState(torch.cat([own.c for own in states]), windows, state.encoded)
        if flip:
            return output.transpose(0, 1), after, alpha_BTS
        return output, after, alpha_BTS.transpose(0, 1)

    def _attend(self, c: Tensor, memory: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """W_k k + W_c c (T, B, H) and alpha (B, T, S), of cells (T, B, H), memory (B, S, M)."""
        # P^T c . h~ is c . P h~, and sum alpha h~ can be projected afterwards: a step then costs
        # nothing that grows with the source but the attention itself
        query = c if self.attention_memory is None else c @ self.attention_memory
        memory, padding = memory.to(query.dtype), None
        if lengths is not None:
            padding = torch.arange(memory.shape[1], device=memory.device) >= lengths[:, None]
            memory = memory.masked_fill(padding[:, :, None], 0)
        scores = torch.bmm(query.transpose(0, 1), memory.transpose(1, 2))
        if padding is not None:
            # not -inf, whose softmax has no value where nothing is valid
            scores = scores.masked_fill_(padding[:, None], torch.finfo(scores.dtype).min)
        # adds up in float32 also for 16-bit types, and under autocast returns it
        alpha = scores.softmax(-1).to(scores.dtype)
        if padding is not None:
            alpha = alpha.masked_fill(padding[:, None], 0)
        k = torch.bmm(F.dropout(alpha, self.attention_dropout, self.training), memory)
        if self.attention_memory is not None:
            k = F.linear(k, self.attention_memory)
        return self.attention_c(c) + self.attention_k(k).transpose(0, 1), alpha
