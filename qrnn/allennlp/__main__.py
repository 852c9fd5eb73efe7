"""`python -m qrnn.allennlp train ...` is `allennlp train ...`, without the start-up hook.

For places where Python reads no .pth files: PYTHONPATH, `pip install --target`.
"""

import allennlp.commands  # noqa: F401  # qrnn.allennlp, imported before this file, has mended it

from qrnn.allennlp import compat

compat.extend()

if __name__ == "__main__":
    from allennlp.__main__ import run

    run()
