"""The benchmark's suites of one layer: figure4, memory, growth and convolution
(scripts/benchmark.py)."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from benchmark_scans import PASSES, pool64
from timing import Call, Device, Function, Row, calls, race, ratio, replays, rotation, verify
from torch import Tensor, nn
from torch.nn import functional as F

from qrnn import QRNNLayer

MODES = ("inference", "training")

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

MEMORY_SHAPES = ((20, 105, 640), (32, 512, 320), (256, 512, 320), (8, 2048, 1024))  # B, T, units

GROWTH = {
    "cpu": {"length": 64, "batch": 8, "units": 128},
    "cuda": {"length": 512, "batch": 32, "units": 320},
}
FACTORS = (1, 2, 4, 8)

KERNELS = (2, 3, 6)
INPUTS = (128, 320, 640, 1024)
CONVOLUTION_SHAPES = {"cpu": ((32, 8), (105, 20)), "cuda": ((105, 20), (128, 128))}  # T, B


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


WAYS: dict[str, Function] = {"windows": concatenated, "accumulated": accumulated, "conv2d": conv2d}
