"""Renders README.md's tables, reports/README.md and reports/index.html from the records:

    python scripts/report.py

Every number comes from a file in reports/results/, named beside it. In README.md the text between
<!-- NAME --> and <!-- /NAME --> is replaced. The same records give the same bytes. A record that
does not fit is refused by name, and nothing is written. With --results FOLDER the two pages are
those of the records in FOLDER, and lie beside them.
"""

import argparse
import re
import sys
from pathlib import Path

import records
import report_benchmarks
import report_page
import report_plots
import report_schema
import report_tasks
from files import write_atomically
from report_page import Figure, Items, Link, Mark, Paragraph, Part, Section, Table

REPORTS = Path("reports")
PLOT_IN_README = "bench-figure4"
RECORD = re.compile(r"(\]\(|href=\")results/")  # how a link to one begins
EXPLAINED = (
    Mark("official data", "good", "the training data is the official corpus, by its content"),
    Mark(
        "as published", "good", "model and recipe are the published ones, as far as they are stated"
    ),
    Mark("own model", "good", "this project's, of which nothing was published"),
    Mark("changed", "note", "another model or recipe than the published one, and what differs"),
    Mark("NOT OFFICIAL", "warn", "other data: not comparable with the published numbers"),
    Mark("no record yet", "none", "published, or planned here, and not measured yet"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--results", type=records.report_folder, default=records.RESULTS, metavar="FOLDER"
    )
    results = parser.parse_args().results
    if not results.is_dir():
        parser.error(f"--results: there is no folder {results}")
    try:
        render(results)
    except (records.RecordError, ValueError) as error:
        sys.exit(f"error: {error}; nothing was rendered")


def render(results: Path = records.RESULTS) -> None:
    """Raises RecordError, and ValueError for a README.md without the marks."""
    found = records.load(results)
    for name, record in found.items():
        report_schema.check(name, record)
    sections = [make(found) for make in report_tasks.SECTIONS.values()]
    sections += [report_benchmarks.section(name, found) for name in report_benchmarks.SECTIONS]
    overview = report_tasks.overview(found)
    opening = introduction(report_tasks.summary(found))
    sections.insert(0, overview)
    parts = "\n\n".join(report_page.markdown(part, 2) for part in [opening, *sections])
    told = "Made by scripts/report.py from the records; do not edit. [index.html](index.html) "
    told += "is the same as one page that needs no other file."
    pages = {
        "README.md": f"# Results\n\n{told}\n\n{parts}\n",
        "index.html": report_page.page(records.TITLE, opening.parts, sections),
    }
    plots = {
        f"{part.name}.svg": part.svg
        for section in sections
        for part in section.parts
        if isinstance(part, Figure)
    }
    committed = records.is_default(results)
    folder = REPORTS if committed else results
    if not committed:
        pages = {name: RECORD.sub(r"\1", text) for name, text in pages.items()}
    files = {folder / name: text for name, text in (pages | plots).items()}
    if committed:
        [speed] = (section for section in sections if section.name == PLOT_IN_README)
        readme = Path("README.md")
        files[readme] = readme.read_text(encoding="utf-8")
        for section, level in ((overview, 2), (speed, 3)):
            part = report_page.markdown(shortened(section), level, f"{REPORTS.name}/")
            files[readme] = replace(files[readme], section.name, part)
    for file, content in files.items():
        write_atomically(file, content)
    for plot in folder.glob("*.svg"):
        if plot.name in plots or not plot.is_file():
            continue
        if report_plots.made_here(plot.read_text("utf-8", "replace")):
            plot.unlink()


def shortened(section: Section) -> Section:
    """For README.md: of a plot not its table, and of notes not their links."""
    plots = any(isinstance(part, Figure) for part in section.parts)
    parts: list[Part] = []
    for part in section.parts:
        if isinstance(part, Items):
            parts.append(Items(tuple(line[:1] for line in part.lines)))
        elif not (plots and isinstance(part, Table)):
            parts.append(part)
    return Section(section.name, section.title, parts)


def introduction(summary: str) -> Section:
    paper = Link("Quasi-Recurrent Neural Networks", "https://arxiv.org/abs/1611.01576")
    first: tuple[Part, ...] = (
        Paragraph(
            (
                *("Measured here, beside the paper's numbers (", paper, ", Bradbury et al. 2016) "),
                "and those of its replication (Girrbach 2020). Every number links to the record of "
                "the run that it comes from. Several seeds of a row are one line: their mean, the "
                "95 % interval of the mean by Student's t, and how many they are.",
            )
        ),
        Paragraph((summary,)),
        Items(tuple((mark,) for mark in EXPLAINED)),
    )
    return Section("about", "What is compared", first)


def replace(page: str, name: str, part: str) -> str:
    """`page` with `part` between the marks of that name; ValueError when they are not there."""
    pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"README.md: expected one <!-- {name} --> ... <!-- /{name} -->")
    return pattern.sub(lambda match: f"{match[1]}{part}\n{match[2]}", page)


if __name__ == "__main__":
    main()
