import json

import files
import ptb_start
import pytest
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model

import qrnn.allennlp  # noqa: F401  registers the model


def test_each_choice_is_trained_and_tabled(tmp_path, monkeypatch):
    trained = []

    def train(config, directory, seed, overrides):
        trained.append((config, seed, overrides))
        history = [
            {"epoch": e, "training_perplexity": 9 - e, "validation_perplexity": 8 - e, "seconds": 2}
            for e in range(3)
        ]
        directory.mkdir(parents=True)
        run = {"history": history, "data": {"name": "ptb", "official": True}}
        (directory / "run.json").write_text(json.dumps(run))

    monkeypatch.setattr(ptb_start.with_allennlp, "train", train)
    config = ptb_start.CONFIG.resolve()
    monkeypatch.setattr(ptb_start, "CONFIG", config)
    path = ptb_start.compare(200, 3, 5, tmp_path / "runs", tmp_path / "results")
    record = json.loads(path.read_text())
    count = len(ptb_start.choices(200))
    assert len(record["table"]) == 3 * count and record["wall_seconds"] == 6 * count
    assert record["table"][1]["epoch"] == 2 and record["table"][1]["valid_perplexity"] == 7
    assert {(c, seed) for c, seed, _ in trained} == {(config, 5)}
    seen = [(row["weights"], row["forget_bias"]) for row in record["table"][::3]]
    assert seen == [(weights, bias) for weights, bias, _ in ptb_start.choices(200)]
    assert len(set(seen)) == count


def test_a_second_one_leaves_the_first_alone(tmp_path, monkeypatch):
    first, moment = tmp_path / "ptb-start-200-3epochs-seed5", tmp_path / "moment"

    def train(*arguments):
        raise AssertionError

    monkeypatch.setattr(ptb_start.with_allennlp, "train", train)
    with files.alone(first), pytest.raises(BlockingIOError, match=r"at work on .*/ptb-start-200-3"):
        ptb_start.compare(200, 3, 5, tmp_path, moment)


def test_the_start_values_are_those_named():
    vocabulary = Vocabulary(non_padded_namespaces=["tokens"])
    for n in range(500):
        vocabulary.add_token_to_namespace(str(n))
    found = []
    for _, bias, regexes in ptb_start.choices(100):
        rnn = {"type": "qrnn", "input_size": 100, "hidden_size": 100, "num_layers": 2}
        options = {"rnn": rnn | {"forget_bias": bias}, "initializer": {"regexes": regexes}}
        params = Params({"type": "language_model", **options})
        model = Model.from_params(params, vocab=vocabulary)
        layer = model.rnn.layers[1]
        weights = (model.embedding.weight, layer.weight, model.softmax.weight)
        found.append([*(round(w.std().item(), 3) for w in weights), round(layer.bias[150].item())])
    small, gates, softmax = 0.029, 0.071, 0.1
    for values, expected in zip(
        found,
        [
            [small, small, small, 0],
            [small, gates, softmax, 0],
            [small, 2 * gates, softmax, 0],
            [1, gates, softmax, 0],
            [small, gates, softmax, 1],
        ],
        strict=True,
    ):
        for value, other in zip(values, expected, strict=True):
            assert abs(value - other) < 0.03 * other + 0.002
