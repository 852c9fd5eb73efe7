"""Word vectors that a config may ask for before they have been downloaded."""

import logging
from pathlib import Path
from typing import Optional

import torch
from allennlp.data import Vocabulary
from allennlp.modules.token_embedders import Embedding, TokenEmbedder

logger = logging.getLogger(__name__)


@TokenEmbedder.register("word_vectors")
class WordVectors(Embedding):
    """AllenNLP's Embedding, which falls back on random vectors when `pretrained_file` is not there.

    The fallback is logged as a warning, and the run file (see callbacks.py) names what was used.
    Random vectors are N(0, 1): a QRNN multiplies small factors, and AllenNLP's own start values
    (for 30,000 words within 0.015) starve the layers above. Padding is zero.

    pretrained_file: lines "word x_1 ... x_d", also .gz; None for random vectors without a warning.
    """

    def __init__(
        self,
        embedding_dim: int,
        vocab: Vocabulary,
        pretrained_file: Optional[str] = None,
        trainable: bool = True,
        vocab_namespace: str = "tokens",
    ) -> None:
        found = pretrained_file is not None and Path(pretrained_file).exists()
        if pretrained_file is not None and not found:
            logger.warning(
                "NO WORD VECTORS: %s does not exist. The embeddings start at random, and results "
                "are not comparable with those that start from word vectors.",
                pretrained_file,
            )
        super().__init__(
            embedding_dim=embedding_dim,
            padding_index=0,
            trainable=trainable,
            vocab_namespace=vocab_namespace,
            pretrained_file=pretrained_file if found else None,
            vocab=vocab,
        )
        self.source = pretrained_file if found else "none (random start)"
        if not found:
            with torch.no_grad():
                self.weight.normal_()
                self.weight[0] = 0
