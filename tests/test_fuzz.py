"""Random calls of everything public: no crash, no hang, no wrong shape, no NaN from finite numbers.

Arguments are valid, or one of them is not. A valid call has to return the documented shapes, an
invalid one to raise a ValueError or TypeError that begins with an argument's name. `make fuzz` runs
100,000 cases (CASES=n: others), the test suite a sample.
"""

import math
import os
import re
from datetime import timedelta
from random import Random
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from qrnn import (
    QRNN,
    QRNNDecoder,
    QRNNLayer,
    QRNNState,
    f_pool,
    fo_pool,
    ifo_pool,
    linear_recurrence,
    torchqrnn,
)
from qrnn.convert import from_torchqrnn, to_torchqrnn
from qrnn.functional import pool

CASES = os.environ.get("QRNN_FUZZ_CASES")
TESTS = 7
fuzzed = settings(
    max_examples=-(-int(CASES or 420) // TESTS),
    derandomize=CASES is None,
    database=None,
    deadline=timedelta(minutes=1),  # a hang; the first call of a kind may compile
    suppress_health_check=list(HealthCheck),
)

SEEDS = st.integers(0, 2**64 - 1)
"""All of a case: drawing each of its values from hypothesis would take ten times as long."""

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BLOCKS = {"f": 2, "fo": 3, "ifo": 4}
DIRECTIONS = {"forward": 1, "reverse": 1, "both": 2}
JUNK = [
    *(None, True, False, -1, 0, 1, 2, 10**30, 0.5, -0.5, 1.5, float("nan"), float("inf"), 1j),
    *("", "fo", "both", "none", b"fo", (), [], [1], {}, torch.float32, object(), QRNN),
    *(np.float64(0.5), np.int64(2), torch.ones(()), torch.ones(2)),
]
NAMED = re.compile(r"\w[\w. \[\]]*: (expected|running)")


def maybe(pick: Random, value: Any) -> Any:
    return pick.choice([None, value])


def tensors(pick: Random, *shape: int, dtype: Any = torch.float32, most: float = 1e3) -> Tensor:
    """Finite numbers of any size up to `most`, in any layout, with or without a gradient."""
    generator = torch.Generator().manual_seed(pick.getrandbits(32))
    scale = pick.choice([0.0, 1e-30, 1.0, 30.0, most])
    if pick.random() < 0.5:
        value = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    else:
        value = torch.randint(2, shape, generator=generator).double() * 2 - 1
    value = (value * min(scale, most)).to(dtype)
    layout = pick.choice(["plain", "transposed", "strided", "expanded"])
    if layout == "transposed" and len(shape) > 1:
        value = value.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "strided" and shape:
        value = torch.stack([value, torch.full_like(value, torch.nan)], -1)[..., 0]
    elif layout == "expanded" and shape and shape[0]:
        value = value[:1].expand(shape)
    return value.requires_grad_() if pick.random() < 0.5 else value


def spoilt(pick: Random, value: Any) -> Any:
    """Something else in the place of a valid argument; it may be valid as well."""
    if not isinstance(value, Tensor) or pick.random() < 0.5:
        return pick.choice(JUNK)
    kind = pick.choice(["shape", "dtype", "device", "kind"])
    if kind == "shape":
        return torch.zeros(
            [pick.randint(0, 5) for _ in range(pick.randint(0, 4))], dtype=value.dtype
        )
    if kind == "dtype":
        others = [*FLOATS, torch.int64, torch.int8, torch.bool, torch.complex64]
        return torch.ones(value.shape, dtype=pick.choice(others))
    if kind == "device":
        return value.detach().to("meta")
    return value.detach().float().numpy()


def with_one_spoilt(pick: Random, arguments: dict[str, Any]) -> dict[str, Any]:
    if pick.random() < 0.3:
        return arguments
    name = pick.choice(sorted(arguments))
    return arguments | {name: spoilt(pick, arguments[name])}


def attempt(call: Any, *arguments: Any, **named: Any) -> Any:
    """The result, or None if the call was refused as it should be."""
    try:
        return call(*arguments, **named)
    except (ValueError, TypeError) as error:
        assert NAMED.match(str(error)), f"{type(error).__name__}: {error}"
        return None


def is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def is_one_of(value: Any, choices: Any) -> bool:
    return isinstance(value, str) and value in choices


def is_tensor(value: Any, shape: Any, dtype: torch.dtype) -> bool:
    """Of this shape (None: any size) and dtype, on the CPU."""
    return (
        isinstance(value, Tensor)
        and value.dtype == dtype
        and value.device.type == "cpu"
        and len(value.shape) == len(shape)
        and all(want in (None, size) for size, want in zip(value.shape, shape, strict=True))
    )


def are_lengths(value: Any, batch: int, steps: int) -> bool:
    integers = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    if value is None:
        return True
    if not any(is_tensor(value, (batch,), dtype) for dtype in integers):
        return False
    return all(0 <= n <= steps for n in value.tolist())


def lengths_of(pick: Random, batch: int, steps: int) -> Tensor | None:
    if pick.random() < 0.5:
        return None
    values = [pick.randint(0, steps) for _ in range(batch)]
    return torch.tensor(values, dtype=pick.choice([torch.int64, torch.int32]))


def verify(results: Any, shapes: list[tuple[int, ...]], dtype: torch.dtype, leaves: Any) -> None:
    """Shapes, dtypes, finite numbers, and gradients that are numbers."""
    for result, shape in zip(results, shapes, strict=True):
        assert tuple(result.shape) == shape and result.dtype == dtype
        assert result.isfinite().all()
    sums = [result.double().sum() for result in results if result.requires_grad]
    leaves = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if sums and leaves:
        for gradient in torch.autograd.grad(sum(sums), leaves, allow_unused=True):
            assert gradient is None or not gradient.isnan().any()


@fuzzed
@given(SEEDS)
def test_pools(seed: int) -> None:
    pick = Random(seed)
    pooling, direction = pick.choice([*BLOCKS]), pick.choice([*DIRECTIONS])
    T, B, H = (pick.randint(0, 5) for _ in range(3))
    D, G, dtype = DIRECTIONS[direction], BLOCKS[pooling], pick.choice(FLOATS)
    most = 6e4 if dtype == torch.float16 else 1e30
    options = {"training": pick.random() < 0.5}
    arguments = with_one_spoilt(
        pick,
        {
            "gates": tensors(pick, T, B, D * G * H, dtype=dtype, most=most),
            "c0": maybe(pick, tensors(pick, D, B, H, dtype=dtype, most=most)),
            "lengths": lengths_of(pick, B, T),
            "direction": direction,
            "zoneout": pick.choice([0, 0.0, 0.3, 1]),
            "zoneout_eval": pick.choice(["mean", "none"]),
            "pooling": pooling,
        },
    )
    gates, pooling, direction = (arguments[k] for k in ("gates", "pooling", "direction"))
    valid = (
        is_one_of(pooling, BLOCKS)
        and is_one_of(direction, DIRECTIONS)
        and is_one_of(arguments["zoneout_eval"], ["mean", "none"])
        and is_rate(arguments["zoneout"])
        and any(is_tensor(gates, (None,) * 3, dtype) for dtype in FLOATS)
        and gates.shape[2] % (DIRECTIONS[direction] * BLOCKS[pooling]) == 0
    )
    if valid:
        T, B, D, dtype = *gates.shape[:2], DIRECTIONS[direction], gates.dtype
        H = gates.shape[2] // (D * BLOCKS[pooling])
        c0 = arguments["c0"]
        valid = c0 is None or is_tensor(c0, (D, B, H), dtype)
        valid = valid and are_lengths(arguments["lengths"], B, T)
    result = attempt(pool, **arguments, **options)
    if isinstance(gates, Tensor) and gates.device.type == "meta":
        return
    assert (result is not None) == valid
    if valid:
        leaves = [gates, arguments["c0"]]
        verify(result, [(T, B, D * H), (D, B, H), (D, B, H)], dtype, leaves)
        if not arguments["zoneout"]:
            del arguments["pooling"]
            named = {"f": f_pool, "fo": fo_pool, "ifo": ifo_pool}[pooling](**arguments)
            assert torch.equal(named[0], result[0]) and torch.equal(named[1], result[2])


@fuzzed
@given(SEEDS)
def test_recurrences(seed: int) -> None:
    pick = Random(seed)
    T, B, H = (pick.randint(0, 5) for _ in range(3))
    dtype = pick.choice(FLOATS)
    start = maybe(pick, tensors(pick, B, H, dtype=dtype))
    f = tensors(pick, T, B, H, dtype=dtype, most=1.0)
    arguments = with_one_spoilt(
        pick, {"f": f, "x": tensors(pick, T, B, H, dtype=dtype), "start": start}
    )
    f, x, start = arguments.values()
    kind = pick.choice([False, True, torchqrnn.ForgetMult, torchqrnn.BackwardForgetMult])
    if isinstance(kind, bool):
        result = attempt(linear_recurrence, f, x, start, reverse=kind)
    else:
        result = attempt(kind(), f, x, start)
    if isinstance(f, Tensor) and f.device.type == "meta":
        return
    valid = (
        any(is_tensor(f, (None,) * 3, dtype) for dtype in FLOATS)
        and is_tensor(x, f.shape, f.dtype)
        and (
            start is None
            or is_tensor(start, f.shape[1:], f.dtype)
            or (not isinstance(kind, bool) and is_tensor(start, (1, *f.shape[1:]), f.dtype))
        )
    )
    assert (result is not None) == valid
    if valid:
        verify([result], [tuple(f.shape)], f.dtype, [f, x, start])


STACK: dict[str, Any] = {
    "input_size": [1, 2, 3, 4],
    "hidden_size": [1, 2, 3, 4],
    "num_layers": [1, 2, 3],
    "dropout": [0, 0.5, 1.0],
    "kernel_size": [1, 2, 3, 4],
    "first_kernel_size": [None, 1, 2, 3, 7],
    "pooling": [*BLOCKS],
    "zoneout": [0, 0.3, 1.0],
    "zoneout_eval": ["mean", "none"],
    "forget_bias": [0, 0.0, -1.5, 100.0],
    "weight_dropout": [0, 0.5, 1.0],
}
FLAGS = ["bias", "batch_first", "bidirectional", "dense", "masked"]


def make(pick: Random, kind: type[nn.Module], names: list[str], flags: list[str]) -> Any:
    """A module and its options, or None where one of them is wrong."""
    options = {name: pick.choice(STACK[name]) for name in names}
    options = with_one_spoilt(pick, options | {name: pick.random() < 0.5 for name in flags})
    options["dtype"] = pick.choice(FLOATS)
    sizes = ["input_size", "hidden_size", "num_layers", "kernel_size"]
    first, bias = options.get("first_kernel_size"), options["forget_bias"]
    valid = (
        all(is_int(options[name], 1) for name in sizes if name in options)
        and (first is None or is_int(first, 1))
        and is_one_of(options["pooling"], BLOCKS)
        and is_one_of(options["zoneout_eval"], ["mean", "none"])
        and is_rate(options["zoneout"])
        and is_rate(options.get("dropout", 0))
        and is_rate(options.get("weight_dropout", 0))
        and all(isinstance(options[name], int) and options[name] in (0, 1) for name in flags)
        and isinstance(bias, (int, float))
        and not isinstance(bias, bool)
        and math.isfinite(bias)
        and (options["bias"] or not bias)
    )
    if any(value == 10**30 for value in options.values() if isinstance(value, int)):
        return None  # a valid size, but of no machine
    module = attempt(kind, **options)
    assert (module is not None) == bool(valid)
    return module and (module.train(pick.random() < 0.5), options)


def magnitude(dtype: torch.dtype) -> float:
    """Sums of products of such inputs are finite."""
    return 100.0 if dtype == torch.float16 else 1e4


def windows(state: Any) -> tuple[Tensor, ...]:
    return state.window if isinstance(state, QRNNState) else ()


@fuzzed
@given(SEEDS)
def test_stacks(seed: int) -> None:
    pick = Random(seed)
    made = make(pick, QRNN, [*STACK], FLAGS)
    if made is None:
        return
    rnn, options = made
    dtype, most = options["dtype"], magnitude(options["dtype"])
    L, D, I, H = rnn.num_layers, 1 + rnn.bidirectional, rnn.input_size, rnn.hidden_size
    T, B = pick.randint(0, 6), pick.randint(0, 3)
    single = pick.random() < 0.5 and pick.random() < 0.5
    first = rnn.batch_first and not single
    batch = () if single else (B,)
    h, c = (tensors(pick, L * D, *batch, H, dtype=dtype, most=most) for _ in range(2))
    widest = max(layer.kernel_size for layer in rnn.layers)
    streams = not rnn.bidirectional and (rnn.layers[0].masked or widest == 1)
    state: Any = pick.choice([None, "tuple", "stream"])
    if state == "tuple":
        state = (h, c)
    elif state == "stream":
        if single:
            B = 1
        state = attempt(rnn.initial_state, B)
        assert (state is not None) == streams
    shape = (*batch, T, I) if first else (T, *batch, I)
    lengths = None if single else lengths_of(pick, B, T)
    x = tensors(pick, *shape, dtype=dtype, most=most)
    arguments = with_one_spoilt(pick, {"input": x, "hx": state, "lengths": lengths})
    x, hx, lengths = arguments.values()

    valid = x is not None and any(is_tensor(x, (None,) * n, dtype) for n in (2, 3))
    if valid:
        valid = x.shape[-1] == I
        single, first = x.dim() == 2, rnn.batch_first and x.dim() == 3
        T, B = (x.shape[0], 1) if single else x.shape[:2][:: -1 if first else 1]
        valid = valid and (lengths is None if single else are_lengths(lengths, B, T))
        if isinstance(hx, QRNNState):
            valid = valid and is_tensor(hx.h, (L, B, H), dtype)
        elif hx is not None:
            own = (L * D, H) if single else (L * D, B, H)
            valid = valid and isinstance(hx, tuple) and len(hx) == 2
            valid = valid and all(is_tensor(v, own, dtype) for v in hx)
    result = attempt(rnn, **arguments)
    assert (result is not None) == valid
    if not valid:
        return
    output, after = result
    assert isinstance(after, QRNNState) == isinstance(hx, QRNNState)
    own = (L * D, H) if single and not isinstance(after, QRNNState) else (L * D, B, H)
    width = D * H
    outer = (T, width) if single else (B, T, width) if first else (T, B, width)
    leaves = [x, *(hx or ())[:2], *rnn.parameters()]
    shapes = [outer, own, own, *(tuple(v.shape) for v in windows(hx))]
    verify([output, *after[:2], *windows(after)], shapes, dtype, leaves)
    if lengths is not None:
        steps = output.transpose(0, 1) if first else output
        assert not steps[torch.arange(T)[:, None] >= lengths].any()


@fuzzed
@given(SEEDS)
def test_packed(seed: int) -> None:
    """A PackedSequence gives what lengths give."""
    pick = Random(seed)
    made = make(pick, QRNN, ["input_size", "hidden_size", *[*STACK][2:]], FLAGS)
    if made is None:
        return
    rnn, dtype = made[0].eval(), made[1]["dtype"]
    T, B = pick.randint(1, 6), pick.randint(1, 4)
    lengths = torch.tensor([pick.randint(1, T) for _ in range(B)])
    T = int(lengths.max())
    is_sorted = pick.random() < 0.5
    if is_sorted:
        lengths = lengths.sort(descending=True).values
    x = tensors(pick, T, B, rnn.input_size, dtype=dtype, most=magnitude(dtype))
    packed = pack_padded_sequence(x, lengths, enforce_sorted=is_sorted)
    output, state = rnn(packed)
    assert isinstance(output, PackedSequence)
    padded, n = pad_packed_sequence(output)
    assert torch.equal(n, lengths)
    want, want_state = rnn(x.transpose(0, 1) if rnn.batch_first else x, lengths=lengths)
    want = want.transpose(0, 1) if rnn.batch_first else want
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(dtype, 0.1)
    for a, b in zip((padded, *state), (want, *want_state), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@fuzzed
@given(SEEDS)
def test_layers(seed: int) -> None:
    pick = Random(seed)
    names = ["input_size", "hidden_size", "kernel_size", "pooling", "zoneout", "zoneout_eval"]
    names += ["forget_bias", "weight_dropout"]
    made = make(pick, QRNNLayer, names, ["bias", "bidirectional", "masked"])
    if made is None:
        return
    layer, dtype = made[0], made[1]["dtype"]
    T, B, D, H = (
        pick.randint(0, 6),
        pick.randint(0, 3),
        layer.directions,
        layer.hidden_size,
    )
    most = magnitude(dtype)
    state = maybe(pick, tuple(tensors(pick, D, B, H, dtype=dtype, most=most) for _ in range(2)))
    x = tensors(pick, T, B, layer.input_size, dtype=dtype, most=most)
    arguments = with_one_spoilt(pick, {"x": x, "state": state, "lengths": lengths_of(pick, B, T)})
    x, state, lengths = arguments.values()
    valid = is_tensor(x, (None, None, layer.input_size), dtype)
    if valid:
        T, B, _ = x.shape
        valid = are_lengths(lengths, B, T) and (
            state is None
            or (
                (isinstance(state, tuple) and len(state) == 2)
                and all(is_tensor(v, (D, B, H), dtype) for v in state)
            )
        )
    result = attempt(layer, **arguments)
    assert (result is not None) == valid
    if valid:
        output, (h, c) = result
        leaves = [x, *(state or ()), *layer.parameters()]
        verify([output, h, c], [(T, B, D * H), (D, B, H), (D, B, H)], dtype, leaves)


@fuzzed
@given(SEEDS)
def test_decoders(seed: int) -> None:
    pick = Random(seed)
    made = make(pick, QRNNDecoder, [*STACK][:-1], ["bias", "batch_first"])
    if made is None:
        return
    decoder, dtype = made[0], made[1]["dtype"]
    most = 1.0 if dtype == torch.float16 else 100.0
    L, I, H = decoder.num_layers, decoder.input_size, decoder.hidden_size
    T, B, S = pick.randint(0, 5), pick.randint(0, 3), pick.randint(0, 5)
    final = tensors(pick, L, B, H, dtype=dtype, most=most)
    if pick.random() < 0.5:
        final = spoilt(pick, final)
    state = attempt(decoder.initial_state, final)
    valid = is_tensor(final, (L, None, H), dtype)
    assert (state is not None) == valid
    if not valid:
        return
    B, flip = final.shape[1], decoder.batch_first
    x = tensors(pick, *((B, T) if flip else (T, B)), I, dtype=dtype, most=most)
    memory = tensors(pick, *((B, S) if flip else (S, B)), H, dtype=dtype, most=most)
    names = ("input", "state", "memory", "memory_lengths")
    arguments = dict(zip(names, (x, state, memory, lengths_of(pick, B, S)), strict=True))
    arguments = with_one_spoilt(pick, arguments)
    x, own, memory, lengths = arguments.values()
    outer = (B, None) if flip else (None, B)
    valid = is_tensor(x, (*outer, I), dtype) and is_tensor(memory, (*outer, H), dtype)
    valid = valid and own is state
    if valid:
        T, S = x.shape[flip], memory.shape[flip]
        valid = are_lengths(lengths, B, S)
    result = attempt(decoder, **arguments)
    assert (result is not None) == valid
    if valid:
        output, after, attention = result
        shape = (B, T) if flip else (T, B)
        leaves = [x, memory, *decoder.parameters()]
        results = [output, attention, after.c, *after.window]
        shapes = [(*shape, H), (*shape, S), (L, B, H), *(tuple(v.shape) for v in state.window)]
        verify(results, shapes, dtype, leaves)
        if B:
            index = torch.randint(B, (pick.randint(0, 4),))
            assert after.select(index).c.shape == (L, len(index), H)


@fuzzed
@given(SEEDS)
def test_torchqrnn_and_convert(seed: int) -> None:
    pick = Random(seed)
    options = with_one_spoilt(
        pick,
        {
            "input_size": pick.randint(1, 4),
            "hidden_size": maybe(pick, pick.randint(1, 4)),
            "num_layers": pick.randint(1, 3),
            "dropout": pick.choice([0, 0.5, 1.0]),
            "window": pick.randint(1, 4),
            "zoneout": pick.choice([0, 0.3, 1]),
        },
    )
    gate = pick.random() < 0.5
    valid = (
        all(is_int(options[name], 1) for name in ("input_size", "num_layers", "window"))
        and (options["hidden_size"] is None or is_int(options["hidden_size"], 1))
        and is_rate(options["dropout"])
        and is_rate(options["zoneout"])
    )
    if 10**30 in [value for value in options.values() if isinstance(value, int)]:
        return
    save = pick.random() < 0.5
    rnn = attempt(torchqrnn.QRNN, **options, output_gate=gate, save_prev_x=save)
    assert (rnn is not None) == valid
    if not valid:
        return
    rnn.train(pick.random() < 0.5)
    L, I, H = rnn.num_layers, rnn.input_size, rnn.hidden_size
    T, B = pick.randint(0, 5), pick.randint(0, 3)
    for _ in range(2):
        hidden = maybe(pick, tensors(pick, L, B, H))
        arguments = {"input": tensors(pick, T, B, I), "hidden": hidden}
        arguments = with_one_spoilt(pick, arguments)
        x, hidden = arguments.values()
        result = attempt(rnn, **arguments)
        valid = is_tensor(x, (None, None, I), torch.float32)
        saved = rnn.layers[0].prevX
        if valid and result is None and saved is not None:
            valid = x.shape[1] == saved.shape[1]
        if valid and isinstance(hidden, Tensor):
            valid = is_tensor(hidden, (L, x.shape[1], H), torch.float32)
        elif valid and hidden is not None:
            entries = list(hidden) if isinstance(hidden, (list, tuple)) else []
            valid = len(entries) == L and all(
                any(is_tensor(v, (*one, x.shape[1], H), torch.float32) for one in ((), (1,)))
                for v in entries
            )
        assert (result is not None) == valid
        if valid:
            shapes = [(*x.shape[:2], H), (L, x.shape[1], H)]
            leaves = [x, *([hidden] if isinstance(hidden, Tensor) else []), *rnn.parameters()]
            verify(result, shapes, torch.float32, leaves)
    new = QRNN(I, H, L, kernel_size=options["window"], pooling="fo" if gate else "f")
    weights = from_torchqrnn(rnn.state_dict(), new)
    new.load_state_dict(weights)
    back = to_torchqrnn(new)
    assert all(torch.equal(back[name], value) for name, value in rnn.state_dict().items())
    if back.keys():
        broken = back | {pick.choice(sorted(back)): spoilt(pick, tensors(pick, 2, 3))}
        attempt(from_torchqrnn, broken, new)


def test_the_number_of_tests() -> None:
    """So that the number of cases is what is asked for."""
    fuzz = [value for name, value in globals().items() if name.startswith("test_")]
    assert len([value for value in fuzz if hasattr(value, "hypothesis")]) == TESTS
