"""Files that have their final name only when they are complete."""

import json
import os
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 text so that `path` holds either its old content or all of the new."""
    part = beside(path, ".part")
    with open(part, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        sync(file)
    rename(part, path)


def read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def rename(old: Path, new: Path) -> None:
    os.replace(old, new)
    folder = os.open(new.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name, too, survives a power cut
    finally:
        os.close(folder)
