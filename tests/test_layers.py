import copy
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import POOLINGS, WIDE, close, equal, randn
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils.checkpoint import checkpoint

from qrnn import QRNN, QRNNDecoder, QRNNLayer, QRNNState, convolution, functional, layers
from qrnn.decoder import DecoderState
from qrnn.pooling import operator, reference


def make(*sizes: int, **options: Any) -> QRNN:
    """A float64 QRNN in evaluation, with biases that are not zero."""
    rnn = QRNN(*(sizes or (3, 4)), **{"dtype": WIDE} | options).eval()
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.normal_(std=0.5)
    return rnn


def zero_state(rnn: QRNN, batch: int) -> tuple[Tensor, Tensor]:
    shape = rnn.num_layers * (2 if rnn.bidirectional else 1), batch, rnn.hidden_size
    return torch.zeros(shape, dtype=WIDE), torch.zeros(shape, dtype=WIDE)


@st.composite
def stacks(draw: Any, **fixed: Any) -> QRNN:
    """QRNNs of up to 3 layers; an option is drawn unless it is fixed."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    drawn = {
        "bias": st.booleans(),
        "bidirectional": st.booleans(),
        "kernel_size": st.integers(1, 4),
        "first_kernel_size": st.none() | st.integers(1, 6),
        "pooling": st.sampled_from(POOLINGS),
        "masked": st.booleans(),
        "dense": st.booleans(),
        "zoneout": st.sampled_from([0.0, 0.3, 1.0]),
        "zoneout_eval": st.sampled_from(["mean", "none"]),
    }
    options = {name: draw(values) for name, values in drawn.items() if name not in fixed}
    sizes = [draw(st.integers(1, 3)) for _ in range(3)]
    return make(*sizes, **options, **fixed)


@st.composite
def calls(draw: Any) -> tuple[QRNN, Tensor, Tensor | None, Any]:
    """A QRNN, a time-major input, lengths and a state; the last two may be None."""
    rnn = draw(stacks())
    T, B = draw(st.integers(0, 6)), draw(st.integers(0, 3))
    lengths = None
    if draw(st.booleans()):
        values = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
        lengths = torch.tensor(values, dtype=torch.int64)
    kinds = ["none", "tuple"]
    if not rnn.bidirectional and rnn.layers[0].masked:
        kinds.append("streaming")
    kind = draw(st.sampled_from(kinds))
    h, c = (randn(*v.shape) for v in zero_state(rnn, B))
    state: Any = None if kind == "none" else (h, c)
    if kind == "streaming":
        state = QRNNState(h, c, tuple(randn(*v.shape) for v in rnn.initial_state(B).window))
    return rnn, randn(T, B, rnn.input_size), lengths, state


def parts(output: Tensor, state: Any) -> list[Tensor]:
    window = list(state.window) if isinstance(state, QRNNState) else []
    return [output, state[0], state[1], *window]


@pytest.fixture(scope="class", params=[1, convolution.MANY_ROWS])
def many_rows(request: Any) -> Any:
    with pytest.MonkeyPatch.context() as context:
        context.setattr(convolution, "MANY_ROWS", request.param)
        yield


@pytest.mark.usefixtures("many_rows")
class TestOracle:
    """Against the paper's equations in a float64 loop, with either way of convolving."""

    @given(calls())
    def test_outputs_and_states(self, call: Any) -> None:
        rnn, x, lengths, state = call
        output, got = rnn(x, state, lengths)
        assert type(got) is (QRNNState if isinstance(state, QRNNState) else tuple)
        parameters = {name: p.detach().numpy() for name, p in rnn.named_parameters()}
        windows = state.window if isinstance(state, QRNNState) else None
        *want, window = oracle.evaluate(
            rnn,
            parameters,
            x.numpy(),
            lengths,
            None if state is None else [v.numpy() for v in state[:2]],
            None if windows is None else [v.numpy() for v in windows],
        )
        if windows is not None:
            want.extend(window)
        close(parts(output, got), [torch.from_numpy(np.ascontiguousarray(v)) for v in want])

    @given(calls())
    def test_all_gradients(self, call: Any) -> None:
        rnn, x, lengths, state = call
        windows = state.window if isinstance(state, QRNNState) else ()
        leaves = [x, *(state or ())[:2], *windows]
        leaves = [*[v.requires_grad_() for v in leaves], *rnn.parameters()]
        results = parts(*rnn(x, state, lengths))
        *want, window = oracle.evaluate(
            rnn, dict(rnn.named_parameters()), x, lengths, state and state[:2], windows or None
        )
        wanted = [*want, *window] if windows else want
        weights = [torch.randn(v.shape, dtype=WIDE) for v in results]
        grads = []
        for values in (results, wanted):
            pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v.requires_grad]
            assume(pairs)
            values, own = zip(*pairs, strict=True)
            grads.append(torch.autograd.grad(values, leaves, own, materialize_grads=True))
        close(*grads, tolerance=1e-11)

    def test_finite_differences(self) -> None:
        """Of a whole layer with a state: nothing here comes from autograd."""
        rnn = make(2, 2, 2, kernel_size=3, dense=True)
        names = [name for name, _ in rnn.named_parameters()]
        state = rnn.initial_state(2)
        leaves = [randn(4, 2, 2), *(randn(*v.shape) for v in (state.c, *state.window))]
        leaves += [p.detach() for p in rnn.parameters()]

        def run(x: Tensor, c: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            window, values = rest[:2], rest[2:]
            own = QRNNState(torch.zeros_like(c), c, window)
            call = (x, own, torch.tensor([4, 2]))
            parameters = dict(zip(names, values, strict=True))
            output, after = torch.func.functional_call(rnn, parameters, call)
            return output, after.h, after.c

        assert torch.autograd.gradcheck(run, [v.clone().requires_grad_() for v in leaves])

    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_second_finite_differences_of_the_convolution(self, bidirectional: bool) -> None:
        layer = make(2, 1, kernel_size=3, bidirectional=bidirectional).layers[0]

        def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            del layer.weight, layer.bias  # to have tensors in the places of Parameters
            layer.weight, layer.bias = weight, bias
            return layer.convolve(x)[0]

        leaves = [randn(4, 2, 2), *(p.detach() for p in layer.parameters())]
        leaves = [v.clone().requires_grad_() for v in leaves]
        assert torch.autograd.gradcheck(run, leaves)
        assert torch.autograd.gradgradcheck(run, leaves)


class TestPacked:
    LENGTHS = (2, 5, 1, 5, 3)

    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("order", ["sorted", "unsorted", "sorted without enforcing"])
    def test_equals_each_sequence_alone(
        self, order: str, masked: bool, bidirectional: bool
    ) -> None:
        rnn = make(3, 4, 2, masked=masked, bidirectional=bidirectional, kernel_size=3, dense=True)
        lengths = self.LENGTHS if order == "unsorted" else sorted(self.LENGTHS, reverse=True)
        sequences = [randn(n, 3) for n in lengths]
        packed = pack_sequence(sequences, enforce_sorted=order == "sorted")
        state = tuple(randn(*v.shape) for v in zero_state(rnn, 5))
        output, (h_n, c_n) = rnn(packed, state)
        assert isinstance(output, PackedSequence)
        outputs = nn.utils.rnn.unpack_sequence(output)
        for b, sequence in enumerate(sequences):
            want, (h, c) = rnn(sequence, tuple(v[:, b] for v in state))
            close((outputs[b], h_n[:, b], c_n[:, b]), (want, h, c))

    @pytest.mark.parametrize("enforce_sorted", [False, True])
    def test_equals_lengths(self, enforce_sorted: bool) -> None:
        rnn = make(3, 4, 2, bidirectional=True)
        lengths = torch.tensor(
            sorted(self.LENGTHS, reverse=True) if enforce_sorted else self.LENGTHS
        )
        x = randn(5, 5, 3)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
        output, state = rnn(packed)
        want, want_state = rnn(x, lengths=lengths)
        padded, _ = nn.utils.rnn.pad_packed_sequence(output)
        close((padded, *state), (want, *want_state))

    @pytest.mark.parametrize("enforce_sorted", [False, True])
    def test_streaming_state_is_in_the_callers_order(self, enforce_sorted: bool) -> None:
        rnn = make(3, 4, 2, kernel_size=4, dense=True)
        lengths = sorted(self.LENGTHS, reverse=True) if enforce_sorted else self.LENGTHS
        sequences = [randn(n + 4, 3) for n in lengths]
        packed = pack_sequence([s[:-4] for s in sequences], enforce_sorted)
        _, state = rnn(packed, rnn.initial_state(5))
        assert isinstance(state, QRNNState)
        output, state = rnn(torch.stack([s[-4:] for s in sequences], 1), state)
        for b, sequence in enumerate(sequences):
            want, (h, c) = rnn(sequence)
            close((output[:, b], state.h[:, b], state.c[:, b]), (want[-4:], h, c))

    def test_gradients(self) -> None:
        rnn = make(3, 4, 2, bidirectional=True, kernel_size=3)
        x = randn(5, 5, 3).requires_grad_()
        lengths = torch.tensor(self.LENGTHS)
        leaves = [x, *rnn.parameters()]
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        weights = randn(5, 5, 8)
        output, (h_n, _) = rnn(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(output)
        got = torch.autograd.grad((padded * weights).sum() + h_n.sum(), leaves)
        output, (h_n, _) = rnn(x, lengths=lengths)
        want = torch.autograd.grad((output * weights).sum() + h_n.sum(), leaves)
        close(got, want)


def in_pieces(module: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Six steps, cut into pieces: all outputs, and the last state."""
    outputs = []
    for piece in x.split([1, 3, 2]):
        output, state = module(piece, state)
        outputs.append(output)
    return torch.cat(outputs), state


class TestPieces:
    """Running in pieces equals running at once."""

    @given(stacks(bidirectional=False, masked=True), st.data())
    def test_random_cuts(self, rnn: QRNN, data: Any) -> None:
        B = data.draw(st.integers(1, 2))
        sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
        x = randn(sum(sizes), B, rnn.input_size)
        whole = rnn(x, rnn.initial_state(B))
        state, outputs = rnn.initial_state(B), []
        for piece in x.split(sizes):
            output, state = rnn(piece, state)
            outputs.append(output)
        close(parts(torch.cat(outputs), state), parts(*whole))
        without, (h_n, c_n) = rnn(x)
        close([without, h_n, c_n], parts(*whole)[:3])

    @pytest.mark.parametrize("kernel_size", range(1, 7))
    @pytest.mark.parametrize("dense", [False, True])
    def test_step_by_step_with_gradients(self, dense: bool, kernel_size: int) -> None:
        rnn = make(3, 4, 3, kernel_size=kernel_size, first_kernel_size=3, dense=dense)
        x = randn(7, 2, 3).requires_grad_()
        weights = randn(7, 2, 4)
        leaves = [x, *rnn.parameters()]
        state, outputs = rnn.initial_state(2), []
        for t in range(7):
            output, state = rnn(x[t : t + 1], state)
            outputs.append(output)
        got = torch.cat(outputs)
        want, (h_n, c_n) = rnn(x)
        close((got, state.h, state.c), (want, h_n, c_n))
        close(*(torch.autograd.grad((v * weights).sum(), leaves) for v in (got, want)))

    @given(stacks(bidirectional=False, masked=True), st.data())
    def test_lengths_within_a_piece(self, rnn: QRNN, data: Any) -> None:
        """Each sequence goes on where its own part of the piece ended, padding or not."""
        B = 3
        state = rnn.initial_state(B)
        fed: list[list[Tensor]] = [[] for _ in range(B)]
        outputs: list[list[Tensor]] = [[] for _ in range(B)]
        for _ in range(3):
            T = data.draw(st.integers(1, 4))
            lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
            x = randn(T, B, rnn.input_size)
            x[torch.arange(T)[:, None] >= lengths] = float("nan")
            output, state = rnn(x, state, lengths)
            for b, n in enumerate(lengths.tolist()):
                fed[b].append(x[:n, b])
                outputs[b].append(output[:n, b])
        for b in range(B):
            want, after = rnn(torch.cat(fed[b])[:, None], rnn.initial_state(1))
            close(torch.cat(outputs[b]), want[:, 0])
            states = parts(want, state)[1:], parts(want, after)[1:]
            close([v[:, b] for v in states[0]], [v[:, 0] for v in states[1]])

    def test_batch_first(self) -> None:
        rnn = make(3, 4, 2, batch_first=True, kernel_size=3)
        x, state, outputs = randn(2, 6, 3), rnn.initial_state(2), []
        for piece in x.split([1, 3, 2], 1):
            output, state = rnn(piece, state)
            outputs.append(output)
        close(torch.cat(outputs, 1), rnn(x)[0])

    def test_single_sequence(self) -> None:
        rnn = make(3, 4, 2, kernel_size=3)
        x = randn(6, 3)
        output, state = in_pieces(rnn, x, rnn.initial_state(1))
        assert isinstance(state, QRNNState)
        close(output, rnn(x)[0])

    def test_a_window_of_one_step_has_no_centre(self) -> None:
        rnn = make(3, 4, kernel_size=1, masked=False)
        x = randn(6, 2, 3)
        close(in_pieces(rnn, x, rnn.initial_state(2))[0], rnn(x)[0])

    def test_a_layer_alone(self) -> None:
        layer = QRNNLayer(3, 4, kernel_size=3, dtype=WIDE)
        x = randn(6, 2, 3)
        output, state = in_pieces(layer, x, layer.initial_state(2))
        want, (h_n, c_n) = layer(x)
        close((output, state.h, state.c), (want, h_n, c_n))

    def test_a_tuple_starts_with_an_empty_window(self) -> None:
        """Only a QRNNState knows what was to the left."""
        rnn = make(3, 4, kernel_size=2)
        x = randn(4, 2, 3)
        _, state = rnn(x[:2], rnn.initial_state(2))
        whole, _ = rnn(x)
        cut, after = rnn(x[2:], (state.h, state.c))
        assert type(after) is tuple
        assert not torch.allclose(cut, whole[2:])
        close(rnn(x[2:], state._replace(window=(torch.zeros_like(x[:1]),)))[0], cut)

    def test_initial_state_is_zero(self) -> None:
        rnn = make(3, 4, 3, kernel_size=2, first_kernel_size=5, dense=True)
        state = rnn.initial_state(2)
        assert state.h.shape == state.c.shape == (3, 2, 4)
        assert [v.shape for v in state.window] == [(4, 2, 3), (1, 2, 7), (1, 2, 11)]
        for value in (state.h, state.c, *state.window):
            assert value.dtype == WIDE and not value.any() and not value.requires_grad
        assert state.h.data_ptr() != state.c.data_ptr()

    @pytest.mark.parametrize("num_layers", [1, 2])
    def test_a_call_leaves_the_state_passed_in_alone(self, num_layers: int) -> None:
        rnn = make(3, 4, num_layers, kernel_size=3)
        _, state = rnn(randn(4, 2, 3), rnn.initial_state(2))
        state = state.detach()
        before = copy.deepcopy(state)
        for x in (randn(4, 2, 3), randn(1, 2, 3), randn(0, 2, 3)):
            _, after = rnn(x, state)
            for value in (after.h, after.c, *after.window):
                value.data.fill_(9.0)
            equal(parts(before.h, before), parts(state.h, state))

    def test_a_state_holds_no_more_memory_than_it_needs(self) -> None:
        """A view of the input would keep the whole piece alive."""
        rnn = make(3, 4, kernel_size=3)
        with torch.no_grad():
            _, state = rnn(randn(50, 2, 3), rnn.initial_state(2))
        for value in (state.h, state.c, *state.window):
            assert value.untyped_storage().nbytes() == value.nbytes

    def test_select(self) -> None:
        """Going on after it is going on with what was selected, as beam search needs."""
        rnn = make(3, 4, 2, kernel_size=3)
        x, index = randn(6, 3, 3), torch.tensor([2, 0, 0, 1, 2])
        _, state = rnn(x[:3], rnn.initial_state(3))
        got = rnn(x[3:, index], state.select(index.int()))
        output, after = rnn(x[:, index], rnn.initial_state(5))
        close(parts(*got), parts(output[3:], after))

    def test_is_saved_and_loaded(self, tmp_path: Path) -> None:
        rnn = make(3, 4, kernel_size=3)
        output, state = rnn(randn(4, 2, 3), rnn.initial_state(2))
        torch.save(state.detach(), tmp_path / "state.pt")
        equal(parts(output, torch.load(tmp_path / "state.pt")), parts(output, state))

    def test_detach_cuts_the_graph(self) -> None:
        """Truncated back-propagation: what came before gets no gradient, what follows the same."""
        rnn = make(3, 4, 2, kernel_size=3)
        first, second = (randn(4, 2, 3).requires_grad_() for _ in range(2))
        _, state = rnn(first, rnn.initial_state(2))
        assert all(v.requires_grad for v in (state.h, state.c, *state.window))
        cut = state.detach()
        assert isinstance(cut, QRNNState)
        assert not any(v.requires_grad for v in (cut.h, cut.c, *cut.window))
        equal(parts(cut.h, cut), parts(state.h, state))
        gradients = []
        for start in (state, cut):
            output, _ = rnn(second, start)
            gradients.append(
                torch.autograd.grad(
                    output.sum(), [first, second], allow_unused=True, retain_graph=True
                )
            )
        assert gradients[0][0].any() and gradients[1][0] is None
        close(gradients[0][1], gradients[1][1])


class TestDirections:
    @staticmethod
    def halves(both: QRNNLayer) -> list[QRNNLayer]:
        """The two directions of a layer as layers from left to right."""
        split = []
        for d in range(2):
            layer = QRNNLayer(
                both.input_size,
                both.hidden_size,
                both.bias is not None,
                kernel_size=both.kernel_size,
                pooling=both.pooling,
                masked=both.masked,
                dtype=WIDE,
            )
            layer.load_state_dict({n: p.chunk(2)[d] for n, p in both.state_dict().items()})
            split.append(layer.eval())
        return split

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_reverse_is_forward_on_the_reversed_input(
        self, pooling: str, kernel_size: int, masked: bool, bias: bool
    ) -> None:
        options: Any = {"kernel_size": kernel_size, "pooling": pooling, "masked": masked}
        both = QRNNLayer(3, 4, bias, True, dtype=WIDE, **options)
        nn.init.normal_(both.weight)
        if bias:
            nn.init.normal_(both.bias)
        forward, backward = self.halves(both)
        x, lengths = randn(6, 3, 3), torch.tensor([6, 1, 4])
        state = randn(2, 3, 4), randn(2, 3, 4)
        output, (h_n, c_n) = both(x, state, lengths)
        for b, n in enumerate(lengths.tolist()):
            alone = x[:n, b : b + 1]
            starts = [tuple(v[d : d + 1, b : b + 1] for v in state) for d in range(2)]
            ahead, (h, c) = forward(alone, starts[0])
            back, (h_back, c_back) = backward(alone.flip(0), starts[1])
            close(output[:n, b], torch.cat([ahead, back.flip(0)], -1)[:, 0])
            close(h_n[:, b], torch.cat([h, h_back])[:, 0])
            close(c_n[:, b], torch.cat([c, c_back])[:, 0])
            assert not output[n:, b].any()

    def test_bidirectional_layers_see_both_directions_below(self) -> None:
        rnn = make(3, 4, 2, bidirectional=True, kernel_size=1)
        assert rnn.layers[1].input_size == 8
        assert make(3, 4, 2, bidirectional=True, dense=True).layers[1].input_size == 11
        x = randn(5, 1, 3).requires_grad_()
        output, _ = rnn(x)
        (grad,) = torch.autograd.grad(output[2].sum(), x)
        assert grad.any(-1).all()

    @pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("masked", [False, True])
    def test_reach_of_the_window(self, masked: bool, kernel_size: int) -> None:
        """With f near 0 a step depends on its window alone."""
        layer = QRNNLayer(1, 1, kernel_size=kernel_size, masked=masked, forget_bias=-40, dtype=WIDE)
        with torch.no_grad():
            layer.weight.fill_(0.1)
        x = torch.zeros(11, 1, 1, dtype=WIDE, requires_grad=True)
        output, _ = layer(x)
        (grad,) = torch.autograd.grad(output[5].sum(), x)
        seen = [t - 5 for t in range(11) if abs(grad[t].item()) > 1e-9]
        first = 1 - kernel_size if masked else -((kernel_size - 1) // 2)
        assert seen == list(range(first, first + kernel_size))


CONFIGURATIONS = {
    "masked": {"kernel_size": 3},
    "unmasked": {"kernel_size": 3, "masked": False},
    "unmasked even": {"kernel_size": 4, "masked": False, "dense": True},
    "bidirectional": {"kernel_size": 2, "bidirectional": True, "pooling": "ifo"},
    "bidirectional unmasked": {"kernel_size": 4, "bidirectional": True, "masked": False},
    "dense": {"kernel_size": 2, "first_kernel_size": 5, "dense": True, "pooling": "f"},
    "narrow": {"kernel_size": 1, "bidirectional": True, "bias": False},
}


class TestLengths:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_padding_changes_nothing(self, name: str, training: bool) -> None:
        """Outputs, states and every gradient are the same to the last bit."""
        rnn = make(3, 4, 3, dropout=0.3, zoneout=0.2, **CONFIGURATIONS[name]).train(training)
        lengths = torch.tensor([5, 2, 0, 4])
        padding = torch.arange(6)[:, None] >= lengths
        x, weights = randn(6, 4, 3), None
        runs = []
        for filler in (0.0, 1e4, float("inf"), float("nan")):
            torch.manual_seed(1)
            own = x.masked_fill(padding[:, :, None], filler).requires_grad_()
            results = parts(*rnn(own, lengths=lengths))
            weights = weights or [torch.randn_like(v) for v in results]
            grads = torch.autograd.grad(results, [own, *rnn.parameters()], weights)
            assert not results[0][padding].any()
            assert not grads[0][padding].any()
            runs.append([*results, *grads])
        for other in runs[1:]:
            equal(other, runs[0])

    @pytest.mark.parametrize("inference", [False, True])
    def test_they_are_the_callers_to_change_before_backward(self, inference: bool) -> None:
        rnn, x = make(3, 4), randn(5, 2, 3).requires_grad_()
        with torch.inference_mode(inference):
            lengths = torch.tensor([5, 3])
        want = torch.autograd.grad(rnn(x, lengths=torch.tensor([5, 3]))[0].sum(), x)
        output, _ = rnn(x, lengths=lengths)
        with torch.inference_mode(inference):
            lengths -= 2
        equal(torch.autograd.grad(output.sum(), x), want)

    def test_a_stack_checks_and_clears_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cleared, clear = [], layers._check_arguments
        monkeypatch.setattr(layers, "_check_arguments", lambda *a: cleared.append(a) or clear(*a))
        x, lengths = randn(6, 2, 3), torch.tensor([6, 3])
        x[3:, 1] = torch.nan
        rnn = make(3, 4, 3, bidirectional=True)
        rnn(x, lengths=lengths)
        assert len(cleared) == 1
        alone = rnn.layers[0](x, lengths=lengths)[0]
        assert len(cleared) == 2
        equal(alone, rnn.layers[0](x.nan_to_num(), None, lengths, checked=True)[0])
        assert len(cleared) == 2

    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_batch_mates_change_nothing(self, name: str) -> None:
        rnn = make(3, 4, 2, **CONFIGURATIONS[name])
        x, lengths = randn(6, 3, 3), torch.tensor([6, 3, 5])
        output, state = rnn(x, lengths=lengths)
        other = x.clone()
        other[:, 0], other[:, 2] = 1e3, randn(6, 3)
        changed, changed_state = rnn(other, lengths=torch.tensor([2, 3, 6]))
        alone, alone_state = rnn(x[:3, 1:2])
        for got, got_state in ((changed, changed_state), (alone, alone_state)):
            b = 1 if got is changed else 0
            close(got[:3, b], output[:3, 1])
            close([v[:, b] for v in got_state], [v[:, 1] for v in state])

    def test_full_lengths_are_no_lengths(self) -> None:
        for options in CONFIGURATIONS.values():
            rnn, x = make(3, 4, 2, **options), randn(5, 2, 3)
            close(parts(*rnn(x, lengths=torch.tensor([5, 5]))), parts(*rnn(x)))

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
    def test_integers_of_any_type(self, dtype: torch.dtype) -> None:
        rnn, x = make(3, 4, 2, bidirectional=True), randn(5, 3, 3)
        want = rnn(x, lengths=torch.tensor([5, 0, 2]))
        equal(parts(*rnn(x, lengths=torch.tensor([5, 0, 2], dtype=dtype))), parts(*want))

    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_h_n_is_the_last_valid_output(self, name: str) -> None:
        rnn = make(3, 4, 2, **CONFIGURATIONS[name])
        state = tuple(randn(*v.shape) for v in zero_state(rnn, 3))
        x, lengths = randn(5, 3, 3), torch.tensor([5, 0, 2])
        for own, steps in ((None, [5, 5, 5]), (lengths, [5, 0, 2])):
            output, (h_n, c_n) = rnn(x, state, own)
            D = 2 if rnn.bidirectional else 1
            for b, n in enumerate(steps):
                for d in range(D):
                    row = (rnn.num_layers - 1) * D + d
                    if n:
                        half = output[0 if d else n - 1, b, 4 * d : 4 * (d + 1)]
                        equal(h_n[row, b], half)
                    else:
                        equal((h_n[:, b], c_n[:, b]), tuple(v[:, b] for v in state))

    def test_batch_first(self) -> None:
        rnn = make(3, 4, 2, batch_first=True)
        x, lengths = randn(3, 5, 3), torch.tensor([5, 0, 2])
        output, state = rnn(x, lengths=lengths)
        rnn.batch_first = False
        want, want_state = rnn(x.transpose(0, 1), lengths=lengths)
        close((output, *state), (want.transpose(0, 1), *want_state))


class TestShapes:
    @pytest.mark.parametrize("T", [0, 1, 2])
    @pytest.mark.parametrize("B", [0, 1, 2])
    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_small_ones(self, name: str, B: int, T: int) -> None:
        """No sequences, no steps, one step, and windows longer than the sequence."""
        rnn = make(3, 4, 2, **CONFIGURATIONS[name])
        rows = 2 * (2 if rnn.bidirectional else 1)
        for lengths in (None, torch.full((B,), T), torch.zeros(B, dtype=torch.int64)):
            x = randn(T, B, 3).requires_grad_()
            output, (h_n, c_n) = rnn(x, None, lengths)
            assert output.shape == (T, B, 8 if rnn.bidirectional else 4)
            assert h_n.shape == c_n.shape == (rows, B, 4)
            (output.sum() + h_n.sum() + c_n.sum()).backward()
            assert x.grad is not None and x.grad.shape == x.shape

    def test_no_steps_return_the_state(self) -> None:
        for options in ({"bidirectional": True}, {}):
            rnn = make(3, 4, 2, kernel_size=3, **options)
            state = tuple(randn(*v.shape) for v in zero_state(rnn, 2))
            equal(rnn(randn(0, 2, 3), state)[1], state)
        streaming = QRNNState(*state, tuple(randn(*v.shape) for v in rnn.initial_state(2).window))
        equal(parts(*rnn(randn(0, 2, 3), streaming))[1:], parts(state[0], streaming)[1:])

    def test_window_far_longer_than_the_sequence(self) -> None:
        for masked in (False, True):
            rnn = make(3, 4, kernel_size=20, masked=masked, bidirectional=True)
            x = randn(2, 1, 3)
            parameters = {n: p.detach().numpy() for n, p in rnn.named_parameters()}
            want, h_n, c_n, _ = oracle.evaluate(rnn, parameters, x.numpy())
            close(parts(*rnn(x)), [torch.from_numpy(v) for v in (want, h_n, c_n)])

    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_layout_of_the_input_does_not_matter(self, name: str) -> None:
        rnn = make(3, 4, 2, **CONFIGURATIONS[name])
        x, lengths = randn(5, 2, 3), torch.tensor([5, 3])
        want = parts(*rnn(x, lengths=lengths))
        strided = torch.zeros(5, 2, 6, dtype=WIDE)[:, :, ::2]
        strided.copy_(x)
        transposed = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        for other in (strided, transposed, x.transpose(0, 1).contiguous().transpose(0, 1)):
            assert not other.is_contiguous()
            close(parts(*rnn(other, lengths=lengths)), want)
        expanded = x[:, :1].expand(5, 2, 3)
        close(rnn(expanded)[0], rnn(expanded.contiguous())[0])
        state = tuple(randn(*v.shape) for v in zero_state(rnn, 2))
        turned = tuple(v.transpose(0, 2).contiguous().transpose(0, 2) for v in state)
        close(parts(*rnn(x, turned)), parts(*rnn(x, state)))

    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_batch_first_and_unbatched(self, name: str) -> None:
        rnn = make(3, 4, 2, **CONFIGURATIONS[name])
        x = randn(5, 2, 3)
        state = tuple(randn(*v.shape) for v in zero_state(rnn, 2))
        output, after = rnn(x, state)
        for b in range(2):
            alone, alone_after = rnn(x[:, b], tuple(v[:, b] for v in state))
            close((alone, *alone_after), (output[:, b], *(v[:, b] for v in after)))
        rnn.batch_first = True
        got, got_after = rnn(x.transpose(0, 1), state)
        close((got, *got_after), (output.transpose(0, 1), *after))
        close(rnn(x[:, 0])[0], rnn(x[:, :1].transpose(0, 1))[0][0])


class TestModule:
    @pytest.mark.parametrize("slow", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, WIDE, torch.bfloat16])
    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_outputs_can_be_changed_in_place(
        self, bidirectional: bool, dtype: torch.dtype, slow: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if slow:
            monkeypatch.setattr(operator, "_backend", lambda device: reference)
        rnn = QRNN(3, 4, bidirectional=bidirectional, batch_first=True, dtype=dtype)
        x = torch.randn(2, 5, 3, dtype=dtype)

        def gradients(change: Any) -> Any:
            output, (h_n, c_n) = rnn(x)
            changed = sum(change(v).sum() for v in (output, h_n, c_n))
            return torch.autograd.grad(changed, list(rnn.parameters()))

        equal(
            gradients(lambda v: v.masked_fill_(v < 0, 0)),
            gradients(lambda v: v.masked_fill(v < 0, 0)),
        )

    @pytest.mark.parametrize("steps", [4, convolution.MANY_ROWS])
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_a_checkpoint_makes_all_again(self, reentrant: bool, steps: int) -> None:
        rnn = make(3, 4, 2, dtype=torch.float32)
        x = torch.randn(steps, 2, 3, requires_grad=True)
        leaves, results = [x, *rnn.parameters()], []

        def run(x: Tensor) -> tuple[Tensor, ...]:
            output, (h_n, c_n) = rnn(x)
            return output, h_n, c_n

        for call in (run, lambda x: checkpoint(run, x, use_reentrant=reentrant)):
            sum(v.square().sum() for v in call(x)).backward()
            results.append([leaf.grad for leaf in leaves])
            for leaf in leaves:
                leaf.grad = None
        equal(*results)

    def test_deepcopy_pickle_and_state_dict(self) -> None:
        rnn = make(3, 4, 2, bidirectional=True, zoneout=0.2, dense=True, first_kernel_size=3)
        x = randn(5, 2, 3)
        want = parts(*rnn(x))
        fresh = make(3, 4, 2, bidirectional=True, zoneout=0.2, dense=True, first_kernel_size=3)
        assert not torch.equal(fresh(x)[0], want[0])
        fresh.load_state_dict(rnn.state_dict())
        for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn)), fresh):
            equal(parts(*other(x)), want)
            assert repr(other) == repr(rnn)
            for parameter in other.parameters():
                parameter.data.zero_()
        equal(parts(*rnn(x)), want)

    def test_parameters_are_the_documented_ones(self) -> None:
        rnn = QRNN(3, 4, 2, bidirectional=True, pooling="ifo", kernel_size=2)
        shapes = {name: tuple(p.shape) for name, p in rnn.state_dict().items()}
        assert shapes == {
            "layers.0.weight": (32, 6),
            "layers.0.bias": (32,),
            "layers.1.weight": (32, 16),
            "layers.1.bias": (32,),
        }
        unbiased = QRNN(3, 4, 2, bias=False).state_dict()
        assert list(unbiased) == ["layers.0.weight", "layers.1.weight"]

    def test_initial_values(self) -> None:
        rnn = QRNN(50, 60, 2, kernel_size=4, bidirectional=True, forget_bias=1.5, pooling="ifo")
        for layer in rnn.layers:
            std = (4 * layer.input_size) ** -0.5
            assert abs(layer.weight.mean()) < 6 * std / layer.weight.numel() ** 0.5
            assert layer.weight.std().item() == pytest.approx(std, rel=0.03)
            gates = layer.bias.view(2, 4, 60)
            assert (gates[:, 1] == 1.5).all()
            assert not gates[:, [0, 2, 3]].any()
        assert not any(layer.bias.any() for layer in QRNN(3, 4, 2).layers)
        before = rnn.layers[0].weight.clone()
        rnn.reset_parameters()
        assert not torch.equal(rnn.layers[0].weight, before)
        assert (rnn.layers[1].bias.view(2, 4, 60)[:, 1] == 1.5).all()

    def test_forget_bias_keeps_more(self) -> None:
        """f is what is kept: with a large bias the first cell stays."""
        c0 = torch.ones(1, 2, 4, dtype=WIDE)
        for bias, low, high in ((20.0, 0.999, 1.001), (-20.0, -1, 1)):
            rnn = QRNN(3, 4, forget_bias=bias, dtype=WIDE)
            _, (_, c_n) = rnn(0.01 * randn(5, 2, 3), (c0, c0))
            assert low < c_n.min() and c_n.max() < high
            assert (c_n.max() < 0.5) == (bias < 0)

    @pytest.mark.parametrize(
        ("convert", "dtype", "tolerance"),
        [
            (nn.Module.half, torch.float16, 0.01),
            (nn.Module.bfloat16, torch.bfloat16, 0.06),
            (nn.Module.float, torch.float32, 1e-5),
            (nn.Module.double, torch.float64, 1e-12),
        ],
    )
    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_conversion(
        self, name: str, convert: Any, dtype: torch.dtype, tolerance: float
    ) -> None:
        rnn = make(3, 4, 2, **CONFIGURATIONS[name])
        x, lengths = randn(5, 3, 3), torch.tensor([5, 0, 2])
        want = parts(*rnn(x, lengths=lengths))
        converted = convert(copy.deepcopy(rnn))
        own = x.to(dtype).requires_grad_()
        got = parts(*converted(own, lengths=lengths))
        assert all(v.dtype == dtype for v in got)
        close([v.double() for v in got], want, tolerance)
        got[0].sum().backward()
        assert own.grad is not None and own.grad.dtype == dtype
        assert all(p.grad.dtype == dtype for p in converted.parameters())

    def test_meta_device(self) -> None:
        for rnn in (QRNN(3, 4, 2, bidirectional=True).to("meta"), QRNN(3, 4, 2, device="meta")):
            assert all(p.is_meta for p in rnn.parameters())
            x = torch.empty(5, 2, 3, device="meta")
            output, (h_n, c_n) = rnn(x)
            rows = 4 if rnn.bidirectional else 2
            assert output.is_meta and output.shape == (5, 2, 2 * rows)
            assert h_n.shape == c_n.shape == (rows, 2, 4)
        rnn = rnn.to_empty(device="cpu")
        rnn.reset_parameters()
        assert rnn(torch.randn(5, 2, 3))[0].isfinite().all()

    def test_flatten_parameters_does_nothing(self) -> None:
        rnn, x = make(3, 4, 2), randn(5, 2, 3)
        want = rnn(x)
        assert rnn.flatten_parameters() is None
        equal(parts(*rnn(x)), parts(*want))

    def test_without_gradients(self) -> None:
        rnn, x = make(3, 4, 2), randn(5, 2, 3)
        want = parts(*rnn(x))
        assert all(v.requires_grad for v in want)
        with torch.no_grad():
            got = parts(*rnn(x))
        assert not any(v.requires_grad for v in got)
        equal(got, [v.detach() for v in want])
        with torch.inference_mode():
            equal(parts(*rnn(x)), [v.detach() for v in want])
        rnn.requires_grad_(False)
        assert not any(v.requires_grad for v in parts(*rnn(x)))
        leaf = x.clone().requires_grad_()
        rnn(leaf)[0].sum().backward()
        assert leaf.grad is not None and leaf.grad.any()
        c0 = zero_state(rnn, 2)[1].requires_grad_()
        rnn(x, (c0.detach(), c0))[1][1].sum().backward()
        assert c0.grad is not None and c0.grad.any()

    @pytest.mark.parametrize("frozen", ["weight", "bias"])
    def test_partly_frozen(self, frozen: str) -> None:
        rnn = make(3, 4, 2)
        for name, parameter in rnn.named_parameters():
            parameter.requires_grad_(frozen not in name)
        rnn(randn(5, 2, 3))[0].sum().backward()
        for name, parameter in rnn.named_parameters():
            assert (parameter.grad is None) == (frozen in name)

    def test_without_bias(self) -> None:
        rnn = make(3, 4, 2, bias=False, bidirectional=True, kernel_size=3)
        biased = make(3, 4, 2, bidirectional=True, kernel_size=3)
        biased.load_state_dict(rnn.state_dict(), strict=False)
        for layer in biased.layers:
            nn.init.zeros_(layer.bias)
        x = randn(5, 2, 3)
        close(parts(*rnn(x)), parts(*biased(x)))

    def test_repr_tells_the_options(self) -> None:
        rnn = QRNN(
            3,
            4,
            2,
            False,
            True,
            0.5,
            True,
            kernel_size=3,
            zoneout=0.1,
            dense=True,
            masked=False,
            zoneout_eval="none",
        )
        text = repr(rnn)
        names = "bidirectional masked zoneout zoneout_eval kernel_size pooling batch_first dropout"
        names += " dense bias"
        for name in names.split():
            assert f"{name}=" in text
        assert "(3, 4, " in text and "(11, 4, " in text  # dense: 3 + 2 * 4

    def test_dense_concatenates_inputs(self) -> None:
        """Section 2.1: a layer reads the input and the output of the one below."""
        rnn = make(3, 4, 3, dense=True, kernel_size=2)
        assert [layer.input_size for layer in rnn.layers] == [3, 7, 11]
        x = randn(5, 2, 3)
        inputs = x
        for layer in rnn.layers:
            output, _ = layer(inputs)
            inputs = torch.cat([inputs, output], -1)
        close(rnn(x)[0], output)

    @pytest.mark.parametrize("bias", [False, True])
    def test_a_pruned_stack_takes_another_dtype(self, bias: bool) -> None:
        rnn, x = QRNN(3, 4, 2, bias=bias), torch.randn(5, 2, 3, dtype=torch.float64)
        prune.l1_unstructured(rnn.layers[0], "weight", amount=0.5)
        rnn.double()
        assert rnn.initial_state(2).c.dtype == torch.float64
        pruned = rnn.layers[0].weight_orig * rnn.layers[0].weight_mask
        output, _ = rnn(x, rnn.initial_state(2))
        prune.remove(rnn.layers[0], "weight")
        equal(rnn.layers[0].weight, pruned)
        equal(output, rnn(x)[0])


class TestRandomness:
    @pytest.mark.filterwarnings("ignore:dropout. has no effect")
    def test_dropout_is_between_layers_only(self) -> None:
        x = randn(5, 2, 3)
        single = make(3, 4, 1, dropout=1.0)
        equal(parts(*single.train()(x)), parts(*single.eval()(x)))
        rnn = make(3, 4, 2, dropout=1.0).train()
        output, (h_n, _) = rnn(x)
        want, _ = rnn.layers[1](torch.zeros(5, 2, 4, dtype=WIDE))
        close(output, want)
        close(h_n[0], rnn.layers[0](x)[0][-1])  # its state is the undropped output
        rnn.eval()
        close(rnn(x)[0], rnn.layers[1](rnn.layers[0](x)[0])[0])

    def test_dropout_leaves_the_dense_path_alone(self) -> None:
        rnn = make(3, 4, 2, dropout=1.0, dense=True).train()
        x = randn(5, 2, 3)
        inputs = torch.cat([x, torch.zeros(5, 2, 4, dtype=WIDE)], -1)
        close(rnn(x)[0], rnn.layers[1](inputs)[0])

    def test_dropout_has_its_rate_and_scale(self) -> None:
        rnn = make(3, 50, 2, dropout=0.25, kernel_size=1).train()
        seen = []
        rnn.layers[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        x = randn(40, 5, 3)
        rnn(x)
        below, _ = rnn.layers[0](x)
        kept = seen[0] != 0
        assert abs(kept.double().mean() - 0.75) < 0.02
        close(seen[0][kept], (below / 0.75)[kept])

    def test_a_seed_fixes_training(self) -> None:
        rnn = make(3, 4, 3, dropout=0.5, zoneout=0.5).train()
        x, outputs = randn(5, 2, 3), []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outputs.append(rnn(x)[0])
        assert torch.equal(outputs[0], outputs[1])
        assert not torch.equal(outputs[0], outputs[2])

    def test_evaluation_draws_nothing(self) -> None:
        rnn = make(3, 4, 3, dropout=0.5, zoneout=0.5, bidirectional=True)
        before = torch.get_rng_state()
        x = torch.ones(5, 2, 3, dtype=WIDE)
        equal(rnn(x)[0], rnn(x)[0])
        assert torch.equal(before, torch.get_rng_state())

    def test_training_without_rates_draws_nothing(self) -> None:
        rnn, x = make(3, 4, 3).train(), randn(5, 2, 3)
        before = torch.get_rng_state()
        equal(rnn(x)[0], rnn.eval()(x)[0])
        assert torch.equal(before, torch.get_rng_state())

    def test_layers_zone_out_apart(self) -> None:
        rnn = make(1, 200, 2, zoneout=0.5, kernel_size=1).train()
        with torch.no_grad():
            for layer in rnn.layers:
                layer.weight.zero_()
                layer.bias.view(3, -1)[0] = 3.0
                layer.bias.view(3, -1)[1] = 0.0
        _, (_, c_n) = rnn(randn(1, 1, 1))
        zoned = c_n[:, 0] == 0
        assert 0.3 < zoned[0].double().mean() < 0.7
        assert 0.3 < (zoned[0] ^ zoned[1]).double().mean() < 0.7

    def test_zoneout_in_evaluation(self) -> None:
        x = randn(5, 2, 3)
        outputs = {}
        for rule in ("mean", "none"):
            torch.manual_seed(1)
            rnn = make(3, 4, 2, zoneout=0.4, zoneout_eval=rule)
            outputs[rule] = rnn(x)[0]
        torch.manual_seed(1)
        close(outputs["none"], make(3, 4, 2)(x)[0])
        assert not torch.allclose(outputs["mean"], outputs["none"])


class TestReportBugs:
    """What went wrong in the replication's code, as far as it concerns the layer."""

    @pytest.mark.parametrize("pooling", ["f", "fo"])
    def test_training_flag_of_the_parent_alone(self, pooling: str) -> None:
        """`self.training = False` left a child's dropout on: the forget gate left [0, 1].

        Then a cell leaves [-1, 1], in which z and the first cell are.
        """
        rnn = make(3, 30, 2, zoneout=0.5, dropout=0.5, pooling=pooling)
        with torch.no_grad():
            for parameter in rnn.parameters():
                parameter.mul_(20)  # gates and z near their limits
        x = randn(50, 4, 3)
        for parent, children in ((True, True), (False, True), (True, False), (False, False)):
            rnn.train(children)
            rnn.training = parent
            output, (_, c_n) = rnn(x)
            assert output.abs().max() <= 1 and c_n.abs().max() <= 1

    @pytest.mark.parametrize("gate", range(4))
    def test_each_gate_has_its_own_weights(self, gate: int) -> None:
        """The decoder's forget gate used the weights of z."""
        layer = QRNNLayer(2, 3, pooling="ifo", kernel_size=1, dtype=WIDE)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight.view(4, 3, 2)[gate] = 0.7
        c0 = torch.full((1, 1, 3), 2.0, dtype=WIDE)
        _, (h_n, c_n) = layer(torch.ones(1, 1, 2, dtype=WIDE), (c0, c0))
        pre = torch.zeros(4, dtype=WIDE)
        pre[gate] = 1.4
        z = pre[0].tanh()
        _, f, o, i = pre.sigmoid()
        c = f * 2 + i * z
        close(c_n, c.expand(1, 1, 3))
        close(h_n, (o * c).expand(1, 1, 3))

    def test_gated_output_does_not_reach_the_next_cell(self) -> None:
        """c = f h + (1 - f) z, where c = f c + (1 - f) z belongs."""
        layer = QRNNLayer(2, 3, kernel_size=1, dtype=WIDE)
        x = randn(6, 2, 2)
        _, (h, c) = layer(x)
        with torch.no_grad():
            layer.weight.view(3, 3, 2)[2].normal_()
        _, (other_h, other_c) = layer(x)
        equal(other_c, c)
        assert not torch.allclose(other_h, h)

    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_last_state_of_unpadded_input_one_step_early(self, bidirectional: bool) -> None:
        rnn = make(3, 4, 1, bidirectional=bidirectional)
        x = randn(5, 2, 3)
        output, (h_n, c_n) = rnn(x)
        equal(h_n[0], output[-1, :, :4])
        if bidirectional:
            equal(h_n[1], output[0, :, 4:])
        changed = x.clone()
        changed[-1] += 1
        assert (rnn(changed)[1][0] != h_n).all()
        assert (rnn(changed)[1][1] != c_n).all()

    def test_reverse_direction_is_flipped_back(self) -> None:
        """Masked, reverse output t depends on the inputs from t on, and on no other."""
        rnn = make(3, 4, 1, bidirectional=True, kernel_size=2)
        x = randn(5, 1, 3).requires_grad_()
        output, _ = rnn(x)
        for t in range(5):
            (grad,) = torch.autograd.grad(output[t, 0, 4:].sum(), x, retain_graph=True)
            assert grad[:, 0].any(-1).tolist() == [s >= t for s in range(5)]

    def test_reverse_direction_starts_at_the_last_step_not_in_the_padding(self) -> None:
        rnn = make(3, 4, 2, bidirectional=True, kernel_size=2)
        x = randn(3, 1, 3)
        padded = torch.cat([x, torch.ones(4, 1, 3, dtype=WIDE)])
        output, state = rnn(padded, lengths=torch.tensor([3]))
        want, want_state = rnn(x)
        close((output[:3], *state), (want, *want_state))

    def test_no_state_stays_on_the_module(self) -> None:
        rnn = make(3, 4, 2, kernel_size=3)
        x = randn(5, 2, 3)

        def attributes() -> list[str]:
            return [f"{n}: {sorted(vars(m))} {list(m._buffers)}" for n, m in rnn.named_modules()]

        before, want = attributes(), parts(*rnn(x))
        rnn(randn(2, 7, 3), rnn.initial_state(7))
        equal(parts(*rnn(x)), want)
        assert attributes() == before


def describe(value: Any) -> Any:
    """Types, shapes and what a caller can ask of them, without the numbers."""
    if isinstance(value, PackedSequence):
        order = [v if v is None else v.tolist() for v in value[2:]]
        return ["PackedSequence", describe(value.data), value.batch_sizes.tolist(), *order]
    if isinstance(value, tuple):
        return [type(value).__name__, *map(describe, value)]
    return [tuple(value.shape), value.dtype, value.device, value.requires_grad]


FORMS: dict[str, Callable[[bool], Any]] = {
    "batch": lambda first: torch.randn((3, 5, 4) if first else (5, 3, 4)),
    "one sequence": lambda _: torch.randn(5, 4),
    "one step": lambda first: torch.randn((3, 1, 4) if first else (1, 3, 4)),
    "sorted": lambda _: pack_sequence([torch.randn(n, 4) for n in (5, 2, 2)]),
    "unsorted": lambda _: pack_sequence([torch.randn(n, 4) for n in (2, 5, 1)], False),
    "padded": lambda first: pack_padded_sequence(
        torch.randn((3, 5, 4) if first else (5, 3, 4)), torch.tensor([2, 5, 1]), first, False
    ),
}  # fmt: skip


class TestAsLSTM:
    """A user of nn.LSTM changes the class name and nothing else."""

    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("batch_first", [False, True])
    @pytest.mark.parametrize("form", FORMS)
    def test_calls(self, form: str, batch_first: bool, bidirectional: bool) -> None:
        positional = (4, 6, 2, True, batch_first, 0.1, bidirectional)
        lstm, rnn = nn.LSTM(*positional), QRNN(*positional)
        x = FORMS[form](batch_first)
        want, got = lstm(x), rnn(x)
        assert describe(got) == describe(want)
        if form == "batch" and not batch_first:
            assert (
                got[0].is_contiguous() and got[1][0].is_contiguous() and got[1][1].is_contiguous()
            )
        # its own state, and a state made by hand
        assert describe(rnn(x, got[1])) == describe(lstm(x, want[1]))
        made = tuple(torch.zeros_like(v) for v in want[1])
        assert describe(rnn(x, made)) == describe(lstm(x, made))
        assert describe(rnn(x, list(made))) == describe(lstm(x, list(made)))
        with torch.no_grad():
            assert describe(rnn(x)) == describe(lstm(x))

    def test_attributes_and_keywords(self) -> None:
        options: dict[str, Any] = {
            "input_size": 4,
            "hidden_size": 6,
            "num_layers": 2,
            "bias": False,
            "batch_first": True,
            "dropout": 0.1,
            "bidirectional": True,
        }
        lstm, rnn = nn.LSTM(**options), QRNN(**options, device="cpu", dtype=torch.float32)
        for name in options:
            assert getattr(rnn, name) == getattr(lstm, name), name
        x = torch.randn(3, 5, 4)
        assert describe(rnn(input=x)) == describe(lstm(input=x))


def state(h: Any = (1, 2, 4), c: Any = (1, 2, 4), *window: Any, **options: Any) -> Any:
    tensors = [torch.zeros(v, **options) if isinstance(v, tuple) else v for v in (h, c, *window)]
    return QRNNState(*tensors[:2], tuple(tensors[2:])) if window else tuple(tensors)


def call(x: Any = (5, 2, 3), *arguments: Any, **options: Any) -> Callable[[], Any]:
    """A call of QRNN(3, 4, **options) with a tensor of this shape, or something else."""
    rnn = QRNN(3, 4, **options)
    return lambda: rnn(torch.zeros(x) if type(x) is tuple else x, *arguments)


def build(*sizes: Any, **options: Any) -> Callable[[], Any]:
    return lambda: QRNN(*(sizes or (3, 4)), **options)


PACKED = pack_sequence([torch.zeros(2, 3), torch.zeros(5, 3)], enforce_sorted=False)

# what is called, the error, the argument that it names, what was expected, what was got
MISUSES: dict[str, tuple[Callable[[], Any], type[Exception], str, str, str]] = {
    # construction
    "input_size 0": (build(0, 4), ValueError, "input_size", "at least 1", "0"),
    "input_size float": (build(3.0, 4), TypeError, "input_size", "an int", "float"),
    "hidden_size negative": (build(3, -4), ValueError, "hidden_size", "at least 1", "-4"),
    "hidden_size string": (build(3, "4"), TypeError, "hidden_size", "an int", "str"),
    "num_layers 0": (build(3, 4, 0), ValueError, "num_layers", "at least 1", "0"),
    "num_layers bool": (build(3, 4, True), TypeError, "num_layers", "an int", "bool"),
    "dropout negative": (build(dropout=-0.1), ValueError, "dropout", "0 to 1", "-0.1"),
    "dropout too large": (build(dropout=1.1), ValueError, "dropout", "0 to 1", "1.1"),
    "dropout bool": (build(dropout=True), TypeError, "dropout", "a number", "bool"),
    "dropout None": (build(dropout=None), TypeError, "dropout", "a number", "NoneType"),
    "zoneout negative": (build(zoneout=-1), ValueError, "zoneout", "0 to 1", "-1"),
    "zoneout NaN": (build(zoneout=float("nan")), ValueError, "zoneout", "0 to 1", "nan"),
    "zoneout string": (build(zoneout="0.1"), TypeError, "zoneout", "a number", "str"),
    "zoneout_eval": (
        build(zoneout_eval="avg"),
        ValueError, "zoneout_eval", "mean, none", "'avg'",
    ),
    "weight_dropout": (
        build(weight_dropout=1.5),
        ValueError, "weight_dropout", "0 to 1", "1.5",
    ),
    "kernel_size 0": (build(kernel_size=0), ValueError, "kernel_size", "at least 1", "0"),
    "kernel_size bool": (build(kernel_size=True), TypeError, "kernel_size", "an int", "bool"),
    "kernel_size tuple": (build(kernel_size=(2,)), TypeError, "kernel_size", "an int", "tuple"),
    "first_kernel_size 0": (
        build(first_kernel_size=0),
        ValueError, "first_kernel_size", "at least 1", "0",
    ),
    "first_kernel_size float": (
        build(first_kernel_size=2.0),
        TypeError, "first_kernel_size", "an int", "float",
    ),
    "pooling unknown": (build(pooling="fio"), ValueError, "pooling", "f, fo, ifo", "'fio'"),
    "pooling None": (build(pooling=None), ValueError, "pooling", "f, fo, ifo", "None"),
    "pooling list": (build(pooling=["fo"]), ValueError, "pooling", "f, fo, ifo", "['fo']"),
    "forget_bias without bias": (
        build(bias=False, forget_bias=1.0),
        ValueError, "forget_bias", "0 in a layer without bias", "1.0",
    ),
    "forget_bias NaN": (
        build(forget_bias=np.nan),
        ValueError, "forget_bias", "a finite number", "nan",
    ),
    "dtype complex": (build(dtype=torch.complex64), TypeError, "dtype", "float32", "complex64"),
    "dtype of integers": (build(dtype=torch.int32), TypeError, "dtype", "float32", "int32"),
    "forget_bias string": (build(forget_bias="1"), TypeError, "forget_bias", "a number", "str"),
    # input
    "input list": (call([[0.0]]), TypeError, "input", "a Tensor", "list"),
    "input array": (call(np.zeros((5, 2, 3))), TypeError, "input", "a Tensor", "ndarray"),
    "input integers": (call(torch.zeros(5, 2, 3).long()), TypeError, "input", "float32", "int64"),
    "input of 1 dimension": (call((3,)), ValueError, "input", "2 or 3 dim", "(3,)"),
    "input of 4 dimensions": (
        call((5, 2, 3, 1)),
        ValueError, "input", "2 or 3 dimensions", "(5, 2, 3, 1)",
    ),
    "input size": (call((5, 2, 4)), ValueError, "input", "a last dimension of 3", "4"),
    "input size of one sequence": (
        call((5, 4)),
        ValueError, "input", "a last dimension of 3", "4",
    ),
    "input type": (call(torch.zeros(5, 2, 3).double()), TypeError, "input", "float32", "float64"),
    "input device": (call(torch.zeros(5, 2, 3, device="meta")), ValueError, "input", "cpu", "meta"),
    "packed size": (
        call(pack_sequence([torch.zeros(5, 4)])),
        ValueError, "input", "a last dimension of 3", "4",
    ),
    "packed type": (
        call(pack_sequence([torch.zeros(5, 3).half()])),
        TypeError, "input", "float32", "float16",
    ),
    # state
    "state tensor": (
        call((5, 2, 3), torch.zeros(1, 2, 4)),
        TypeError, "state", "a tuple (h, c)", "Tensor",
    ),
    "state of one": (
        call((5, 2, 3), (torch.zeros(1, 2, 4),)),
        TypeError, "state", "a tuple (h, c)", "tuple of 1",
    ),
    "state of three": (
        call((5, 2, 3), (*state(), None)),
        TypeError, "state window", "a tuple", "NoneType",
    ),
    "state of a decoder": (
        call((5, 2, 3), DecoderState(*[torch.zeros(1, 2, 4)] * 3)),
        TypeError, "state", "a QRNNState", "DecoderState",
    ),
    "state of None": (call((5, 2, 3), (None, None)), TypeError, "state h", "a Tensor", "NoneType"),
    "state h batch": (
        call((5, 2, 3), state((1, 3, 4))),
        ValueError, "state h", "(1, 2, 4)", "(1, 3, 4)",
    ),
    "state c size": (
        call((5, 2, 3), state(c=(1, 2, 3))),
        ValueError, "state c", "(1, 2, 4)", "(1, 2, 3)",
    ),
    "state layers": (
        call((5, 2, 3), state(), num_layers=2),
        ValueError, "state h", "(2, 2, 4)", "(1, 2, 4)",
    ),
    "state directions": (
        call((5, 2, 3), state(), bidirectional=True),
        ValueError, "state h", "(2, 2, 4)", "(1, 2, 4)",
    ),
    "state type": (
        call((5, 2, 3), state(dtype=torch.half)),
        TypeError, "state h", "float32", "float16",
    ),
    "state device": (call((5, 2, 3), state(device="meta")), ValueError, "state h", "cpu", "meta"),
    "state of a batch, batch_first": (
        call((2, 5, 3), state((2, 1, 4), (2, 1, 4)), batch_first=True),
        ValueError, "state h", "(1, 2, 4)", "(2, 1, 4)",
    ),
    "state with batch for one sequence": (
        call((5, 3), state((1, 1, 4), (1, 1, 4))),
        ValueError, "state h", "(1, 4) for a single sequence", "(1, 1, 4)",
    ),
    "state c with batch for one sequence": (
        call((5, 3), state((1, 4), (1, 1, 4))),
        ValueError, "state c", "(1, 4) for a single sequence", "(1, 1, 4)",
    ),
    "state layers of one sequence": (
        call((5, 3), state((1, 4), (1, 4)), num_layers=2),
        ValueError, "state h", "(2, 4) for a single sequence", "(1, 4)",
    ),
    "state of the packed batch": (
        call(PACKED, state((1, 5, 4), (1, 5, 4))),
        ValueError, "state h", "(1, 2, 4)", "(1, 5, 4)",
    ),
    "window missing": (
        call((5, 2, 3), QRNNState(*state(), ())),
        ValueError, "state window", "1 tensors", "0",
    ),
    "window None": (
        call((5, 2, 3), QRNNState(*state(), None)),
        TypeError, "state window", "a tuple", "NoneType",
    ),
    "window of None": (
        call((5, 2, 3), QRNNState(*state(), (None,))),
        TypeError, "state window[0]", "a Tensor", "NoneType",
    ),
    "window width": (
        call((5, 2, 3), state((1, 2, 4), (1, 2, 4), (2, 2, 3))),
        ValueError, "state window[0]", "(1, 2, 3)", "(2, 2, 3)",
    ),
    "window type": (
        call((5, 2, 3), QRNNState(*state(), (torch.zeros(1, 2, 3).double(),))),
        TypeError, "state window[0]", "float32", "float64",
    ),
    "window of another layer": (
        call((5, 2, 3), state((2, 2, 4), (2, 2, 4), (1, 2, 3), (1, 2, 3)), num_layers=2),
        ValueError, "state window[1]", "(1, 2, 4)", "(1, 2, 3)",
    ),
    # lengths
    "lengths list": (call((5, 2, 3), None, [5, 2]), TypeError, "lengths", "a Tensor", "list"),
    "lengths floats": (
        call((5, 2, 3), None, torch.tensor([5.0, 2])),
        TypeError, "lengths", "integers", "float32",
    ),
    "lengths booleans": (
        call((5, 2, 3), None, torch.tensor([True, False])),
        TypeError, "lengths", "integers", "bool",
    ),
    "lengths shape": (
        call((5, 2, 3), None, torch.tensor([5, 2, 1])),
        ValueError, "lengths", "(2,)", "(3,)",
    ),
    "lengths by time, batch_first": (
        call((2, 5, 3), None, torch.tensor([1] * 5), batch_first=True),
        ValueError, "lengths", "(2,)", "(5,)",
    ),
    "lengths negative": (
        call((5, 2, 3), None, torch.tensor([5, -1])),
        ValueError, "lengths", "0 to 5", "[5, -1]",
    ),
    "lengths too large": (
        call((5, 2, 3), None, torch.tensor([6, 2])),
        ValueError, "lengths", "0 to 5", "[6, 2]",
    ),
    "lengths device": (
        call((5, 2, 3), None, torch.tensor([5, 2], device="meta")),
        ValueError, "lengths", "cpu", "meta",
    ),
    "lengths with packed": (
        call(PACKED, None, torch.tensor([5, 2])),
        ValueError, "lengths", "None with a PackedSequence", "[5, 2]",
    ),
    "lengths of one sequence": (
        call((5, 3), None, torch.tensor([5])),
        ValueError, "lengths", "None for a single sequence", "[5]",
    ),
    # initial_state
    "batch_size negative": (
        lambda: QRNN(3, 4).initial_state(-1),
        ValueError, "batch_size", "at least 0", "-1",
    ),
    "batch_size bool": (
        lambda: QRNN(3, 4).initial_state(True),
        TypeError, "batch_size", "an int", "bool",
    ),
}  # fmt: skip


def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*_: Any) -> None:
        pytest.fail("a kernel ran")

    monkeypatch.setattr(functional.operator, "pool", kernel)
    monkeypatch.setattr(layers.F, "linear", kernel)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_weight_dropout_takes_elements_of_the_weight(kernel_size: int) -> None:
    """One mask for all steps, sequences and directions of a call, and another one in the next."""
    options: Any = {"bidirectional": True, "kernel_size": kernel_size}
    layer = QRNNLayer(4, 5, weight_dropout=0.25, **options).double()
    plain = QRNNLayer(4, 5, **options).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(7, 3, 4, dtype=torch.double)
    torch.testing.assert_close(layer.eval()(x), plain(x), rtol=0, atol=0)
    layer.train()
    outputs = []
    for _ in range(2):
        layer.zero_grad()
        output, _ = layer(x)
        output.sum().backward()
        # what was dropped has no gradient, and without it the layer gives the same
        assert layer.weight.grad is not None
        kept = layer.weight.grad != 0
        assert 0.6 < kept.double().mean() < 0.9
        with torch.no_grad():
            plain.weight.copy_(layer.weight * kept / 0.75)
        torch.testing.assert_close(output, plain(x)[0], rtol=1e-12, atol=1e-12)
        outputs.append(output)
    assert not torch.equal(*outputs)
    twin = copy.deepcopy(layer)
    torch.manual_seed(1)
    expected = layer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(twin(x)[0], expected)
    torch.manual_seed(1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0]
    torch.testing.assert_close(compiled, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says what is wrong, before any kernel runs."""
    no_kernel(monkeypatch)
    misuse, error, argument, expected, got = MISUSES[name]
    with pytest.raises(error) as caught:
        misuse()
    text = str(caught.value)
    assert caught.type is error
    assert text.startswith(f"{argument}: "), text
    pattern = rf"expected .*{re.escape(expected)}.*, got .*{re.escape(got)}"
    assert re.search(pattern, text, re.DOTALL), text


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"masked": False}])
def test_pieces_need_a_layer_from_left_to_right(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_kernel(monkeypatch)
    rnn = QRNN(3, 4, **options)
    rows = 2 if rnn.bidirectional else 1
    streaming = state((rows, 2, 4), (rows, 2, 4), (1, 2, 3))
    [(option, value)] = options.items()
    for misuse in (lambda: rnn.initial_state(2), lambda: rnn(torch.zeros(5, 2, 3), streaming)):
        with pytest.raises(ValueError, match=rf"^state: .*needs.*; .*{option}={value}"):
            misuse()


@pytest.mark.parametrize(
    ("name", "value"), [("pooling", "of"), ("zoneout", 1.5), ("zoneout_eval", "avg")]
)
def test_an_option_that_is_set_later_is_checked(name: str, value: object) -> None:
    rnn = QRNN(3, 4)
    setattr(rnn.layers[0], name, value)
    with pytest.raises(ValueError, match=rf"^{name}: .* got '?{value}"):
        rnn(torch.randn(5, 2, 3))


@pytest.mark.parametrize(
    ("own", "error", "got"),
    [
        (state((1, 2, 4), (1, 2, 4), dtype=torch.int64), TypeError, "int64"),
        (state((1, 2, 4), (1, 2, 4), device="meta"), ValueError, "meta"),
    ],
)
def test_misuse_under_autocast(
    own: Any, error: type[Exception], got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types may differ there, but not as much as this."""
    no_kernel(monkeypatch)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(error, match=rf"^state h: .*got .*{got}"),
    ):
        QRNN(3, 4)(torch.zeros(5, 2, 3), own)


@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
def test_autocast_leaves_float64_alone(dtype: torch.dtype) -> None:
    """As nn.Linear, which cannot multiply it with another type."""
    other = WIDE if dtype == torch.float32 else torch.float32
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(TypeError, match=r"^input: .*float64"),
    ):
        QRNN(3, 4, dtype=dtype)(torch.zeros(convolution.MANY_ROWS, 1, 3, dtype=other))


def test_dropout_that_has_no_effect_is_told_as_by_lstm() -> None:
    for module in (nn.LSTM, QRNN, QRNNDecoder):
        with pytest.warns(UserWarning, match="num_layers=1"):
            module(3, 4, dropout=0.5)


def test_numpys_numbers_are_numbers() -> None:
    assert QRNN(3, 4, 2, dropout=np.float32(0.5), zoneout=np.float64(0.1)).dropout == 0.5


def test_a_layer_checks_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    no_kernel(monkeypatch)
    layer = QRNNLayer(3, 4)
    with pytest.raises(ValueError, match=r"^input: .*3 dimensions.*\(5, 3\)"):
        layer(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"^state h: .*\(1, 2, 4\).*\(2, 2, 4\)"):
        layer(torch.zeros(5, 2, 3), state((2, 2, 4)))
    with pytest.raises(ValueError, match=r"^lengths: .*0 to 5"):
        layer(torch.zeros(5, 2, 3), None, torch.tensor([6, 1]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_state_that_became_plain_tuples() -> None:
    def repackaged(state: Any) -> Any:  # as examples of truncated back-propagation do
        return state.detach() if isinstance(state, Tensor) else tuple(map(repackaged, state))

    rnn, x = QRNN(3, 4, 2, kernel_size=3), torch.randn(6, 2, 3)
    want, _ = rnn(x)
    traced = torch.jit.trace(rnn, (x[:3], rnn.initial_state(2)))
    for run in (rnn, traced):
        first, state = run(x[:3], rnn.initial_state(2))
        second, _ = run(x[3:], repackaged(state))
        torch.testing.assert_close(torch.cat([first, second]), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("module", [QRNN(3, 4), torch.nn.Sequential(QRNN(3, 4))])
def test_torchscript_of_the_source_is_refused(module: torch.nn.Module) -> None:
    with pytest.raises(TypeError, match=r"torch\.jit\.trace can"):
        torch.jit.script(module)


def test_a_condition_that_is_not_used_is_told() -> None:
    rnn, x = QRNN(3, 4), torch.randn(5, 2, 3)
    zeros, learnt = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4, requires_grad=True)
    with pytest.warns(UserWarning, match="goes into c"):
        rnn(x, (learnt, zeros))
    torch.compile(rnn, fullgraph=True, backend="aot_eager")(x, (learnt, zeros))  # cannot warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for state in ((learnt, learnt), (zeros, learnt), (zeros, zeros), rnn(x)[1]):
            rnn(x, state)


def test_the_state_has_lstms_name() -> None:
    x, hx = torch.randn(3, 2, 5), (torch.zeros(1, 2, 4), torch.randn(1, 2, 4))
    rnn = QRNN(5, 4)
    torch.testing.assert_close(rnn(input=x, hx=hx)[0], rnn(x, hx)[0])
    assert nn.LSTM(5, 4)(input=x, hx=hx)[0].shape == (3, 2, 4)
