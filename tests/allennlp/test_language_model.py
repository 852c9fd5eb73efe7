import copy
import math
from pathlib import Path

import numpy
import pytest
import torch
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError
from allennlp.data import DataLoader, Vocabulary
from allennlp.models import Model
from allennlp.training import GradientDescentTrainer
from allennlp.training.learning_rate_schedulers import LearningRateScheduler
from allennlp.training.optimizers import Optimizer
from torch.nn import functional as F

from qrnn.allennlp import (
    TokenLineLoader,
    TokenStreamLoader,
    TokenStreamReader,
    language_model,
)
from qrnn.allennlp.language_model import summed_adaptive_cross_entropy, summed_cross_entropy

CONFIGS = Path(__file__).parents[2] / "configs"
TEXT = "the cat sat on the mat\nthe dog sat\n\na dog and a cat sat on a mat and sat\n" * 3
WORDS = len(TEXT.split()) + TEXT.count("\n")
QRNN = {"type": "qrnn", "input_size": 5, "hidden_size": 4, "num_layers": 2, "kernel_size": 3}
LSTM = {"type": "lstm", "input_size": 5, "hidden_size": 4, "num_layers": 2}
both = pytest.mark.parametrize("rnn", [QRNN, LSTM], ids=["qrnn", "lstm"])


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def vocabulary_of(path):
    instances = TokenStreamReader().read(path)
    return Vocabulary.from_instances(instances, non_padded_namespaces=["tokens"])


def loader(path, bptt, batch_size=1):
    made = TokenStreamLoader(TokenStreamReader(), str(path), bptt, batch_size)
    made.index_with(vocabulary_of(path))
    return made


def build(path, rnn=QRNN, **options):
    params = Params({"type": "language_model", "rnn": dict(rnn), **options})
    return Model.from_params(params, vocab=vocabulary_of(path)).double()


def test_cross_entropy_in_chunks_is_the_plain_one(monkeypatch):
    N, H, V = 11, 4, 7
    targets = torch.randint(V, (N,))
    inputs = [
        torch.randn(*s, dtype=torch.double, requires_grad=True) for s in ((N, H), (V, H), (V,))
    ]
    plain = F.cross_entropy(F.linear(*inputs), targets, reduction="sum")
    expected = torch.autograd.grad(plain / 3, inputs)
    for rows in (1, 4, 11, 100):  # 4 leaves a last chunk of 3
        monkeypatch.setattr(language_model, "LOGITS", rows * V)
        total = summed_cross_entropy(*inputs, targets)
        torch.testing.assert_close(total, plain, rtol=1e-12, atol=0)
        for grad, other in zip(torch.autograd.grad(total / 3, inputs), expected, strict=True):
            torch.testing.assert_close(grad, other, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda *x: summed_cross_entropy(*x, targets), inputs)
    with torch.no_grad():
        assert summed_cross_entropy(*inputs, targets).item() == pytest.approx(plain.item())


def test_cross_entropy_never_holds_all_logits(monkeypatch):
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out,) if isinstance(x, torch.Tensor))
            return out

    N, H, V = 60, 2, 50
    monkeypatch.setattr(language_model, "LOGITS", 5 * V)
    inputs = [torch.randn(*s, requires_grad=True) for s in ((N, H), (V, H), (V,))]
    with Watch():
        summed_cross_entropy(*inputs, torch.randint(V, (N,))).backward()
    assert max(sizes) <= 5 * V


def test_cross_entropy_under_autocast():
    N, H, V = 30, 8, 20
    targets = torch.randint(V, (N,))
    inputs = [torch.randn(*s, requires_grad=True) for s in ((N, H), (V, H), (V,))]
    with torch.autocast("cpu", torch.bfloat16):
        total = summed_cross_entropy(*inputs, targets)
        plain = F.cross_entropy(F.linear(*inputs), targets, reduction="sum")
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, plain, rtol=1e-5, atol=0)
    for grad, other in zip(
        torch.autograd.grad(total, inputs), torch.autograd.grad(plain, inputs), strict=True
    ):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, other, rtol=2e-2, atol=2e-2)  # bfloat16 has 8 bits


@pytest.mark.parametrize("words", [(0, 2, 1, 9, 3, 5, 19, 4), (0, 0, 1, 2), (8, 19)])
def test_adaptive_cross_entropy_is_torchs(words):
    """Also where a cluster, or the head, has no target."""
    softmax = torch.nn.AdaptiveLogSoftmaxWithLoss(16, 20, [3, 8]).double()
    hidden = torch.randn(len(words), 16, dtype=torch.double, requires_grad=True)
    targets, inputs = torch.tensor(words), [hidden, *softmax.parameters()]
    plain = -softmax(hidden, targets).output.sum()
    total = summed_adaptive_cross_entropy(hidden, softmax, targets)
    torch.testing.assert_close(total, plain, rtol=1e-12, atol=0)
    expected = torch.autograd.grad(plain / 3, inputs, materialize_grads=True)
    for grad, other in zip(torch.autograd.grad(total / 3, inputs), expected, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        total = summed_adaptive_cross_entropy(hidden, softmax, targets)
    assert total.item() == pytest.approx(plain.item())


def evaluate(model, batches):
    model.eval()
    with torch.no_grad():
        losses = [model(**batch)["loss"].item() for batch in batches]
    return losses, model.get_metrics(reset=True)["perplexity"]


def test_a_model_that_knows_nothing_has_the_perplexity_of_the_vocabulary(corpus):
    model = build(corpus)
    torch.nn.init.zeros_(model.softmax.weight)
    losses, perplexity = evaluate(model, loader(corpus, 10))
    assert perplexity == pytest.approx(8 + 1, rel=1e-12)  # words and <eos>
    assert sum(losses) == pytest.approx(WORDS * math.log(9), rel=1e-12)
    model.softmax.bias.data[0] = 1e4  # more than exp can take
    assert evaluate(model, loader(corpus, 10))[1] == math.inf


def test_a_pass_that_begins_inside_an_epoch_starts_from_zero(corpus):
    """As the first piece after --recover, which is not the stream's."""
    model = build(corpus).eval()
    other = copy.deepcopy(model)
    for batch in loader(corpus, 7):
        assert torch.equal(other(**batch | {"start": False})["loss"], model(**batch)["loss"])


def test_perplexity_by_hand(corpus):
    """The equations of the paper, word by word in NumPy, on a corpus with odd last pieces."""
    model = build(corpus, QRNN | {"zoneout": 0.3, "zoneout_eval": "none"}, dropout=0.4)
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    index = model.vocab.get_token_to_index_vocabulary("tokens")
    stream = [index[w] for line in TEXT.splitlines() for w in [*line.split(), "<eos>"]]
    cells = [numpy.zeros(4), numpy.zeros(4)]
    windows = [[numpy.zeros(5)] * 2, [numpy.zeros(4)] * 2]  # the last two inputs of each layer
    nats, previous = 0.0, index["<eos>"]
    for word in stream:
        x = weights["embedding.weight"][previous]
        for n in range(2):
            seen = numpy.concatenate([*windows[n], x])
            windows[n] = [windows[n][1], x]
            gates = weights[f"rnn.layers.{n}.weight"] @ seen + weights[f"rnn.layers.{n}.bias"]
            z, f, o = gates.reshape(3, 4)
            f, o = 1 / (1 + numpy.exp(-f)), 1 / (1 + numpy.exp(-o))
            cells[n] = f * cells[n] + (1 - f) * numpy.tanh(z)
            x = o * cells[n]
        scores = weights["softmax.weight"] @ x + weights["softmax.bias"]
        nats -= scores[word] - numpy.log(numpy.exp(scores).sum())
        previous = word
    for bptt in (1, 7, 1000):
        _, perplexity = evaluate(model, loader(corpus, bptt))
        assert perplexity == pytest.approx(math.exp(nats / WORDS), rel=1e-12)


@both
@pytest.mark.parametrize("training", [False, True])
def test_pieces_are_the_whole(corpus, rnn, training):
    model = build(corpus, rnn).train(training)

    def run(bptt):
        model.zero_grad()
        total = 0.0
        for batch in loader(corpus, bptt, batch_size=4):
            loss = model(**batch)["loss"]
            loss.backward()  # fails if the state still had a graph
            total += loss.item()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        return total, model.get_metrics(reset=True)["perplexity"], grads

    total, perplexity, grads = run(1000)
    for bptt in (1, 4, 7):
        found = run(bptt)
        assert found[:2] == pytest.approx((total, perplexity), rel=1e-12)
        for name in ("softmax.weight", "softmax.bias"):  # truncation does not touch these
            torch.testing.assert_close(found[2][name], grads[name], rtol=1e-10, atol=1e-12)


@both
def test_lines_do_not_know_of_each_other(corpus, rnn):
    """In any batches, padded or not, the loss is that of each line read alone."""
    model = build(corpus, rnn).eval()
    index = model.vocab.get_token_to_index_vocabulary("tokens")
    nats = 0.0
    with torch.no_grad():
        for line in TEXT.splitlines():
            words = [index["<eos>"], *(index[w] for w in line.split()), index["<eos>"]]
            output, _ = model.rnn(model.embedding(torch.tensor(words[:-1])[:, None]))
            scores = model.softmax(output[:, 0])
            nats += F.cross_entropy(scores, torch.tensor(words[1:]), reduction="sum").item()
    for batch_size in (1, 4, 100):
        lines = TokenLineLoader(TokenStreamReader(), str(corpus), batch_size)
        lines.index_with(model.vocab)
        losses, perplexity = evaluate(model, lines)
        assert perplexity == pytest.approx(math.exp(nats / WORDS), rel=1e-12)
        rows = [batch["tokens"].shape[1] for batch in lines]
        weighted = sum(loss * n for loss, n in zip(losses, rows, strict=True))
        assert weighted == pytest.approx(nats, rel=1e-12)


@both
def test_each_epoch_starts_anew_and_validation_does_not_disturb(corpus, rnn):
    """Dropout and zoneout are drawn anew from the same seed, and no step is made."""
    model = build(corpus, rnn | {"dropout": 0.5}, dropout=0.5)
    batches = list(loader(corpus, 4, batch_size=3))
    valid, perplexity = evaluate(model, loader(corpus, 6))

    def epoch(validate_after=()):
        torch.manual_seed(1)
        losses = []
        for n, batch in enumerate(batches):
            model.train()
            losses.append(model(**batch)["loss"].item())
            if n in validate_after:
                assert evaluate(model, loader(corpus, 6)) == (valid, perplexity)
                model.train()
        return losses, model.get_metrics(reset=True)

    first = epoch()
    assert epoch() == first
    assert epoch(validate_after=(0, 2, 3)) == first
    assert not any("stream" in name for name in model.state_dict())
    assert evaluate(copy.deepcopy(model), loader(corpus, 6)) == (valid, perplexity)


def test_a_step_of_the_trainer_by_hand(corpus):
    """Four steps of the recipe: loss summed over time and averaged over the batch, then
    rescaling, then L2."""
    config = Params.from_file(CONFIGS / "ptb.jsonnet")["trainer"]
    model = build(corpus)
    B, T, lr, decay, norm = 4, 5, 1, 2e-4, 0.55  # norm 10 never rescales a model as small
    hand = {name: p.detach().clone() for name, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    batches = loader(corpus, T, B)
    assert len(batches) == 4
    state, rescaled = twin.rnn.initial_state(B), []
    for batch in batches:
        for name, p in twin.named_parameters():
            p.data, p.grad = hand[name].clone(), None
        output, state = twin.rnn(twin.embedding(batch["tokens"]), state.detach())
        log_p = twin.softmax(output).log_softmax(-1)
        steps, rows = batch["targets"].shape
        loss = -sum(log_p[t, b, batch["targets"][t, b]] for t in range(steps) for b in range(rows))
        (loss / rows).backward()
        grads = {name: p.grad for name, p in twin.named_parameters()}
        length = sum(g.square().sum() for g in grads.values()).sqrt().item()
        factor = min(1, norm / (length + 1e-6))
        rescaled.append(factor < 1)
        for name in hand:
            hand[name] = hand[name] - lr * (factor * grads[name] + decay * hand[name])
    assert any(rescaled) and not all(rescaled)
    named = list(model.named_parameters())
    GradientDescentTrainer(
        model,
        Optimizer.from_params(config["optimizer"], model_parameters=named),
        batches,
        num_epochs=1,
        grad_norm=norm,
        cuda_device=-1,
    ).train()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.data, hand[name], rtol=1e-9, atol=1e-12)


def test_the_learning_rates_of_the_recipe():
    config = Params.from_file(CONFIGS / "ptb.jsonnet")["trainer"]
    assert config["grad_norm"] == 10
    named = [("p", torch.nn.Parameter(torch.zeros(1)))]
    optimizer = Optimizer.from_params(config["optimizer"], model_parameters=named)
    scheduler = LearningRateScheduler.from_params(
        config["learning_rate_scheduler"], optimizer=optimizer
    )
    rates = []
    for _ in range(config["num_epochs"]):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1] * 6 + [0.95**n for n in range(1, 67)], rel=1e-12)


@pytest.mark.parametrize(
    ("config", "parameters", "embeddings", "weights"),
    [
        ("ptb", 17_729_040, 3**-0.5 / 20, 2 * 1280**-0.5),
        ("ptb_lstm", 19_780_400, 3**-0.5 / 20, 3**-0.5 / 20),
    ],
)
def test_the_models_of_the_paper(config, parameters, embeddings, weights):
    vocabulary = Vocabulary(non_padded_namespaces=["tokens"])
    for n in range(10_000):
        vocabulary.add_token_to_namespace(str(n))
    params = Params.from_file(CONFIGS / f"{config}.jsonnet")
    model = Model.from_params(params["model"], vocab=vocabulary)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.embedding.weight.std().item() == pytest.approx(embeddings, rel=1e-2)
    first = next(p for name, p in model.named_parameters() if name.startswith("rnn."))
    assert first.std().item() == pytest.approx(weights, rel=1e-2)
    if config == "ptb":
        assert model.softmax.weight.std().item() == pytest.approx(640**-0.5, rel=1e-2)
        assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))
        assert [layer.zoneout for layer in model.rnn.layers] == [0.1, 0.1]
    for name in ("data_loader", "validation_data_loader"):
        DataLoader.from_params(params[name], reader=TokenStreamReader(), data_path="x")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"rnn": {"type": "gru"}}, "rnn type: expected one of qrnn, lstm, got 'gru'"),
        ({"rnn": QRNN | {"bidirectional": True}}, "no option bidirectional"),
        ({"rnn": LSTM | {"batch_first": True}}, "no option batch_first"),
        ({"rnn": QRNN | {"masked": False}}, "masked=False"),
        ({"rnn": QRNN | {"kernel": 2}}, "kernel"),
        ({"dropout": 1.5}, "dropout: expected a probability"),
        ({"cutoffs": [5, 2]}, "cutoffs should be"),
        (
            {"embedding": {"type": "word_vectors", "embedding_dim": 6}},
            "embedding: expected vectors of rnn's input_size 5, got 6",
        ),
    ],
)
def test_wrong_options_are_named(corpus, options, error):
    with pytest.raises(ConfigurationError, match=error):
        build(corpus, **options)


def test_an_adaptive_softmax_is_a_distribution_over_all_words(corpus):
    model = build(corpus, QRNN | {"hidden_size": 16}, cutoffs=[2, 5]).eval()
    batches = list(loader(corpus, 10, batch_size=2))
    losses, perplexity = evaluate(model, batches)
    nats, state = 0.0, None
    with torch.no_grad():
        for batch, loss in zip(batches, losses, strict=True):
            x = model.embedding(batch["tokens"])
            output, state = model.rnn(x, state or model.initial_state(2))
            log_p = model.softmax.log_prob(output.flatten(0, 1))
            torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(log_p)).double())
            total = -log_p.gather(1, batch["targets"].flatten()[:, None]).sum().item()
            assert loss == pytest.approx(total / 2, rel=1e-12)
            nats += total
    assert perplexity == pytest.approx(math.exp(nats / (WORDS // 2 * 2)), rel=1e-12)


def test_an_adaptive_softmax_under_autocast(corpus):
    """torch's own raises an error there, or gives eight bits."""
    model = build(corpus, QRNN | {"hidden_size": 16}, cutoffs=[2, 5]).float()
    [batch] = loader(corpus, 1000, batch_size=2)
    want = model(**batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(want.item(), rel=1e-2)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_word_vectors_for_embeddings(corpus, tmp_path):
    numbers = [0.5, -0.25, 1.0, 2.0, -1.0]
    file = tmp_path / "tiny.5d.txt"
    file.write_text(f"cat {' '.join(map(str, numbers))}\n", encoding="utf-8")
    embedding = {"type": "word_vectors", "embedding_dim": 5, "pretrained_file": str(file)}
    model = build(corpus, embedding={**embedding, "trainable": False})
    cat = model.vocab.get_token_index("cat", "tokens")
    assert model.embedding.weight[cat].tolist() == numbers
    assert model.embedding.weight.any(1).all()  # the first word is one like the others
    [batch] = loader(corpus, 1000, batch_size=2)
    model(**batch)["loss"].backward()
    assert model.embedding.weight.grad is None and model.rnn.layers[0].weight.grad.any()
    model = build(corpus, embedding=embedding)
    model(**batch)["loss"].backward()
    assert model.embedding.weight.grad.any(1).all()


def test_a_vocabulary_with_padding_is_refused(corpus):
    vocabulary = Vocabulary.from_instances(TokenStreamReader().read(corpus))
    params = Params({"type": "language_model", "rnn": dict(QRNN)})
    with pytest.raises(ConfigurationError, match="non_padded_namespaces"):
        Model.from_params(params, vocab=vocabulary)
