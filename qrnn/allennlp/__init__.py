"""Plugin for allennlp 2.10.1: importing it registers everything that a config can name.

Seq2SeqEncoder and Seq2VecEncoder "qrnn", TokenEmbedder "word_vectors", Model "language_model",
DatasetReaders "imdb" and "token_stream", DataLoader "token_stream", TrainerCallbacks "run_file" and
"random_state".
"""

from qrnn.allennlp import compat

compat.mend()

from qrnn.allennlp.callbacks import RandomState, RunFile  # noqa: E402
from qrnn.allennlp.encoders import QRNNSeq2SeqEncoder, QRNNSeq2VecEncoder  # noqa: E402
from qrnn.allennlp.language_model import LanguageModel  # noqa: E402
from qrnn.allennlp.readers import ImdbReader  # noqa: E402
from qrnn.allennlp.streams import TokenStreamLoader, TokenStreamReader  # noqa: E402
from qrnn.allennlp.word_vectors import WordVectors  # noqa: E402

__all__ = [
    "ImdbReader",
    "LanguageModel",
    "QRNNSeq2SeqEncoder",
    "QRNNSeq2VecEncoder",
    "RandomState",
    "RunFile",
    "TokenStreamLoader",
    "TokenStreamReader",
    "WordVectors",
]
