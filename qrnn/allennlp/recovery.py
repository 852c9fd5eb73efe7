"""The files of a training that was killed, made fit for `allennlp train --recover`.

AllenNLP ends an epoch with model_state_*.th, training_state_*.th and best.th, in this order, and
writes each in place. Killed in between, it would look for the file that is missing, or take the
best.th of an earlier epoch for that of the last.
"""

import logging
import re
import shutil
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

import torch

from qrnn.checkpoints import is_whole

STATE = re.compile(r"(?:model|training)_state_e(\d+)_b(\d+)\.th")

logger = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    model: Path  # the files
    training: Path
    state: Dict[str, Any]  # of the trainer


def newest_checkpoint(directory: Path) -> Optional[Checkpoint]:
    """The newest one with both of its files whole; None if there is none. Newer ones are removed:
    AllenNLP would try the newest, and would not write those again that are there."""
    found = [STATE.fullmatch(file.name) for file in directory.glob("*_state_*.th")]
    points = {(int(match[1]), int(match[2])) for match in found if match}
    for epochs, batches in sorted(points, reverse=True):
        model, training = files = [
            directory / f"{kind}_state_e{epochs}_b{batches}.th" for kind in ("model", "training")
        ]
        if all(map(is_whole, files)):
            return Checkpoint(model, training, torch.load(training, map_location="cpu"))
        logger.warning(
            "%s: the checkpoint after %d epochs is not whole and is removed", directory, epochs
        )
        for file in files:
            file.unlink(missing_ok=True)
    return None


def restore_best(directory: Path, checkpoint: Checkpoint) -> bool:
    """Rewrites best.th where the checkpoint is of the best epoch: AllenNLP writes it after the
    checkpoint, and may have been killed before. False if the best epoch's weights are lost.

    The trainer's state then has the path of best.th, which AllenNLP loads at the end: not None, as
    in the first epoch's, nor where the folder was before it was moved."""
    best, state = directory / "best.th", checkpoint.state
    # None where nothing is validated: then every epoch is the best
    newest_is_best = state["metric_tracker"]["best_epoch"] in (None, state["epochs_completed"] - 1)
    part = best.with_suffix(".part")
    if not newest_is_best or state["batches_in_epoch_completed"]:
        if state["best_model_filename"] is None:
            return True
        if not is_whole(best):
            return False
    else:
        _write_best(checkpoint, part)
        part.replace(best)
    if state["best_model_filename"] != str(best):
        torch.save({**state, "best_model_filename": str(best)}, part)
        part.replace(checkpoint.training)
    return True


def _write_best(checkpoint: Checkpoint, file: Path) -> None:
    """The checkpoint's weights, or their averages where the trainer keeps such."""
    average = checkpoint.state.get("moving_average", {"steps": 0})
    if average.get("steps") != 0:  # nt_asgd's, which may not have begun, counts steps
        weights = torch.load(checkpoint.model, map_location="cpu")
        # by address: a weight that is tied has one average, and two names in the model
        shadows = {weights[name].data_ptr(): w for name, w in average["shadows"].items()}
        torch.save({name: shadows.get(w.data_ptr(), w) for name, w in weights.items()}, file)
    else:
        shutil.copyfile(checkpoint.model, file)
