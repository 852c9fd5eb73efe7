"""Runs one experiment to its record: train, take the best epoch on dev, evaluate test once.

    python scripts/experiment.py imdb configs/imdb.jsonnet --row k2 --seed 1

A run that was interrupted is continued from its last epoch, one whose record exists is skipped.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import records
from fetch import write_atomically

TEST = {"imdb": "test.jsonl"}  # beside the training data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("experiment", choices=sorted(TEST))
    parser.add_argument("config", type=Path)
    parser.add_argument("--row", required=True, help="name of the row in the report's table")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--overrides", type=json.loads, default={}, help="JSON, as in allennlp -o")
    parser.add_argument("--note", default="", help="what the reader of the table should know")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = vars(parser.parse_args())
    try:
        print(run(**arguments))
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {shlex.join(error.cmd)} failed, see above; the same command continues it")


def run(
    experiment: str,
    config: Path,
    row: str,
    seed: int = 1,
    overrides: dict[str, Any] | None = None,
    note: str = "",
    runs: Path = Path("runs"),
    results: Path = records.RESULTS,
) -> Path:
    """Returns the path of the record, which is made unless it is there."""
    target = records.path(results, experiment, row, seed)
    if target.exists():
        return target
    directory = runs / target.stem
    started = directory.with_suffix(".json")
    if not started.exists():
        runs.mkdir(parents=True, exist_ok=True)
        origin = {"commit": records.commit(), "versions": records.versions()}
        write_atomically(started, json.dumps(origin))
    overrides = {f"{k}_seed": seed for k in ("random", "numpy", "pytorch")} | (overrides or {})
    if not (directory / "model.tar.gz").exists():
        resume = ["--recover"] if (directory / "config.json").exists() else []
        _allennlp("train", config, "-s", directory, "-o", json.dumps(overrides), *resume)
    test = Path(_config(directory)["train_data_path"]).with_name(TEST[experiment])
    measured = directory / "test.json"
    if not measured.exists():
        part = directory / "test.part"
        _allennlp("evaluate", directory / "model.tar.gz", test, "--output-file", part)
        part.replace(measured)
    origin = _read(started)
    return records.write(
        results, origin | _record(experiment, row, seed, note, directory, measured)
    )


def _record(
    experiment: str, row: str, seed: int, note: str, directory: Path, measured: Path
) -> dict[str, Any]:
    told, best, test = (
        _read(file) for file in (directory / "run.json", directory / "metrics.json", measured)
    )
    kept = ("epoch", "seconds", "training_loss", "training_acc", "validation_")
    history = [{k: v for k, v in e.items() if k.startswith(kept)} for e in told["history"]]
    return {
        "experiment": experiment,
        "row": row,
        "seed": seed,
        "metrics": {
            "dev_accuracy": best["best_validation_accuracy"],
            "test_accuracy": test["accuracy"],
            "best_epoch": best["best_epoch"],
            "parameters": told["parameters"],
        },
        "history": history,
        "data": told["data"] | {"vectors": told["vectors"]},
        "note": note,
        "device": records.device(),
        "config_sha256": records.sha256(json.dumps(_config(directory), sort_keys=True)),
        "wall_seconds": round(sum(e["seconds"] for e in told["history"]), 1),
        "command": shlex.join(["python", *sys.argv]),
    }


def _config(directory: Path) -> dict[str, Any]:
    return _read(directory / "config.json")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _allennlp(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "allennlp", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
