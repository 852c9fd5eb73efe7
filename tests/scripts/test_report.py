import json
import re
import shutil
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import records
import report
import report_tasks

ROOT = Path(__file__).parents[2]
HOSTILE = "</td><script>alert(1)</script> | [x](javascript:alert) \"&amp;' <!-- /imdb --> `a` $x^$"
RECORD = {
    "experiment": "imdb",
    "row": "k2-subset",
    "seed": 1,
    "metrics": {"dev_accuracy": 0.8765, "test_accuracy": 0.8712},
    "history": [
        {"validation_accuracy": 0.85, "seconds": 1000.0},
        {"validation_accuracy": 0.8765, "seconds": 1500.0},
    ],
    "data": {"name": "imdb", "official": True, "vectors": "none (random start)"},
    "note": "5,000 reviews",
    "device": "GPU",
    "config_sha256": "0" * 64,
    "wall_seconds": 2500,
    "command": "python scripts/experiment.py",
}
GLOVE = RECORD["data"] | {"vectors": "GloVe 840B 300-d (content verified: sha256 of its archive)"}
FULL = RECORD | {"row": "k2", "note": "", "data": GLOVE}
TRANSLATION = RECORD | {
    "experiment": "iwslt",
    "row": "qrnn-small",
    "metrics": {
        **{"dev_bleu": 1.234, "test_bleu": 2.345, "dev_perplexity": 3.456, "test_perplexity": 4},
        **{"parameters": 1_172_224, "updates": 10, "characters": 21_030_000},
        **{"train_chars_per_second": 100.0},
    },
    "history": [
        {"steps": 5.0, "bleu": 0.75, "ppl": 5.5},
        {"steps": 10.0, "bleu": 1.125, "ppl": 3.5},
    ],
    "data": {
        **{"name": "iwslt", "official": False, "note": "NOT OFFICIAL: lower-cased"},
        "counts": {"train": {"en": {"characters": 123_400}}},
    },
    "attention": {"source": ["a", "$"], "target": ["c"], "weights": [[0.25, 0.75]]},
}
LANGUAGE = RECORD | {
    "experiment": "ptb",
    "row": "zoneout-small",
    "metrics": {"valid_perplexity": 123.45, "test_perplexity": 117.891, "parameters": 4_491_200},
    "history": [
        {"validation_perplexity": 300, "seconds": 40},
        {"validation_perplexity": 123.45, "seconds": 50},
    ],
    "data": {"name": "ptb", "official": True, "note": "content verified"},
    "note": "2 epochs",
}
START = {"weights": "N(0, 1)", "forget_bias": 0, "epoch": 1}
START |= {"train_perplexity": 801.98, "valid_perplexity": 440.04}
START = RECORD | {"experiment": "ptb-start", "row": "200", "table": [START]}
PAGE = "# x\n<!-- overview -->\nold\n<!-- /overview -->\n"
PAGE += "<!-- bench-figure4 -->\n<!-- /bench-figure4 -->\nend\n"


def bench(suite, row, table, note=""):
    fields = {"experiment": f"bench-{suite}", "row": row, "seed": None, "table": table}
    fields |= {"data": None, "note": note, "device": f"the {row}", "config_sha256": None}
    return {**fields, "wall_seconds": 2, "command": "python scripts/benchmark.py"}


def figure4(**columns):
    ratios = {(8, 32): 1.0, (8, 64): 2.0, (16, 32): 4.0, (16, 64): 8.0}
    fixed = {"mode": "inference", "dtype": "bfloat16", "lstm_dtype": "bfloat16"}
    fixed |= {"graph_ratio": None, "paper_ratio": 3.0, **columns}
    return [{**fixed, "batch": b, "length": t, "ratio": ratio} for (b, t), ratio in ratios.items()]


def scan():
    row = {"kind": "pool", "dtype": "float32", "columns": 320, "length": 64, "bytes": 2**21}
    row |= {"share": 0.456, "graph_share": 0.789}
    return [row, {**row, "length": 512, "graph_share": None}]


def peers():
    row = {"peer": "A", "batch": 2, "length": 4, "units": 8, "mode": "forward", "ratio": 1.256}
    row |= {"graph_ratio": 2.5, "reason": None}
    failed = row | {"length": 9, "ratio": None, "graph_ratio": None, "reason": "out of memory"}
    return [row, failed, {**dict.fromkeys(row), "peer": "B", "reason": "not here"}]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(PAGE, encoding="utf-8")
    records.write(records.RESULTS, RECORD)
    return tmp_path


def rendered(project):
    """README.md and reports/README.md."""
    report.render()
    return [(project / f).read_text(encoding="utf-8") for f in ("README.md", "reports/README.md")]


def test_every_number_is_rendered_beside_its_deviations_and_record(project):
    readme, page = rendered(project)
    row = (
        "| k2-subset; official data; changed | 87.12 | 91.4 | 88.36 | 87.65 | 2 | 1,250 "
        "| 5,000 reviews; word vectors: none (random start) "
        "| [seed 1](results/imdb-k2-subset-seed1.json); GPU |"
    )
    assert row in page
    assert "old" not in readme and readme.startswith("# x\n") and readme.endswith("end\n")
    curves = (project / "reports/imdb.svg").read_text(encoding="utf-8")
    assert "k2-subset" in curves and "![Accuracy on dev by epoch" in page


def test_a_cpus_seconds_are_not_told(project):
    for record in (RECORD, LANGUAGE, TRANSLATION):
        records.write(records.RESULTS, record | {"device": "CPU (AMD EPYC, 2 cores)"})
    _, page = rendered(project)
    assert "| 87.12 | 91.4 | 88.36 | 87.65 | 2 | - |" in page
    assert "| 123.5 | 4.49 | 2 | - |" in page and "| 1.17 | 21.0 | - |" in page


def test_own_models_stand_apart(project):
    records.write(records.RESULTS, RECORD | {"row": "pooled-cpu"})
    _, page = rendered(project)
    assert "| pooled-cpu; official data; own model | 87.12 | - | - |" in page
    assert "1 of the rows below are of a model or recipe that was changed, 1 of this" in page
    plots = [(project / f"reports/{f}.svg").read_text("utf-8") for f in ("imdb", "imdb-own")]
    assert ["pooled-cpu" in plot for plot in plots] == [False, True]
    assert ["k2-subset" in plot for plot in plots] == [True, False]


def test_what_was_published_and_not_measured_stays_visible(project):
    missing = (
        "| k2; no record yet | - | 91.4 | 88.36 | - | - | - (150) | dense QRNN, 4 x 256, k = 2 |"
    )
    _, page = rendered(project)
    assert missing in page
    assert "| replication; no record yet | - | - | 108.86 | - |" in page
    assert "| lstm; no record yet | - | 16.53 | - |" in page
    assert "Of 12 published results, 0 have been measured again" in page
    records.write(records.RESULTS, FULL)
    records.write(records.RESULTS, RECORD | {"row": "k2-cpu"})
    _, page = rendered(project)
    assert missing not in page
    assert (
        "| k2; official data; as published | 87.12 | 91.4 | 88.36 | 87.65 | 2 | 1,250 (150) |"
        in page
    )
    assert "Of 12 published results, 1 has been measured again" in page
    assert page.index("| k2; official") < page.index("| k2-cpu; ") < page.index("| k4; no record")


def test_seeds_are_one_line_with_students_interval(project):
    for seed, accuracy in enumerate((0.87, 0.88, 0.90), 1):
        metrics = {"dev_accuracy": 0.5, "test_accuracy": accuracy}
        records.write(records.RESULTS, FULL | {"seed": seed, "metrics": metrics})
    _, page = rendered(project)
    # s = 1.52753, and a t of 2 degrees of freedom is within 4.30265 with 95 %
    [row] = [line for line in page.splitlines() if line.startswith("| k2; ")]
    assert "| 88.33 ± 3.79 (n = 3) | 91.4 | 88.36 | 50.00 ± 0.00 (n = 3) |" in row
    links = [f"[seed {n}](results/imdb-k2-seed{n}.json)" for n in (1, 2, 3)]
    assert f"| {'; '.join(links)}; GPU |" in row
    curves = (project / "reports/imdb.svg").read_text(encoding="utf-8")
    assert curves.count("k2, 3 runs") >= 1 and "seed 2" not in curves


@pytest.mark.parametrize(
    "change", [{"data": GLOVE | {"fingerprint": "other"}}, {"metrics": {"parameters": 5}}]
)
def test_seeds_of_other_data_or_size_are_no_seeds_of_the_same(project, change):
    records.write(records.RESULTS, FULL)
    if metrics := change.get("metrics"):
        change = {"metrics": FULL["metrics"] | metrics}
    records.write(records.RESULTS, FULL | {"seed": 2} | change)
    _, page = rendered(project)
    assert "(n = " not in page and page.count("\n| k2; official data; as published |") == 2


def test_seeds_with_other_notes_name_them(project):
    for seed, note in enumerate(("window 500; L2", "window 2,000; L2", "L2; window 500"), 1):
        records.write(records.RESULTS, FULL | {"seed": seed, "note": note})
    _, page = rendered(project)
    assert (
        "| dense QRNN, 4 x 256, k = 2; window 500 (seed 1, 3); L2; window 2,000 (seed 2) |" in page
    )
    assert "| k2; official data; changed | 87.12 ± 0.00 (n = 3) |" in page


def test_the_overview_has_of_each_task_the_row_that_is_best_on_dev(project):
    best = FULL | {"metrics": FULL["metrics"] | {"dev_accuracy": 0.99, "test_accuracy": 0.5}}
    records.write(records.RESULTS, best)
    other = {"data": FULL["data"] | {"official": False, "note": "x"}, "row": "k2-other"}
    better = {"metrics": FULL["metrics"] | {"dev_accuracy": 1.0}}
    records.write(records.RESULTS, best | other | better)
    records.write(records.RESULTS, RECORD | {"row": "best-small"})
    records.write(records.RESULTS, LANGUAGE)
    readme, page = rendered(project)
    row = "| IMDb, accuracy in % | 50.00 | 91.4 | 88.36 | k2; official data; as published | 1 |"
    assert row in readme and row in page
    assert "\n- 1: as published\n" in readme and "\n- 1: as published ([seed 1](" in page
    assert "| IMDb, accuracy in % | 87.12 | 91.4 | 88.36 | best-small; " in readme
    pooled = report_tasks.IMDB["pooled"].model  # as row best was, before the name changed hands
    assert "; own model | 2 |" in readme and f"\n- 2: {pooled}; 5,000" in readme
    assert "| Penn Treebank, perplexity | 117.9 | 78.3 | 108.86 | zoneout-small; " in readme
    assert "| IWSLT German-English, BLEU | - | 19.41 | 12.34 | no record yet | - |" in readme


def test_what_is_said_of_several_rows_at_length_stands_once_below(project):
    long, short = "trained with what takes more than a line of this table to tell of", "2 epochs"
    for row in ("k2-a", "k2-b"):
        records.write(records.RESULTS, FULL | {"row": row, "note": f"{long}, and more; {short}"})
    _, page = rendered(project)
    assert page.count(f"\n- note a: {long}, and more\n") == 1
    for row in ("k2-a", "k2-b"):
        [line] = [line for line in page.splitlines() if line.startswith(f"| {row}; ")]
        assert f"| note a; {short} |" in line and long not in line


def test_data_that_is_not_official_says_so(project):
    data = {"name": "imdb", "official": False, "note": "a stand-in", "vectors": "none"}
    records.write(records.RESULTS, {**RECORD, "data": data})
    _, page = rendered(project)
    assert "| k2-subset; NOT OFFICIAL; changed | 87.12 |" in page
    assert "| data: a stand-in; 5,000 reviews; word vectors: none |" in page


def test_a_table_of_data_that_is_not_official_says_so(project):
    data = {"name": "ptb", "official": False, "note": "NOT OFFICIAL DATA: generated"}
    records.write(records.RESULTS, START | {"data": data})
    _, page = rendered(project)
    assert "GPU; 5,000 reviews; NOT OFFICIAL DATA: generated:" in page


def test_a_translation_is_rendered_with_its_curves_and_attention(project):
    path = records.write(records.RESULTS, TRANSLATION)
    _, page = rendered(project)
    row = "| qrnn-small; NOT OFFICIAL; changed | 2.35 | 19.41 | 12.34 | 1.23 | 3.46 | 1.17 | 21.0 "
    row += "| 1,234 | data: lower-cased; 5,000 reviews |"
    assert row in page and f"[{path.name}](results/{path.name})" in page
    assert "](iwslt-qrnn-small-seed1.svg)" in page and "](iwslt.svg)" in page
    assert "qrnn-small ends at 1.125" in page and "qrnn-small ends at 3.5" in page
    plot = (project / "reports/iwslt-qrnn-small-seed1.svg").read_text(encoding="utf-8")
    assert plot.startswith("<?xml") and ">$<" in plot


def test_how_was_calculated_is_told_and_is_no_change_of_the_model(project):
    records.write(records.RESULTS, FULL | {"note": "TF32 in matrix products"})
    _, page = rendered(project)
    row = next(line for line in page.splitlines() if line.startswith("| k2; official data; "))
    assert "as published" in row and "; TF32 in matrix products |" in row
    assert "Of 12 published results, 1 has been measured again" in page


def test_language_models_are_rendered_with_their_curves(project):
    path = records.write(records.RESULTS, LANGUAGE)
    records.write(records.RESULTS, START)
    _, page = rendered(project)
    row = "| zoneout-small; official data; changed | 117.9 | 78.3 | - | 123.5 | 4.49 | 2 "
    row += f"| 45 | 2 epochs | [seed 1](results/{path.name})"
    assert row in page
    curves = (project / "reports/ptb.svg").read_text(encoding="utf-8")
    assert "zoneout-small" in curves and "](ptb.svg)" in page
    assert "| N(0, 1) | 0 | 1 | 802.0 | 440.0 |" in page


def write_all(results):
    """Records of every kind, several seeds, and a hostile note."""
    for seed in (1, 2, 3):
        metrics = {"dev_accuracy": 0.9, "test_accuracy": 0.9 + seed / 100}
        records.write(results, FULL | {"seed": seed, "metrics": metrics})
    records.write(results, RECORD | {"row": "k4-cpu", "note": HOSTILE})
    data = RECORD["data"] | {"official": False, "note": HOSTILE}
    records.write(results, RECORD | {"row": "quick", "data": data, "device": HOSTILE})
    for record in (TRANSLATION, LANGUAGE, START):
        records.write(results, record)
    cpu, gpu = figure4(product_share=0.8), figure4(lstm_dtype="float16", graph_ratio=9.5)
    records.write(results, bench("figure4", "cpu", cpu, note=HOSTILE))
    records.write(results, bench("figure4", "some-gpu", gpu))
    records.write(results, bench("scan", "cpu", scan()))
    records.write(results, bench("peers", "cpu", peers()))


def test_plots_that_no_record_makes_any_more_are_removed_and_no_others(project):
    path = records.write(records.RESULTS, TRANSLATION)
    (project / "reports/drawn-by-hand.svg").write_text("<svg>é</svg>", encoding="latin-1")
    (project / "reports/lost.svg").symlink_to("nowhere")
    report.render()
    path.unlink()
    report.render()
    left = sorted(file.name for file in (project / "reports").glob("*.svg"))
    assert left == ["drawn-by-hand.svg", "imdb.svg", "lost.svg"]


def changed(record, part, **fields):
    return record | {part: record[part] | fields}


STEP = {"part": "RNN", "model": "QRNN", "share": 0.31}
UNFIT = {
    "experiment": RECORD | {"experiment": "imbd"},
    "row": RECORD | {"row": "$x"},
    "note": RECORD | {"note": 5},
    "seed": RECORD | {"seed": None},
    "metrics.dev_accuracy": RECORD | {"metrics": {"test_accuracy": 0.5}},
    "history[0].seconds": RECORD | {"history": [{"validation_accuracy": 1}]},
    "data.vectors": RECORD | {"data": {"official": True}},
    "data.official": START | {"data": {"name": "ptb"}},
    "data.note": RECORD | {"data": {"official": False, "vectors": "none"}},
    "attention": TRANSLATION | {"attention": TRANSLATION["attention"] | {"weights": [[0.25]]}},
    "data.fingerprint": RECORD | {"data": RECORD["data"] | {"fingerprint": ["0"]}},
    "data.note: expected a string": RECORD | {"data": RECORD["data"] | {"note": ["x"]}},
    "metrics.updates: expected a positive": changed(TRANSLATION, "metrics", updates=0),
    "metrics.train_chars_per_second: expected a positive": changed(
        TRANSLATION, "metrics", train_chars_per_second=0
    ),
    "data.counts: expected train.en.characters": changed(TRANSLATION, "data", counts=None),
    "data.counts: ": changed(TRANSLATION, "data", counts={"train": {"en": None}}),
    "table[1].ms is missing": bench("ptb-step", "cpu", [STEP | {"ms": 1.5}, STEP]),
    "table[1].paper_share is missing": bench(
        "ptb-step", "cpu", [STEP | {"paper_share": None}, STEP]
    ),
    "table[0].product_share": bench("figure4", "cpu", figure4(product_share="-")),
    "table: expected rows": bench("figure4", "cpu", []),
    "table[0].ratio": bench("figure4", "cpu", [figure4()[0] | {"ratio": 0}]),
    "table[1].graph_share": bench("scan", "cpu", [scan()[0], scan()[1] | {"graph_share": "-"}]),
    "metrics and history": RECORD | {"experiment": "ptb", "table": [{}]},
}


@pytest.mark.parametrize("named", UNFIT)
def test_a_record_that_does_not_fit_is_refused_by_name_and_nothing_is_written(project, named):
    path = records.write(records.RESULTS, UNFIT[named])
    with pytest.raises(records.RecordError, match=f"{re.escape(path.name)}.*{re.escape(named)}"):
        report.render()
    assert (project / "README.md").read_text(encoding="utf-8") == PAGE
    assert [file.name for file in (project / "reports").iterdir()] == ["results"]


def test_records_of_another_folder_have_their_report_beside_them(project, monkeypatch, capsys):
    path = records.write(Path("mine"), FULL)
    records.write(Path("mine"), TRANSLATION)
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", "mine"])
    report.main()
    assert (project / "README.md").read_text(encoding="utf-8") == PAGE
    assert [file.name for file in (project / "reports").iterdir()] == ["results"]
    page, html = (Path("mine", name).read_text("utf-8") for name in ("README.md", "index.html"))
    assert f"[seed 1]({path.name})" in page and f'href="{path.name}"' in html
    assert "results/" not in page and "results/" not in html
    assert "](iwslt-qrnn-small-seed1.svg)" in page
    assert Path("mine/iwslt-qrnn-small-seed1.svg").exists()
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", "yours"])
    with pytest.raises(SystemExit):
        report.main()
    assert "there is no folder yours" in capsys.readouterr().err and not Path("yours").exists()


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("reports", "reports holds the report of reports/results: name that folder"),
        ("reports/results/..", "reports/results/.. holds the report of"),
        (".", "README.md is no report, and would be overwritten"),
        ("site", "site/index.html is no report, and would be overwritten"),
    ],
)
def test_a_folder_whose_page_would_be_lost_is_refused(project, monkeypatch, capsys, folder, told):
    rendered(project)
    (project / "site").mkdir()
    (project / "site/index.html").write_text("<!doctype html><title>Mine</title>")
    before = {file: file.read_bytes() for file in project.rglob("*.*") if file.is_file()}
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", folder])
    with pytest.raises(SystemExit):
        report.main()
    assert told in capsys.readouterr().err
    assert {file: file.read_bytes() for file in project.rglob("*.*") if file.is_file()} == before


@pytest.mark.parametrize("folder", ["{0}/reports/results", "reports/../reports/results"])
def test_the_default_folder_is_known_however_it_is_spelt(project, monkeypatch, folder):
    expected = rendered(project)
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", folder.format(project)])
    for file in ("README.md", "reports/README.md"):
        (project / file).write_text(PAGE, encoding="utf-8")
    report.main()
    assert [
        (project / f).read_text("utf-8") for f in ("README.md", "reports/README.md")
    ] == expected
    assert not list(records.RESULTS.glob("*.md"))


def test_a_copy_of_a_record_is_no_other_seed(project, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py"])
    [path] = records.RESULTS.iterdir()
    shutil.copy(path, path.with_name("imdb-copy.json"))
    with pytest.raises(
        SystemExit, match=r"imdb-copy\.json: expected the name imdb-k2-subset-seed1"
    ):
        report.main()


def test_what_is_no_json_is_refused_by_name(project):
    (records.RESULTS / "bad.json").write_text("{")
    with pytest.raises(records.RecordError, match=r"bad\.json"):
        report.render()


def test_a_readme_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="<!-- imdb -->"):
        report.replace("# x\n", "imdb", "table")


def test_figure4_on_a_cpu_stands_beside_no_paper(project):
    records.write(records.RESULTS, bench("figure4", "cpu", figure4(product_share=0.814)))
    readme, page = rendered(project)
    link = "[bench-figure4-cpu.json](results/bench-figure4-cpu.json)"
    assert (
        "the cpu:\n\ninference, bfloat16: 2.83 times as fast (geometric mean); torch's matmul "
        f"alone, of as much, takes 81% of that time (median) ({link})\n\n"
        "| batch \\ length | 32 | 64 |\n| --- | --- | --- |\n| 8 | 1.00 | 2.00 |\n"
        "| 16 | 4.00 | 8.00 |\n"
    ) in page
    assert "which are for a GPU and its inference" in page and "| 16 | 3.0 | 3.0 |" in page
    assert "](reports/bench-figure4-cpu.svg)" in readme


def test_figure4_on_a_gpu_stands_beside_the_paper_and_eager_beside_graphs(project):
    table = figure4(lstm_dtype="float16", graph_ratio=9.5)
    records.write(records.RESULTS, bench("figure4", "some-gpu", table, note="TF32 off"))
    _, page = rendered(project)
    assert "2.83 times as fast (geometric mean) as nn.LSTM in float16; above the paper's" in page
    assert "in 2 of 4 cells" in page and "| 16 | 4.00 (3.0) | 8.00 (3.0) |" in page
    assert "bfloat16, as CUDA graphs: 9.50 times as fast" in page and "in 4 of 4 cells" in page
    assert "the some-gpu; TF32 off:" in page and "which are for a GPU" not in page


def test_every_suite_has_its_section_in_reports_only(project):
    size = {"batch": 8, "length": 9, "units": 7, "dtype": "float32"}
    tables = {
        "ptb-step": [STEP | {"ms": None}],
        "scan": scan(),
        "peers": peers(),
        "memory": [size | {"ours_bytes": 2**20, "lstm_bytes": 3 << 19, "torchqrnn_bytes": 2**22}],
        "growth": [{"varies": "units", "value": 640, "factor": 2, "ratio": 3.456}],
        "translation": [{"model": "QRNN", "parameters": 5_678, "speed_over_lstm": 4.321}],
        "reviews": [
            {"model": "LSTM", "parameters": 1_234, "dtype": "bfloat16", "speed_over_lstm": 1.0}
        ],
        "convolution": [
            {"kernel": 2, "inputs": 320, "length": 9, "batch": 7, "dtype": "float32"}
            | {"mode": "forward", "way": "conv2d", "ratio": 0.951}
        ],
    }
    for suite, table in tables.items():
        records.write(records.RESULTS, bench(suite, "some-gpu", table))
    readme, page = rendered(project)
    for line in (
        "| model | part | share | ms |\n| --- | --- | --- | --- |\n| QRNN | RNN | 0.31 | - |",
        "| pool, 320 | 46% / 79% | 46% |",
        "| peer, mode \\ batch, length, units | 2, 4, 8 |\n",
        "| A, forward | 1.26 / 2.50 |\n",
        "- A: out of memory\n- B: not here",
        "| batch | length | units | dtype | ours | nn.LSTM | as torchqrnn |",
        "| 8 | 9 | 7 | float32 | 1.0 | 1.5 | 4.0 |",
        "| units | 3.46 |",
        "| QRNN | 5,678 | 4.321 |",
        "| LSTM | 1,234 | bfloat16 | 1.0 |",
        "| kernel, inputs \\ length, batch, way | 9, 7, conv2d |",
        "| 2, 320 | 0.95 |",
        "](bench-scan-some-gpu.svg)",
    ):
        assert line in page
    assert "Not measured yet." in page  # figure 4
    assert "conv2d" not in readme and "Not measured yet." in readme


def test_how_many_large_scans_reach_what_was_aimed_at(project):
    large = [{**scan()[0], "bytes": 2**26, "columns": n, "graph_share": n / 100} for n in (84, 85)]
    records.write(records.RESULTS, bench("scan", "some-gpu", [*scan(), *large]))
    _, page = rendered(project)
    assert "float32; at least 85% in 1 of the 2 cells that move 64 MiB or more" in page


def test_what_a_record_says_is_no_markdown(project):
    records.write(records.RESULTS, RECORD | {"note": HOSTILE})
    readme, page = rendered(project)
    assert rendered(project)[0] == readme  # the marks in the note are none
    assert "\\</td\\>\\<script\\>alert(1)\\</script\\> \\| \\[x\\](javascript" in page
    [row] = [line for line in page.splitlines() if line.startswith("| k2-subset; ")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 9 + 1


# The page


class Reader(HTMLParser):
    """Elements in order with their attributes, text and the element around them."""

    VOID = frozenset(("meta", "link", "br", "img"))

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, **dict(attributes), "text": "", "in": list(self.open)}
        self.found.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, *tags, inside=None):
        return [e for e in self.found if e["tag"] in tags and (not inside or inside in e["in"])]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """reports/index.html of made-up records, and of the committed ones."""
    found = {}
    for kind in ("made-up", "committed"):
        directory = tmp_path_factory.mktemp(kind)
        if kind == "committed":
            shutil.copytree(ROOT / "reports/results", directory / records.RESULTS)
            shutil.copy(ROOT / "README.md", directory)
        else:
            (directory / "README.md").write_text(PAGE, encoding="utf-8")
            write_all(directory / records.RESULTS)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(directory)
            report.render()
        found[kind] = directory / "reports/index.html"
    return found


both = pytest.mark.parametrize("kind", ["made-up", "committed"])


def test_rendering_twice_gives_the_same_bytes(pages, monkeypatch):
    reports = pages["made-up"].parent
    plots = sorted(reports.glob("*.svg"))
    assert [plot.stem for plot in plots] == [
        *("bench-figure4-cpu", "bench-figure4-some-gpu", "bench-scan-cpu"),
        *("imdb", "iwslt-qrnn-small-seed1", "iwslt", "ptb"),
    ]
    files = [*plots, pages["made-up"], reports / "README.md", reports.parent / "README.md"]
    first = [file.read_bytes() for file in files]
    assert b"8.00" in first[0] and not any(b"dc:date" in content for content in first)
    monkeypatch.chdir(reports.parent)
    report.render()
    assert [file.read_bytes() for file in files] == first
    assert not list(reports.parent.rglob("*.part"))


@both
def test_the_page_is_well_formed_and_complete(pages, kind):
    text = pages[kind].read_text(encoding="utf-8")
    page = Reader(text)
    assert text.startswith("<!doctype html>") and page.all("html")[0]["lang"] == "en"
    assert page.all("title")[0]["text"] and not page.all("script", "iframe", "object")
    assert "width=device-width" in next(e for e in page.all("meta") if "name" in e)["content"]
    levels = [int(heading["tag"][1]) for heading in page.all("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    ids = [element["id"] for element in page.found if "id" in element]
    assert len(ids) == len(set(ids)) >= 12
    for table in page.all("table"):
        [caption] = page.all("caption", inside=table)
        assert caption["text"].strip() and len(page.all("tr", inside=table)) > 1
        scopes = {cell["scope"] for cell in page.all("th", inside=table)}
        assert scopes == {"col", "row"}
    assert len(page.all("table")) >= 8 and len(page.all("img")) >= 5
    for image in page.all("img"):
        assert len(image["alt"]) > 20 and image["src"].startswith("data:image/svg+xml;base64,")


@both
def test_every_number_of_the_page_links_to_its_record(pages, kind):
    page = Reader(pages[kind].read_text(encoding="utf-8"))
    for link in page.all("a"):
        target = urlsplit(link["href"])
        if target.scheme:
            assert link["href"] == "https://arxiv.org/abs/1611.01576"
        elif target.path:
            assert (pages[kind].parent / unquote(target.path)).is_file()
        else:
            assert target.fragment in [element.get("id") for element in page.found]
    numbers = 0
    for table in page.all("table"):
        if page.all("a", inside=page.all("caption", inside=table)[0]):
            continue
        for row in page.all("tr", inside=table)[1:]:
            measured = page.all("td", inside=row)[0]["text"]  # the first column is ours, on test
            assert (measured == "-") == ("no record yet" in row["text"])
            if measured != "-" and not page.all("a", inside=row):  # in the overview a note has them
                number = page.all("td", inside=row)[-1]["text"]
                [row] = [e for e in page.all("li") if e["text"].startswith(f"{number}: ")]
            assert bool(page.all("a", inside=row)) == (measured != "-")
            numbers += measured != "-"
    assert numbers >= 5
    for figure in page.all("figure"):
        assert page.all("a", inside=figure)


def test_what_a_record_says_is_no_html(pages):
    page = Reader(pages["made-up"].read_text(encoding="utf-8"))
    told = [e for e in page.all("td", "li") if "<script>alert(1)" in e["text"]]
    assert len(told) == 4  # a note, in the overview too, a note on data, and a device
    assert HOSTILE in told[0]["text"] and not page.all("script")


def test_what_is_committed_is_what_the_records_say(pages):
    """Of the plots in the page only the places: another version may draw them otherwise."""
    made = pages["committed"].parent
    for file in ("../README.md", "README.md", "index.html"):
        expected, found = (
            re.sub('base64,[^"]*', "", (folder / file).read_text(encoding="utf-8"))
            for folder in (made, ROOT / "reports")
        )
        assert found == expected, f"{file} is not what `make report` makes of the records"


# In a browser

LOW_CONTRAST = """
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const colour = text => text.match(/[\\d.]+/g).map(Number);
const ground = e => { for (; e; e = e.parentElement) {
  const c = colour(getComputedStyle(e).backgroundColor); if (c[3] !== 0) return c; }
  return [255, 255, 255]; };
const texts = [...document.querySelectorAll('body *')].filter(e =>
  [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
return [texts.length, texts.map(e => {
  const [a, b] = [light(colour(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 40)]; }).filter(([c]) => c < 4.5)];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options=options, service=service) as opened:
        yield opened


def show(browser, page, width, height, scheme, media=""):
    """Opens the page, and returns the addresses that it asked for."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    for kind in ("performance", "browser"):
        browser.get_log(kind)  # what came before
    browser.get(page.as_uri())
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [request["request"]["url"] for request in sent]


@both
@pytest.mark.parametrize("width, height", [(360, 740), (1280, 900)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser, pages, kind, width, height, scheme):
    asked = show(browser, pages[kind], width, height, scheme)
    run = browser.execute_script
    assert pages[kind].as_uri() in asked
    assert {urlsplit(address).scheme for address in asked} <= {"file", "data"}
    assert not browser.get_log("browser")
    assert run(f"return matchMedia('(prefers-color-scheme: {scheme})').matches")
    # on a phone the window widens when a page does
    assert run("return document.documentElement.scrollWidth") <= width
    assert run("return innerWidth") == width
    drawn = "i => i.naturalWidth > 0 && i.width > 90 && i.height > 50"
    assert run(f"return [...document.images].every({drawn})")
    texts, low = run(LOW_CONTRAST)
    assert texts > 300 and low == []
    hidden = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    wide = run(f"const wide = {hidden}; wide.forEach(e => e.scrollLeft = 9999); return wide.length")
    if width == 360:
        assert wide >= 3
        first = run(  # the names of the rows stay where they are
            f"return {hidden}.flatMap(e => [...e.querySelectorAll('tbody th')])"
            ".map(e => e.getBoundingClientRect().left)"
        )
        assert first and all(0 <= left < 40 for left in first)


@both
def test_on_paper(browser, pages, kind):
    show(browser, pages[kind], 718, 1000, "dark", media="print")  # A4 with margins, in pixels
    run = browser.execute_script
    assert run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    cut = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > 718).length"
    assert run(cut) == 0 and run("return document.documentElement.scrollWidth") <= 718
