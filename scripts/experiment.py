"""Runs one experiment to its record: train, take the best epoch on dev, evaluate test once.

A language model that only serves to start from (imdb-lm) is measured on dev alone.

    python scripts/experiment.py imdb configs/imdb.jsonnet --row k2 --seed 1

A run that was interrupted is continued from its last checkpoint, and ends as if it had not been.
One whose record exists is skipped. It is an error to continue one with another config, seed,
overrides or data.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import records
import with_allennlp
import with_joeynmt
from files import alone, check_folder, read_json, write_atomically

FRAMEWORKS: dict[str, ModuleType] = {
    "imdb": with_allennlp,
    "imdb-lm": with_allennlp,
    "iwslt": with_joeynmt,
    "ptb": with_allennlp,
}
UNTESTED = {"imdb-lm"}


class OtherRunError(Exception):
    """The run's folder holds another training."""


class OtherDataError(Exception):
    """The config trains on another corpus than the experiment's."""


def json_object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("experiment", choices=sorted(FRAMEWORKS))
    parser.add_argument("config", type=Path)
    parser.add_argument(
        "--row", type=records.row_name, required=True, help="name of the row in the report's table"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--overrides",
        type=json_object,
        default={},
        help='JSON, as in allennlp -o: {"trainer.num_epochs": 2}',
    )
    parser.add_argument("--note", default="", help="what the reader of the table should know")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = vars(parser.parse_args())
    if not arguments["config"].is_file():
        parser.error(f"config: there is no {arguments['config']}")
    joeynmt = FRAMEWORKS[arguments["experiment"]] is with_joeynmt
    suffixes = (".yaml", ".yml") if joeynmt else (".jsonnet", ".json")
    if arguments["config"].suffix not in suffixes:
        parser.error(f"config: expected a file *{suffixes[0]}, got {arguments['config']}")
    if arguments["seed"] < 0:
        parser.error(f"--seed: expected at least 0, got {arguments['seed']}")
    if arguments["results"].resolve() == arguments["runs"].resolve():
        parser.error("--results: expected another folder than --runs")
    check_folder(parser, "--results", arguments["results"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which ends what it started as well
    with explained():
        print(run(**arguments))


@contextmanager
def explained() -> Iterator[None]:
    """Ends the program with a line on what went wrong, where `run` says it."""
    try:
        yield
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"error: {shlex.join(error.cmd)} {ending(error.returncode)}, see above; the same "
            "command continues it"
        )
    except (BlockingIOError, OtherRunError, OtherDataError) as error:
        sys.exit(f"error: {error}")


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
    """Returns the path of the record, which is made unless it is there.

    Raises BlockingIOError while another process is at work on the same run, OtherRunError where
    its folder holds one that was begun with another config, seed, overrides or data, and
    OtherDataError for a config of another corpus.
    """
    target = records.path(results, experiment, row, seed)
    if target.exists():
        return target
    directory = runs / target.stem
    started = runs / target.name
    framework = FRAMEWORKS[experiment]
    trained = {"config": str(config), "seed": seed, "overrides": overrides or {}}
    trained |= contents(experiment, config, seed, overrides or {})

    def begun(anew: bool) -> None:
        if anew:
            write_atomically(started, json.dumps({**records.origin(), "trained": trained}))
            return
        known = dict.fromkeys(trained)
        if started.exists():
            known = read_json(started).get("trained", {})
        # what an older version began tells less
        other = {name: v for name, v in trained.items() if known.get(name, v) != v}
        if other:
            raise OtherRunError(
                f"{directory} was begun with {json.dumps({name: known[name] for name in other})}, "
                f"not with {json.dumps(other)}: delete it, or give another --runs"
            )

    with alone(directory):
        framework.train(config, directory, seed, overrides or {}, begun)
        if experiment not in UNTESTED:
            framework.evaluate(directory)
    about = {"experiment": experiment, "row": row, "seed": seed, "note": note}
    about["command"] = shlex.join(["python", *sys.argv])
    origin = {name: value for name, value in read_json(started).items() if name != "trained"}
    return records.write(results, origin | framework.outcome(directory) | about)


def contents(experiment: str, config: Path, seed: int, overrides: dict[str, Any]) -> dict[str, str]:
    """Hashes of the config and of the data, which under the same names may be others."""
    if FRAMEWORKS[experiment] is with_joeynmt:
        settings = with_joeynmt.resolved(config, seed, overrides)
        text = settings["data"]["train"]
    else:  # what AllenNLP does, too slow to import here
        from _jsonnet import evaluate_file  # not there where JoeyNMT alone is installed

        settings = json.loads(evaluate_file(str(config), ext_vars=dict(os.environ)))
        text = overrides.get("train_data_path", settings["train_data_path"])
    meta = Path(text).with_name("meta.json")
    data = read_json(meta) if meta.exists() else {}
    corpus = experiment.split("-")[0]
    if (found := data.get("name", corpus)) != corpus:
        raise OtherDataError(f"{config} trains on {found}, and the experiment is {experiment}")
    told = {"config": settings, "data": data.get("files")}
    return {
        f"{name}_sha256": records.sha256(json.dumps(value, sort_keys=True))
        for name, value in told.items()
    }


def ending(status: int) -> str:
    """How a process failed whose status is this, as subprocess gives it."""
    if status >= 0:
        return f"ended with exit status {status}"
    memory = ", perhaps out of memory" if status == -signal.SIGKILL else ""
    return f"was killed by signal {-status}{memory}"


if __name__ == "__main__":
    main()
