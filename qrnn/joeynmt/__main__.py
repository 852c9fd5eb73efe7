"""`python -m qrnn.joeynmt train ...` is `python -m joeynmt train ...` without the start-up hook.

For places where Python reads no .pth files: PYTHONPATH, `pip install --target`.
"""

from qrnn.joeynmt import compat

compat.extend()
compat.extend_search()
compat.extend_training()

# Workers that are spawned for distributed training need the lines above as well. multiprocessing
# makes them run the main file, but not one that its spec calls a package's __main__.
__spec__ = None

if __name__ == "__main__":
    from joeynmt.__main__ import main

    main()
