"""The paper's ranking of finished translations (Bradbury et al. 2016, equation 9)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qrnn.checks import check, check_number

EXTRA = 5  # symbols that a translation may be longer than its source before nothing is added


class Alpha(float):
    """The exponent of a length penalty for joeynmt, but the alpha of equation 9 for beam_search.

    joeynmt passes beam_alpha on to its search, but no option that it does not know. Who calls its
    functions from Python passes an Alpha as well: a plain number is joeynmt's own length penalty.
    """

    def __new__(cls, alpha: float) -> "Alpha":
        check_number("beam_alpha", alpha)
        expected = 'a finite number from 0 on with beam_ranking: "qrnn"'
        check(0 <= alpha < math.inf, "beam_alpha", expected, alpha)
        return super().__new__(cls, alpha)

    def __str__(self) -> str:
        return f"{float(self)} (ranking by equation 9)"

    def factor(self, lengths: Tensor, source_lengths: Tensor) -> Tensor:
        """prod_{t = T}^{T_trg} (t + alpha) / t with T_trg = source length + 5, float64.

        1 where T is greater than T_trg. Both arguments are integers, of shapes that broadcast.
        """
        start = lengths.double()
        end = (source_lengths + EXTRA).double() + 1
        alpha = float(self)
        log = (end + alpha).lgamma() - end.lgamma() - (start + alpha).lgamma() + start.lgamma()
        return torch.where(start < end, log.exp(), 1.0)


def beam_search(
    search: Callable[..., tuple[Tensor, Tensor, None]],
    *,
    model: Any,
    beam_size: int,
    src_mask: Tensor,
    alpha: Alpha,
    n_best: int = 1,
    return_prob: str = "none",
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None, None]:
    """joeynmt's beam search, whose `beam_size` most probable translations equation 9 ranks.

    Within the search all candidates of a sentence are equally long, so that neither this nor
    joeynmt's length penalty has a say there. T counts </s>, the source's length does not.
    Takes joeynmt's arguments, and returns its results; scores are those of equation 9.
    """
    if not n_best <= beam_size:
        raise ValueError(f"n_best: expected at most beam_size {beam_size}, got {n_best}")
    found, scores, _ = search(
        model=model,
        beam_size=beam_size,
        src_mask=src_mask,
        alpha=0.0,
        n_best=beam_size,
        return_prob="hyp",
        **kwargs,
    )
    B = len(src_mask)
    found = found.view(B, beam_size, -1)
    lengths = (found != model.pad_index).sum(-1)
    source = src_mask.sum((1, 2)).cpu()[:, None] - 1
    log_p = scores.view(B, beam_size).double()
    ranked = log_p * alpha.factor(lengths, source)
    # where fewer translations were finished, joeynmt puts a lone <unk> of score -1 for each
    missing = (lengths == 1) & (found[:, :, 0] == model.unk_index) & (log_p == -1)
    ranked = ranked.masked_fill(missing, -torch.inf)
    best, order = ranked.sort(descending=True, stable=True)
    order = order[:, :n_best, None].expand(-1, -1, found.shape[2])
    outputs = found.gather(1, order).flatten(0, 1)
    return outputs, best[:, :n_best].reshape(-1, 1) if return_prob == "hyp" else None, None
