"""`python -m qrnn.allennlp train ...` is `allennlp train ...` without the start-up hook.

For places where Python reads no .pth files: PYTHONPATH, `pip install --target`.
"""

from qrnn.allennlp import compat

compat.extend()

# Workers that are spawned for distributed training need the lines above as well. multiprocessing
# makes them run the main file, but not one that its spec calls a package's __main__.
__spec__ = None

if __name__ == "__main__":
    from allennlp.__main__ import run

    run()
