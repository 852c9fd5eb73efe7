"""The steps of an experiment that AllenNLP does; see experiment.py.

AllenNLP writes its files in place, so a run that was killed, or that a full disk ended, leaves some
of them half written. Before a training is continued, such files are found and dealt with: see
`train`.
"""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from gzip import BadGzipFile
from pathlib import Path
from typing import Any, NamedTuple

import records
import torch
from fetch import read_json, write_atomically

MEASURES = {"accuracy": "dev", "perplexity": "valid"}  # and the field's name of the part chosen on
STATE = re.compile(r"(?:model|training)_state_e(\d+)_b(\d+)\.th")


class Checkpoint(NamedTuple):
    model: Path  # the file
    state: dict[str, Any]  # of the trainer


def train(
    config: Path,
    directory: Path,
    seed: int,
    overrides: dict[str, Any],
    begun: Callable[[bool], None] = lambda anew: None,
) -> None:
    """Trains, or continues from the newest checkpoint that is whole, or anew where there is none.

    Trains no more where training has ended and its archive is whole. begun is called before
    anything is trained, with whether it is from the start.
    """
    if finished(directory):
        begun(False)
        return
    overrides = {f"{k}_seed": seed for k in ("random", "numpy", "pytorch")} | overrides
    options = json.dumps(overrides)
    # Where these two are, the training that is about to run has ended: see finished.
    for name in ("metrics.json", "model.tar.gz"):
        (directory / name).unlink(missing_ok=True)
    checkpoint = newest_checkpoint(directory)
    if not checkpoint or not has_best(directory, checkpoint):
        if directory.exists():
            print(f"{directory} holds nothing to continue from: training starts anew")
            shutil.rmtree(directory)
        begun(True)
        call("train", config, "-s", directory, "-o", options)
        return
    begun(False)
    settings = mended_config(config, directory, options)
    tracked, patience = checkpoint.state["metric_tracker"], settings["trainer"].get("patience")
    if patience is not None and tracked["epochs_with_no_improvement"] >= patience:
        archive(directory, tracked)  # --recover would train for another epoch
    else:
        call("train", config, "-s", directory, "-o", options, "--recover")


def finished(directory: Path) -> bool:
    """Whether training has ended by itself and the archive, which is written last, is whole.

    Of a training that is interrupted from the keyboard AllenNLP makes an archive as well, but no
    metrics.json.
    """
    try:
        read_json(directory / "metrics.json")
        with tarfile.open(directory / "model.tar.gz") as tar:
            names = tar.getnames()
            assert tar.fileobj is not None
            while tar.fileobj.read(1 << 20):  # to the checksum at the end
                pass
    except (FileNotFoundError, tarfile.TarError, BadGzipFile, EOFError, zlib.error, ValueError):
        return False
    return {"config.json", "weights.th", "meta.json"} <= {*names}


def require(directory: Path) -> None:
    """Exits unless training has ended there, with the callback "run_file"."""
    if not finished(directory):
        sys.exit(f"error: {directory} is not, or not wholly, what allennlp train ends with")
    if not (directory / "run.json").exists():
        sys.exit(f'error: there is no {directory}/run.json: train with the callback "run_file"')


def newest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest one with both of its files whole. Newer ones are removed: AllenNLP would try the
    newest, and would not write those again that are there."""
    found = [STATE.fullmatch(file.name) for file in directory.glob("*_state_*.th")]
    points = {(int(match[1]), int(match[2])) for match in found if match}
    for epochs, batches in sorted(points, reverse=True):
        model, training = files = [
            directory / f"{kind}_state_e{epochs}_b{batches}.th" for kind in ("model", "training")
        ]
        if all(map(is_whole, files)):
            return Checkpoint(model, torch.load(training, map_location="cpu", weights_only=False))
        print(f"{directory}: the checkpoint after {epochs} epochs is not whole and is removed")
        for file in files:
            file.unlink(missing_ok=True)
    return None


def is_whole(file: Path) -> bool:
    """Whether a file of torch.save is all there, by its checksums."""
    try:
        with zipfile.ZipFile(file) as content:
            return content.testzip() is None
    except (FileNotFoundError, zipfile.BadZipFile, EOFError, NotImplementedError, ValueError):
        return False


def has_best(directory: Path, checkpoint: Checkpoint) -> bool:
    """Makes best.th, which is written after the checkpoint, be of the best epoch; False if the
    weights of that epoch are lost."""
    best, state = directory / "best.th", checkpoint.state
    newest_is_best = state["metric_tracker"]["is_best_so_far"]
    if not newest_is_best or state["batches_in_epoch_completed"]:
        return is_whole(best)
    part = best.with_suffix(".part")
    average = state.get("moving_average", {"steps": 0})
    if average.get("steps") != 0:  # nt_asgd's, which may not have begun, counts steps
        weights = torch.load(checkpoint.model, map_location="cpu", weights_only=True)
        torch.save({**weights, **average["shadows"]}, part)
    else:
        shutil.copyfile(checkpoint.model, part)
    part.replace(best)
    return True


def mended_config(config: Path, directory: Path, overrides: str) -> dict[str, Any]:
    """config.json; --recover writes it, too, and needs it to be there."""
    path = directory / "config.json"
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        import qrnn.allennlp  # noqa: F401  before allennlp, which it mends

        from allennlp.common import Params  # isort: skip

        params = Params.from_file(str(config), overrides)
        write_atomically(path, json.dumps(params.as_dict(quiet=True), indent=4))
        return read_json(path)


def archive(directory: Path, tracked: dict[str, Any]) -> None:
    """What AllenNLP does when training is over: metrics.json, then the archive."""
    import qrnn.allennlp  # noqa: F401  before allennlp, which it mends

    from allennlp.models.archival import archive_model  # isort: skip

    best = {f"best_validation_{k}": float(v) for k, v in tracked["best_epoch_metrics"].items()}
    metrics = {"best_epoch": tracked["best_epoch"], **best}
    write_atomically(directory / "metrics.json", json.dumps(metrics, indent=2))
    archive_model(directory)


def evaluate(directory: Path) -> None:
    measured = directory / "test.json"
    if measured.exists():
        return
    test = Path(read_json(directory / "config.json")["train_data_path"]).with_stem("test")
    part = directory / "test.part"
    device = 0 if torch.cuda.is_available() else -1  # on its own it takes the CPU
    call(
        "evaluate", directory / "model.tar.gz", test, "--output-file", part, "--cuda-device", device
    )
    part.replace(measured)


def outcome(directory: Path) -> dict[str, Any]:
    told, best, config = (
        read_json(directory / name) for name in ("run.json", "metrics.json", "config.json")
    )
    test = directory / "test.json"
    training = (f"training_{name}" for name in ("loss", "tokens", "reviews", *MEASURES))
    kept = ("epoch", "seconds", "validation_", *training)
    [measure] = [name for name in MEASURES if f"best_validation_{name}" in best]
    return {
        "metrics": {
            f"{MEASURES[measure]}_{measure}": best[f"best_validation_{measure}"],
            **({f"test_{measure}": read_json(test)[measure]} if test.exists() else {}),
            "best_epoch": best["best_epoch"],
            "parameters": told["parameters"],
        },
        "history": [{k: v for k, v in e.items() if k.startswith(kept)} for e in told["history"]],
        "data": told["data"] | ({"vectors": told["vectors"]} if told["vectors"] else {}),
        "config_sha256": records.sha256(json.dumps(config, sort_keys=True)),
        "wall_seconds": round(sum(e["seconds"] for e in told["history"]), 1),
    }


def call(*arguments: object) -> None:
    # qrnn.allennlp: also where Python reads no .pth files
    command = [sys.executable, "-m", "qrnn.allennlp", *map(str, arguments)]
    subprocess.run(command, check=True, close_fds=False)  # it shares experiment.run's lock
