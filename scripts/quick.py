"""The main job on small generated data, in minutes on a CPU: python scripts/quick.py

Generates sample corpora, prepares them as the real ones are prepared, trains and evaluates QRNNs
through `allennlp` and `joeynmt`, and prints what came out and where it lies: for the language model
beside the perplexity of the source that its text was drawn from, which it cannot beat.
"""

import argparse
from pathlib import Path

import experiment
import imdb
import iwslt
import ptb
import records
import sample
import sample_text
import sample_translation
from files import check_root, read_json

SAMPLE = Path("data/sample")
RUNS = Path("runs/quick")
RESULTS = RUNS / "results"
DATA = {"imdb": (sample, imdb), "ptb": (sample_text, ptb), "iwslt": (sample_translation, iwslt)}
ROWS = (  # experiment, config, row
    ("imdb", "configs/imdb_quick.jsonnet", "quick"),
    ("ptb", "configs/ptb_quick.jsonnet", "quick"),
    ("iwslt", "configs/iwslt_quick.yaml", "quick"),
    ("iwslt", "configs/iwslt_quick_lstm.yaml", "quick-lstm"),
)
# The measure, the part that is chosen on, the factor and the digits to show it with.
MEASURES = {
    "imdb": ("accuracy", "dev", 100, 1),
    "ptb": ("perplexity", "valid", 1, 2),
    "iwslt": ("bleu", "dev", 1, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--prepare", choices=sorted(DATA), help="only generate and prepare this")
    name = parser.parse_args().prepare
    check_root(parser)
    if name:
        prepare(name)
        return
    for name in DATA:
        prepare(name)
    for name, config, row in ROWS:
        if (path := records.path(RESULTS, name, row, seed=1)).exists():
            print(f"{path} is there from before; to train anew, delete {RUNS}")
        with experiment.explained():
            experiment.run(name, Path(config), row, runs=RUNS, results=RESULTS)
    show()


def prepare(name: str) -> None:
    generator, preparer = DATA[name]
    generator.write(SAMPLE / "mirror")
    preparer.prepare(str(SAMPLE / "mirror"), SAMPLE / name, SAMPLE / "download")


def show() -> None:
    """Prints the table of the records that are there."""
    table: list[tuple[str, ...]] = [("run", "measure", "dev", "test", "parameters", "training")]
    paths = [records.path(RESULTS, name, row, seed=1) for name, _, row in ROWS]
    paths = [path for path in paths if path.exists()]
    for path in paths:
        record = read_json(path)
        metrics, name = record["metrics"], record["experiment"]
        measure, chosen_on, scale, digits = MEASURES[name]
        parts = (chosen_on, "test")
        dev, test = (f"{scale * metrics[f'{part}_{measure}']:.{digits}f}" for part in parts)
        seconds = f"{record['wall_seconds']:.0f} s"
        table.append((path.stem, measure, dev, test, f"{metrics['parameters']:,}", seconds))
        if name == "ptb":
            texts = ((SAMPLE / f"ptb/{part}.txt").read_text("utf-8") for part in parts)
            known = [f"{sample_text.perplexity(text):.2f}" for text in texts]
            table.append(("  its source", measure, *known, "", ""))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print("\nGenerated samples, not the real corpora:")
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    for path in paths:
        print(f"record  {path}    run  {RUNS / path.stem}")


if __name__ == "__main__":
    main()
