"""A QRNN layer against nn.LSTM on the CPU: python scripts/benchmark.py

The grid of the paper's Figure 4: 320 units, batch 8 to 256, length 32 to 512, float32; fo pooling,
k = 2. A cell is the median of its repetitions, the two layers taking turns, so that both see the
same machine. `product share` is the part of the layer's time that its matrix products take alone.
"""

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import records
import torch
from torch import nn
from tqdm import tqdm

from qrnn import QRNNLayer
from qrnn.pooling import reference

UNITS = 320
BATCHES = (8, 16, 32, 64, 128, 256)
LENGTHS = (32, 64, 128, 256, 512)
MODES = ("forward", "forward+backward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of a cell, at least")
    parser.add_argument("--seconds", type=float, default=1.0, help="a cell is repeated so long")
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = parser.parse_args()
    started = time.monotonic()
    torch.manual_seed(1)
    lstm, qrnn = nn.LSTM(UNITS, UNITS), QRNNLayer(UNITS, UNITS)
    verify(qrnn)
    cells = [(mode, b, t) for mode in MODES for b in BATCHES for t in LENGTHS]
    table = [
        measure(lstm, qrnn, mode, batch, length, arguments.repeat, arguments.seconds)
        for mode, batch, length in tqdm(cells, desc="measuring", unit="cell")
    ]
    record = {
        "experiment": "bench-cpu",
        "row": "figure4",
        "seed": None,
        "table": table,
        "data": None,
        "device": records.device(),
        "config_sha256": None,
        "wall_seconds": round(time.monotonic() - started, 1),
        "command": shlex.join(["python", *sys.argv]),
    }
    target = records.write(arguments.results, record)
    print(render(json.loads(target.read_text(encoding="utf-8"))))
    print(f"\nrecord  {target}")


def verify(qrnn: QRNNLayer) -> None:
    """Raises unless the layer agrees with the float64 reference: a wrong result has no speed."""
    x = torch.randn(33, 5, UNITS)
    wide = x.double()
    windows = torch.cat([torch.cat([torch.zeros_like(wide[:1]), wide[:-1]]), wide], -1)
    assert qrnn.bias is not None
    gates = windows @ qrnn.weight.double().T + qrnn.bias.double()
    expected, _, _ = reference.pool(gates, None, None, None, "fo", "forward", 0.0, False)
    torch.testing.assert_close(qrnn(x)[0].double(), expected, rtol=1e-5, atol=1e-5)


def measure(
    lstm: nn.LSTM, qrnn: QRNNLayer, mode: str, batch: int, length: int, repeat: int, seconds: float
) -> dict[str, Any]:
    x = torch.randn(length, batch, UNITS, requires_grad=mode != "forward")
    grad = torch.randn(length, batch, UNITS)
    windows = torch.randn(length * batch, 2 * UNITS)
    gates = torch.randn(length * batch, 3 * UNITS)

    def layer(module: nn.Module) -> Callable[[], None]:
        def step() -> None:
            if mode == "forward":
                with torch.no_grad():
                    module(x)
            else:
                module.zero_grad()
                x.grad = None
                module(x)[0].backward(grad)

        return step

    def products() -> None:
        with torch.no_grad():
            windows @ qrnn.weight.T
            if mode != "forward":
                gates @ qrnn.weight
                gates.T @ windows

    steps = [layer(lstm), layer(qrnn), products]
    times: list[list[float]] = [[], [], []]
    for step in steps:
        step()
    end = time.monotonic() + seconds
    while len(times[0]) < repeat or time.monotonic() < end:
        for step, spent in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            spent.append(time.perf_counter() - start)
    of_lstm, of_qrnn, of_products = map(statistics.median, times)
    return {
        "mode": mode,
        "batch": batch,
        "length": length,
        "dtype": "float32",
        "lstm_over_qrnn": round(of_lstm / of_qrnn, 3),
        "product_share": round(of_products / of_qrnn, 3),
    }


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def render(record: dict[str, Any]) -> str:
    """The record as Markdown tables: how many times faster than nn.LSTM."""
    lines = []
    for mode in MODES:
        rows = {(r["batch"], r["length"]): r for r in record["table"] if r["mode"] == mode}
        mean = geometric_mean([r["lstm_over_qrnn"] for r in rows.values()])
        share = statistics.median(r["product_share"] for r in rows.values())
        lines += [
            "",
            f"{mode}: {mean:.2f} times as fast (geometric mean); "
            f"the matrix products take {share:.0%} of the layer's time (median)",
            "",
            "| batch \\ length | " + " | ".join(map(str, LENGTHS)) + " |",
            "|---" * (len(LENGTHS) + 1) + "|",
        ]
        for batch in BATCHES:
            cells = (f"{rows[batch, length]['lstm_over_qrnn']:.2f}" for length in LENGTHS)
            lines.append(f"| {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines).strip()


if __name__ == "__main__":
    main()
