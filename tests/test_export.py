"""torch.compile, torch.export and ONNX: what is exported computes what the module does."""

import importlib
import io
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qrnn import QRNN, QRNNDecoder, QRNNState, functional, linear_recurrence, torchqrnn
from qrnn.convolution import MANY_ROWS
from qrnn.decoder import DecoderState

STEPS, BATCH = Dim("steps"), Dim("batch")
SIZES = [(1, 1), (2, 1), (1, 3), (9, 4), (40, 2)]
TIME_MAJOR = {0: STEPS, 1: BATCH}

FORMS = {
    "default": {},
    "encoder": {
        "bidirectional": True,
        "dense": True,
        "kernel_size": 3,
        "masked": False,
        "pooling": "ifo",
        "zoneout": 0.2,
    },
    "f": {"pooling": "f", "kernel_size": 1, "bias": False},
}


def make(**options: Any) -> QRNN:
    return QRNN(3, 4, 2, **options).eval()


def inputs(steps: int, batch: int, lengths: bool) -> tuple[Any, ...]:
    x = torch.randn(steps, batch, 3)
    return (x, None, torch.randint(0, steps + 1, (batch,))) if lengths else (x,)


def shapes(lengths: bool) -> tuple[Any, ...]:
    return (TIME_MAJOR, None, {0: BATCH}) if lengths else (TIME_MAJOR,)


def streaming(rnn: QRNN) -> tuple[Any, ...]:
    """An input and a state for an export, and which of their dimensions may change."""
    own = ({1: BATCH},) * rnn.num_layers
    dynamic = TIME_MAJOR, QRNNState({1: BATCH}, {1: BATCH}, own)  # type: ignore[arg-type]
    return (torch.randn(5, 2, 3), rnn.initial_state(2)), dynamic


SOURCE = Dim("source")
DECODING = (
    TIME_MAJOR,
    DecoderState({1: BATCH}, ({1: BATCH},) * 2, {1: BATCH}),  # type: ignore[arg-type]
    {0: SOURCE, 1: BATCH},
    {0: BATCH},
)


def decoding(decoder: QRNNDecoder, steps: int, batch: int, source: int) -> tuple[Any, ...]:
    """Input, state, memory and its lengths."""
    M = decoder.encoder_size
    state = decoder.initial_state(torch.randn(2, batch, M)).detach()
    lengths = torch.randint(0, source + 1, (batch,))
    return torch.randn(steps, batch, 3), state, torch.randn(source, batch, M), lengths


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def flat(results: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(results)


class TestCompile:
    """Of our QRNN: tests/pooling/test_operator.py."""

    def teardown_method(self) -> None:
        torch.compiler.reset()

    def test_torchqrnn(self) -> None:
        rnn = torchqrnn.QRNN(3, 4, 2, window=2, save_prev_x=True)
        compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
        x, hidden = torch.randn(5, 2, 3), torch.randn(2, 2, 4)
        results = []
        for function in (rnn, compiled):
            rnn.reset()
            function(x, hidden)
            output, last = function(x, hidden)
            grads = torch.autograd.grad(output.sum(), list(rnn.parameters()))
            results.append([output, last, *grads])
        close(results[1], results[0])

    def test_any_size_without_compiling_again(self) -> None:
        rnn = make()
        compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager", dynamic=True)
        for steps, batch in ((5, 2), (7, 3)):
            close(compiled(torch.ones(steps, batch, 3)), rnn(torch.ones(steps, batch, 3)))
        with torch.compiler.set_stance("fail_on_recompile"):
            close(compiled(torch.ones(40, 9, 3)), rnn(torch.ones(40, 9, 3)))


class TestTorchExport:
    @pytest.mark.parametrize("form, lengths", [("default", False), ("encoder", True), ("f", False)])
    def test_any_steps_and_batch_also_when_saved(self, form: str, lengths: bool) -> None:
        rnn, file = make(**FORMS[form]), io.BytesIO()
        program = torch.export.export(rnn, inputs(5, 2, lengths), dynamic_shapes=shapes(lengths))
        torch.export.save(program, file)
        file.seek(0)
        program = torch.export.load(file)
        for steps, batch in SIZES:
            x = inputs(steps, batch, lengths)
            close(program.module()(*x), rnn(*x))

    def test_streaming(self) -> None:
        rnn = make(kernel_size=3)
        args, dynamic = streaming(rnn)
        run = torch.export.export(rnn, args, dynamic_shapes=dynamic).module()
        x, state, outputs = torch.randn(6, 4, 3), rnn.initial_state(4), []
        for piece in x.split([1, 1, 3, 1]):
            output, state = run(piece, state)
            outputs.append(output)
        want, (h, c) = rnn(x)
        close((torch.cat(outputs), state.h, state.c), (want, h, c))

    def test_saved_with_its_state(self) -> None:
        rnn, file = make(kernel_size=3), io.BytesIO()
        args, dynamic = streaming(rnn)
        torch.export.save(torch.export.export(rnn, args, dynamic_shapes=dynamic), file)
        file.seek(0)
        _, state = torch.export.load(file).module()(*args)
        assert isinstance(state, QRNNState)
        close(flat(state), flat(rnn(*args)[1]))

    @pytest.mark.parametrize("encoder_size", [4, 5])
    def test_decoder(self, encoder_size: int) -> None:
        decoder, file = QRNNDecoder(3, 4, 2, encoder_size=encoder_size).eval(), io.BytesIO()
        program = torch.export.export(decoder, decoding(decoder, 5, 2, 7), dynamic_shapes=DECODING)
        torch.export.save(program, file)
        file.seek(0)
        run = torch.export.load(file).module()
        for sizes in ((5, 2, 7), (1, 1, 1), (9, 3, 2)):
            args = decoding(decoder, *sizes)
            close(flat(run(*args)), flat(decoder(*args)))

    @pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
    def test_a_gradient_that_was_not_wanted_then(self, pooling: str) -> None:
        rnn, x = make(pooling=pooling).requires_grad_(False), torch.randn(5, 2, 3)
        with torch.no_grad():
            program = torch.export.export(rnn, (x,))
        x.requires_grad_()
        found, want = (torch.autograd.grad(f(x)[0].sum(), x) for f in (program.module(), rnn))
        close(found, want)

    def test_torchqrnn(self) -> None:
        rnn = torchqrnn.QRNN(3, 4, 2, window=2).eval()
        args = torch.randn(5, 2, 3), torch.randn(2, 2, 4)
        program = torch.export.export(rnn, args, dynamic_shapes=(TIME_MAJOR, {1: BATCH}))
        for steps, batch in SIZES:
            args = torch.randn(steps, batch, 3), torch.randn(2, batch, 4)
            close(program.module()(*args), rnn(*args))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_trace_is_saved_and_trained_on() -> None:
    rnn, x, file = make(), torch.randn(MANY_ROWS, 1, 3, requires_grad=True), io.BytesIO()
    torch.jit.save(torch.jit.trace(rnn, x), file)
    file.seek(0)
    traced = torch.jit.load(file)
    close(traced(x), rnn(x))
    close(*(torch.autograd.grad(f(x)[0].sum(), x) for f in (traced, rnn)))


class Streaming(nn.Module):
    """Makes its own zero state, for a batch whose size is known only when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = make()

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x, self.rnn.initial_state(x.shape[1]))
        return output


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("strict", [False, True, None])
def test_a_zero_state_of_any_batch(strict: bool | None) -> None:
    module, x = Streaming(), torch.randn(5, 2, 3)
    if strict is None:
        program = torch.jit.trace(module, x)
    else:
        exported = torch.export.export(module, (x,), dynamic_shapes=(TIME_MAJOR,), strict=strict)
        program = exported.module()
    for steps, batch in SIZES:
        x = torch.randn(steps, batch, 3)
        close(program(x), module(x))


class Pool(nn.Module):
    def __init__(self, pooling: str, direction: str) -> None:
        super().__init__()
        self.pooling, self.direction = pooling, direction

    def forward(self, gates: Tensor, c0: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        return functional.pool(
            self.pooling, gates, c0, lengths=lengths, direction=self.direction, zoneout=0.3
        )


class Recurrence(nn.Module):
    def forward(self, f: Tensor, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        return linear_recurrence(f, x, h0), linear_recurrence(f, x, h0, reverse=True)


@pytest.mark.filterwarnings(
    # torch's exporter about itself, and about names of axes
    "ignore:.isinstance.treespec, LeafSpec.:FutureWarning",
    "ignore:# The axis name",
    "ignore:# ONNX model has different",
)
class TestONNX:
    @pytest.fixture(autouse=True)
    def onnx(self) -> None:
        needed = "ONNX export is optional: pip install onnxscript"
        for module in ("onnxscript", "onnxruntime"):
            pytest.importorskip(module, reason=needed)

    def session(self, module: nn.Module, args: tuple[Any, ...], dynamic: Any) -> Any:
        """A function that takes the module's arguments and runs onnxruntime."""
        import onnxruntime

        from qrnn.onnx import TRANSLATIONS

        program = torch.onnx.export(
            module.eval(),
            args,
            dynamo=True,
            dynamic_shapes=dynamic,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
        model = program.model_proto
        assert [(o.domain, o.version >= 18) for o in model.opset_import] == [("", True)]
        assert "Scan" in {node.op_type for node in model.graph.node}
        session = onnxruntime.InferenceSession(model.SerializeToString())
        names = [value.name for value in session.get_inputs()]

        def run(*args: Any) -> list[Tensor]:
            values = [value.numpy() for value in flat(args) if value is not None]
            feed = dict(zip(names, values, strict=True))
            return [torch.from_numpy(np.asarray(v)) for v in session.run(None, feed)]

        return run

    @pytest.mark.parametrize("form, lengths", [("default", False), ("encoder", True)])
    def test_any_steps_and_batch(self, form: str, lengths: bool) -> None:
        rnn = make(**FORMS[form])
        run = self.session(rnn, inputs(5, 2, lengths), shapes(lengths))
        for steps, batch in SIZES:
            x = inputs(steps, batch, lengths)
            close(run(*x), flat(rnn(*x)))

    def test_float64_stays_exact(self) -> None:
        rnn = make(zoneout=0.3, dtype=torch.float64)
        x = torch.randn(5, 2, 3, dtype=torch.float64)
        found = self.session(rnn, (x,), None)(x)
        torch.testing.assert_close(found, flat(rnn(x)), rtol=0, atol=1e-13)

    def test_float16_is_computed_in_float32(self) -> None:
        """A long memory adds up steps that are too small for float16 beside the sum."""
        rnn = QRNN(1, 1, kernel_size=1, pooling="f", forget_bias=8.0).half()
        x = torch.ones(2000, 1, 1, dtype=torch.float16)
        for found, expected in zip(self.session(rnn, (x,), None)(x), flat(rnn(x)), strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)
        args = torch.full_like(x, 0.9995), x / 2**11, x[0] / 2
        found, expected = self.session(Recurrence(), args, None)(*args), Recurrence()(*args)
        torch.testing.assert_close(found, flat(expected), rtol=2e-3, atol=0)

    def test_streaming_step_by_step(self) -> None:
        rnn = make(kernel_size=3)
        args, dynamic = streaming(rnn)
        run = self.session(rnn, args, dynamic)
        x, state, outputs = torch.randn(6, 4, 3), rnn.initial_state(4), []
        for piece in x.split([1, 1, 3, 1]):
            output, h, c, *window = run(piece, state)
            state = QRNNState(h, c, tuple(window))
            outputs.append(output)
        want, after = rnn(x, rnn.initial_state(4))
        close([torch.cat(outputs), *flat(state)], [want, *flat(after)])

    def test_decoder(self) -> None:
        decoder = QRNNDecoder(3, 4, 2).eval()
        run = self.session(decoder, decoding(decoder, 5, 2, 7), DECODING)
        for sizes in ((5, 2, 7), (1, 1, 1), (9, 3, 2)):
            args = decoding(decoder, *sizes)
            close(run(*args), flat(decoder(*args)))

    @pytest.mark.parametrize("pooling, direction", [("f", "reverse"), ("fo", "both")])
    def test_padding_is_never_read(self, pooling: str, direction: str) -> None:
        module, D = Pool(pooling, direction), 1 + (direction == "both")
        G = 2 if pooling == "f" else 3

        def arguments(T: int, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
            gates, n = torch.randn(T, len(lengths), D * G * 4), torch.tensor(lengths)
            gates[torch.arange(T)[:, None] >= n] = torch.nan
            return gates, torch.randn(D, len(lengths), 4), n

        run = self.session(module, arguments(4, [4, 2]), (TIME_MAJOR, {1: BATCH}, {0: BATCH}))
        for T, lengths in ((1, [1]), (6, [0, 6, 3])):
            args = arguments(T, lengths)
            want = module(*args)
            assert want[0].isfinite().all()
            close(run(*args), list(want))

    def test_linear_recurrence(self) -> None:
        module = Recurrence()
        args = [torch.rand(5, 2, 3), torch.randn(5, 2, 3), torch.randn(2, 3)]
        run = self.session(module, tuple(args), (TIME_MAJOR, TIME_MAJOR, {0: BATCH}))
        args = [torch.rand(7, 4, 3), torch.randn(7, 4, 3), torch.randn(4, 3)]
        close(run(*args), list(module(*args)))

    def test_training_is_refused(self) -> None:
        from qrnn.onnx import pool

        with pytest.raises(ValueError, match=r"zoneout: .*eval\(\)"):
            pool(None, None, None, torch.tensor(1), "fo", "forward", 0.5, False)


def test_onnx_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "qrnn.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install onnxscript, as qrnn\[onnx\] does"):
        importlib.import_module("qrnn.onnx")
