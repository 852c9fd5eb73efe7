"""Records: the small JSON files that every number in README.md and reports/ comes from.

reports/results/<experiment>-<row>[-seed<seed>].json, one run each. A record has the fields of
FIELDS, and `metrics` (flat) with `history` (per epoch), or a benchmark's `table` (flat rows).
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from files import write_atomically

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("reports/results")
TITLE = "QRNN: results"  # of the report
PACKAGES = (
    *("qrnn", "torch", "numba", "numpy", "allennlp", "joeynmt", "sacrebleu"),
    *("cupy-cuda12x", "cupy-cuda13x"),
)
ROW = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
# Variables of the environment on which a result, or the time that it took, may depend: prefixes.
TOLD = (
    *("CUBLAS_", "CUDA_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "NVIDIA_", "OMP_"),
    *("PYTORCH_", "TORCH_"),
)
FIELDS: dict[str, tuple[type, ...]] = {
    "schema": (int,),
    "experiment": (str,),
    "row": (str,),
    "seed": (int, type(None)),
    "data": (dict, type(None)),
    "device": (str,),
    "versions": (dict,),
    "commit": (str,),
    "config_sha256": (str, type(None)),
    "wall_seconds": (int, float),
    "command": (str,),
}


class RecordError(ValueError):
    """A record that does not fit the schema; the message names the file."""


def check(record: Any, name: str) -> None:
    """Raises RecordError unless `record` fits the schema."""
    if not isinstance(record, dict):
        raise RecordError(f"{name}: expected an object, got {type(record).__name__}")
    _refuse_infinite(record, name, "")
    for field, types in FIELDS.items():
        if field not in record:
            raise RecordError(f"{name}: lacks {field!r}")
        if isinstance(record[field], bool) or not isinstance(record[field], types):
            expected = " or ".join(t.__name__ for t in types)
            raise RecordError(f"{name}: {field}: expected {expected}, got {record[field]!r}")
    if record["schema"] != SCHEMA:
        raise RecordError(f"{name}: schema: expected {SCHEMA}, got {record['schema']}")
    if "table" in record:
        table = record["table"]
        if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
            raise RecordError(f"{name}: table: expected a list of objects")
        return
    if record["data"] is None or not isinstance(record["data"].get("official"), bool):
        raise RecordError(f"{name}: data: expected `official`, true or false")
    metrics, history = record.get("metrics"), record.get("history")
    if not isinstance(metrics, dict) or not all(map(is_number, metrics.values())):
        raise RecordError(f"{name}: metrics: expected an object of numbers")
    if not isinstance(history, list) or not all(isinstance(epoch, dict) for epoch in history):
        raise RecordError(f"{name}: history: expected a list of objects")


def path(directory: Path, experiment: str, row: str, seed: int | None) -> Path:
    return directory / (
        "-".join([experiment, row] + [f"seed{seed}"] * (seed is not None)) + ".json"
    )


def write(directory: Path, record: dict[str, Any]) -> Path:
    """Checks and writes a record; `schema` and `origin()` are added where missing."""
    record = {"schema": SCHEMA, **origin(), **record}
    target = path(directory, record["experiment"], record["row"], record["seed"])
    check(record, target.name)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps(record, indent=1, sort_keys=True) + "\n")
    return target


def load(directory: Path) -> dict[str, dict[str, Any]]:
    """All records of a directory by file name, in its order."""
    found = {}
    for file in sorted(directory.glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(f"{file}: expected a file of JSON: {error}") from error
        check(record, str(file))
        found[file.name] = record
    return found


def origin() -> dict[str, Any]:
    """On what a run is made: commit, versions, device, and variables of the environment."""
    told = {name: value for name, value in sorted(os.environ.items()) if name.startswith(TOLD)}
    return {"commit": commit(), "versions": versions(), "device": device(), "environment": told}


def is_default(results: Path) -> bool:
    """Whether it is the folder of the committed records, however it is spelt."""
    return results.resolve() == RESULTS.resolve()


def report_folder(text: str) -> Path:
    """What --results is given where the report is rendered into it. Refuses a folder where that
    would overwrite a README.md or index.html that is no report, or the committed report."""
    folder = Path(text)
    if folder.resolve() == RESULTS.parent.resolve():
        raise argparse.ArgumentTypeError(f"{text} holds the report of {RESULTS}: name that folder")
    for name, mark in (("README.md", "# Results\n"), ("index.html", f"<title>{TITLE}</title>")):
        page = folder / name
        if page.exists() and mark not in page.read_text("utf-8", "replace")[:1000]:
            raise argparse.ArgumentTypeError(f"{page} is no report, and would be overwritten")
    return folder


def row_name(text: str) -> str:
    """What --row is given."""
    if not ROW.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, . _ and -, got {text!r}")
    return text


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this tree, with "+changes" when tracked files differ from it.

    QRNN_COMMIT says it for a copy of the tree without its history. Without either it is "unknown",
    also inside another repository.
    """
    if told := os.environ.get("QRNN_COMMIT"):
        return told

    def git(*arguments: str) -> str:
        try:
            run = subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return ""
        return run.stdout.strip() if run.returncode == 0 else ""

    top = git("rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != ROOT:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!reports", ":!README.md")
    return (git("rev-parse", "HEAD") or "unknown") + ("+changes" if changed else "")


def device(kind: str | None = None) -> str:
    """The GPU's name where there is one, otherwise the CPU's."""
    if kind == "cuda" or (kind is None and torch.cuda.is_available()):
        return torch.cuda.get_device_name()
    return f"CPU ({_cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in reversed(lines))
    told = {name.strip(): value.strip() for name, _, value in pairs}
    if "model name" not in told:
        return platform.processor() or platform.machine()
    # a virtual machine's name may not say which generation it is
    numbers = (("family", "cpu family"), ("model", "model"))
    return told["model name"] + "".join(f" {k} {told[v]}" for k, v in numbers if v in told)


def is_number(value: object) -> bool:
    """Whether it is a number, and finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)


def _is_finite(value: float) -> bool:
    """As a float; for 10**400 math.isfinite has no answer."""
    return abs(value) <= sys.float_info.max


def _refuse_infinite(value: Any, name: str, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_infinite(inner, name, f"{where}.{key}" if where else key)
    elif isinstance(value, (list, tuple)):
        for n, inner in enumerate(value):
            _refuse_infinite(inner, name, f"{where}[{n}]")
    elif isinstance(value, (int, float)) and not _is_finite(value):
        raise RecordError(f"{name}: {where}: expected a finite number, got {value!r:.80}")
