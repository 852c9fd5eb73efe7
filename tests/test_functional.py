import re
import types
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qrnn import f_pool, fo_pool, functional, ifo_pool, linear_recurrence
from qrnn.pooling import cpu, operator

POOLS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "f": f_pool,
    "fo": fo_pool,
    "ifo": ifo_pool,
}
DIRECTIONS = ["forward", "reverse", "both"]
WIDE = torch.float64


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    pooling, direction = draw(st.sampled_from(list(POOLS))), draw(st.sampled_from(DIRECTIONS))
    T, B, H = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 18))
    D, G = 2 if direction == "both" else 1, len(oracle.BLOCKS[pooling])
    lengths = None
    if draw(st.booleans()):
        values = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
        lengths = torch.tensor(values, dtype=draw(st.sampled_from([torch.int32, torch.int64])))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shapes = ((T, B, D * G * H), (D, B, H), (T, B, D * H), (D, B, H))
    tensors = [torch.randn(s, dtype=WIDE, generator=random) for s in shapes]
    return {
        "pooling": pooling,
        "gates": 2 * tensors[0],
        "c0": tensors[1] if draw(st.booleans()) else None,
        "weights": tensors[2:],
        "lengths": lengths,
        "direction": direction,
        "zoneout": draw(st.sampled_from([0, 0.3, 1.0])),
        "zoneout_eval": draw(st.sampled_from(["mean", "none"])),
    }


class TestPools:
    @given(cases())
    def test_outputs_and_gradients_equal_the_oracle(self, case: dict[str, Any]) -> None:
        pooling, gates, c0 = case.pop("pooling"), case.pop("gates"), case.pop("c0")
        weights = case.pop("weights")
        leaves = [v.requires_grad_() for v in (gates, c0) if v is not None]
        h, c_n = POOLS[pooling](*leaves, **case)
        scale = 1 - case["zoneout"] if case["zoneout_eval"] == "mean" else 1.0
        want_h, _, want_c = oracle.pool(
            pooling, gates, c0, case["lengths"], case["direction"], scale
        )
        torch.testing.assert_close(h, want_h, rtol=0, atol=1e-12)
        torch.testing.assert_close(c_n, want_c, rtol=0, atol=1e-12)
        if not want_h.requires_grad:
            return  # no steps at all
        got = torch.autograd.grad([h, c_n], leaves, weights)
        want = torch.autograd.grad([want_h, want_c], leaves, weights, materialize_grads=True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("pooling", POOLS)
    def test_types_go_through(self, pooling: str, dtype: torch.dtype) -> None:
        G = len(oracle.BLOCKS[pooling])
        gates = torch.randn(4, 2, G * 3, dtype=dtype, requires_grad=True)
        h, c_n = POOLS[pooling](gates)
        assert h.dtype == c_n.dtype == dtype
        assert h.shape == (4, 2, 3) and c_n.shape == (1, 2, 3)
        h.sum().backward()
        assert gates.grad is not None and gates.grad.dtype == dtype

    def test_cells_are_kept_for_a_gradient_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They cost as much memory as the outputs."""
        asked = []

        def pool(*arguments: Any) -> Any:
            asked.append(arguments[7])
            return cpu.pool(*arguments)

        monkeypatch.setattr(operator, "_backend", lambda device: types.SimpleNamespace(pool=pool))
        gates, c0 = torch.randn(3, 2, 6), torch.randn(1, 2, 2)
        fo_pool(gates, c0)
        fo_pool(gates.clone().requires_grad_(), c0)
        fo_pool(gates, c0.clone().requires_grad_())
        with torch.no_grad():
            fo_pool(gates.clone().requires_grad_(), c0)
        assert asked == [False, True, True, False]

    def test_under_autocast(self) -> None:
        gates, c0 = torch.randn(4, 2, 9, dtype=torch.bfloat16), torch.randn(1, 2, 3)
        with pytest.raises(TypeError, match="c0: expected dtype"):
            fo_pool(gates, c0)
        want = fo_pool(gates, c0.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(fo_pool(gates, c0), want, rtol=0, atol=0)

    def test_report_bug_gate_read_from_another_block(self) -> None:
        """The replication's decoder computed f from the weights of z."""
        gates = torch.zeros(1, 1, 4, 1, dtype=WIDE)
        gates[0, 0, :, 0] = torch.tensor([0.3, -0.7, 1.1, -1.9])
        z = gates[0, 0, 0, 0].tanh().item()
        f, o, i = gates[0, 0, 1:, 0].sigmoid().tolist()
        c0 = torch.full((1, 1, 1), 2.0, dtype=WIDE)
        for pooling, c in (
            ("f", f * 2 + (1 - f) * z),
            ("fo", f * 2 + (1 - f) * z),
            ("ifo", f * 2 + i * z),
        ):
            G = len(oracle.BLOCKS[pooling])
            h, c_n = POOLS[pooling](gates[:, :, :G].flatten(2), c0)
            assert c_n.item() == pytest.approx(c, abs=1e-15)
            assert h.item() == pytest.approx(c if pooling == "f" else o * c, abs=1e-15)

    @pytest.mark.parametrize("pooling", ["fo", "ifo"])
    def test_report_bug_gated_output_fed_back(self, pooling: str) -> None:
        """The replication computed c from h, where c from c belongs: o must not reach the cells."""
        gates = torch.randn(6, 2, len(oracle.BLOCKS[pooling]), 3, dtype=WIDE)
        _, c_n = POOLS[pooling](gates.flatten(2))
        gates[:, :, 2] = torch.randn(6, 2, 3, dtype=WIDE)
        _, other = POOLS[pooling](gates.flatten(2))
        assert torch.equal(c_n, other)

    def test_report_bug_last_cell_one_step_early(self) -> None:
        gates, lengths = torch.randn(5, 3, 6, dtype=WIDE), torch.tensor([5, 3, 1])
        small = lengths.to(torch.uint16)
        for own, steps in ((None, [5, 5, 5]), (lengths, [5, 3, 1]), (small, [5, 3, 1])):
            h, c_n = f_pool(gates, lengths=own)
            for b, n in enumerate(steps):
                assert torch.equal(c_n[0, b], h[n - 1, b])

    def test_report_bug_reverse_starts_in_the_padding(self) -> None:
        gates, lengths = torch.randn(5, 3, 9, dtype=WIDE), torch.tensor([5, 3, 1])
        h, c_n = fo_pool(gates, lengths=lengths, direction="reverse")
        for b, n in enumerate(lengths.tolist()):
            alone, c_alone = fo_pool(gates[:n, b : b + 1].flip(0))
            torch.testing.assert_close(h[:n, b : b + 1], alone.flip(0), rtol=0, atol=1e-14)
            torch.testing.assert_close(c_n[:, b : b + 1], c_alone, rtol=0, atol=1e-14)


class TestZoneout:
    def moves(self, T: int = 400, H: int = 64, **options: Any) -> Tensor:
        """(T, H): how far the cell goes to its target of 1 in a step that starts at 0."""
        gates = torch.zeros(T, 1, 2, H, dtype=WIDE)
        gates[:, :, 0] = 40.0
        # each step is a sequence of its own, so that its start is known
        h, _ = f_pool(gates.view(1, T, 2 * H), **options)
        return h.view(T, H)

    @pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
    def test_rate(self, rate: float) -> None:
        moved = self.moves(zoneout=rate, training=True)
        n = moved.numel()
        # f is 1 or what it was: with no rescaling there is no third value
        zoned = moved == 0
        torch.testing.assert_close(moved[~zoned], torch.full_like(moved[~zoned], 0.5))
        assert abs(zoned.double().mean() - rate) < 5 * (rate * (1 - rate) / n) ** 0.5
        per_channel = zoned.double().mean(0)
        assert (per_channel - rate).abs().max() < 6 * (rate * (1 - rate) / len(moved)) ** 0.5

    def test_rates_0_and_1(self) -> None:
        assert (self.moves(zoneout=0.0, training=True) == 0.5).all()
        assert (self.moves(zoneout=1, training=True) == 0).all()

    def test_in_evaluation(self) -> None:
        torch.testing.assert_close(self.moves(zoneout=0.3), torch.full((400, 64), 0.35).double())
        assert (self.moves(zoneout=0.3, zoneout_eval="none") == 0.5).all()

    def test_eval_rule_does_not_matter_in_training(self) -> None:
        results = []
        for rule in ("mean", "none"):
            torch.manual_seed(5)
            results.append(self.moves(zoneout=0.3, zoneout_eval=rule, training=True))
        assert torch.equal(*results)

    @pytest.mark.parametrize("pooling", POOLS)
    def test_report_bug_forget_gate_leaves_0_1(self, pooling: str) -> None:
        """Dropout's rescaling made it negative: then the cells leave the hull of z and c0."""
        H = 30
        gates = torch.zeros(300, 2, len(oracle.BLOCKS[pooling]), H, dtype=WIDE)
        gates[:, :, 0] = torch.where(torch.rand(300, 2, H) < 0.5, -40.0, 40.0)
        gates[:, :, 1] = torch.randn(300, 2, H) - 6
        if pooling == "ifo":
            gates[:, :, 3] = -1e4  # c = f c: it may only shrink, but for rounding
        for training in (False, True):
            for rate in (0.1, 0.5, 0.9):
                c0 = torch.ones(1, 2, H, dtype=WIDE)
                h, c_n = POOLS[pooling](gates.flatten(2), c0, zoneout=rate, training=training)
                assert c_n.abs().max() <= 1 and h.abs().max() <= 1
                if pooling == "ifo":
                    assert c_n.min() > -1e-300

    def test_seed_fixes_the_result(self) -> None:
        results = []
        for seed in (7, 7, 8):
            torch.manual_seed(seed)
            results.append(self.moves(zoneout=0.5, training=True))
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_calls_draw_anew(self) -> None:
        a, b = (self.moves(zoneout=0.5, training=True) for _ in range(2))
        assert 0.4 < (a != b).double().mean() < 0.6

    def test_directions_draw_apart(self) -> None:
        gates = torch.zeros(50, 1, 2, 2, 40, dtype=WIDE)
        gates[:, :, :, 0] = 40.0
        h, _ = f_pool(gates.flatten(2), direction="both", zoneout=0.5, training=True)
        forward, backward = h[0, 0, :40], h[-1, 0, 40:]
        assert 0.2 < (forward != backward).double().mean() < 0.8

    @pytest.mark.parametrize(
        "options",
        [
            {"zoneout": 0.5},
            {"zoneout": 0.5, "zoneout_eval": "none"},
            {"zoneout": 0.0, "training": True},
        ],
    )
    def test_nothing_is_drawn_when_nothing_is_random(self, options: dict[str, Any]) -> None:
        before = torch.get_rng_state()
        self.moves(**options)
        assert torch.equal(before, torch.get_rng_state())

    def test_gradient_uses_the_forward_draw(self) -> None:
        gates = torch.zeros(200, 1, 2, 8, dtype=WIDE)
        gates[:, :, 0] = 1.0
        leaf = gates.view(1, 200, 16).requires_grad_()
        h, _ = f_pool(leaf, zoneout=0.5, training=True)
        torch.rand(3)  # other draws in between change nothing
        (grad,) = torch.autograd.grad(h.sum(), leaf)
        z_grad = grad.view(200, 2, 8)[:, 0]
        assert torch.equal(z_grad == 0, h.view(200, 8) == 0)


class TestLinearRecurrence:
    def test_under_autocast(self) -> None:
        f, x, h0 = torch.rand(4, 2, 3).bfloat16(), torch.randn(4, 2, 3), torch.randn(2, 3)
        with pytest.raises(TypeError, match="x: expected dtype"):
            linear_recurrence(f, x, h0)
        with torch.autocast("cpu", torch.bfloat16):
            got = linear_recurrence(f, x, h0)
            low = linear_recurrence(f, x.bfloat16(), h0)
        torch.testing.assert_close(got, linear_recurrence(f.float(), x, h0), rtol=0, atol=0)
        want = linear_recurrence(f, x.bfloat16(), h0.bfloat16())
        torch.testing.assert_close(low, want, rtol=0, atol=0)

    @given(st.integers(0, 5), st.integers(0, 3), st.integers(1, 18), st.booleans(), st.booleans())
    def test_equals_a_loop_with_gradients(
        self, T: int, B: int, H: int, reverse: bool, start: bool
    ) -> None:
        random = torch.Generator().manual_seed(T)
        f, x, w = (torch.randn(T, B, H, dtype=WIDE, generator=random) for _ in range(3))
        h0 = torch.randn(B, H, dtype=WIDE, generator=random) if start else None
        leaves = [v.requires_grad_() for v in (f, x, h0) if v is not None]
        h = linear_recurrence(f, x, h0, reverse=reverse)
        last = torch.zeros(B, H, dtype=WIDE) if h0 is None else h0
        want = [last] * T
        for t in reversed(range(T)) if reverse else range(T):
            last = want[t] = f[t] * last + x[t]
        if not T:
            assert h.shape == (0, B, H)
            return
        stacked = torch.stack(want)
        torch.testing.assert_close(h, stacked, rtol=1e-12, atol=1e-12)
        got = torch.autograd.grad(h, leaves, w)
        for a, b in zip(got, torch.autograd.grad(stacked, leaves, w), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    def test_types_go_through(self, dtype: torch.dtype) -> None:
        f = torch.rand(4, 2, 3).to(dtype).requires_grad_()
        h = linear_recurrence(f, f.detach())
        assert h.dtype == dtype
        h.sum().backward()
        assert f.grad is not None and f.grad.dtype == dtype

    def test_is_the_scan_under_f_pooling(self) -> None:
        gates = torch.randn(6, 3, 2, 5, dtype=WIDE)
        c0 = torch.randn(1, 3, 5, dtype=WIDE)
        z, f = gates[:, :, 0].tanh(), gates[:, :, 1].sigmoid()
        for direction in ("forward", "reverse"):
            h, _ = f_pool(gates.flatten(2), c0, direction=direction)
            scan = linear_recurrence(f, (1 - f) * z, c0[0], reverse=direction == "reverse")
            torch.testing.assert_close(h, scan, rtol=0, atol=1e-13)


def zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **options)


# what is called, the error, the argument that it names, what was expected, what was got
MISUSES: dict[str, tuple[Callable[[], Any], type[Exception], str, str, str]] = {
    "pooling unknown": (
        lambda: functional.pool("of", zeros(2, 2, 6)), ValueError, "pooling", "f, fo, ifo", "'of'"
    ),
    "pooling None": (
        lambda: functional.pool(None, zeros(2, 2, 6)),
        ValueError, "pooling", "f, fo, ifo", "None",
    ),
    "direction unknown": (
        lambda: fo_pool(zeros(2, 2, 6), direction="backward"),
        ValueError, "direction", "forward, reverse, both", "'backward'",
    ),
    "zoneout_eval unknown": (
        lambda: fo_pool(zeros(2, 2, 6), zoneout_eval="max"),
        ValueError, "zoneout_eval", "mean, none", "'max'",
    ),
    "zoneout negative": (
        lambda: fo_pool(zeros(2, 2, 6), zoneout=-0.1), ValueError, "zoneout", "0 to 1", "-0.1"
    ),
    "zoneout too large": (
        lambda: fo_pool(zeros(2, 2, 6), zoneout=1.5), ValueError, "zoneout", "0 to 1", "1.5"
    ),
    "zoneout NaN": (
        lambda: fo_pool(zeros(2, 2, 6), zoneout=float("nan")),
        ValueError, "zoneout", "0 to 1", "nan",
    ),
    "zoneout bool": (
        lambda: fo_pool(zeros(2, 2, 6), zoneout=True), TypeError, "zoneout", "a number", "bool"
    ),
    "zoneout string": (
        lambda: fo_pool(zeros(2, 2, 6), zoneout="0.1"),
        TypeError, "zoneout", "a number", "str",
    ),
    "gates not a tensor": (
        lambda: fo_pool([1.0]),
        TypeError, "gates", "a Tensor", "list",
    ),
    "gates integers": (
        lambda: fo_pool(zeros(2, 2, 6, dtype=torch.int64)),
        TypeError, "gates", "float32", "int64",
    ),
    "gates complex": (
        lambda: fo_pool(zeros(2, 2, 6, dtype=torch.complex64)),
        TypeError, "gates", "float32", "complex64",
    ),
    "gates of 2 dimensions": (
        lambda: fo_pool(zeros(2, 6)), ValueError, "gates", "3 dimensions", "(2, 6)"
    ),
    "gates of 4 dimensions": (
        lambda: fo_pool(zeros(2, 2, 3, 2)), ValueError, "gates", "3 dimensions", "(2, 2, 3, 2)"
    ),
    "gates not divisible": (
        lambda: fo_pool(zeros(2, 2, 7)), ValueError, "gates", "divisible by 3", "(2, 2, 7)"
    ),
    "gates of one direction for both": (
        lambda: ifo_pool(zeros(2, 2, 12), direction="both"),
        ValueError, "gates", "divisible by 8", "(2, 2, 12)",
    ),
    "c0 not a tensor": (
        lambda: fo_pool(zeros(2, 2, 6), 0.0),
        TypeError, "c0", "a Tensor", "float",
    ),
    "c0 without directions": (
        lambda: fo_pool(zeros(2, 2, 6), zeros(2, 2)), ValueError, "c0", "(1, 2, 2)", "(2, 2)"
    ),
    "c0 of one direction for both": (
        lambda: fo_pool(zeros(2, 2, 12), zeros(1, 2, 2), direction="both"),
        ValueError, "c0", "(2, 2, 2)", "(1, 2, 2)",
    ),
    "c0 of another type": (
        lambda: fo_pool(zeros(2, 2, 6), zeros(1, 2, 2, dtype=WIDE)),
        TypeError, "c0", "float32", "float64",
    ),
    "c0 on another device": (
        lambda: fo_pool(zeros(2, 2, 6), zeros(1, 2, 2, device="meta")),
        ValueError, "c0", "cpu", "meta",
    ),
    "lengths a list": (
        lambda: fo_pool(zeros(2, 2, 6), lengths=[1, 2]),
        TypeError, "lengths", "a Tensor", "list",
    ),
    "lengths floats": (
        lambda: fo_pool(zeros(2, 2, 6), lengths=torch.tensor([1.0, 2.0])),
        TypeError, "lengths", "integers", "float32",
    ),
    "lengths booleans": (
        lambda: fo_pool(zeros(2, 2, 6), lengths=torch.tensor([True, True])),
        TypeError, "lengths", "integers", "bool",
    ),
    "lengths complex": (
        lambda: fo_pool(zeros(2, 2, 6), lengths=torch.tensor([1j, 2])),
        TypeError, "lengths", "integers", "complex64",
    ),
    "gates sparse": (
        lambda: fo_pool(zeros(2, 2, 6).to_sparse()), TypeError, "gates", "dense", "sparse_coo"
    ),
    "lengths of another batch": (
        lambda: fo_pool(zeros(2, 2, 6), lengths=torch.tensor([1])),
        ValueError, "lengths", "(2,)", "(1,)",
    ),
    "lengths of 2 dimensions": (
        lambda: fo_pool(zeros(2, 2, 6), lengths=torch.tensor([[1, 2]])),
        ValueError, "lengths", "(2,)", "(1, 2)",
    ),
    "lengths negative": (
        lambda: fo_pool(zeros(2, 2, 6), lengths=torch.tensor([1, -1])),
        ValueError, "lengths", "0 to 2", "[1, -1]",
    ),
    "lengths too large": (
        lambda: fo_pool(zeros(2, 2, 6), lengths=torch.tensor([1, 3])),
        ValueError, "lengths", "0 to 2", "[1, 3]",
    ),
    "lengths on another device": (
        lambda: fo_pool(zeros(2, 2, 6), lengths=torch.tensor([1, 2], device="meta")),
        ValueError, "lengths", "cpu", "meta",
    ),
    "f not a tensor": (
        lambda: linear_recurrence(0.5, zeros(2, 2, 3)),
        TypeError, "f", "a Tensor", "float",
    ),
    "f of 2 dimensions": (
        lambda: linear_recurrence(zeros(2, 3), zeros(2, 3)),
        ValueError, "f", "3 dimensions", "(2, 3)",
    ),
    "f integers": (
        lambda: linear_recurrence(zeros(2, 2, 3).int(), zeros(2, 2, 3).int()),
        TypeError, "f", "float32", "int32",
    ),
    "x of another shape": (
        lambda: linear_recurrence(zeros(2, 2, 3), zeros(2, 1, 3)),
        ValueError, "x", "(2, 2, 3)", "(2, 1, 3)",
    ),
    "x of another type": (
        lambda: linear_recurrence(zeros(2, 2, 3), zeros(2, 2, 3).half()),
        TypeError, "x", "float32", "float16",
    ),
    "x on another device": (
        lambda: linear_recurrence(zeros(2, 2, 3), zeros(2, 2, 3, device="meta")),
        ValueError, "x", "cpu", "meta",
    ),
    "h0 with a dimension too many": (
        lambda: linear_recurrence(zeros(2, 2, 3), zeros(2, 2, 3), zeros(1, 2, 3)),
        ValueError, "h0", "(2, 3)", "(1, 2, 3)",
    ),
    "h0 of another type": (
        lambda: linear_recurrence(zeros(2, 2, 3), zeros(2, 2, 3), zeros(2, 3, dtype=WIDE)),
        TypeError, "h0", "float32", "float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says what is wrong, before any kernel runs."""
    call, error, argument, expected, got = MISUSES[name]

    def kernel(*_: Any) -> None:
        pytest.fail("a kernel ran")

    monkeypatch.setattr(operator, "pool", kernel)
    monkeypatch.setattr(torch.ops.qrnn, "linear_recurrence", kernel)
    with pytest.raises(error, match=rf"^{argument}\b") as caught:
        call()
    assert caught.type is error
    text = str(caught.value)
    assert re.search(rf"expected .*{re.escape(expected)}.*, got .*{re.escape(got)}", text), text
