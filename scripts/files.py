"""Files that have their final name only when they are complete, and folders: of one process, and
the repository's root."""

import argparse
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 text so that `path` holds either its old content or all of the new."""
    part = beside(path, ".part")
    with open(part, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        sync(file)
    rename(part, path)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Raises BlockingIOError while another process, or what it started, is at work on it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(beside(directory, ".lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another process is at work on {directory}") from error
        # what it starts may outlive it, and is then still at work
        os.set_inheritable(lock.fileno(), True)
        yield


def check_root(parser: argparse.ArgumentParser) -> None:
    """Ends the program unless it runs where the paths that it uses are."""
    if not Path("configs").is_dir() or not Path("scripts").is_dir():
        parser.error(f"run it from the repository's root, not from {Path.cwd()}")


def check_folder(parser: argparse.ArgumentParser, option: str, folder: Path) -> None:
    """Ends the program where a file is in the way of the folder, which need not be there yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        parser.error(f"{option}: {there} is no folder")


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
