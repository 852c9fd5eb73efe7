"""The plots of the report, as SVG texts that are the same bytes for the same numbers."""

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec

P = ParamSpec("P")
WIDTH = 4.4  # inches: still legible where a phone shows it at three quarters of that
CREATOR = "scripts/report.py"  # by which a plot in reports/ is known to be the report's
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "legend.fontsize": 8,
    "svg.hashsalt": "qrnn",
    "svg.fonttype": "none",
    "text.parse_math": False,  # what a record says is no formula
}


class Panel(NamedTuple):
    """A diagram of learning curves.

    curves: by their label, (x, y) of each run. lines: published values, with labels.
    ticks: of a logarithmic y axis; a linear one without.
    """

    ylabel: str
    curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]
    lines: Sequence[tuple[float, str]]
    ticks: Sequence[float] = ()


def made_here(svg: str) -> bool:
    return f"<dc:title>{CREATOR}</dc:title>" in re.sub(r">\s+<", "><", svg)


def _rendered(draw: Callable[P, Any]) -> Callable[P, str]:
    @functools.wraps(draw)
    def render(*args: P.args, **kwargs: P.kwargs) -> str:
        from matplotlib import rc_context, rcdefaults, rcParams  # slow to import

        file = io.StringIO()
        with rc_context():
            rcdefaults()  # whatever a matplotlibrc says
            rcParams.update(STYLE)
            about = {"Date": None, "Creator": CREATOR}
            draw(*args, **kwargs).savefig(file, format="svg", metadata=about)
        return file.getvalue()

    return render


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, list[Any]]:
    """Panels stand under each other, so that a narrow screen shows them as large as a wide one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(panels, 1, squeeze=False)[:, 0])


@_rendered
def curves(xlabel: str, panels: Sequence[Panel]) -> Any:
    labels = list(dict.fromkeys(label for panel in panels for label in panel.curves))
    entries = max(len(panel.curves) + len(panel.lines) for panel in panels)
    figure, diagrams = _figure(WIDTH, len(panels) * 2.4 + 0.4 + 0.17 * entries, len(panels))
    for axes, panel in zip(diagrams, panels, strict=True):
        for label, runs in panel.curves.items():
            for n, (x, y) in enumerate(runs):
                told = label if n == 0 else "_"  # a run more, no entry more
                axes.plot(x, y, ".-", color=f"C{labels.index(label)}", lw=1.2, label=told)
        for (value, label), dashes in zip(panel.lines, ("--", ":", "-."), strict=False):
            axes.axhline(value, color="black", lw=1, ls=dashes, label=label)
        if panel.ticks:
            axes.set_yscale("log")
            axes.set_yticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
            axes.minorticks_off()
        axes.set(xlabel=xlabel, ylabel=panel.ylabel)
        axes.set_xlim(0, None)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    figure.legend(*diagrams[0].get_legend_handles_labels(), loc="outside lower left", frameon=False)
    return figure


@_rendered
def attention(source: Sequence[str], target: Sequence[str], weights: Any) -> Any:
    figure, [axes] = _figure(0.15 * len(source) + 0.8, 0.15 * len(target) + 0.7)
    axes.imshow(weights, cmap="Blues", vmin=0)
    axes.set_xticks(range(len(source)), source, fontsize=7)
    axes.set_yticks(range(len(target)), target, fontsize=7)
    axes.set(xlabel="source", ylabel="target")
    return figure


@_rendered
def grids(tables: Mapping[str, Mapping[tuple[int, int], float]]) -> Any:
    """By title, a grid of ratios by (batch, length): blue above 1, red below, on a log scale."""
    from matplotlib.colors import TwoSlopeNorm

    figure, diagrams = _figure(WIDTH, 3.3 * len(tables), len(tables))
    for axes, (title, ratios) in zip(diagrams, tables.items(), strict=True):
        batches, lengths = (list(dict.fromkeys(key)) for key in zip(*ratios, strict=True))
        colours = [[math.log(ratios.get((b, t), math.nan)) for t in lengths] for b in batches]
        limit = math.log(10)
        axes.imshow(colours, cmap="RdBu", norm=TwoSlopeNorm(0, -limit, limit), aspect="auto")
        for (b, t), value in ratios.items():
            place = (lengths.index(t), batches.index(b))
            dark = abs(math.log(value)) > 0.6 * limit
            axes.text(*place, f"{value:.2f}", ha="center", va="center", color="kw"[dark])
        axes.set_xticks(range(len(lengths)), map(str, lengths))
        axes.set_yticks(range(len(batches)), map(str, batches))
        axes.set(xlabel="length", ylabel="batch", title=title)
    return figure


@_rendered
def shares(points: Mapping[str, Sequence[tuple[float, float]]]) -> Any:
    """By kind, the share of a copy's bandwidth in % over the MiB moved."""
    figure, [axes] = _figure(WIDTH, 3.6)
    for kind, found in points.items():
        axes.plot(*zip(*sorted(found), strict=True), "o", ms=4, label=kind)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlabel="MiB to move", ylabel="% of a large copy's bandwidth", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", frameon=False, ncols=2)
    return figure
