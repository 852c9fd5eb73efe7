"""A corpus as one stream of words, for language models: dataset reader and data loader."""

import logging
import os
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple

import torch
from allennlp.common.checks import ConfigurationError
from allennlp.common.util import is_distributed
from allennlp.data import DataLoader, DatasetReader, Instance, TensorDict, Vocabulary
from allennlp.data.fields import TextField
from allennlp.data.token_indexers import SingleIdTokenIndexer
from allennlp.data.tokenizers import Token

from qrnn.allennlp.readers import data_source

logger = logging.getLogger(__name__)

NAMESPACE = "tokens"
END = "<eos>"  # what the end of a line is read as
UNKNOWN = "<unk>"


@DatasetReader.register("token_stream")
class TokenStreamReader(DatasetReader):
    """Reads text, an instance a line, an empty one too: "tokens" are its words and <eos>.

    The instances are for the vocabulary, and for the data loader of the same name, which joins
    them to a stream.
    """

    def _read(self, file_path: Any) -> Iterator[Instance]:
        path = Path(os.fspath(file_path))
        if not path.exists():
            raise ConfigurationError(
                f"{path} does not exist: prepare it first, for PTB with `make data-ptb`"
            )
        source = data_source(path.parent)
        if not source["official"]:
            logger.warning("%s IS NOT THE OFFICIAL DATA: %s", path, source["note"])
        with path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield self.text_to_instance(line)

    def text_to_instance(self, text: str) -> Instance:
        tokens = [Token(word) for word in [*text.split(), END]]
        return Instance({"tokens": TextField(tokens, {NAMESPACE: SingleIdTokenIndexer(NAMESPACE)})})


@DataLoader.register("token_stream")
class TokenStreamLoader(DataLoader):
    """The stream as `batch_size` parallel rows, each a contiguous part of it, piece after piece.

    A batch is {"tokens": (T, B), "targets": (T, B), "start": bool}: the word to predict after each
    word, and whether this is the first piece. Row b of a piece goes on where row b of the one
    before ended. The stream is read as if an <eos> came before it, so that its first word is
    predicted as well: with batch_size 1 every word is a target once. With more rows, the last words
    of the stream, fewer than batch_size, which do not fill a step, are dropped.

    bptt: T, the steps of a piece; the last piece has what is left. Nothing is shuffled.

    Words outside the vocabulary become <unk>, which must then be in it. One process only.
    """

    def __init__(
        self, reader: DatasetReader, data_path: str, bptt: int, batch_size: int = 1
    ) -> None:
        for name, value in (("bptt", bptt), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigurationError(f"{name}: expected at least 1, got {value}")
        if is_distributed():
            raise ConfigurationError(
                'data loader "token_stream": expected one process, got distributed training'
            )
        self.reader = reader
        self.data_path = data_path
        self.bptt = bptt
        self.batch_size = batch_size
        self._rows: Optional[Tuple[torch.Tensor, torch.Tensor]] = None
        self._device = torch.device("cpu")

    def iter_instances(self) -> Iterator[Instance]:
        yield from self.reader.read(self.data_path)

    def index_with(self, vocab: Vocabulary) -> None:
        index = vocab.get_token_to_index_vocabulary(NAMESPACE)
        unknown = index.get(UNKNOWN)
        ids = [index.get(END, unknown)]
        for instance in self.iter_instances():
            for token in instance["tokens"]:
                ids.append(index.get(token.text, unknown))
                if ids[-1] is None:
                    raise ConfigurationError(
                        f"{self.data_path}: {token.text!r} is not in the vocabulary, "
                        f"nor is {UNKNOWN}, which would stand for it"
                    )
        B = self.batch_size
        steps = (len(ids) - 1) // B
        if not steps:
            raise ConfigurationError(
                f"{self.data_path}: expected at least {B} words, one for each row of the batch, "
                f"got {len(ids) - 1}"
            )
        inputs, targets = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
        self._rows = _rows(inputs, B, steps), _rows(targets, B, steps)

    def set_target_device(self, device: torch.device) -> None:
        self._device = device

    def __len__(self) -> int:
        return -(-len(self._indexed()[0]) // self.bptt)

    def __iter__(self) -> Iterator[TensorDict]:
        # all at once: it is small, and a piece is then a view
        inputs, targets = (rows.to(self._device) for rows in self._indexed())
        for t in range(0, len(inputs), self.bptt):
            piece = slice(t, t + self.bptt)
            yield {"tokens": inputs[piece], "targets": targets[piece], "start": t == 0}

    def _indexed(self) -> Tuple[torch.Tensor, torch.Tensor]:
        if self._rows is None:
            raise RuntimeError("the data loader has no vocabulary yet: call index_with first")
        return self._rows


def _rows(stream: torch.Tensor, batch_size: int, steps: int) -> torch.Tensor:
    """(N,) to (steps, batch_size), a column for each contiguous part."""
    return stream[: batch_size * steps].view(batch_size, steps).t().contiguous()
