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
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark
import imdb
import iwslt
import ptb
import quick
import records
import timing
import torch
import vectors
from fetch import finished_meta, is_url
from files import check_folder, check_root
from reproduce_rows import CPU, FULL, Row
from reproduce_runner import Outcome, Runner, Step, duration, shown

PARTS = ("bench", "imdb", "ptb", "iwslt")
PROFILES = ("quick", "cpu", "full")
GLOVE = "glove.840B.300d"
VECTORS = {"full": GLOVE, "cpu": vectors.WORD2VEC_NAME}
SUITES = tuple(benchmark.SUITES)
SUITES_ON_CPU = tuple(name for name in SUITES if name != "memory")
SUITES_QUICK = ("growth",)


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
    for told in without_runs(steps, options):
        print(told)
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
    check_root(parser)
    only = tuple(given.only.split(",")) if given.only else PARTS
    for part in only:
        if part not in PARTS:
            parser.error(f"--only: expected some of {', '.join(PARTS)}, got {part!r}")
    if given.seeds is not None and given.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {given.seeds}")
    if given.results:
        check_folder(parser, "--results", given.results)
        if given.results.resolve() == Path("runs").resolve():
            parser.error("--results: expected another folder than runs/")
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


def without_runs(steps: Sequence[Step], options: Options) -> list[str]:
    """What will fail because the training that it starts from has a record, but no run any more."""
    by_name = {step.name: step for step in steps}
    return [
        f"{step.name} needs {options.runs / name}, which is gone: delete {by_name[name].result} to "
        "train it again"
        for step in steps
        for name in step.needs
        if not step.done
        and by_name[name].done
        and by_name[name].command[0] == "scripts/experiment.py"
        and not (options.runs / name).exists()
    ]


def data_steps(options: Options) -> list[Step]:
    """Sizes and times are without the download."""
    mirror = ("--mirror", options.mirror) if options.mirror else ()
    found = []
    prepared: dict[str, dict[str, Any] | None] = {}
    for name, recipe, minutes, gigabytes in (
        ("imdb", imdb.recipe, 2, 0.22),
        ("ptb", lambda: ptb.RECIPE, 0.1, 0.01),
        ("iwslt", lambda: iwslt.recipe(options.lower), 0.5, 0.06),
    ):
        if name in options.only:
            lower = ("--lower",) if name == "iwslt" and options.lower else ()
            command = (f"scripts/{name}.py", *mirror, *lower)
            folder = Path(f"data/{name}")
            prepared[name] = finished_meta(folder, recipe())
            done = folder / "meta.json" if prepared[name] else None
            hours, source = minutes / 60, "and the download"
            found.append(Step(f"data-{name}", command, done, (), hours, source, gigabytes))
    if "imdb" in options.only and options.vectors:
        learnt = options.vectors == vectors.WORD2VEC_NAME
        published = vectors.PUBLISHED.get(options.vectors)
        place, reviews = Path("data/vectors"), prepared["imdb"]
        wanted = {"recipe": vectors.RECIPE, "data": reviews["files"] if reviews else None}
        finished = vectors.finished_json(place, options.vectors, wanted)
        found.append(
            Step(
                f"vectors-{options.vectors}",
                ("scripts/vectors.py", "--set", options.vectors, *mirror),
                place / f"{options.vectors}.json" if finished else None,
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
    """Hours of training and where that is known from: the same row's record of any seed from this
    kind of device, then the config, whose cost is a CPU's, then a record from the other kind."""
    on_cpu = options.device.startswith("CPU")
    same_row = result.stem.rsplit("-seed", 1)[0] + "-seed"
    found = [(name, record) for name, record in known.items() if name.startswith(same_row)]
    same_kind = [run for run in found if run[1]["device"].startswith("CPU") == on_cpu]
    if not same_kind and hours is not None and on_cpu:
        return hours, "config, on a CPU"
    for name, record in same_kind or found:
        other = "" if record["device"] == options.device else f", {record['device']}"
        return record["wall_seconds"] / 3600, f"{name}{other}"
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


def size(gigabytes: float | None) -> str:
    if gigabytes is None:
        return "unknown"
    return f"{gigabytes:.1f} GB" if gigabytes >= 0.05 else "little"


if __name__ == "__main__":
    main()
