"""The report's sections of the three tasks: our rows beside the paper's and the replication's."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from string import ascii_lowercase
from typing import Any, NamedTuple

import report_plots
from report_page import Figure, Items, Line, Mark, Paragraph, Part, Section, Table, seeds

Record = dict[str, Any]
Records = Mapping[str, Record]


class Published(NamedTuple):
    """A row of the paper's tables, of the replication's, or one that is this project's own.

    model: as published. paper, replication: on test; of the paper also on the development part, and
    the seconds of an epoch.
    """

    model: str
    paper: str = ""
    replication: str = ""
    paper_dev: str = ""
    paper_seconds: str = ""

    @property
    def is_result(self) -> bool:
        return bool(self.paper or self.replication)


IMDB = {
    "k2": Published("dense QRNN, 4 x 256, k = 2", "91.4", "88.36", paper_seconds="150"),
    "k4": Published(
        "dense QRNN, 4 x 256, k = 4 in the first layer", "91.1", "87.12", paper_seconds="160"
    ),
    "lstm": Published("dense LSTM, 4 x 256", "90.9", paper_seconds="480"),
    "pooled": Published(
        "this project's own, two layers in both directions; rows best-... are of it too, "
        "whose config was imdb_best.jsonnet then"
    ),
    "pretrained": Published("this project's own, 3 x 400, from a language model of the reviews"),
    "pretrained_both": Published(
        "this project's own, 3 x 400 forwards and 3 x 400 backwards, from two language models"
    ),
    "adversarial": Published(
        "this project's own, as pretrained, but trained against an adversary: imdb_best.jsonnet"
    ),
}
IMDB_LM = {
    "forward": Published("this project's own, 3 x 400, what pretrained and adversarial start from"),
    "backward": Published(
        "this project's own, 3 x 400, from the end of a review, for pretrained_both"
    ),
}
PTB = {
    "qrnn": Published("QRNN, 2 x 640", "79.9", paper_dev="82.9"),
    "zoneout": Published("QRNN, 2 x 640, zoneout 0.1", "78.3", paper_dev="82.1"),
    "lstm": Published("LSTM, 2 x 650 (the paper says 20M parameters)", "82.0", paper_dev="85.7"),
    "replication": Published("the replication's QRNN, 4 x 1240", "", "108.86"),
    "awd": Published("AWD-QRNN, 4 x 1550", "58.3", paper_dev="60.6"),
    "finetuned": Published("AWD-QRNN, fine-tuned", "56.7", paper_dev="59.1"),
    "cache": Published("AWD-QRNN, fine-tuned, with a cache", "52.6", paper_dev="53.4"),
}
IWSLT = {
    "qrnn": Published(
        "QRNN, 4 x 320, k = 6 in the first encoder layer", "19.41", "12.34", paper_seconds="3,600"
    ),
    "lstm": Published("LSTM, 4 x 320", "16.53", paper_seconds="15,120"),
}
PUBLISHED = {"imdb": IMDB, "imdb-lm": IMDB_LM, "ptb": PTB, "iwslt": IWSLT}
MISSING = Mark("no record yet", "none")
PAPER_VECTORS = "GloVe 840B 300-d (content verified"


class Runs(NamedTuple):
    """The records of one row, by file name: other seeds of the same model on the same data."""

    experiment: str
    row: str
    records: dict[str, Record]

    @property
    def base(self) -> str:
        """The published row that this one is, or is a variant of: "k2" of "k2-cpu"."""
        base = self.row.split("-")[0]
        return "pooled" if (self.experiment, base) == ("imdb", "best") else base

    @property
    def first(self) -> Record:
        return next(iter(self.records.values()))


def runs_of(experiment: str, found: Records) -> list[Runs]:
    """In the order of the published rows, the row itself before its variants, then all others.

    Seeds that had other data, or another number of parameters, are not the same and stand apart.
    """
    groups: dict[tuple[Any, ...], Runs] = {}
    for name, record in found.items():
        if record["experiment"] == experiment:
            data, size = record["data"], record["metrics"].get("parameters")
            same = [data.get(key) for key in ("official", "note", "fingerprint", "vectors")]
            runs = groups.setdefault(
                (record["row"], *same, size), Runs(experiment, record["row"], {})
            )
            runs.records[name] = record
    order = list(PUBLISHED[experiment])

    def place(runs: Runs) -> tuple[int, bool]:
        return order.index(runs.base) if runs.base in order else len(order), runs.row != runs.base

    return sorted(groups.values(), key=place)


# Parts of notes that are neither of model nor of recipe.
UNCHANGED = (
    "TF32 in matrix products",
    "trained on two CPU cores, float32 products by oneDNN (torch.set_float32_matmul_precision)",
    "its first 4 epochs are row qrnn-4epochs's",
)


def changes(runs: Runs) -> list[str]:
    """What of model and recipe is not as in the row that these runs stand beside."""
    parts: dict[str, list[str]] = {}
    for record in runs.records.values():
        for part in filter(None, record.get("note", "").split("; ")):
            parts.setdefault(part, []).append(str(record["seed"]))
    told = [
        part if len(seeds) == len(runs.records) else f"{part} (seed {', '.join(seeds)})"
        for part, seeds in parts.items()
    ]
    vectors = runs.first["data"].get("vectors", PAPER_VECTORS)
    if not vectors.startswith(PAPER_VECTORS):
        told.append(f"word vectors: {vectors}")
    if not told and runs.row not in PUBLISHED[runs.experiment]:
        told.append("the record does not say what")
    return told


def is_changed(runs: Runs) -> bool:
    return any(part not in UNCHANGED for part in changes(runs))


def marks(runs: Runs) -> Line:
    if runs.first["data"]["official"]:
        of_data = Mark("official data", "good")
    else:
        of_data = Mark("NOT OFFICIAL", "warn")
    if is_own(runs):
        return of_data, Mark("own model", "good")
    return of_data, Mark("changed", "note") if is_changed(runs) else Mark("as published", "good")


def is_own(runs: Runs) -> bool:
    told = PUBLISHED[runs.experiment].get(runs.base)
    return told is not None and not told.is_result


def known(runs: Runs) -> bool:
    """Whether there is a number of this very row, be it the paper's or the replication's."""
    told = PUBLISHED[runs.experiment].get(runs.row)
    return told is not None and told.is_result


def deviations(runs: Runs) -> tuple[str, ...]:
    data = runs.first["data"]
    told = changes(runs)
    if not data["official"]:
        told.insert(0, f"data: {data['note'].removeprefix('NOT OFFICIAL: ')}")
    return tuple(told)


def mean(values: Sequence[float], digits: int) -> str:
    """The mean, and of several the 95 % interval of the mean by Student's t."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # slow to import

    quantile = float(stdtrit(len(values) - 1, 0.975))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.{digits}f} ± {half:.{digits}f} (n = {len(values)})"


def metric(runs: Runs, name: str, digits: int, scale: float = 1) -> str:
    return mean([scale * record["metrics"][name] for record in runs.records.values()], digits)


def epochs(runs: Runs) -> str:
    counts = sorted({len(record["history"]) for record in runs.records.values()})
    return "-" if counts == [0] else ", ".join(map(str, counts))


def on_gpu(runs: Runs) -> list[Record]:
    """The records whose times are told: a CPU's depend on which one it is and what runs beside."""
    return [record for record in runs.records.values() if not record["device"].startswith("CPU")]


def epoch_seconds(runs: Runs) -> str:
    """The median of the epochs, and of that the mean over the seeds."""
    spent = [
        statistics.median(epoch["seconds"] for epoch in record["history"])
        for record in on_gpu(runs)
        if record["history"]
    ]
    return f"{statistics.fmean(spent):,.0f}" if spent else "-"


def text_seconds(runs: Runs) -> str:
    """Of an epoch, for a record that knows only its speed: the whole training text at that."""
    spent = []
    for record in on_gpu(runs):
        try:
            characters = record["data"]["counts"]["train"]["en"]["characters"]
        except KeyError:
            return "-"
        spent.append(characters / record["metrics"]["train_chars_per_second"])
    return f"{statistics.fmean(spent):,.0f}" if spent else "-"


SHORT = 70  # characters: longer remarks that several rows share stand once, below the table


class Column(NamedTuple):
    """cell: our value; published: what follows it in brackets, unless the row is a changed one."""

    title: str
    cell: Callable[[Runs], str]
    published: Callable[[Published], str] = lambda _: ""


def table(
    experiment: str, caption: str, found: Records, test: Column, columns: Sequence[Column]
) -> list[Part]:
    """A line for each row that has runs, and for each published one that has none of its own.

    What is said of several of them in more than a few words stands once, below.
    """
    published, runs = PUBLISHED[experiment], runs_of(experiment, found)
    compared = ["paper", "replication"] if any(t.is_result for t in published.values()) else []
    head = ["row", test.title, *compared, *(column.title for column in columns)]
    head += ["model, or what is changed of it", "record, device"]
    lines: list[list[str | Line]] = []
    told_of = Counter(part for own in runs for part in deviations(own))
    often = [part for part, count in told_of.items() if count > 1 and len(part) > SHORT]
    notes = {part: f"note {letter}" for part, letter in zip(often, ascii_lowercase, strict=False)}

    def line(row: str, told: Published, own: Runs | None) -> None:
        made = own.records if own else {}
        devices = dict.fromkeys(record["device"] for record in made.values())
        cells: list[str | Line] = [(row, *(marks(own) if own else (MISSING,)))]
        cells.append(test.cell(own) if own else "-")
        if compared:
            cells += [told.paper or "-", told.replication or "-"]
        brackets = [c.published(told) if row in published else "" for c in columns]
        values = [c.cell(own) if own else "-" for c in columns]
        cells += [f"{v} ({b})" if b else v for v, b in zip(values, brackets, strict=True)]
        about = [told.model] if row in published else []
        about += [notes.get(part, part) for part in (deviations(own) if own else ())]
        lines.append([*cells, tuple(about), (*seeds(made), *devices) or "-"])

    for base, told in published.items():
        group = [own for own in runs if own.base == base]
        if not any(own.row == base for own in group):
            line(base, told, None)
        for own in group:
            line(own.row, told, own)
    for own in runs:
        if own.base not in published:
            line(own.row, Published(""), own)
    below = Items(tuple((f"{note}: {part}",) for part, note in notes.items()))
    return [Table(caption, head, lines), *([below] if notes else [])]


def labelled(
    group: Sequence[Runs], points: Callable[[Record], tuple[Sequence[float], Sequence[float]]]
) -> dict[str, list[tuple[Sequence[float], Sequence[float]]]]:
    """The learning curves by row, those of all its runs together."""
    curves: dict[str, list[tuple[Sequence[float], Sequence[float]]]] = {}
    for runs in group:
        drawn = [points(record) for record in runs.records.values() if record["history"]]
        if drawn:
            curves.setdefault(runs.row, []).extend(drawn)
    return {
        row if len(drawn) == 1 else f"{row}, {len(drawn)} runs": drawn
        for row, drawn in curves.items()
    }


def learning(
    name: str,
    caption: str,
    xlabel: str,
    panels: Sequence[report_plots.Panel],
    group: Sequence[Runs],
) -> list[Part]:
    """The figure, or nothing where there is no curve to show."""
    if not panels[0].curves:
        return []
    ends = [
        f"{panel.ylabel}: "
        + "; ".join(
            f"{label} ends at {', '.join(f'{y[-1]:.4g}' for _, y in runs)}"
            for label, runs in panel.curves.items()
        )
        for panel in panels
    ]
    used = [n for runs in group for n, record in runs.records.items() if record["history"]]
    svg = report_plots.curves(xlabel, panels)
    return [Figure(name, svg, caption, f"{caption}. {'. '.join(ends)}.", used)]


def counted(record: Record, field: str) -> tuple[Sequence[float], Sequence[float]]:
    values = [epoch[field] for epoch in record["history"]]
    return range(1, len(values) + 1), values


def imdb(found: Records) -> Section:
    caption = "Accuracy in %, of paper and replication on test; in brackets the paper's"
    test = Column("test", lambda runs: metric(runs, "test_accuracy", 2, 100))
    columns = [
        Column("dev", lambda runs: metric(runs, "dev_accuracy", 2, 100)),
        Column("epochs", epochs),
        Column("seconds an epoch, GPU (paper's)", epoch_seconds, lambda told: told.paper_seconds),
    ]
    parts = table("imdb", caption, found, test, columns)
    for name, whose, own in (
        ("imdb", "the paper's models", False),
        ("imdb-own", "this project's own models", True),
    ):
        group = [runs for runs in runs_of("imdb", found) if is_own(runs) == own]
        panel = report_plots.Panel(
            "accuracy on dev, %",
            labelled(group, _accuracy),
            [(91.4, "paper, k2, on test"), (88.36, "replication, k2, on test")],
        )
        parts += learning(name, f"Accuracy on dev by epoch, {whose}", "epoch", [panel], group)
    return Section("imdb", "IMDb sentiment, accuracy in %", parts)


def _accuracy(record: Record) -> tuple[Sequence[float], Sequence[float]]:
    x, y = counted(record, "validation_accuracy")
    return x, [100 * value for value in y]


def imdb_lm(found: Records) -> Section:
    caption = "Perplexity of a word of dev; learnt from the unlabelled reviews alone"
    dev = Column("dev", lambda runs: metric(runs, "valid_perplexity", 1))
    columns = [
        Column("million parameters", _million_parameters),
        Column("epochs", epochs),
        Column("seconds an epoch, GPU", epoch_seconds),
    ]
    parts = table("imdb-lm", caption, found, dev, columns)
    return Section("imdb-lm", "Language models of IMDb's reviews", parts)


def ptb(found: Records) -> Section:
    caption = (
        "Perplexity, of paper and replication on test; in brackets the paper's. Beside awd, "
        "finetuned and cache stand the numbers of that recipe's authors (awd-lstm-lm)"
    )
    test = Column("test", lambda runs: metric(runs, "test_perplexity", 1))
    columns = [
        Column(
            "validation (paper's)",
            lambda runs: metric(runs, "valid_perplexity", 1),
            lambda told: told.paper_dev,
        ),
        Column("million parameters", _million_parameters),
        Column("epochs", epochs),
        Column("seconds an epoch, GPU", epoch_seconds),
    ]
    runs = runs_of("ptb", found)
    panel = report_plots.Panel(
        "perplexity on validation",
        labelled(runs, lambda record: counted(record, "validation_perplexity")),
        [(82.1, "paper, zoneout, after 72 epochs"), (108.86, "replication, on test")],
        ticks=(60, 80, 100, 150, 200, 300, 500),
    )
    parts = [
        *table("ptb", caption, found, test, columns),
        *learning("ptb", "Perplexity on validation by epoch", "epoch", [panel], runs),
    ]
    return Section("ptb", "Penn Treebank, perplexity of a word", parts)


def _million_parameters(runs: Runs) -> str:
    return f"{runs.first['metrics']['parameters'] / 1e6:.2f}"


def iwslt(found: Records) -> Section:
    caption = (
        "BLEU of TED.tst2014 (test) and TED.tst2013 (dev), of paper and replication on test; in "
        "brackets the paper's"
    )
    test = Column("test BLEU", lambda runs: metric(runs, "test_bleu", 2))
    columns = [
        Column("dev BLEU", lambda runs: metric(runs, "dev_bleu", 2)),
        Column("dev perplexity", lambda runs: metric(runs, "dev_perplexity", 2)),
        Column("million parameters", _million_parameters),
        Column(
            "million characters seen",
            lambda runs: mean([r["metrics"]["characters"] / 1e6 for r in runs.records.values()], 1),
        ),
        Column("seconds an epoch, GPU (paper's)", text_seconds, lambda told: told.paper_seconds),
    ]
    runs = runs_of("iwslt", found)
    panels = [
        report_plots.Panel(
            "BLEU on dev, while training",
            labelled(runs, lambda record: _by_characters(record, "bleu")),
            [(19.41, "paper, qrnn, on test"), (12.34, "replication, qrnn, on test")],
        ),
        report_plots.Panel(
            "perplexity of a character of dev",
            labelled(runs, lambda record: _by_characters(record, "ppl")),
            [],
        ),
    ]
    curves = "BLEU and perplexity on dev by characters seen"
    explained = (
        "Perplexity is that of a character of the references. BLEU is sacrebleu's (13a), of the "
        "text as it is: the paper's script is not known, and its numbers are for official, cased "
        "data. Seconds an epoch are the characters of the training text over those that training "
        "gets through in a second."
    )
    parts = [
        *table("iwslt", caption, found, test, columns),
        Paragraph((explained,)),
        *learning("iwslt", curves, "million characters seen", panels, runs),
        *(attention(own) for own in runs),
    ]
    return Section("iwslt", "IWSLT 2016 German-English by characters", parts)


def _by_characters(record: Record, field: str) -> tuple[Sequence[float], Sequence[float]]:
    each = record["metrics"]["characters"] / record["metrics"]["updates"] / 1e6
    history = record["history"]
    return [each * step["steps"] for step in history], [step[field] for step in history]


def attention(runs: Runs) -> Figure:
    """Where the decoder of the first seed looks in one sentence of dev, given its translation."""
    name, record = next(iter(runs.records.items()))
    told = record["attention"]
    source, target, weights = (told[field] for field in ("source", "target", "weights"))
    caption = f"Attention of {runs.row}, seed {record['seed']}, over a sentence of dev"
    text = (
        f"{caption}. Source: {''.join(source)}. Target: {''.join(target)}. "
        "A line for each character of the target, darker where it looks in the source."
    )
    svg = report_plots.attention(source, target, weights)
    return Figure(name.removesuffix(".json"), svg, caption, text, [name])


class Task(NamedTuple):
    """What the overview tells of an experiment; dev: the measure by which its row is chosen."""

    title: str
    row: str  # the published one
    test: str
    dev: str
    digits: int
    scale: float  # to the unit shown; negative where less is better


TASKS = {
    "imdb": Task("IMDb, accuracy in %", "k2", "test_accuracy", "dev_accuracy", 2, 100),
    "ptb": Task(
        "Penn Treebank, perplexity", "zoneout", "test_perplexity", "valid_perplexity", 1, -1
    ),
    "iwslt": Task("IWSLT German-English, BLEU", "qrnn", "test_bleu", "dev_bleu", 2, 1),
}


def overview(found: Records) -> Section:
    """For each task the paper's model and our other QRNNs, of each what is best on dev."""
    head = ["task", "here", "paper", "replication", "row", "note"]
    lines: list[list[str | Line]] = []
    notes: list[Line] = []
    for experiment, task in TASKS.items():

        def on_dev(runs: Runs, task: Task = task) -> tuple[bool, float, int]:
            values = (record["metrics"][task.dev] for record in runs.records.values())
            # official data before other, whatever the number; of equals what is changed least
            score = task.scale * statistics.fmean(values)
            return runs.first["data"]["official"], score, -sum(map(len, changes(runs)))

        rows = PUBLISHED[experiment]
        replication = next(told.replication for told in rows.values() if told.replication)
        paper = rows[task.row].paper
        all_runs = [runs for runs in runs_of(experiment, found) if runs.base != "lstm"]
        same = max((r for r in all_runs if r.base == task.row), key=on_dev, default=None)
        other = max((r for r in all_runs if r.base != task.row), key=on_dev, default=None)
        if same is None:
            lines.append([task.title, "-", paper, replication, (MISSING,), "-"])
        for runs in (same, other):
            if runs is None:
                continue
            here = metric(runs, task.test, task.digits, abs(task.scale))
            published = rows.get(runs.base, Published(""))
            about = ((published.model,) if is_own(runs) else ()) + deviations(runs)
            row: Line = (runs.row, *marks(runs))
            told = published.paper or paper
            note = str(len(notes) + 1)
            lines.append([task.title, here, told, replication, row, note])
            of = [piece for link in seeds(runs.records) for piece in (", ", link)][1:]
            notes.append((f"{note}: {'; '.join(about) or 'as published'}", " (", *of, ")"))
    caption = (
        "On test, beside the paper (Bradbury et al. 2016) and the best of its replication "
        "(Girrbach 2020). For each task the paper's QRNN and, where there is one, the best of the "
        "other QRNNs; of several rows the one that did best on the development part. The notes say "
        "what differs from the publication"
    )
    parts: list[Part] = [Table(caption, head, lines)]
    if notes:
        parts.append(Items(tuple(notes)))
    return Section("overview", "Measured so far", parts)


def summary(found: Records) -> str:
    """How much of what was published has been done again."""
    claims = sum(told.is_result for rows in PUBLISHED.values() for told in rows.values())
    group = [runs for experiment in PUBLISHED for runs in runs_of(experiment, found)]
    official = [runs for runs in group if runs.first["data"]["official"]]
    own = sum(map(is_own, official))
    changed = sum(is_changed(runs) and not is_own(runs) for runs in official)
    done = sum(known(runs) and not is_changed(runs) for runs in official)
    return (
        f"Of {claims} published results, {done} {_have(done)} been measured again with the "
        f"published model on the official data. {changed} of the rows below are of a model or "
        f"recipe that was changed, {own} of this project's own models, on official data; "
        f"{len(group) - len(official)} of data that is not official."
    )


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


SECTIONS: dict[str, Callable[[Records], Section]] = {
    "imdb": imdb,
    "imdb-lm": imdb_lm,
    "ptb": ptb,
    "iwslt": iwslt,
}
