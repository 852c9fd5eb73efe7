"""The whole replication: python scripts/reproduce.py, as `make reproduce-all` calls it

Measures the speed, prepares the data and word vectors, trains and evaluates the rows of a profile,
and renders the report with whatever else there are records of. First it shows the plan. What is
finished is not repeated, what was interrupted goes on: start it again after anything. A step that
fails stops only those that need it.

    full   the configs as they are: the paper's models; the default where there is a GPU
    cpu    smaller ones, or fewer epochs, 20 minutes to two hours each: the rows *-cpu; the default
           without a GPU
    quick  tiny ones on generated samples, into runs/quick: minutes

Each step is a command with a log of its own beside its run. Every GPU takes one at a time; without
one there is one at a time, in quick two. The benchmarks come first, and have the machine to
themselves.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import benchmark
import experiment
import quick
import records
import timing
import torch
import vectors
from fetch import is_url
from files import read_json

PARTS = ("bench", "imdb", "ptb", "iwslt")
PROFILES = ("quick", "cpu", "full")
HEARTBEAT = 300.0  # seconds between two lines about what is running
DISK_FULL = ("No space left on device", "PytorchStreamWriter failed writing file")
GLOVE = "glove.840B.300d"
VECTORS = {"full": GLOVE, "cpu": vectors.WORD2VEC_NAME}


class Row(NamedTuple):
    """A row of a table.

    hours: of training on a CPU, roughly, for rows that have no record: from the config's cost.
    gigabytes: of its run, computed: parameters, as often as checkpoints, what the optimizer keeps,
    best.th and the archive hold them. None where it is not known.
    needs: runs that come before it. In needs, name and overrides {runs} is the folder of all runs,
    {seed} the row's seed, and {vectors} "-" and the name of IMDb's word vectors, or nothing for
    GloVe.
    encoders: of IMDb's rows, those parts of the config that read the word vectors.
    """

    experiment: str
    name: str
    config: str
    hours: float | None = None
    gigabytes: float | None = None
    overrides: Mapping[str, Any] = {}
    note: str = ""
    needs: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ("model.seq2vec_encoder",)

    @property
    def part(self) -> str:
        """Of PARTS."""
        return self.experiment.split("-")[0]


# of configs/imdb_pretrained.jsonnet and what is built on it
LM_WEIGHTS = {
    "forward": "model.initializer.regexes.0.1.weights_file_path",
    "backward": "model.initializer.regexes.1.1.weights_file_path",
}


def language_model(
    name: str, config: str, overrides: Mapping[str, Any] = {}, note: str = ""
) -> Row:
    """Of IMDb's reviews, for a classifier to start from."""
    return Row("imdb-lm", name, config, 1, 0.4, overrides, note, encoders=("model.rnn",))


def from_language_models(
    name: str,
    config: str,
    hours: float,
    gigabytes: float,
    starts: Mapping[str, str],
    overrides: Mapping[str, Any] = {},
    note: str = "",
) -> Row:
    """starts: for each direction of LM_WEIGHTS that the classifier reads in, its language model."""
    runs = {way: f"imdb-lm-{model}-seed{{seed}}" for way, model in starts.items()}
    weights = {LM_WEIGHTS[way]: f"{{runs}}/{run}/best.th" for way, run in runs.items()}
    encoder = "model.seq2vec_encoder"
    reads = (encoder,) if len(runs) == 1 else tuple(f"{encoder}.{way}_encoder" for way in runs)
    needs = tuple(runs.values())
    return Row("imdb", name, config, hours, gigabytes, {**overrides, **weights}, note, needs, reads)


FORWARD = {"forward": "forward{vectors}"}
BOTH = {**FORWARD, "backward": "backward{vectors}"}
FULL = (
    Row("imdb", "k2{vectors}", "configs/imdb.jsonnet", 10, 0.9),
    Row("imdb", "k4{vectors}", "configs/imdb_k4.jsonnet", None, 0.9),
    Row("imdb", "lstm{vectors}", "configs/imdb_lstm.jsonnet", None, 0.9),
    Row("imdb", "pooled{vectors}", "configs/imdb_pooled.jsonnet", 10, 1.2),
    language_model("forward{vectors}", "configs/imdb_lm.jsonnet"),
    language_model("backward{vectors}", "configs/imdb_lm_reverse.jsonnet"),
    from_language_models("pretrained{vectors}", "configs/imdb_pretrained.jsonnet", 2, 1.2, FORWARD),
    from_language_models(
        "pretrained_both{vectors}", "configs/imdb_pretrained_both.jsonnet", 3, 1.2, BOTH
    ),
    from_language_models("adversarial{vectors}", "configs/imdb_best.jsonnet", 4, 1.2, FORWARD),
    Row("ptb", "qrnn", "configs/ptb.jsonnet", 36, 0.3, {"model.rnn.zoneout": 0}),
    Row("ptb", "zoneout", "configs/ptb.jsonnet", 36, 0.3),
    Row("ptb", "lstm", "configs/ptb_lstm.jsonnet", 48, 0.3),
    Row("ptb", "replication", "configs/ptb_replication.jsonnet", None, 4),
    Row("ptb", "awd", "configs/ptb_awd.jsonnet", None, 0.6),
    Row(
        "ptb",
        "finetuned",
        "configs/ptb_awd_finetune.jsonnet",
        None,
        0.6,
        {
            "vocabulary.directory": "{runs}/ptb-awd-seed{seed}/vocabulary",
            "model.archive_file": "{runs}/ptb-awd-seed{seed}/model.tar.gz",
        },
        needs=("ptb-awd-seed{seed}",),
    ),
    Row("iwslt", "qrnn", "configs/iwslt_char.yaml", 7.5, 0.4),
    Row("iwslt", "lstm", "configs/iwslt_char_lstm.yaml", None, 0.4),
)

SMALL_PTB = {
    "model.rnn.input_size": 200,
    "model.rnn.hidden_size": 200,
    "trainer.optimizer.lr": 0.35,
    "trainer.num_epochs": 8,
    "trainer.learning_rate_scheduler": {
        "type": "multi_step",
        "milestones": [5, 6, 7],
        "gamma": 0.5,
    },
}
SMALL_PTB_NOTE = (
    "8 epochs instead of 72, 2 x 200 units, rate 0.35, halved in each of the last three epochs"
)
SMALL_IWSLT = {
    "use_cuda": False,
    "training.logging_freq": 100,
    "model.encoder.num_layers": 2,
    "model.decoder.num_layers": 2,
    "model.encoder.embeddings.embedding_dim": 64,
    "model.decoder.embeddings.embedding_dim": 64,
    "model.decoder.hidden_size": 192,
}
SMALL_IWSLT_QRNN = {
    **SMALL_IWSLT,
    "training.validation_freq": 3000,
    "model.encoder.hidden_size": 192,
    "training.updates": 12000,
}
SMALL_IWSLT_LSTM = {
    **SMALL_IWSLT,
    "training.validation_freq": 500,
    "model.encoder.hidden_size": 96,
    "training.updates": 1500,
    "testing.beam_size": 1,
}
IWSLT_NOTE = "2 layers of 192 units, about an hour of one CPU core"
SMALL_IMDB = {
    "trainer.num_epochs": 2,
    "trainer.callbacks": ["run_file", "random_state", "bfloat16_autocast"],
}
IMDB_NOTE = "2 epochs instead of at most 20, trained in bfloat16"
IMDB_LM_NOTE = "2 epochs instead of at most 3, trained in bfloat16"
FORWARD_CPU = {"forward": "forward-cpu{vectors}"}
BOTH_CPU = {**FORWARD_CPU, "backward": "backward-cpu{vectors}"}
BFLOAT16 = {"trainer.callbacks": SMALL_IMDB["trainer.callbacks"]}
SHORT_PTB = {
    "trainer.num_epochs": 18,
    "trainer.learning_rate_scheduler": {
        "type": "multi_step",
        "milestones": list(range(4, 18)),
        "gamma": 0.78,
    },
    **BFLOAT16,
}
SHORT_PTB_NOTE = (
    "18 epochs instead of 72, the rate 1 for 4 of them and then 0.78 times the last; trained in "
    "bfloat16"
)
ONE_EPOCH = {"trainer.num_epochs": 1, **BFLOAT16}, "1 epoch instead of 2, trained in bfloat16"
# How the committed records were made, but that there the classifiers of other seeds than 1 started
# from the language model of seed 1 or 2, as their notes say.
CPU = (
    Row("imdb", "k2-cpu{vectors}", "configs/imdb.jsonnet", 2, 0.4, SMALL_IMDB, IMDB_NOTE),
    Row("imdb", "k4-cpu{vectors}", "configs/imdb_k4.jsonnet", 2, 0.4, SMALL_IMDB, IMDB_NOTE),
    Row("imdb", "lstm-cpu{vectors}", "configs/imdb_lstm.jsonnet", 2, 0.4, SMALL_IMDB, IMDB_NOTE),
    # its records are older than the config's name
    Row("imdb", "best-cpu{vectors}", "configs/imdb_pooled.jsonnet", 2, 0.4, SMALL_IMDB, IMDB_NOTE),
    language_model("forward-cpu{vectors}", "configs/imdb_lm.jsonnet", *ONE_EPOCH),
    language_model("backward-cpu{vectors}", "configs/imdb_lm_reverse.jsonnet", *ONE_EPOCH),
    language_model(
        "forward-cpu{vectors}-2epochs", "configs/imdb_lm.jsonnet", BFLOAT16, "trained in bfloat16"
    ),
    from_language_models(
        "pretrained-cpu{vectors}",
        "configs/imdb_pretrained.jsonnet",
        2,
        0.7,
        FORWARD_CPU,
        SMALL_IMDB,
        IMDB_LM_NOTE,
    ),
    from_language_models(
        "pretrained_both-cpu{vectors}",
        "configs/imdb_pretrained_both.jsonnet",
        3,
        0.7,
        BOTH_CPU,
        SMALL_IMDB,
        IMDB_LM_NOTE,
    ),
    from_language_models(
        "pretrained-lm2-cpu{vectors}",
        "configs/imdb_pretrained.jsonnet",
        2,
        0.7,
        {"forward": "forward-cpu{vectors}-2epochs"},
        BFLOAT16,
        "3 epochs, from a language model of 2 epochs; trained in bfloat16",
    ),
    from_language_models(
        "adversarial-cpu{vectors}",
        "configs/imdb_best.jsonnet",
        4,
        0.7,
        FORWARD_CPU,
        SMALL_IMDB,
        IMDB_LM_NOTE,
    ),
    from_language_models(
        "adversarial-lm2-cpu{vectors}",
        "configs/imdb_best.jsonnet",
        4,
        0.7,
        {"forward": "forward-cpu{vectors}-2epochs"},
        BFLOAT16,
        "3 epochs, from a language model of 2 epochs; trained in bfloat16",
    ),
    Row(
        "ptb",
        "qrnn-cpu",
        "configs/ptb.jsonnet",
        2,
        0.3,
        {"model.rnn.zoneout": 0, **SHORT_PTB},
        SHORT_PTB_NOTE,
    ),
    Row("ptb", "lstm-18epochs-cpu", "configs/ptb_lstm.jsonnet", 2, 0.3, SHORT_PTB, SHORT_PTB_NOTE),
    Row("ptb", "zoneout-cpu", "configs/ptb.jsonnet", None, 0.1, SMALL_PTB, SMALL_PTB_NOTE),
    Row("ptb", "lstm-cpu", "configs/ptb_lstm.jsonnet", None, 0.1, SMALL_PTB, SMALL_PTB_NOTE),
    Row("iwslt", "qrnn-cpu", "configs/iwslt_char.yaml", 1, 0.1, SMALL_IWSLT_QRNN, IWSLT_NOTE),
    Row(
        "iwslt",
        "lstm-cpu",
        "configs/iwslt_char_lstm.yaml",
        1,
        0.1,
        SMALL_IWSLT_LSTM,
        f"{IWSLT_NOTE}; decoded greedily",
    ),
)
SUITES = tuple(benchmark.SUITES)
SUITES_ON_CPU = tuple(name for name in SUITES if name != "memory")
SUITES_QUICK = ("growth",)


@dataclass(frozen=True)
class Step:
    """One command of Python.

    result: the file whose existence says that the step is done; None for one that is always run.
    needs: names of steps that come before it. hours, gigabytes: estimates; source: of the hours.
    """

    name: str
    command: tuple[str, ...]
    result: Path | None
    needs: tuple[str, ...] = ()
    hours: float | None = None
    source: str = ""
    gigabytes: float | None = None

    @property
    def done(self) -> bool:
        return self.result is not None and self.result.exists()


class Outcome(NamedTuple):
    state: str  # "done", "failed", "interrupted", "not started"
    detail: str = ""


@dataclass(frozen=True)
class Options:
    """What the command line says, all of it decided."""

    only: tuple[str, ...]
    profile: str
    seeds: int
    mirror: str | None
    vectors: str | None
    lower: bool
    runs: Path
    results: Path
    device: str


def main() -> None:
    options, dry_run = parsed()
    gpus = [] if options.profile == "cpu" else visible_gpus()
    try:
        phases = plan(options)
    except records.RecordError as error:
        sys.exit(f"error: {error}")
    steps = [step for phase in phases for step in phase]
    print(table(steps, options, gpus))
    if dry_run:
        return
    environments = places(options, gpus)
    outcomes: dict[str, Outcome] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops it as Ctrl-C does
    interrupted = False
    try:
        for phase in phases:
            several = environments if phase is phases[1] else environments[:1]
            Runner(phase, options.runs, several, outcomes).run()
    except KeyboardInterrupt:
        interrupted = True
    print(summary(steps, outcomes, options.runs))
    if options.profile == "quick":
        quick.show()
    sys.exit(1 if interrupted or any(o.state != "done" for o in outcomes.values()) else 0)


def parsed() -> tuple[Options, bool]:
    """The options, and whether the plan is all that is wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(PARTS)}; all of them")
    parser.add_argument("--profile", choices=PROFILES)
    parser.add_argument("--seeds", type=int, help="how many, from 1 on: by default 1")
    parser.add_argument("--mirror", help="folder or URL prefix that holds the archives")
    parser.add_argument(
        "--vectors", choices=(*vectors.PUBLISHED, vectors.WORD2VEC_NAME), metavar="SET",
        help=f"word vectors for IMDb, by default {VECTORS}; see scripts/vectors.py",
    )  # fmt: skip
    parser.add_argument("--lower", action="store_true", help="lower-case the translation data")
    parser.add_argument(
        "--results",
        type=records.report_folder,
        help="folder of the records: what has none in it is to do, but a training that runs/ holds "
        f"is not repeated; the report is rendered into it; by default {records.RESULTS}",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan, do nothing")
    given = parser.parse_args()
    only = tuple(given.only.split(",")) if given.only else PARTS
    for part in only:
        if part not in PARTS:
            parser.error(f"--only: expected some of {', '.join(PARTS)}, got {part!r}")
    if given.seeds is not None and given.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {given.seeds}")
    if given.results and given.results.exists() and not given.results.is_dir():
        parser.error(f"--results: {given.results} is no folder")
    if (mirror := given.mirror) and not is_url(mirror) and not Path(mirror).expanduser().is_dir():
        parser.error(
            f"--mirror: there is no folder {mirror}, nor does it start with http:// or https://"
        )
    profile = given.profile or ("full" if torch.cuda.is_available() else "cpu")
    small = profile == "quick"
    for name in ("seeds", "mirror", "vectors", "lower", "results"):
        if small and getattr(given, name):
            parser.error(f"--{name}: not with --profile quick")
    options = Options(
        only=only,
        profile=profile,
        seeds=given.seeds or 1,
        mirror=given.mirror,
        vectors=given.vectors or VECTORS.get(profile),
        lower=given.lower,
        runs=quick.RUNS if small else Path("runs"),
        results=quick.RESULTS if small else given.results or records.RESULTS,
        device=records.device("cpu" if profile == "cpu" else None),
    )
    return options, given.dry_run


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    return [str(n) for n in range(torch.cuda.device_count())]


def places(options: Options, gpus: Sequence[str]) -> list[dict[str, str]]:
    """The environment of each step that runs at the same time."""
    if options.profile == "cpu":
        # what a record says was measured on a CPU is, even where there is a GPU
        return [{"CUDA_VISIBLE_DEVICES": ""}]
    if options.profile == "quick" and not gpus:
        # small models gain little by a second thread, and much of the time is spent in importing
        return [{"OMP_NUM_THREADS": "1"}] * min(2, os.cpu_count() or 1)
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{}]


def plan(options: Options) -> tuple[list[Step], list[Step], list[Step]]:
    """Benchmarks, experiments, report: each phase begins when the one before is over.

    Raises records.RecordError for a record that does not fit its schema.
    """
    known = records.load(records.RESULTS) | records.load(options.results)
    report = []  # samples get none
    if options.profile == "quick":
        experiments = quick_steps(options)
    else:
        experiments = data_steps(options)
        rows = FULL if options.profile == "full" else CPU
        for seed in range(1, options.seeds + 1):
            for row in rows:
                if row.part in options.only:
                    experiments.append(training(row, seed, options, known))
            if options.profile == "full" and "ptb" in options.only:
                experiments.append(caching(seed, options, known))
        experiments = without_unused(experiments)
        command = ("scripts/report.py", *elsewhere(options))
        report.append(Step("report", command, None, hours=0.005, gigabytes=0.0))
    first = benchmarks(options, known) if "bench" in options.only else []
    return first, experiments, report


def without_unused(steps: Sequence[Step]) -> list[Step]:
    """Without data that no step after them is still to read."""
    kept: list[Step] = []
    for step in reversed(steps):
        used = any(step.name in later.needs for later in kept if not later.done)
        if step.done or used or not step.name.startswith(("data-", "vectors-")):
            kept.append(step)
    return kept[::-1]


def data_steps(options: Options) -> list[Step]:
    """Sizes and times are without the download."""
    mirror = ("--mirror", options.mirror) if options.mirror else ()
    found = []
    for name, minutes, gigabytes in (("imdb", 2, 0.22), ("ptb", 0.1, 0.01), ("iwslt", 0.5, 0.06)):
        if name in options.only:
            lower = ("--lower",) if name == "iwslt" and options.lower else ()
            command = (f"scripts/{name}.py", *mirror, *lower)
            meta = Path(f"data/{name}/meta.json")
            stale = lower and meta.exists() and not read_json(meta)["lower"]
            done = None if stale else meta
            hours, source = minutes / 60, "and the download"
            found.append(Step(f"data-{name}", command, done, (), hours, source, gigabytes))
    if "imdb" in options.only and options.vectors:
        learnt = options.vectors == vectors.WORD2VEC_NAME
        published = vectors.PUBLISHED.get(options.vectors)
        about, reviews = Path(f"data/vectors/{options.vectors}.json"), Path("data/imdb/meta.json")
        stale = about.exists() and not (
            reviews.exists() and read_json(about)["data"] == read_json(reviews)["files"]
        )
        found.append(
            Step(
                f"vectors-{options.vectors}",
                ("scripts/vectors.py", "--set", options.vectors, *mirror),
                None if stale else about,
                ("data-imdb",),
                0.25 if learnt else None,
                "one CPU core" if learnt else "",
                0.8 if published is None else (published.size / 1e9 + 0.8),
            )
        )
    return found


def training(row: Row, seed: int, options: Options, known: Mapping[str, Any]) -> Step:
    overrides, needs, suffix = dict(row.overrides), [f"data-{row.part}"], ""
    if row.part == "imdb":
        overrides |= vector_overrides(row, options.vectors)
        if options.vectors:
            needs.append(f"vectors-{options.vectors}")
        if options.vectors not in (None, GLOVE):
            suffix = f"-{options.vectors.replace('.', '-')}"
    fields = {"runs": options.runs, "seed": seed, "vectors": suffix}
    name = row.name.format(**fields)
    needs += [other.format(**fields) for other in row.needs]
    filled = {
        key: value.format(**fields) if isinstance(value, str) else value
        for key, value in overrides.items()
    }
    result = records.path(options.results, row.experiment, name, seed)
    command = ["scripts/experiment.py", row.experiment, row.config, "--row", name]
    command += ["--seed", str(seed)]
    if filled:
        command += ["--overrides", json.dumps(filled)]
    if row.note:
        command += ["--note", row.note]
    command += elsewhere(options)
    hours, source = estimate(result, row.hours, options, known)
    return Step(result.stem, tuple(command), result, tuple(needs), hours, source, row.gigabytes)


def vector_overrides(row: Row, name: str | None) -> dict[str, Any]:
    """What configs/imdb*.jsonnet, of which GloVe's largest set is the default, need for another."""
    if name == GLOVE:
        return {}
    file = f"data/vectors/{name}.txt.gz" if name else None
    if row.experiment == "imdb-lm":
        embedder = "model.embedding"
        found: dict[str, Any] = {}
    else:
        embedder = "model.text_field_embedder.token_embedders.tokens"
        found = {"vocabulary.pretrained_file": file}
    found[f"{embedder}.pretrained_file"] = file
    if name in vectors.PUBLISHED and (size := vectors.PUBLISHED[name].dimension) != 300:
        found[f"{embedder}.embedding_dim"] = size
        found |= {f"{encoder}.input_size": size for encoder in row.encoders}
    return found


def caching(seed: int, options: Options, known: Mapping[str, Any]) -> Step:
    result = records.path(options.results, "ptb", "cache", seed)
    base = f"ptb-finetuned-seed{seed}"
    hours, source = estimate(result, None, options, known)
    command = ["scripts/ptb_cache.py", str(options.runs / base)]
    command += elsewhere(options)
    return Step(result.stem, tuple(command), result, (base,), hours, source, 0.0)


def estimate(
    result: Path, hours: float | None, options: Options, known: Mapping[str, Any]
) -> tuple[float | None, str]:
    """Hours of training and where that is known from: the same row's record of any seed, then the
    config, whose cost is a CPU's."""
    same_row = result.stem.rsplit("-seed", 1)[0] + "-seed"
    for name, record in known.items():
        if name.startswith(same_row):
            other = "" if record["device"] == options.device else f", {record['device']}"
            return record["wall_seconds"] / 3600, f"{name}{other}"
    if hours is not None and options.device.startswith("CPU"):
        return hours, "config, on a CPU"
    return None, ""


def elsewhere(options: Options) -> list[str]:
    return [] if records.is_default(options.results) else ["--results", str(options.results)]


def quick_steps(options: Options) -> list[Step]:
    # two at a time: what takes longest, the last, begins first
    names = [name for name in reversed(quick.DATA) if name in options.only]
    found = [
        Step(
            f"data-{name}",
            ("scripts/quick.py", "--prepare", name),
            quick.SAMPLE / name / "meta.json",
            gigabytes=0.0,
        )
        for name in names
    ]
    for name, config, row in reversed(quick.ROWS):
        if name in names:
            command = ["scripts/experiment.py", name, config, "--row", row]
            command += ["--runs", str(options.runs), *elsewhere(options)]
            result = records.path(options.results, name, row, seed=1)
            needs = (f"data-{name}",)
            source = "config, on two CPU cores"
            found.append(Step(result.stem, tuple(command), result, needs, 1 / 60, source, 0.0))
    return found


def benchmarks(options: Options, known: Mapping[str, Any]) -> list[Step]:
    """One suite a step."""
    on_cpu = options.device.startswith("CPU")
    suites = SUITES_ON_CPU if on_cpu else SUITES
    short: tuple[str, ...] = ()
    if options.profile == "quick":
        suites, short = SUITES_QUICK, ("--seconds", "0.1")
    row = timing.Cpu.row if on_cpu else timing.Cuda().row
    found = []
    for suite in suites:
        result = records.path(options.results, f"bench-{suite}", row, seed=None)
        command = ("scripts/benchmark.py", suite, *short, *elsewhere(options))
        before = None if short else known.get(result.name)
        hours, source = (before["wall_seconds"] / 3600, result.name) if before else (None, "")
        found.append(Step(f"bench-{suite}", command, result, (), hours, source, 0.0))
    return found


class Runner:
    """Runs steps, as many at once as there are environments, each in an environment of its own.

    steps: in an order in which everything comes after what it needs. logs: folder of NAME.log, to
    which a step's output is appended. A log is locked for as long as anything that writes it lives,
    also what a killed runner has left behind: a step is not begun before that has ended.
    outcomes: filled while it runs.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        logs: Path,
        environments: Sequence[Mapping[str, str]],
        outcomes: dict[str, Outcome],
    ) -> None:
        self.waiting = [step for step in steps if not step.done]
        self.logs = logs
        self.environments = environments
        self.outcomes = outcomes
        self.outcomes.update({s.name: Outcome("done", "before") for s in steps if s.done})
        self.running: dict[str, subprocess.Popen[bytes] | None] = {}  # None: about to begin
        self.stopped = False
        self.changed = threading.Condition()

    def run(self) -> None:
        """Raises KeyboardInterrupt, after everything that runs has been killed."""
        threads = [
            threading.Thread(target=self._work, args=(environment,), daemon=True)
            for environment in self.environments
        ]
        spoken = time.monotonic()
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.1)
                if time.monotonic() - spoken > HEARTBEAT:
                    spoken = time.monotonic()
                    for name in list(self.running):
                        say(f"{name}: {last_line(self.logs / f'{name}.log')}")
        except KeyboardInterrupt:
            with self.changed:
                self.stopped = True
                for process in self.running.values():
                    if process and process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
            raise

    def _work(self, environment: Mapping[str, str]) -> None:
        while step := self._next():
            try:
                outcome = self._attempt(step, environment)
            except Exception as error:  # a thread that ends would leave the others waiting
                outcome = Outcome("failed", f"{type(error).__name__}: {error}")
            with self.changed:
                del self.running[step.name]
                self.outcomes[step.name] = outcome
                self.changed.notify_all()
            say(f"{step.name}: {outcome.state} {outcome.detail}")

    def _next(self) -> Step | None:
        """Waits for a step that has all it needs; None when there will be no more."""
        with self.changed:
            while not self.stopped:
                for step in list(self.waiting):
                    found = {n: o.state for n in step.needs if (o := self.outcomes.get(n))}
                    if lacking := [name for name, state in found.items() if state != "done"]:
                        self.waiting.remove(step)
                        detail = f"because of {', '.join(lacking)}"
                        self.outcomes[step.name] = Outcome("not started", detail)
                    elif len(found) == len(step.needs):
                        self.waiting.remove(step)
                        self.running[step.name] = None
                        return step
                if not self.running:
                    return None
                self.changed.wait()
        return None

    def _attempt(self, step: Step, environment: Mapping[str, str]) -> Outcome:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{step.name}.log"
        with open(log, "ab") as output:
            try:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{step.name}: waiting for what an earlier start has left at work on it")
                fcntl.flock(output, fcntl.LOCK_EX)
                if step.done:
                    return Outcome("done", "by an earlier start")
            started, before = time.monotonic(), log.stat().st_size
            with self.changed:
                if self.stopped:
                    return Outcome("not started")
                output.write(f"\n$ {shown(step)}\n".encode())
                output.flush()
                process = self.running[step.name] = subprocess.Popen(
                    [sys.executable, *step.command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                    # out of reach of the terminal's Ctrl-C, on which frameworks do things of their
                    # own: a step is killed, which it survives
                    start_new_session=True,
                )
            where = "".join(f" {name}={value}" for name, value in environment.items() if value)
            say(f"{step.name}: started{where}, log {log}")
            status = process.wait()
        if self.stopped:
            return Outcome("interrupted")
        if status:
            full = "the disk is full; " if disk_full(log, before) else ""
            detail = f"{full}{experiment.ending(status)}"
            return Outcome("failed", f"{detail}: {last_line(log)}" if status > 0 else detail)
        if step.result and not step.done:
            return Outcome("failed", f"ended without {step.result}")
        return Outcome("done", f"in {duration((time.monotonic() - started) / 3600)}")


def table(steps: Sequence[Step], options: Options, gpus: Sequence[str]) -> str:
    """The plan: what is there, what is to do, what it may take."""
    why = "" if torch.cuda.is_available() else " (there is no GPU here)"
    place = next(
        p for p in (options.runs.absolute(), *options.runs.absolute().parents) if p.exists()
    )
    free = shutil.disk_usage(place).free / 1e9
    several = f", {len(gpus)} GPUs" if len(gpus) > 1 else ""
    lines = [
        f"profile {options.profile}{why}, device {options.device}{several}",
        f"runs and logs in {options.runs}, records in {options.results}",
    ]
    cells: list[tuple[str, ...]] = [("step", "state", "time", "disk", "time is known from")]
    for step in steps:
        if step.done:
            cells.append((step.name, "done", "", "", ""))
        else:
            state = "begun" if (options.runs / step.name).exists() else "to do"
            estimates = (duration(step.hours), size(step.gigabytes), step.source)
            cells.append((step.name, state, *estimates))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(line.rstrip())
    to_do = [step for step in steps if not step.done]
    hours = sum(step.hours or 0 for step in to_do)
    needed = sum(step.gigabytes or 0 for step in to_do)
    unknown = sum(step.hours is None for step in to_do)
    lines.append(
        f"{len(to_do)} of {len(steps)} steps to do. Time: {duration(hours)}, and {unknown} steps "
        f"that nobody has timed. Disk: {needed:.1f} GB, and {free:.0f} GB are free"
        + (" - NOT ENOUGH." if needed > free else ".")
    )
    return "\n".join(lines)


def summary(steps: Sequence[Step], outcomes: Mapping[str, Outcome], logs: Path) -> str:
    done = sum(outcome.state == "done" for outcome in outcomes.values())
    lines = ["", f"{done} of {len(steps)} steps are done."]
    for step in steps:
        outcome = outcomes.get(step.name, Outcome("not started"))
        if outcome.state != "done":
            lines.append(f"{step.name}: {outcome.state} {outcome.detail}".rstrip())
        if outcome.state == "failed":
            lines += [f"    log     {logs / step.name}.log", f"    alone   {shown(step)}"]
    if done < len(steps):
        lines.append(f"To continue: {shlex.join([sys.executable, *sys.argv])}")
    return "\n".join(lines)


def shown(step: Step) -> str:
    return shlex.join([sys.executable, *step.command])


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def last_line(log: Path) -> str:
    """Of what is seen: a progress bar overwrites its line."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def disk_full(log: Path, before: int) -> bool:
    """Whether a step failed for that: it says so after so many bytes of its log, or could not."""
    with open(log, "rb") as file:
        file.seek(max(before, log.stat().st_size - (1 << 20)))
        said = file.read().decode(errors="replace")
    return any(text in said for text in DISK_FULL) or shutil.disk_usage(log).free < (1 << 20)


def duration(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def size(gigabytes: float | None) -> str:
    if gigabytes is None:
        return "unknown"
    return f"{gigabytes:.1f} GB" if gigabytes >= 0.05 else "little"


if __name__ == "__main__":
    main()
