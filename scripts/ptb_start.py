"""Compares start values of the PTB language model on validation: python scripts/ptb_start.py

The paper does not state how its weights and forget gates' biases start. Each choice below trains
configs/ptb.jsonnet, narrower if --size says so, for a few epochs; the test part is not touched. An
interrupted comparison is continued.

It does so at rate 0.35 and not at the recipe's 1, where a validation says little: a loss summed
over 105 steps has a curvature of 105 p (1 - p) in the softmax's bias of a word with probability p,
and gradient descent at rate 1 is stable only below 2. For the most frequent words p is 0.05, and
their biases, with them the perplexity, swing from step to step.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import experiment
import records
import with_allennlp
from files import alone, check_folder, check_root, read_json

CONFIG = Path("configs/ptb.jsonnet")
RATE = 0.35


def uniform(bound: float) -> dict[str, Any]:
    return {"type": "uniform", "a": -bound, "b": bound}


def normal(std: float) -> dict[str, Any]:
    return {"type": "normal", "mean": 0, "std": std}


def choices(size: int) -> list[tuple[str, float, list[Any]]]:
    """What starts how, the forget gates' bias, and the regexes of AllenNLP's initializer.

    For layers of `size` units and k = 2. What a regex does not name starts as in the model: the
    embeddings U(-0.05, 0.05), every weight N(0, 1 / fan-in), biases 0.
    """
    of_the_model = "embeddings U(-0.05, 0.05), weights N(0, 1 / fan-in)"
    return [
        ("U(-0.05, 0.05) everywhere", 0, [[".*", uniform(0.05)]]),
        (of_the_model, 0, []),
        (
            "embeddings U(-0.05, 0.05), gates N(0, 4 / fan-in), softmax N(0, 1 / fan-in)",
            0,
            [["rnn.*weight", normal(2 * (2 * size) ** -0.5)]],
        ),
        (
            "embeddings N(0, 1), weights N(0, 1 / fan-in)",
            0,
            [["embedding.weight", normal(1)]],
        ),
        (of_the_model, 1, []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=640, help="units of each layer")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = vars(parser.parse_args())
    check_root(parser)
    for name in ("size", "epochs"):
        if arguments[name] < 1:
            parser.error(f"--{name}: expected at least 1, got {arguments[name]}")
    if arguments["seed"] < 0:
        parser.error(f"--seed: expected at least 0, got {arguments['seed']}")
    check_folder(parser, "--results", arguments["results"])
    with experiment.explained():
        print(compare(**arguments))


def compare(size: int, epochs: int, seed: int, runs: Path, results: Path) -> Path:
    folder = runs / f"ptb-start-{size}-{epochs}epochs-seed{seed}"
    with alone(folder):
        return _compare(size, epochs, seed, folder, results)


def _compare(size: int, epochs: int, seed: int, folder: Path, results: Path) -> Path:
    seconds = 0.0
    table = []
    for number, (weights, forget_bias, regexes) in enumerate(choices(size)):
        directory = folder / str(number)
        overrides: dict[str, Any] = {
            "model.rnn.input_size": size,
            "model.rnn.hidden_size": size,
            "model.rnn.forget_bias": forget_bias,
            "model.initializer": {"regexes": regexes},
            "trainer.optimizer.lr": RATE,
            "trainer.num_epochs": epochs,
        }
        with_allennlp.train(CONFIG, directory, seed, overrides)
        for epoch in read_json(directory / "run.json")["history"]:
            seconds += epoch["seconds"]
            table.append(
                {
                    "weights": weights,
                    "forget_bias": forget_bias,
                    "epoch": epoch["epoch"] + 1,
                    "train_perplexity": epoch["training_perplexity"],
                    "valid_perplexity": epoch["validation_perplexity"],
                }
            )
    return records.write(
        results,
        {
            "experiment": "ptb-start",
            "row": str(size),
            "seed": seed,
            "table": table,
            "data": read_json(directory / "run.json")["data"],
            "note": f"2 x {size} units, zoneout 0.1, rate {RATE}",
            "config_sha256": records.sha256(CONFIG.read_text(encoding="utf-8")),
            "wall_seconds": round(seconds, 1),
            "command": shlex.join(["python", *sys.argv]),
        },
    )


if __name__ == "__main__":
    main()
