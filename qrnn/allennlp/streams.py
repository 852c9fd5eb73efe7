"""A corpus as words, for language models: dataset readers and data loaders."""

import logging
import os
import random
from itertools import chain
from pathlib import Path
from typing import Any, Iterator, List, Sequence, Tuple

import torch
from allennlp.common.checks import ConfigurationError
from allennlp.common.util import is_distributed
from allennlp.data import DataLoader, DatasetReader, Instance, TensorDict, Vocabulary
from allennlp.data.fields import TextField
from allennlp.data.token_indexers import SingleIdTokenIndexer
from allennlp.data.tokenizers import Token
from torch.nn.utils.rnn import pad_sequence

from qrnn.allennlp.readers import data_source, reviews

logger = logging.getLogger(__name__)

NAMESPACE = "tokens"
END = "<eos>"  # what the end of a line is read as
UNKNOWN = "<unk>"


@DatasetReader.register("token_stream")
class TokenStreamReader(DatasetReader):
    """Reads text, an instance a line, an empty one too: "tokens" are its words and <eos>.

    The instances are for the vocabulary, and for the data loaders: "token_stream", which joins
    them to a stream, and "token_lines", which does not.
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
        number = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:  # "-sig": without the mark that some editors begin a file with
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ConfigurationError(
                        f"{path}, line {number} is not UTF-8: {error}"
                    ) from error
                yield self.text_to_instance(text)
        if not number:
            raise ConfigurationError(f"{path} holds no lines")

    def text_to_instance(self, text: str) -> Instance:
        return _instance(text.split())


@DatasetReader.register("review_stream")
class ReviewStreamReader(DatasetReader):
    """Reads IMDb's prepared reviews, labelled or not, as "token_stream" reads lines.

    held_out: other files of the same folder; a review with the text of one in there is left out.
    reverse: each review from its last word to its first, then <eos>: for a backward model.
    """

    def __init__(self, held_out: Sequence[str] = (), reverse: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.held_out = held_out
        self.reverse = reverse

    def _read(self, file_path: Any) -> Iterator[Instance]:
        path = Path(os.fspath(file_path))
        others = (reviews(path.with_name(name), labelled=False) for name in self.held_out)
        held_out = {" ".join(words) for words, _ in chain(*others)}
        for words, _ in reviews(path, labelled=False):
            if " ".join(words) not in held_out:
                yield self.text_to_instance(words)

    def text_to_instance(self, words: List[str]) -> Instance:
        return _instance(words[::-1] if self.reverse else words)


def _instance(words: List[str]) -> Instance:
    tokens = [Token(word) for word in [*words, END]]
    return Instance({"tokens": TextField(tokens, {NAMESPACE: SingleIdTokenIndexer(NAMESPACE)})})


class _WordLoader(DataLoader):
    """What the loaders share: the lines of a file as numbers of words."""

    def __init__(self, reader: DatasetReader, data_path: str, batch_size: int, least: int) -> None:
        _check_at_least_1("batch_size", batch_size)
        if is_distributed():
            raise ConfigurationError(
                "data loaders of words: expected one process, got distributed training"
            )
        self.reader = reader
        self.data_path = data_path
        self.batch_size = batch_size
        self.least = least  # words that are needed
        self._arranged: Any = None
        self._device = torch.device("cpu")

    def iter_instances(self) -> Iterator[Instance]:
        yield from self.reader.read(self.data_path)

    def index_with(self, vocab: Vocabulary) -> None:
        index = vocab.get_token_to_index_vocabulary(NAMESPACE)
        unknown = index.get(UNKNOWN)
        lines = []
        for instance in self.iter_instances():
            lines.append([index.get(token.text, unknown) for token in instance["tokens"]])
            if None in lines[-1]:
                word = instance["tokens"][lines[-1].index(None)].text
                raise ConfigurationError(
                    f"{self.data_path}: {word!r} is not in the vocabulary, "
                    f"nor is {UNKNOWN}, which would stand for it"
                )
        words = sum(map(len, lines))
        if words < self.least:
            raise ConfigurationError(
                f"{self.data_path}: expected at least {self.least} words, got {words}"
            )
        self._arranged = self._arrange(lines, index.get(END, unknown))

    def set_target_device(self, device: torch.device) -> None:
        self._device = device

    def _arrange(self, lines: List[List[int]], end: int) -> Any:
        """What `_indexed` returns then; `end` is the number of <eos>."""
        raise NotImplementedError

    def _indexed(self) -> Any:
        if self._arranged is None:
            raise RuntimeError("the data loader has no vocabulary yet: call index_with first")
        return self._arranged


@DataLoader.register("token_stream")
class TokenStreamLoader(_WordLoader):
    """The stream as `batch_size` parallel rows, each a contiguous part of it, piece after piece.

    A batch is {"tokens": (T, B), "targets": (T, B), "start": bool}: the word to predict after each
    word, and whether this is the first piece. Row b of a piece goes on where row b of the one
    before ended. The stream is read as if an <eos> came before it, so that its first word is
    predicted as well: with batch_size 1 every word is a target once. With more rows, the last words
    of the stream, fewer than batch_size, which do not fill a step, are dropped.

    bptt: T, the steps of a piece; the last piece has what is left. Nothing is shuffled.
    random_length: T is drawn for each piece, around bptt or, one time in 20, around half of it,
        with a standard deviation of 5 and at least 5 (Merity et al. 2017, section 4.1), from
        Python's random numbers.

    Words outside the vocabulary become <unk>, which must then be in it. One process only.
    """

    def __init__(
        self,
        reader: DatasetReader,
        data_path: str,
        bptt: int,
        batch_size: int = 1,
        random_length: bool = False,
    ) -> None:
        _check_at_least_1("bptt", bptt)
        super().__init__(reader, data_path, batch_size, least=batch_size)
        self.bptt = bptt
        self.random_length = random_length

    def __len__(self) -> int:
        if self.random_length:
            raise TypeError("the number of pieces is not known before they are drawn")
        return -(-len(self._indexed()[0]) // self.bptt)

    def __iter__(self) -> Iterator[TensorDict]:
        # all at once: it is small, and a piece is then a view
        inputs, targets = (rows.to(self._device) for rows in self._indexed())
        t = 0
        while t < len(inputs):
            piece = slice(t, t + self._steps())
            yield {"tokens": inputs[piece], "targets": targets[piece], "start": t == 0}
            t = piece.stop

    def _steps(self) -> int:
        if not self.random_length:
            return self.bptt
        mean = self.bptt if random.random() < 0.95 else self.bptt / 2
        return max(5, int(random.gauss(mean, 5)))

    def _arrange(self, lines: List[List[int]], end: int) -> Tuple[torch.Tensor, torch.Tensor]:
        stream = torch.tensor([end, *chain(*lines)])
        return self._cut(stream[:-1]), self._cut(stream[1:])

    def _cut(self, stream: torch.Tensor) -> torch.Tensor:
        """(N,) to (steps, batch_size), a column for each contiguous part."""
        steps = len(stream) // self.batch_size
        rows = stream[: self.batch_size * steps].view(self.batch_size, steps)
        return rows.t().contiguous()


@DataLoader.register("token_lines")
class TokenLineLoader(_WordLoader):
    """Lines on their own, as if each came after nothing but an <eos>, `batch_size` at a time.

    A batch is {"tokens": (T, B), "targets": (T, B), "start": True, "mask": (T, B)}, which is false
    after the end of a line. Every word is a target once.

    shuffle: a new order in each pass, from Python's random numbers; by length when False.
    """

    def __init__(
        self, reader: DatasetReader, data_path: str, batch_size: int = 1, shuffle: bool = False
    ) -> None:
        super().__init__(reader, data_path, batch_size, least=1)
        self.shuffle = shuffle

    def __len__(self) -> int:
        return -(-len(self._indexed()) // self.batch_size)

    def __iter__(self) -> Iterator[TensorDict]:
        lines = list(self._indexed())
        if self.shuffle:
            random.shuffle(lines)
        for n in range(0, len(lines), self.batch_size):
            batch = lines[n : n + self.batch_size]
            words = pad_sequence(batch, padding_value=-1).to(self._device)
            tokens, targets = words[:-1].clamp(min=0), words[1:]
            yield {"tokens": tokens, "targets": targets, "start": True, "mask": targets >= 0}

    def _arrange(self, lines: List[List[int]], end: int) -> List[torch.Tensor]:
        return [torch.tensor([end, *line]) for line in sorted(lines, key=len)]


def _check_at_least_1(name: str, value: int) -> None:
    if value < 1:
        raise ConfigurationError(f"{name}: expected at least 1, got {value}")
