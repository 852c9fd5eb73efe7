"""Gathers what a machine without network needs beside its own torch: python scripts/wheelhouse.py

The versions are those of requirements.lock; what is needed is read from the packages of .venv,
which `make install` made of it. All become wheels for CPython on Linux, for the processor of this
machine, allennlp and qrnn itself as well. There, nothing is then built and nothing is looked up:

    pip install --no-index --no-deps --find-links wheelhouse -r wheelhouse/requirements.txt

or, where --split made folders of them: --find-links wheelhouse/1 --find-links wheelhouse/2 ...
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import distribution
from pathlib import Path

from files import check_root
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

PYTHONS = ("3.11", "3.12", "3.13")
EXTRAS = ("allennlp", "joeynmt", "scripts", "cpu", "test")  # of setup.py
# joeynmt wants some of them, and nothing imports them
LINTERS = {"flake8", "isort", "mypy", "pylint", "ruff", "yapf"}
# torch's, which are not in the lock either
CUDA = ("nvidia-", "cuda-", "triton")
SOURCES = ("fairscale",)  # of which there are no wheels, but it makes one that fits everywhere
LOCK = Path("requirements.lock")
ALLENNLP = "2.10.1"  # not in the lock, see setup.py
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="3.12", help="version of Python there; 3.12")
    parser.add_argument("--out", type=Path, default=Path("wheelhouse"), help="is replaced")
    parser.add_argument(
        "--extras", default=",".join(EXTRAS), help=f"of setup.py: some of {','.join(EXTRAS)}"
    )
    parser.add_argument(
        "--have",
        type=Path,
        help="output of `pip freeze` there: packages in it, of any version, are left out",
    )
    parser.add_argument(
        "--split", type=int, metavar="MIB", help="into folders 1, 2, ... of at most that size"
    )
    given = parser.parse_args()
    python, extras = given.python.removeprefix("python"), given.extras.split(",")
    if python not in PYTHONS:
        parser.error(f"--python: expected {' or '.join(PYTHONS)}, got {given.python!r}")
    if unknown := {*extras} - {*EXTRAS}:
        parser.error(f"--extras: expected some of {', '.join(EXTRAS)}, got {unknown}")
    if given.split is not None and given.split < 1:
        parser.error(f"--split: expected at least 1, got {given.split}")
    check_root(parser)
    if given.have and not given.have.is_file():
        parser.error(f"--have: there is no {given.have}")
    have = names(given.have.read_text("utf-8")) if given.have else set()
    pins = locked(LOCK.read_text("utf-8"))
    needed = needs("qrnn", extras, python) | ({"allennlp"} & {*extras})
    chosen = sorted(needed - needs("torch", (), python) - have - {"qrnn"})
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out.parent) as part:
        folder = Path(part) / "wheelhouse"
        gather([f"{name}=={pins[name]}" for name in chosen], folder, python)
        tell(folder)
        if given.split:
            split(folder, given.split * MIB)
        if given.out.exists():
            given.out.replace(Path(part) / "old")
        folder.replace(given.out)


def names(freeze: str) -> set[str]:
    """Of lines such as "torch==2.11.0+cu130" and "cupy @ file:///..."."""
    found = (re.match(r"\w[\w.-]*", line) for line in freeze.splitlines())
    return {canonicalize_name(match[0]) for match in found if match}


def locked(lock: str) -> dict[str, str]:
    """Version by name."""
    pins: dict[str, str] = {
        canonicalize_name(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)$", lock, re.M)
    }
    return {**pins, "allennlp": ALLENNLP}


def needs(package: str, extras: Iterable[str], python: str) -> set[str]:
    """The package and what it needs, by the metadata of what is installed here."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    seen: set[tuple[str, str]] = set()
    todo = {(package, extra) for extra in ("", *extras)}
    while todo:
        name, extra = found = todo.pop()
        seen.add(found)
        for line in distribution(name).requires or []:
            other = Requirement(line)
            its_name = canonicalize_name(other.name)
            if its_name in LINTERS or its_name.startswith(CUDA):
                continue
            if other.marker is None or other.marker.evaluate({**environment, "extra": extra}):
                todo |= {(its_name, its_extra) for its_extra in ("", *other.extras)} - seen
    return {name for name, _ in seen}


def gather(pins: Sequence[str], folder: Path, python: str) -> None:
    """Wheels of them and of this package, and requirements.txt."""
    built = [pin for pin in pins if pin.split("==")[0] in SOURCES]
    ready = [pin for pin in pins if pin not in built]
    only = ("--only-binary", ":all:", "--python-version", python)
    if ready:
        pip("download", "--no-deps", *only, "--dest", folder, *ready)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, *built, ".")
    wheels = [parse_wheel_filename(file.name) for file in folder.iterdir()]
    lines = sorted(f"{name}=={version}\n" for name, version, *_ in wheels)
    (folder / "requirements.txt").write_text("".join(lines), "utf-8")


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    if status := subprocess.run(command, check=False).returncode:
        sys.exit(f"error: pip failed with exit status {status}, see above")


def tell(folder: Path) -> None:
    """The largest, and the sum."""
    wheels = sorted(folder.glob("*.whl"), key=lambda file: -file.stat().st_size)
    for file in wheels[:12]:
        print(f"{file.stat().st_size / MIB:7.1f} MiB  {file.name}")
    total = sum(file.stat().st_size for file in wheels)
    print(f"{total / MIB:7.1f} MiB in {len(wheels)} wheels")


def split(folder: Path, most: int) -> None:
    """Moves wheels into the first of the folders 1, 2, ... that has room, large ones first."""
    sizes: list[int] = []
    for file in sorted(folder.glob("*.whl"), key=lambda file: -file.stat().st_size):
        size = file.stat().st_size
        n = next((n for n, used in enumerate(sizes) if used + size <= most), len(sizes))
        if n == len(sizes):
            sizes.append(0)
        sizes[n] += size
        place = folder / str(n + 1)
        place.mkdir(exist_ok=True)
        file.replace(place / file.name)
    for n, used in enumerate(sizes, 1):
        print(f"{used / MIB:7.1f} MiB in {n}" + (", more than asked for" if used > most else ""))


if __name__ == "__main__":
    main()
