import copy
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.training import Checkpointer, GradientDescentTrainer, TrainerCallback
from allennlp.training.learning_rate_schedulers import NoamLR
from torch.nn import functional as F

from qrnn.allennlp import NTASGD, RateByLength, TokenStreamLoader, TokenStreamReader

CONFIGS = Path(__file__).parents[2] / "configs"
TEXT = "the cat sat on the mat\nthe dog sat\n\na dog and a cat sat on a mat and sat\n" * 3
SMALL = {"embedding_size": 4, "hidden_size": 6, "num_layers": 3}
DROPOUTS = [f"{name}_dropout" for name in ("weight", "word", "input", "hidden", "output")]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def vocabulary_of(path):
    instances = TokenStreamReader().read(path)
    return Vocabulary.from_instances(instances, non_padded_namespaces=["tokens"])


def loader(path, bptt, batch_size=1, random_length=False):
    made = TokenStreamLoader(TokenStreamReader(), str(path), bptt, batch_size, random_length)
    made.index_with(vocabulary_of(path))
    return made


def build(path, **options):
    params = Params({"type": "awd_language_model", **SMALL, **options})
    return Model.from_params(params, vocab=vocabulary_of(path)).double()


def run_by_hand(model, tokens):
    """The three layers over tokens (T, B) from zero, by the paper's equations."""
    x = model.softmax.weight[tokens]
    T, B, _ = x.shape
    for n, layer in enumerate(model.layers):
        if n == 0:  # the only window of two steps
            x = torch.cat([torch.cat([x.new_zeros(1, B, x.shape[2]), x[:-1]]), x], -1)
        z, f, o = (x @ layer.weight.T + layer.bias).chunk(3, -1)
        c, steps = torch.zeros_like(z[0]), []
        for t in range(T):
            c = f[t].sigmoid() * c + (1 - f[t].sigmoid()) * z[t].tanh()
            steps.append(o[t].sigmoid() * c)
        x = torch.stack(steps)
    return x


def test_the_loss_by_hand(corpus):
    model = build(corpus, activation_penalty=2.0, temporal_penalty=1.5)
    assert [tuple(layer.weight.shape) for layer in model.layers] == [(18, 8), (18, 6), (12, 6)]
    [batch] = loader(corpus, 1000, batch_size=3)
    h = run_by_hand(model, batch["tokens"])
    scores = h @ model.softmax.weight.T + model.softmax.bias
    mean = F.cross_entropy(scores.flatten(0, 1), batch["targets"].flatten())
    penalties = 2 * (h**2).mean() + 1.5 * ((h[1:] - h[:-1]) ** 2).mean()
    assert model.train()(**batch)["loss"].item() == pytest.approx((mean + penalties).item())
    assert model.eval()(**batch)["loss"].item() == pytest.approx(mean.item())
    assert model.get_metrics()["perplexity"] == pytest.approx(math.exp(mean.item()))
    mask = torch.rand(batch["tokens"].shape) < 0.5  # of lines, which have other lengths
    some = F.cross_entropy(scores[mask], batch["targets"][mask])
    assert model(**batch, mask=mask)["loss"].item() == pytest.approx(some.item())
    # one step has no difference to be penalised
    first = {"tokens": batch["tokens"][:1], "targets": batch["targets"][:1], "start": True}
    assert model.train()(**first)["loss"].isfinite()
    # what the tied weights get is what both their uses give
    model.zero_grad()
    model.train()(**batch)["loss"].backward()
    tied = model.softmax.weight
    (expected,) = torch.autograd.grad(mean + penalties, tied)
    torch.testing.assert_close(tied.grad, expected, rtol=1e-9, atol=1e-12)
    assert sum(p.numel() for p in model.parameters()) == 9 * 5 + sum(
        layer.weight.numel() + layer.bias.numel() for layer in model.layers
    )


def test_pieces_are_the_whole_and_the_copy_is_its_own(corpus):
    model = build(corpus).eval()

    def total(model, bptt):
        with torch.no_grad():
            for batch in loader(corpus, bptt, batch_size=2):
                model(**batch)
        return model.get_metrics(reset=True)["perplexity"]

    whole = total(model, 1000)
    assert total(model, 1) == pytest.approx(whole, rel=1e-12)
    assert total(copy.deepcopy(model), 7) == pytest.approx(whole, rel=1e-12)
    again = build(corpus)
    again.load_state_dict(model.state_dict())
    assert total(again.eval(), 5) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_acts_in_training_only(corpus, name):
    [batch] = loader(corpus, 1000, batch_size=2)
    model = build(corpus, **{name: 0.5})

    def loss():
        torch.manual_seed(1)
        return model(**batch)["loss"].item()

    plain = model.eval() and loss()
    dropped = model.train() and loss()
    assert dropped != plain and dropped == loss()
    setattr(model, name, 0.0)
    for layer in model.layers:
        layer.weight_dropout = 0.0
    assert loss() == pytest.approx(plain, rel=1e-12)


def test_masks(corpus, monkeypatch):
    """Words vanish wherever they stand, and the other masks are the same at all steps."""
    model = build(corpus, word_dropout=0.5, input_dropout=0.3).train()
    with torch.no_grad():
        model.softmax.weight.fill_(1)
    [batch] = loader(corpus, 1000, batch_size=2)
    seen = []
    forward = model.layers[0].forward
    monkeypatch.setattr(model.layers[0], "forward", lambda x, s: seen.append(x) or forward(x, s))
    model(**batch)
    [x] = seen
    tokens = batch["tokens"]
    by_word = {word: x[tokens == word] for word in range(9)}
    gone = {word for word, rows in by_word.items() if not rows.any()}
    assert 0 < len(gone) < 9
    masks = [
        {tuple(row) for row, word in zip(x[:, b].tolist(), tokens[:, b].tolist(), strict=True)
         if word not in gone}
        for b in range(2)
    ]  # fmt: skip
    assert all(len(rows) == 1 for rows in masks) and masks[0] != masks[1]
    values = {value for rows in masks for row in rows for value in row}
    assert sorted(values) == pytest.approx([0, 1 / 0.5 / 0.7])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_layers": 1}, "num_layers: expected at least 2, got 1"),
        ({"word_dropout": 1.5}, "word_dropout: expected a probability from 0 to 1, got 1.5"),
        ({"weight_dropout": -0.1}, "weight_dropout: expected a probability from 0 to 1, got -0.1"),
        ({"temporal_penalty": -1}, "temporal_penalty: expected at least 0, got -1"),
        ({"hidden_size": 0}, "hidden_size: expected at least 1, got 0"),
    ],
)
def test_misuse_is_named(corpus, options, error):
    with pytest.raises(ConfigurationError, match=error):
        build(corpus, **options)


def test_the_model_of_the_recipe():
    vocabulary = Vocabulary(non_padded_namespaces=["tokens"])
    for n in range(10_000):
        vocabulary.add_token_to_namespace(str(n))
    config = Params.from_file(CONFIGS / "ptb_awd.jsonnet")
    model = Model.from_params(config["model"], vocab=vocabulary)
    E, H = 400, 1550
    weights = 3 * H * 2 * E + 2 * 3 * H * H + 3 * E * H
    biases = 3 * (3 * H + E)
    assert sum(p.numel() for p in model.parameters()) == weights + biases + 10_001 * E - E + 10_000
    assert {name: getattr(model, name) for name in DROPOUTS[1:]} == {
        "word_dropout": 0.1,
        "input_dropout": 0.4,
        "hidden_dropout": 0.3,
        "output_dropout": 0.4,
    }
    assert [layer.weight_dropout for layer in model.layers] == [0.1] * 4


# -- the optimizer


def trainer_of(model, batches, path, callbacks, epochs, lr=1.0, **options):
    folder = path.parent / "run"
    folder.mkdir(exist_ok=True)
    return GradientDescentTrainer(
        model,
        torch.optim.SGD(model.parameters(), lr=lr),
        batches,
        validation_data_loader=loader(path, 1000),
        validation_metric="-perplexity",
        num_epochs=epochs,
        callbacks=callbacks,
        serialization_dir=str(folder),
        checkpointer=Checkpointer(str(folder)),
        cuda_device=-1,
        **options,
    )


class Watch(NTASGD):
    """Notes when the average begins."""

    def on_epoch(self, trainer, metrics, epoch, **kwargs):
        super().on_epoch(trainer, metrics, epoch, **kwargs)
        self.seen = [*getattr(self, "seen", []), self.average.started]


@pytest.mark.parametrize("triggered", [False, True])
def test_nt_asgd_is_algorithm_1(corpus, triggered):
    """A plain loop: steps, one validation an epoch, a list of all iterates since the trigger."""
    window, epochs, lr = 2, 9, 14.0  # a rate at which validation soon gets worse
    torch.manual_seed(3)
    model = build(corpus)
    hand = copy.deepcopy(model)
    batches = loader(corpus, 6, batch_size=2)

    def validate(model):
        model.eval()
        with torch.no_grad():
            for batch in loader(corpus, 1000):
                model(**batch)
        return model.get_metrics(reset=True)["perplexity"]

    iterates, logs, average = [], [], triggered
    best = (math.inf, None)
    for _ in range(epochs):
        hand.train()
        for batch in batches:
            hand.zero_grad()
            hand(**batch)["loss"].backward()
            with torch.no_grad():
                for p in hand.parameters():
                    p -= lr * p.grad
            if average:
                iterates.append([p.detach().clone() for p in hand.parameters()])
        hand.get_metrics(reset=True)
        judged = copy.deepcopy(hand)
        if iterates:
            for p, *values in zip(judged.parameters(), *iterates, strict=True):
                p.data = torch.stack(values).mean(0)
        logs.append(validate(judged))
        if logs[-1] < best[0]:
            best = (logs[-1], judged.state_dict())
        if len(logs) > window + 1 and logs[-1] > min(logs[: -1 - window]):
            average = True

    callback = Watch(str(corpus.parent), window=window, triggered=triggered)
    metrics = trainer_of(model, batches, corpus, [callback], epochs, lr).train()
    assert callback.perplexities == pytest.approx(logs, rel=1e-8)
    assert iterates and callback.average.steps == len(iterates)
    if not triggered:
        assert 0 < len(iterates) < epochs * len(batches) and not callback.seen[window - 1]
    assert metrics["best_validation_perplexity"] == pytest.approx(best[0], rel=1e-8)
    saved = torch.load(corpus.parent / "run" / "best.th")
    for name, value in best[1].items():  # what is kept is what was validated
        torch.testing.assert_close(saved[name], value, rtol=1e-8, atol=1e-10)


def test_nt_asgd_says_what_it_cannot_work_with(corpus):
    with pytest.raises(ConfigurationError, match="window: expected at least 1, got 0"):
        NTASGD("", window=0)
    model = build(corpus)
    trainer = trainer_of(model, loader(corpus, 6, 2), corpus, [NTASGD(str(corpus.parent))], 1)
    trainer._validation_data_loader = None
    with pytest.raises(ConfigurationError, match="no validation data"):
        trainer.train()
    with pytest.raises(ConfigurationError, match="have validation_perplexity, got validation_acc"):
        NTASGD("").on_epoch(trainer, {"validation_accuracy": 0.5}, 0)


def test_the_rate_goes_with_the_length_of_the_piece(corpus):
    model = build(corpus)
    hand = copy.deepcopy(model)
    batches = list(loader(corpus, 5, batch_size=4))
    assert [len(batch["tokens"]) for batch in batches] == [5, 5, 5, 3]
    for batch in batches:
        hand.zero_grad()
        hand(**batch)["loss"].backward()
        with torch.no_grad():
            for p in hand.parameters():
                p -= 0.7 * len(batch["tokens"]) / 5 * p.grad
    trainer = trainer_of(
        model, loader(corpus, 5, 4), corpus, [RateByLength(str(corpus.parent), bptt=5)], 1, 0.7
    )
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == 0.7
    for p, q in zip(model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


class Rates(TrainerCallback):
    """Notes the rate of each step."""

    def on_start(self, trainer, is_primary=True, **kwargs):
        self.seen = []
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_: self.seen.append(optimizer.param_groups[0]["lr"])
        )


def test_the_rate_goes_with_the_length_beside_a_scheduler(corpus):
    seen = []
    for callbacks in ([], [RateByLength("", bptt=5)]):
        rates = Rates("")
        trainer = trainer_of(build(corpus), loader(corpus, 5, 4), corpus, [*callbacks, rates], 2)
        trainer._learning_rate_scheduler = NoamLR(trainer.optimizer, 4, warmup_steps=3)
        trainer.train()
        seen.append(rates.seen)
        shutil.rmtree(corpus.parent / "run")
    plain, scaled = seen
    assert len({*plain}) > 4
    assert scaled == pytest.approx(
        [rate * n / 5 for rate, n in zip(plain, [5, 5, 5, 3] * 2, strict=True)]
    )


@pytest.mark.parametrize("bptt", [0, -35])
def test_a_length_is_positive(bptt):
    with pytest.raises(ConfigurationError, match=f"bptt: expected at least 1, got {bptt}"):
        RateByLength("", bptt=bptt)


def test_the_length_has_to_be_known(corpus):
    trainer = trainer_of(build(corpus), loader(corpus, 5, 4), corpus, [], 1)
    with pytest.raises(ConfigurationError, match=r"output has steps.*got AWDLanguageModel"):
        RateByLength("", bptt=5).on_backward(trainer, {"loss": torch.ones(1)}, False)


def test_the_rate_is_of_one_piece_a_step(corpus):
    callbacks = [RateByLength(str(corpus.parent), bptt=5)]
    several = {"num_gradient_accumulation_steps": 2}
    trainer = trainer_of(build(corpus), loader(corpus, 5, 4), corpus, callbacks, 1, **several)
    with pytest.raises(ConfigurationError, match=r"num_gradient_accumulation_steps 1.*got 2"):
        trainer.train()


def test_random_lengths(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b c d e f g h i\n" * 20_000, encoding="utf-8")
    pieces = loader(path, 70, 2, random_length=True)
    with pytest.raises(TypeError, match="not known"):
        len(pieces)
    random.seed(1)
    batches = list(pieces)
    joined = torch.cat([batch["tokens"] for batch in batches])
    assert torch.equal(joined, torch.cat([b["tokens"] for b in loader(path, 70, 2)]))
    lengths = [len(batch["tokens"]) for batch in batches][:-1]
    short = [n for n in lengths if n < 52]
    long = torch.tensor([float(n) for n in lengths if n >= 52])
    assert 0.03 < len(short) / len(lengths) < 0.07
    assert abs(sum(short) / len(short) - 34.5) < 1.5 and abs(long.mean() - 69.5) < 0.5
    assert abs(long.std() - 5) < 0.3
    random.seed(1)
    assert [len(batch["tokens"]) for batch in pieces] == [*lengths, len(batches[-1]["tokens"])]
