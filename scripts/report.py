"""Renders the tables of README.md and reports/ from the records: python scripts/report.py

Every number comes from a file in reports/results/, named beside it. In README.md the text between
<!-- NAME --> and <!-- /NAME --> is replaced.
"""

import re
from pathlib import Path
from typing import Any

import benchmark
import records
from fetch import write_atomically

REPORTS = Path("reports")
Records = dict[str, dict[str, Any]]

PAPER = {  # row: test accuracy in the paper, in Girrbach's replication
    "k2": ("91.4", "88.36"),
    "k4": ("91.1", "87.12"),
    "lstm": ("90.9", "-"),
}


def main() -> None:
    found = records.load(records.RESULTS)
    parts = {"imdb": imdb(found), "bench-cpu": bench_cpu(found)}
    text = "# Results\n\nMade by `make report` from the records in results/; do not edit.\n"
    text += "".join(f"\n{part}\n" for part in parts.values())
    write_atomically(REPORTS / "README.md", text)
    readme = Path("README.md")
    page = readme.read_text(encoding="utf-8")
    for name, part in parts.items():
        page = replace(page, name, part.replace("](results/", f"]({REPORTS.name}/results/"))
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


def bench_cpu(found: Records) -> str:
    parts = ["### Speed on the CPU: QRNN layer over nn.LSTM, 320 units, float32"]
    for name, record in found.items():
        if record["experiment"] == "bench-cpu":
            parts += [benchmark.render(record), f"{record['device']}; [{name}](results/{name})"]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
