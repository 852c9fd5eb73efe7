"""Compares start values of the PTB language model on validation: python scripts/ptb_start.py

The paper does not state how its weights and forget gates' biases start. Each choice below trains
configs/ptb.jsonnet, narrower if --size says so, for a few epochs, the last one at a quarter of the
rate; the test part is not touched. An interrupted comparison is continued.

A quarter, because at rate 1 the validation perplexity of any one step says little: a loss summed
over 105 steps has a curvature of 105 p (1 - p) in the softmax's bias of a word with probability p,
and gradient descent at rate 1 is stable only below 2. For the few most frequent words p is 0.05.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import records
import with_allennlp
from fetch import read_json

CONFIG = Path("configs/ptb.jsonnet")


def uniform(bound: float) -> dict[str, Any]:
    return {"type": "uniform", "a": -bound, "b": bound}


DEFAULT = "embeddings N(0, 1), weights N(0, 1 / fan-in), biases 0"
LARGER = "the same, but the second layer's weights twice as large"
XAVIER = "embeddings U(-1, 1), gates Xavier with gain 1.5, softmax U(-0.05, 0.05), biases 0"
UNIFORM = "U(-0.05, 0.05) everywhere"


def weights(size: int) -> dict[str, list[Any]]:
    """The regexes of AllenNLP's initializer for each choice, for layers of `size` units, k = 2."""

    larger = {"type": "normal", "mean": 0, "std": 2 * (2 * size) ** -0.5}
    return {
        DEFAULT: [],
        XAVIER: [
            ["embedding.weight", uniform(1)],
            ["rnn.*weight", {"type": "xavier_uniform", "gain": 1.5}],
            ["softmax.weight", uniform(0.05)],
        ],
        UNIFORM: [[".*", uniform(0.05)]],
        LARGER: [["rnn.layers.1.weight", larger]],
    }


CHOICES = [
    *((DEFAULT, bias) for bias in (0, 1, -1)),
    *((name, 0) for name in (XAVIER, LARGER, UNIFORM)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=640, help="units of each layer")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    print(compare(**vars(parser.parse_args())))


def compare(size: int, epochs: int, seed: int, runs: Path, results: Path) -> Path:
    started = time.monotonic()
    table = []
    for number, (start, forget_bias) in enumerate(CHOICES):
        directory = runs / f"ptb-start-{size}-seed{seed}" / str(number)
        overrides: dict[str, Any] = {
            "model.rnn.input_size": size,
            "model.rnn.hidden_size": size,
            "model.rnn.forget_bias": forget_bias,
            "model.initializer": {"regexes": weights(size)[start]},
            "trainer.num_epochs": epochs,
            "trainer.learning_rate_scheduler": {
                "type": "multi_step",
                "milestones": [epochs - 1],
                "gamma": 0.25,
            },
        }
        with_allennlp.train(CONFIG, directory, seed, overrides)
        for epoch in read_json(directory / "run.json")["history"]:
            table.append(
                {
                    "weights": start,
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
            "device": records.device(),
            "config_sha256": records.sha256(CONFIG.read_text(encoding="utf-8")),
            "wall_seconds": round(time.monotonic() - started, 1),
            "command": shlex.join(["python", *sys.argv]),
        },
    )


if __name__ == "__main__":
    main()
