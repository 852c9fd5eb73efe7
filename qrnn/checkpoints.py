"""What a training that was killed leaves of its files."""

import zipfile
from pathlib import Path


def is_whole(file: Path) -> bool:
    """Whether a file of torch.save is there and all of it, by its checksums."""
    try:
        with zipfile.ZipFile(file) as content:
            return content.testzip() is None
    except (FileNotFoundError, zipfile.BadZipFile, EOFError, NotImplementedError, ValueError):
        return False
