"""Where IMDb's classifiers are wrong: python scripts/imdb_errors.py runs/A runs/B ...

Of each run of `allennlp train` its errors on the development part, by the author's stars, by the
review's length, and by how sure the model is; and how many reviews several of them are wrong on.
Never of the test part: what is learnt from its errors would be tuned on it.
"""

import argparse
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import records
import torch
from files import check_folder, check_root, read_json
from tqdm import tqdm
from with_allennlp import check_data, require

from qrnn.allennlp import ImdbReader  # before allennlp, which it mends

from allennlp.models.archival import load_archive  # isort: skip

LENGTHS = (150, 250, 400)
SURE = (0.7, 0.9, 0.97)
TOGETHER = "together"
BATCH = 50

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="directories that training has finished")
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = parser.parse_args()
    check_root(parser)
    check_folder(parser, "--results", arguments.results)
    if len({run.name for run in arguments.runs}) < len(arguments.runs):
        parser.error("runs: two folders have the same name, by which the table tells them apart")
    for run in arguments.runs:
        require(run)
    print(measure(arguments.runs, arguments.results))


def measure(runs: list[Path], results: Path) -> Path:
    started = time.monotonic()
    data: Row = read_json(runs[0] / "run.json")["data"]
    right: dict[str, list[bool]] = {}
    table: list[Row] = []
    for run in runs:
        told = read_json(run / "run.json")["data"]
        if told != data:
            sys.exit(f"error: {run} was trained on other data than {runs[0]}")
        ids, lengths, confidence = predicted(run)
        right[run.name] = [p > 0.5 for p in confidence]
        stars = [name.rpartition("_")[2] for name in ids]
        by_groups: dict[str, list[tuple[float, str]]] = {
            "stars": [(int(n), n) for n in stars],
            "tokens": [up_to(length, LENGTHS) for length in lengths],
            "probability of its answer": [up_to(max(p, 1 - p), SURE) for p in confidence],
        }
        for by, groups in by_groups.items():
            table += grouped(run.name, by, groups, right[run.name])
    wrong = Counter(sum(not r for r in answers) for answers in zip(*right.values(), strict=True))
    reviews = wrong.total()
    for n in range(len(runs) + 1):
        row = {"model": TOGETHER, "by": "models that are wrong", "group": str(n)}
        table.append(row | {"reviews": reviews, "wrong": wrong[n]})
    return records.write(
        results,
        {
            "experiment": "imdb-errors",
            "row": "dev" if data["official"] else "dev-not-official",
            "seed": None,
            "table": table,
            "data": data,
            "note": "",
            "config_sha256": None,
            "wall_seconds": round(time.monotonic() - started, 1),
            "command": shlex.join(["python", *sys.argv]),
        },
    )


@torch.no_grad()
def predicted(run: Path) -> tuple[list[str], list[int], list[float]]:
    """Of each review of the development part: id, tokens, and the probability of its true label."""
    cuda_device = 0 if torch.cuda.is_available() else -1
    loaded = load_archive(run / "model.tar.gz", cuda_device=cuda_device)
    if not isinstance(loaded.dataset_reader, ImdbReader):
        sys.exit(f"error: {run}: expected a classifier of IMDb's reviews")
    loaded.model.eval()
    file = Path(loaded.config["validation_data_path"])
    check_data(run, read_json(run / "run.json")["data"], file)
    with file.open(encoding="utf-8") as lines:
        ids = [json.loads(line)["id"] for line in lines]
    instances = list(loaded.validation_dataset_reader.read(file))
    lengths = [len(instance["tokens"]) for instance in instances]
    order = sorted(range(len(ids)), key=lengths.__getitem__)
    found = [0.0] * len(ids)
    for start in tqdm(range(0, len(ids), BATCH), desc=run.name):
        batch = order[start : start + BATCH]
        outputs = loaded.model.forward_on_instances([instances[n] for n in batch])
        for n, output in zip(batch, outputs, strict=True):
            label = loaded.model.vocab.get_token_index(instances[n]["label"].label, "labels")
            found[n] = float(output["probs"][label])
    return ids, lengths, found


def up_to(value: float, bounds: tuple[float, ...]) -> tuple[float, str]:
    """The group of `value`, with a name, in their order."""
    for low, bound in zip((None, *bounds), bounds, strict=False):
        if value <= bound:
            return bound, f"up to {bound:g}" if low is None else f"over {low:g}, up to {bound:g}"
    return float("inf"), f"over {bounds[-1]:g}"


def grouped(
    model: str, by: str, groups: list[tuple[float, str]], right: list[bool]
) -> Iterator[Row]:
    """A row for each group, in their order."""
    for group in sorted(set(groups)):
        own = [r for g, r in zip(groups, right, strict=True) if g == group]
        row = {"model": model, "by": by, "group": group[1]}
        yield row | {"reviews": len(own), "wrong": own.count(False)}


if __name__ == "__main__":
    main()
