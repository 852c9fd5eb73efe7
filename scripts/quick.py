"""The main job on small generated data, in minutes on a CPU: python scripts/quick.py

Generates a sample corpus, prepares it as the real one is prepared, trains and evaluates a QRNN
through `allennlp`, and prints what came out and where it lies.
"""

import json
from pathlib import Path

import experiment
import imdb
import sample

SAMPLE = Path("data/sample")
RUNS = Path("runs/quick")


def main() -> None:
    sample.write(SAMPLE / "mirror")
    imdb.prepare(str(SAMPLE / "mirror"), SAMPLE / "imdb", SAMPLE / "download")
    config = Path("configs/imdb_quick.jsonnet")
    path = experiment.run("imdb", config, "quick", runs=RUNS, results=RUNS / "results")
    record = json.loads(path.read_text(encoding="utf-8"))
    metrics = record["metrics"]
    rows = [
        ("task", "data", "parameters", "dev accuracy", "test accuracy", "training"),
        (
            "sentiment",
            "generated sample",
            f"{metrics['parameters']:,}",
            f"{metrics['dev_accuracy']:.1%}",
            f"{metrics['test_accuracy']:.1%}",
            f"{record['wall_seconds']:.0f} s",
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"\nmodel   {RUNS / path.stem / 'model.tar.gz'}\nrecord  {path}")


if __name__ == "__main__":
    main()
