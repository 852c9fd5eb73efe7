"""What callbacks do to a trainer, without one; the rest is in test_train.py."""

import json
from types import SimpleNamespace

import pytest
import torch
from allennlp.common.checks import ConfigurationError
from allennlp.data import Vocabulary

from qrnn.allennlp import BFloat16Autocast, RunFile, WordVectors


def test_the_model_runs_in_bfloat16_until_the_end(tmp_path):
    model = torch.nn.Linear(3, 2)
    trainer = SimpleNamespace(model=model, cuda_device=torch.device("cpu"))
    callback = BFloat16Autocast(str(tmp_path))
    callback.on_start(trainer)
    output = model(torch.randn(4, 3))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert model.weight.grad.dtype == torch.float32
    callback.on_end(trainer)
    assert model(torch.randn(4, 3)).dtype == torch.float32


@pytest.mark.parametrize("files", [{"train.jsonl": "a"}, {"train.jsonl": "b"}, None])
def test_vectors_of_other_reviews_are_an_error(tmp_path, files):
    """They lack words that a set reduced to these reviews would have."""
    (tmp_path / "config.json").write_text(
        json.dumps({"train_data_path": f"{tmp_path}/train.jsonl", "model": {}})
    )
    meta = {"official": True, "note": "x"} | ({"files": files} if files else {})
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    vectors = WordVectors.__new__(WordVectors)
    torch.nn.Module.__init__(vectors)
    vectors.source, vectors.reviews = "Tiny", {"train.jsonl": "a"}
    trainer = SimpleNamespace(_pytorch_model=vectors, cuda_device=torch.device("cpu"))
    callback = RunFile(str(tmp_path))
    if files == {"train.jsonl": "b"}:
        with pytest.raises(ConfigurationError, match=r"\(Tiny\).* other reviews than .*make downl"):
            callback.on_start(trainer)
        assert not (tmp_path / "run.json").exists()
    else:
        callback.on_start(trainer)
        assert json.loads((tmp_path / "run.json").read_text())["vectors"] == "Tiny"


def test_vectors_of_an_archive_are_said_to_be_its_own(tmp_path):
    model = {"type": "from_archive", "archive_file": "runs/first/model.tar.gz"}
    config = {"train_data_path": f"{tmp_path}/train.jsonl", "model": model}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "meta.json").write_text('{"official": true, "note": "x"}')
    vectors = WordVectors(2, Vocabulary({"tokens": {"word": 1}}))
    trainer = SimpleNamespace(_pytorch_model=vectors, cuda_device=torch.device("cpu"))
    RunFile(str(tmp_path)).on_start(trainer)
    told = json.loads((tmp_path / "run.json").read_text())["vectors"]
    assert told == "those of runs/first/model.tar.gz"
