"""QRNNDecoder against equations 7 and 8 in a loop, and what else it promises."""

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import POOLINGS, WIDE, close, equal, randn
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from qrnn import QRNN, QRNNState, functional, layers
from qrnn import decoder as decoder_module
from qrnn.decoder import DecoderState, QRNNDecoder


def make(*sizes: int, **options: Any) -> QRNNDecoder:
    """A float64 QRNNDecoder in evaluation, with biases that are not zero."""
    decoder = QRNNDecoder(*(sizes or (3, 4)), **{"dtype": WIDE} | options).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.6)
    return decoder


def arguments(decoder: QRNNDecoder) -> tuple[Tensor, DecoderState, Tensor]:
    """Five steps of two sequences, and six of their sources, in float32."""
    final = torch.randn(decoder.num_layers, 2, decoder.encoder_size)
    memory = torch.randn(6, 2, decoder.encoder_size)
    return torch.randn(5, 2, decoder.input_size), decoder.initial_state(final), memory


def tensors(state: DecoderState) -> list[Tensor]:
    return [state.c, *state.window, state.encoded]


def parts(output: Tensor, state: DecoderState, attention: Tensor) -> list[Tensor]:
    return [output, attention, *tensors(state)]


def random_state(decoder: QRNNDecoder, final: Tensor) -> DecoderState:
    """As if some steps had gone before."""
    state = decoder.initial_state(final)
    window = tuple(torch.randn_like(v) for v in state.window)
    return DecoderState(torch.randn_like(state.c), window, state.encoded)


def expected(
    decoder: QRNNDecoder,
    x: Tensor,
    c: Tensor,
    windows: Any,
    final: Tensor,
    memory: Tensor,
    lengths: Tensor | None = None,
    zoned: Any = None,
) -> list[Tensor]:
    """Output, attention, cells and windows, one sequence, step, tap and source step at a time.

    zoned (layer, t, b) gives the forget gates that are set to 1, (H,), in training.
    """
    (T, B, _), (S, _, _) = x.shape, memory.shape
    L, H = decoder.num_layers, decoder.hidden_size
    values = dict(decoder.named_parameters())
    h, alphas = x.new_zeros(T, B, H), x.new_zeros(T, B, S)
    cells: list[Any] = [[None] * B for _ in range(L)]
    histories: list[Any] = [[None] * B for _ in range(L)]
    for b in range(B):
        n = S if lengths is None else int(lengths[b])
        keys = [memory[s, b] for s in range(n)]
        if "attention_memory" in values:
            keys = [values["attention_memory"] @ key for key in keys]
        inputs = [x[t, b] for t in range(T)]
        for l, layer in enumerate(decoder.layers):
            k, blocks = layer.kernel_size, {"f": "zf", "fo": "zfo", "ifo": "zfoi"}[layer.pooling]
            I = layer.input_size
            weight, bias = values[f"layers.{l}.weight"], values.get(f"layers.{l}.bias")
            history, cell, outputs = [*windows[l][:, b], *inputs], c[l, b], []
            for t in range(T):
                pre = values[f"conditions.{l}.weight"] @ final[l, b]
                if bias is not None:
                    pre = pre + bias
                for tap in range(k):
                    pre = pre + weight[:, tap * I : (tap + 1) * I] @ history[t + tap]
                gate = {name: pre[g * H : (g + 1) * H] for g, name in enumerate(blocks)}
                z, f = torch.tanh(gate["z"]), 1 / (1 + torch.exp(-gate["f"]))
                if zoned is not None:
                    f = torch.where(zoned(l, t, b), torch.ones_like(f), f)
                elif layer.zoneout_eval == "mean":
                    f = 1 - (1 - layer.zoneout) * (1 - f)
                i = 1 / (1 + torch.exp(-gate["i"])) if "i" in gate else 1 - f
                cell = f * cell + i * z
                out = cell
                if l == L - 1:
                    context = torch.zeros_like(cell)
                    scores = [(cell * key).sum() for key in keys]
                    powers = [torch.exp(score - max(scores).detach()) for score in scores]
                    for s in range(n):
                        alphas[t, b, s] = powers[s] / sum(powers)
                        context = context + powers[s] / sum(powers) * keys[s]
                    out = values["attention_k.weight"] @ context
                    out = out + values["attention_c.weight"] @ cell
                if "o" in gate:
                    out = out / (1 + torch.exp(-gate["o"]))
                outputs.append(out)
            cells[l][b], histories[l][b] = cell, history[T:]
            inputs = outputs
        for t in range(T):
            h[t, b] = inputs[t]
    last = [
        torch.stack([torch.stack(row) for row in histories[l]], 1)
        if decoder.layers[l].kernel_size > 1
        else windows[l]
        for l in range(L)
    ]
    return [h, alphas, torch.stack([torch.stack(row) for row in cells]), *last]


@st.composite
def decoders(draw: Any, **fixed: Any) -> QRNNDecoder:
    """QRNNDecoders of 1 to 3 layers; an option is drawn unless it is fixed."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    drawn = {
        "bias": st.booleans(),
        "kernel_size": st.integers(1, 3),
        "first_kernel_size": st.none() | st.integers(1, 5),
        "pooling": st.sampled_from(POOLINGS),
        "encoder_size": st.none() | st.integers(1, 4),
        "zoneout": st.sampled_from([0.0, 0.3, 1.0]),
        "zoneout_eval": st.sampled_from(["mean", "none"]),
    }
    options = {name: draw(values) for name, values in drawn.items() if name not in fixed}
    return make(*(draw(st.integers(1, 3)) for _ in range(3)), **options, **fixed)


@st.composite
def calls(draw: Any, **fixed: Any) -> tuple[QRNNDecoder, Tensor, Tensor, Tensor, Any]:
    """A decoder, x, the encoder's final outputs, memory, and lengths or None."""
    decoder = draw(decoders(**fixed))
    T, B, S = draw(st.integers(0, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 4))
    lengths = None
    if draw(st.booleans()):
        lengths = torch.tensor(draw(st.lists(st.integers(0, S), min_size=B, max_size=B)))
    M = decoder.encoder_size
    x, final = randn(T, B, decoder.input_size), randn(decoder.num_layers, B, M)
    return decoder, x, final, randn(S, B, M), lengths


class TestOracle:
    """Against the paper's equations in a float64 loop."""

    @given(calls())
    def test_outputs_attention_and_states(self, call: Any) -> None:
        decoder, x, final, memory, lengths = call
        state = random_state(decoder, final)
        with torch.no_grad():
            output, after, attention = decoder(x, state, memory, lengths)
            want = expected(decoder, x, state.c, state.window, final, memory, lengths)
        close([output, attention, after.c, *after.window], want)
        assert after.encoded is state.encoded

    @given(calls())
    def test_all_gradients(self, call: Any) -> None:
        decoder, x, final, memory, lengths = call
        state = random_state(decoder, final.requires_grad_())
        leaves = [x, memory, state.c, *state.window]
        leaves = [*[v.detach().requires_grad_() for v in leaves], final, *decoder.parameters()]
        x, memory, c, *window = leaves[: 3 + len(state.window)]
        state = DecoderState(c, tuple(window), state.encoded)
        output, after, attention = decoder(x, state, memory, lengths)
        got = [output, attention, after.c, *after.window]
        want = expected(decoder, x, c, window, final, memory, lengths)
        weights = [torch.randn_like(v) for v in got]
        grads = []
        for values in (got, want):
            pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v.requires_grad]
            values, own = zip(*pairs, strict=True)
            grads.append(
                torch.autograd.grad(values, leaves, own, allow_unused=True, materialize_grads=True)
            )
        close(*grads, tolerance=1e-11)

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_finite_differences(self, pooling: str) -> None:
        """Once, of everything that goes in; twice, with the attention among the results."""
        decoder = make(2, 2, 2, encoder_size=1, kernel_size=2, first_kernel_size=1, pooling=pooling)
        names = [name for name, _ in decoder.named_parameters()]
        leaves = [randn(2, 2, 2), randn(3, 2, 1), randn(2, 2, 2), randn(1, 2, 2), randn(2, 2, 1)]
        leaves += [p.detach().clone() for p in decoder.parameters()]
        lengths = torch.tensor([3, 1])

        def run(x: Tensor, memory: Tensor, c: Tensor, window: Tensor, *rest: Tensor) -> Any:
            values = dict(zip(names, rest[1:], strict=True))
            condition = torch.stack(
                [values[f"conditions.{l}.weight"] @ rest[0][l].T for l in (0, 1)]
            )
            state = DecoderState(c, (x[:0], window), condition.transpose(1, 2))
            call = (x, state, memory, lengths)
            output, after, attention = torch.func.functional_call(decoder, values, call)
            return output, attention, after.c, after.window[1]

        leaves = [v.requires_grad_() for v in leaves]
        assert torch.autograd.gradcheck(run, leaves)
        assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_zoneout_in_training(self, pooling: str) -> None:
        """Layer by layer a seed from torch's generator, and its numbers in the order of (T, B, H).

        The last layer's cells, which are attended with, are zoned out like those of any other.
        """
        decoder = make(3, 5, 2, zoneout=0.4, kernel_size=1, pooling=pooling).train()
        x, final, memory = randn(3, 2, 3), randn(2, 2, 5), randn(4, 2, 5)
        state = random_state(decoder, final)
        torch.manual_seed(5)
        seeds = [int(torch.randint(2**63 - 1, ())) for _ in range(2)]

        def zoned(l: int, t: int, b: int) -> Tensor:
            numbers = [oracle.uniform(seeds[l], (t * 2 + b) * 5 + j) for j in range(5)]
            return torch.tensor(numbers) < 0.4

        torch.manual_seed(5)
        output, after, attention = decoder(x, state, memory)
        want = expected(decoder, x, state.c, state.window, final, memory, None, zoned)
        close([output, attention, after.c], want[:3])


def in_pieces(
    decoder: QRNNDecoder, x: Tensor, state: DecoderState, sizes: Any, *memory: Any
) -> list[Tensor]:
    """`parts` of decoding x (T, B, I) in pieces."""
    outputs, attentions = [], []
    for piece in x.split(sizes):
        output, state, attention = decoder(piece, state, *memory)
        outputs.append(output)
        attentions.append(attention)
    return parts(torch.cat(outputs), state, torch.cat(attentions))


class TestPieces:
    """Running in pieces equals running at once."""

    @given(calls(), st.data())
    def test_random_cuts(self, call: Any, data: Any) -> None:
        decoder, _, final, *memory = call
        sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
        x = randn(sum(sizes), final.shape[1], decoder.input_size)
        with torch.no_grad():
            state = decoder.initial_state(final)
            got = in_pieces(decoder, x, state, sizes, *memory)
            close(got, parts(*decoder(x, state, *memory)))

    @pytest.mark.parametrize(("dtype", "tolerance"), [(WIDE, 1e-12), (torch.float32, 1e-5)])
    @pytest.mark.parametrize("pooling", POOLINGS)
    @pytest.mark.parametrize("kernel_size", [1, 2, 3])
    @pytest.mark.parametrize("num_layers", [1, 3])
    def test_step_by_step_with_gradients(
        self, num_layers: int, kernel_size: int, pooling: str, dtype: Any, tolerance: float
    ) -> None:
        decoder = QRNNDecoder(
            6, 16, num_layers, kernel_size=kernel_size, first_kernel_size=4, pooling=pooling,
            encoder_size=10, zoneout=0.1, dtype=dtype,
        ).eval()  # fmt: skip
        x, final, memory = (
            torch.randn(shape, dtype=dtype).requires_grad_()
            for shape in ((20, 3, 6), (num_layers, 3, 10), (7, 3, 10))
        )
        lengths = torch.tensor([7, 2, 5])
        leaves, weights = [x, final, memory, *decoder.parameters()], torch.randn(20, 3, 16)
        runs, grads = [], []
        for sizes in (1, 20):
            results = in_pieces(decoder, x, decoder.initial_state(final), sizes, memory, lengths)
            runs.append(results)
            # the mean, because a sum over steps has a sum of rounding errors
            loss = (results[0] * weights).mean() + results[1][..., 0].mean()
            grads.append(torch.autograd.grad(loss, leaves))
        close(*runs, tolerance=tolerance)
        close(*grads, tolerance=tolerance)

    def test_all_steps_are_one_pass(self) -> None:
        """Teacher forcing is parallel: what is launched does not depend on the number of steps."""

        class Count(TorchDispatchMode):
            launched: int = 0

            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                self.launched += 1
                return func(*args, **kwargs or {})

        decoder = make(3, 4, 3, kernel_size=3, encoder_size=5, zoneout=0.1, dropout=0.1).train()
        state, memory = decoder.initial_state(randn(3, 2, 5)), randn(6, 2, 5)
        counts = []
        for T in (2, 50):
            with Count() as count:
                output, _, _ = decoder(randn(T, 2, 3), state, memory, torch.tensor([6, 4]))
                output.sum().backward(retain_graph=True)
            counts.append(count.launched)
        assert counts[0] == counts[1] > 0

    def test_batch_first(self) -> None:
        """The state is never transposed."""
        decoder = make(3, 4, 2, kernel_size=3, encoder_size=5)
        final, x, memory, lengths = randn(2, 2, 5), randn(6, 2, 3), randn(7, 2, 5), [7, 3]
        state = random_state(decoder, final)
        output, after, attention = decoder(x, state, memory, torch.tensor(lengths))
        decoder.batch_first = True
        equal(tensors(decoder.initial_state(final))[-1], state.encoded)
        outputs, attentions, state_ = [], [], state
        for piece in x.transpose(0, 1).split([1, 3, 2], 1):
            o, state_, a = decoder(piece, state_, memory.transpose(0, 1), torch.tensor(lengths))
            outputs.append(o)
            attentions.append(a)
        got = parts(torch.cat(outputs, 1), state_, torch.cat(attentions, 1))
        close(got, parts(output.transpose(0, 1), after, attention.transpose(0, 1)))

    @pytest.mark.parametrize(("T", "B", "S"), [(0, 2, 3), (2, 0, 3), (2, 2, 0), (0, 0, 0)])
    def test_nothing(self, T: int, B: int, S: int) -> None:
        for pooling in POOLINGS:
            decoder = make(3, 4, 2, kernel_size=3, encoder_size=5, pooling=pooling)
            state = random_state(decoder, randn(2, B, 5)).detach()
            x, memory = randn(T, B, 3).requires_grad_(), randn(S, B, 5)
            for lengths in (None, torch.full((B,), S)):
                output, after, attention = decoder(x, state, memory, lengths)
                assert output.shape == (T, B, 4) and attention.shape == (T, B, S)
                assert output.isfinite().all()
                output.sum().backward()
                if not T:
                    equal(tensors(after), tensors(state))


class TestState:
    def test_initial_state(self) -> None:
        decoder = make(3, 4, 3, kernel_size=2, first_kernel_size=5, encoder_size=6, pooling="ifo")
        final = randn(3, 2, 6)
        state = decoder.initial_state(final)
        assert state.c.shape == (3, 2, 4) and state.encoded.shape == (3, 2, 16)
        assert [v.shape for v in state.window] == [(4, 2, 3), (1, 2, 4), (1, 2, 4)]
        assert not any(v.any() for v in (state.c, *state.window))
        assert all(v.dtype == WIDE for v in tensors(state))
        for l in range(3):
            close(state.encoded[l], final[l] @ decoder.conditions[l].weight.T)

    def test_a_call_leaves_the_state_passed_in_alone(self) -> None:
        decoder = make(3, 4, 2, kernel_size=3, first_kernel_size=1)
        state = random_state(decoder, randn(2, 2, 4)).detach()
        before = copy.deepcopy(state)
        for T in (3, 1, 0):
            _, after, _ = decoder(randn(T, 2, 3), state, randn(5, 2, 4))
            for value in (after.c, *after.window):
                value.data.fill_(9.0)
            equal(tensors(state), tensors(before))

    def test_it_holds_no_more_memory_than_it_needs(self) -> None:
        """A view of the input would keep the whole piece alive."""
        decoder = make(3, 4, 2, kernel_size=3)
        with torch.no_grad():
            state = decoder.initial_state(randn(2, 2, 4))
            _, state, _ = decoder(randn(50, 2, 3), state, randn(5, 2, 4))
        for value in tensors(state):
            assert value.untyped_storage().nbytes() == value.nbytes

    def test_detach_cuts_the_graph(self) -> None:
        decoder = make(3, 4, 2, kernel_size=3)
        x, final = randn(4, 2, 3).requires_grad_(), randn(2, 2, 4).requires_grad_()
        _, state, _ = decoder(x, decoder.initial_state(final), randn(5, 2, 4))
        assert all(v.requires_grad for v in tensors(state))
        cut = state.detach()
        assert isinstance(cut, DecoderState)
        assert not any(v.requires_grad for v in tensors(cut))
        equal(tensors(cut), tensors(state))

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_select(self, pooling: str) -> None:
        """Decoding after it is decoding what was selected, as beam search needs."""
        decoder = make(3, 4, 2, kernel_size=3, encoder_size=5, pooling=pooling)
        x, final, memory = randn(6, 3, 3), randn(2, 3, 5), randn(4, 3, 5)
        lengths, index = torch.tensor([4, 2, 3]), torch.tensor([2, 0, 0, 1, 2])
        _, state, _ = decoder(x[:3], decoder.initial_state(final), memory, lengths)
        chosen = state.select(index)
        assert isinstance(chosen, DecoderState) and isinstance(chosen.window, tuple)
        assert all(v.shape[1] == 5 for v in tensors(chosen))
        got = decoder(x[3:, index], chosen, memory[:, index], lengths[index])
        start = decoder.initial_state(final[:, index])
        output, after, attention = decoder(x[:, index], start, memory[:, index], lengths[index])
        close(parts(*got), parts(output[3:], after, attention[3:]))

    def test_select_needs_integers(self) -> None:
        state = make(3, 4).initial_state(randn(1, 3, 4))
        for index, got in (([0, 1], "list"), (torch.ones(3, dtype=torch.bool), "bool")):
            with pytest.raises(TypeError, match=f"^index: .*got .*{got}"):
                state.select(index)
        with pytest.raises(ValueError, match=r"^index: .*1 dimension.*\(1, 2\)"):
            state.select(torch.tensor([[0, 1]]))


class TestAttention:
    @pytest.mark.filterwarnings("ignore:Anomaly Detection")
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("encoder_size", [4, 5])
    def test_padding_changes_nothing(self, encoder_size: int, training: bool) -> None:
        """Outputs, states and every gradient are the same to the last bit, and no step is NaN."""
        decoder = make(
            3, 4, 2, encoder_size=encoder_size, dropout=0.3, zoneout=0.2, attention_dropout=0.3
        ).train(training)
        lengths = torch.tensor([5, 2, 0, 4])
        padding = torch.arange(6)[:, None] >= lengths
        x, final = randn(3, 4, 3).requires_grad_(), randn(2, 4, encoder_size)
        memory, weights, runs = randn(6, 4, encoder_size), None, []
        for filler in (0.0, 1e4, float("inf"), float("nan")):
            torch.manual_seed(1)
            own = memory.masked_fill(padding[:, :, None], filler).requires_grad_()
            with torch.autograd.detect_anomaly(check_nan=True):
                results = parts(*decoder(x, decoder.initial_state(final), own, lengths))
                weights = weights or [torch.randn_like(v) for v in results]
                grads = torch.autograd.grad(results, [own, *decoder.parameters()], weights)
            assert not results[1][:, padding.T].any()
            assert not grads[0][padding].any()
            runs.append([*results, *grads])
        for other in runs[1:]:
            equal(other, runs[0])
        close(runs[0][1].sum(-1), (lengths > 0).to(WIDE).expand(3, 4))

    def test_batch_mates_and_length_of_the_padding_change_nothing(self) -> None:
        decoder = make(3, 4, 2, kernel_size=3, encoder_size=5)
        x, final, memory = randn(6, 3, 3), randn(2, 3, 5), randn(7, 3, 5)
        lengths = torch.tensor([7, 3, 5])
        whole = decoder(x, decoder.initial_state(final), memory, lengths)
        for b, n in enumerate(lengths.tolist()):
            own = slice(b, b + 1)
            alone = decoder(x[:, own], decoder.initial_state(final[:, own]), memory[:n, own])
            got = whole[0][:, own], whole[1].select(torch.tensor([b])), whole[2][:, own, :n]
            close(parts(*got), parts(*alone))

    def test_full_lengths_are_no_lengths(self) -> None:
        decoder, x, memory = make(3, 4, 2), randn(6, 2, 3), randn(5, 2, 4)
        state = decoder.initial_state(randn(2, 2, 4))
        want = parts(*decoder(x, state, memory))
        for dtype in (torch.int64, torch.int32, torch.uint8):
            close(parts(*decoder(x, state, memory, torch.tensor([5, 5], dtype=dtype))), want)

    def test_steps_see_the_past_only(self) -> None:
        decoder = make(3, 4, 2, kernel_size=3)
        x = randn(5, 1, 3).requires_grad_()
        output, _, attention = decoder(x, decoder.initial_state(randn(2, 1, 4)), randn(6, 1, 4))
        for values in (output, attention):
            for t in range(5):
                (grad,) = torch.autograd.grad(values[t, 0, 0], x, retain_graph=True)
                assert grad[:, 0].any(-1).tolist() == [s <= t for s in range(5)]

    def test_large_scores(self) -> None:
        decoder = make(3, 4, 1, pooling="f")
        memory = 1e4 * randn(6, 2, 4)
        state = decoder.initial_state(randn(1, 2, 4))
        output, _, attention = decoder(randn(5, 2, 3), state, memory, torch.tensor([6, 3]))
        assert output.isfinite().all()
        close(attention.sum(-1), torch.ones(5, 2, dtype=WIDE))

    def test_dropout_of_the_attention(self) -> None:
        """The sum is over dropped and rescaled alpha; what is returned is alpha."""
        decoder = make(3, 50, 1, pooling="f", attention_dropout=0.25)
        with torch.no_grad():
            decoder.attention_k.weight.copy_(torch.eye(50))
            decoder.attention_c.weight.zero_()
        memory = torch.eye(50, dtype=WIDE)[:, None].expand(50, 4, 50)
        x, state = randn(40, 4, 3), decoder.initial_state(randn(1, 4, 50))
        want, _, alpha = decoder(x, state, memory)
        close(want, alpha)  # with such a memory and such weights
        output, _, attention = decoder.train()(x, state, memory)
        equal(attention, alpha)
        kept = output != 0
        assert abs(kept.double().mean() - 0.75) < 0.02
        close(output[kept], (alpha / 0.75)[kept])


class TestRandomness:
    @pytest.mark.filterwarnings("ignore:dropout. has no effect")
    def test_dropout_is_between_layers_only(self) -> None:
        x, memory, final = randn(5, 2, 3), randn(6, 2, 4), randn(2, 2, 4)
        single = make(3, 4, 1, dropout=1.0)
        state = single.initial_state(final[:1])
        equal(
            parts(*single.train()(x, state, memory)),
            parts(*single.eval()(x, state, memory)),
        )
        decoder = make(3, 4, 2, dropout=1.0, kernel_size=1)
        state = decoder.initial_state(final)
        output, _, attention = decoder.train()(x, state, memory)
        kept, _, _ = decoder.eval()(x, state, memory)
        with torch.no_grad():
            decoder.layers[1].weight.zero_()
        want, _, want_attention = decoder(x, state, memory)
        close((output, attention), (want, want_attention))
        assert not torch.allclose(output, kept)

    def test_only_training_draws(self) -> None:
        options = {"dropout": 0.5, "zoneout": 0.5, "attention_dropout": 0.5}
        x, memory, final = randn(5, 2, 3), randn(6, 2, 4), randn(3, 2, 4)
        for decoder, training in ((make(3, 4, 3, **options), False), (make(3, 4, 3), True)):
            decoder.train(training)
            state, before = decoder.initial_state(final), torch.get_rng_state()
            equal(parts(*decoder(x, state, memory)), parts(*decoder(x, state, memory)))
            assert torch.equal(before, torch.get_rng_state())
        for name, rate in options.items():
            decoder = make(3, 4, 3, **{name: rate}).train()
            state, outputs = decoder.initial_state(final), []
            for seed in (1, 1, 2):
                torch.manual_seed(seed)
                outputs.append(decoder(x, state, memory)[0])
            assert torch.equal(outputs[0], outputs[1]), name
            assert not torch.equal(outputs[0], outputs[2]), name


class TestReportBugs:
    """What went wrong in the replication's code, as far as it concerns the decoder."""

    @pytest.mark.parametrize("source", ["layers.0.weight", "conditions.0.weight"])
    @pytest.mark.parametrize("gate", range(4))
    def test_each_gate_has_its_own_weights(self, gate: int, source: str) -> None:
        """The decoder's forget gate used the weights of z."""
        decoder = QRNNDecoder(2, 3, kernel_size=1, pooling="ifo", encoder_size=2, dtype=WIDE)
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.zero_()
            decoder.get_parameter(source).view(4, 3, 2)[gate] = 0.7
            decoder.attention_c.weight.copy_(torch.eye(3))
        state = decoder.initial_state(torch.ones(1, 1, 2, dtype=WIDE))
        state = state._replace(c=torch.full((1, 1, 3), 2.0, dtype=WIDE))
        memory = torch.zeros(1, 1, 2, dtype=WIDE)
        output, after, _ = decoder(torch.ones(1, 1, 2, dtype=WIDE), state, memory)
        pre = torch.zeros(4, dtype=WIDE)
        pre[gate] = 1.4
        z = pre[0].tanh()
        _, f, o, i = pre.sigmoid()
        c = f * 2 + i * z
        close(after.c, c.expand(1, 1, 3))
        close(output, (o * c).expand(1, 1, 3))

    @pytest.mark.parametrize("pooling", ["fo", "ifo"])
    def test_output_gate_reaches_neither_the_cells_nor_the_attention(self, pooling: str) -> None:
        """c = f h + (1 - f) z, where c = f c + (1 - f) z belongs; and the query is c, not o c."""
        decoder = make(3, 4, 1, pooling=pooling)
        x, state, memory = randn(6, 2, 3), decoder.initial_state(randn(1, 2, 4)), randn(5, 2, 4)
        output, after, attention = decoder(x, state, memory)
        with torch.no_grad():
            decoder.layers[0].weight[8:12].normal_()
            decoder.layers[0].bias[8:12] = -3.0
            decoder.attention_c.weight.normal_()
            decoder.attention_k.weight.normal_()
        other, other_after, other_attention = decoder(x, state, memory)
        close((other_after.c, other_attention), (after.c, attention))
        assert not torch.allclose(other, output)
        scores = (after.c[0] * memory).sum(-1)  # c of the last step: (B, H) with (S, B, H)
        close(attention[-1], scores.softmax(0).T)

    @pytest.mark.parametrize("pooling", ["f", "fo"])
    def test_forget_gates_stay_between_0_and_1(self, pooling: str) -> None:
        """`self.training = False` left a child's dropout on: the forget gate left [0, 1].

        Then a cell leaves [-1, 1], in which z and the first cell are.
        """
        decoder = make(3, 30, 2, zoneout=0.5, pooling=pooling)
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.mul_(20)  # gates and z near their limits
        x, memory = randn(50, 4, 3), randn(5, 4, 30)
        state = decoder.initial_state(randn(2, 4, 30))
        for parent, children in ((True, True), (False, True), (True, False), (False, False)):
            decoder.train(children)
            decoder.training = parent
            _, after, _ = decoder(x, state, memory)
            assert after.c.abs().max() <= 1

    def test_no_state_stays_on_the_module(self) -> None:
        """It grew there in lists, and beam search never reordered it."""
        decoder = make(3, 4, 2, kernel_size=3)
        x, memory, state = randn(5, 2, 3), randn(6, 2, 4), decoder.initial_state(randn(2, 2, 4))

        def attributes() -> list[str]:
            modules = decoder.named_modules()
            return [f"{n}: {sorted(vars(m))} {list(m._buffers)}" for n, m in modules]

        before, want = attributes(), parts(*decoder(x, state, memory))
        decoder(randn(2, 7, 3), decoder.initial_state(randn(2, 7, 4)), randn(3, 7, 4))
        equal(parts(*decoder(x, state, memory)), want)
        assert attributes() == before


class TestModule:
    def test_deepcopy_pickle_and_state_dict(self) -> None:
        options: Any = {"first_kernel_size": 3, "encoder_size": 5, "zoneout": 0.2}
        decoder, fresh = make(3, 4, 2, **options), make(3, 4, 2, **options)
        call = randn(5, 2, 3), decoder.initial_state(randn(2, 2, 5)), randn(6, 2, 5)
        want = parts(*decoder(*call))
        assert not torch.equal(fresh(*call)[0], want[0])
        fresh.load_state_dict(decoder.state_dict())
        for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder)), fresh):
            equal(parts(*other(*call)), want)
            assert repr(other) == repr(decoder)
            for parameter in other.parameters():
                parameter.data.zero_()
        equal(parts(*decoder(*call)), want)

    def test_parameters_are_the_documented_ones(self) -> None:
        """None has "rnn" in its name: JoeyNMT's initialisation takes that for its own encoder."""
        shapes = {
            "layers.0.weight": (16, 9),
            "layers.0.bias": (16,),
            "layers.1.weight": (16, 8),
            "layers.1.bias": (16,),
            "conditions.0.weight": (16, 5),
            "conditions.1.weight": (16, 5),
            "attention_k.weight": (4, 4),
            "attention_c.weight": (4, 4),
            "attention_memory": (4, 5),
        }
        decoder = QRNNDecoder(3, 4, 2, first_kernel_size=3, pooling="ifo", encoder_size=5)
        assert {n: tuple(p.shape) for n, p in decoder.state_dict().items()} == shapes
        same = QRNNDecoder(3, 4, 2, False, encoder_size=4)
        names = [n for n in shapes if "bias" not in n and n != "attention_memory"]
        assert sorted(same.state_dict()) == sorted(names)

    def test_initial_values(self) -> None:
        decoder = QRNNDecoder(50, 60, 2, kernel_size=3, encoder_size=70, forget_bias=1.5)

        def check() -> None:
            for name, parameter in decoder.named_parameters():
                if name.endswith("bias"):
                    gates = parameter.view(3, 60)
                    assert (gates[1] == 1.5).all() and not gates[[0, 2]].any()
                    continue
                std = parameter.shape[1] ** -0.5
                assert parameter.std().item() == pytest.approx(std, rel=0.05), name
                assert abs(parameter.mean()) < 6 * std / parameter.numel() ** 0.5, name
                values = parameter.detach().flatten() / std
                assert values.pow(4).mean().item() == pytest.approx(3, rel=0.2), name  # normal

        check()
        before = [p.clone() for p in decoder.parameters() if p.dim() > 1]
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.fill_(7.0)
        decoder.reset_parameters()
        check()
        after = [p for p in decoder.parameters() if p.dim() > 1]
        assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))

    def test_attributes_and_repr(self) -> None:
        decoder = QRNNDecoder(
            3, 4, 2, batch_first=True, dropout=0.5, attention_dropout=0.25, encoder_size=5
        )
        values = {
            "input_size": 3, "hidden_size": 4, "num_layers": 2, "encoder_size": 5,
            "batch_first": True, "dropout": 0.5, "attention_dropout": 0.25,
        }  # fmt: skip
        assert {name: getattr(decoder, name) for name in values} == values
        assert QRNNDecoder(3, 4).encoder_size == 4
        for text in ("batch_first=True", "dropout=0.5", "attention_dropout=0.25"):
            assert text in decoder.extra_repr()
        assert QRNNDecoder(3, 4).extra_repr() == ""

    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float16, 0.01), (torch.bfloat16, 0.08), (torch.float32, 1e-5)],
    )
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_conversion(self, pooling: str, dtype: torch.dtype, tolerance: float) -> None:
        decoder = make(3, 4, 2, encoder_size=5, pooling=pooling)
        x, final, memory = randn(5, 3, 3), randn(2, 3, 5), randn(6, 3, 5)
        lengths = torch.tensor([6, 0, 2])
        want = parts(*decoder(x, decoder.initial_state(final), memory, lengths))
        converted = copy.deepcopy(decoder).to(dtype)
        own = memory.masked_fill(torch.arange(6)[:, None, None] >= lengths[:, None], torch.nan)
        state = converted.initial_state(final.to(dtype))
        got = parts(*converted(x.to(dtype), state, own.to(dtype), lengths))
        assert all(v.dtype == dtype for v in got)
        close([v.double() for v in got], want, tolerance)
        got[0].sum().backward()
        for parameter in converted.parameters():
            assert parameter.grad is not None and parameter.grad.dtype == dtype
            assert parameter.grad.isfinite().all()

    def test_meta_device(self) -> None:
        decoder = QRNNDecoder(3, 4, 2, encoder_size=5, device="meta")
        x, final, memory = (
            torch.empty(v, device="meta") for v in ((6, 2, 3), (2, 2, 5), (7, 2, 5))
        )
        output, state, attention = decoder(x, decoder.initial_state(final), memory)
        assert output.is_meta and output.shape == (6, 2, 4) and attention.shape == (6, 2, 7)
        assert all(v.is_meta for v in tensors(state))
        decoder = decoder.to_empty(device="cpu")
        decoder.reset_parameters()
        assert all(p.isfinite().all() for p in decoder.parameters())

    @pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
    @pytest.mark.parametrize("tool", [nn.utils.spectral_norm, nn.utils.weight_norm])
    def test_tools_that_hook_into_a_layer(self, tool: Any) -> None:
        decoder, calls = QRNNDecoder(3, 4, 2), []
        for layer in decoder.layers:
            tool(layer, "weight")
            layer.register_forward_hook(lambda *_: calls.append(1))
        for _ in range(2):  # of each step, what the hooks make of the parameters is its own
            output, *_ = decoder(*arguments(decoder))
            output.square().sum().backward()
        assert len(calls) == 4
        assert all(p.grad is not None for p in decoder.layers.parameters())
        if tool is nn.utils.spectral_norm:
            for _ in range(50):
                decoder(*arguments(decoder))
            norm = torch.linalg.matrix_norm(decoder.layers[0].weight, 2)
            assert 0.95 < norm < 1.05

    def test_checkpointed_layers(self) -> None:
        class Checkpointed(layers.QRNNLayer):
            def forward(self, *args: Any, **options: Any) -> Any:
                run = partial(layers.QRNNLayer.forward, self, **options)
                return checkpoint(run, *args, use_reentrant=False)

        decoder = make(3, 4, 2, pooling="ifo")
        x, memory = randn(5, 2, 3).requires_grad_(), randn(6, 2, 4)
        grads = []
        for kind in (layers.QRNNLayer, Checkpointed):
            for layer in decoder.layers:
                layer.__class__ = kind
            state = decoder.initial_state(torch.ones(2, 2, 4, dtype=WIDE))
            output, *_ = decoder(x, state, memory)
            grads.append(torch.autograd.grad(output.square().sum(), (x, *decoder.parameters())))
        close(grads[1], grads[0])

    def test_quantized_linear_layers(self) -> None:
        decoder = QRNNDecoder(3, 4, encoder_size=5).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that it moves
            small = torch.ao.quantization.quantize_dynamic(decoder, {nn.Linear}, torch.qint8)
        args = arguments(decoder)
        close(small(*args)[0], decoder(*args)[0], 0.1)


class TestAutocast:
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_bfloat16(self, pooling: str) -> None:
        decoder = make(3, 4, 2, encoder_size=5, pooling=pooling).float()
        x, final, memory = torch.randn(5, 3, 3), torch.randn(2, 3, 5), torch.randn(6, 3, 5)
        lengths = torch.tensor([6, 0, 2])
        start = decoder.initial_state(final)
        want = decoder(x, start, memory, lengths)
        padding = torch.arange(6)[:, None] >= lengths
        memory = memory.masked_fill(padding[:, :, None], torch.nan).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            own = decoder.initial_state(final.bfloat16())  # as an encoder returns it here
            assert own.c.dtype == own.encoded.dtype == torch.bfloat16
            for state in (own, start):
                got = decoder(x, state, memory, lengths)
                assert got[0].dtype == got[1].c.dtype == got[2].dtype == torch.bfloat16
                close([v.float() for v in parts(*got)], parts(*want), 0.08)
            state, outputs = start, []
            for t in range(5):
                output, state, _ = decoder(x[t : t + 1].bfloat16(), state, memory.double(), lengths)
                outputs.append(output)
            close(torch.cat(outputs).float(), want[0], 0.08)
            assert all(v.dtype == torch.bfloat16 for v in (state.c, *state.window))
        got[0].float().sum().backward()
        assert memory.grad is not None and memory.grad.isfinite().all()
        for parameter in decoder.parameters():
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("autocast", [False, True])
    def test_softmax_adds_up_in_float32(self, autocast: bool, dtype: torch.dtype) -> None:
        """A sum of ones ends at 256 in bfloat16, and at 2048 in float16."""
        decoder = QRNNDecoder(3, 4, dtype=None if autocast else dtype)
        x, final, memory = (
            torch.zeros(v, dtype=decoder.attention_k.weight.dtype)
            for v in ((1, 1, 3), (1, 1, 4), (6000, 1, 4))
        )
        with torch.autocast("cpu", dtype, enabled=autocast):
            _, _, attention = decoder(x, decoder.initial_state(final), memory)
        close(attention.double(), torch.full((1, 1, 6000), 1 / 6000, dtype=WIDE), 0.004 / 6000)

    def test_other_types_need_it(self) -> None:
        decoder = QRNNDecoder(3, 4)
        with torch.autocast("cpu", torch.bfloat16):
            state = decoder.initial_state(torch.randn(1, 2, 4))
        with pytest.raises(TypeError, match=r"^state c: expected dtype torch.float32"):
            decoder(torch.randn(5, 2, 3), state, torch.randn(6, 2, 4))


@pytest.mark.parametrize("pooling", ["f", "ifo"])
def test_compile(pooling: str) -> None:
    """In one graph, with gradients, for all steps and for one."""
    decoder = make(3, 4, 2, kernel_size=3, encoder_size=5, pooling=pooling, zoneout=0.2)
    x, memory, lengths = randn(5, 3, 3), randn(6, 3, 5).requires_grad_(), torch.tensor([6, 0, 2])
    state = random_state(decoder, randn(2, 3, 5)).detach()
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    leaves = [memory, *(p for n, p in decoder.named_parameters() if "conditions" not in n)]
    for own in (x, x[:1]):
        runs = []
        for function in (compiled, decoder):
            results = parts(*function(own, state, memory, lengths))
            runs.append([*results, *torch.autograd.grad(results[0].square().sum(), leaves)])
        close(*runs)
    torch.compiler.reset()


def call(
    x: Any = (5, 2, 3), memory: Any = (6, 2, 4), lengths: Any = None, *, state: Any = None, **o: Any
) -> Callable[[], Any]:
    """A call of QRNNDecoder(3, 4, **o) with tensors of these shapes, or something else.

    state: fields of the state to replace, or what stands in its place.
    """
    decoder = QRNNDecoder(3, 4, **o)
    x, memory = (torch.zeros(v) if isinstance(v, tuple) else v for v in (x, memory))
    if not isinstance(state, (Tensor, QRNNState)):
        L = decoder.num_layers
        window = tuple(torch.zeros(v.kernel_size - 1, 2, v.input_size) for v in decoder.layers)
        start = DecoderState(torch.zeros(L, 2, 4), window, torch.zeros(L, 2, 12))
        state = start._replace(**(state or {}))
    return lambda: decoder(x, state, memory, lengths)


def build(*sizes: Any, **options: Any) -> Callable[[], Any]:
    return lambda: QRNNDecoder(*(sizes or (3, 4)), **options)


def start(final: Any) -> Callable[[], Any]:
    decoder = QRNNDecoder(3, 4, 2, encoder_size=5)
    return lambda: decoder.initial_state(torch.zeros(final) if isinstance(final, tuple) else final)


# what is called, the error, the argument that it names, what was expected, what was got
MISUSES: dict[str, tuple[Callable[[], Any], type[Exception], str, str, str]] = {
    # construction
    "input_size 0": (build(0, 4), ValueError, "input_size", "at least 1", "0"),
    "hidden_size float": (build(3, 4.0), TypeError, "hidden_size", "an int", "float"),
    "num_layers 0": (build(3, 4, 0), ValueError, "num_layers", "at least 1", "0"),
    "encoder_size 0": (build(encoder_size=0), ValueError, "encoder_size", "at least 1", "0"),
    "encoder_size bool": (build(encoder_size=True), TypeError, "encoder_size", "an int", "bool"),
    "kernel_size 0": (build(kernel_size=0), ValueError, "kernel_size", "at least 1", "0"),
    "first_kernel_size 0": (
        build(first_kernel_size=0),
        ValueError, "first_kernel_size", "at least 1", "0",
    ),
    "dropout": (build(dropout=1.1), ValueError, "dropout", "0 to 1", "1.1"),
    "attention_dropout": (
        build(attention_dropout=-0.1),
        ValueError, "attention_dropout", "0 to 1", "-0.1",
    ),
    "zoneout": (build(zoneout="0.1"), TypeError, "zoneout", "a number", "str"),
    "zoneout_eval": (
        build(zoneout_eval="avg"),
        ValueError, "zoneout_eval", "mean, none", "'avg'",
    ),
    "pooling": (build(pooling="fio"), ValueError, "pooling", "f, fo, ifo", "'fio'"),
    "forget_bias": (build(bias=False, forget_bias=1.0), ValueError, "forget_bias", "0", "1.0"),
    # initial_state
    "final list": (start([0.0]), TypeError, "encoder_final", "a Tensor", "list"),
    "final dimensions": (start((2, 5)), ValueError, "encoder_final", "(L, B, M)", "(2, 5)"),
    "final layers": (start((1, 3, 5)), ValueError, "encoder_final", "(2, 3, 5)", "(1, 3, 5)"),
    "final size": (start((2, 3, 4)), ValueError, "encoder_final", "(2, 3, 5)", "(2, 3, 4)"),
    "final type": (
        start(torch.zeros(2, 3, 5).double()),
        TypeError, "encoder_final", "float32", "float64",
    ),
    "final device": (
        start(torch.zeros(2, 3, 5, device="meta")),
        ValueError, "encoder_final", "cpu", "meta",
    ),
    # input
    "input list": (call([[0.0]]), TypeError, "input", "a Tensor", "list"),
    "input list, batch_first": (
        call([[0.0]], batch_first=True),
        TypeError, "input", "a Tensor", "list",
    ),
    "input dimensions": (call((5, 3)), ValueError, "input", "3 dimensions", "(5, 3)"),
    "input size": (call((5, 2, 4)), ValueError, "input", "a last dimension of 3", "4"),
    "input type": (call(torch.zeros(5, 2, 3).double()), TypeError, "input", "float32", "float64"),
    "input device": (call(torch.zeros(5, 2, 3, device="meta")), ValueError, "input", "cpu", "meta"),
    # state
    "state tensor": (
        call(state=torch.zeros(1, 2, 4)),
        TypeError, "state", "a DecoderState", "Tensor",
    ),
    "state of an encoder": (
        call(state=QRNN(3, 4).initial_state(2)),
        TypeError, "state", "a DecoderState", "QRNNState",
    ),
    "state of another batch": (
        call((5, 3, 3), (6, 3, 4)),
        ValueError, "state c", "(1, 3, 4)", "(1, 2, 4)",
    ),
    "state by time, batch_first": (
        call((5, 2, 3), (5, 6, 4), batch_first=True),
        ValueError, "state c", "(1, 5, 4)", "(1, 2, 4)",
    ),
    "state c type": (
        call(state={"c": torch.zeros(1, 2, 4).half()}),
        TypeError, "state c", "float32", "float16",
    ),
    "state c device": (
        call(state={"c": torch.zeros(1, 2, 4, device="meta")}),
        ValueError, "state c", "cpu", "meta",
    ),
    "encoder of another pooling": (
        call(pooling="ifo"),
        ValueError, "state encoded", "(1, 2, 16)", "(1, 2, 12)",
    ),
    "encoded None": (
        call(state={"encoded": None}),
        TypeError, "state encoded", "a Tensor", "NoneType",
    ),
    "window missing": (
        call(state={"window": ()}),
        ValueError, "state window", "1 tensors", "0",
    ),
    "window None": (call(state={"window": None}), TypeError, "state window", "a tuple", "NoneType"),
    "window width": (
        call(state={"window": (torch.zeros(2, 2, 3),)}),
        ValueError, "state window[0]", "(1, 2, 3)", "(2, 2, 3)",
    ),
    "window of another layer": (
        call(state={"window": (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))}, num_layers=2),
        ValueError, "state window[1]", "(1, 2, 4)", "(1, 2, 3)",
    ),
    # memory
    "memory None": (call((5, 2, 3), None), TypeError, "memory", "a Tensor", "NoneType"),
    "memory dimensions": (call((5, 2, 3), (6, 4)), ValueError, "memory", "3 dim", "(6, 4)"),
    "memory batch": (
        call((5, 2, 3), (6, 3, 4)),
        ValueError, "memory", "(6, 2, 4)", "(6, 3, 4)",
    ),
    "memory size": (
        call((5, 2, 3), (6, 2, 5)),
        ValueError, "memory", "(6, 2, 4)", "(6, 2, 5)",
    ),
    "memory by time, batch_first": (
        call((2, 5, 3), (6, 2, 4), batch_first=True),
        ValueError, "memory", "(2, 2, 4)", "(6, 2, 4)",
    ),
    "memory type": (
        call((5, 2, 3), torch.zeros(6, 2, 4).double()),
        TypeError, "memory", "float32", "float64",
    ),
    "memory device": (
        call((5, 2, 3), torch.zeros(6, 2, 4, device="meta")),
        ValueError, "memory", "cpu", "meta",
    ),
    # lengths
    "lengths list": (call(lengths=[6, 2]), TypeError, "lengths", "a Tensor", "list"),
    "lengths floats": (
        call(lengths=torch.tensor([6.0, 2])),
        TypeError, "lengths", "integers", "float32",
    ),
    "lengths shape": (call(lengths=torch.tensor([6])), ValueError, "lengths", "(2,)", "(1,)"),
    "lengths too large": (
        call(lengths=torch.tensor([7, 2])),
        ValueError, "lengths", "0 to 6", "[7, 2]",
    ),
    "lengths negative": (
        call(lengths=torch.tensor([6, -1])),
        ValueError, "lengths", "0 to 6", "[6, -1]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says what is wrong, before any kernel runs."""

    def kernel(*_: Any) -> None:
        pytest.fail("a kernel ran")

    monkeypatch.setattr(functional.operator, "pool", kernel)
    monkeypatch.setattr(layers.F, "linear", kernel)
    monkeypatch.setattr(decoder_module.torch, "bmm", kernel)
    misuse, error, argument, expected, got = MISUSES[name]
    with pytest.raises(error) as caught:
        misuse()
    text = str(caught.value)
    assert caught.type is error
    # check_lengths of checks.py says which argument is meant, or lengths for short
    own = r"(memory_)?lengths" if argument == "lengths" else re.escape(argument)
    pattern = rf"^{own}: expected .*{re.escape(expected)}.*, got .*{re.escape(got)}"
    assert re.search(pattern, text, re.DOTALL), text


def test_the_convolutions_are_those_of_the_layers() -> None:
    decoder = make(3, 4, 3, kernel_size=2, first_kernel_size=4, pooling="ifo")
    assert [(v.input_size, v.kernel_size) for v in decoder.layers] == [(3, 4), (4, 2), (4, 2)]
    assert all(isinstance(v, layers.QRNNLayer) and v.masked for v in decoder.layers)
    assert isinstance(decoder.layers, nn.ModuleList)
