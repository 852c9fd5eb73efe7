"""Word vectors that a config may ask for before they have been downloaded."""

import json
import logging
import math
import zlib
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Dict, Iterable, Iterator, Optional, Tuple

import torch
from allennlp.common.checks import ConfigurationError
from allennlp.data import Instance, Vocabulary
from allennlp.modules.token_embedders import Embedding, TokenEmbedder
from allennlp.modules.token_embedders.embedding import EmbeddingsTextFile

logger = logging.getLogger(__name__)


def vectors_source(file: str) -> Tuple[str, Optional[Dict[str, str]]]:
    """What the NAME.json beside NAME.txt.gz (see scripts/vectors.py) says that they are, and the
    sha256 of each file that was looked through for the words that they have; None if unknown."""
    try:
        about = json.loads(Path(file.removesuffix(".txt.gz") + ".json").read_text(encoding="utf-8"))
        return f"{about['name']} ({about['note']})", about.get("data")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return f"{file}, not prepared by scripts/vectors.py", None


def _is_there(file: Optional[str]) -> bool:
    if file is not None and "://" in file:
        raise ConfigurationError(f"pretrained_file: expected a local file, got {file}")
    return file is not None and Path(file).exists()


@contextmanager
def _named(file: str, dim: int) -> Iterator[None]:
    """Makes an error in reading vectors of size `dim` one that names the file."""
    try:
        yield
    except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigurationError(
            f"{file} is damaged or incomplete ({error}): see `make download-glove`"
        ) from error
    except StopIteration as error:
        raise ConfigurationError(f"{file} is empty: see `make download-glove`") from error
    except (ValueError, RuntimeError) as error:  # from numpy, or from torch for a NaN
        wrong = _wrong_word(file, dim)
        if wrong is None:
            raise
        raise ConfigurationError(
            f"{file}: the vector of {wrong!r} is not of finite numbers"
        ) from error


def _wrong_word(file: str, dim: int) -> Optional[str]:
    with EmbeddingsTextFile(file) as lines:
        for line in lines:
            word, *numbers = line.rstrip().split(" ")
            try:
                if len(numbers) == dim and not all(math.isfinite(float(x)) for x in numbers):
                    return word
            except ValueError:
                return word
    return None


@Vocabulary.register("word_vectors", constructor="from_instances")
class WordVectorsVocabulary(Vocabulary):
    """AllenNLP's Vocabulary of the words that come often enough, or have a vector.

    pretrained_file: as for the token embedder of the same name. Where it is not there, only what
        comes often enough counts.
    min_count: by namespace, how often a word has to come that has no vector. AllenNLP counts the
        development part as well, unless "datasets_for_vocab_creation" is ["train"].
    """

    @classmethod
    def from_instances(
        cls,
        instances: Iterable[Instance],
        pretrained_file: Optional[str] = None,
        min_count: Optional[Dict[str, int]] = None,
        vocab_namespace: str = "tokens",
    ) -> "WordVectorsVocabulary":
        found = _is_there(pretrained_file)
        if found:
            assert pretrained_file is not None
            with _named(pretrained_file, 0), EmbeddingsTextFile(pretrained_file):
                pass  # its first line is read before the instances are
        vocabulary = super().from_instances(
            instances,
            min_count=min_count,
            pretrained_files={vocab_namespace: pretrained_file} if found else None,
        )
        size = vocabulary.get_vocab_size(vocab_namespace)
        logger.info("%d entries in the vocabulary %r", size, vocab_namespace)
        return vocabulary


@TokenEmbedder.register("word_vectors")
class WordVectors(Embedding):
    """AllenNLP's Embedding, which falls back on random vectors when `pretrained_file` is not there.

    The fallback is logged as a warning, and the run file (see callbacks.py) names what was used;
    with trainable=False it is an error.
    Random vectors are N(0, 1): a QRNN multiplies small factors, and AllenNLP's own initial values
    (for 30,000 words within 0.015) starve the layers above. Padding, where the vocabulary has it,
    is zero. Words without a vector in the file start from N(m, s) with its vectors' mean and
    standard deviation.

    pretrained_file: a local one of lines "word x_1 ... x_d", also .gz; None for random vectors
        without a warning.
    dropout: rate on the elements of the result, in training.
    """

    def __init__(
        self,
        embedding_dim: int,
        vocab: Vocabulary,
        pretrained_file: Optional[str] = None,
        dropout: float = 0.0,
        trainable: bool = True,
        vocab_namespace: str = "tokens",
    ) -> None:
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"dropout: expected 0 <= dropout < 1, got {dropout}")
        found = _is_there(pretrained_file)
        if pretrained_file is not None and not found:
            if not trainable:
                raise ConfigurationError(
                    f"pretrained_file: {pretrained_file} does not exist, and with trainable=False "
                    "nothing would come in the place of its vectors: see `make download-glove`"
                )
            logger.warning(
                "NO WORD VECTORS: %s does not exist. The embeddings start at random, and results "
                "are not comparable with those that start from word vectors.",
                pretrained_file,
            )
        padded = vocab.is_padded(vocab_namespace)
        reading = _named(str(pretrained_file), embedding_dim) if found else nullcontext()
        with reading:
            super().__init__(
                embedding_dim=embedding_dim,
                padding_index=0 if padded else None,
                trainable=trainable,
                vocab_namespace=vocab_namespace,
                pretrained_file=pretrained_file if found else None,
                vocab=vocab,
            )
        self.dropout = torch.nn.Dropout(dropout)
        with torch.no_grad():
            if not found:
                self.weight.normal_()
            if padded:
                self.weight[0] = 0
        self.source, self.reviews = "none (random start)", None
        if found:
            assert pretrained_file is not None
            self.source, self.reviews = vectors_source(pretrained_file)
            logger.info("word vectors: %s", self.source)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.dropout(super().forward(tokens))
