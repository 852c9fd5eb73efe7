"""Speed and memory, into reports/results: python scripts/benchmark.py [SUITE ...] [--device cuda]

    figure4      a QRNN layer against nn.LSTM, the grid of the paper's Figure 4 (right)
    ptb-step     where a language model's training step spends its time, Figure 4 (left)
    scan         the recurrences alone, against a copy of as many bytes
    memory       the most that forward and backward of a layer hold (CUDA only)
    growth       how a layer's time grows with length, batch and units
    convolution  the layer's way to its pre-activations, which it chooses by shape, against each
    translation  characters a second in training, QRNN and LSTM (needs joeynmt)
    reviews      reviews a second in training, QRNN and LSTM (needs allennlp)
    peers        h_t = f_t h_{t-1} + x_t, against other projects' kernels

All of them without a name. Every result of ours and of other kernels is verified before it is
timed, in float64 but for the translation's. Times on a CPU appear as ratios only, of things that
took turns on it. `make report` renders the records.
"""

import argparse
import json
import math
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import records
import torch
from benchmark_layers import convolution, figure4, growth, memory
from benchmark_models import ptb_step, reviews, translation
from benchmark_scans import peers, scan
from timing import Cpu, Cuda, Device, Row, keep_memory
from tqdm import tqdm

SUITES: dict[str, Callable[[Device, float], Iterator[Row]]] = {
    "figure4": figure4,
    "ptb-step": ptb_step,
    "scan": scan,
    "memory": memory,
    "growth": growth,
    "convolution": convolution,
    "translation": translation,
    "reviews": reviews,
    "peers": peers,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=best, help=f"here: {best}")
    parser.add_argument("--seconds", type=float, help="repeat a row so long (CPU 1, CUDA 0.03)")
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = parser.parse_args()
    for name in arguments.suites:
        if name not in SUITES:
            parser.error(f"{name}: expected one of {', '.join(SUITES)}")
    if arguments.seconds is not None and not 0 <= arguments.seconds < math.inf:
        parser.error(f"--seconds: expected a number from 0 on, got {arguments.seconds}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    device: Device = Cuda() if arguments.device == "cuda" else Cpu()
    if device.kind == "cpu" and keep_memory():
        device.note = "memory that is given back is kept (mallopt)"
    cannot = set() if device.kind == "cuda" else {"memory"}
    needs = {"translation": "joeynmt", "reviews": "allennlp"}
    cannot |= {suite for suite, package in needs.items() if find_spec(package) is None}
    if named := cannot.intersection(arguments.suites):
        parser.error(f"{', '.join(sorted(named))}: cannot be measured here, see --help")
    try:
        arguments.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--results: {error}")
    suites = arguments.suites or [name for name in SUITES if name not in cannot]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # keeps the rows as Ctrl-C does
    with tempfile.TemporaryDirectory() as own:
        # torch would wait without end for the lock of an earlier run's build that was killed
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", own)
        failed = [name for name in suites if not measured(name, device, arguments)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def measured(name: str, device: Device, arguments: argparse.Namespace) -> bool:
    """Runs one suite and writes its record; False, and the reason on the screen, if it fails.

    The rows of one that ends before its last are no record: they go to a file beside it.
    """
    torch.manual_seed(1)
    table: list[Row] = []
    started = time.monotonic()
    seconds = device.seconds if arguments.seconds is None else arguments.seconds
    try:
        device.clear()
        with warnings.catch_warnings():
            # the kernels are what is measured, not what stands in for them
            warnings.filterwarnings("error", message="qrnn runs its slow PyTorch loop")
            for row in tqdm(SUITES[name](device, seconds), desc=name, unit="row"):
                table.append(row)
        record = {
            "experiment": f"bench-{name}",
            "row": device.row,
            "seed": None,
            "table": table,
            "note": device.note,
            "data": None,
            "device": device.name,
            "config_sha256": None,
            "wall_seconds": round(time.monotonic() - started, 1),
            "command": shlex.join(["python", *sys.argv]),
        }
        print(f"record  {records.write(arguments.results, record)}")
    except BaseException as error:
        if table:
            part = arguments.results / f"bench-{name}-{device.row}.part.jsonl"
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text("".join(f"{json.dumps(row)}\n" for row in table), encoding="utf-8")
            print(f"{len(table)} rows are in {part}")
        if not isinstance(error, Exception):
            raise
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    main()
