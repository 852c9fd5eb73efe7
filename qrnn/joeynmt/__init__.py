"""Plugin for joeynmt 2.3.0: importing it makes `type: "qrnn"` known in JoeyNMT's configs.

The start-up hook does the same when joeynmt.model is imported, so that `python -m joeynmt` needs
no import of ours; `python -m qrnn.joeynmt` works without the hook.
"""

from qrnn.joeynmt import compat

compat.extend()
compat.extend_search()

from qrnn.joeynmt.decoder import QRNNAttentionDecoder  # noqa: E402
from qrnn.joeynmt.encoder import QRNNEncoder  # noqa: E402

__all__ = ["QRNNAttentionDecoder", "QRNNEncoder"]
