"""Weights of the archived torchqrnn to `qrnn.QRNN`, and back.

Both have the blocks Z, F, O in the rows of a layer's matrix. torchqrnn's F is what is let in and
its windows start with the newest step; ours is what is kept and they start with the oldest.

>>> import torch
>>> from qrnn import QRNN, torchqrnn
>>> old, new = torchqrnn.QRNN(3, 4, 2, window=2).eval(), QRNN(3, 4, 2, kernel_size=2).eval()
>>> _ = new.load_state_dict(from_torchqrnn(old.state_dict(), new))
>>> x = torch.randn(5, 2, 3)
>>> torch.allclose(new(x)[0], old(x)[0], atol=1e-6)
True
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qrnn.checks import check, check_floating
from qrnn.layers import QRNN, QRNNLayer
from qrnn.pooling.reference import GATES

KINDS = ("weight", "bias")


def from_torchqrnn(state_dict: Mapping[str, Tensor], rnn: QRNN) -> dict[str, Tensor]:
    """What `rnn.load_state_dict` takes to compute what a torchqrnn.QRNN with `state_dict` did.

    Args:
        state_dict: `layers.N.linear.weight` and `.bias` of every layer, and nothing else.
        rnn: one-directional, masked and with biases; kernel_size is the other's window (of the
            first layer: first_kernel_size), pooling "fo" its output_gate=True and "f" its False.
            zoneout has to be the same, and zoneout_eval "mean". It is not changed.

    Raises:
        ValueError: if `rnn` is another kind of QRNN, or keys or shapes do not fit.
        TypeError: for a `state_dict` that is none, an entry that is no floating-point Tensor, or an
            `rnn` that is no QRNN.
    """
    layers = _layers(rnn)
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a mapping, got {type(state_dict).__name__}")
    expected = [f"layers.{n}.linear.{kind}" for n in range(len(layers)) for kind in KINDS]
    fits = set(state_dict) == set(expected)
    check(fits, "state_dict", ", ".join(expected), ", ".join(map(str, state_dict)) or "nothing")
    weights = {}
    for n, layer in enumerate(layers):
        for kind in KINDS:
            name = f"layers.{n}.linear.{kind}"
            value, own = state_dict[name], tuple(getattr(layer, kind).shape)
            check_floating(f"state_dict {name}", value)
            check(value.shape == own, f"state_dict {name}", f"shape {own}", tuple(value.shape))
            weights[f"layers.{n}.{kind}"] = _turn(value, layer)
    return weights


def to_torchqrnn(rnn: QRNN) -> dict[str, Tensor]:
    """The state_dict of the torchqrnn.QRNN that computes what `rnn` does; see `from_torchqrnn`.

    Raises:
        ValueError: if torchqrnn has no such QRNN.
        TypeError: for an `rnn` that is no QRNN.
    """
    return {
        f"layers.{n}.linear.{kind}": _turn(getattr(layer, kind), layer)
        for n, layer in enumerate(_layers(rnn))
        for kind in KINDS
    }


def _layers(rnn: QRNN) -> list[QRNNLayer]:
    """The layers of a QRNN that torchqrnn could be."""
    if not isinstance(rnn, QRNN):
        raise TypeError(
            f"rnn: expected a qrnn.QRNN, got {type(rnn).__module__}.{type(rnn).__name__}"
        )
    layers: list[QRNNLayer] = list(rnn.layers)  # type: ignore[arg-type]
    first = layers[0]
    for name, value, only in (
        ("bidirectional", rnn.bidirectional, False),
        ("dense", rnn.dense, False),
        ("bias", rnn.bias, True),
        ("masked", first.masked, True),
        ("zoneout_eval", first.zoneout_eval if first.zoneout else "mean", "mean"),
    ):
        check(value == only, "rnn", f"{name}={only}, as torchqrnn has it", f"{name}={value}")
    pooling = first.pooling
    check(pooling != "ifo", "rnn", 'pooling "f" or "fo", as torchqrnn has it', pooling)
    return layers


def _turn(value: Tensor, layer: QRNNLayer) -> Tensor:
    """A weight or bias in the other's convention: each is the other's inverse."""
    blocks = value.detach().view(GATES[layer.pooling], layer.hidden_size, -1)
    if value.dim() == 2:
        blocks = blocks.unflatten(2, (layer.kernel_size, layer.input_size)).flip(2)
    z, f, *o = blocks
    return torch.stack([z, -f, *o]).reshape(value.shape)
