"""What the checkpoints of both frameworks need: files that are whole, and the states of the random
number generators."""

import errno
import random
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch


def is_whole(file: Path) -> bool:
    """Whether a file of torch.save is there and all of it, by its checksums."""
    try:
        with zipfile.ZipFile(file) as content:
            return content.testzip() is None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # EINVAL: a place that cannot be
            return False
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError):
        return False


def random_state() -> dict[str, Any]:
    """The states of all generators that a training draws from, of plain types and Tensors, which
    torch.load takes with weights_only."""
    state: Any = np.random.get_state()
    name, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """`state` is what `random_state` returned; its Tensors may be on any device."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([of_one.cpu() for of_one in state["cuda"]])
