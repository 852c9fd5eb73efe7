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
PAGE = "# x\n<!-- imdb -->\nold\n<!-- /imdb -->\n<!-- bench-cpu -->\n<!-- /bench-cpu -->\nend\n"


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
