"""The steps of an experiment that JoeyNMT does; see experiment.py.

A model folder of JoeyNMT is written once, so every attempt at a training gets its own: attempt-1,
and after an interruption attempt-2. What joins them is state.ckpt, which the plugin replaces as a
whole after every validation: an attempt goes on from there, exactly, and what the one before it
wrote after that, or half wrote, is not looked at.
"""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import records
import sacrebleu
import torch
import yaml
from files import read_json, write_atomically

from qrnn.checkpoints import is_whole

LOGGED = re.compile(r"Step:.*Tokens per Sec:\s+(\d+)")
STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+) ", re.MULTILINE)


def train(
    config: Path,
    directory: Path,
    seed: int,
    overrides: dict[str, Any],
    begun: Callable[[bool], None],
) -> None:
    """Trains, or continues; see with_allennlp.train."""
    state = directory / "state.ckpt"
    whole = is_whole(state)
    begun(not whole)
    if whole and (directory / "trained").exists():
        return
    if not whole and state.exists():
        print(f"{state} is damaged: training starts anew")
        state.unlink()
    settings = resolved(config, seed, overrides)
    earlier = attempts(directory)
    for checkpoint in directory.glob("attempt-*/*.ckpt"):
        checkpoint.unlink()
    settings["model_dir"] = str(directory / f"attempt-{len(earlier) + 1}")
    settings["training"]["state_file"] = str(state)
    directory.mkdir(parents=True, exist_ok=True)
    own = directory / "config.yaml"
    write_atomically(own, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    call("train", own, "--skip-test")
    (directory / "trained").touch()


def resolved(config: Path, seed: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """The config as it is trained with, but for where it runs."""
    settings: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["random_seed"] = seed
    for name, value in overrides.items():
        *sections, key = name.split(".")
        try:
            functools.reduce(dict.__getitem__, sections, settings)[key] = value
        except (KeyError, TypeError):
            sys.exit(f"error: --overrides: {config} has no section for {name}")
    return settings


def evaluate(directory: Path) -> None:
    """Decodes dev and test with the checkpoint that was best on dev."""
    if (directory / "hypotheses.test").exists():
        return
    weights = state_of(directory)["best_state"]
    if weights is None:
        raise FileNotFoundError(
            f"{directory}: no best weights; training ended before its first validation "
            "(training.validation_freq)"
        )
    best = directory / "best.ckpt"
    torch.save({"model_state": weights}, best)
    settings = settings_of(directory)
    settings["testing"]["load_model"] = str(best)
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
    perplexities, attention = scored(directory)
    state = state_of(directory)
    stats = state["stats_state"]
    # where it ran, and how often it began, is no part of what ran
    del settings["model_dir"], settings["training"]["state_file"]
    logged = [rate for attempt in attempts(directory) for rate in rates(attempt)]
    spent = sum(map(seconds, attempts(directory)))
    rate = sum(logged) / len(logged) if logged else stats["total_tokens"] / spent
    return {
        "metrics": scores
        | perplexities
        | {
            "updates": stats["steps"],
            "characters": stats["total_tokens"],
            "best_step": stats["best_ckpt_iter"],
            "train_chars_per_second": round(rate, 1),
            "parameters": sum(w.numel() for w in state["model_state"].values()),
        },
        "history": validations(state["validations"]),
        "attention": attention,
        "data": read_json(source / "meta.json") | {"bleu": str(bleu.get_signature())},
        "config_sha256": records.sha256(json.dumps(settings, sort_keys=True)),
        "wall_seconds": round(spent, 1),
    }


def scored(directory: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Perplexity of a character of the references, and where the model looks in one of them.

    That one is the sentence of dev whose two sides are nearest to 40 characters, ends included.
    """
    from joeynmt.config import parse_global_args  # with all that it imports, slow
    from joeynmt.prediction import predict, prepare

    args = parse_global_args(
        yaml.safe_load((directory / "test.yaml").read_text("utf-8")), 0, "test"
    )
    model, _, dev, test = prepare(args, rank=0, mode="test")
    model.loss_function = ("crossentropy", 0.0)
    own = args.test._replace(return_prob="ref", return_attention=True, beam_size=1)
    found: dict[str, float] = {}
    picture: dict[str, Any] = {}
    for part, data in (("dev", dev), ("test", test)):
        data.reset_indices(random_subset=-1)
        scores, _, _, targets, _, attention = predict(
            model,
            data,
            args.device,
            args.n_gpu,
            compute_loss=True,
            args=own,
            autocast=args.autocast,
        )
        found[f"{part}_perplexity"] = scores["ppl"]
        if not picture:
            sources = data.get_list(lang=data.src_lang, tokenized=True)
            pairs = zip(sources, targets, strict=True)
            lengths = [abs(len(a) - 40) + abs(len(b) - 40) for a, b in pairs]
            n = lengths.index(min(lengths))
            source, target = [*sources[n], "</s>"], targets[n]
            weights = attention[n][: len(target), : len(source)].round(3).tolist()
            picture = {"source": source, "target": target, "weights": weights}
    return found, picture


def build(config: Path, symbols: int) -> Any:
    """The model of a config, untrained, with a made-up vocabulary of as many symbols and 4 more."""
    from joeynmt.config import parse_global_args
    from joeynmt.model import build_model
    from joeynmt.vocabulary import Vocabulary

    args = parse_global_args(yaml.safe_load(config.read_text("utf-8")), rank=0, mode="train")
    names = [chr(0x4E00 + n) for n in range(symbols)]
    vocabulary = Vocabulary(names, args.data["special_symbols"])
    model = build_model(args.model, src_vocab=vocabulary, trg_vocab=vocabulary)
    model.loss_function = (args.train.loss, args.train.label_smoothing)
    return model


def attempts(directory: Path) -> list[Path]:
    return sorted(directory.glob("attempt-*"), key=lambda a: int(a.name.split("-")[1]))


def settings_of(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((directory / "config.yaml").read_text("utf-8"))
    return settings


def state_of(directory: Path) -> dict[str, Any]:
    """What training ended with; see qrnn.joeynmt.resuming."""
    state: dict[str, Any] = torch.load(directory / "state.ckpt", map_location="cpu")
    return state


def validations(report: str) -> list[dict[str, float]]:
    """Lines such as "Steps: 100\\tbleu: 1.5\\tppl: 9.1\\t..."; names as in the record."""
    steps = []
    for line in report.splitlines():
        fields = dict(field.split(": ") for field in line.split("\t") if ": " in field)
        steps.append({name.lower(): float(value) for name, value in fields.items()})
    return steps


def rates(attempt: Path) -> list[float]:
    """Target characters per second, as training logged them."""
    return [float(m[1]) for m in LOGGED.finditer(log(attempt))]


def seconds(attempt: Path) -> float:
    """From the first to the last line of its log."""
    stamps = STAMP.findall(log(attempt))
    if not stamps:
        return 0.0
    first, last = (datetime.fromisoformat(stamps[n].replace(",", ".")) for n in (0, -1))
    return (last - first).total_seconds()


def log(attempt: Path) -> str:
    """Empty for an attempt that was killed before it wrote any."""
    file = attempt / "train.log"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def call(*arguments: object) -> None:
    # qrnn.joeynmt: also where Python reads no .pth files
    command = [sys.executable, "-m", "qrnn.joeynmt", *map(str, arguments)]
    subprocess.run(command, check=True, close_fds=False)  # it shares experiment.run's lock
