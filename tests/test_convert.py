"""Weights to and from torchqrnn's layout; call sites of nn.LSTM with only the class changed."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from qrnn import QRNN, torchqrnn
from qrnn.convert import from_torchqrnn, to_torchqrnn

WIDE = torch.float64


def pair(pooling: str = "fo", k: int = 2, layers: int = 2, **options: Any) -> tuple[Any, QRNN]:
    """Two QRNNs of one form and different weights: torchqrnn's and ours."""
    gate = pooling == "fo"
    old = torchqrnn.QRNN(3, 4, layers, window=k, output_gate=gate, **options).to(WIDE).eval()
    new = QRNN(3, 4, layers, kernel_size=k, pooling=pooling, **options).to(WIDE).eval()
    return old, new


@given(st.sampled_from(["f", "fo"]), st.integers(1, 4), st.integers(1, 3))
def test_both_compute_the_same_both_ways(pooling: str, k: int, layers: int) -> None:
    old, new = pair(pooling, k, layers, zoneout=0.3)
    x, cells = torch.randn(6, 2, 3, dtype=WIDE), torch.randn(layers, 2, 4, dtype=WIDE)
    original = {name: value.clone() for name, value in new.state_dict().items()}
    # to the other package first, from weights that its own initialisation would not give
    old.load_state_dict(to_torchqrnn(new))
    for _ in range(2):
        output, (_, c_n) = new(x, (torch.zeros_like(cells), cells))
        torch.testing.assert_close((output, c_n), old(x, cells), rtol=0, atol=1e-12)
        with torch.no_grad():
            for parameter in old.parameters():
                parameter.normal_()
        new.load_state_dict(from_torchqrnn(old.state_dict(), new))
    old.load_state_dict(to_torchqrnn(new))
    new.load_state_dict(original)
    fresh = from_torchqrnn(to_torchqrnn(new), new)
    assert list(fresh) == list(original)
    assert all(torch.equal(fresh[name], original[name]) for name in original)


def test_rows_and_columns_by_hand() -> None:
    """One channel, two inputs, a window of two: every number in its place."""
    new = QRNN(2, 1, kernel_size=2)
    weight = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], np.float32)
    old = {
        "layers.0.linear.weight": torch.tensor(weight),
        "layers.0.linear.bias": torch.tensor([1.0, 2.0, 3.0]),
    }
    got = from_torchqrnn(old, new)
    want = [[3, 4, 1, 2], [-7, -8, -5, -6], [11, 12, 9, 10]]
    assert got["layers.0.weight"].tolist() == want
    assert got["layers.0.bias"].tolist() == [1, -2, 3]


def test_layers_with_windows_of_their_own() -> None:
    """As AWD-QRNN has them: 2 in the first layer, 1 above."""
    layers = [torchqrnn.QRNNLayer(3, 4, window=2), torchqrnn.QRNNLayer(4, 4)]
    old, new = (
        torchqrnn.QRNN(3, 4, layers=layers),
        QRNN(3, 4, 2, kernel_size=1, first_kernel_size=2),
    )
    new.load_state_dict(from_torchqrnn(old.state_dict(), new))
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(new(x)[0], old(x)[0])


def test_nothing_is_shared_or_changed() -> None:
    old, new = pair()
    before = {name: value.clone() for name, value in new.state_dict().items()}
    weights = from_torchqrnn(old.state_dict(), new)
    for value in [*weights.values(), *to_torchqrnn(new).values()]:
        assert not value.requires_grad
        value.fill_(9)
    assert not any((p == 9).any() for p in old.parameters())
    assert all(torch.equal(new.state_dict()[name], value) for name, value in before.items())


GOOD = pair()[0].state_dict()
WEIGHT = "layers.0.linear.weight"


@pytest.mark.parametrize(
    "error, message, state_dict, options",
    [
        (ValueError, "rnn: .*bidirectional=False.*True", GOOD, {"bidirectional": True}),
        (ValueError, "rnn: .*masked=True.*False", GOOD, {"masked": False}),
        (ValueError, "rnn: .*dense=False.*True", GOOD, {"dense": True}),
        (
            *(ValueError, "rnn: .*zoneout_eval=mean.*none"),
            *(GOOD, {"zoneout": 0.5, "zoneout_eval": "none"}),
        ),
        (ValueError, "rnn: .*bias=True.*False", GOOD, {"bias": False}),
        (ValueError, "rnn: .*pooling.*ifo", GOOD, {"pooling": "ifo"}),
        (ValueError, r"state_dict \S+weight: .*\(12, 9\).*\(12, 6\)", GOOD, {"kernel_size": 3}),
        (ValueError, "state_dict: .*layers.1.linear.bias", GOOD, {"num_layers": 1}),
        (ValueError, "state_dict: expected layers.0.linear.weight.*, got nothing", {}, {}),
        (TypeError, "weight: .*Tensor.*list", GOOD | {WEIGHT: [1.0]}, {}),
    ],
)
def test_misuse(error: type[Exception], message: str, state_dict: Any, options: Any) -> None:
    rnn = QRNN(**{"input_size": 3, "hidden_size": 4, "num_layers": 2} | options)
    with pytest.raises(error, match=message):
        from_torchqrnn(state_dict, rnn)
    if "rnn:" in message:
        with pytest.raises(error, match=message):
            to_torchqrnn(rnn)


def test_the_wrong_qrnn() -> None:
    with pytest.raises(TypeError, match=r"rnn: .*qrnn.QRNN.*qrnn.torchqrnn.QRNN"):
        to_torchqrnn(torchqrnn.QRNN(3, 4))


def test_without_zoneout_its_rule_does_not_matter() -> None:
    rnn = QRNN(3, 4, zoneout_eval="none")
    assert to_torchqrnn(rnn).keys() == torchqrnn.QRNN(3, 4, window=2).state_dict().keys()


class LanguageModel(nn.Module):
    """The form of PyTorch's word-language-model example, whose RNN is chosen by its class."""

    def __init__(self, rnn_class: type[nn.Module], words: int, size: int, layers: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(words, size)
        self.rnn = rnn_class(size, size, layers, dropout=0.2)
        self.decoder = nn.Linear(size, words)
        self.decoder.weight = self.encoder.weight
        self.size, self.layers = size, layers

    def forward(self, input: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        return F.log_softmax(self.decoder(self.drop(output)).flatten(0, 1), 1), hidden

    def init_hidden(self, batch: int) -> tuple[Tensor, Tensor]:
        weight = next(self.parameters())
        shape = self.layers, batch, self.size
        return weight.new_zeros(shape), weight.new_zeros(shape)


def repackage(hidden: Any) -> Any:
    """The same values without their history, whatever tuples they are in."""
    if isinstance(hidden, Tensor):
        return hidden.detach()
    return tuple(repackage(v) for v in hidden)


@pytest.mark.parametrize("rnn_class", [nn.LSTM, QRNN])
def test_language_model_call_site(rnn_class: type[nn.Module]) -> None:
    """Truncated back-propagation over a text where each word follows from two."""
    words, batch, steps = 7, 8, 10
    text = [1, 3]
    while len(text) < 1000:
        text.append((text[-1] + 2 * text[-2] + 1) % words)
    data = torch.tensor(text[: 1000 // batch * batch]).view(batch, -1).t()
    model = LanguageModel(rnn_class, words, 16, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    losses = []
    for _ in range(8):
        hidden = model.init_hidden(batch)
        for t in range(0, len(data) - 1 - steps, steps):
            optimizer.zero_grad()
            hidden = repackage(hidden)
            output, hidden = model(data[t : t + steps], hidden)
            loss = F.nll_loss(output, data[t + 1 : t + 1 + steps].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            losses.append(loss.item())
        assert [v.shape for v in hidden] == [(2, batch, 16)] * 2
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
    model.eval()
    hidden, word = model.init_hidden(1), torch.tensor([[1]])
    with torch.no_grad():
        for _ in range(5):
            output, hidden = model(word, hidden)
            word = output.exp().multinomial(1)


class Translator(nn.Module):
    """An encoder over packed sources, whose last state starts a decoder, run in either way."""

    def __init__(self, rnn_class: type[nn.Module], words: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.encoder = rnn_class(size, size, num_layers=2, batch_first=True, bidirectional=True)
        self.decoder = rnn_class(size, 2 * size, num_layers=2, batch_first=True)
        self.head = nn.Linear(2 * size, words)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.embedding(source)
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        self.encoder.flatten_parameters()
        _, (h, c) = self.encoder(packed)
        # (layers * 2, batch, size) to (layers, batch, 2 * size): both directions side by side
        h, c = (v.unflatten(0, (2, 2)).transpose(1, 2).flatten(2).contiguous() for v in (h, c))
        return h, c

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        output, _ = self.decoder(self.embedding(target), self.encode(source, lengths))
        return self.head(output)

    def greedy(self, source: Tensor, lengths: Tensor, start: int, steps: int) -> Tensor:
        hidden, word, words = (
            self.encode(source, lengths),
            source.new_full((len(source), 1), start),
            [],
        )
        for _ in range(steps):
            output, hidden = self.decoder(self.embedding(word), hidden)
            word = self.head(output).argmax(-1)
            words.append(word)
        return torch.cat(words, 1)


@pytest.mark.parametrize("rnn_class", [nn.LSTM, QRNN])
def test_seq2seq_call_site(rnn_class: type[nn.Module]) -> None:
    """It learns to say the last word of each source, of any length, twice."""
    words, start = 6, 5
    lengths = torch.randint(1, 6, (64,))
    source = torch.randint(start, (64, 5))
    last = source[torch.arange(64), lengths - 1]
    source[torch.arange(5) >= lengths[:, None]] = 0
    model = Translator(rnn_class, words, 12)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    target = torch.stack([torch.full_like(last, start), last], 1)
    for _ in range(60):
        optimizer.zero_grad()
        scores = model(source, lengths, target)
        loss = F.cross_entropy(scores.flatten(0, 1), last.repeat_interleave(2))
        loss.backward()
        optimizer.step()
    model.eval()
    said = model.greedy(source, lengths, start, 2)
    assert (said == last[:, None]).double().mean() > 0.95
