"""QRNN as AllenNLP's Seq2SeqEncoder and Seq2VecEncoder, both named "qrnn" in a config, two
Seq2VecEncoders as one that reads both ways, "bidirectional", and the densely connected LSTM that
QRNNs are compared with, "dense_lstm".
"""

from typing import Any, List, Optional, Tuple

import torch
from allennlp.common import FromParams
from allennlp.common.checks import ConfigurationError
from allennlp.modules.seq2seq_encoders import Seq2SeqEncoder
from allennlp.modules.seq2vec_encoders import Seq2VecEncoder
from torch import Tensor

from qrnn.layers import QRNN, QRNNState

HEADS = ("last", "max", "mean")


class _Encoder(torch.nn.Module, FromParams):
    """What both encoders are: a QRNN, its dimensions, and AllenNLP's mask as lengths."""

    _states: Optional[Tuple[Tensor, ...]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        kernel_size: int = 2,
        first_kernel_size: Optional[int] = None,
        pooling: str = "fo",
        zoneout: float = 0.0,
        zoneout_eval: str = "mean",
        weight_dropout: float = 0.0,
        dense: bool = False,
        masked: bool = True,
        forget_bias: float = 0.0,
        stateful: bool = False,
    ) -> None:
        super().__init__(stateful)  # of AllenNLP's _EncoderBase
        try:
            self.module = QRNN(
                input_size,
                hidden_size,
                num_layers,
                bias,
                batch_first=True,
                dropout=dropout,
                bidirectional=bidirectional,
                kernel_size=kernel_size,
                first_kernel_size=first_kernel_size,
                pooling=pooling,
                zoneout=zoneout,
                zoneout_eval=zoneout_eval,
                weight_dropout=weight_dropout,
                dense=dense,
                masked=masked,
                forget_bias=forget_bias,
            )
            if stateful:
                self.module.initial_state(0)  # raises for a QRNN that cannot run in pieces
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f'encoder "qrnn": {error}') from error

    def get_input_dim(self) -> int:
        return self.module.input_size

    def get_output_dim(self) -> int:
        return self.module.hidden_size * (2 if self.module.bidirectional else 1)

    def is_bidirectional(self) -> bool:
        return self.module.bidirectional

    def encode(self, inputs: Tensor, mask: Optional[Tensor], state: Any) -> Tuple[Tensor, Any]:
        if mask is None:
            return self.module(inputs, state)
        if mask.shape != inputs.shape[:2]:
            raise ValueError(
                f"mask: expected shape {tuple(inputs.shape[:2])}, got {tuple(mask.shape)}"
            )
        return self.module(inputs, state, mask.bool().sum(1))


@Seq2SeqEncoder.register("qrnn")
class QRNNSeq2SeqEncoder(_Encoder, Seq2SeqEncoder):
    """`QRNN`, whose options it takes one to one, on (B, T, input_size) and a mask (B, T).

    The mask is of padding on the right; the output (B, T, output_dim) is zero there, and all
    zero in a row that is padding only. With `stateful`, state and window are kept between
    calls and detached, and `reset_states` clears them; rows are matched by their position in
    the batch, and a row of padding keeps its state.
    """

    def forward(self, inputs: Tensor, mask: Optional[Tensor], hidden_state: Any = None) -> Tensor:
        if not self.stateful:
            return self.encode(inputs, mask, hidden_state)[0]
        if hidden_state is not None:
            raise ValueError("hidden_state: expected None in a stateful encoder, which has its own")
        B = len(inputs)
        kept = self._states or _flat(self.module.initial_state(B))
        missing = B - kept[0].shape[1]
        if missing > 0:
            kept = tuple(torch.nn.functional.pad(s, (0, 0, 0, missing)) for s in kept)
        output, state = self.encode(inputs, mask, _state([s[:, :B] for s in kept]))
        # a smaller batch than before leaves the states of the rows it lacks
        self._states = tuple(
            torch.cat([new, old[:, B:]], 1)
            for new, old in zip(_flat(state.detach()), kept, strict=True)
        )
        return output


def _flat(state: QRNNState) -> Tuple[Tensor, ...]:
    """As AllenNLP keeps states: a tuple of (., B, .), which is what reset_states(mask) wants."""
    return (state.h, state.c, *state.window)


def _state(flat: List[Tensor]) -> QRNNState:
    return QRNNState(flat[0], flat[1], tuple(flat[2:]))


@Seq2VecEncoder.register("qrnn")
class QRNNSeq2VecEncoder(_Encoder, Seq2VecEncoder):
    """`QRNN`, whose options it takes one to one, from (B, T, input_size) to (B, output_dim).

    heads: what of the last layer is concatenated to the result: "last" (the last valid step,
        of the reverse direction its first), "max" and "mean" over the valid steps. A row that
        is padding only gives zeros.
    """

    def __init__(self, *, heads: Optional[List[str]] = None, **options: Any) -> None:
        heads = ["last"] if heads is None else heads
        if not heads or not set(heads) <= set(HEADS):
            raise ConfigurationError(
                f'encoder "qrnn": heads: expected some of {", ".join(HEADS)}, got {heads}'
            )
        if options.get("stateful"):
            raise ConfigurationError('encoder "qrnn": stateful: a Seq2VecEncoder cannot be')
        try:
            super().__init__(**options)
        except TypeError as error:  # an option that it does not have
            raise ConfigurationError(f'encoder "qrnn": {error}') from error
        self.heads = heads

    def get_output_dim(self) -> int:
        return super().get_output_dim() * len(self.heads)

    def forward(self, inputs: Tensor, mask: Optional[Tensor], hidden_state: Any = None) -> Tensor:
        output, (h_n, _) = self.encode(inputs, mask, hidden_state)
        if mask is None:
            mask = torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
        mask = mask.bool()
        directions = 2 if self.module.bidirectional else 1
        vectors = []
        for head in self.heads:
            if head == "last":
                vectors.append(h_n[-directions:].transpose(0, 1).flatten(1))
            elif head == "max" and output.shape[1]:  # of no steps all heads are zero
                top = output.masked_fill(~mask[:, :, None], -torch.inf).amax(1)
                vectors.append(top.masked_fill(~mask.any(1)[:, None], 0))
            else:  # the padding of `output` is zero
                vectors.append(output.sum(1) / mask.sum(1).clamp(min=1)[:, None])
        return torch.cat(vectors, -1)


@Seq2VecEncoder.register("bidirectional")
class BidirectionalSeq2VecEncoder(Seq2VecEncoder):
    """Two encoders, of which one reads backwards, and their vectors one after the other.

    From (B, T, input_dim) and a mask (B, T), of padding on the right, to (B, sum of output_dims).
    Unlike the directions of `QRNN(bidirectional=True)`, which meet after every layer, these do not
    know of each other, as those of two language models (Peters et al. 2018).

    backward_encoder: is given each row from its last valid step to its first.
    """

    def __init__(self, forward_encoder: Seq2VecEncoder, backward_encoder: Seq2VecEncoder) -> None:
        super().__init__()
        sizes = forward_encoder.get_input_dim(), backward_encoder.get_input_dim()
        if sizes[0] != sizes[1]:
            raise ConfigurationError(
                'encoder "bidirectional": backward_encoder: expected inputs of size '
                f"{sizes[0]}, as forward_encoder has, got {sizes[1]}"
            )
        self.forward_encoder = forward_encoder
        self.backward_encoder = backward_encoder

    def get_input_dim(self) -> int:
        return self.forward_encoder.get_input_dim()

    def get_output_dim(self) -> int:
        return self.forward_encoder.get_output_dim() + self.backward_encoder.get_output_dim()

    def forward(self, inputs: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        if mask is None:
            backwards = inputs.flip(1)
        else:
            mask, T = mask.bool(), inputs.shape[1]
            steps = torch.arange(T, device=inputs.device)
            order = (mask.sum(1, keepdim=True) - 1 - steps) % T  # the padding stays at the end
            backwards = inputs.take_along_dim(order[:, :, None], 1)
        vectors = self.forward_encoder(inputs, mask), self.backward_encoder(backwards, mask)
        return torch.cat(vectors, -1)


@Seq2VecEncoder.register("dense_lstm")
class DenseLSTMSeq2VecEncoder(Seq2VecEncoder):
    """The paper's baseline: LSTM layers, connected as in `QRNN(dense=True)`, and their last state.

    From (B, T, input_size) and a mask (B, T), of padding on the right, to (B, hidden_size). A row
    that is padding only gives zeros.

    dropout: rate on the outputs of every layer but the last, where they go into the next.
    forget_bias: what a forget gate's biases add up to at the start; the rest is nn.LSTM's start.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, value in sizes.items():
            if value < 1:
                raise ConfigurationError(
                    f'encoder "dense_lstm": {name}: expected at least 1, got {value}'
                )
        if not 0 <= dropout < 1:
            raise ConfigurationError(
                f'encoder "dense_lstm": dropout: expected 0 <= dropout < 1, got {dropout}'
            )
        self.input_size, self.hidden_size = input_size, hidden_size
        self.dropout = torch.nn.Dropout(dropout)
        self.layers = torch.nn.ModuleList(
            torch.nn.LSTM(input_size + n * hidden_size, hidden_size, batch_first=True)
            for n in range(num_layers)
        )
        forget = slice(hidden_size, 2 * hidden_size)  # torch's order: input, forget, cell, output
        with torch.no_grad():
            for layer in self.layers:
                layer.get_parameter("bias_ih_l0")[forget] = forget_bias
                layer.get_parameter("bias_hh_l0")[forget] = 0

    def get_input_dim(self) -> int:
        return self.input_size

    def get_output_dim(self) -> int:
        return self.hidden_size

    def forward(self, inputs: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        # the steps before the padding do not depend on it: packing would only be slower
        x = inputs
        *lower, top = self.layers
        for layer in lower:
            x = torch.cat([x, self.dropout(layer(x)[0])], -1)
        output = top(x)[0]
        if mask is None:
            return output[:, -1]
        lengths = mask.bool().sum(1)
        last = output[torch.arange(len(output), device=output.device), lengths.clamp(min=1) - 1]
        return last.masked_fill(lengths[:, None] == 0, 0)
