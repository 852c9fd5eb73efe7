"""Quasi-recurrent neural networks for PyTorch."""

from qrnn.functional import f_pool, fo_pool, ifo_pool, linear_recurrence
from qrnn.layers import QRNN, QRNNLayer, QRNNState

__version__ = "0.1.0"

__all__ = [
    "QRNN",
    "QRNNLayer",
    "QRNNState",
    "__version__",
    "f_pool",
    "fo_pool",
    "ifo_pool",
    "linear_recurrence",
]
