"""AllenNLP's text classifier with a softer loss."""

from typing import Any

import torch
from allennlp.common.checks import ConfigurationError
from allennlp.data import Vocabulary
from allennlp.models import BasicClassifier, Model


@Model.register("smoothed_classifier")
class SmoothedClassifier(BasicClassifier):
    """AllenNLP's "basic_classifier", whose loss smooths the labels (Szegedy et al. 2016).

    label_smoothing: share of the target that is spread evenly over the labels.
    """

    def __init__(self, vocab: Vocabulary, label_smoothing: float, **options: Any) -> None:
        if not 0 <= label_smoothing < 1:
            raise ConfigurationError(
                f"label_smoothing: expected 0 <= label_smoothing < 1, got {label_smoothing}"
            )
        super().__init__(vocab, **options)
        self._loss = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)
