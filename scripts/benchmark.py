"""Speed and memory, into reports/results: python scripts/benchmark.py [SUITE ...] [--device cuda]

    figure4      a QRNN layer against nn.LSTM, the grid of the paper's Figure 4 (right)
    ptb-step     where a language model's training step spends its time, Figure 4 (left)
    scan         the recurrences alone, against a copy of as many bytes
    peers        h_t = f_t h_{t-1} + x_t, against other projects' kernels
    memory       the most that forward and backward of a layer hold (CUDA only)
    growth       how a layer's time grows with length, batch and units
    convolution  the layer's way to its pre-activations, which it chooses by shape, against each
    translation  characters a second in training, QRNN and LSTM (needs joeynmt)
    reviews      reviews a second in training, QRNN and LSTM (needs allennlp)

All of them without a name. Every result of ours and of other kernels is verified before it is
timed, in float64 but for the translation's. Times on a CPU appear as ratios only, of things that
took turns on it. `make report` renders the records.
"""

import argparse
import copy
import json
import os
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import peers as neighbours
import records
import torch
from timing import (
    TOLERANCE,
    Call,
    Cpu,
    Cuda,
    Device,
    Function,
    WrongResult,
    calls,
    keep_memory,
    race,
    ratio,
    reason,
    replays,
    rotation,
    verify,
)
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from qrnn import QRNN, QRNNLayer, linear_recurrence
from qrnn.pooling import operator

Row = dict[str, Any]

MODES = ("inference", "training")
PASSES = ("forward", "forward+backward")

UNITS = 320
LENGTHS = (32, 64, 128, 256, 512)
PAPER = {  # batch: how many times faster than cuDNN's LSTM, by length
    8: (5.5, 8.8, 11.0, 12.4, 16.9),
    16: (5.5, 6.7, 7.8, 8.3, 10.8),
    32: (4.2, 4.5, 4.9, 4.9, 6.4),
    64: (3.0, 3.0, 3.0, 3.0, 3.7),
    128: (2.1, 1.9, 2.0, 2.0, 2.4),
    256: (1.4, 1.4, 1.3, 1.3, 1.3),
}

PTB = {"batch": 20, "length": 105, "units": 640, "vocabulary": 10_000}
PAPER_MS = {  # read off the bars; its LSTM is cuDNN's
    "QRNN": {"RNN": 41, "softmax": 74, "optimiser": 36, "step": 151},
    "LSTM": {"RNN": 170, "softmax": 74, "optimiser": 45, "step": 289},
}

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

MEMORY_SHAPES = ((20, 105, 640), (32, 512, 320), (256, 512, 320), (8, 2048, 1024))  # B, T, units

GROWTH = {
    "cpu": {"length": 64, "batch": 8, "units": 128},
    "cuda": {"length": 512, "batch": 32, "units": 320},
}
FACTORS = (1, 2, 4, 8)

KERNELS = (2, 3, 6)
INPUTS = (128, 320, 640, 1024)
CONVOLUTION_SHAPES = {"cpu": ((32, 8), (105, 20)), "cuda": ((105, 20), (128, 128))}  # T, B


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


def convolve64(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Masked windows of x (T, B, I) times weight (N, k * I): pre-activations (T, B, N)."""
    k = weight.shape[1] // x.shape[2]
    windows = F.pad(x, (0, 0, 0, 0, k - 1, 0)).unfold(0, k, 1)  # (T, B, I, k)
    return windows.transpose(2, 3).flatten(2) @ weight.T + bias


def layers64(x: Tensor, *parameters: Tensor) -> Tensor:
    """QRNN layers, each with a weight and a bias."""
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        x = pool64(convolve64(x, weight, bias))
    return x


def output_of(module: nn.Module) -> Function:
    return lambda x: module(x)[0]


def figure4(device: Device, seconds: float) -> Iterator[Row]:
    """nn.LSTM's time over the QRNN layer's (fo, k = 2), of one layer.

    Training is forward and backward with the gradient of the input. nn.LSTM runs in float16
    (`lstm_dtype`) where in bfloat16 it would lay out its weights for cuDNN in every call.
    `product_share` is the time of its matrix products alone, by torch's matmul, over the layer's,
    which may take them elsewhere.
    """
    for dtype, mode in product(device.dtypes, MODES):
        training = mode == "training"
        lstm_dtype = device.lstm_dtype(dtype)
        lstm = nn.LSTM(UNITS, UNITS, device=device.kind, dtype=lstm_dtype).train(training)
        qrnn = QRNNLayer(UNITS, UNITS, device=device.kind, dtype=dtype).train(training)
        for batch, (column, length) in product(PAPER, enumerate(LENGTHS)):
            sets = rotation(device, [(length, batch, UNITS)] * (1 + training), dtype)
            weights = list(qrnn.parameters())
            first, grad = sets[0][:1], sets[0][1] if training else None
            verify("QRNNLayer", output_of(qrnn), layers64, first, grad, weights)
            converted = [
                tuple(value.detach().to(lstm_dtype) for value in inputs) for inputs in sets
            ]
            contenders = [
                calls(output_of(lstm), converted, training, list(lstm.parameters())),
                calls(output_of(qrnn), sets, training, weights),
            ]
            if device.kind == "cpu":
                contenders.append([products(weights[0], length * batch, training)])
            of_lstm, of_qrnn, *rest = race(device, contenders, seconds)
            lstm_graph, qrnn_graph, *_ = replays(device, contenders, seconds)
            yield {
                "mode": mode,
                "batch": batch,
                "length": length,
                "dtype": str(dtype).removeprefix("torch."),
                "lstm_dtype": str(lstm_dtype).removeprefix("torch."),
                "ratio": ratio(of_lstm, of_qrnn),
                "graph_ratio": ratio(lstm_graph, qrnn_graph),
                "paper_ratio": PAPER[batch][column],
                **({"product_share": ratio(rest[0], of_qrnn)} if rest else {}),
                **device.milliseconds(qrnn_ms=of_qrnn, qrnn_graph_ms=qrnn_graph),
                **device.milliseconds(lstm_ms=of_lstm, lstm_graph_ms=lstm_graph),
            }


def products(weight: Tensor, rows: int, training: bool) -> Call:
    """The matrix products of a layer with this weight, from `rows` windows."""
    windows, gates = (weight.new_empty(rows, n).normal_() for n in weight.shape[::-1])

    def call() -> None:
        with torch.no_grad():
            windows @ weight.T
            if training:
                gates @ weight
                gates.T @ windows

    return call


class LanguageModel:
    """A training step in parts. The embedding counts as RNN, as what cannot be told from it."""

    def __init__(self, device: Device, rnn: nn.Module) -> None:
        size, units = PTB["vocabulary"], PTB["units"]
        self.rnn = rnn
        self.embedding = nn.Embedding(size, units, device=device.kind)
        self.softmax = nn.Linear(units, size, device=device.kind)
        self.parameters = [p for m in (rnn, self.embedding, self.softmax) for p in m.parameters()]
        self.sgd = torch.optim.SGD(self.parameters, lr=1e-3)  # small: the targets are noise
        shape = (2, PTB["length"], PTB["batch"])
        self.words, self.targets = torch.randint(size, shape, device=device.kind)

    def forward(self) -> None:
        self.output = self.rnn(F.dropout(self.embedding(self.words), 0.5))[0]

    def loss(self) -> None:
        """Softmax and cross-entropy, summed over time and averaged over the batch, and backward."""
        self.hidden = self.output.detach().requires_grad_()
        logits = self.softmax(F.dropout(self.hidden, 0.5)).flatten(0, 1)
        total = F.cross_entropy(logits, self.targets.flatten(), reduction="sum")
        (total / PTB["batch"]).backward()

    def backward(self) -> None:
        self.output.backward(self.hidden.grad)

    def optimise(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 10)
        self.sgd.step()
        self.sgd.zero_grad()


def ptb_step(device: Device, seconds: float) -> Iterator[Row]:
    """The shares of a step with two layers and dropout 0.5, and nn.LSTM's time over the QRNN's."""
    size = PTB["units"]
    qrnn = QRNN(size, size, num_layers=2, dropout=0.5, device=device.kind)
    lstm = nn.LSTM(size, size, num_layers=2, dropout=0.5, device=device.kind)
    shape = (PTB["length"], PTB["batch"], size)
    x, grad = rotation(device, [shape] * 2, torch.float32)[0]
    verify("QRNN", output_of(qrnn.eval()), layers64, [x], grad, list(qrnn.parameters()))
    models = {"LSTM": lstm, "QRNN": qrnn.train()}
    steps = [LanguageModel(device, rnn) for rnn in models.values()]
    phases = [[call] for s in steps for call in (s.forward, s.loss, s.backward, s.optimise)]
    spent = race(device, phases, seconds)
    times: dict[str, dict[str, float]] = {}
    for model, (forward, softmax, backward, optimiser) in zip(
        models, (spent[:4], spent[4:]), strict=True
    ):
        times[model] = {"RNN": forward + backward, "softmax": softmax, "optimiser": optimiser}
        times[model]["step"] = sum(times[model].values())
    for model, part in product(times, times["QRNN"]):
        paper = PAPER_MS[model][part]
        yield {
            "part": part,
            "model": model,
            "share": ratio(times[model][part], times[model]["step"]),
            "lstm_over_qrnn": ratio(times["LSTM"][part], times["QRNN"][part]),
            "paper_share": ratio(paper, PAPER_MS[model]["step"]),
            "paper_lstm_over_qrnn": ratio(PAPER_MS["LSTM"][part], PAPER_MS["QRNN"][part]),
            **device.milliseconds(ms=times[model][part], paper_ms=paper / 1e3),
        }


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


class KeptScan(torch.autograd.Function):
    """c_t = f_t c_{t-1} + (1 - f_t) z_t, keeping f, z and c: what torchqrnn's ForgetMult keeps."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, z: Tensor) -> Tensor:
        c = f.new_empty(len(f) + 1, *f.shape[1:])
        c[0] = 0
        for t in range(len(f)):
            torch.lerp(z[t], c[t], f[t], out=c[t + 1])
        ctx.save_for_backward(f, z, c)
        return c[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        f, z, c = ctx.saved_tensors
        grad_f, grad_z = torch.empty_like(f), torch.empty_like(z)
        g = torch.zeros_like(f[0])
        for t in reversed(range(len(f))):
            g = g + grads[0][t]
            torch.mul(g, c[t] - z[t], out=grad_f[t])
            torch.mul(g, 1 - f[t], out=grad_z[t])
            g = g * f[t]
        return grad_f, grad_z


def composed(layer: QRNNLayer) -> Function:
    """A layer (fo, k = 2) of single operators, which keeps what that of torchqrnn keeps."""

    def forward(x: Tensor) -> Tensor:
        windows = torch.cat([torch.cat([torch.zeros_like(x[:1]), x[:-1]]), x], -1)
        z, f, o = F.linear(windows, layer.weight, layer.bias).chunk(3, -1)
        return o.sigmoid() * KeptScan.apply(f.sigmoid(), z.tanh())

    return forward


def memory(device: Device, seconds: float) -> Iterator[Row]:
    """The most that forward and backward hold at once, in bytes, with all the gradients.

    A QRNN layer (fo, k = 2), nn.LSTM, and the operators that torchqrnn's layer is made of.
    """
    for dtype, (batch, length, units) in product(device.dtypes, MEMORY_SHAPES):
        lstm_dtype = device.lstm_dtype(dtype)
        lstm = nn.LSTM(units, units, device=device.kind, dtype=lstm_dtype)
        qrnn = QRNNLayer(units, units, device=device.kind, dtype=dtype)
        x, grad = (torch.randn(length, batch, units, device=device.kind).to(dtype) for _ in "xg")
        weights = list(qrnn.parameters())
        contenders = {
            "ours_bytes": (output_of(qrnn), dtype, weights),
            "lstm_bytes": (output_of(lstm), lstm_dtype, list(lstm.parameters())),
            "torchqrnn_bytes": (composed(qrnn), dtype, weights),
        }
        row: Row = {"batch": batch, "length": length, "units": units}
        row |= {"dtype": str(dtype).removeprefix("torch.")}
        for column, (function, own, parameters) in contenders.items():
            if column != "lstm_bytes":
                verify(column, function, layers64, [x], grad, parameters)
            [call] = calls(function, [(x.to(own), grad.to(own))], True, parameters)
            call()  # what libraries allocate once is not the layer's
            row[column] = device.peak(call)
        yield row


def growth(device: Device, seconds: float) -> Iterator[Row]:
    """Time of forward and backward as one dimension doubles, over that of the smallest layer."""
    base = GROWTH[device.kind]
    for varies in base:
        contenders = []
        for factor in FACTORS:
            size = {**base, varies: base[varies] * factor}
            layer = QRNNLayer(size["units"], size["units"], device=device.kind)
            weights = list(layer.parameters())
            shape = (size["length"], size["batch"], size["units"])
            sets = rotation(device, [shape] * 2, torch.float32)
            verify("QRNNLayer", output_of(layer), layers64, sets[0][:1], sets[0][1], weights)
            contenders.append(calls(output_of(layer), sets, True, weights))
        times = race(device, contenders, seconds)
        for factor, spent in zip(FACTORS, times, strict=True):
            row = {"varies": varies, "value": base[varies] * factor, "factor": factor}
            yield {**row, "ratio": ratio(spent, times[0]), **device.milliseconds(ms=spent)}


def concatenated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `convolve64`: the window of each step laid side by side, one product."""
    inputs = x.shape[2]
    k = weight.shape[1] // inputs
    padded = F.pad(x, (0, 0, 0, 0, k - 1, 0))
    return F.linear(torch.cat([padded[j : j + len(x)] for j in range(k)], -1), weight, bias)


def accumulated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `convolve64`: a product for each step of the window, added up in place, no windows."""
    T, B, inputs = x.shape
    k = weight.shape[1] // inputs
    rows = F.pad(x, (0, 0, 0, 0, k - 1, 0)).flatten(0, 1)
    taps = weight.view(len(weight), k, inputs).unbind(1)
    gates = torch.addmm(bias, rows[: T * B], taps[0].T)
    for j in range(1, k):
        gates.addmm_(rows[j * B : (j + T) * B], taps[j].T)
    return gates.view(T, B, -1)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `convolve64`: x as a channels-last image of T rows and B columns, no windows."""
    inputs = x.shape[2]
    k = weight.shape[1] // inputs
    image = F.pad(x, (0, 0, 0, 0, k - 1, 0)).permute(2, 0, 1)[None]  # (1, I, T + k - 1, B)
    kernel = weight.view(len(weight), k, 1, inputs).permute(0, 3, 1, 2)
    return F.conv2d(image, kernel, bias)[0].permute(1, 2, 0)


def convolution(device: Device, seconds: float) -> Iterator[Row]:
    """Ways to the pre-activations over the one that QRNNLayer.convolve chooses."""
    for dtype, inputs, k in product(device.dtypes, INPUTS, KERNELS):
        layer = QRNNLayer(inputs, inputs, kernel_size=k, device=device.kind, dtype=dtype)
        weights = list(layer.parameters())
        ways: dict[str, Function] = {"the layer": lambda x, own=layer: own.convolve(x)[0]}
        for name, way in WAYS.items():
            ways[name] = lambda x, way=way, own=weights: way(x, *own)
        for (T, B), mode in product(CONVOLUTION_SHAPES[device.kind], PASSES):
            backward = mode == PASSES[1]
            sets = rotation(device, [(T, B, inputs), (T, B, 3 * inputs)][: 1 + backward], dtype)
            first, grad = sets[0][:1], sets[0][1] if backward else None
            for name, way in ways.items():
                verify(name, way, convolve64, first, grad, weights)
            contenders = [calls(way, sets, backward, weights) for way in ways.values()]
            ours, *others = race(device, contenders, seconds)
            for name, spent in zip(WAYS, others, strict=True):
                yield {
                    "kernel": k,
                    "inputs": inputs,
                    "length": T,
                    "batch": B,
                    "dtype": str(dtype).removeprefix("torch."),
                    "mode": mode,
                    "way": name,
                    "ratio": ratio(spent, ours),
                    **device.milliseconds(ms=spent, our_ms=ours),
                }


TRANSLATION = {"batch": 16, "source": 103, "target": 93}  # the mean lengths in the paper


def translation(device: Device, seconds: float) -> Iterator[Row]:
    """Target characters a second, forward and backward, over those of the LSTM.

    The models of iwslt_char.yaml and iwslt_char_lstm.yaml, in joeynmt; and the former with its
    decoder called for one step after the other, as the replication's was.
    """
    import with_joeynmt  # with what it imports, not on every GPU machine

    qrnn, lstm = (
        with_joeynmt.build(Path("configs") / name, symbols=183).to(device.kind)
        for name in ("iwslt_char.yaml", "iwslt_char_lstm.yaml")
    )
    B, S, T = TRANSLATION.values()
    source, target = (torch.randint(4, 187, (B, n), device=device.kind) for n in (S, T + 1))
    sides: dict[str, Any] = {
        "src": source,
        "src_mask": torch.ones(B, 1, S, dtype=torch.bool, device=device.kind),
        "src_length": torch.full((B,), S, device=device.kind),
        "trg_input": target[:, :-1],
        "trg": target[:, 1:],
        "trg_mask": torch.ones(B, 1, T, dtype=torch.bool, device=device.kind),
    }

    def at_once(model: nn.Module) -> Tensor:
        loss: Tensor = model(return_type="loss", **sides)[0]
        return loss

    def step_by_step(model: Any) -> Tensor:
        memory, final, _, _ = model(return_type="encode", **sides)
        embedded, hidden, logits = model.trg_embed(sides["trg_input"]), None, []
        for t in range(T):
            out, hidden, _, _ = model.decoder(
                embedded[:, t : t + 1], memory, final, sides["src_mask"], 1, hidden
            )
            logits.append(out)
        return model.loss_function(torch.cat(logits, 1).log_softmax(-1), **sides)

    expected, found = (f(qrnn).item() for f in (at_once, step_by_step))
    if not abs(found - expected) <= 1e-4 * abs(expected):
        raise WrongResult(f"step by step the loss is {found}, at once {expected}")
    rows = [("QRNN", qrnn, at_once), ("QRNN, step by step", qrnn, step_by_step)]
    rows.append(("LSTM", lstm, at_once))
    contenders = [[lambda m=m, f=f: f(m).backward()] for _, m, f in rows]
    times = race(device, contenders, seconds)
    for (name, model, _), spent in zip(rows, times, strict=True):
        yield {
            "model": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "speed_over_lstm": ratio(times[-1], spent),
            **device.milliseconds(ms=spent),
        }


REVIEWS = {"length": 272, "words": 67_559}  # mean length, vocabulary of word2vec-imdb
LOADED = 20  # batches


def reviews(device: Device, seconds: float) -> Iterator[Row]:
    """Reviews a second, whole training steps, over the LSTM's: the models of IMDb's configs.

    In float32, and as the callback "bfloat16_autocast" trains. And those of their loader alone,
    which has read and indexed the reviews before.
    """
    import qrnn.allennlp  # isort: skip  # noqa: F401  (before allennlp, which it mends)
    from allennlp.common import Params
    from allennlp.data import Vocabulary
    from allennlp.models import Model
    from allennlp.training.optimizers import Optimizer

    words = REVIEWS["words"]
    vocabulary = Vocabulary()
    vocabulary.add_tokens_to_namespace([str(n) for n in range(words - 2)], "tokens")
    vocabulary.add_tokens_to_namespace(["neg", "pos"], "labels")
    random_start = {"model.text_field_embedder.token_embedders.tokens.pretrained_file": None}
    models: dict[str, nn.Module] = {}
    steps: list[Callable[[torch.dtype], None]] = []
    loader = review_loader(vocabulary, device)
    batch = next(iter(loader))
    for name, config in (("QRNN", "imdb"), ("QRNN, k = 4", "imdb_k4"), ("LSTM", "imdb_lstm")):
        params = Params.from_file(f"configs/{config}.jsonnet", random_start)
        model = models[name] = Model.from_params(params["model"], vocab=vocabulary).to(device.kind)
        wide = copy.deepcopy(model).double().eval()
        found, expected = (m(**batch)["probs"].double() for m in (model.eval(), wide))
        if not (off := (found - expected).abs().max()) <= TOLERANCE[torch.float32]:
            raise WrongResult(f"{name}: its probabilities are off by {off:.1e}")
        parameters = list(model.train().named_parameters())
        rmsprop = Optimizer.from_params(params["trainer"]["optimizer"], model_parameters=parameters)

        def step(dtype: torch.dtype, model: nn.Module = model, rmsprop: Any = rmsprop) -> None:
            rmsprop.zero_grad()
            with torch.autocast(device.kind, dtype, enabled=dtype != torch.float32):
                loss = model(**batch)["loss"]
            loss.backward()
            rmsprop.step()

        steps.append(step)
    for dtype in (torch.float32, torch.bfloat16):
        contenders = [[partial(step, dtype)] for step in steps]
        *times, loading = race(device, [*contenders, [lambda: list(loader)]], seconds)
        sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()}
        rows = [*sizes.items(), ("none, the loader alone", 0)]
        for (name, size), spent in zip(rows, [*times, loading / LOADED], strict=True):
            yield {
                "model": name,
                "parameters": size,
                "dtype": str(dtype).removeprefix("torch."),
                "speed_over_lstm": ratio(times[-1], spent),
                **device.milliseconds(ms=spent),
            }


def review_loader(vocabulary: Any, device: Device) -> Any:
    """The loader of configs/imdb.jsonnet, with LOADED batches of random reviews in memory."""
    from allennlp.common import Params
    from allennlp.data import DataLoader

    from qrnn.allennlp.readers import ImdbReader

    params = Params.from_file("configs/imdb.jsonnet")["data_loader"]
    T, words = REVIEWS.values()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        (Path(folder) / "meta.json").write_text('{"official": false, "note": "random numbers"}')
        with file.open("w", encoding="utf-8") as lines:
            for n in range(LOADED * params["batch_sampler"]["batch_size"]):
                text = " ".join(map(str, torch.randint(words - 2, (T,)).tolist()))
                print(json.dumps({"text": text, "label": ("neg", "pos")[n % 2]}), file=lines)
        loader = DataLoader.from_params(params, reader=ImdbReader(), data_path=str(file))
    loader.index_with(vocabulary)
    loader.set_target_device(torch.device(device.kind))
    if (found := len(list(loader))) != LOADED:
        raise WrongResult(f"the loader makes {found} batches of {LOADED}")
    return loader


WAYS: dict[str, Function] = {"windows": concatenated, "accumulated": accumulated, "conv2d": conv2d}

SUITES: dict[str, Callable[[Device, float], Iterator[Row]]] = {
    "figure4": figure4,
    "ptb-step": ptb_step,
    "scan": scan,
    "peers": peers,
    "memory": memory,
    "growth": growth,
    "convolution": convolution,
    "translation": translation,
    "reviews": reviews,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=best, help=f"here: {best}")
    parser.add_argument("--seconds", type=float, help="repeat a row so long (CPU 1, CUDA 0.03)")
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = parser.parse_args()
    for name in arguments.suites:
        if name not in SUITES:
            parser.error(f"{name}: expected one of {', '.join(SUITES)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    device: Device = Cuda() if arguments.device == "cuda" else Cpu()
    if device.kind == "cpu" and keep_memory():
        device.note = "memory that is given back is kept (mallopt)"
    cannot = set() if device.kind == "cuda" else {"memory"}
    needs = {"translation": "joeynmt", "reviews": "allennlp"}
    cannot |= {suite for suite, package in needs.items() if find_spec(package) is None}
    suites = arguments.suites or [name for name in SUITES if name not in cannot]
    with tempfile.TemporaryDirectory() as own:
        # torch would wait without end for the lock of an earlier run's build that was killed
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", own)
        failed = [name for name in suites if not measured(name, device, arguments)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def measured(name: str, device: Device, arguments: argparse.Namespace) -> bool:
    """Runs one suite and writes its record; False, and the reason on the screen, if it fails.

    The rows of one that ends before its last are no record: they go to a file beside it.
    """
    torch.manual_seed(1)
    table: list[Row] = []
    started = time.monotonic()
    seconds = device.seconds if arguments.seconds is None else arguments.seconds
    try:
        device.clear()
        with warnings.catch_warnings():
            # the kernels are what is measured, not what stands in for them
            warnings.filterwarnings("error", message="qrnn runs its slow PyTorch loop")
            for row in tqdm(SUITES[name](device, seconds), desc=name, unit="row"):
                table.append(row)
        record = {
            "experiment": f"bench-{name}",
            "row": device.row,
            "seed": None,
            "table": table,
            "note": device.note,
            "data": None,
            "device": device.name,
            "config_sha256": None,
            "wall_seconds": round(time.monotonic() - started, 1),
            "command": shlex.join(["python", *sys.argv]),
        }
        print(f"record  {records.write(arguments.results, record)}")
    except BaseException as error:
        if table:
            part = arguments.results / f"bench-{name}-{device.row}.part.jsonl"
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text("".join(f"{json.dumps(row)}\n" for row in table), encoding="utf-8")
            print(f"{len(table)} rows are in {part}")
        if not isinstance(error, Exception):
            raise
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    main()
