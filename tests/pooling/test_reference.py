from typing import Any

import oracle
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from qrnn.pooling import reference

POOLINGS = ["f", "fo", "ifo"]
DIRECTIONS = ["forward", "reverse", "both"]
WIDE = torch.float64


def mask(seed: int, shape: tuple[int, ...], rate: float) -> Tensor:
    """Where a forget gate is zoned out: oracle.uniform(seed, n) < rate, n counting in C order."""
    count = torch.Size(shape).numel()
    return torch.tensor([oracle.uniform(seed, n) < rate for n in range(count)]).view(shape)


class TestUniform:
    def test_published_splitmix64_values(self) -> None:
        # the first outputs for seed 1234567, as printed for this generator in many places
        expected = [
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
            4593380528125082431,
            16408922859458223821,
        ]
        assert [oracle.splitmix64(1234567, n) for n in range(5)] == expected
        values = reference.uniform(torch.tensor(1234567), 5)
        assert values.tolist() == [(v >> 40) / (1 << 24) for v in expected]

    @given(st.integers(0, 2**63 - 1), st.integers(0, 40))
    @example(2**63 - 1, 40)
    @example(0, 40)
    def test_equals_python_integers(self, seed: int, count: int) -> None:
        values = reference.uniform(torch.tensor(seed), count)
        assert values.dtype == torch.float64
        assert values.tolist() == [oracle.uniform(seed, n) for n in range(count)]

    def test_an_entry_does_not_depend_on_the_count(self) -> None:
        seed = torch.tensor(5)
        assert torch.equal(reference.uniform(seed, 1000)[:7], reference.uniform(seed, 7))

    @pytest.mark.parametrize("seed", [0, 1, 2**62])
    def test_is_uniform_and_uncorrelated(self, seed: int) -> None:
        n = 1 << 16
        u = reference.uniform(torch.tensor(seed), n)
        assert 0 <= u.min() and u.max() < 1
        # each within five standard deviations
        assert abs(u.mean() - 0.5) < 5 * (12 * n) ** -0.5
        assert abs((u * u).mean() - 1 / 3) < 5 * (4 / 45 / n) ** 0.5
        centred = u - 0.5
        for lag in (1, 2, 16, 320):
            assert abs((centred[lag:] * centred[:-lag]).mean()) < 5 / 12 * (n - lag) ** -0.5
        counts = torch.histc(u, 64, 0, 1)
        chi2 = ((counts - n / 64) ** 2 / (n / 64)).sum()
        assert abs(chi2 - 63) < 5 * (2 * 63) ** 0.5

    def test_seeds_give_different_numbers(self) -> None:
        a, b = (reference.uniform(torch.tensor(s), 1000) for s in (1, 2))
        assert (a == b).sum() <= 1


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    """Arguments of `reference.pool`, by name."""
    pooling, direction = draw(st.sampled_from(POOLINGS)), draw(st.sampled_from(DIRECTIONS))
    T, B, H = draw(st.integers(0, 6)), draw(st.integers(0, 3)), draw(st.integers(1, 4))
    D, G = 2 if direction == "both" else 1, len(oracle.BLOCKS[pooling])
    lengths = None
    if draw(st.booleans()):
        values = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
        lengths = torch.tensor(values, dtype=torch.int64)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    c0 = None
    if draw(st.booleans()):
        c0 = torch.randn(D, B, H, dtype=WIDE, generator=random)
    return {
        "gates": 2 * torch.randn(T, B, D * G * H, dtype=WIDE, generator=random),
        "c0": c0,
        "lengths": lengths,
        "seed": draw(st.none() | st.integers(0, 2**63 - 1).map(torch.tensor)),
        "pooling": pooling,
        "direction": direction,
        "zoneout": draw(st.sampled_from([0.0, 0.3, 1.0])),
    }


def expected(case: dict[str, Any], **instead: Any) -> Any:
    """h, h_n and c_n by the oracle, in NumPy unless `instead` brings tensors."""
    case = case | instead
    gates, seed, rate = case["gates"], case["seed"], case["zoneout"]
    D = 2 if case["direction"] == "both" else 1
    G = len(oracle.BLOCKS[case["pooling"]])
    T, B, N = gates.shape
    zoned = None if seed is None else mask(int(seed), (T, B, D, N // (D * G)), rate)
    if not isinstance(gates, Tensor) and zoned is not None:
        zoned = zoned.numpy()
    return oracle.pool(
        case["pooling"],
        gates,
        case["c0"],
        case["lengths"],
        case["direction"],
        1 - rate if seed is None else 1.0,
        zoned,
    )


def array(x: Tensor | None) -> Any:
    return None if x is None else x.detach().numpy()


class TestPool:
    @given(cases())
    def test_equals_the_oracle(self, case: dict[str, Any]) -> None:
        h, cells, *last = reference.pool(**case, keep_cells=False)
        want = expected(case, gates=array(case["gates"]), c0=array(case["c0"]))
        assert cells.shape == (0,)
        for a, b in zip((h, *last), want, strict=True):
            torch.testing.assert_close(a, torch.from_numpy(b), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_kept_cells_are_ungated_and_zero_in_the_padding(
        self, pooling: str, direction: str
    ) -> None:
        D, G = 2 if direction == "both" else 1, len(oracle.BLOCKS[pooling])
        gates = torch.randn(5, 3, D * G * 4, dtype=WIDE)
        lengths = torch.tensor([5, 2, 0])
        h, cells, *_ = reference.pool(
            gates, None, lengths, None, pooling, direction, 0.0, keep_cells=True
        )
        if pooling == "f":
            assert cells.shape == (0,)
            return
        o = gates.view(5, 3, D, G, 4)[:, :, :, 2].sigmoid().flatten(2)
        torch.testing.assert_close(o * cells, h)
        assert not cells[2:, 1].any() and not cells[:, 2].any() and cells[:2, 1].all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_16_bit_types_accumulate_in_float32(self, pooling: str, dtype: torch.dtype) -> None:
        gates = torch.randn(40, 2, len(oracle.BLOCKS[pooling]) * 3).to(dtype)
        c0 = torch.randn(1, 2, 3).to(dtype)
        rest = (None, None, pooling, "forward", 0.0, True)
        results = reference.pool(gates, c0, *rest)
        wide = reference.pool(gates.float(), c0.float(), *rest)
        for got, want in zip(results, wide, strict=True):
            assert got.dtype == dtype
            assert torch.equal(got, want.to(dtype))

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_padding_is_not_read(self, pooling: str, direction: str) -> None:
        D, G = 2 if direction == "both" else 1, len(oracle.BLOCKS[pooling])
        lengths = torch.tensor([4, 1, 0])
        padding = torch.arange(4)[:, None] >= lengths
        gates = torch.randn(4, 3, D * G * 2, dtype=WIDE)
        results = []
        for filler in (0.0, float("nan")):
            leaf = gates.masked_fill(padding[:, :, None], filler).requires_grad_()
            c0 = torch.ones(D, 3, 2, dtype=WIDE, requires_grad=True)
            h, cells, *last = reference.pool(leaf, c0, lengths, None, pooling, direction, 0.1, True)
            own = torch.autograd.grad([v.sum() for v in (h, *last)], [leaf, c0])
            assert not h[padding].any()
            grads = (
                torch.ones_like(h).masked_fill(padding[:, :, None], filler),
                *map(torch.ones_like, last),
            )
            kept = (h if pooling == "f" else cells).detach()
            inputs = (leaf.detach(), c0.detach(), lengths, None)
            named = reference.pool_backward(*inputs, kept, *grads, pooling, direction, 0.1)
            assert not own[0][padding].any() and not named[0][padding].any()
            results.append([h, *last, *own, *named])
        for zero, nan in zip(*results, strict=True):
            assert torch.equal(zero, nan)

    @given(cases())
    def test_gradients_equal_those_of_the_oracle(self, case: dict[str, Any]) -> None:
        """Both autograd's through `pool` and those of `pool_backward`."""
        gates, c0 = case["gates"], case["c0"]
        leaves = [v.requires_grad_() for v in (gates, c0) if v is not None]
        h, cells, *last = reference.pool(**case, keep_cells=True)
        random = torch.Generator().manual_seed(1)
        weights = [torch.randn(v.shape, dtype=WIDE, generator=random) for v in (h, *last)]
        kept = h if case["pooling"] == "f" else cells
        grads = dict(zip(("grad_h", "grad_h_n", "grad_c_n"), weights, strict=True))
        with torch.no_grad():
            own = reference.pool_backward(cells=kept, **grads, **case)
        assert own[0].shape == gates.shape and own[1].shape == last[1].shape
        results = expected(case)
        if not results[0].requires_grad:
            return  # no sequence or no step: nothing depends on anything
        options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        got = torch.autograd.grad([h, *last], leaves, weights, **options)
        # of no step at all the h_n are constants
        used = [n for n in range(3) if results[n].requires_grad]
        want = torch.autograd.grad(
            [results[n] for n in used], leaves, [weights[n] for n in used], **options
        )
        for a, b, c in zip(got, want, own, strict=False):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(c, b, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_16_bit_gradients_accumulate_in_float32(self, pooling: str, dtype: torch.dtype) -> None:
        gates = torch.randn(40, 2, len(oracle.BLOCKS[pooling]) * 3).to(dtype)
        shapes = ((1, 2, 3), (40, 2, 3), (40, 2, 3), (1, 2, 3), (1, 2, 3))
        tensors = [gates, *(torch.randn(s).to(dtype) for s in shapes)]
        results = []
        for convert in (torch.Tensor.to, lambda v, _: v.float()):
            own, c0, cells, *grads = (convert(v, dtype) for v in tensors)
            results.append(
                reference.pool_backward(own, c0, None, None, cells, *grads, pooling, "forward", 0.0)
            )
        for got, want in zip(*results, strict=True):
            assert got.dtype == dtype
            assert torch.equal(got, want.to(dtype))


class TestZoneout:
    """Section 2.1 of the paper: f is 1 at some entries and left alone at the others."""

    # the last is itself a number drawn, and a draw must be below the rate
    @pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0, oracle.uniform(99, 50)])
    def test_f_is_one_exactly_where_drawn(self, rate: float) -> None:
        # z = 1 and f = 1/2: a cell that is not zoned out moves half-way to 1
        T, B, D, H = 6, 3, 2, 5
        gates = torch.zeros(T, B, D, 2, H, dtype=WIDE)
        gates[:, :, :, 0] = 40.0
        h = reference.pool(
            gates.flatten(2), None, None, torch.tensor(99), "f", "both", rate, False
        )[0]
        forward, backward = h.view(T, B, D, H).unbind(2)
        cells = torch.stack([forward, backward.flip(0)], 2)
        before = torch.cat([torch.zeros(1, B, D, H, dtype=WIDE), cells[:-1]])
        zoned = mask(99, (T, B, D, H), rate)
        zoned = torch.stack([zoned[:, :, 0], zoned[:, :, 1].flip(0)], 2)
        assert torch.equal(cells, before.where(zoned, (before + 1) / 2))

    def test_report_bug_forget_gate_leaves_0_1(self) -> None:
        """The replication's dropout rescaled: 1 - dropout(1 - f) went below 0."""
        # f near 0 and z = -1 or 1: any f outside [0, 1] pushes the cell beyond [-1, 1]
        gates = torch.empty(200, 1, 2, 50, dtype=WIDE)
        gates[:, :, 0] = torch.where(torch.rand(200, 1, 50) < 0.5, -40.0, 40.0)
        gates[:, :, 1] = -40.0
        for seed in (None, torch.tensor(3)):
            for rate in (0.1, 0.5, 0.9):
                h = reference.pool(gates.flatten(2), None, None, seed, "f", "forward", rate, False)[
                    0
                ]
                assert h.abs().max() <= 1

    def test_without_a_seed_the_update_gate_is_scaled(self) -> None:
        gates = torch.zeros(1, 1, 2, dtype=WIDE)
        gates[..., 0] = 40.0
        h = reference.pool(gates, None, None, None, "f", "forward", 0.3, False)[0]
        assert h.item() == pytest.approx(0.7 * 0.5, abs=1e-15)

    def test_ifo_keeps_its_own_input_gate(self) -> None:
        """The paper changes F alone: at rate 1 an ifo cell sums up i z."""
        gates = torch.randn(5, 2, 4, 3, dtype=WIDE)
        z, _, _, i = gates.unbind(2)
        seed = torch.tensor(1)
        *_, c_n = reference.pool(gates.flatten(2), None, None, seed, "ifo", "forward", 1.0, False)
        torch.testing.assert_close(c_n[0], (i.sigmoid() * z.tanh()).sum(0))


@st.composite
def recurrences(draw: Any) -> tuple[Tensor, Tensor, Tensor, bool]:
    T, B, H = draw(st.integers(0, 5)), draw(st.integers(0, 3)), draw(st.integers(1, 4))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shapes = ((T, B, H), (T, B, H), (B, H))
    f, x, h0 = (torch.randn(*s, dtype=WIDE, generator=random) for s in shapes)
    return f, x, h0, draw(st.booleans())


class TestLinearRecurrence:
    @given(recurrences())
    def test_equals_a_loop(self, case: tuple[Tensor, Tensor, Tensor, bool]) -> None:
        f, x, h0, reverse = case
        T, B, H = f.shape
        want = torch.zeros(T, B, H, dtype=WIDE)
        for b in range(B):
            for j in range(H):
                last = float(h0[b, j])
                for t in reversed(range(T)) if reverse else range(T):
                    last = float(f[t, b, j]) * last + float(x[t, b, j])
                    want[t, b, j] = last
        got = reference.linear_recurrence(f, x, h0, reverse)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("T", [0, 1, 6])
    def test_its_gradients_are_autograds(self, T: int, reverse: bool) -> None:
        leaves = [torch.rand(T, 2, 3, dtype=WIDE), *(torch.randn(T, 2, 3, dtype=WIDE) for _ in "x")]
        leaves = [v.requires_grad_() for v in (*leaves, torch.randn(2, 3, dtype=WIDE))]
        h = reference.linear_recurrence(*leaves, reverse)
        grad_h = torch.randn_like(h)
        want = torch.autograd.grad(h, leaves, grad_h, materialize_grads=True)
        f, _, h0 = (v.detach() for v in leaves)
        got = reference.linear_recurrence_backward(grad_h, f, h0, h.detach(), reverse)
        for a, b in zip((got[0], got[1], got[2]), want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_16_bit_types_accumulate_in_float32(self, dtype: torch.dtype) -> None:
        f = torch.rand(50, 2, 3).to(dtype)
        x, h0 = torch.randn(50, 2, 3).to(dtype), torch.randn(2, 3).to(dtype)
        got = reference.linear_recurrence(f, x, h0, False)
        want = reference.linear_recurrence(f.float(), x.float(), h0.float(), False)
        assert got.dtype == dtype and torch.equal(got, want.to(dtype))
        inputs = (x, f, h0, got)
        grads = reference.linear_recurrence_backward(*inputs, False)
        wide = reference.linear_recurrence_backward(*(v.float() for v in inputs), False)
        for a, b in zip(grads, wide, strict=True):
            assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("T", [0, 1, 9])
@pytest.mark.parametrize("shift", [1, 5, -1, -4])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_halves_that_lie_apart(pooling: str, shift: int, T: int) -> None:
    oracle.check_shift(reference, pooling, shift, T, torch.float32 if shift % 2 else torch.bfloat16)


@pytest.mark.parametrize("T", [0, 1, 9])
@pytest.mark.parametrize(("k", "before", "after"), [(1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 3, 3)])
class TestWindows:
    def test_a_row_holds_steps_side_by_side(self, T: int, k: int, before: int, after: int) -> None:
        x = torch.randn(T, 2, 3)
        windows = reference.windows(x, k, before, after)
        assert windows.shape == (T + before + after - k + 1, 2, k * 3)
        for row, window in enumerate(windows):
            for j, step in enumerate(window.split(3, -1), row - before):
                assert torch.equal(step, x[j] if 0 <= j < T else torch.zeros(2, 3))

    def test_the_gradient_is_autograds(self, T: int, k: int, before: int, after: int) -> None:
        x = torch.randn(T, 2, 3, dtype=WIDE, requires_grad=True)
        windows = reference.windows(x, k, before, after)
        grad = torch.randn_like(windows)
        (want,) = torch.autograd.grad(windows, x, grad)
        got = reference.windows_backward(grad, k, before, after)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
