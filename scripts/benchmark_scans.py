"""The benchmark's suites of recurrences: scan and peers (scripts/benchmark.py)."""

from collections.abc import Iterator
from itertools import product

import peers as neighbours
import torch
from timing import Device, Function, Row, calls, race, ratio, reason, replays, rotation, verify
from torch import Tensor
from torch.nn import functional as F

from qrnn import linear_recurrence
from qrnn.pooling import operator

PASSES = ("forward", "forward+backward")

COLUMNS = ((1, 320), (8, 320), (64, 320), (512, 320), (1024, 1024))  # B, H
STEPS = (64, 512, 8192, 65_536)

PEER_SHAPES = {  # B, T, H; powers of 2 for accelerated-scan
    "cpu": ((16, 64, 320), (32, 512, 320), (4, 4096, 320)),
    "cuda": (
        (16, 64, 320),
        (20, 128, 640),
        (32, 512, 320),
        (256, 512, 320),
        (8, 8192, 320),
        (16, 4096, 1024),
        (1, 65_536, 256),
    ),
}


def scan64(f: Tensor, x: Tensor) -> Tensor:
    """h_t = f_t h_{t-1} + x_t by doubling the step, T log T work: what scans are verified with."""
    step = 1
    while step < len(f):
        shift = (0, 0) * (f.dim() - 1) + (step, 0)
        x = x + f * F.pad(x[:-step], shift)
        f = f * F.pad(f[:-step], shift)
        step *= 2
    return x


def pool64(gates: Tensor) -> Tensor:
    """fo-pooling from pre-activations (T, B, 3H) to h (T, B, H)."""
    z, f, o = gates.chunk(3, -1)
    f = f.sigmoid()
    return o.sigmoid() * scan64(f, (1 - f) * z.tanh())


def scan(device: Device, seconds: float) -> Iterator[Row]:
    """The share of a large copy's bandwidth at which the recurrences move what they must.

    Must: every input read once and every output written once. With N = T * B * H elements that is
    4 N for the fo pool from its pre-activations (3 N) to h, 5 N when it also writes the cells,
    8 N for its backward (pre-activations, cells and gradient in, gradient of 3 N out), 3 N for
    linear_recurrence, and 5 N for its backward. A copy reads and writes each byte once.
    """
    source = torch.randn(device.copied // 4, device=device.kind)
    target = torch.empty_like(source)
    for dtype, kind, (B, H), T in product(device.dtypes, SCANS, COLUMNS, STEPS):
        elements, function, oracle = SCANS[kind]
        size = dtype.itemsize * elements * T * B * H
        if size > device.limit:
            continue
        sets = scan_inputs(device, kind, (T, B, H), dtype)
        verify(kind, function, oracle, sets[0])
        call, copy = calls(function, sets, False), [lambda: target.copy_(source)]
        spent, of_copy = race(device, [call, copy], seconds)
        [of_graph] = replays(device, [call], seconds)
        bandwidth = 2 * device.copied / of_copy
        yield {
            "kind": kind,
            "dtype": str(dtype).removeprefix("torch."),
            "columns": B * H,
            "length": T,
            "bytes": size,
            "share": ratio(size / spent, bandwidth),
            "graph_share": None if of_graph is None else ratio(size / of_graph, bandwidth),
            **device.milliseconds(ms=spent, graph_ms=of_graph, copy_ms=of_copy),
        }


def scan_inputs(
    device: Device, kind: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> list[tuple[Tensor, ...]]:
    """Sets of inputs for the function of this kind in SCANS, for N = T * B * H."""
    T, B, H = shape
    gates = (T, B, 3 * H)
    if kind == "linear_recurrence":
        sets = rotation(device, [shape, shape], dtype)
        return [(f.sigmoid_(), x) for f, x in sets]
    if kind == "linear_recurrence backward":
        sets = rotation(device, [shape] * 3, dtype)
        return [(grad, f.sigmoid_(), h) for grad, f, h in sets]
    if kind == "pool backward":
        sets = rotation(device, [shape, gates], dtype)
        return [(grad, gates, pool(gates, True)[1]) for grad, gates in sets]
    return rotation(device, [gates], dtype)


def pool(gates: Tensor, keep_cells: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return operator.pool(gates, None, None, None, "fo", "forward", 0.0, keep_cells)


def pool_backward(grad: Tensor, gates: Tensor, cells: Tensor) -> Tensor:
    gradients: tuple[Tensor, Tensor] = torch.ops.qrnn.pool_backward.default(
        *(gates, None, None, None, cells, grad, None, None), "fo", "forward", 0.0
    )
    return gradients[0]


def pool_backward64(grad: Tensor, gates: Tensor, _: Tensor) -> Tensor:
    with torch.enable_grad():
        return torch.autograd.grad(pool64(gates.requires_grad_()), gates, grad)[0]


def scan_backward(grad: Tensor, f: Tensor, h: Tensor) -> Tensor:
    start = torch.zeros_like(h[0])
    gradients: tuple[Tensor, ...] = torch.ops.qrnn.linear_recurrence_backward.default(
        grad, f, start, h, False
    )
    return gradients[0]


def scan_backward64(grad: Tensor, f: Tensor, h: Tensor) -> Tensor:
    after, before = torch.zeros_like(f), torch.zeros_like(h)
    after[:-1], before[1:] = f[1:], h[:-1]
    return before * scan64(after.flip(0), grad.flip(0)).flip(0)


SCANS: dict[str, tuple[int, Function, Function]] = {  # elements to move per N, function, oracle
    "pool": (4, lambda gates: pool(gates, False)[0], pool64),
    "pool, cells kept": (5, lambda gates: pool(gates, True)[0], pool64),
    "pool backward": (8, pool_backward, pool_backward64),
    "linear_recurrence": (3, linear_recurrence, scan64),
    "linear_recurrence backward": (5, scan_backward, scan_backward64),
}


def peers(device: Device, seconds: float) -> Iterator[Row]:
    """Another project's time over linear_recurrence's, for all that can be used here; float32.

    Each has its inputs and its gradient in its own layout. One that cannot be used, or that is
    wrong, is a row without a ratio, with the reason.
    """
    late: set[str] = set()
    if device.kind == "cuda":
        late = neighbours.compile_side_by_side(PEER_SHAPES["cuda"])
    for name, find in neighbours.PEERS.items():
        blank: Row = {"peer": name, "batch": None, "length": None, "units": None, "mode": None}
        blank |= {"ratio": None, "graph_ratio": None, "reason": None}
        blank |= device.milliseconds(ms=None, graph_ms=None, our_ms=None, our_graph_ms=None)
        try:
            if name in late:
                raise TimeoutError(f"not compiled within {neighbours.SECONDS} s")
            peer = find()
        except Exception as error:
            yield {**blank, "reason": reason(error)}
            continue
        for (B, T, H), mode in product(PEER_SHAPES[device.kind], PASSES):
            row = {**blank, "batch": B, "length": T, "units": H, "mode": mode}
            if T > peer.most_steps:
                yield {**row, "reason": f"not measured for T > {peer.most_steps}"}
                continue
            backward = mode == PASSES[1]
            if backward and peer.forward_only:
                yield {**row, "reason": peer.forward_only}
                continue
            sets = rotation(device, [(T, B, H)] * (2 + backward), torch.float32)
            for f, *_ in sets:
                f.sigmoid_()
            first, grad = sets[0][:2], sets[0][2] if backward else None
            verify("linear_recurrence", linear_recurrence, scan64, first, grad)
            try:
                verify(name, peer.timed, scan64, first, grad)
                with torch.no_grad():
                    theirs = [
                        tuple(map(peer.native, (*peer.inputs(*inputs[:2]), *inputs[2:])))
                        for inputs in sets
                    ]
                contenders = [
                    calls(peer.scan, theirs, backward),
                    calls(linear_recurrence, sets, backward),
                ]
                spent, ours = race(device, contenders, seconds)
                graph, our_graph = replays(device, contenders, seconds)
            except Exception as error:
                yield {**row, "reason": reason(error)}
                continue
            yield {
                **row,
                "ratio": ratio(spent, ours),
                "graph_ratio": ratio(graph, our_graph),
                **device.milliseconds(ms=spent, graph_ms=graph),
                **device.milliseconds(our_ms=ours, our_graph_ms=our_graph),
            }
