import pytest
import records
import report

RECORD = {
    "experiment": "imdb",
    "row": "k2-subset",
    "seed": 1,
    "metrics": {"dev_accuracy": 0.8765, "test_accuracy": 0.8712},
    "history": [{"epoch": 0}, {"epoch": 1}],
    "data": {"name": "imdb", "official": True, "vectors": "none (random start)"},
    "note": "5,000 reviews",
    "device": "CPU",
    "config_sha256": "0" * 64,
    "wall_seconds": 1.5,
    "command": "python scripts/experiment.py",
}
TRANSLATION = RECORD | {
    "experiment": "iwslt",
    "row": "qrnn-small",
    "metrics": {
        **{"dev_bleu": 1.234, "test_bleu": 2.345, "dev_perplexity": 3.456, "test_perplexity": 4},
        **{"parameters": 1_172_224, "updates": 10, "characters": 21_030_000},
    },
    "data": {"name": "iwslt", "official": False, "note": "NOT OFFICIAL: lower-cased"},
    "attention": {"source": ["a", "b"], "target": ["c"], "weights": [[0.25, 0.75]]},
}
LANGUAGE = RECORD | {
    "experiment": "ptb",
    "row": "zoneout-small",
    "metrics": {"valid_perplexity": 123.45, "test_perplexity": 117.891, "parameters": 4_491_200},
    "history": [{"epoch": 0, "validation_perplexity": 300}, {"validation_perplexity": 123.45}],
    "data": {"name": "ptb", "official": True, "note": "content verified"},
    "note": "2 epochs",
}
PAGE = "# x\n<!-- imdb -->\nold\n<!-- /imdb -->\n"
PAGE += "<!-- ptb -->\n<!-- /ptb -->\n"
PAGE += "<!-- iwslt -->\n<!-- /iwslt -->\n<!-- bench-translation -->\n<!-- /bench-translation -->\n"
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


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(PAGE, encoding="utf-8")
    records.write(records.RESULTS, RECORD)
    return tmp_path


def test_every_number_is_rendered_beside_its_data_and_record(project):
    report.main()
    row = (
        "| k2-subset | official; 5,000 reviews | none (random start) | 2 | 87.65 | 87.12 "
        "| 91.4 | 88.36 | [imdb-k2-subset-seed1.json]({}results/imdb-k2-subset-seed1.json) |"
    )
    assert row.format("") in (project / "reports/README.md").read_text(encoding="utf-8")
    page = (project / "README.md").read_text(encoding="utf-8")
    assert row.format("reports/") in page
    assert "old" not in page and page.startswith("# x\n") and page.endswith("end\n")


def test_a_translation_is_rendered_with_its_attention(project):
    path = records.write(records.RESULTS, TRANSLATION)
    report.main()
    page = (project / "reports/README.md").read_text(encoding="utf-8")
    row = "| qrnn-small | NOT OFFICIAL: lower-cased; 5,000 reviews | 1.17 | 21.0 | 3.46 | 1.23 "
    row += f"| 2.35 | 19.41 | 12.34 | [{path.name}](results/{path.name}) |"
    assert row in page
    assert "](iwslt-qrnn-small-seed1.svg)" in page
    plot = (project / "reports/iwslt-qrnn-small-seed1.svg").read_text(encoding="utf-8")
    assert plot.startswith("<?xml")
    report.main()
    again = (project / "reports/iwslt-qrnn-small-seed1.svg").read_text(encoding="utf-8")
    assert again == plot


def test_language_models_are_rendered_with_their_curves(project):
    path = records.write(records.RESULTS, LANGUAGE)
    start = {"weights": "N(0, 1)", "forget_bias": 0, "epoch": 1}
    start |= {"train_perplexity": 801.98, "valid_perplexity": 440.04}
    table = RECORD | {"experiment": "ptb-start", "row": "200", "table": [start]}
    records.write(records.RESULTS, table)
    report.main()
    page = (project / "README.md").read_text(encoding="utf-8")
    row = "| zoneout-small | official; 2 epochs | 4.49 | 2 | 123.5 | 117.9 | 82.1 / 78.3 | - "
    assert row + f"| [{path.name}](reports/results/{path.name}) |" in page
    curves = (project / "reports/ptb.svg").read_bytes()
    assert b"zoneout-small, seed 1" in curves
    page = (project / "reports/README.md").read_text(encoding="utf-8")
    assert "| N(0, 1) | 0 | 1 | 802.0 | 440.0 |" in page
    report.main()
    assert (project / "reports/ptb.svg").read_bytes() == curves


def test_rendering_twice_gives_the_same_bytes(project):
    report.main()
    first = (project / "README.md").read_bytes(), (project / "reports/README.md").read_bytes()
    report.main()
    assert first == (
        (project / "README.md").read_bytes(),
        (project / "reports/README.md").read_bytes(),
    )


def test_data_that_is_not_official_says_so(project):
    data = {"name": "imdb", "official": False, "note": "a stand-in", "vectors": "none"}
    records.write(records.RESULTS, {**RECORD, "data": data})
    report.main()
    assert "NOT OFFICIAL: a stand-in" in (project / "README.md").read_text(encoding="utf-8")


def test_a_record_that_does_not_fit_stops_the_report(project):
    (records.RESULTS / "bad.json").write_text("{}")
    with pytest.raises(records.RecordError, match=r"bad\.json"):
        report.main()
    assert (project / "README.md").read_text(encoding="utf-8") == PAGE


def test_a_readme_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="<!-- imdb -->"):
        report.replace("# x\n", "imdb", "table")


def test_figure4_on_a_cpu(project):
    records.write(records.RESULTS, bench("figure4", "cpu", figure4(product_share=0.814)))
    report.main()
    page = (project / "README.md").read_text(encoding="utf-8")
    assert (
        "inference, bfloat16: 2.83 times as fast (geometric mean); the matrix products take 81% of "
        "the layer's time (median)\n\n"
        "| batch \\ length | 32 | 64 |\n|---|---|---|\n| 8 | 1.00 | 2.00 |\n| 16 | 4.00 | 8.00 |"
    ).replace("|---|---|---|", "| --- | --- | --- |") in page
    assert "the cpu; [bench-figure4-cpu.json](reports/results/bench-figure4-cpu.json)" in page
    assert "](reports/bench-figure4-cpu.svg)" in page and "paper" not in page.split("bench-fig")[1]


def test_figure4_on_a_gpu_stands_beside_the_paper_and_eager_beside_graphs(project):
    table = figure4(lstm_dtype="float16", graph_ratio=9.5)
    records.write(records.RESULTS, bench("figure4", "some-gpu", table, note="TF32 off"))
    report.main()
    page = (project / "README.md").read_text(encoding="utf-8")
    assert "2.83 times as fast (geometric mean) as nn.LSTM in float16; above the paper's" in page
    assert "in 2 of 4 cells" in page and "| 16 | 4.00 (3.0) | 8.00 (3.0) |" in page
    assert "bfloat16, as CUDA graphs: 9.50 times as fast" in page and "in 4 of 4 cells" in page
    assert "the some-gpu; TF32 off; [" in page


def test_every_suite_has_its_section_in_reports_only(project):
    scan = {"kind": "pool", "columns": 320, "length": 64, "bytes": 2**21, "share": 0.456}
    peer = {"peer": "A", "batch": 2, "length": 4, "units": 8, "mode": "forward", "ratio": 1.256}
    absent = {**dict.fromkeys(peer), "peer": "B", "graph_ratio": None, "reason": "not here"}
    tables = {
        "ptb-step": [{"part": "RNN", "model": "QRNN", "share": 0.31, "ms": None}],
        "scan": [{**scan, "graph_share": 0.789}, {**scan, "length": 512, "graph_share": None}],
        "peers": [{**peer, "graph_ratio": 2.5, "reason": None}, absent],
        "memory": [
            {"batch": 8, "ours_bytes": 2**20, "lstm_bytes": 3 << 19, "torchqrnn_bytes": 2**22}
        ],
        "growth": [{"varies": "units", "value": 640, "factor": 2, "ratio": 3.456}],
        "convolution": [
            {"kernel": 2, "inputs": 320, "length": 9, "batch": 7, "dtype": "float32"}
            | {"mode": "forward", "way": "conv2d", "ratio": 0.951}
        ],
    }
    for suite, table in tables.items():
        records.write(records.RESULTS, bench(suite, "some-gpu", table))
    report.main()
    text = (project / "reports/README.md").read_text(encoding="utf-8")
    for line in (
        "| model | part | share | ms |\n| --- | --- | --- | --- |\n| QRNN | RNN | 0.31 | - |",
        "| pool, 320 | 46% / 79% | 46% |",
        "| peer, mode \\ batch, length, units | 2, 4, 8 |",
        "| A, forward | 1.26 / 2.50 |",
        "- B: not here",
        "| batch | ours | nn.LSTM | as torchqrnn |",
        "| 8 | 1.0 | 1.5 | 4.0 |",
        "| units | 3.46 |",
        "| kernel, inputs \\ length, batch, way | 9, 7, conv2d |",
        "| 2, 320 | 0.95 |",
        "![The recurrences alone, the some-gpu](bench-scan-some-gpu.svg)",
    ):
        assert line in text
    assert "Not measured yet." in text  # figure 4
    page = (project / "README.md").read_text(encoding="utf-8")
    assert "conv2d" not in page and "Not measured yet." in page


def test_plots_are_the_same_bytes_every_time(project):
    records.write(records.RESULTS, bench("figure4", "cpu", figure4(product_share=0.8)))
    row = {"kind": "pool", "columns": 3, "length": 4, "bytes": 99, "share": 0.4}
    records.write(records.RESULTS, bench("scan", "cpu", [{**row, "graph_share": None}]))
    report.main()
    files = sorted((project / "reports").glob("*.svg"))
    assert [file.name for file in files] == ["bench-figure4-cpu.svg", "bench-scan-cpu.svg"]
    first = [file.read_bytes() for file in files]
    assert b"8.00" in first[0] and b"the cpu" in first[0] and b"dc:date" not in first[0]
    report.main()
    assert [file.read_bytes() for file in files] == first
