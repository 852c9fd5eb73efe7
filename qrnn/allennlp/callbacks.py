"""What a run tells about itself, beside the metrics that AllenNLP writes."""

import json
import os
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError
from allennlp.data.data_loaders import SimpleDataLoader
from allennlp.training.callbacks import TrainerCallback

from qrnn.allennlp.readers import data_source
from qrnn.allennlp.word_vectors import WordVectors
from qrnn.checkpoints import random_state, set_random_state

PACKAGES = ("torch", "allennlp", "numba", "numpy")


@TrainerCallback.register("run_file")
class RunFile(TrainerCallback):
    """Keeps run.json in the serialization directory: data, vectors, versions, and every epoch.

    `data` is the meta.json beside the training data, so that a run on other than the official
    content says so; word vectors that were prepared for other reviews are an error. An epoch's
    seconds are its own: after --recover the earlier ones are kept.

    For a model that returns how many "tokens" it was given, an epoch has
    training_tokens_per_second: from the end of its first step to the end of its last, no validation
    in it. For a classifier, which returns "probs", it has training_reviews_per_second.
    """

    def __init__(self, serialization_dir: str) -> None:
        super().__init__(serialization_dir)
        self.path = Path(serialization_dir) / "run.json"
        self.run: Dict[str, Any] = {}
        self.since = 0.0
        self.steps_since: Optional[float] = None  # the end of the epoch's first step
        self.steps_until = 0.0
        self.counts = {"tokens": 0, "reviews": 0}  # of the steps after the first

    def on_start(self, trainer: Any, is_primary: bool = True, **kwargs: Any) -> None:
        super().on_start(trainer, is_primary, **kwargs)
        if not is_primary:
            return
        earlier: List[Dict[str, Any]] = []
        if self.path.exists():
            earlier = json.loads(self.path.read_text(encoding="utf-8"))["history"]
        config = Params.from_file(os.path.join(self.serialization_dir, "config.json")).as_dict()
        data = data_source(Path(config["train_data_path"]).parent)
        vectors = [m for m in trainer._pytorch_model.modules() if isinstance(m, WordVectors)]
        for own in vectors:
            if own.reviews and "files" in data and own.reviews != data["files"]:
                raise ConfigurationError(
                    f"the word vectors ({own.source}) are those of the words of other reviews than "
                    f"{config['train_data_path']}: run `make download-glove` for that set again"
                )
        source = vectors[0].source if vectors else None
        if vectors and config["model"].get("type") == "from_archive":  # it drops pretrained_file
            source = f"those of {config['model']['archive_file']}"
        self.run = {
            "command": shlex.join(["allennlp", *sys.argv[1:]]),
            "data": data,
            "vectors": source,
            "device": str(trainer.cuda_device),
            "seed": config.get("pytorch_seed"),
            "versions": {name: _version(name) for name in PACKAGES},
            "parameters": sum(p.numel() for p in trainer._pytorch_model.parameters()),
            "history": earlier,
        }
        self._write()
        self.since = time.monotonic()

    def on_batch(
        self,
        trainer: Any,
        batch_inputs: Any,
        batch_outputs: List[Dict[str, Any]],
        batch_metrics: Dict[str, Any],
        epoch: int,
        batch_number: int,
        is_training: bool,
        **kwargs: Any,
    ) -> None:
        if not is_training:
            return
        self.steps_until = time.monotonic()
        if self.steps_since is None:
            self.steps_since = self.steps_until
        else:
            for outputs in batch_outputs:
                self.counts["tokens"] += outputs.get("tokens", 0)
                self.counts["reviews"] += len(outputs.get("probs", ()))

    def on_epoch(
        self,
        trainer: Any,
        metrics: Dict[str, Any],
        epoch: int,
        is_primary: bool = True,
        **kwargs: Any,
    ) -> None:
        if not is_primary:
            return
        now = time.monotonic()
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        entry = {"epoch": epoch, "seconds": round(now - self.since, 3), **numbers}
        for what, count in self.counts.items():
            if self.steps_since is not None and count:
                rate = count / (self.steps_until - self.steps_since)
                entry[f"training_{what}_per_second"] = round(rate, 1)
        self.steps_since, self.counts = None, dict.fromkeys(self.counts, 0)
        self.since = now
        before = [other for other in self.run["history"] if other["epoch"] < epoch]
        self.run["history"] = [*before, entry]
        self._write()

    def _write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.run, indent=2) + "\n", encoding="utf-8")
        part.replace(self.path)


@TrainerCallback.register("random_state")
class RandomState(TrainerCallback):
    """Keeps the random numbers' state in the checkpoints, so that --recover gives the same run.

    AllenNLP reads through the epochs that are done, to draw from the loader what was drawn then,
    and misses what dropout and validation drew. Here the first epoch that is not done starts from
    the state that the checkpoint was saved with, and the others are read only where a loader goes
    on from where it ended (batches_per_epoch) or in the order it had ("simple"); the steps, which
    AllenNLP counts as it reads, and by which schedulers set the rate, are kept as well. A
    checkpoint from the middle of an epoch is left to AllenNLP. Several processes all continue from
    the first's.
    """

    def __init__(self, serialization_dir: str) -> None:
        super().__init__(serialization_dir)
        self.saved: Optional[Dict[str, Any]] = None

    def state_dict(self) -> Dict[str, Any]:
        return {"random": random_state(), "steps": self.trainer._total_batches_completed}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.saved = state_dict

    def on_start(self, trainer: Any, is_primary: bool = True, **kwargs: Any) -> None:
        super().on_start(trainer, is_primary, **kwargs)
        saved, train_epoch = self.saved, trainer._train_epoch
        if saved is None or trainer._start_after_batches_in_epoch_completed:
            return

        loader = trainer.data_loader
        placed = getattr(loader, "batches_per_epoch", None) or isinstance(loader, SimpleDataLoader)

        def resume(epoch: int) -> Dict[str, float]:
            if epoch < trainer._start_after_epochs_completed:
                return train_epoch(epoch) if placed else {}
            trainer._train_epoch = train_epoch
            trainer._total_batches_completed = saved["steps"]
            set_random_state(saved["random"])
            return train_epoch(epoch)

        trainer._train_epoch = resume


@TrainerCallback.register("bfloat16_autocast")
class BFloat16Autocast(TrainerCallback):
    """Runs the model under torch.autocast to bfloat16, in training and validation, on any device.

    AllenNLP's `use_amp` is float16 on CUDA only. bfloat16 has float32's range, so no loss needs
    scaling, and speeds up a CPU's matrix products too. Weights and their updates stay float32.
    `allennlp evaluate` has no callbacks, and so evaluates in float32.
    """

    def on_start(self, trainer: Any, is_primary: bool = True, **kwargs: Any) -> None:
        super().on_start(trainer, is_primary, **kwargs)
        model = trainer.model
        model.forward = torch.autocast(trainer.cuda_device.type, torch.bfloat16)(model.forward)

    def on_end(self, trainer: Any, **kwargs: Any) -> None:
        del trainer.model.forward


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except ImportError:
        return None
