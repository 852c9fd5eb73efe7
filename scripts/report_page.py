"""What the report is made of, and its two writers: Markdown, and one HTML page that needs no other
file.

What records say is text to both of them: none of it becomes markup. Links are relative to reports/.
"""

import base64
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote


@dataclass(frozen=True)
class Link:
    text: str
    target: str


@dataclass(frozen=True)
class Mark:
    """A word that the page shows as a label, and what it has to say. `kind` gives the colour."""

    word: str
    kind: Literal["good", "note", "warn", "none"]
    text: str = ""


Piece = str | Link | Mark
Line = tuple[Piece, ...]


@dataclass(frozen=True)
class Paragraph:
    pieces: Line  # joined as they are


@dataclass(frozen=True)
class Items:
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its heading; the pieces of a cell stand under each other.

    records: file names of those that all of its numbers come from; a table whose rows have records
    of their own has none.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Line]]
    records: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A plot for reports/NAME.svg; `text` says what is to be seen, for those who cannot see it."""

    name: str
    svg: str
    caption: str
    text: str
    records: Sequence[str]


Part = Paragraph | Items | Table | Figure


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    parts: Sequence[Part]


def links(names: Iterable[str]) -> Iterator[Link]:
    """A link to each record; a further seed of the same row is named by its number alone."""
    before = None
    for name in names:
        row, seed, number = name.removesuffix(".json").rpartition("-seed")
        yield Link(f"seed {number}" if seed and row == before else name, f"results/{name}")
        before = row


def seeds(names: Iterable[str]) -> Iterator[Link]:
    """A link to each record of one row, whose name stands beside them."""
    for name in names:
        yield Link(f"seed {name.removesuffix('.json').rpartition('-seed')[2]}", f"results/{name}")


# Markdown


def markdown(section: Section, level: int, base: str = "") -> str:
    """`base` is the way from the file to reports/, such as "reports/"."""
    title = f"{'#' * level} {_plain(section.title)}"
    return "\n\n".join([title, *(_markdown(part, base) for part in section.parts)])


def _markdown(part: Part, base: str) -> str:
    match part:
        case Paragraph(pieces):
            return "".join(_inline(piece, base) for piece in pieces)
        case Items(lines):
            return "\n".join("- " + "".join(_inline(p, base) for p in line) for line in lines)
        case Table(caption, head, rows, names):
            cells = [[_plain(cell) for cell in head], ["---"] * len(head)]
            cells += [[_cell(cell, base) for cell in row] for row in rows]
            table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
            return f"{_credit(caption, names, base)}\n\n{table}"
        case Figure(name, _, caption, text, names):
            picture = f"![{_plain(text)}]({base}{quote(name)}.svg)"
            return f"{picture}\n\n{_credit(caption, names, base)}"


def _credit(caption: str, names: Sequence[str], base: str) -> str:
    told = ", ".join(_inline(link, base) for link in links(names))
    return f"{_plain(caption)} ({told})" if told else _plain(caption)


def _cell(cell: str | Line, base: str) -> str:
    pieces = (cell,) if isinstance(cell, str) else cell
    return "; ".join(_inline(piece, base) for piece in pieces)


def _inline(piece: Piece, base: str) -> str:
    match piece:
        case Link(text, target):
            where = target if ":" in target else base + quote(target)
            return f"[{_plain(text)}]({where})"
        case Mark(word, _, text):
            return _plain(f"{word}: {text}" if text else word)
        case str():
            return _plain(piece)


def _plain(text: str) -> str:
    """Escapes what Markdown, or HTML in it, would take for markup; a backslash only where it would
    itself escape something."""
    return re.sub(r"[|<>\[\]*`&]|\\(?=[^\w\s])", r"\\\g<0>", re.sub(r"\s+", " ", text))


# HTML


def page(title: str, opening: Sequence[Part], sections: Sequence[Section]) -> str:
    """A whole page: styles and plots are in it, and it has no scripts."""
    places = "".join(f'<li><a href="#{s.name}">{html.escape(s.title)}</a></li>' for s in sections)
    body = [f"<h1>{html.escape(title)}</h1>", *map(_html, opening)]
    body.append(f'<nav aria-label="Sections"><ul>{places}</ul></nav>')
    for section in sections:
        body.append(f'<section id="{section.name}">\n<h2>{html.escape(section.title)}</h2>')
        body += [*_figures_together(section.parts), "</section>"]
    return (
        HEAD.replace("TITLE", html.escape(title))
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _figures_together(parts: Sequence[Part]) -> Iterator[str]:
    """Figures that follow each other stand side by side where there is room."""
    inside = False
    for part in parts:
        if isinstance(part, Figure) != inside:
            inside = not inside
            yield '<div class="plots">' if inside else "</div>"
        yield _html(part)
    if inside:
        yield "</div>"


def _html(part: Part) -> str:
    match part:
        case Paragraph(pieces):
            return f"<p>{''.join(map(_span, pieces))}</p>"
        case Items(lines):
            items = "".join(f"<li>{''.join(map(_span, line))}</li>" for line in lines)
            return f"<ul>{items}</ul>"
        case Table(caption, head, rows, names):
            top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
            body = "\n".join(f"<tr>{''.join(_cells(row))}</tr>" for row in rows)
            return (
                f'<div class="scroll" role="region" aria-label="{html.escape(caption)}" '
                f'tabindex="0"><table>\n'
                f"<caption><span>{_credits(caption, names)}</span></caption>\n"
                f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
            )
        case Figure(_, svg, caption, text, names):
            data = base64.b64encode(svg.encode()).decode()
            [size] = re.findall(r'<svg [^>]*\bwidth="([\d.]+)pt" height="([\d.]+)pt"', svg)
            width, height = (round(float(n) * 96 / 72) for n in size)
            return (
                f'<figure style="--width:{width}px"><div class="scroll" role="region" '
                f'aria-label="{html.escape(caption)}" tabindex="0">'
                f'<img src="data:image/svg+xml;base64,{data}" width="{width}" height="{height}" '
                f'alt="{html.escape(text)}"></div>\n'
                f"<figcaption>{_credits(caption, names)}</figcaption></figure>"
            )


def _cells(row: Sequence[str | Line]) -> Iterator[str]:
    for n, cell in enumerate(row):
        pieces = (cell,) if isinstance(cell, str) else cell
        text = "<br>".join(map(_span, pieces))
        if n == 0:
            yield f'<th scope="row">{text}</th>'
        elif isinstance(cell, str) and re.fullmatch(r"-|[-\d.,%()/±= n]*\d[-\d.,%()/±= n]*", cell):
            under = text.replace(" (", "<br>(")  # what is in brackets stands under the number
            yield f'<td class="number">{under}</td>'
        else:
            yield f"<td>{text}</td>"


def _credits(caption: str, names: Sequence[str]) -> str:
    told = ", ".join(map(_span, links(names)))
    return f"{html.escape(caption)} <small>({told})</small>" if told else html.escape(caption)


def _span(piece: Piece) -> str:
    match piece:
        case Link(text, target):
            where = target if ":" in target else quote(target)
            return f'<a href="{html.escape(where)}">{html.escape(text)}</a>'
        case Mark(word, kind, text):
            return (
                f'<span class="mark {kind}">{html.escape(word)}</span> {html.escape(text)}'.rstrip()
            )
        case str():
            return html.escape(piece)


HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>TITLE</title>
<link rel="icon" href="data:,">
<style>
:root { --page: #fff; --panel: #f6f7f9; --text: #1c2126; --soft: #59636e; --rule: #d5dae0;
  --link: #0a58ca; --good: #dff3e4; --good-text: #14532d; --note: #e1ecfb; --note-text: #1e3a6e;
  --warn: #fde8d0; --warn-text: #7a3300; --none: #e9ecef; --none-text: #4a535c; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --page: #15181c; --panel: #1e2328; --text: #e4e7eb; --soft: #a5afba;
    --rule: #3a424b; --link: #8ab8ff; --good: #163c25; --good-text: #a6e3b8; --note: #1c3357;
    --note-text: #b5d1ff; --warn: #542b0a; --warn-text: #ffcf9e; --none: #2d343b;
    --none-text: #bcc5ce; }
  img { filter: invert(.91) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 .75rem; }
p, li { max-width: 44rem; overflow-wrap: anywhere; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .35rem; list-style: none; margin: 1.25rem 0;
  padding: 0; }
nav a { display: block; padding: .3rem .7rem; border: 1px solid var(--rule); border-radius: 1rem;
  text-decoration: none; font-size: .875rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
div.scroll:has(> table) { margin: 1rem 0; border: 1px solid var(--rule); border-radius: .5rem;
  width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4; }
caption { text-align: left; padding: .6rem .75rem; color: var(--soft); background: var(--panel);
  border-bottom: 1px solid var(--rule); }
caption span { position: sticky; left: .75rem; display: inline-block; overflow-wrap: anywhere;
  max-width: min(70rem, calc(100vw - 4rem)); }
small { font-size: .9em; }
th, td { text-align: left; vertical-align: top; padding: .45rem .75rem;
  border-bottom: 1px solid var(--rule); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child { position: sticky; left: 0; background: var(--page); min-width: 6.5rem;
  max-width: 9rem; overflow-wrap: anywhere; border-right: 1px solid var(--rule); }
td { min-width: 3.5rem; }
td:not(.number) { min-width: 13rem; }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
tr:has(.none) > * { color: var(--soft); font-weight: 400; }
.mark { display: inline-block; padding: 0 .45rem; border-radius: .6rem; font-size: .92em;
  font-weight: 600; white-space: nowrap; }
.good { background: var(--good); color: var(--good-text); }
.note { background: var(--note); color: var(--note-text); }
.warn { background: var(--warn); color: var(--warn-text); }
.none { background: var(--none); color: var(--none-text); }
.plots { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
figure { margin: .5rem 0; max-width: 100%; flex: 0 1 var(--width); min-width: 0; }
figcaption { color: var(--soft); font-size: .875rem; overflow-wrap: anywhere; }
img { display: block; width: var(--width); max-width: 100%; height: auto;
  min-width: calc(var(--width) * .7); }
@media (max-width: 40rem) {
  th, td { padding: .4rem .45rem; }
}
@media print {
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 6.5pt; }
  th, td { padding: 2pt 3pt; }
  td { overflow-wrap: anywhere; }
  th:first-child, td, td:not(.number), img { min-width: 0; }
  h2, caption { break-after: avoid; }
  tr, figure { break-inside: avoid; }
}
</style>
</head>
<body>
<main>
"""
