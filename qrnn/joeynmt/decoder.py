"""The decoder of type "qrnn": QRNNDecoder behind the interface of joeynmt's recurrent decoder.

B sentences, T target steps, S source steps, E embedding size, H channels, L layers, M features of
the encoder, G blocks of gates.
"""

from typing import Any

import torch
from joeynmt.decoders import Decoder, RecurrentDecoder
from joeynmt.helpers import freeze_params
from torch import Tensor, nn

from qrnn.checks import check, check_flag, check_probability
from qrnn.decoder import DecoderState, QRNNDecoder
from qrnn.joeynmt.encoder import QRNNEncoder

ATTENTION = "qrnn-dot"

Packed = tuple[Tensor, Tensor]


class QRNNAttentionDecoder(RecurrentDecoder):
    """All target steps at once in training, one at a time in search; the options of `QRNNDecoder`.

    Of a RecurrentDecoder, which joeynmt's search insists on, it is nothing but the interface.
    Options that need a recurrence do not exist: rnn_type, input_feeding, init_hidden.

    Args:
        emb_size, emb_dropout, vocab_size, encoder: given by joeynmt; the dropout is on the
            embedded target. The encoder may have another width, or two directions, but has to have
            as many layers: the last output of each conditions the decoder's layer of the same
            index (equation 7).
        attention: "qrnn-dot", equation 8. The name is there for the configs' safety: a joeynmt
            without qrnn takes every unknown type for a GRU, but no unknown attention.
        hidden_dropout: rate on h_t, which the softmax layer reads; there is no other layer after
            the attention that it could be on.
        freeze: whether training leaves the parameters as they are, the softmax layer's too unless
            they are the embeddings' (tied_softmax).

    Raises:
        ValueError, TypeError: for an option of the wrong type or value, by name.
    """

    def __init__(
        self,
        hidden_size: int,
        emb_size: int,
        encoder: QRNNEncoder,
        vocab_size: int,
        emb_dropout: float = 0.0,
        attention: str = ATTENTION,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        kernel_size: int = 2,
        first_kernel_size: int | None = None,
        pooling: str = "fo",
        zoneout: float = 0.0,
        zoneout_eval: str = "mean",
        forget_bias: float = 0.0,
        freeze: bool = False,
    ) -> None:
        Decoder.__init__(self)  # RecurrentDecoder's own builds a GRU
        if not isinstance(encoder, QRNNEncoder):
            raise TypeError(f'needs an encoder of type "qrnn", got {type(encoder).__name__}')
        check(attention == ATTENTION, "attention", repr(ATTENTION), repr(attention))
        layers = encoder.num_layers
        check(num_layers == layers, "num_layers", f"{layers}, as in the encoder", num_layers)
        check_flag("freeze", freeze)
        check_probability("dropout", dropout)
        check_probability("embeddings: dropout", emb_dropout)  # `dropout` unless given
        check_probability("hidden_dropout", hidden_dropout)
        self.emb_dropout = nn.Dropout(emb_dropout)
        self.hidden_dropout = nn.Dropout(hidden_dropout)
        # no name in here may contain "rnn": joeynmt's initializer would look for an nn.GRU
        self.stack = QRNNDecoder(
            emb_size,
            hidden_size,
            num_layers,
            bias,
            batch_first=True,
            dropout=dropout,
            encoder_size=encoder.output_size,
            kernel_size=kernel_size,
            first_kernel_size=first_kernel_size,
            pooling=pooling,
            zoneout=zoneout,
            zoneout_eval=zoneout_eval,
            attention_dropout=attention_dropout,
            forget_bias=forget_bias,
        )
        self.output_layer = nn.Linear(hidden_size, vocab_size, bias=False)
        self._output_size = vocab_size
        self.hidden_size = hidden_size
        self.windows = [(layer.kernel_size - 1, layer.input_size) for layer in self.stack._layers]
        if freeze:
            freeze_params(self)

    def reset_qrnn(self) -> None:
        """Initial weights as `QRNNDecoder` chooses them: joeynmt's initializer fits no QRNN."""
        self.stack.reset_parameters()

    def forward(
        self,
        trg_embed: Tensor,
        encoder_output: Tensor,
        encoder_hidden: Tensor | None,
        src_mask: Tensor,
        unroll_steps: int,
        hidden: Packed | None = None,
        prev_att_vector: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Packed, Tensor, Tensor]:
        """joeynmt's contract for recurrent decoders.

        Args:
            trg_embed: (B, T, E).
            encoder_output: (B, S, M).
            encoder_hidden: last outputs of the encoder's layers (B, L, M), to start with.
            src_mask: True where the source is no padding, (B, 1, S).
            unroll_steps: T.
            hidden: what an earlier call returned, to go on; encoder_hidden is not used then.
            prev_att_vector: not used, nothing is fed back.

        Returns:
            logits (B, T, V); hidden, two tensors (B, 1, .); attention probabilities (B, T, S); h,
            which the softmax layer read, (B, T, H).
        """
        if hidden is None:
            assert encoder_hidden is not None
            state = self.stack.initial_state(encoder_hidden.transpose(0, 1))
        else:
            state = self._unpack(hidden)
        x = self.emb_dropout(trg_embed[:, :unroll_steps])
        lengths = src_mask.sum((1, 2))
        output, state, attention = self.stack(x, state, encoder_output, lengths)
        output = self.hidden_dropout(output)
        return self.output_layer(output), self._pack(state), attention, output

    def _init_hidden(self, encoder_final: Tensor | None = None) -> Packed:
        """For beam search: as forward's `hidden`, but (1, B, .) as joeynmt wants it here."""
        assert encoder_final is not None
        # of fp16, which joeynmt turns on for the encoder and for each step, but not here
        encoder_final = encoder_final.to(self.output_layer.weight.dtype)
        changing, condition = self._pack(self.stack.initial_state(encoder_final.transpose(0, 1)))
        return changing.transpose(0, 1), condition.transpose(0, 1)

    def _pack(self, state: DecoderState) -> Packed:
        """Cells and windows (B, 1, .), and the condition (B, 1, L * G * H).

        joeynmt's beam search copies and reorders exactly two tensors.
        """
        changing = [state.c, *state.window]
        flat = torch.cat([value.transpose(0, 1).flatten(1) for value in changing], -1)
        return flat[:, None], state.encoded.transpose(0, 1).flatten(1)[:, None]

    def _unpack(self, packed: Packed) -> DecoderState:
        changing, condition = packed
        shapes = [(self.stack.num_layers, self.hidden_size), *self.windows]
        pieces = changing[:, 0].split([rows * columns for rows, columns in shapes], -1)
        c, *window = (
            piece.unflatten(1, shape).transpose(0, 1)
            for piece, shape in zip(pieces, shapes, strict=True)
        )
        layers = (self.stack.num_layers, -1)
        return DecoderState(c, tuple(window), condition[:, 0].unflatten(1, layers).transpose(0, 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.stack}, output_layer={self.output_layer})"
