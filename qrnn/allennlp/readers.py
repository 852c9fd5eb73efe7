"""Dataset readers for what the scripts prepare."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from allennlp.common.checks import ConfigurationError
from allennlp.data import DatasetReader, Instance, TokenIndexer
from allennlp.data.fields import LabelField, TextField
from allennlp.data.token_indexers import SingleIdTokenIndexer
from allennlp.data.tokenizers import Token

from qrnn.allennlp.tokenize import tokenize

logger = logging.getLogger(__name__)


def data_source(directory: Path) -> Dict[str, Any]:
    """The meta.json of prepared data: what it is, and whether its content is the official one.

    Files whose hash has changed since they were prepared are not.
    """
    unknown = {"name": directory.name, "official": False}
    try:
        found = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {**unknown, "note": "no meta.json: not prepared"}
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"official", "note"} <= set(found):
        return {**unknown, "note": "its meta.json is not of this project's scripts"}
    changed = [
        name
        for name, digest in found.get("files", {}).items()
        if (directory / name).exists()
        and hashlib.sha256((directory / name).read_bytes()).hexdigest() != digest
    ]
    if changed:
        found |= {"official": False, "note": f"{', '.join(changed)}: changed since it was prepared"}
    return found


def reviews(path: Path, labelled: bool) -> Iterator[Tuple[List[str], Optional[str]]]:
    """Words and label, None unless `labelled`, of each line that `make data-imdb` prepared.

    Warns where that is not the official data. Raises ConfigurationError, which names file and line,
    for a line that is not such a review, and for a file without any.
    """
    if not path.exists():
        raise ConfigurationError(f"{path} does not exist: run `make data-imdb` first")
    source = data_source(path.parent)
    if not source["official"]:
        logger.warning("%s IS NOT THE OFFICIAL IMDb DATA: %s", path, source["note"])
    number = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                review = json.loads(line.decode())
                words, label = review["text"].split(), review["label"] if labelled else None
                if labelled and not isinstance(label, str):
                    raise TypeError(f"a label of {label!r}")
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                expected = '{"text": ..., "label": ...}' if labelled else '{"text": ...}'
                raise ConfigurationError(
                    f"{path}, line {number}: expected {expected} ({type(error).__name__}: {error})"
                ) from error
            yield words, label
    if not number:
        raise ConfigurationError(f"{path} holds no reviews")


@DatasetReader.register("imdb")
class ImdbReader(DatasetReader):
    """Reads data/imdb/{train,dev,test}.jsonl: a line {"text": "tokens and spaces", "label": ...}.

    Raw text, as in `allennlp predict`, is split by the same rules that prepared the data.
    """

    def __init__(
        self, token_indexers: Optional[Dict[str, TokenIndexer]] = None, **options: Any
    ) -> None:
        super().__init__(
            manual_distributed_sharding=True, manual_multiprocess_sharding=True, **options
        )
        self.tokenizer = tokenize  # without one, AllenNLP's predictor downloads spaCy's
        self.token_indexers = token_indexers or {"tokens": SingleIdTokenIndexer()}

    def _read(self, file_path: Any) -> Iterator[Instance]:
        path = Path(os.fspath(file_path))
        for words, label in self.shard_iterable(reviews(path, labelled=True)):
            yield self._instance(words, label)

    def text_to_instance(self, text: str, label: Optional[str] = None) -> Instance:
        return self._instance(self.tokenizer(text), label)

    def _instance(self, words: List[str], label: Optional[str]) -> Instance:
        # an empty review still has to fill a row of its batch
        tokens = [Token(word) for word in words] or [Token("")]
        fields: Dict[str, Any] = {"tokens": TextField(tokens)}
        if label is not None:
            fields["label"] = LabelField(label)
        return Instance(fields)

    def apply_token_indexers(self, instance: Instance) -> None:
        instance["tokens"]._token_indexers = self.token_indexers
