"""What the released allennlp 2.10.1 needs on current Python, torch and libraries, and nothing else.

allennlp 2.10.1 was written for torch < 1.13. mend() runs before it is imported and puts right what
would stop the import; extend() runs when its commands are there and makes them know qrnn. Both are
called by the start-up hook (qrnn/startup) or, where that is not active, by qrnn.allennlp and
`python -m qrnn.allennlp`. Each mend is made only where it is needed, so that the pinned libraries
as well as newer ones work.

This module is loaded in the middle of `import allennlp`: at its top it may import neither allennlp
nor the rest of qrnn.
"""

import functools
import importlib
import inspect
import os
import shutil
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator, List, NoReturn, Union

import numpy
import torch

ALLENNLP = "2.10.1"
TORCH = ((2, 11), (2, 16))  # allowed from the first up to, but not including, the second
# Files that show that training has begun where `begin` below is not called: in another process, and
# by a trainer that is not AllenNLP's.
BEGUN = ("out_worker*.log", "run.json", "metrics*.json", "*.th", "*.tar.gz")


@functools.cache
def mend() -> None:
    """Makes `import allennlp` and all its submodules work; to be called before the first of them.

    Raises ImportError for other versions of allennlp and torch than are allowed.
    """
    _check_versions()
    _mend_torchvision()
    _mend_huggingface_hub()
    _mend_transformers()
    _mend_recover()


def extend() -> None:
    """Makes the command `allennlp` know qrnn; to be called after `import allennlp.commands`.

    - The plugin qrnn.allennlp is loaded without a --include-package or an .allennlp_plugins file.
    - `allennlp train` without -s writes to runs/<name of the config>. A folder that the run made is
      removed if the run fails before training begins (for want of data, say), since it would stop
      the next run; so is that of a --dry-run without -s. Training in several processes counts as
      begun when these start.
    - An option that the trainer does not know is an error, and so is a missing weights file.
    - `allennlp train --recover` goes on from the newest undamaged checkpoint, with a best.th of the
      best epoch; it is an error if that epoch's weights are lost.
    - The scheduler "reduce_on_plateau" works: torch 2.7 took the option `verbose` from it.
    """
    from allennlp.common import plugins

    if "qrnn.allennlp" not in plugins.DEFAULT_PLUGINS:
        plugins.DEFAULT_PLUGINS = (*plugins.DEFAULT_PLUGINS, "qrnn.allennlp")
        _register_train()
        _register_reduce_on_plateau()


def _check_versions() -> None:
    try:
        found = version("allennlp")
    except PackageNotFoundError:
        found = "without metadata of its version"
        if find_spec("allennlp") is None:
            raise ImportError(
                f"qrnn.allennlp needs allennlp {ALLENNLP}, which is not installed: README.md has "
                "the command"
            ) from None
    if found != ALLENNLP:
        raise ImportError(
            f"qrnn was tested with allennlp {ALLENNLP} only, but the one installed is {found}. "
            f"Run 'pip install --no-deps allennlp=={ALLENNLP}', or set QRNN_STARTUP=0 to use "
            "allennlp without qrnn."
        )
    low, high = TORCH
    if not low <= tuple(int(part) for part in torch.__version__.split(".")[:2]) < high:
        raise ImportError(
            f"qrnn was tested with allennlp on torch >= {low[0]}.{low[1]}, < {high[0]}.{high[1]} "
            f"only, but the one installed is {torch.__version__}. Install one of these, or set "
            "QRNN_STARTUP=0 to use allennlp without qrnn."
        )


class Stub(ModuleType):
    """Stands for what allennlp imports and text models never use. Using it is an ImportError."""

    def __init__(self, name: str, missing: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # importlib.util.find_spec wants one
        self._missing = missing

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{self.__name__}.{name} is not available: {self._missing}")

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise ImportError(f"{self.__name__} is not available: {self._missing}")


def _mend_torchvision() -> None:
    """allennlp imports torchvision for images. It has no CPU wheel on PyPI."""
    import transformers.utils

    # It looks once and keeps the answer; later it would take the stub for the real torchvision.
    transformers.utils.is_torchvision_available()
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:  # RuntimeError: the CUDA wheel on a CPU torch
        missing = f"allennlp needs torchvision for images, and it cannot be imported ({error})"
        parent = None
        for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes"):
            sys.modules[name] = stub = Stub(name, missing)
            if parent is not None:
                setattr(parent, name.rpartition(".")[2], stub)
            parent = stub


def _mend_huggingface_hub() -> None:
    """allennlp imports HfFolder and Repository for `allennlp push-to-hf`."""
    import huggingface_hub

    for name in ("HfFolder", "Repository"):
        if not hasattr(huggingface_hub, name):
            missing = "`allennlp push-to-hf` needs huggingface_hub < 1"
            setattr(huggingface_hub, name, Stub(f"huggingface_hub.{name}", missing))


def _mend_transformers() -> None:
    """allennlp derives the optimizer "huggingface_adamw" from transformers.AdamW."""
    import transformers

    if hasattr(transformers, "AdamW"):
        return

    class AdamW(torch.optim.AdamW):
        def __init__(self, *args: object, **kwargs: object) -> None:
            raise ImportError(
                'the optimizer "huggingface_adamw" needs transformers < 4.50; use "adamw", '
                "which is torch's own"
            )

    # transformers 5 makes its package module anew in processing_utils, which would undo the mend.
    importlib.import_module("transformers.processing_utils")
    sys.modules["transformers"].AdamW = AdamW  # type: ignore[attr-defined]


def _mend_recover() -> None:
    """`allennlp train --recover` loads metrics that are NumPy scalars; torch >= 2.6 trusts none."""
    codes = numpy.typecodes["AllFloat"] + numpy.typecodes["AllInteger"] + "?"
    scalar: Any = numpy.float64(0).__reduce__()[0]
    dtypes = {type(numpy.dtype(code)) for code in codes}
    torch.serialization.add_safe_globals([scalar, numpy.dtype, *dtypes])


def _check_config(config: Any) -> None:
    """Refuses what AllenNLP notices late or never: a weights file that is missing, before which it
    reads all data, and an option that its trainer does not know, a misspelt one say."""
    from allennlp.common.checks import ConfigurationError
    from allennlp.training import GradientDescentTrainer

    for file in _weights(config):
        if "://" not in file and not Path(file).exists():
            raise ConfigurationError(
                f"weights_file_path: {file} does not exist: train what it comes from first"
            )
    given = config.get("trainer", {})
    if isinstance(given, str):
        given = {"type": given}
    if given.get("type", "gradient_descent") == "gradient_descent":
        known = inspect.signature(GradientDescentTrainer.from_partial_objects).parameters
        # run_sanity_checks: the old name of run_confidence_checks, which AllenNLP still takes
        unknown = given.keys() - (known.keys() - {"kwargs"}) - {"type", "run_sanity_checks"}
        if unknown:
            raise ConfigurationError(f"trainer: unknown options {', '.join(sorted(unknown))}")


def _weights(config: Any) -> Iterator[str]:
    """The files of all initializers in a config."""
    if isinstance(config, dict):
        if isinstance(file := config.get("weights_file_path"), str):
            yield file
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from _weights(part)


def _mend_checkpoints(directory: Path) -> None:
    from allennlp.common.checks import ConfigurationError

    from qrnn.allennlp import recovery

    checkpoint = recovery.newest_checkpoint(directory)
    if checkpoint and not recovery.restore_best(directory, checkpoint):
        raise ConfigurationError(
            f"{directory}/best.th is missing or damaged, and the newest checkpoint that is whole "
            "is not of the best epoch: its weights are lost. Train anew, with --force"
        )


def _register_train() -> None:
    from allennlp.commands.subcommand import Subcommand
    from allennlp.commands.train import Train
    from allennlp.common import Params
    from allennlp.training import GradientDescentTrainer

    begun = False
    try_train = GradientDescentTrainer._try_train  # is after on_start, where a callback may refuse

    @functools.wraps(try_train)
    def begin(self: Any) -> Any:
        nonlocal begun
        begun = True
        return try_train(self)

    GradientDescentTrainer._try_train = begin

    @Subcommand.register("train", exist_ok=True)
    class TrainIntoRuns(Train):
        def add_subparser(self, parser: "_SubParsersAction[ArgumentParser]") -> ArgumentParser:
            subparser: ArgumentParser = super().add_subparser(parser)
            train = subparser.get_default("func")

            def train_into_runs(args: Namespace) -> None:
                nonlocal begun
                begun = False
                named = args.serialization_dir is not None
                if not named:
                    args.serialization_dir = os.path.join("runs", Path(args.param_path).stem)
                directory, new = Path(args.serialization_dir), False
                _check_config(Params.from_file(args.param_path, args.overrides).as_dict(quiet=True))
                if args.recover:
                    _mend_checkpoints(directory)
                else:
                    try:  # of two processes that start at once only one makes it, and may remove it
                        directory.mkdir(parents=True)
                        new = True
                    except FileExistsError:
                        pass
                try:
                    train(args)
                except BaseException:
                    if new and not begun and not any(any(directory.glob(name)) for name in BEGUN):
                        shutil.rmtree(directory, ignore_errors=True)
                    raise
                if new and args.dry_run and not named:
                    shutil.rmtree(directory, ignore_errors=True)

            option = subparser._option_string_actions["--serialization-dir"]
            option.required = False
            option.help = f"{option.help} (default = runs/<name of param_path>)"
            subparser.set_defaults(func=train_into_runs)
            return subparser


def _register_reduce_on_plateau() -> None:
    from allennlp.training.learning_rate_schedulers import (
        LearningRateScheduler,
        ReduceOnPlateauLearningRateScheduler,
    )
    from allennlp.training.optimizers import Optimizer

    @LearningRateScheduler.register("reduce_on_plateau", exist_ok=True)
    class ReduceOnPlateauWithoutVerbose(ReduceOnPlateauLearningRateScheduler):
        def __init__(
            self,
            optimizer: Optimizer,
            mode: str = "min",
            factor: float = 0.1,
            patience: int = 10,
            threshold_mode: str = "rel",
            threshold: float = 1e-4,
            cooldown: int = 0,
            min_lr: Union[float, List[float]] = 0,
            eps: float = 1e-8,
        ) -> None:
            options: Any = {
                "mode": mode,
                "factor": factor,
                "patience": patience,
                "threshold_mode": threshold_mode,
                "threshold": threshold,
                "cooldown": cooldown,
                "min_lr": min_lr,
                "eps": eps,
            }
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
            # The parent's __init__ is the one that does not work.
            super(ReduceOnPlateauLearningRateScheduler, self).__init__(scheduler)
