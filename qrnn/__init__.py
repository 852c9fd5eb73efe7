"""Quasi-recurrent neural networks for PyTorch."""

from qrnn.decoder import DecoderState, QRNNDecoder
from qrnn.functional import f_pool, fo_pool, ifo_pool, linear_recurrence
from qrnn.layers import QRNN, QRNNLayer, QRNNState

__version__ = "0.1.0"

__all__ = [
    "QRNN",
    "DecoderState",
    "QRNNDecoder",
    "QRNNLayer",
    "QRNNState",
    "__version__",
    "f_pool",
    "fo_pool",
    "ifo_pool",
    "linear_recurrence",
]
