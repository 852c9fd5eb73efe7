"""Renders the tables and plots of README.md and reports/ from the records: python scripts/report.py

Every number comes from a file in reports/results/, named beside it. In README.md the text between
<!-- NAME --> and <!-- /NAME --> is replaced.
"""

import io
import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import records
from fetch import write_atomically

REPORTS = Path("reports")
Record = dict[str, Any]
Records = dict[str, Record]
Rows = list[dict[str, Any]]

PAPER = {  # row: test accuracy in the paper, in Girrbach's replication
    "k2": ("91.4", "88.36"),
    "k4": ("91.1", "87.12"),
    "lstm": ("90.9", "-"),
}
PAPER_BLEU = {"qrnn": ("19.41", "12.34"), "lstm": ("16.53", "-")}  # the same of test BLEU
# The paper's validation and test perplexity, the replication's on test; for awd what the recipe's
# authors have.
PAPER_PERPLEXITY = {
    "qrnn": ("82.9 / 79.9", "-"),
    "zoneout": ("82.1 / 78.3", "-"),
    "lstm": ("85.7 / 82.0", "-"),
    "report": ("-", "108.86"),
    "awd": ("60.6 / 58.3", "-"),
    "finetuned": ("59.1 / 56.7", "-"),
    "cache": ("53.4 / 52.6", "-"),
}


def main() -> None:
    found = records.load(records.RESULTS)
    parts = {
        "imdb": imdb(found),
        "ptb": ptb(found),
        "iwslt": iwslt(found),
        "bench-translation": benchmark("bench-translation", found),
        "bench-figure4": benchmark("bench-figure4", found),
    }
    others = [benchmark(name, found) for name in SECTIONS if name not in parts]
    text = "# Results\n\nMade by `make report` from the records in results/; do not edit.\n"
    text += "".join(f"\n{part}\n" for part in [*parts.values(), *others])
    readme = Path("README.md")
    page = readme.read_text(encoding="utf-8")
    for name, part in parts.items():
        page = replace(page, name, part.replace("](", f"]({REPORTS.name}/"))
    for record in found.values():
        if record["experiment"] in PLOTS:
            write_atomically(REPORTS / plot_name(record), PLOTS[record["experiment"]](record))
    if any(record["experiment"] == "ptb" for record in found.values()):
        write_atomically(REPORTS / "ptb.svg", ptb_curves(found))
    write_atomically(REPORTS / "README.md", text)
    write_atomically(readme, page)


def replace(page: str, name: str, part: str) -> str:
    """`page` with `part` between the marks of that name; ValueError when they are not there."""
    pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"README.md: expected one <!-- {name} --> ... <!-- /{name} -->")
    return pattern.sub(lambda match: f"{match[1]}{part}\n{match[2]}", page)


def imdb(found: Records) -> str:
    lines = [
        "### IMDb sentiment, accuracy in %",
        "",
        "| row | data | vectors | epochs | dev | test | paper | replication | record |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, record in found.items():
        if record["experiment"] != "imdb":
            continue
        data, metrics = record["data"], record["metrics"]
        corpus = "official" if data["official"] else f"NOT OFFICIAL: {data['note']}"
        paper, replication = PAPER.get(record["row"].split("-")[0], ("-", "-"))
        cells = [
            record["row"],
            "; ".join(filter(None, [corpus, record["note"]])),
            data["vectors"],
            str(len(record["history"])),
            f"{metrics['dev_accuracy']:.2%}"[:-1],
            f"{metrics['test_accuracy']:.2%}"[:-1],
            paper,
            replication,
            f"[{name}](results/{name})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ptb(found: Records) -> str:
    rows: Rows = []
    for name, record in found.items():
        if record["experiment"] != "ptb":
            continue
        data, metrics = record["data"], record["metrics"]
        corpus = "official" if data["official"] else data["note"]
        paper, replication = PAPER_PERPLEXITY.get(record["row"].split("-")[0], ("-", "-"))
        rows.append(
            {
                "row": record["row"],
                "data": "; ".join(filter(None, [corpus, record["note"]])),
                "million parameters": f"{metrics['parameters'] / 1e6:.2f}",
                "epochs": len(record["history"]) or "-",
                "validation": f"{metrics['valid_perplexity']:.1f}",
                "test": f"{metrics['test_perplexity']:.1f}",
                "paper": paper,
                "replication": replication,
                "record": f"[{name}](results/{name})",
            }
        )
    title = "### Penn Treebank, perplexity of a word"
    if not rows:
        return f"{title}\n\nNot measured yet."
    return "\n\n".join([title, flat(rows, list(rows[0])), f"![{title[4:]}](ptb.svg)"])


def iwslt(found: Records) -> str:
    rows: Rows = []
    pictures = []
    for name, record in found.items():
        if record["experiment"] != "iwslt":
            continue
        data, metrics = record["data"], record["metrics"]
        paper, replication = PAPER_BLEU.get(record["row"].split("-")[0], ("-", "-"))
        rows.append(
            {
                "row": record["row"],
                "data": "; ".join(filter(None, [data["note"], record["note"]])),
                "million parameters": f"{metrics['parameters'] / 1e6:.2f}",
                "million characters seen": f"{metrics['characters'] / 1e6:.1f}",
                "dev perplexity": f"{metrics['dev_perplexity']:.2f}",
                "dev BLEU": f"{metrics['dev_bleu']:.2f}",
                "test BLEU": f"{metrics['test_bleu']:.2f}",
                "paper": paper,
                "replication": replication,
                "record": f"[{name}](results/{name})",
            }
        )
        pictures.append(f"![attention, {name}]({plot_name(record)})")
    title = "### IWSLT 2016 German-English by characters"
    if not rows:
        return f"{title}\n\nNot measured yet."
    text = (
        "Perplexity is that of a character of the references. BLEU is sacrebleu's (13a), of the "
        "text as it is: the paper's script is not known, and its numbers are for official, cased "
        "data."
    )
    return "\n\n".join([title, flat(rows, list(rows[0])), text, *pictures])


def benchmark(experiment: str, found: Records) -> str:
    """The section of one benchmark: for each device its tables, plot, name and record."""
    title, render = SECTIONS[experiment]
    parts = [f"### {title}"]
    for name, record in found.items():
        if record["experiment"] != experiment:
            continue
        parts += render(record["table"])
        if experiment in PLOTS:
            parts.append(f"![{title}, {record['device']}]({plot_name(record)})")
        about = "; ".join(filter(None, [record["device"], record.get("note")]))
        parts.append(f"{about}; [{name}](results/{name})")
    return "\n\n".join(parts if len(parts) > 1 else [*parts, "Not measured yet."])


def figure4(rows: Rows) -> list[str]:
    parts = []
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
                text += f"; the matrix products take {share:.0%} of the layer's time (median)"
                parts += [text, pivot(cells, ["batch"], ["length"], number(column))]
                continue
            ahead = sum(row[column] > row["paper_ratio"] for row in cells)
            text += f"; above the paper's number, in brackets, in {ahead} of {len(cells)} cells"
            parts += [text, pivot(cells, ["batch"], ["length"], beside_paper(column))]
    return parts


def scan(rows: Rows) -> list[str]:
    return [
        "The share of a large copy's bytes per second; after the slash as a CUDA graph.",
        pivot(rows, ["kind", "columns"], ["length"], two("share", "graph_share", ".0%")),
    ]


def peers(rows: Rows) -> list[str]:
    ran = [row for row in rows if row["batch"] is not None]
    down, across = ["peer", "mode"], ["batch", "length", "units"]
    why = dict.fromkeys(f"- {r['peer']}: {r['reason']}" for r in rows if r["reason"])
    parts = ["The other's time over linear_recurrence's; after the slash as CUDA graphs."]
    if ran:
        parts.append(pivot(ran, down, across, two("ratio", "graph_ratio", ".2f")))
    return [*parts, "\n".join(["Not measured:", "", *why])] if why else parts


def growth(rows: Rows) -> list[str]:
    text = "The time of forward and backward over that of the smallest, by what is multiplied."
    return [text, pivot(rows, ["varies"], ["factor"], number("ratio"))]


def convolution(rows: Rows) -> list[str]:
    parts = ["The time of each way over that of windows and one product."]
    for [dtype, mode], cells in grouped(rows, "dtype", "mode"):
        down, across = ["kernel", "inputs"], ["length", "batch", "way"]
        parts += [f"{mode}, {dtype}", pivot(cells, down, across, number("ratio"))]
    return parts


def ptb_step(rows: Rows) -> list[str]:
    columns = ("model", "part", "share", "paper_share", "lstm_over_qrnn", "paper_lstm_over_qrnn")
    return [flat(rows, [*columns, "ms", "paper_ms"])]


def translation(rows: Rows) -> list[str]:
    columns = ("model", "parameters", "speed_over_lstm", "ms")
    return ["Characters a second in training, as multiples of the LSTM's.", flat(rows, columns)]


def start(rows: Rows) -> list[str]:
    text = "Perplexity in training and on validation; the last epoch at a quarter of the rate."
    measured = ("train_perplexity", "valid_perplexity")
    shown = [row | {name: f"{row[name]:.1f}" for name in measured} for row in rows]
    return [text, flat(shown, ["weights", "forget_bias", "epoch", *measured])]


def memory(rows: Rows) -> list[str]:
    sizes = {"ours_bytes": "ours", "lstm_bytes": "nn.LSTM", "torchqrnn_bytes": "as torchqrnn"}
    shown = [
        {**row, **{name: f"{row[column] / 2**20:.1f}" for column, name in sizes.items()}}
        for row in rows
    ]
    return ["In MiB.", flat(shown, ["batch", "length", "units", "dtype", *sizes.values()])]


def flat(rows: Rows, columns: Sequence[str]) -> str:
    """A Markdown table of those of the columns that the rows have."""
    columns = [column for column in columns if column in rows[0]]
    lines = [columns, ["---"] * len(columns)]
    lines += [["-" if row[c] is None else str(row[c]) for c in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


SECTIONS: dict[str, tuple[str, Callable[[Rows], list[str]]]] = {
    "bench-figure4": ("Speed: QRNN layer over nn.LSTM, 320 units", figure4),
    "bench-ptb-step": (
        "A language model's training step: two layers, 640 units, 20 x 105",
        ptb_step,
    ),
    "ptb-start": ("How the language model of PTB starts", start),
    "bench-scan": ("The recurrences alone", scan),
    "bench-peers": ("Other kernels for h_t = f_t h_(t-1) + x_t", peers),
    "bench-memory": ("Memory of a layer, forward and backward", memory),
    "bench-growth": ("How a layer's time grows", growth),
    "bench-translation": ("Speed of translation models in training, 4 x 320", translation),
    "bench-convolution": ("Ways to the pre-activations", convolution),
}


def grouped(rows: Rows, *keys: str) -> list[tuple[list[Any], Rows]]:
    """The rows by their values at `keys`, in the order of first appearance."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [(list(values), group) for values, group in groups.items()]


def pivot(
    rows: Rows, down: Sequence[str], across: Sequence[str], cell: Callable[[dict[str, Any]], str]
) -> str:
    """A Markdown table with a line per value of the keys `down`, a column per value of `across`."""
    columns = [values for values, _ in grouped(rows, *across)]
    head = [f"{', '.join(down)} \\ {', '.join(across)}"]
    lines = [head + [", ".join(map(str, values)) for values in columns]]
    lines.append(["---"] * len(lines[0]))
    for values, group in grouped(rows, *down):
        cells = {tuple(row[key] for key in across): cell(row) for row in group}
        line = [cells.get(tuple(column), "-") for column in columns]
        lines.append([", ".join(map(str, values)), *line])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(column: str, form: str = ".2f") -> Callable[[dict[str, Any]], str]:
    return lambda row: "-" if row[column] is None else format(row[column], form)


def two(first: str, second: str, form: str) -> Callable[[dict[str, Any]], str]:
    """Both columns, the second one only where it was measured."""

    def cell(row: dict[str, Any]) -> str:
        columns = [first] if row[second] is None else [first, second]
        return " / ".join(number(column, form)(row) for column in columns)

    return cell


def beside_paper(column: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{number(column)(row)} ({row['paper_ratio']})"


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def plot_name(record: Record) -> str:
    seed = "" if record["seed"] is None else f"-seed{record['seed']}"
    return f"{record['experiment']}-{record['row']}{seed}.svg"


def figure4_plot(record: Record) -> str:
    """A coloured grid per mode and dtype, blue where the QRNN layer is faster; a graph's ratio
    where there is one."""
    from matplotlib.colors import TwoSlopeNorm

    groups = grouped(record["table"], "mode", "dtype")
    figure = _figure(4.2 * len(groups), 3.6)
    for axes, ([mode, dtype], rows) in zip(_panels(figure, len(groups)), groups, strict=True):
        column = "ratio" if any(row["graph_ratio"] is None for row in rows) else "graph_ratio"
        ratios = {(row["batch"], row["length"]): row[column] for row in rows}
        batches, lengths = (list(dict.fromkeys(key)) for key in zip(*ratios, strict=True))
        colours = [[math.log(ratios[b, t]) for t in lengths] for b in batches]
        axes.imshow(colours, cmap="RdBu", norm=TwoSlopeNorm(0, -math.log(10), math.log(10)))
        for (b, t), value in ratios.items():
            place = (lengths.index(t), batches.index(b))
            dark = abs(math.log(value)) > math.log(10) * 0.6
            axes.text(*place, f"{value:.2f}", ha="center", va="center", color="kw"[dark])
        axes.set_xticks(range(len(lengths)), map(str, lengths))
        axes.set_yticks(range(len(batches)), map(str, batches))
        how = ", CUDA graphs" if column == "graph_ratio" else ""
        axes.set(xlabel="length", ylabel="batch", title=f"{mode}, {dtype}{how}")
    figure.suptitle(f"times as fast as nn.LSTM, {record['device']}")
    return _svg(figure)


def scan_plot(record: Record) -> str:
    """The share of a copy's bandwidth over the bytes moved."""
    figure = _figure(6.4, 4)
    [axes] = _panels(figure, 1)
    for [kind], rows in grouped(record["table"], "kind"):
        column = "share" if any(row["graph_share"] is None for row in rows) else "graph_share"
        points = sorted((row["bytes"] / 2**20, 100 * row[column]) for row in rows)
        axes.plot(*zip(*points, strict=True), "o", label=kind)
    axes.set_xscale("log")
    axes.set(xlabel="MiB to move", ylabel="% of a large copy's bandwidth", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(record["device"])
    return _svg(figure)


def ptb_curves(found: Records) -> str:
    """Validation perplexity over the epochs, beside the best of the paper and the replication."""
    figure = _figure(6.4, 4)
    [axes] = _panels(figure, 1)
    for record in found.values():
        if record["experiment"] == "ptb" and record["history"]:
            curve = [epoch["validation_perplexity"] for epoch in record["history"]]
            label = f"{record['row']}, seed {record['seed']}"
            axes.plot(range(1, len(curve) + 1), curve, ".-", label=label)
    axes.axhline(82.1, color="black", lw=1, ls="--", label="paper, zoneout (after 72 epochs)")
    axes.axhline(108.86, color="grey", lw=1, ls=":", label="replication (on test)")
    axes.set_yscale("log")
    axes.set_yticks(ticks := (60, 80, 100, 150, 200, 300, 500), list(map(str, ticks)))
    axes.minorticks_off()
    axes.set(xlabel="epoch", ylabel="perplexity on validation")
    axes.grid(alpha=0.3)
    axes.legend()
    return _svg(figure)


def attention_plot(record: Record) -> str:
    """Where the decoder looks in one sentence of dev, as it reads the reference."""
    told = record["attention"]
    source, target = told["source"], told["target"]
    figure = _figure(0.16 * len(source) + 1.2, 0.16 * len(target) + 1)
    [axes] = _panels(figure, 1)
    axes.imshow(told["weights"], cmap="Blues", vmin=0)
    axes.set_xticks(range(len(source)), source, fontsize=7)
    axes.set_yticks(range(len(target)), target, fontsize=7)
    axes.set(xlabel="source", ylabel="target", title=f"{record['row']}, seed {record['seed']}")
    return _svg(figure)


PLOTS: dict[str, Callable[[Record], str]] = {
    "bench-figure4": figure4_plot,
    "bench-scan": scan_plot,
    "iwslt": attention_plot,
}


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # slow to import, and not needed without benchmarks

    return Figure(figsize=(width, height), layout="constrained")


def _panels(figure: Any, count: int) -> list[Any]:
    return list(figure.subplots(1, count, squeeze=False)[0])


def _svg(figure: Any) -> str:
    """The same bytes for the same figure: no date, and ids that do not change."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": "qrnn", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


if __name__ == "__main__":
    main()
