"""What makes the released joeynmt 2.3.0 know qrnn, and one thing that current torch took from it.

joeynmt has no registry, so extend() replaces names in its modules that it looks up when they are
used; every replacement hands on to the original what does not concern qrnn. The start-up hook
(qrnn/startup) calls extend() after `import joeynmt.model`, and extend_search() and
extend_training() after `import joeynmt.search` and `joeynmt.training`; where it is not active
`python -m qrnn.joeynmt` does, and qrnn.joeynmt calls the first two.

This module is loaded in the middle of `import joeynmt`: at its top it may import neither joeynmt
nor the rest of qrnn.
"""

import functools
import inspect
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

JOEYNMT = "2.3.0"
TORCH = ((2, 11), (2, 16))  # allowed from the first up to, but not including, the second
OURS = "qrnn"  # in a config: the type of an encoder and of a decoder, and beam_ranking
SIDES = ("src", "trg")  # of a config's data
LOGGER = "joeynmt.qrnn"  # only loggers below joeynmt get its train.log
CONFIG_ONLY = ("type", "embeddings")  # options that our classes do not see
CLASS_ONLY = ("emb_size", "emb_dropout", "encoder", "vocab_size")  # those that joeynmt adds
# what joeynmt has in model_dir when it begins to train, beside its tokenizers' own files; whatever
# ends a training that has begun, it leaves a checkpoint
BEFORE_TRAINING = {"config.yaml", "train.log", "src_vocab.txt", "trg_vocab.txt", "tensorboard"}


def extend() -> None:
    """Makes joeynmt know qrnn; to be called after `import joeynmt.model`. Twice is once.

    - `type: "qrnn"` builds a QRNNEncoder and a QRNNAttentionDecoder. Their weights start as QRNN's
      do; joeynmt's `initializer` is for the softmax layer and the embeddings only.
    - `training: bucket: N` makes batches of sentences of similar length, for any model.
    - `training: state_file: FILE` has all that training depends on; where the file exists, training
      goes on from there and ends as if undisturbed, for any model.
    - `testing: beam_ranking: "qrnn"` ranks by equation 9 of the QRNN paper, for any model (and
      extend_search()).
    - `random_seed` fixes the initial weights as well, of any model, where joeynmt's own command is
      run: joeynmt sets the seed only after it has drawn them.
    - `scheduling: "plateau"` works: torch 2.7 took the option `verbose` from the scheduler.

    Raises ImportError for other versions of joeynmt and torch than are allowed.
    """
    _check_versions()
    from joeynmt import builders, config, datasets, model
    from joeynmt.helpers_for_ddp import get_logger

    _replace(model, "RecurrentEncoder", _build_encoder)
    _replace(model, "RecurrentDecoder", _build_decoder)
    _replace(model, "initialize_model", _initialize_model)
    _replace(config, "parse_global_args", _parse_global_args)
    _replace(config, "parse_train_args", _parse_train_args)
    _replace(config, "parse_test_args", _parse_test_args)
    _replace(datasets.SentenceBatchSampler, "__iter__", _iterate)
    _replace(builders, "ReduceLROnPlateau", _reduce_on_plateau)
    get_logger(LOGGER)  # joeynmt's command gives train.log only to loggers that exist already


def extend_search() -> None:
    """What extend() cannot do where joeynmt.search is what imports joeynmt.model."""
    from joeynmt import search

    _replace(search, "beam_search", _beam_search)


def extend_training() -> None:
    """What extend() cannot do, because joeynmt.training is what imports joeynmt.model.

    Training on files that are not there says so. A model_dir in which training could not begin
    does not stay behind: joeynmt's command has made it, and would not make it again.
    """
    from joeynmt import training

    _replace(training, "train", _train)


def _train(
    original: Any, rank: int, world_size: Any, cfg: dict[str, Any], skip_test: bool = False
) -> None:
    try:
        _check_data(cfg)
        original(rank, world_size, cfg, skip_test)
    except BaseException:
        folder = Path(cfg["model_dir"])
        made = {path.name for path in folder.glob("*")} - _tokenizer_files(cfg.get("data"))
        if rank == 0 and "config.yaml" in made and made <= BEFORE_TRAINING:
            shutil.rmtree(folder)
        raise


def _tokenizer_files(data: Any) -> set[str]:
    """The names under which joeynmt copies them into model_dir."""
    sides = [(data or {}).get(side) or {} for side in SIDES]
    options = [(side.get("tokenizer_cfg") or {}).values() for side in sides]
    return {Path(value).name for values in options for value in values if isinstance(value, str)}


def _check_data(cfg: dict[str, Any]) -> None:
    """joeynmt itself would raise an AssertionError without words."""
    from joeynmt.config import ConfigurationError

    data = cfg.get("data") or {}
    for side in SIDES:
        if not isinstance(data.get(side), dict):
            raise ConfigurationError(f"data: {side}: expected a section, got {data.get(side)!r}")
    sides = [data[side] for side in SIDES]
    files = [side["voc_file"] for side in sides if side.get("voc_file")]
    if data.get("train") and data.get("dataset_type", "plain") == "plain":
        files += [f"{Path(data['train'])}.{side['lang']}" for side in sides]
    for file in files:
        if not Path(file).is_file():
            raise ConfigurationError(
                f"{file} does not exist: prepare it first, for IWSLT with `make data-iwslt`"
            )


def _check_versions() -> None:
    try:
        found = version("joeynmt")
    except PackageNotFoundError:
        found = "without metadata of its version"
        if find_spec("joeynmt") is None:
            raise ImportError(
                f"qrnn.joeynmt needs joeynmt {JOEYNMT}, which is not installed: README.md has "
                "the command"
            ) from None
    if found != JOEYNMT:
        raise ImportError(
            f"qrnn was tested with joeynmt {JOEYNMT} only, but the one installed is {found}. "
            f"Run 'pip install joeynmt=={JOEYNMT}', or set QRNN_STARTUP=0 to use joeynmt without "
            "qrnn."
        )
    low, high = TORCH
    if not low <= tuple(int(part) for part in torch.__version__.split(".")[:2]) < high:
        raise ImportError(
            f"qrnn was tested with joeynmt on torch >= {low[0]}.{low[1]}, < {high[0]}.{high[1]} "
            f"only, but the one installed is {torch.__version__}. Install one of these, or set "
            "QRNN_STARTUP=0 to use joeynmt without qrnn."
        )


def _replace(owner: object, name: str, ours: Callable[..., Any]) -> None:
    """Puts ours(original, ...) in the place of original(...)."""
    original = getattr(owner, name)
    if hasattr(original, "by_qrnn"):
        return

    @functools.wraps(original, updated=())
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return ours(original, *args, **kwargs)

    replaced.by_qrnn = True  # type: ignore[attr-defined]
    setattr(owner, name, replaced)


def _build_encoder(original: Any, **options: Any) -> Any:
    if options.get("type") != OURS:
        return original(**options)
    from qrnn.joeynmt.encoder import QRNNEncoder

    return _build("encoder", QRNNEncoder, options)


def _build_decoder(original: Any, **options: Any) -> Any:
    if options.get("type") != OURS:
        return original(**options)
    from qrnn.joeynmt.decoder import QRNNAttentionDecoder

    return _build("decoder", QRNNAttentionDecoder, options)


def _build(role: str, module: Any, options: dict[str, Any]) -> Any:
    """joeynmt hands every option of the config over, and lets pass what it does not know."""
    from joeynmt.config import ConfigurationError

    valid = inspect.signature(module).parameters
    options = {name: value for name, value in options.items() if name not in CONFIG_ONLY}
    unknown = sorted(set(options) - set(valid))
    if unknown:
        named = ", ".join(name for name in (*CONFIG_ONLY, *valid) if name not in CLASS_ONLY)
        raise ConfigurationError(
            f'{role} of type "{OURS}" has no option {", ".join(unknown)}; valid are {named}'
        )
    try:
        return module(**options)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f'{role} of type "{OURS}": {error}') from error


def _initialize_model(original: Any, model: Any, *args: Any, **kwargs: Any) -> None:
    """Runs when encoder and decoder are built, which is when their types can be compared."""
    from joeynmt.config import ConfigurationError
    from joeynmt.helpers_for_ddp import get_logger

    original(model, *args, **kwargs)
    parts = {"encoder": model.encoder, "decoder": model.decoder}
    ours = {name: part for name, part in parts.items() if hasattr(part, "reset_qrnn")}
    if not ours:
        return
    if len(ours) < len(parts):
        raise ConfigurationError(
            f'an encoder of type "{OURS}" needs a decoder of type "{OURS}", got '
            f"{type(model.decoder).__name__}"
        )
    for part in ours.values():
        part.reset_qrnn()
    get_logger(LOGGER).info("QRNN encoder and decoder built, with their own initial weights.")


def _parse_global_args(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Is called right before the model is built."""
    from joeynmt.helpers import set_seed

    parsed = original(*args, **kwargs)
    set_seed(parsed.seed)
    return parsed


def _parse_train_args(
    original: Any, cfg: dict[str, Any], mode: str = "train", **kwargs: Any
) -> Any:
    parsed = original(cfg, mode, **kwargs)
    if cfg.get("bucket") is not None:
        parsed = _bucketed(parsed, cfg["bucket"])
    if cfg.get("state_file") is None or mode != "train":
        return parsed
    from joeynmt import training  # which is not loaded yet when extend() is called

    from qrnn.joeynmt.resuming import ResumableConfig

    _replace(training, "TrainManager", _build_training)
    return ResumableConfig.of(parsed, cfg["state_file"])


def _build_training(original: Any, *args: Any, train_args: Any, **kwargs: Any) -> Any:
    manager = original
    if hasattr(train_args, "state_file"):
        from qrnn.joeynmt.resuming import ResumableTraining as manager
    return manager(*args, train_args=train_args, **kwargs)


def _bucketed(parsed: Any, bucket: Any) -> Any:
    from joeynmt.config import ConfigurationError

    from qrnn.joeynmt.batching import BucketSize

    if parsed.batch_type != "sentence":
        raise ConfigurationError(
            f'training: bucket needs batch_type: "sentence", got {parsed.batch_type!r}'
        )
    try:
        return parsed._replace(batch_size=BucketSize(parsed.batch_size, bucket))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"training: {error}") from error


def _iterate(original: Any, sampler: Any) -> Any:
    if not hasattr(sampler.batch_size, "bucket"):
        return original(sampler)
    from qrnn.joeynmt.batching import batches

    return batches(sampler)


def _parse_test_args(original: Any, cfg: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    parsed = original(cfg, *args, **kwargs)
    ranking = cfg.get("beam_ranking", "joeynmt")
    if ranking == "joeynmt":
        return parsed
    from joeynmt.config import ConfigurationError

    from qrnn.joeynmt.ranking import Alpha

    if ranking != OURS:
        raise ConfigurationError(
            f'testing: beam_ranking: expected "joeynmt" or "{OURS}", got {ranking!r}'
        )
    try:
        return parsed._replace(beam_alpha=Alpha(parsed.beam_alpha))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"testing: {error}") from error


def _beam_search(original: Any, *args: Any, **kwargs: Any) -> Any:
    if not hasattr(kwargs.get("alpha"), "factor"):
        return original(*args, **kwargs)
    from qrnn.joeynmt.ranking import beam_search

    return beam_search(original, *args, **kwargs)


def _reduce_on_plateau(original: Any, *args: Any, verbose: bool = False, **kwargs: Any) -> Any:
    return original(*args, **kwargs)
