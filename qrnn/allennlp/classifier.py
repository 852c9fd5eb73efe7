"""AllenNLP's text classifier with a softer loss, and with an adversary.

B reviews, T words, E features of a word.
"""

from typing import Any, Dict, List, Optional

import torch
from allennlp.common.checks import ConfigurationError
from allennlp.data import TextFieldTensors, Vocabulary
from allennlp.data.fields.metadata_field import MetadataField
from allennlp.models import BasicClassifier, Model
from allennlp.nn.util import get_text_field_mask
from torch import Tensor
from torch.nn import functional as F


@Model.register("smoothed_classifier")
class SmoothedClassifier(BasicClassifier):
    """AllenNLP's "basic_classifier", whose loss smooths the labels (Szegedy et al. 2016).

    label_smoothing: share of the target that is spread evenly over the labels.
    adversarial: 0, or how far the words' vectors are moved to where the loss grows fastest; the
        loss in training is then the mean of that with and without (Miyato et al. 2017). It is the
        length of a review's whole movement, all its words together, in units of the root of the
        mean square length of its vectors: growing vectors do not make it smaller. A step costs two.
    """

    def __init__(
        self, vocab: Vocabulary, label_smoothing: float, adversarial: float = 0.0, **options: Any
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ConfigurationError(
                f"label_smoothing: expected 0 <= label_smoothing < 1, got {label_smoothing}"
            )
        if not adversarial >= 0:
            raise ConfigurationError(f"adversarial: expected at least 0, got {adversarial}")
        super().__init__(vocab, **options)
        self._loss = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.adversarial = adversarial

    def forward(
        self,
        tokens: TextFieldTensors,
        label: Optional[Tensor] = None,
        metadata: Optional[MetadataField] = None,
    ) -> Dict[str, Tensor]:
        if not (self.adversarial and self.training and torch.is_grad_enabled()) or label is None:
            return super().forward(tokens, label, metadata)
        embedder = self._text_field_embedder
        seen: List[Tensor] = []
        with embedder.register_forward_hook(lambda *call: seen.append(call[-1].requires_grad_())):
            outputs = super().forward(tokens, label, metadata)
        loss, [embedded] = outputs["loss"], seen
        # All of the loss's gradients at once: its graph is gone before there is another.
        inputs = [embedded, *self._parameters_after_embedding()]
        grads = torch.autograd.grad(loss, inputs, materialize_grads=True)
        movement = self.adversarial * _towards(grads[0], embedded, get_text_field_mask(tokens))
        with embedder.register_forward_hook(lambda *_: embedded + movement):
            logits = super().forward(tokens)["logits"]
        # zero, with those gradients
        known = torch.stack([(x * grad).sum() for x, grad in zip(inputs, grads, strict=True)]).sum()
        clean = loss.detach() + (known - known.detach())
        outputs["loss"] = (clean + self._loss(logits, label.long().view(-1))) / 2
        return outputs

    def _parameters_after_embedding(self) -> List[torch.nn.Parameter]:
        before = {id(p) for p in self._text_field_embedder.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in before]


def _towards(grad: Tensor, embedded: Tensor, mask: Tensor) -> Tensor:
    """(B, T, E) along grad, each review's of the root mean square length of its words' vectors."""
    words = mask.sum(1).clamp(min=1)
    squares = (embedded.detach() * mask[:, :, None]).square().sum((1, 2))
    size = (squares / words).sqrt()
    return F.normalize(grad.flatten(1), dim=1).view_as(grad) * size[:, None, None]
