import math

import ptb_cache
import pytest
import torch
from ptb_cache import Read, cache, perplexity


@pytest.fixture
def text():
    N, H = 60, 3
    log_p = torch.rand(N).log()
    return Read(torch.randn(N, H), torch.randint(5, (N,)), log_p)


def by_hand(text, window, theta):
    """p_cache word by word, from the formula."""
    found = []
    for t in range(len(text.words)):
        weights = {}
        for i in range(max(0, t - window), t):
            score = sum(a * b for a, b in zip(text.outputs[t], text.outputs[i], strict=True)).item()
            word = int(text.words[i])
            weights[word] = weights.get(word, 0) + math.exp(theta * score)
        total = sum(weights.values())
        found.append(weights.get(int(text.words[t]), 0) / total if total else 0)
    return found


@pytest.mark.parametrize("window", [1, 7, 25, 100])
def test_the_cache_by_hand(text, window, monkeypatch):
    monkeypatch.setattr(ptb_cache, "PIECE", 11)
    thetas = [0.0, 0.3, 2.0]
    for row, theta in zip(cache(text, window, thetas), thetas, strict=True):
        assert row.tolist() == pytest.approx(by_hand(text, window, theta), abs=1e-5)


def test_the_perplexity_of_the_mixture(text):
    plain = math.exp(-text.log_p.mean())
    assert perplexity(text, None, 0) == pytest.approx(plain, rel=1e-6)
    cached = torch.full((60,), 0.5)
    p = [0.8 * x + 0.2 * 0.5 for x in text.log_p.exp().tolist()]
    p[0] = text.log_p[0].exp().item()
    expected = math.exp(-sum(map(math.log, p)) / 60)
    assert perplexity(text, cached, 0.2) == pytest.approx(expected, rel=1e-6)


def test_a_text_that_repeats_itself_gains(monkeypatch):
    """An output that tells the word, and words in a circle: the cache knows the next one."""
    words = torch.arange(400) % 20
    outputs = 5 * torch.eye(20)[words]
    text = Read(outputs, words, torch.full((400,), -math.log(20)))
    monkeypatch.setattr(ptb_cache, "WINDOWS", (10, 50))
    choice, found = ptb_cache.best(text)
    assert choice.window == 50 and choice.share == max(ptb_cache.SHARES)
    assert found < 5 < perplexity(text, None, 0)
