"""The main job on small generated data, in minutes on a CPU: python scripts/quick.py

Generates sample corpora, prepares them as the real ones are prepared, trains and evaluates QRNNs
through `allennlp` and `joeynmt`, and prints what came out and where it lies: for the language model
beside the perplexity of the source that its text was drawn from, which it cannot beat.
"""

import json
from pathlib import Path

import experiment
import imdb
import iwslt
import ptb
import sample
import sample_text
import sample_translation

SAMPLE = Path("data/sample")
RUNS = Path("runs/quick")
# The part that is chosen on, the factor and the digits to show a measure with.
MEASURES = {"accuracy": ("dev", 100, 1), "perplexity": ("valid", 1, 2), "bleu": ("dev", 1, 1)}


def main() -> None:
    mirror, cache = SAMPLE / "mirror", SAMPLE / "download"
    sample.write(mirror)
    imdb.prepare(str(mirror), SAMPLE / "imdb", cache)
    sample_translation.write(mirror)
    iwslt.prepare(str(mirror), SAMPLE / "iwslt", cache)
    sample_text.write(mirror)
    ptb.prepare(str(mirror), SAMPLE / "ptb", cache)

    rows: list[tuple[str, ...]] = [("run", "measure", "dev", "test", "parameters", "training")]
    paths = []
    for name, config, row, measure in (
        ("imdb", "configs/imdb_quick.jsonnet", "quick", "accuracy"),
        ("ptb", "configs/ptb_quick.jsonnet", "quick", "perplexity"),
        ("iwslt", "configs/iwslt_quick.yaml", "quick", "bleu"),
        ("iwslt", "configs/iwslt_quick_lstm.yaml", "quick-lstm", "bleu"),
    ):
        path = experiment.run(name, Path(config), row, runs=RUNS, results=RUNS / "results")
        record = json.loads(path.read_text(encoding="utf-8"))
        metrics = record["metrics"]
        chosen_on, scale, digits = MEASURES[measure]
        parts = (chosen_on, "test")
        dev, test = (f"{scale * metrics[f'{part}_{measure}']:.{digits}f}" for part in parts)
        seconds = f"{record['wall_seconds']:.0f} s"
        rows.append((path.stem, measure, dev, test, f"{metrics['parameters']:,}", seconds))
        paths.append(path)
        if name == "ptb":
            texts = ((SAMPLE / f"ptb/{part}.txt").read_text("utf-8") for part in parts)
            known = [f"{sample_text.perplexity(text):.2f}" for text in texts]
            rows.append(("  its source", measure, *known, "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("\nGenerated samples, not the real corpora:")
    for line in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    for path in paths:
        print(f"record  {path}    run  {RUNS / path.stem}")


if __name__ == "__main__":
    main()
