"""The encoder of type "qrnn": QRNN on embedded source sentences.

B sentences, S source steps, E embedding size, H channels, D directions, L layers.
"""

from typing import Any

import torch
from joeynmt.encoders import Encoder
from joeynmt.helpers import freeze_params
from torch import Tensor, nn

from qrnn.checks import check_flag, check_probability
from qrnn.layers import QRNN


class QRNNEncoder(Encoder):
    """A stack of quasi-recurrent layers; the options are those of `QRNN`, and two of this class.

    Args:
        emb_size, emb_dropout: given by joeynmt from the section `embeddings`; the dropout is on
            the embedded source.
        reverse_source: whether each sentence is read from its last step to its first, as in the
            paper. Windows that are masked then look ahead in the text. The outputs are put back
            into the order of the text, so that masks and attention plots stay aligned with it.
        freeze: whether training leaves the parameters as they are.

    Raises:
        ValueError, TypeError: for an option of the wrong type or value, by name.
    """

    def __init__(
        self,
        hidden_size: int,
        emb_size: int,
        emb_dropout: float = 0.0,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        kernel_size: int = 2,
        first_kernel_size: int | None = None,
        pooling: str = "fo",
        zoneout: float = 0.0,
        zoneout_eval: str = "mean",
        weight_dropout: float = 0.0,
        dense: bool = False,
        masked: bool = True,
        forget_bias: float = 0.0,
        reverse_source: bool = False,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        check_flag("reverse_source", reverse_source)
        check_flag("freeze", freeze)
        check_probability("dropout", dropout)
        check_probability("embeddings: dropout", emb_dropout)  # `dropout` unless given
        self.emb_dropout = nn.Dropout(emb_dropout)
        # no name in here may contain "rnn": joeynmt's initializer would look for an nn.GRU
        self.stack = QRNN(
            emb_size,
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
        self.num_layers = num_layers
        self.reverse_source = reverse_source
        self._output_size = hidden_size * (2 if bidirectional else 1)
        if freeze:
            freeze_params(self)

    def reset_qrnn(self) -> None:
        """Initial weights as `QRNN` chooses them: joeynmt's initializer fits no QRNN."""
        self.stack.reset_parameters()

    def forward(
        self, src_embed: Tensor, src_length: Tensor, mask: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """joeynmt's contract for encoders. The padding is never read.

        Args:
            src_embed: (B, S, E).
            src_length: steps of each sentence without padding (B,).
            mask: not used, src_length says it.

        Returns:
            output (B, S, D * H), zeros in the padding, and the last output of every layer,
            (B, L, D * H): in a layer's second direction that before its first step.
        """
        x = self.emb_dropout(src_embed)
        B, S, _ = x.shape
        if self.reverse_source:
            steps = torch.arange(S, device=x.device)
            length = src_length[:, None]
            mirror = torch.where(steps < length, length - 1 - steps, steps)[:, :, None]
            x = x.gather(1, mirror.expand_as(x))
        output, (final, _) = self.stack(x, lengths=src_length)
        if self.reverse_source:
            output = output.gather(1, mirror.expand_as(output))
        # (L * D, B, H) to (B, L, D * H)
        final = final.view(self.num_layers, -1, B, final.shape[2])
        return output, final.permute(2, 0, 1, 3).flatten(2)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.stack}, reverse_source={self.reverse_source})"
