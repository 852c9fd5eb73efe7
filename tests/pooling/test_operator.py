import shutil
import types
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from qrnn import (
    QRNN,
    QRNNLayer,
    QRNNState,
    f_pool,
    fo_pool,
    functional,
    ifo_pool,
    linear_recurrence,
)
from qrnn.functional import pool
from qrnn.pooling import cpu, operator

GATES = {"f": 2, "fo": 3, "ifo": 4}
POOLS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "f": f_pool,
    "fo": fo_pool,
    "ifo": ifo_pool,
}
WIDE = torch.float64


def leaf(*shape: int, dtype: torch.dtype = WIDE) -> Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_()


def arguments(
    pooling: str, direction: str, shape: tuple[int, int, int] = (3, 2, 2), full: bool = True
) -> tuple[Any, ...]:
    """Arguments of qrnn::pool; full: with first cells, lengths and zoneout."""
    T, B, H = shape
    D = 2 if direction == "both" else 1
    return (
        leaf(T, B, D * GATES[pooling] * H),
        leaf(D, B, H) if full else None,
        torch.tensor([T, 0, 1, T][:B], dtype=torch.int64) if full else None,
        torch.tensor(7) if full else None,
        pooling,
        direction,
        0.4 if full else 0.0,
        True,
    )


class TestTransforms:
    """torch.func and forward-mode differentiation, for which the operators have no formulas."""

    @pytest.mark.parametrize("training", [False, True])
    def test_of_a_stack(self, training: bool) -> None:
        rnn = QRNN(3, 2, 2, kernel_size=2, bidirectional=True, zoneout=0.3, dtype=WIDE)
        rnn.train(training)
        lengths = torch.tensor([4, 0, 3])
        x, v = torch.randn(2, 5, 4, 3, 3, dtype=WIDE).unbind(0)

        def loss(x: Tensor) -> Tensor:
            torch.manual_seed(5)
            output, (h_n, c_n) = rnn(x, None, lengths)
            return output.sin().sum() + h_n.cos().sum() + c_n.square().sum()

        leaves = x.clone().requires_grad_()
        want = torch.stack([torch.autograd.grad(loss(xi), xi)[0] for xi in leaves.unbind()])
        assert want.abs().sum() > 1
        for n in range(len(x)):
            torch.testing.assert_close(torch.func.grad(loss)(x[n]), want[n])
            _, tangent = torch.func.jvp(loss, (x[n],), (v[n],))
            torch.testing.assert_close(tangent, (want[n] * v[n]).sum())
            with torch.autograd.forward_ad.dual_level():
                dual = loss(torch.autograd.forward_ad.make_dual(x[n], v[n]))
                tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
            torch.testing.assert_close(tangent, (want[n] * v[n]).sum())
        if not training:  # where each of a batch would need random numbers of its own
            per_sample = torch.vmap(torch.func.grad(loss))(x)
            torch.testing.assert_close(per_sample, want)
            rows = torch.func.jacrev(loss)(x[0]), torch.func.jacfwd(loss)(x[0])
            for found in rows:
                torch.testing.assert_close(found, want[0])

    @pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # by torch itself
    def test_compiled(self) -> None:
        """Where torch.compile looks into the transform, the operators meet it themselves."""
        rnn = QRNN(3, 2, dtype=WIDE)
        x, v = torch.randn(2, 4, 2, 3, dtype=WIDE).unbind(0)

        def both(x: Tensor) -> Tensor:
            output = rnn(x)[0]
            return linear_recurrence(output.sigmoid(), output).sin().sum()

        def tangent(x: Tensor, v: Tensor) -> Tensor:
            return torch.func.jvp(both, (x,), (v,))[1]

        grad = torch.func.grad(both)
        assert tangent(x, v).abs() > 1e-3
        for function, given in ((tangent, (x, v)), (grad, (x,)), (torch.vmap(grad), (x[None],))):
            compiled = torch.compile(function, backend="aot_eager")
            torch.testing.assert_close(compiled(*given), function(*given))
        torch.compiler.reset()

    def test_tangent_of_a_gradient(self) -> None:
        """Backward in a dual level, of what ran outside of it."""
        gates, f, x = leaf(4, 2, 6), leaf(4, 2, 3), leaf(4, 2, 3)
        forward_ad = torch.autograd.forward_ad
        for output, leaves in (
            (fo_pool(gates)[0], [gates]),
            (linear_recurrence(f, x), [f, x]),
        ):
            v, w = torch.randn(2, *output.shape, dtype=WIDE).unbind(0)
            want = torch.autograd.grad(output, leaves, w, retain_graph=True)  # it is linear in v
            with forward_ad.dual_level():
                found = torch.autograd.grad(output, leaves, forward_ad.make_dual(v, w))
                tangents = [forward_ad.unpack_dual(g).tangent for g in found]
            for a, b in zip(tangents, want, strict=True):
                torch.testing.assert_close(a, b)

    def test_lengths_of_each(self) -> None:
        gates, lengths = leaf(4, 3, 2, 6), torch.tensor([[4, 1], [0, 2], [3, 3]])
        found = torch.vmap(lambda g, n: fo_pool(g, lengths=n)[0], in_dims=(1, 0))(gates, lengths)
        for n in range(3):
            torch.testing.assert_close(found[n], fo_pool(gates[:, n], lengths=lengths[n])[0])

    def test_of_the_plain_recurrence(self) -> None:
        f, x, v = (leaf(4, 2, 3) for _ in range(3))

        def loss(f: Tensor) -> Tensor:
            return linear_recurrence(f, x, reverse=True).sin().sum()

        [want] = torch.autograd.grad(loss(f), f)
        torch.testing.assert_close(torch.func.grad(loss)(f), want)
        _, tangent = torch.func.jvp(loss, (f,), (v,))
        torch.testing.assert_close(tangent, (want * v).sum())


class TestOpcheck:
    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize(
        ("pooling", "direction"), [("f", "reverse"), ("fo", "forward"), ("ifo", "both")]
    )
    def test_pool(self, pooling: str, direction: str, full: bool) -> None:
        opcheck(torch.ops.qrnn.pool.default, arguments(pooling, direction, full=full))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_pool_in_other_types(self, dtype: torch.dtype) -> None:
        args = (leaf(3, 2, 6, dtype=dtype), None, None, None, "fo", "forward", 0.0, True)
        opcheck(torch.ops.qrnn.pool.default, args)

    @pytest.mark.parametrize("keep_cells", [False, True])
    @pytest.mark.parametrize("shape", [(0, 2, 2), (3, 0, 2), (1, 1, 1)])
    def test_pool_of_degenerate_shapes(self, shape: tuple[int, int, int], keep_cells: bool) -> None:
        args = tuple(
            v.detach() if isinstance(v, Tensor) else v for v in arguments("fo", "both", shape)
        )
        opcheck(torch.ops.qrnn.pool.default, (*args[:-1], keep_cells))

    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize(
        ("pooling", "direction"), [("f", "both"), ("fo", "reverse"), ("ifo", "forward")]
    )
    def test_pool_backward(self, pooling: str, direction: str, full: bool) -> None:
        gates, c0, lengths, seed, *options, _ = arguments(pooling, direction, full=full)
        h, cells, *last = operator.pool(gates, c0, lengths, seed, *options, True)
        kept = (h if pooling == "f" else cells).detach()
        grads = [torch.randn_like(v).requires_grad_() for v in (h, *last)]
        for given in (grads, [grads[0], None, None], [None, grads[1], None]):
            opcheck(
                torch.ops.qrnn.pool_backward.default,
                (gates, c0, lengths, seed, kept, *given, *options),
            )

    @pytest.mark.parametrize("shape", [(3, 2, 4), (0, 2, 4), (1, 1, 1)])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_linear_recurrence(self, reverse: bool, shape: tuple[int, int, int]) -> None:
        args = (leaf(*shape), leaf(*shape), leaf(*shape[1:]), reverse)
        opcheck(torch.ops.qrnn.linear_recurrence.default, args)
        f, x, h0 = (v.detach() for v in args[:3])
        backward = torch.ops.qrnn.linear_recurrence_backward.default
        opcheck(backward, (x, f, h0, torch.randn_like(x), reverse))


class TestGradients:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
    @pytest.mark.parametrize("pooling", GATES)
    def test_first_and_second_order(self, pooling: str, direction: str, training: bool) -> None:
        gates, c0, lengths, *_ = arguments(pooling, direction, (3, 2, 1))

        def pool(*leaves: Tensor) -> tuple[Tensor, ...]:
            torch.manual_seed(3)  # finite differences need the same zoneout in every call
            options: Any = {"lengths": lengths, "zoneout": 0.4, "training": training}
            return functional.pool(pooling, *leaves, direction=direction, **options)

        assert gradcheck(pool, (gates, c0))
        assert gradgradcheck(pool, (gates, c0))

    @pytest.mark.parametrize("shift", [1, -2])
    def test_of_halves_that_lie_apart(self, shift: int) -> None:
        def pool(gates: Tensor, c0: Tensor) -> tuple[Tensor, ...]:
            options: Any = ("ifo", "both", 0.0, False, shift)
            h, _, *last = operator.pool(gates, c0, lengths, None, *options)
            return h, *last

        gates, c0, lengths = leaf(2 + abs(shift), 2, 8), leaf(2, 2, 1), torch.tensor([2, 1])
        assert gradcheck(pool, (gates, c0))
        assert gradgradcheck(pool, (gates, c0))
        opcheck(
            torch.ops.qrnn.pool.default,
            (gates, c0, lengths, torch.tensor(7), "ifo", "both", 0.4, True, shift),
        )

    @pytest.mark.parametrize("pooling", GATES)
    def test_without_first_cells_and_lengths(self, pooling: str) -> None:
        gates = leaf(3, 1, GATES[pooling])
        assert gradcheck(POOLS[pooling], (gates,))
        assert gradgradcheck(POOLS[pooling], (gates,))

    @pytest.mark.parametrize("wanted", ["gates", "c0"])
    def test_one_of_two_leaves(self, wanted: str) -> None:
        gates, c0 = leaf(3, 1, 3), leaf(1, 1, 1)
        if wanted == "gates":
            c0.requires_grad_(False)
        else:
            gates.requires_grad_(False)
        assert gradcheck(fo_pool, (gates, c0))
        assert gradgradcheck(fo_pool, (gates, c0))

    @pytest.mark.parametrize("wanted", [0, 1, 2])
    def test_one_of_three_results(self, wanted: int) -> None:
        def pool(*leaves: Tensor) -> Tensor:
            return functional.pool("fo", *leaves)[wanted]

        leaves = (leaf(3, 1, 3), leaf(1, 1, 1))
        assert gradcheck(pool, leaves)
        assert gradgradcheck(pool, leaves)

    def test_second_order_of_a_loss_that_is_not_linear(self) -> None:
        """What backward is given then depends on the gates as well."""
        leaves = leaf(3, 1, 3), leaf(1, 1, 1)

        def first(*leaves: Tensor) -> tuple[Tensor, ...]:
            loss = sum((v**3).sum() for v in fo_pool(*leaves))
            return torch.autograd.grad(loss, leaves, create_graph=True)

        assert gradcheck(first, leaves)

    def test_a_third_derivative_is_right_or_refused(self) -> None:
        """What must not happen is a wrong number."""
        gates = leaf(2, 1, 3)

        def twice(gates: Tensor) -> Tensor:
            loss = (fo_pool(gates)[0] ** 2).sum()
            (first,) = torch.autograd.grad(loss, gates, create_graph=True)
            (second,) = torch.autograd.grad((first**2).sum(), gates, create_graph=True)
            return second

        try:
            twice(gates).sum().backward()
        except (RuntimeError, NotImplementedError):
            return
        assert gradcheck(twice, (gates,))

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("steps", [1, 3])
    def test_linear_recurrence_three_times(self, steps: int, reverse: bool) -> None:
        def scan(*leaves: Tensor) -> Tensor:
            return linear_recurrence(*leaves, reverse=reverse)

        def first(*leaves: Tensor) -> tuple[Tensor, ...]:
            loss = (scan(*leaves) ** 2).sum()
            return torch.autograd.grad(loss, leaves, create_graph=True)

        leaves = (leaf(steps, 2, 2), leaf(steps, 2, 2), leaf(2, 2))
        assert gradcheck(scan, leaves)
        assert gradgradcheck(scan, leaves)
        assert gradgradcheck(first, leaves)

    def test_of_no_steps(self) -> None:
        leaves = (leaf(0, 2, 6), leaf(1, 2, 2))
        assert gradcheck(fo_pool, leaves)
        assert gradgradcheck(fo_pool, leaves)

    def test_linear_recurrence_of_no_steps(self) -> None:
        leaves = (leaf(0, 2, 2), leaf(0, 2, 2), leaf(2, 2))
        h = linear_recurrence(*leaves)
        grads = torch.autograd.grad(h.sum(), leaves)
        assert [g.shape for g in grads] == [v.shape for v in leaves]
        assert not grads[2].any()

    def test_backward_is_given_no_zeros_for_what_was_not_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They would have to be written, and to be read."""
        given = []

        def pool_backward(*arguments: Any) -> Any:
            given.append([None if v is None else v.shape for v in arguments[5:8]])
            return cpu.pool_backward(*arguments)

        backend = types.SimpleNamespace(pool=cpu.pool, pool_backward=pool_backward)
        monkeypatch.setattr(operator, "_backend", lambda device: backend)
        results = functional.pool("fo", leaf(3, 2, 6))
        for n in range(3):
            results[n].sum().backward(retain_graph=True)
            assert given[n] == [results[m].shape if m == n else None for m in range(3)]

    def test_the_cells_themselves_have_no_gradient(self) -> None:
        _, cells, *_ = operator.pool(leaf(3, 2, 6), None, None, None, "fo", "forward", 0.0, True)
        assert not cells.requires_grad

    def test_expanded_gradient(self) -> None:
        """sum() hands back one number expanded to the whole shape."""
        gates = leaf(4, 2, 9)
        (a,) = torch.autograd.grad(fo_pool(gates)[0].sum(), gates)
        h, _ = fo_pool(gates)
        (b,) = torch.autograd.grad(h, gates, torch.ones_like(h))
        assert torch.equal(a, b)

    def test_backward_twice_through_one_graph(self) -> None:
        gates = leaf(4, 2, 9)
        h, _ = fo_pool(gates)
        a, b = (torch.autograd.grad(h.sum(), gates, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(a, b)

    def test_no_graph_without_leaves(self) -> None:
        gates = leaf(4, 2, 9)
        with torch.no_grad():
            assert not fo_pool(gates)[0].requires_grad
        with torch.inference_mode():
            assert fo_pool(gates)[0].is_inference()
        assert not fo_pool(gates.detach())[0].requires_grad


class Seen(TorchDispatchMode):
    """Collects the names of this package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == "qrnn":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


class TestDetour:
    """Eager calls of plain tensors go past the dispatcher, to the same results."""

    OPERATORS = ("pool", "pool_backward", "linear_recurrence", "linear_recurrence_backward")

    def run(self) -> None:
        h, c_n = fo_pool(leaf(5, 2, 6))
        (h.sum() + c_n.sum()).backward()
        linear_recurrence(leaf(5, 2, 2), leaf(5, 2, 2)).sum().backward()

    def test_plain_tensors_do_without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = []
        run = operator._run
        monkeypatch.setattr(operator, "_run", lambda *a: taken.append(a[0]) or run(*a))
        monkeypatch.setattr(torch.ops, "qrnn", None)
        self.run()
        assert taken == list(self.OPERATORS)

    def test_a_mode_sees_the_operators(self) -> None:
        with Seen() as seen:
            self.run()
        assert seen.names == list(self.OPERATORS)

    def test_a_profiler_sees_the_operators(self) -> None:
        with torch.profiler.profile() as profiler:
            self.run()
        names = {event.name for event in profiler.events()}
        assert names >= {f"qrnn::{name}" for name in self.OPERATORS}

    def test_a_tensor_that_is_not_its_memory(self) -> None:
        gates, c0 = torch.randn(5, 2, 6), torch.randn(1, 2, 2, dtype=torch.complex64).conj().imag
        assert c0.is_neg()
        torch.testing.assert_close(fo_pool(gates, c0), fo_pool(gates, c0.clone()))

    def test_an_option_of_another_type(self) -> None:
        class Pooling(StrEnum):
            F = "f"

        gates = torch.randn(5, 2, 4)
        h, _, c_n = pool(Pooling.F, gates)
        torch.testing.assert_close((h, c_n), f_pool(gates), rtol=0, atol=0)

    def test_inference_mode(self) -> None:
        gates = torch.randn(5, 2, 6)
        with torch.inference_mode():
            inside = fo_pool(gates + 0)
        torch.testing.assert_close(inside, fo_pool(gates), rtol=0, atol=0)


def test_a_compiler_that_does_not_fit_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(_: str) -> None:
        raise ImportError("Numba needs NumPy 2.0 or less")  # with no name

    with monkeypatch.context() as context, pytest.warns(UserWarning, match="slow.*needs NumPy"):
        context.setattr(operator.importlib, "import_module", unfit)
        assert operator._backend.__wrapped__("cpu") is operator.reference


def test_operator_checks_lengths_itself() -> None:
    """A compiled caller skips the check of values in Python."""
    for lengths in (torch.tensor([4, 1]), torch.tensor([3, -1])):
        with pytest.raises(ValueError, match=r"lengths.*from 0 to 3.*got \["):
            operator.pool(torch.zeros(3, 2, 6), None, lengths, None, "fo", "forward", 0.0, False)


class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh(self) -> None:
        torch._dynamo.reset()

    @pytest.mark.parametrize("pooling", GATES)
    def test_pool(self, pooling: str) -> None:
        gates, c0, lengths, *_ = arguments(pooling, "both")
        pool = POOLS[pooling]

        def loss(gates: Tensor, c0: Tensor, lengths: Tensor) -> Tensor:
            h, c_n = pool(gates, c0, lengths=lengths, direction="both", zoneout=0.3)
            return (h**2).sum() + (c_n**3).sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        results = []
        for f in (loss, compiled):
            value = f(gates, c0, lengths)
            results.append([value, *torch.autograd.grad(value, [gates, c0])])
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    def test_zoneout_in_training(self) -> None:
        gates = torch.zeros(50, 2, 2, 40)
        gates[:, :, 0], gates[:, :, 1] = 40.0, -40.0  # a cell is 1 from its first update on
        gates = gates.flatten(2).requires_grad_()

        @torch.compile(fullgraph=True, backend="aot_eager")
        def pool(gates: Tensor) -> Tensor:
            return f_pool(gates, zoneout=0.5, training=True)[0]

        a, b = pool(gates), pool(gates)
        a.sum().backward()
        assert 0.35 < (a[0] == 0).float().mean() < 0.65
        assert not torch.equal(a, b)

    def test_linear_recurrence(self) -> None:
        leaves = [leaf(3, 2, 4), leaf(3, 2, 4), leaf(2, 4)]
        compiled = torch.compile(linear_recurrence, fullgraph=True, backend="aot_eager")
        results = [
            torch.autograd.grad(f(*leaves).sum(), leaves) for f in (linear_recurrence, compiled)
        ]
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    @staticmethod
    def check_layer(backend: str, options: dict[str, Any]) -> None:
        torch.manual_seed(0)
        rnn = QRNN(3, 4, 2, dtype=WIDE, kernel_size=3, zoneout=0.2, **options).eval()
        x, lengths = leaf(5, 3, 3), torch.tensor([5, 0, 2])
        leaves = [x, *rnn.parameters()]
        compiled = torch.compile(rnn, fullgraph=True, backend=backend)
        results = []
        for f in (rnn, compiled):
            output, (h_n, c_n) = f(x, lengths=lengths)
            total = (output**2).sum() + (h_n**2).sum() + (c_n**2).sum()
            results.append([output, h_n, c_n, *torch.autograd.grad(total, leaves)])
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(
        "options",
        [{"bidirectional": True, "dense": True, "pooling": "ifo"}, {"masked": False}],
        ids=["bidirectional", "unmasked"],
    )
    def test_layers_with_lengths(self, options: dict[str, Any]) -> None:
        self.check_layer("aot_eager", options)

    def test_streaming(self) -> None:
        rnn = QRNN(3, 4, 2, dtype=WIDE, kernel_size=3)
        compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
        x, state = torch.randn(5, 2, 3, dtype=WIDE), rnn.initial_state(2)
        want, _ = rnn(x, state)
        pieces = []
        for t in range(5):
            output, state = compiled(x[t : t + 1], state)
            assert isinstance(state, QRNNState)
            pieces.append(output)
        torch.testing.assert_close(torch.cat(pieces), want, rtol=0, atol=1e-12)

    @pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
    def test_inductor(self) -> None:
        self.check_layer("inductor", {})


class TestAutocast:
    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    @pytest.mark.parametrize("dense", [False, True])
    @pytest.mark.parametrize("kernel_size", [1, 3])
    def test_forward_and_backward(self, kernel_size: int, dense: bool) -> None:
        rnn = QRNN(6, 8, 2, bidirectional=True, kernel_size=kernel_size, dense=dense)
        x = leaf(7, 3, 6, dtype=torch.float32)
        lengths = torch.tensor([7, 0, 3])
        want, (want_h, want_c) = rnn(x, lengths=lengths)
        with self.autocast():
            output, (h_n, c_n) = rnn(x, lengths=lengths)
        assert output.dtype == h_n.dtype == c_n.dtype == torch.bfloat16
        for a, b in ((output, want), (h_n, want_h), (c_n, want_c)):
            torch.testing.assert_close(a.float(), b, rtol=0, atol=0.05)
        output.float().pow(2).sum().backward()
        for parameter in rnn.parameters():
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all() and parameter.grad.any()

    def test_windows_are_of_the_lower_type_and_the_product_is_the_same(self) -> None:
        layer, x = QRNNLayer(6, 8, kernel_size=2), torch.randn(7, 3, 6)
        before = torch.cat([torch.zeros(1, 3, 6), x[:-1]])
        with self.autocast(), torch.profiler.profile(record_shapes=True) as profile:
            gates, same = layer.convolve(x)
        with self.autocast():
            want = F.linear(torch.cat([before, x], -1), layer.weight, layer.bias)
        assert torch.equal(gates, want) and same is x
        copied = [e.input_shapes[0] for e in profile.events() if e.name == "aten::_to_copy"]
        assert [7, 3, 6] in copied and [7, 3, 12] not in copied
        with self.autocast():
            gates, _ = layer.double().convolve(x.double())
        assert gates.dtype == WIDE

    def test_pooling_is_in_the_lower_type_without_casts(self) -> None:
        oracle.check_autocast("cpu")

    @pytest.mark.parametrize("dense", [False, True])
    def test_streaming(self, dense: bool) -> None:
        rnn = QRNN(6, 8, 2, kernel_size=3, dense=dense)
        x, state = torch.randn(7, 3, 6), rnn.initial_state(3)
        with self.autocast():
            want, (want_h, want_c) = rnn(x)
            pieces = []
            for piece in x.split([1, 2, 1, 3]):
                output, state = rnn(piece, state)
                pieces.append(output)
        # a cell is rounded to bfloat16 when it is handed over
        torch.testing.assert_close(torch.cat(pieces), want, rtol=0.02, atol=0.02)
        torch.testing.assert_close(state.c, want_c, rtol=0.02, atol=0.02)
        torch.testing.assert_close(state.h, want_h, rtol=0.02, atol=0.02)

    def test_a_state_may_be_of_another_type(self) -> None:
        rnn, x = QRNN(6, 8, 2, kernel_size=3), torch.randn(7, 3, 6)
        state, lengths = rnn.initial_state(3), torch.tensor([7, 0, 3])
        wide = tree_map(Tensor.double, state)
        with self.autocast():
            (output, got), (same, want) = (rnn(x, own, lengths) for own in (wide, state))
        found, expected = (output, *got[:2], *got.window), (same, *want[:2], *want.window)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert got.h.dtype == torch.bfloat16

    def test_a_state_from_inside_goes_on_outside_after_conversion(self) -> None:
        rnn = QRNN(6, 8, 2)
        x = torch.randn(4, 3, 6)
        with self.autocast():
            _, (h, c) = rnn(x)
        output, _ = rnn(x, (h.float(), c.float()))
        assert output.dtype == torch.float32
