"""What a run tells about itself, beside the metrics that AllenNLP writes."""

import json
import os
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Optional

from allennlp.common import Params
from allennlp.training.callbacks import TrainerCallback

from qrnn.allennlp.readers import data_source
from qrnn.allennlp.word_vectors import WordVectors

PACKAGES = ("torch", "allennlp", "numba", "numpy")


@TrainerCallback.register("run_file")
class RunFile(TrainerCallback):
    """Keeps run.json in the serialization directory: data, vectors, versions, and every epoch.

    `data` is the meta.json beside the training data, so that a run on other than the official
    content says so. An epoch's seconds are its own: after --recover the earlier ones are kept.
    """

    def __init__(self, serialization_dir: str) -> None:
        super().__init__(serialization_dir)
        self.path = Path(serialization_dir) / "run.json"
        self.run: Dict[str, Any] = {}
        self.since = 0.0

    def on_start(self, trainer: Any, is_primary: bool = True, **kwargs: Any) -> None:
        super().on_start(trainer, is_primary, **kwargs)
        if not is_primary:
            return
        earlier: List[Dict[str, Any]] = []
        if self.path.exists():
            earlier = json.loads(self.path.read_text(encoding="utf-8"))["history"]
        config = Params.from_file(os.path.join(self.serialization_dir, "config.json")).as_dict()
        vectors = [m.source for m in trainer._pytorch_model.modules() if isinstance(m, WordVectors)]
        self.run = {
            "command": shlex.join(["allennlp", *sys.argv[1:]]),
            "data": data_source(Path(config["train_data_path"]).parent),
            "vectors": vectors[0] if vectors else None,
            "device": str(trainer.cuda_device),
            "seed": config.get("pytorch_seed"),
            "versions": {name: _version(name) for name in PACKAGES},
            "parameters": sum(p.numel() for p in trainer._pytorch_model.parameters()),
            "history": earlier,
        }
        self._write()
        self.since = time.monotonic()

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
        self.since = now
        before = [other for other in self.run["history"] if other["epoch"] < epoch]
        self.run["history"] = [*before, entry]
        self._write()

    def _write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.run, indent=2) + "\n", encoding="utf-8")
        part.replace(self.path)


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except ImportError:
        return None
