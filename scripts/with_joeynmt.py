"""The steps of an experiment that JoeyNMT does; see experiment.py.

A model folder of JoeyNMT is written once, so every attempt at a training gets its own: attempt-1,
and after an interruption attempt-2, which starts from the last checkpoint of the one before. That
repeats the interrupted epoch from its start.
"""

import functools
import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import records
import sacrebleu
import torch
import yaml
from fetch import read_json, write_atomically

LOGGED = re.compile(r"Step:\s+(\d+), .*Tokens per Sec:\s+(\d+)")
STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+) ", re.MULTILINE)


def train(config: Path, directory: Path, seed: int, overrides: dict[str, Any]) -> None:
    if (directory / "trained").exists():
        return
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["random_seed"] = seed
    for name, value in overrides.items():
        *sections, key = name.split(".")
        functools.reduce(dict.__getitem__, sections, settings)[key] = value
    earlier = attempts(directory)
    settings["model_dir"] = str(directory / f"attempt-{len(earlier) + 1}")
    checkpoints = [a / "latest.ckpt" for a in earlier if (a / "latest.ckpt").exists()]
    if checkpoints:
        settings["training"]["load_model"] = str(checkpoints[-1].resolve())
    directory.mkdir(parents=True, exist_ok=True)
    own = directory / "config.yaml"
    write_atomically(own, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    call("train", own, "--skip-test")
    (directory / "trained").touch()


def evaluate(directory: Path) -> None:
    """Decodes dev and test with the checkpoint that was best on dev."""
    if (directory / "hypotheses.test").exists():
        return
    settings = settings_of(directory)
    settings["testing"]["load_model"] = str(best(directory))
    own = directory / "test.yaml"
    write_atomically(own, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    call("test", own, "--output-path", directory / "part")
    for part in ("dev", "test"):
        (directory / f"part.{part}").replace(directory / f"hypotheses.{part}")


def outcome(directory: Path) -> dict[str, Any]:
    settings = settings_of(directory)
    data = settings["data"]
    source = Path(data["train"]).parent
    bleu = sacrebleu.BLEU()
    scores = {}
    for part in ("dev", "test"):
        hypotheses, references = (
            file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            for file in (
                directory / f"hypotheses.{part}",
                Path(f"{data[part]}.{data['trg']['lang']}"),
            )
        )
        scores[f"{part}_bleu"] = bleu.corpus_score(hypotheses, [references]).score
    history = [step for attempt in attempts(directory) for step in validations(attempt)]
    logged = [line for attempt in attempts(directory) for line in progress(attempt)]
    weights = torch.load(best(directory), map_location="cpu", weights_only=False)["model_state"]
    return {
        "metrics": scores
        | {
            "updates": logged[-1]["step"],
            "best_step": int(best(directory).stem),
            "train_chars_per_second": round(sum(line["rate"] for line in logged) / len(logged), 1),
            "parameters": sum(w.numel() for w in weights.values()),
        },
        "history": history,
        "data": read_json(source / "meta.json") | {"bleu": str(bleu.get_signature())},
        "config_sha256": records.sha256(json.dumps(settings, sort_keys=True)),
        "wall_seconds": round(sum(map(seconds, attempts(directory))), 1),
    }


def attempts(directory: Path) -> list[Path]:
    return sorted(directory.glob("attempt-*"), key=lambda a: int(a.name.split("-")[1]))


def settings_of(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((directory / "config.yaml").read_text("utf-8"))
    return settings


def best(directory: Path) -> Path:
    """The checkpoint of the best score on dev: an attempt knows the best score before it, so that
    the last one to have found a better one has it."""
    found = [a / "best.ckpt" for a in attempts(directory) if (a / "best.ckpt").exists()]
    if not found:
        raise FileNotFoundError(
            f"{directory}: no best.ckpt; training ended before its first validation "
            "(training.validation_freq)"
        )
    return found[-1].resolve()


def validations(attempt: Path) -> list[dict[str, float]]:
    """Lines such as "Steps: 100\\tbleu: 1.5\\tppl: 9.1\\t..."; names as in the record."""
    file = attempt / "validations.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    steps = []
    for line in lines:
        fields = dict(field.split(": ") for field in line.split("\t") if ": " in field)
        steps.append({name.lower(): float(value) for name, value in fields.items()})
    return steps


def progress(attempt: Path) -> list[dict[str, float]]:
    """What training logged: step, target characters per second."""
    text = (attempt / "train.log").read_text(encoding="utf-8")
    return [{"step": int(m[1]), "rate": float(m[2])} for m in LOGGED.finditer(text)]


def seconds(attempt: Path) -> float:
    """From the first to the last line of its log."""
    stamps = STAMP.findall((attempt / "train.log").read_text(encoding="utf-8"))
    first, last = (datetime.fromisoformat(stamps[n].replace(",", ".")) for n in (0, -1))
    return (last - first).total_seconds()


def call(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "joeynmt", *map(str, arguments)], check=True)
