"""The steps of an experiment that AllenNLP does; see experiment.py.

AllenNLP writes its files in place, so a run that was killed, or that a full disk ended, leaves some
of them half written. Before a training is continued, such files are found and dealt with: see
`train`, and qrnn/allennlp/recovery.py for the checkpoints.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

import records
import torch
from files import read_json, write_atomically

MEASURES = {"accuracy": "dev", "perplexity": "valid"}  # and the field's name of the part chosen on


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
    from qrnn.allennlp import recovery  # slow: it imports allennlp

    if finished(directory):
        begun(False)
        return
    overrides = {f"{k}_seed": seed for k in ("random", "numpy", "pytorch")} | overrides
    options = json.dumps(overrides)
    # Where these two are, the training that is about to run has ended: see finished.
    for name in ("metrics.json", "model.tar.gz"):
        (directory / name).unlink(missing_ok=True)
    checkpoint = recovery.newest_checkpoint(directory)
    if not checkpoint or not recovery.restore_best(directory, checkpoint):
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


def check_data(directory: Path, told: dict[str, Any], file: Path) -> None:
    """Exits unless the folder of `file` holds the data that run.json of `directory` tells of."""
    from qrnn.allennlp.readers import data_source  # slow: it imports allennlp

    if data_source(file.parent) != told:
        sys.exit(f"error: {directory} was trained on other data than is in {file.parent} now")


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
