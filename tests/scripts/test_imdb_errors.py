import json
import shutil
import sys
from pathlib import Path

import imdb_errors
import pytest
import records
import report
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model_from_file

ROOT = Path(__file__).parents[2]
SMALL = {
    "vocabulary.min_count": None,
    "vocabulary.pretrained_file": None,
    "model.seq2vec_encoder.hidden_size": 4,
    "model.seq2vec_encoder.num_layers": 2,  # between them there is dropout
    "model.seq2vec_encoder.input_size": 6,
    "model.text_field_embedder.token_embedders.tokens.embedding_dim": 6,
    "model.text_field_embedder.token_embedders.tokens.pretrained_file": None,
    "trainer.num_epochs": 1,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Reviews of which the author's stars cannot be told from the words, and two runs on them."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "configs", root / "configs")
    (root / "scripts").mkdir()
    data = root / "data/imdb"
    data.mkdir(parents=True)
    reviews = [
        {"id": f"train/x/{n}_{stars}", "text": "word " * (1 + 13 * n), "label": label}
        for n in range(4)
        for label, stars in (("neg", 1), ("neg", 4), ("pos", 10))
    ]
    for part in ("train", "dev"):
        lines = "".join(json.dumps(review) + "\n" for review in reviews)
        (data / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    (data / "meta.json").write_text('{"name": "imdb", "official": false, "note": "tiny"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for seed in (1, 2):
            overrides = json.dumps(SMALL | {"pytorch_seed": seed})
            train_model_from_file("configs/imdb.jsonnet", f"runs/{seed}", overrides=overrides)
    return root


def test_errors_are_counted_by_group_and_together(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr(imdb_errors, "LENGTHS", (15, 30))
    monkeypatch.setattr(sys, "argv", ["imdb_errors.py", "runs/1", "runs/2"])
    imdb_errors.main()
    [record] = records.load(records.RESULTS).values()
    table = record["table"]
    assert record["data"]["note"] == "tiny" and record["row"] == "dev-not-official"
    for run in ("1", "2"):
        own = [row for row in table if row["model"] == run]
        groups = {by: [r["group"] for r in own if r["by"] == by] for by in ("stars", "tokens")}
        assert groups["stars"] == ["1", "4", "10"]
        assert groups["tokens"] == ["up to 15", "over 15, up to 30", "over 30"]
        sizes = {by: [r["reviews"] for r in own if r["by"] == by] for by in groups}
        assert sizes == {"stars": [4, 4, 4], "tokens": [6, 3, 3]}
        metrics = evaluate_from_archive(f"runs/{run}/model.tar.gz", "data/imdb/dev.jsonl")
        for by in {row["by"] for row in own}:
            wrong = sum(row["wrong"] for row in own if row["by"] == by)
            assert wrong == round(12 * (1 - metrics["accuracy"]))
    shared = [row for row in table if row["model"] == imdb_errors.TOGETHER]
    assert [row["group"] for row in shared] == ["0", "1", "2"]
    assert sum(row["wrong"] for row in shared) == 12 == shared[0]["reviews"]
    both = sum(int(row["group"]) * row["wrong"] for row in shared)
    assert both == sum(row["wrong"] for row in table if row["by"] == "stars")

    marks = "<!-- overview -->\n<!-- /overview -->\n<!-- bench-figure4 -->\n<!-- /bench-figure4 -->"
    Path("README.md").write_text(marks)
    report.render()
    page = Path("reports/README.md").read_text(encoding="utf-8")
    percent = [f"{100 * row['wrong'] / 12:.1f}" for row in shared]
    assert f"| together | {' | '.join(percent)} |" in page and "; tiny:" in page


def test_probabilities_are_those_of_the_true_label(project, monkeypatch):
    """Whatever the order in which the labels were met."""
    monkeypatch.chdir(project)
    ids, lengths, found = imdb_errors.predicted(Path("runs/1"))
    assert lengths == [1 + 13 * n for n in range(4) for _ in range(3)]
    by_words = torch.tensor(found).view(4, 3)
    torch.testing.assert_close(by_words[:, 0], by_words[:, 1])  # the same words and label
    torch.testing.assert_close(by_words[:, 0], 1 - by_words[:, 2])  # the other label


def test_runs_that_are_not_there_or_of_other_data_are_named(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["imdb_errors.py", "runs/3"])
    with pytest.raises(SystemExit, match="runs/3 is not, or not wholly, what allennlp train"):
        imdb_errors.main()
    before = Path("data/imdb/meta.json").read_text()
    Path("data/imdb/meta.json").write_text(before.replace("tiny", "less"))
    with pytest.raises(SystemExit, match=r"runs/1 was trained on other data than is in .*imdb now"):
        imdb_errors.measure([Path("runs/1")], tmp_path)
    Path("data/imdb/meta.json").write_text(before)
    shutil.copytree("runs/1", tmp_path / "other")
    told = json.loads((tmp_path / "other/run.json").read_text())
    told["data"]["note"] = "other"
    (tmp_path / "other/run.json").write_text(json.dumps(told))
    with pytest.raises(SystemExit, match="other was trained on other data than runs/1"):
        imdb_errors.measure([Path("runs/1"), tmp_path / "other"], tmp_path)
