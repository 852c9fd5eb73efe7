"""Training that is killed at any moment and goes on exactly, which joeynmt's own does not.

joeynmt's `load_model` repeats the interrupted epoch, with new random numbers. Here one file, which
is replaced after every validation as a whole, has all that training depends on.
"""

import hashlib
import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from joeynmt.config import ConfigurationError, TrainConfig
from joeynmt.helpers import symlink_update
from joeynmt.helpers_for_ddp import use_ddp
from joeynmt.model import Model
from joeynmt.training import TrainManager
from torch import nn

from qrnn.checkpoints import random_state, set_random_state

# of what _keep writes, beside joeynmt's own
KEPT = {"is_min_lr", "batches", "random", "random_of_epoch", "validations", "best_state"}
KEPT |= {"settings"}
# options that may be others when training goes on
FREE = {"epochs", "max_updates", "load_model", "load_encoder", "load_decoder", "keep_best_ckpts"}
FREE |= {"reset_best_ckpt", "reset_scheduler", "reset_optimizer", "reset_iter_state"}
FREE |= {"logging_freq", "validation_freq", "print_valid_sents"}


class ResumableConfig(TrainConfig):
    """joeynmt's section `training`, and the option state_file.

    joeynmt passes the section on to its TrainManager, but no option that it does not know.
    """

    state_file: Path

    @classmethod
    def of(cls, config: TrainConfig, state_file: object) -> "ResumableConfig":
        if not isinstance(state_file, str) or not state_file:
            raise ConfigurationError(
                f"training: state_file: expected the path of a file, got {state_file!r}"
            )
        found = cls(*config)
        found.state_file = Path(state_file)
        return found


class ResumableTraining(TrainManager):
    """joeynmt's training, which goes on from `state_file` where that exists.

    On the same device it ends with exactly what an undisturbed run ends with. model_dir has to be
    new, or one that joeynmt may empty (`overwrite: True`); of the checkpoints before the
    interruption only the best comes back into it, without its optimizer.

    The file is a checkpoint of joeynmt's with more entries: `batches`, how many of the epoch are
    done; `random` and `random_of_epoch`, the random number generators' states now and when the
    epoch began; `validations`, the lines of validations.txt; `best_state`, the weights that were
    best on dev, or None; `settings`, the model, the data and the options in words. Ctrl-C ends the
    process.

    Subwords that are drawn at random (sentencepiece's alpha, subword-nmt's dropout) come from
    random numbers, and a cache, that are not kept: such a run does not go on exactly.

    Raises:
        ConfigurationError: for several processes, for a file in model_dir, which joeynmt empties,
            for one that cannot be written, and for one that is no such file, or of another model,
            seed, data or training than the config's.
    """

    def __init__(
        self, *args: Any, model: Any, model_dir: Path, train_args: ResumableConfig, **kwargs: Any
    ) -> None:
        self.file = train_args.state_file
        if use_ddp():
            raise ConfigurationError("training: state_file is for training in one process")
        place = self.file.resolve()
        if model_dir.resolve() in (place, *place.parents):
            raise self.wrong(
                f"a place outside of model_dir {model_dir}, which is emptied when training starts"
            )
        options = train_args._asdict()
        self.settings = {name: str(options[name]) for name in options.keys() - FREE}
        self.settings["bucket"] = str(getattr(train_args.batch_size, "bucket", None))
        self.settings["random_seed"] = str(kwargs["seed"])
        self.settings["model"] = described(model)
        self.part = self.file.with_name(f"{self.file.name}.part")
        self.restored = self._read(train_args.epochs) if self.file.exists() else None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.part.touch()
            self.part.unlink()
        except OSError as error:
            raise self.wrong(f"the path of a file that can be written ({error})") from error
        self.report = model_dir / "validations.txt"
        self.best_state: dict[str, torch.Tensor] | None = None
        super().__init__(*args, model=model, model_dir=model_dir, train_args=train_args, **kwargs)

    @property
    def train_iter(self) -> Any:
        return self._batches

    @train_iter.setter
    def train_iter(self, loader: Any) -> None:
        self._batches = None if loader is None else Batches(loader, self)

    def train_and_validate(self, train_data: Any, valid_data: Any) -> None:
        self.settings["data"] = digest(
            repr((train_data, train_data.tokenizer, getattr(train_data, "data", None)))
        )
        if self.restored:
            self._check_same(self.restored, "data")
            self.stats.load_state_dict(self.restored["stats_state"])  # the epoch to begin with
        # joeynmt would catch it and end as if training were over
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            super().train_and_validate(train_data, valid_data)
            self._keep()
        finally:
            signal.signal(signal.SIGINT, before)

    def wrong(self, expected: str) -> ConfigurationError:
        return ConfigurationError(f"training: state_file: expected {expected}, got {self.file}")

    def _read(self, epochs: int) -> dict[str, Any]:
        try:
            found = torch.load(self.file, map_location="cpu")
        except Exception as error:  # torch's are of many types, and do not name the file
            told = str(error).partition("\n")[0]
            raise self.wrong(f"a file that torch.load can read ({told})") from error
        if not isinstance(found, dict) or not found.keys() >= KEPT:
            raise self.wrong("a file that this option made")
        for name in sorted(self.settings):
            self._check_same(found, name)
        if found["stats_state"]["epochs"] > epochs:
            raise self.wrong(f"one of at most {epochs} epochs, as training: epochs")
        return found

    def _check_same(self, found: dict[str, Any], name: str) -> None:
        value, other = self.settings[name], found["settings"].get(name)
        if value != other:
            told = "" if name in ("model", "data") else f" ({value}; it has {other})"
            raise self.wrong(f"one with the same {name}{told}")

    def _validate(self, valid_data: Any) -> None:
        super()._validate(valid_data)
        if self.stats.best_ckpt_iter == self.stats.steps:
            self.best_state = {k: v.cpu().clone() for k, v in self.model.state_dict().items()}
        self._keep()

    def _keep(self) -> None:
        state = {
            "model_state": self.model.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "scaler_state": self.scaler and self.scaler.state_dict(),
            "scheduler_state": self.scheduler.state_dict(),
            "train_iter_state": self.train_iter.batch_sampler.get_state(),
            "stats_state": self.stats.state_dict(),
            "is_min_lr": self.stats.is_min_lr,
            "batches": self.train_iter.seen,
            "random": random_state(),
            "random_of_epoch": self.train_iter.random,
            "validations": self.report.read_text("utf-8") if self.report.exists() else "",
            "best_state": self.best_state,
            "settings": self.settings,
        }
        try:
            with open(self.part, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            self.part.replace(self.file)
        finally:
            self.part.unlink(missing_ok=True)

    def restore(self) -> None:
        """To be called within the interrupted epoch: its beginning changes some of the state."""
        assert self.restored
        self.init_from_checkpoint(self.file)
        # not among joeynmt's statistics; with either of the two training ends
        self.stats.is_min_lr = self.restored["is_min_lr"]
        self.stats.is_max_update = self.stats.steps >= self.args.max_updates
        self.report.write_text(self.restored["validations"], "utf-8")
        self.best_state = self.restored["best_state"]
        if self.best_state is not None:
            best = Path(self.model_dir) / f"{self.stats.best_ckpt_iter}.ckpt"
            torch.save({"model_state": self.best_state}, best)
            symlink_update(Path(best.name), best.with_name("best.ckpt"))
            if self.args.keep_best_ckpts > 0:
                self.ckpt_queue.append((self.stats.best_ckpt_score, best))
        set_random_state(self.restored["random"])
        self.restored = None


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def described(model: Model) -> str:
    """What a model is, but for its parameters' values: of tied ones only the first is named."""
    dropout = [(name, m.p) for name, m in model.named_modules() if isinstance(m, nn.Dropout)]
    trained = [(name, p.requires_grad) for name, p in model.named_parameters()]
    words = [digest(repr(vocabulary._itos)) for vocabulary in (model.src_vocab, model.trg_vocab)]
    return f"{model}\n{dropout}\n{trained}\n{words}"


class Batches:
    """A loader that begins where a restored training stopped, and counts.

    seen: batches of this epoch that were handed out; random: the state of the random number
    generators before the first of them, which making batches may draw from.
    """

    def __init__(self, loader: Any, training: ResumableTraining) -> None:
        self.loader = loader
        self.training = training
        self.batch_sampler = loader.batch_sampler
        self.seen = 0
        self.random = random_state()

    def __iter__(self) -> Iterator[Any]:
        restored, stats = self.training.restored, self.training.stats
        if restored:
            set_random_state(restored["random_of_epoch"])
        self.random = random_state()
        batches = iter(self.loader)
        self.seen = 0
        if restored:
            self.seen = sum(1 for _ in islice(batches, restored["batches"]))
            if self.seen < restored["batches"]:
                raise self.training.wrong(
                    f"one of an epoch of {self.seen} batches, as it has now, with subwords that "
                    "are drawn at random"
                )
            self.training.restore()
            if stats.is_min_lr or stats.is_max_update:
                return
        for batch in batches:
            self.seen += 1
            yield batch
