"""The plan of everything."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import imdb
import iwslt
import pytest
import quick
import records
import reproduce
import vectors
from reproduce import Options
from reproduce_rows import LM_WEIGHTS
from reproduce_runner import Outcome, Step, shown

SCRIPTS = Path(reproduce.__file__).parent


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "check_root", lambda parser: None)


def options(profile="full", **changes):
    given = {
        "only": reproduce.PARTS,
        "profile": profile,
        "seeds": 1,
        "mirror": None,
        "vectors": reproduce.GLOVE if profile == "full" else None,
        "lower": False,
        "runs": quick.RUNS if profile == "quick" else Path("runs"),
        "results": quick.RESULTS if profile == "quick" else records.RESULTS,
        "device": "CPU (a, 2 cores, 2 threads)",
    }
    return Options(**given | changes)


@pytest.mark.parametrize("profile", reproduce.PROFILES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_plan_has_everything_before_what_needs_it(profile, seeds):
    phases = reproduce.plan(options(profile, seeds=seeds, vectors="kumo-6B.50d"))
    names = [step.name for phase in phases for step in phase]
    assert len(names) == len(set(names))
    for phase in phases:
        seen = set()
        for found in phase:
            assert set(found.needs) <= seen
            seen.add(found.name)
            assert (SCRIPTS / Path(found.command[0]).name).exists()
            for config in (part for part in found.command if part.startswith("configs/")):
                assert (SCRIPTS.parent / config).exists()


def test_the_full_plan_has_the_rows_of_the_tables():
    phases = reproduce.plan(options(seeds=2, mirror="there"))
    steps = {step.name: step for phase in phases for step in phase}
    rows = {
        "imdb": "k2 k4 lstm pooled pretrained adversarial",
        "imdb-lm": "forward",
        "iwslt": "qrnn lstm",
    }
    rows["ptb"] = "qrnn zoneout lstm replication awd finetuned cache"
    for experiment, names in rows.items():
        for name in names.split():
            for seed in (1, 2):
                found = steps[f"{experiment}-{name}-seed{seed}"]
                assert found.result == records.path(records.RESULTS, experiment, name, seed)
    assert "ptb-awd-seed2" in steps["ptb-finetuned-seed2"].needs
    start = "model.initializer.regexes.0.1.weights_file_path"
    tuned = json.loads(steps["ptb-finetuned-seed2"].command[-1])
    assert tuned[start] == "runs/ptb-awd-seed2/best.th"
    cache = steps["ptb-cache-seed2"]
    assert cache.needs == ("ptb-finetuned-seed2",) and "runs/ptb-finetuned-seed2" in cache.command
    assert steps["data-iwslt"].command == ("scripts/iwslt.py", "--mirror", "there")
    assert "--overrides" not in steps["imdb-k2-seed1"].command
    assert steps["imdb-k2-seed1"].needs == ("data-imdb", "vectors-glove.840B.300d")


def test_records_elsewhere_take_their_times_from_those_that_are_committed():
    bench = {"experiment": "bench-growth", "row": "cpu", "seed": None, "table": [{"a": 1}]}
    bench |= {"data": None, "device": "CPU", "config_sha256": None, "command": "x"}
    records.write(records.RESULTS, bench | {"wall_seconds": 360})
    phases = reproduce.plan(options("cpu", results=Path("mine")))
    steps = {step.name: step for phase in phases for step in phase}
    growth, report = steps["bench-growth"], steps["report"]
    assert (growth.result, growth.done) == (Path("mine/bench-growth-cpu.json"), False)
    assert (growth.hours, growth.source) == (0.1, "bench-growth-cpu.json")
    assert growth.command[-2:] == report.command[-2:] == ("--results", "mine")
    phases = reproduce.plan(options("cpu", results=records.RESULTS.resolve()))
    assert not any("--results" in step.command for phase in phases for step in phase)
    assert reproduce.plan(options("quick"))[2] == []


def test_a_training_whose_start_is_gone_is_told_before_anything_runs():
    Path("runs/there").mkdir(parents=True)
    Path("record").touch()
    script = ("scripts/experiment.py",)
    starts = [Step(name, script, Path("record")) for name in ("there", "gone")]
    starts += [
        Step("to-do", script, Path("none")),
        Step("data", ("scripts/imdb.py",), Path("record")),
    ]
    needs = ("there", "to-do", "data")
    found = [Step("a", script, None, needs), Step("b", script, None, (*needs, "gone"))]
    found.append(Step("c", script, Path("record"), ("gone",)))
    told = reproduce.without_runs([*starts, *found], options())
    assert told == ["b needs runs/gone, which is gone: delete record to train it again"]


def test_data_that_no_row_needs_any_more_is_not_fetched():
    Path("done").touch()

    def names(*rows):
        data, words = Step("data-imdb", (), None), Step("vectors-a", (), None, ("data-imdb",))
        found = reproduce.without_unused([data, words, Step("data-ptb", (), Path("done")), *rows])
        return [step.name for step in found]

    first = Step("imdb-k2", (), Path("done"), ("data-imdb", "vectors-a"))
    second = Step("imdb-k4", (), Path("to do"), ("data-imdb", "vectors-a"))
    assert names(first) == ["data-ptb", "imdb-k2"]
    assert names(first, second) == ["data-imdb", "vectors-a", "data-ptb", "imdb-k2", "imdb-k4"]
    third = Step("imdb-lm", (), Path("to do"), ("data-imdb",))
    assert names(first, third) == ["data-imdb", "data-ptb", "imdb-k2", "imdb-lm"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--mirror", "nowhere"], "--mirror: there is no folder nowhere"),
        (
            ["--mirror", "ftp://a/b"],
            "--mirror: there is no folder ftp://a/b, nor does it start with",
        ),
        (["--results", "a-file"], "--results: a-file is no folder"),
        (["--results", "reports"], "--results: reports holds the report of reports/results"),
        (["--results", "."], "--results: README.md is no report, and would be overwritten"),
        (["--only", "imdb,mnist"], "--only: "),
        (["--vectors", "fasttext"], "--vectors: "),
        (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["--profile", "quick", "--seeds", "3"], "--seeds: not with --profile quick"),
        (["--profile", "quick", "--results", "x"], "--results: not with --profile quick"),
        (["--profile", "quick", "--lower"], "--lower: not with --profile quick"),
    ],
)
def test_wrong_options_are_errors_at_the_start(arguments, text, monkeypatch, capsys):
    Path("a-file").touch()
    Path("README.md").write_text("# QRNN\n")
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--dry-run", *arguments])
    with pytest.raises(SystemExit):
        reproduce.parsed()
    assert text in capsys.readouterr().err


def test_data_that_was_prepared_otherwise_is_to_do():
    def done(**changes) -> dict[str, bool]:
        _, experiments, _ = reproduce.plan(options(**changes))
        found = {step.name: step.done for step in experiments}
        return {name: found[name] for name in ("data-iwslt", f"vectors-{reproduce.GLOVE}")}

    def prepare(name: str, **told: object) -> dict[str, str]:
        Path(f"data/{name}/train").write_text("text")
        files = {"train": hashlib.sha256(b"text").hexdigest()}
        Path(f"data/{name}/meta.json").write_text(json.dumps({"files": files, **told}))
        return files

    def glove(data: dict[str, str]) -> Path:
        file = Path(f"data/vectors/{reproduce.GLOVE}.txt.gz")
        file.write_bytes(b"a 1\n")
        about = {
            "recipe": vectors.RECIPE,
            "data": data,
            "sha256": hashlib.sha256(b"a 1\n").hexdigest(),
        }
        Path(f"data/vectors/{reproduce.GLOVE}.json").write_text(json.dumps(about))
        return file

    for name in ("imdb", "iwslt", "vectors"):
        Path("data", name).mkdir(parents=True)
    assert done() == {"data-iwslt": False, f"vectors-{reproduce.GLOVE}": False}
    prepare("iwslt", **iwslt.recipe(lower=False))
    file = glove(prepare("imdb", **imdb.recipe()))
    assert done() == {"data-iwslt": True, f"vectors-{reproduce.GLOVE}": True}
    assert done(lower=True) == {"data-iwslt": False, f"vectors-{reproduce.GLOVE}": True}
    prepare("iwslt", **iwslt.recipe(lower=True))
    Path("data/imdb/train").unlink()
    assert done(lower=True) == {"data-iwslt": True, f"vectors-{reproduce.GLOVE}": False}
    glove({"train": "of another text"})
    prepare("imdb", **imdb.recipe())
    assert done() == {"data-iwslt": False, f"vectors-{reproduce.GLOVE}": False}
    glove(prepare("imdb", **imdb.recipe()))
    assert done() == {"data-iwslt": False, f"vectors-{reproduce.GLOVE}": True}
    file.unlink()
    assert done() == {"data-iwslt": False, f"vectors-{reproduce.GLOVE}": False}
    prepare("iwslt", **iwslt.recipe(lower=True) | {"recipe": iwslt.RECIPE - 1})
    assert done(lower=True) == {"data-iwslt": False, f"vectors-{reproduce.GLOVE}": False}
    Path("data/iwslt/meta.json").write_text("{")
    assert done(lower=True) == {"data-iwslt": False, f"vectors-{reproduce.GLOVE}": False}


def test_other_vectors_are_a_row_of_their_own():
    _, experiments, _ = reproduce.plan(options(only=("imdb",), vectors="kumo-6B.50d"))
    found = next(step for step in experiments if step.name == "imdb-k2-kumo-6B-50d-seed1")
    overrides = json.loads(found.command[found.command.index("--overrides") + 1])
    assert overrides["vocabulary.pretrained_file"] == "data/vectors/kumo-6B.50d.txt.gz"
    assert overrides["model.seq2vec_encoder.input_size"] == 50


@pytest.mark.parametrize(
    ("profile", "row", "models"),
    [
        ("full", "pretrained{0}", {"forward": "forward{0}"}),
        ("full", "pretrained_both{0}", {"forward": "forward{0}", "backward": "backward{0}"}),
        ("full", "adversarial{0}", {"forward": "forward{0}"}),
        ("cpu", "adversarial-cpu{0}", {"forward": "forward-cpu{0}"}),
        ("cpu", "pretrained-lm2-cpu{0}", {"forward": "forward-cpu{0}-2epochs"}),
        ("cpu", "adversarial-lm2-cpu{0}", {"forward": "forward-cpu{0}-2epochs"}),
    ],
)
def test_a_pretrained_row_starts_from_its_language_models(profile, row, models):
    for changes, suffix in (({}, ""), ({"vectors": "kumo-6B.50d"}, "-kumo-6B-50d")):
        _, experiments, _ = reproduce.plan(options(profile, only=("imdb",), seeds=2, **changes))
        steps = {step.name: step for step in experiments}
        found = steps[f"imdb-{row}-seed2".format(suffix)]
        overrides = json.loads(found.command[found.command.index("--overrides") + 1])
        for way, model in models.items():
            base = f"imdb-lm-{model}-seed2".format(suffix)
            assert base in found.needs and base in steps
            assert overrides[LM_WEIGHTS[way]] == f"runs/{base}/best.th"
        sizes = [key for key in overrides if key.endswith(".input_size")]
        assert len(sizes) == (len(models) if changes else 0)


@pytest.mark.parametrize("profile", ["cpu", "full"])
@pytest.mark.parametrize("vectors", [None, "kumo-6B.50d"])
def test_overrides_fit_their_configs(profile, vectors):
    import qrnn.allennlp  # noqa: F401  before allennlp, which it mends

    from allennlp.common import Params  # isort: skip

    _, experiments, _ = reproduce.plan(options(profile, vectors=vectors))
    trained = 0
    for step in experiments:
        if step.command[0] == "scripts/experiment.py" and step.command[2].endswith(".jsonnet"):
            overrides = "{}"
            if "--overrides" in step.command:
                overrides = step.command[step.command.index("--overrides") + 1]
            Params.from_file(str(SCRIPTS.parent / step.command[2]), overrides)
            trained += 1
    assert trained == {"cpu": 16, "full": 15}[profile]


def test_what_runs_at_the_same_time(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert reproduce.places(options("full"), []) == [{}]
    assert reproduce.places(options("cpu"), []) == [{"CUDA_VISIBLE_DEVICES": ""}]
    assert reproduce.places(options("quick"), []) == [{"OMP_NUM_THREADS": "1"}] * 2
    gpus = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "3")]
    assert reproduce.places(options("full"), ["0", "3"]) == gpus


def test_estimates_come_from_a_record_of_the_same_row_first():
    known = {
        "imdb-k2-seed2.json": {"device": "CPU (a, 2 cores, 2 threads)", "wall_seconds": 7200},
        "imdb-k4-seed1.json": {"device": "A100", "wall_seconds": 3600},
    }
    path = records.RESULTS / "imdb-{}-seed1.json"

    def estimate(row, hours, **changes):
        result = Path(str(path).format(row))
        return reproduce.estimate(result, hours, options(**changes), known)

    assert estimate("k2", 10) == (2, "imdb-k2-seed2.json")
    assert estimate("k4", None) == (1, "imdb-k4-seed1.json, A100")
    assert estimate("k4", 10) == (10, "config, on a CPU")
    assert estimate("k4", 10, device="H100") == (1, "imdb-k4-seed1.json, A100")
    other_cpu = "imdb-k2-seed2.json, CPU (a, 2 cores, 2 threads)"
    assert estimate("k2", 10, device="CPU (b)") == (2, other_cpu)
    assert estimate("lstm", 10) == (10, "config, on a CPU")
    assert estimate("lstm", 10, device="H100") == (None, "")


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scripts/reproduce.py", *arguments])
    reproduce.main()


def test_a_dry_run_writes_nothing(monkeypatch, capsys, tmp_path):
    main(monkeypatch, "--dry-run", "--profile", "full", "--only", "ptb,bench")
    said = capsys.readouterr().out
    assert "profile full" in said and "ptb-awd-seed1" in said and "imdb" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "status"), [("", 0), ("raise SystemExit(1)", 1)])
def test_the_exit_status_and_the_summary(monkeypatch, capsys, code, status):
    where = "import os; open('{}', 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])"
    phases = (
        [Step("bench", ("-S", "-c", where.format("bench")), Path("bench"))],
        [Step("train", ("-S", "-c", f"import os; assert os.path.exists('bench'); {code}"), None)],
        [Step("report", ("-S", "-c", where.format("report")), Path("report"))],
    )
    monkeypatch.setattr(reproduce, "plan", lambda options: phases)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main(monkeypatch, "--profile", "cpu")
    assert ended.value.code == status
    said = capsys.readouterr().out
    assert f"{3 - status} of 3 steps are done" in said
    assert ("scripts/reproduce.py --profile cpu" in said) == bool(status)
    # no GPU: what the table calls a CPU is one
    assert Path("bench").read_text() == Path("report").read_text() == ""


def test_the_summary_names_what_failed_and_how_to_go_on():
    bad, after, other = (Step(name, ("-c", "pass"), None) for name in ("bad", "after", "other"))
    outcomes = {
        "bad": Outcome("failed", "because"),
        "after": Outcome("not started", "because of bad"),
        "other": Outcome("done"),
    }
    text = reproduce.summary([bad, after, other], outcomes, Path("logs"))
    assert "1 of 3 steps are done" in text and "bad: failed because" in text
    assert "logs/bad.log" in text and shown(bad) in text and "To continue: " in text
