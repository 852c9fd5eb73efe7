"""Equation 9: the factor against a loop, and the search against all its finished candidates."""

import math

import pytest
import torch
from joeynmt import config
from joeynmt.config import ConfigurationError
from joeynmt.search import search
from translation import SOURCES, TARGETS, batch, beams, shaken

from qrnn.joeynmt.ranking import Alpha, beam_search


def factor(T, source, alpha):
    return math.prod((t + alpha) / t for t in range(T, source + 5 + 1))


@pytest.mark.parametrize("alpha", [0, 0.6, 2.5])
def test_the_factor_is_a_product(alpha):
    T, source = torch.meshgrid(torch.arange(1, 400), torch.tensor([1, 7, 90, 300]), indexing="ij")
    want = [[factor(t, s, alpha) for s in (1, 7, 90, 300)] for t in range(1, 400)]
    got = Alpha(alpha).factor(T, source)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
@torch.no_grad()
def test_search_ranks_by_it(alpha):
    reordered = 0
    for seed in range(8):
        torch.manual_seed(seed)
        model, made = shaken(), batch(SOURCES, TARGETS)
        found, scores, _ = search(model, made, 7, 4, Alpha(alpha), n_best=2, return_prob="hyp")
        unscored = search(model, made, 7, 4, Alpha(alpha), n_best=2)
        assert unscored[1] is None and unscored[0].tolist() == found.tolist()
        for b, i in enumerate(made.indices.tolist()):
            by_p = sorted(beams(model, SOURCES[i], 4, 7), key=lambda h: h[1], reverse=True)[:4]
            ranked = sorted(
                ((p * factor(len(h), len(SOURCES[i]), alpha), h) for h, p in by_p), reverse=True
            )
            reordered += [h for _, h in ranked] != [h for h, _ in by_p]
            got = [tuple(s for s in row if s != 1) for row in found[2 * b : 2 * b + 2].tolist()]
            assert got == [h for _, h in ranked[:2]]
            want = [score for score, _ in ranked[:2]]
            assert scores[2 * b : 2 * b + 2, 0].tolist() == pytest.approx(want, rel=1e-4)
    assert bool(reordered) == (alpha > 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_search_under_autocast(dtype):
    """As fp16 does it: joeynmt's encoder and each step run under it, what is between does not."""
    model, made = shaken(), batch(SOURCES, TARGETS)
    autocast = {"device_type": "cpu", "dtype": dtype, "enabled": True}
    options = {"n_best": 1, "return_prob": "hyp"}
    found, scores, _ = search(model, made, 7, 4, Alpha(0.6), **options, autocast=autocast)
    expected, exact, _ = search(model, made, 7, 4, Alpha(0.6), **options)
    assert found.tolist() == expected.tolist()
    assert scores.ravel().tolist() == pytest.approx(exact.ravel().tolist(), rel=0.05)


def test_what_stands_for_missing_translations_comes_last():
    """Unlike a lone <unk> that was found, whose score is another one."""

    def search(**options):
        assert options["alpha"] == 0 and options["n_best"] == 4
        return torch.tensor(rows), torch.tensor([[-9.0], [-8.0], [-1.0], [-2.0]]), None

    class Model:
        pad_index, unk_index = 1, 0

    rows = [[5, 6, 3], [4, 3, 1], [0, 1, 1], [0, 1, 1]]
    found, scores, _ = beam_search(
        search,
        model=Model,
        beam_size=4,
        src_mask=torch.ones(1, 1, 9, dtype=torch.bool),
        alpha=Alpha(0.1),
        n_best=4,
        return_prob="hyp",
    )
    assert found.tolist() == [rows[3], rows[1], rows[0], rows[2]]
    want = [-2 * factor(1, 8, 0.1), -8 * factor(2, 8, 0.1), -9 * factor(3, 8, 0.1), -torch.inf]
    assert scores[:, 0].tolist() == pytest.approx(want)


def test_there_are_no_more_translations_than_the_beam_holds():
    source = torch.ones(1, 1, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match="n_best: expected at most beam_size 2, got 3"):
        beam_search(None, model=None, beam_size=2, src_mask=source, alpha=Alpha(1), n_best=3)


class TestConfig:
    def test_our_ranking(self):
        alpha = config.parse_test_args({"beam_alpha": 0.6, "beam_ranking": "qrnn"}).beam_alpha
        assert isinstance(alpha, Alpha) and alpha == 0.6 and "equation 9" in f"{alpha}"

    @pytest.mark.parametrize("options", [{}, {"beam_ranking": "joeynmt"}])
    def test_joeynmts(self, options):
        args = config.parse_test_args({"beam_alpha": 0.6, **options})
        assert type(args.beam_alpha) is float

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"beam_ranking": "paper"}, "beam_ranking: expected .*, got 'paper'"),
            ({"beam_ranking": "qrnn"}, "beam_alpha: expected a finite number from 0 on.*, got -1"),
            ({"beam_ranking": "qrnn", "beam_alpha": float("inf")}, "beam_alpha: .*, got inf"),
            ({"beam_ranking": "qrnn", "beam_alpha": "big"}, "beam_alpha: expected a number"),
        ],
    )
    def test_errors(self, options, expected):
        with pytest.raises(ConfigurationError, match=expected):
            config.parse_test_args(options)
