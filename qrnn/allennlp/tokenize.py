"""Words of a raw review: the same when the data is prepared and when a model predicts."""

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.tokenizer import Tokenizer

_LINE_BREAK = re.compile(r"<\s*/?\s*br\s*/?\s*>", re.IGNORECASE)


@functools.cache
def _tokenizer() -> "Tokenizer":
    import spacy  # half a second or more: paid by whoever tokenises, not by every import

    return spacy.blank("en").tokenizer


def tokenize(text: str) -> list[str]:
    """Splits English text by spaCy's rules, which need no model and no download.

    Case is kept; HTML line breaks count as white space, other HTML stays as it is. No token holds
    white space, so that joining with a space and `str.split` give the same tokens back.
    """
    return [word.text for word in _tokenizer()(_LINE_BREAK.sub(" ", text)) if not word.is_space]
