"""The steps of an experiment that AllenNLP does; see experiment.py."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import records
from fetch import read_json

MEASURES = {"accuracy": "dev", "perplexity": "valid"}  # and the field's name of the part chosen on


def train(config: Path, directory: Path, seed: int, overrides: dict[str, Any]) -> None:
    if (directory / "model.tar.gz").exists():
        return
    overrides = {f"{k}_seed": seed for k in ("random", "numpy", "pytorch")} | overrides
    resume = ["--recover"] if (directory / "config.json").exists() else []
    call("train", config, "-s", directory, "-o", json.dumps(overrides), *resume)


def evaluate(directory: Path) -> None:
    measured = directory / "test.json"
    if measured.exists():
        return
    test = Path(read_json(directory / "config.json")["train_data_path"]).with_stem("test")
    part = directory / "test.part"
    call("evaluate", directory / "model.tar.gz", test, "--output-file", part)
    part.replace(measured)


def outcome(directory: Path) -> dict[str, Any]:
    told, best, test = (
        read_json(directory / name) for name in ("run.json", "metrics.json", "test.json")
    )
    training = (f"training_{name}" for name in ("loss", "tokens", "reviews", *MEASURES))
    kept = ("epoch", "seconds", "validation_", *training)
    config = read_json(directory / "config.json")
    [measure] = [name for name in MEASURES if name in test]
    return {
        "metrics": {
            f"{MEASURES[measure]}_{measure}": best[f"best_validation_{measure}"],
            f"test_{measure}": test[measure],
            "best_epoch": best["best_epoch"],
            "parameters": told["parameters"],
        },
        "history": [{k: v for k, v in e.items() if k.startswith(kept)} for e in told["history"]],
        "data": told["data"] | ({"vectors": told["vectors"]} if told["vectors"] else {}),
        "config_sha256": records.sha256(json.dumps(config, sort_keys=True)),
        "wall_seconds": round(sum(e["seconds"] for e in told["history"]), 1),
    }


def call(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "allennlp", *map(str, arguments)], check=True)
