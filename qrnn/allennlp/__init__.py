"""Plugin for allennlp 2.10.1: importing it registers everything that a config can name.

Seq2SeqEncoder and Seq2VecEncoder "qrnn", Seq2VecEncoders "bidirectional" and "dense_lstm",
TokenEmbedder and Vocabulary "word_vectors", Models "smoothed_classifier", "language_model" and
"awd_language_model", DatasetReaders "imdb", "token_stream" and "review_stream", DataLoaders
"token_stream" and "token_lines", TrainerCallbacks "run_file", "random_state", "bfloat16_autocast",
"nt_asgd" and "rate_by_length", MovingAverage "exponential_average".
"""

from qrnn.allennlp import compat

compat.mend()

from qrnn.allennlp.averaging import ExponentialAverage  # noqa: E402
from qrnn.allennlp.awd import NTASGD, AWDLanguageModel, RateByLength  # noqa: E402
from qrnn.allennlp.callbacks import BFloat16Autocast, RandomState, RunFile  # noqa: E402
from qrnn.allennlp.classifier import SmoothedClassifier  # noqa: E402
from qrnn.allennlp.encoders import (  # noqa: E402
    BidirectionalSeq2VecEncoder,
    DenseLSTMSeq2VecEncoder,
    QRNNSeq2SeqEncoder,
    QRNNSeq2VecEncoder,
)
from qrnn.allennlp.language_model import LanguageModel  # noqa: E402
from qrnn.allennlp.readers import ImdbReader  # noqa: E402
from qrnn.allennlp.streams import (  # noqa: E402
    ReviewStreamReader,
    TokenLineLoader,
    TokenStreamLoader,
    TokenStreamReader,
)
from qrnn.allennlp.word_vectors import WordVectors, WordVectorsVocabulary  # noqa: E402

__all__ = [
    "NTASGD",
    "AWDLanguageModel",
    "BFloat16Autocast",
    "BidirectionalSeq2VecEncoder",
    "DenseLSTMSeq2VecEncoder",
    "ExponentialAverage",
    "ImdbReader",
    "LanguageModel",
    "QRNNSeq2SeqEncoder",
    "QRNNSeq2VecEncoder",
    "RandomState",
    "RateByLength",
    "ReviewStreamReader",
    "RunFile",
    "SmoothedClassifier",
    "TokenLineLoader",
    "TokenStreamLoader",
    "TokenStreamReader",
    "WordVectors",
    "WordVectorsVocabulary",
]
