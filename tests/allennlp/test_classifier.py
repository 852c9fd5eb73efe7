"""The variants of configs/imdb.jsonnet on a tiny corpus, through what `allennlp train` calls."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model_from_file
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.training import TrainerCallback

from qrnn.allennlp import classifier  # with it all that the configs name is registered

ROOT = Path(__file__).parents[2]
WORDS = {"pos": "good fine lovely", "neg": "bad poor dull"}
SMALL = {
    "vocabulary.min_count": None,
    "model.seq2vec_encoder.hidden_size": 8,
    "model.seq2vec_encoder.num_layers": 2,
    "model.seq2vec_encoder.input_size": 6,
    "model.text_field_embedder.token_embedders.tokens.embedding_dim": 6,
    "trainer.num_epochs": 3,
    "trainer.optimizer.lr": 0.01,
}
SMALL_BOTH = {
    key.replace("encoder.", f"encoder.{which}_encoder."): value
    for key, value in SMALL.items()
    for which in ("forward", "backward")
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with configs/, 60 reviews and a file of 6-d vectors for every set of them."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "configs", root / "configs")
    data, vectors = root / "data" / "imdb", root / "data" / "vectors"
    data.mkdir(parents=True)
    vectors.mkdir()
    reviews = [
        {"text": f"a {word} film number {n}", "label": label}
        for n in range(10)
        for label, words in WORDS.items()
        for word in words.split()
    ]
    for part in ("train", "dev", "test", "unsup"):
        if part == "unsup":
            reviews = [{"text": f"{review['text']} again"} for review in reviews]
        lines = "".join(json.dumps(review) + "\n" for review in reviews)
        (data / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    (data / "meta.json").write_text('{"name": "imdb", "official": false, "note": "tiny"}')
    numbers = [[(7 * n + 3 * i) % 11 / 20 - 0.25 for i in range(6)] for n in range(8)]
    words = [*" ".join(WORDS.values()).split(), "film", "unheard"]
    lines = "".join(f"{w} {' '.join(map(str, x))}\n" for w, x in zip(words, numbers, strict=True))
    for name in ("glove.840B.300d", "word2vec-imdb.300d"):
        (vectors / f"{name}.txt.gz").write_bytes(gzip.compress(lines.encode()))
        about = {"name": f"tiny {name}", "official": False, "note": "for a test"}
        (vectors / f"{name}.json").write_text(json.dumps(about))
    return root


def train(project, config, directory, recover=False, **overrides):
    train_model_from_file(
        project / "configs" / f"{config}.jsonnet",
        directory,
        json.dumps({**SMALL, **overrides}),
        recover=recover,
    )
    return json.loads((directory / "run.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("config", "vectors"),
    [
        ("imdb_lstm", "tiny glove.840B.300d (for a test)"),
        ("imdb_word2vec", "tiny word2vec-imdb.300d (for a test)"),
        ("imdb_k4", "tiny glove.840B.300d (for a test)"),
    ],
)
def test_a_config_trains_from_its_vectors_and_its_archive_needs_none(
    project, tmp_path, config, vectors
):
    run = train(project, config, tmp_path / "run", **{"trainer.optimizer.lr": 0.03})
    assert run["vectors"].startswith(vectors)
    assert max(epoch["validation_accuracy"] for epoch in run["history"]) > 0.9
    test = project / "data" / "imdb" / "test.jsonl"
    moved = project / "data" / "elsewhere"
    (project / "data" / "vectors").rename(moved)
    try:
        assert evaluate_from_archive(tmp_path / "run/model.tar.gz", str(test))["accuracy"] > 0.9
    finally:
        moved.rename(project / "data" / "vectors")


def test_the_vectors_of_words_that_no_batch_has_stay(project, tmp_path):
    """L2 under RMSprop would take them to zero."""
    vectors = {}
    for epochs in (1, 3):
        directory = tmp_path / str(epochs)
        train(project, "imdb", directory, **{"trainer.num_epochs": epochs})
        model = Model.load(Params.from_file(str(directory / "config.json")), directory)
        [weight] = [p for name, p in model.named_parameters() if "token_embedder_tokens" in name]
        index = model.vocab.get_token_index
        vectors[epochs] = {word: weight[index(word)] for word in ("nowhere", "film")}
    assert torch.equal(vectors[1]["nowhere"], vectors[3]["nowhere"])  # the unknown word's
    assert not torch.equal(vectors[1]["film"], vectors[3]["film"])


def test_a_classifier_starts_from_the_language_models(project, tmp_path):
    small = {
        "vocabulary.min_count": None,
        "model.embedding.embedding_dim": 6,
        "model.rnn.input_size": 6,
        "model.rnn.hidden_size": 8,
        "model.rnn.num_layers": 2,
        "model.cutoffs": [4],
        "data_loader.batch_size": 2,
        "validation_data_loader.batch_size": 2,
        "trainer.learning_rate_scheduler.warmup_steps": 2,
        "trainer.num_epochs": 1,
    }
    learnt = {}
    for name in ("imdb_lm", "imdb_lm_reverse"):
        config, runs = project / "configs" / f"{name}.jsonnet", project / "runs" / name
        train_model_from_file(str(config), runs, json.dumps(small))
        run = json.loads((runs / "run.json").read_text(encoding="utf-8"))
        assert run["vectors"].startswith("tiny glove.840B.300d")
        [epoch] = run["history"]
        assert 1 < epoch["validation_perplexity"] < 30
        learnt[name] = torch.load(runs / "best.th")

    warm_up = {"trainer.learning_rate_scheduler.warmup_steps": 2}
    counts = {"tokens": {"film": 1}, "labels": {"pos": 1, "neg": 1}}

    def begun(name: str, **overrides) -> Model:
        config = project / "configs" / f"{name}.jsonnet"
        params = Params.from_file(str(config), json.dumps(overrides | warm_up))
        return Model.from_params(params["model"], vocab=Vocabulary(counts))._seq2vec_encoder

    both = begun("imdb_pretrained_both", **SMALL_BOTH)
    for encoder, name in (
        (begun("imdb_pretrained", **SMALL), "imdb_lm"),
        (both.forward_encoder, "imdb_lm"),
        (both.backward_encoder, "imdb_lm_reverse"),
    ):
        start = {f"rnn.{key}": value for key, value in encoder.module.state_dict().items()}
        assert len(start) == 4
        assert all(torch.equal(value, learnt[name][key]) for key, value in start.items())

    fast = warm_up | {"trainer.optimizer.lr": 0.03, "trainer.num_epochs": 10}
    near = {"model.adversarial": 0.05}  # a review has five words here
    for name, more in (("imdb_pretrained", {}), ("imdb_best", near)):
        run = train(project, name, tmp_path / name, **fast, **more)
        assert max(epoch["validation_accuracy"] for epoch in run["history"]) > 0.9
    shutil.rmtree(project / "runs" / "imdb_lm")
    test = project / "data" / "imdb" / "test.jsonl"
    archive = tmp_path / "imdb_pretrained" / "model.tar.gz"
    assert evaluate_from_archive(archive, str(test))["accuracy"] > 0.9
    with pytest.raises(FileNotFoundError, match=r"runs/imdb_lm/best\.th"):
        train(project, "imdb_pretrained", tmp_path / "none", **fast)


class Killed(Exception):
    pass


@TrainerCallback.register("kill_classifier", exist_ok=True)
class Kill(TrainerCallback):
    """Ends the run, once, in the middle of the second epoch."""

    armed = False

    def on_batch(self, trainer, inputs, outputs, metrics, epoch, batch_number, *rest, **kwargs):
        if Kill.armed and epoch == 1 and batch_number == 2:
            Kill.armed = False
            raise Killed


def test_recover_continues_the_pooled_config_with_its_average(project, tmp_path):
    callbacks = {"trainer.callbacks": ["run_file", "random_state", "kill_classifier"]}
    whole = train(project, "imdb_pooled", tmp_path / "whole", **callbacks)["history"]
    Kill.armed = True
    with pytest.raises(Killed):
        train(project, "imdb_pooled", tmp_path / "killed", **callbacks)
    recovered = train(project, "imdb_pooled", tmp_path / "killed", True, **callbacks)["history"]
    assert [epoch["epoch"] for epoch in recovered] == [0, 1, 2]
    for a, b in zip(whole, recovered, strict=True):
        for name in ("training_loss", "validation_loss", "validation_accuracy"):
            assert a[name] == pytest.approx(b[name], rel=1e-6)
    for a, b in zip(*map(weights, (tmp_path / "whole", tmp_path / "killed")), strict=True):
        torch.testing.assert_close(a, b)


def weights(directory):
    return torch.load(directory / "best.th").values()


def smoothed(embedder=(), **options) -> Model:
    params = {
        "type": "smoothed_classifier",
        "text_field_embedder": {
            "token_embedders": {
                "tokens": {"type": "word_vectors", "embedding_dim": 3, **dict(embedder)}
            }
        },
        "seq2vec_encoder": {"type": "qrnn", "input_size": 3, "hidden_size": 4, "heads": ["mean"]},
        "label_smoothing": 0.2,
        **options,
    }
    vocabulary = Vocabulary({"tokens": {"a": 1, "b": 1}, "labels": {"pos": 1, "neg": 1}})
    return Model.from_params(Params(params), vocab=vocabulary)


TOKENS = {"tokens": {"tokens": torch.tensor([[2, 3, 2], [3, 0, 0]])}}
LABELS = torch.tensor([0, 1])


def test_smoothed_labels():
    output = smoothed()(TOKENS, LABELS)
    target = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    expected = -(target * output["probs"].log()).sum(1).mean()
    torch.testing.assert_close(output["loss"], expected)
    with pytest.raises(ConfigurationError, match="label_smoothing: expected"):
        smoothed(label_smoothing=1.0)


@pytest.mark.parametrize("trainable", [True, False])
def test_an_adversary_moves_the_word_vectors(trainable):
    """Against a loss written out with vectors, in place of words, that are moved by hand."""
    torch.manual_seed(1)
    model = smoothed({"trainable": trainable}, adversarial=0.3).double()
    output = model(TOKENS, LABELS)
    output["loss"].backward()
    assert model.get_metrics()["accuracy"] == (output["probs"].argmax(1) == LABELS).double().mean()

    embedding = model._text_field_embedder.token_embedder_tokens.weight
    others = [p for p in model.parameters() if p is not embedding]
    words, mask = TOKENS["tokens"]["tokens"], torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()

    def loss(vectors):
        logits = model._classification_layer(model._seq2vec_encoder(vectors, mask))
        return torch.nn.functional.cross_entropy(logits, LABELS, label_smoothing=0.2)

    vectors = embedding[words]
    clean = loss(vectors)
    leaf = vectors.detach().requires_grad_()
    [grad] = torch.autograd.grad(loss(leaf), leaf)
    assert not grad[1, 1:].any()  # padding does not matter
    moved = []
    for row, slope, length in zip(vectors.detach(), grad, (3, 1), strict=True):
        size = (row[:length] ** 2).sum(1).mean().sqrt()
        moved.append(0.3 * size * slope / slope.square().sum().sqrt())
    hard = loss(vectors + torch.stack(moved))
    assert hard > clean
    torch.testing.assert_close(output["loss"], (clean + hard) / 2)
    trained = [*others, embedding] if trainable else others
    expected = torch.autograd.grad((clean + hard) / 2, trained)
    for parameter, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert trainable or embedding.grad is None

    model.eval()
    torch.testing.assert_close(model(TOKENS, LABELS)["loss"], clean)
    assert "loss" not in model.train()(TOKENS)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS, LABELS)["loss"], clean)


def test_padding_has_no_part_in_how_far_an_adversary_moves():
    grad, vectors = torch.randn(2, 2, 3, 4)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    movement = classifier._towards(grad, vectors, mask)
    size = vectors[0, :2].square().sum(1).mean().sqrt()
    torch.testing.assert_close(movement[0].norm(), size)
    assert not movement[1].any()


def test_an_adversary_has_a_distance():
    with pytest.raises(ConfigurationError, match="adversarial: expected at least 0, got -1"):
        smoothed(adversarial=-1)
