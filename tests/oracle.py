"""What a QRNN must compute, one sequence, one step and one tap of the window at a time.

Written from the paper's equations and the public docstrings, not from the code that it judges. The
functions take NumPy arrays, or torch tensors where gradients are wanted, in float64.

A batch is time-major (T, B, ...); inside, everything is one sequence of n steps in one direction.
"""

from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qrnn import QRNN, QRNNLayer

WIDE = torch.float64
POOLINGS = ["f", "fo", "ifo"]
BLOCKS = {"f": "zf", "fo": "zfo", "ifo": "zfoi"}
MASK = (1 << 64) - 1


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=WIDE)


def close(got: Any, want: Any, tolerance: float = 1e-12) -> None:
    """Compares tensors, and tuples of them, in order."""
    if isinstance(want, Tensor):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
        return
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        close(a, b, tolerance)


def equal(got: Any, want: Any) -> None:
    """As `close`, bit for bit."""
    close(got, want, 0.0)


def splitmix64(seed: int, n: int) -> int:
    """The n-th output, from 0, of the generator of Steele, Lea and Flood (2014)."""
    x = (seed + (n + 1) * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def uniform(seed: int, n: int) -> float:
    return (splitmix64(seed, n) >> 40) / (1 << 24)


def _library(x: Any) -> Any:
    return torch if isinstance(x, torch.Tensor) else numpy


def _zeros(like: Any, *shape: int) -> Any:
    return _library(like).zeros(shape, dtype=like.dtype)


def _stack(rows: list[Any], empty: Any) -> Any:
    return _library(empty).stack(rows) if rows else empty


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + _library(x).exp(-x))


def scan(pooling: str, gates: Any, c: Any, reverse: bool, scale: float, zoned: Any) -> Any:
    """Pre-activations (n, G, H) to h (n, H) and the last cell.

    The update gate 1 - f is multiplied by `scale`, and 0 where `zoned` (n, H) is true.
    """
    n, _, H = gates.shape
    h: list[Any] = [None] * n
    for t in reversed(range(n)) if reverse else range(n):
        pre = dict(zip(BLOCKS[pooling], gates[t], strict=True))
        z, f = _library(c).tanh(pre["z"]), _sigmoid(pre["f"])
        f = 1 - scale * (1 - f)
        if zoned is not None:
            f = _library(c).where(zoned[t], 1.0, f)
        i = _sigmoid(pre["i"]) if pooling == "ifo" else 1 - f
        c = f * c + i * z
        h[t] = c if pooling == "f" else _sigmoid(pre["o"]) * c
    return _stack(h, _zeros(c, 0, H)), c


def pool(
    pooling: str,
    gates: Any,
    c0: Any = None,
    lengths: Any = None,
    direction: str = "forward",
    scale: float = 1.0,
    zoned: Any = None,
) -> Any:
    """Pre-activations (T, B, D * G * H) to h (T, B, D * H), h_n and c_n (D, B, H).

    zoned: (T, B, D, H), where the forget gate is 1.
    """
    directions = {"forward": [False], "reverse": [True], "both": [False, True]}[direction]
    T, B, _ = gates.shape
    D, G = len(directions), len(BLOCKS[pooling])
    H = gates.shape[2] // (D * G)
    gates = gates.reshape(T, B, D, G, H)
    h, h_n, c_n = [], [], []
    for b in range(B):
        n = T if lengths is None else int(lengths[b])
        for d, reverse in enumerate(directions):
            out, c = scan(
                pooling,
                gates[:n, b, d],
                _zeros(gates, H) if c0 is None else c0[d, b],
                reverse,
                scale,
                None if zoned is None else zoned[:n, b, d],
            )
            h.append(_library(gates).concatenate([out, _zeros(gates, T - n, H)]))
            h_n.append(out[0 if reverse else n - 1] if n else _zeros(gates, H))
            c_n.append(c)
    h_BDTH = _stack(h, _zeros(gates, 0, T, H)).reshape(B, D, T, H)
    h_TBDH = h_BDTH.swapaxes(1, 2).swapaxes(0, 1)
    return (
        h_TBDH.reshape(T, B, D * H),
        *(_stack(v, _zeros(gates, 0, H)).reshape(B, D, H).swapaxes(0, 1) for v in (h_n, c_n)),
    )


def convolve(
    x: Any, weight: Any, bias: Any, k: int, masked: bool, reverse: bool, before: Any
) -> Any:
    """(n, I) to (n, G * H): tap 0 is the oldest step of the window, in the order of running.

    before: (k - 1, I), the inputs to the left of x; zeros when None.
    """
    n, I = x.shape
    ahead = 0 if masked else k // 2
    rows = []
    for t in range(n):
        row = _zeros(x, len(weight)) if bias is None else bias
        for tap in range(k):
            distance = tap - (k - 1 - ahead)
            s = t - distance if reverse else t + distance
            if 0 <= s < n:
                row = row + weight[:, tap * I : (tap + 1) * I] @ x[s]
            elif s < 0 and before is not None:
                row = row + weight[:, tap * I : (tap + 1) * I] @ before[k - 1 + s]
        rows.append(row)
    return _stack(rows, _zeros(x, 0, len(weight)))


def evaluate(
    rnn: QRNN,
    parameters: dict[str, Any],
    x: Any,
    lengths: Any = None,
    state: Any = None,
    windows: Any = None,
) -> tuple[Any, Any, Any, list[Any]]:
    """What `rnn.eval()` must give for a time-major x with these values of its parameters.

    state: (h, c). Returns output, h_n, c_n and the windows, each (k - 1, B, I).
    """
    xp = _library(x)
    T, B, _ = x.shape
    H, D = rnn.hidden_size, 2 if rnn.bidirectional else 1
    outputs: list[Any] = []
    h_n = [[_zeros(x, H)] * B for _ in range(D * rnn.num_layers)]
    c_n = [[_zeros(x, H)] * B for _ in range(D * rnn.num_layers)]
    last: list[list[Any]] = [[] for _ in range(rnn.num_layers)]
    for b in range(B):
        n = T if lengths is None else int(lengths[b])
        inputs = x[:n, b]
        for v, layer in enumerate(rnn.layers):
            k, G = layer.kernel_size, len(BLOCKS[layer.pooling])
            weight = parameters[f"layers.{v}.weight"].reshape(D, G * H, -1)
            bias = parameters.get(f"layers.{v}.bias")
            before = None if windows is None else windows[v][:, b]
            scale = 1 - layer.zoneout if layer.zoneout_eval == "mean" else 1.0
            halves = []
            for d in range(D):
                own_bias = None if bias is None else bias.reshape(D, G * H)[d]
                gates = convolve(inputs, weight[d], own_bias, k, layer.masked, d == 1, before)
                row = v * D + d
                c0 = _zeros(x, H) if state is None else state[1][row, b]
                h, c_n[row][b] = scan(
                    layer.pooling, gates.reshape(n, G, H), c0, d == 1, scale, None
                )
                if n:
                    h_n[row][b] = h[0] if d else h[n - 1]
                elif state is not None:
                    h_n[row][b] = state[0][row, b]
                halves.append(h)
            seen = _zeros(inputs, k - 1, inputs.shape[1]) if before is None else before
            last[v].append(xp.concatenate([seen, inputs])[n:])
            output = xp.concatenate(halves, 1)
            inputs = xp.concatenate([inputs, output], 1) if rnn.dense else output
        outputs.append(xp.concatenate([output, _zeros(x, T - n, D * H)]))
    widths = [layer.input_size for layer in rnn.layers]
    return (
        _stack(outputs, _zeros(x, 0, T, D * H)).swapaxes(0, 1),
        xp.stack([_stack(rows, _zeros(x, 0, H)) for rows in h_n]),
        xp.stack([_stack(rows, _zeros(x, 0, H)) for rows in c_n]),
        [
            _stack(rows, _zeros(x, 0, layer.kernel_size - 1, width)).swapaxes(0, 1)
            for rows, layer, width in zip(last, rnn.layers, widths, strict=True)
        ],
    )


def check_shift(backend: Any, pooling: str, shift: int, T: int, dtype: torch.dtype) -> None:
    """That a backend gives for halves that lie `shift` rows apart what it gives for halves side by
    side, to the last bit, with NaN in the rows that no step has and gradients of zero there."""
    B, H, G = 3, 6, len(BLOCKS[pooling])
    together = torch.randn(T, B, 2, G * H).to(dtype)
    apart = torch.full((T + abs(shift), B, 2, G * H), torch.nan, dtype=dtype)
    rows = [slice(first, first + T) for first in ((0, shift) if shift > 0 else (-shift, 0))]
    for d in (0, 1):
        apart[rows[d], :, d] = together[:, :, d]
    c0, lengths, seed = (
        torch.randn(2, B, H).to(dtype),
        torch.tensor([T, 0, T // 2]),
        torch.tensor(3),
    )
    inputs, options = (c0, lengths, seed), (pooling, "both", 0.3)
    expected = backend.pool(together.flatten(2), *inputs, *options, True)
    got = backend.pool(apart.flatten(2), *inputs, *options, True, shift)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    h, cells, *last = expected
    grads, kept = (torch.randn_like(v) for v in (h, *last)), h if pooling == "f" else cells
    rest = (*inputs, kept, *grads, *options)
    expected = backend.pool_backward(together.flatten(2), *rest)
    got = backend.pool_backward(apart.flatten(2), *rest, shift)
    assert torch.equal(got[1], expected[1]) and got[0].shape == apart.flatten(2).shape
    spread = torch.zeros_like(apart)
    for d in (0, 1):
        spread[rows[d], :, d] = expected[0].view(together.shape)[:, :, d]
    assert torch.equal(got[0].view(apart.shape), spread)


class Operators(TorchDispatchMode):
    """Notes the types of each operator's tensors, and the shapes of what is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, set[torch.dtype]] = {}
        self.casts: set[torch.Size] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [v for v in tree_leaves((args, result)) if isinstance(v, torch.Tensor)]
        self.types.setdefault(func.name(), set()).update(v.dtype for v in tensors)
        if func is torch.ops.aten._to_copy.default:
            self.casts.add(result.shape)
        return result


def check_autocast(device: str) -> None:
    """That under autocast the pooling, forward and backward, takes and gives the lower type, and
    neither its pre-activations nor its output are cast."""
    layer, x = QRNNLayer(16, 32, device=device), torch.randn(20, 4, 16, device=device)
    with Operators() as seen, torch.autocast(device, torch.bfloat16):
        output, _ = layer(x)
        output.backward(torch.ones_like(output))  # CUDA's autocast would cast for a sum
    assert output.dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32
    assert seen.types["qrnn::pool"] == seen.types["qrnn::pool_backward"] == {torch.bfloat16}
    assert seen.casts and not {(20, 4, 3 * 32), output.shape} & seen.casts
