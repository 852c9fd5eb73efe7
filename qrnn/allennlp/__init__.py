"""Plugin for allennlp 2.10.1: importing it registers everything that a config can name.

Seq2SeqEncoder and Seq2VecEncoder "qrnn", TokenEmbedder "word_vectors", Models "language_model" and
"awd_language_model", DatasetReaders "imdb" and "token_stream", DataLoaders "token_stream" and
"token_lines", TrainerCallbacks "run_file", "random_state", "nt_asgd" and "rate_by_length".
"""

from qrnn.allennlp import compat

compat.mend()

from qrnn.allennlp.awd import NTASGD, AWDLanguageModel, RateByLength  # noqa: E402
from qrnn.allennlp.callbacks import RandomState, RunFile  # noqa: E402
from qrnn.allennlp.encoders import QRNNSeq2SeqEncoder, QRNNSeq2VecEncoder  # noqa: E402
from qrnn.allennlp.language_model import LanguageModel  # noqa: E402
from qrnn.allennlp.readers import ImdbReader  # noqa: E402
from qrnn.allennlp.streams import (  # noqa: E402
    TokenLineLoader,
    TokenStreamLoader,
    TokenStreamReader,
)
from qrnn.allennlp.word_vectors import WordVectors  # noqa: E402

__all__ = [
    "NTASGD",
    "AWDLanguageModel",
    "ImdbReader",
    "LanguageModel",
    "QRNNSeq2SeqEncoder",
    "QRNNSeq2VecEncoder",
    "RandomState",
    "RateByLength",
    "RunFile",
    "TokenLineLoader",
    "TokenStreamLoader",
    "TokenStreamReader",
    "WordVectors",
]
