"""The report's sections of the benchmarks, and of other records that are tables."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import report_plots
from report_page import Figure, Items, Paragraph, Part, Section, Table

Row = dict[str, Any]
Rows = list[Row]
Cell = Callable[[Row], str]


def section(experiment: str, found: Mapping[str, dict[str, Any]]) -> Section:
    """For each device its tables and plot, with the record that they come from."""
    title, render = SECTIONS[experiment]
    parts: list[Part] = []
    for name, record in found.items():
        if record["experiment"] == experiment:
            data = record["data"]
            of_data = data["note"] if data and not data["official"] else None
            about = "; ".join(filter(None, [record["device"], record.get("note"), of_data]))
            parts.append(Paragraph((f"{about}:",)))
            for part in render(record["table"]):
                parts.append(replace(part, records=[name]) if isinstance(part, Table) else part)
            if experiment in PLOTS:
                svg, text = PLOTS[experiment](record["table"])
                caption = f"{title}, {record['device']}"
                parts.append(Figure(name.removesuffix(".json"), svg, caption, text, [name]))
    return Section(experiment, title, parts or [Paragraph(("Not measured yet.",))])


def figure4(rows: Rows) -> list[Part]:
    parts: list[Part] = []
    beside = False
    for [mode, dtype], cells in grouped(rows, "mode", "dtype"):
        for column, how in (("ratio", ""), ("graph_ratio", ", as CUDA graphs")):
            ratios = [row[column] for row in cells if row[column] is not None]
            if len(ratios) < len(cells):
                continue
            text = f"{mode}, {dtype}{how}: {geometric_mean(ratios):.2f} times as fast "
            text += "(geometric mean)"
            if cells[0]["lstm_dtype"] != dtype:
                text += f" as nn.LSTM in {cells[0]['lstm_dtype']}"
            if "product_share" in cells[0]:
                share = statistics.median(row["product_share"] for row in cells)
                text += (
                    f"; torch's matmul alone, of as much, takes {share:.0%} of that time (median)"
                )
                parts.append(pivot(text, cells, ["batch"], ["length"], number(column)))
                continue
            beside = True
            ahead = sum(row[column] > row["paper_ratio"] for row in cells)
            text += f"; above the paper's number, in brackets, in {ahead} of {len(cells)} cells"
            parts.append(pivot(text, cells, ["batch"], ["length"], beside_paper(column)))
    if not beside:
        text = "the paper's numbers, which are for a GPU and its inference"
        [_, cells], *_ = grouped(rows, "mode", "dtype")
        parts.append(pivot(text, cells, ["batch"], ["length"], number("paper_ratio", ".1f")))
    return parts


AIMED_AT, OF_BYTES = 0.85, 64 * 2**20  # of a copy's bandwidth, by what moves as much at least


def scan(rows: Rows) -> list[Part]:
    parts: list[Part] = []
    for [dtype], cells in grouped(rows, "dtype"):
        text = "The share of a large copy's bytes per second; after the slash as a CUDA graph: "
        text += dtype
        shares = [row["graph_share"] for row in cells if row["bytes"] >= OF_BYTES]
        if shares and None not in shares:
            reached = sum(share >= AIMED_AT for share in shares)
            text += f"; at least {AIMED_AT:.0%} in {reached} of the {len(shares)} cells that move "
            text += f"{OF_BYTES >> 20} MiB or more"
        cell = two("share", "graph_share", ".0%")
        parts.append(pivot(text, cells, ["kind", "columns"], ["length"], cell))
    return parts


def peers(rows: Rows) -> list[Part]:
    ran = [row for row in rows if row["batch"] is not None]
    down, across = ["peer", "mode"], ["batch", "length", "units"]
    text = "The other's time over linear_recurrence's; after the slash as CUDA graphs"
    parts: list[Part] = []
    if ran:
        parts.append(pivot(text, ran, down, across, two("ratio", "graph_ratio", ".2f")))
    why = dict.fromkeys(f"{row['peer']}: {row['reason']}" for row in rows if row["reason"])
    if why:
        parts += [Paragraph(("Not measured:",)), Items(tuple((line,) for line in why))]
    return parts


def growth(rows: Rows) -> list[Part]:
    text = "The time of forward and backward over that of the smallest, by what is multiplied"
    return [pivot(text, rows, ["varies"], ["factor"], number("ratio"))]


def convolution(rows: Rows) -> list[Part]:
    down, across = ["kernel", "inputs"], ["length", "batch", "way"]
    text = "The time of each way over that of the one that the layer chooses"
    return [
        pivot(f"{text}: {mode}, {dtype}", cells, down, across, number("ratio"))
        for [dtype, mode], cells in grouped(rows, "dtype", "mode")
    ]


def ptb_step(rows: Rows) -> list[Part]:
    columns = ("model", "part", "share", "paper_share", "lstm_over_qrnn", "paper_lstm_over_qrnn")
    text = "The share of a step's time, and the LSTM's time over the QRNN's"
    return [flat(text, rows, [*columns, "ms", "paper_ms"])]


def training(what: str, rows: Rows) -> list[Part]:
    text = f"{what} a second in training, as multiples of the LSTM's in the same type"
    shown = [row | {"parameters": f"{row['parameters']:,}"} for row in rows]
    return [flat(text, shown, ["model", "parameters", "dtype", "speed_over_lstm", "ms"])]


def start(rows: Rows) -> list[Part]:
    text = "Perplexity in training and on validation"
    measured = ("train_perplexity", "valid_perplexity")
    shown = [row | {name: f"{row[name]:.1f}" for name in measured} for row in rows]
    return [flat(text, shown, ["weights", "forget_bias", "epoch", *measured])]


def errors(rows: Rows) -> list[Part]:
    text = "Wrong of 100 reviews of dev, by what they are"
    together = "Reviews of dev, in %, by how many of these models are wrong"

    def share(row: Row) -> str:
        return f"{100 * row['wrong'] / row['reviews']:.1f}"

    parts: list[Part] = []
    for [by], cells in grouped(rows, "by"):
        caption = together if cells[0]["model"] == "together" else f"{text}: {by}"
        parts.append(pivot(caption, cells, ["model"], ["group"], share))
    return parts


def memory(rows: Rows) -> list[Part]:
    sizes = {"ours_bytes": "ours", "lstm_bytes": "nn.LSTM", "torchqrnn_bytes": "as torchqrnn"}
    shown = [
        {**row, **{name: f"{row[column] / 2**20:.1f}" for column, name in sizes.items()}}
        for row in rows
    ]
    return [flat("In MiB", shown, ["batch", "length", "units", "dtype", *sizes.values()])]


def figure4_plot(rows: Rows) -> tuple[str, str]:
    """A graph's ratio where there is one."""
    tables = {}
    for [mode, dtype], cells in grouped(rows, "mode", "dtype"):
        column = "ratio" if any(row["graph_ratio"] is None for row in cells) else "graph_ratio"
        title = f"{mode}, {dtype}{', CUDA graphs' if column == 'graph_ratio' else ''}"
        tables[title] = {(row["batch"], row["length"]): row[column] for row in cells}
    text = "Times as fast as nn.LSTM by batch and length, a coloured grid each for: "
    text += "; ".join(f"{t}, {min(r.values())} to {max(r.values())}" for t, r in tables.items())
    return report_plots.grids(tables), text


def scan_plot(rows: Rows) -> tuple[str, str]:
    """The same, of a copy's bandwidth."""
    points = {}
    for [kind, dtype], cells in grouped(rows, "kind", "dtype"):
        column = "share" if any(row["graph_share"] is None for row in cells) else "graph_share"
        points[f"{kind}, {dtype}"] = [(row["bytes"] / 2**20, 100 * row[column]) for row in cells]
    text = "The share of a large copy's bandwidth by the bytes moved, at most: "
    text += ", ".join(f"{kind} {max(y for _, y in p):.0f}%" for kind, p in points.items())
    return report_plots.shares(points), text


SECTIONS: dict[str, tuple[str, Callable[[Rows], list[Part]]]] = {
    "bench-translation": (
        "Speed of translation models in training, 4 x 320",
        partial(training, "Characters"),
    ),
    "bench-reviews": (
        "Speed of IMDb's classifiers in training, 4 x 256",
        partial(training, "Reviews"),
    ),
    "bench-figure4": ("Speed: QRNN layer over nn.LSTM, 320 units", figure4),
    "bench-ptb-step": (
        "A language model's training step: two layers, 640 units, 20 x 105",
        ptb_step,
    ),
    "ptb-start": ("How the language model of PTB starts", start),
    "imdb-errors": ("Where IMDb's classifiers are wrong", errors),
    "bench-scan": ("The recurrences alone", scan),
    "bench-peers": ("Other kernels for h_t = f_t h_(t-1) + x_t", peers),
    "bench-memory": ("Memory of a layer, forward and backward", memory),
    "bench-growth": ("How a layer's time grows", growth),
    "bench-convolution": ("Ways to the pre-activations", convolution),
}
PLOTS: dict[str, Callable[[Rows], tuple[str, str]]] = {  # the plot, and what is to be seen in it
    "bench-figure4": figure4_plot,
    "bench-scan": scan_plot,
}


def grouped(rows: Rows, *keys: str) -> list[tuple[list[Any], Rows]]:
    """The rows by their values at `keys`, in the order of first appearance."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [(list(values), group) for values, group in groups.items()]


def pivot(
    caption: str, rows: Rows, down: Sequence[str], across: Sequence[str], cell: Cell
) -> Table:
    """A line per value of the keys `down`, a column per value of `across` that has any cell."""
    columns = [
        values for values, group in grouped(rows, *across) if any(cell(row) != "-" for row in group)
    ]
    head = [f"{', '.join(down)} \\ {', '.join(across)}"]
    head += [", ".join(map(str, values)) for values in columns]
    lines = []
    for values, group in grouped(rows, *down):
        cells = {tuple(row[key] for key in across): cell(row) for row in group}
        line = [cells.get(tuple(column), "-") for column in columns]
        lines.append([", ".join(map(str, values)), *line])
    return Table(caption, head, lines)


def flat(caption: str, rows: Rows, columns: Sequence[str]) -> Table:
    """Those of the columns that the rows have."""
    columns = [column for column in columns if column in rows[0]]
    head = [column.replace("_", " ") for column in columns]
    lines = [["-" if row[c] is None else str(row[c]) for c in columns] for row in rows]
    return Table(caption, head, lines)


def number(column: str, form: str = ".2f") -> Cell:
    return lambda row: "-" if row[column] is None else format(row[column], form)


def two(first: str, second: str, form: str) -> Cell:
    """Both columns, the second one only where it was measured."""

    def cell(row: Row) -> str:
        columns = [first] if row[second] is None else [first, second]
        return " / ".join(number(column, form)(row) for column in columns)

    return cell


def beside_paper(column: str) -> Cell:
    return lambda row: f"{number(column)(row)} ({row['paper_ratio']})"


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))
