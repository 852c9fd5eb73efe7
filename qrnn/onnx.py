"""ONNX export: what the operators of `qrnn.pooling` become, with ONNX's Scan for the recurrence.

    torch.onnx.export(
        rnn.eval(), (x,), "rnn.onnx", dynamo=True, custom_translation_table=TRANSLATIONS,
        dynamic_shapes=({0: torch.export.Dim("steps"), 1: torch.export.Dim("batch")},),
    )

after `from qrnn.onnx import TRANSLATIONS`. It needs what the extra qrnn[onnx] installs. The model
runs wherever Scan does, onnxruntime for one, on any number of steps from 1 on. As in torch, what is
of a 16-bit type is computed in float32.
"""

from collections.abc import Callable
from typing import Any, Union

import torch

from qrnn.pooling.reference import DIRECTIONS, GATES, offsets

try:
    from onnx import TensorProto
    from onnx.helper import make_tensor
    from onnxscript import BFLOAT16, DOUBLE, FLOAT, FLOAT16, graph, opset18, script
    from onnxscript.values import Opset
except ImportError as error:
    raise ImportError(
        f"{error}; ONNX export needs: pip install onnxscript, as qrnn[onnx] does"
    ) from error

Real = Union[FLOAT, DOUBLE, FLOAT16, BFLOAT16]  # noqa: UP007 (the form that onnxscript reads)
op: Any = opset18  # its operators are made at run time


def _double(value: float) -> Any:
    """A constant, which as a plain number would be rounded to float32."""
    return op.Constant(value=make_tensor("value", TensorProto.DOUBLE, [], [value]))


@script(Opset("qrnn", 1), default_opset=opset18)
def scan_forward(f: Real, x: Real, h0: Real) -> tuple[Real, Real]:
    @graph()
    def step(h, f_t, x_t):  # type: ignore[no-untyped-def]
        new = f_t * h + x_t
        return new, op.Identity(new)

    last, h = op.Scan(h0, f, x, body=step, num_scan_inputs=2)
    return h, last


@script(Opset("qrnn", 1), default_opset=opset18)
def scan_reverse(f: Real, x: Real, h0: Real) -> tuple[Real, Real]:
    @graph()
    def step(h, f_t, x_t):  # type: ignore[no-untyped-def]
        new = f_t * h + x_t
        return new, op.Identity(new)

    last, h = op.Scan(
        h0,
        f,
        x,
        body=step,
        num_scan_inputs=2,
        scan_input_directions=[1, 1],
        scan_output_directions=[1],
    )
    return h, last


def _wide(x: Any) -> Any:
    """x, in float32 if its type has 16 bits."""
    narrow = x is not None and x.dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return op.Cast(x, to=TensorProto.FLOAT) if narrow else x


def linear_recurrence(f: Any, x: Any, h0: Any, reverse: bool) -> Any:
    """qrnn::linear_recurrence."""
    h, _ = (scan_reverse if reverse else scan_forward)(*map(_wide, (f, x, h0)))
    return op.CastLike(h, x)


def pool(
    gates: Any,
    c0: Any,
    lengths: Any,
    seed: Any,
    pooling: str,
    direction: str,
    zoneout: float,
    keep_cells: bool,
    shift: int = 0,
) -> Any:
    """qrnn::pool, in evaluation."""
    if seed is not None:
        raise ValueError("zoneout: an exported model draws none; call eval() before the export")
    D, G, given = DIRECTIONS[direction], GATES[pooling], gates
    gates, c0 = _wide(gates), _wide(c0)
    zero, one = op.CastLike(0.0, gates), op.CastLike(1.0, gates)
    gates_TBDGH = op.Reshape(gates, [0, 0, D, G, -1])
    steps = op.Sub(op.Shape(gates, start=0, end=1), op.Constant(value_ints=[abs(shift)]))
    valid = last_step = None
    if lengths is not None:
        index = op.Unsqueeze(op.Range(0, op.Squeeze(steps, [0]), 1), [1, 2])
        lengths = op.Unsqueeze(lengths, [0, 2])
        valid, last_step = op.Less(index, lengths), op.Equal(index, op.Sub(lengths, 1))

    def where_valid(x: Any, padding: Any) -> Any:
        return x if valid is None else op.Where(valid, x, padding)

    def last(x: Any, reverse: bool) -> Any:
        if last_step is None or reverse:
            return op.Slice(x, [0 if reverse else -1], [1 if reverse else 2**62], [0])
        return op.ReduceSum(op.Where(last_step, x, zero), [0])

    h, cells, h_n, c_n = [], [], [], []
    for d in range(D):
        gates_TBGH = op.Gather(gates_TBDGH, d, axis=2)
        first = op.Constant(value_ints=[offsets(shift)[d]])
        gates_TBGH = op.Slice(gates_TBGH, first, op.Add(first, steps), [0])
        z, f, *rest = (op.Gather(gates_TBGH, block, axis=2) for block in range(G))
        update = op.Mul(op.Sigmoid(op.Neg(f)), op.CastLike(_double(1 - zoneout), gates))
        added = op.Mul(op.Sigmoid(rest[1]) if pooling == "ifo" else update, op.Tanh(z))
        if c0 is None:
            start = op.Expand(zero, op.Shape(z, start=1))
        else:
            start = op.Gather(c0, d, axis=0)
        reverse = direction == "reverse" or d == 1
        # a step of padding leaves the cell as it is
        f, added = where_valid(op.Sub(one, update), one), where_valid(added, zero)
        c, last_cell = (scan_reverse if reverse else scan_forward)(f, added, start)
        c_n.append(op.Unsqueeze(last_cell, [0]))
        cells.append(where_valid(c, zero))
        h.append(cells[d] if pooling == "f" else where_valid(op.Mul(op.Sigmoid(rest[0]), c), zero))
        h_n.append(last(h[d], reverse))
    kept = cells if keep_cells and pooling != "f" else [op.CastLike(op.ConstantOfShape([0]), gates)]
    results = (
        op.Concat(*h, axis=2),
        op.Concat(*kept, axis=-1),
        op.Concat(*h_n, axis=0),
        op.Concat(*c_n, axis=0),
    )
    return tuple(op.CastLike(result, given) for result in results)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.qrnn.pool.default: pool,
    torch.ops.qrnn.linear_recurrence.default: linear_recurrence,
}
"""For torch.onnx.export(custom_translation_table=...)."""
