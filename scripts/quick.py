"""The main job on small generated data, in minutes on a CPU: python scripts/quick.py

Generates sample corpora, prepares them as the real ones are prepared, trains and evaluates QRNNs
through `allennlp` and `joeynmt`, and prints what came out and where it lies.
"""

import json
from pathlib import Path

import experiment
import imdb
import iwslt
import sample
import sample_translation

SAMPLE = Path("data/sample")
RUNS = Path("runs/quick")


def main() -> None:
    mirror, cache = SAMPLE / "mirror", SAMPLE / "download"
    sample.write(mirror)
    imdb.prepare(str(mirror), SAMPLE / "imdb", cache)
    sample_translation.write(mirror)
    iwslt.prepare(str(mirror), SAMPLE / "iwslt", cache)

    rows: list[tuple[str, ...]] = [("run", "measure", "dev", "test", "parameters", "training")]
    paths = []
    for name, config, row, measure in (
        ("imdb", "configs/imdb_quick.jsonnet", "quick", "accuracy"),
        ("iwslt", "configs/iwslt_quick.yaml", "quick", "bleu"),
        ("iwslt", "configs/iwslt_quick_lstm.yaml", "quick-lstm", "bleu"),
    ):
        path = experiment.run(name, Path(config), row, runs=RUNS, results=RUNS / "results")
        record = json.loads(path.read_text(encoding="utf-8"))
        metrics = record["metrics"]
        scale = 100 if measure == "accuracy" else 1
        dev, test = (f"{scale * metrics[f'{part}_{measure}']:.1f}" for part in ("dev", "test"))
        seconds = f"{record['wall_seconds']:.0f} s"
        rows.append((path.stem, measure, dev, test, f"{metrics['parameters']:,}", seconds))
        paths.append(path)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("\nGenerated samples, not the real corpora:")
    for line in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    for path in paths:
        print(f"record  {path}    run  {RUNS / path.stem}")


if __name__ == "__main__":
    main()
