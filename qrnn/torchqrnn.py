"""The archived package salesforce/pytorch-qrnn (`torchqrnn`) over today's kernels.

Its classes, arguments, shapes and state_dict (`layers.N.linear.weight`, `.bias`). The gate is its
own: F is what is let in, h_t = F_t x_t + (1 - F_t) h_{t-1}; elsewhere in this package it is what
is kept.

Three ways to move over:

- `from qrnn.torchqrnn import QRNN` in the place of `from torchqrnn import QRNN`;
- `python -m qrnn.torchqrnn script.py ...` runs a script that imports `torchqrnn`, as it is;
- `qrnn.torchqrnn.install()` before `torch.load(file, weights_only=False)` opens whole models that
  were pickled with it. (A script that calls torch.load by itself: set
  TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1.)

awd-lstm-lm's WeightDrop needs a change on today's torch, with the archived package as well: what
F.dropout returns in evaluation is the Parameter itself, and has to be a `.view_as(...)` of it.

What this does not have (batch_first, bidirectional, PackedSequence, ifo-pooling) is in `qrnn.QRNN`,
and `qrnn.convert` takes the weights there and back.
"""

import runpy
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qrnn.checks import (
    autocasts,
    check,
    check_flag,
    check_floating,
    check_input,
    check_like,
    check_probability,
    check_size,
)
from qrnn.functional import linear_recurrence, pool


def _first_cells(hidden: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """hidden, checked, with the leading 1 that it has where a layer returned it: (1, B, H)."""
    check_floating("hidden", hidden)
    if hidden.dim() == 2:
        hidden = hidden[None]
    check_like("hidden", hidden, (1, *shape), like, cast=autocasts(like.device))
    return hidden


class ForgetMult(nn.Module):
    """h_t = f_t x_t + (1 - f_t) h_{t-1}, a weighted average that moves along.

    >>> f, x = torch.full((3, 1, 1), 0.5), torch.tensor([8.0, 0.0, 4.0]).view(3, 1, 1)
    >>> ForgetMult()(f, x).flatten().tolist()
    [4.0, 2.0, 3.0]
    """

    reverse = False

    def forward(
        self, f: Tensor, x: Tensor, hidden_init: Tensor | None = None, use_cuda: bool = True
    ) -> Tensor:
        """
        Args:
            f: how much of x is let in (T, B, H), from 0 to 1; float32, float64 or 16-bit.
            x: (T, B, H).
            hidden_init: h before the first step, (B, H) or (1, B, H); zeros when None.
            use_cuda: accepted and ignored: the tensors' device decides what runs.

        Returns:
            h (T, B, H). Differentiable any number of times.

        Raises:
            ValueError, TypeError: for an argument of the wrong shape, dtype or device.
        """
        check_floating("f", f)
        check(f.dim() == 3, "f", "3 dimensions (T, B, H)", tuple(f.shape))
        check_like("x", x, tuple(f.shape), f, cast=autocasts(f.device))
        h0 = None
        if hidden_init is not None:
            h0 = _first_cells(hidden_init, tuple(f.shape[1:]), f)[0]
        return linear_recurrence(1 - f, f * x, h0, reverse=self.reverse)


class BackwardForgetMult(ForgetMult):
    """h_t = f_t x_t + (1 - f_t) h_{t+1}: ForgetMult from the last step to the first.

    hidden_init is what would come after the last step.

    >>> f, x = torch.full((3, 1, 1), 0.5), torch.tensor([4.0, 0.0, 8.0]).view(3, 1, 1)
    >>> BackwardForgetMult()(f, x).flatten().tolist()
    [3.0, 2.0, 4.0]
    """

    reverse = True


class QRNNLayer(nn.Module):
    """One layer: Z, F and O of a window of inputs, ForgetMult, and the output gate.

    Args:
        input_size: I, features of a step.
        hidden_size: H, channels; input_size when None (which the archived code's own
            documentation promised).
        save_prev_x: whether the last inputs of a call stand to the left of the next call's first
            window, without a gradient, until `reset()`. Zeros stand there otherwise.
        zoneout: the rate at which F is set to 0 in training; outside it F is scaled by
            1 - zoneout. (The archived code did so in place, and evaluation had no gradient.)
        window: steps of a window, its own and those before it: any number, not only 1 or 2.
        output_gate: True: outputs are sigmoid(O) C, with C the cells. False: they are C.
        use_cuda: accepted and ignored: the tensors' device decides what runs.

    Submodules:
        linear: nn.Linear from window * I features, the newest step first, to the blocks Z, F and
            (with output_gate) O. It is called as a module, so that it can be wrapped, replaced or
            given another weight, as weight drop does.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | None = None,
        save_prev_x: bool = False,
        zoneout: float = 0,
        window: int = 1,
        output_gate: bool = True,
        use_cuda: bool = True,
    ) -> None:
        super().__init__()
        check_size("input_size", input_size)
        check_size("window", window)
        check_probability("zoneout", zoneout)
        check_flag("save_prev_x", save_prev_x)
        check_flag("output_gate", output_gate)
        if hidden_size is None:
            hidden_size = input_size
        check_size("hidden_size", hidden_size)
        # These are the attributes of the archived class, and all that there are: its pickles load.
        self.window = window
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.zoneout = float(zoneout)
        self.save_prev_x = save_prev_x
        self.prevX: Tensor | None = None
        self.output_gate = output_gate
        self.use_cuda = use_cuda
        self.linear = nn.Linear(window * input_size, (3 if output_gate else 2) * hidden_size)

    def extra_repr(self) -> str:
        names = ("window", "zoneout", "save_prev_x", "output_gate")
        options = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{self.input_size}, {self.hidden_size}, {options}"

    def reset(self) -> None:
        """Forgets the inputs of the last call: to be called before other sequences."""
        self.prevX = None

    def forward(self, X: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            X: (T, B, input_size).
            hidden: cells before the first step, (B, hidden_size), or (1, B, hidden_size) as
                returned; zeros when None.

        Returns:
            output (T, B, hidden_size), and the cells after the last step (1, B, hidden_size).

        Raises:
            ValueError, TypeError: for an argument of the wrong shape, dtype or device, or another
                batch size than the one whose inputs were saved.
        """
        # a module in the place of linear may have no parameters: then it knows its input best
        check_input(X, next(self.linear.parameters(), X), self.input_size)
        T, B, I = X.shape
        if hidden is not None:
            hidden = _first_cells(hidden, (B, self.hidden_size), X)
        k, source = self.window, X
        if k > 1:
            before = X.new_zeros(k - 1, B, I) if self.prevX is None else self.prevX.to(X)
            expected = f"a batch of {before.shape[1]} (or reset(), where other sequences begin)"
            check(before.shape == (k - 1, B, I), "input", expected, B)
            padded = torch.cat([before, X])
            source = torch.cat([padded[k - 1 - j : k - 1 - j + T] for j in range(k)], 2)
        gates = self.linear(source)
        # 1 - sigmoid(f) = sigmoid(-f): what is let in becomes what is kept
        sign = gates.new_ones(gates.shape[2])
        sign[self.hidden_size : 2 * self.hidden_size] = -1
        gates = gates * sign
        output, _, last = pool(
            "fo" if self.output_gate else "f",
            gates,
            hidden,
            zoneout=self.zoneout,
            zoneout_eval="mean",
            training=self.training,
        )
        if k > 1 and self.save_prev_x:
            self.prevX = padded[T:].detach().clone()
        return output, last


class QRNN(nn.Module):
    """A stack of layers with dropout between them.

    Args:
        input_size: I, features of a step.
        hidden_size: H, channels; input_size when None.
        num_layers: how many, unless `layers` says.
        bias, batch_first, bidirectional: as in the archived package only the defaults; `qrnn.QRNN`
            has the others.
        dropout: rate on the outputs of every layer but the last.
        layers: QRNNLayers (or modules like them), of one hidden size, to be stacked instead of new
            ones.
        kwargs: save_prev_x, zoneout, window, output_gate, use_cuda of every new `QRNNLayer`.
            (Layers after the first have hidden_size inputs; in the archived code input_size, which
            worked only where the two were equal.)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | None = None,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0,
        bidirectional: bool = False,
        layers: Iterable[nn.Module] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        for name, value, only in (
            ("bias", bias, True),
            ("batch_first", batch_first, False),
            ("bidirectional", bidirectional, False),
        ):
            check(value == only, name, f"{only} (qrnn.QRNN has the other)", value)
        check_probability("dropout", dropout)
        check_size("num_layers", num_layers)
        if hidden_size is None:
            hidden_size = input_size
        stack = list(layers or ())
        for n in range(0 if stack else num_layers):
            stack.append(QRNNLayer(hidden_size if n else input_size, hidden_size, **kwargs))
        self.layers = nn.ModuleList(stack)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = len(stack)
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional

    def reset(self) -> None:
        """Forgets the inputs that layers with save_prev_x saved."""
        for layer in self.layers:
            layer.reset()  # type: ignore[operator]

    def forward(
        self, input: Tensor, hidden: Tensor | Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            input: (T, B, input_size).
            hidden: cells before the first step (L, B, H), or one entry per layer; zeros when None.

        Returns:
            output (T, B, H), and the cells after the last step (L, B, H).

        Raises:
            ValueError, TypeError: for an argument of the wrong shape, dtype or device.
        """
        if hidden is not None:
            if not isinstance(hidden, (Tensor, list, tuple)):
                raise TypeError(f"hidden: expected a Tensor, got {type(hidden).__name__}")
            if isinstance(hidden, Tensor):
                shape = tuple(hidden.shape)
                check(len(shape) == 3, "hidden", "3 dimensions (L, B, H)", shape)
            L = len(self.layers)
            check(len(hidden) == L, "hidden", f"{L} layers", len(hidden))
        saved = [getattr(layer, "prevX", None) for layer in self.layers]
        try:
            return self._forward(input, hidden)
        except BaseException:  # a later layer's, when earlier ones have saved their inputs
            for layer, value in zip(self.layers, saved, strict=True):
                if hasattr(layer, "prevX"):
                    layer.prevX = value  # type: ignore[assignment]
            raise

    def _forward(
        self, output: Tensor, hidden: Tensor | Sequence[Tensor | None] | None
    ) -> tuple[Tensor, Tensor]:
        states: list[Tensor] = []
        for n, layer in enumerate(self.layers):
            if n:
                output = F.dropout(output, self.dropout, self.training)
            output, state = layer(output, None if hidden is None else hidden[n])
            check(
                not states or state.shape == states[0].shape, "layers", "one hidden size", "several"
            )
            states.append(state)
        return output, torch.cat(states)


def install() -> None:
    """Makes `import torchqrnn` mean this module, and pickles of the archived classes load."""
    this = sys.modules["qrnn.torchqrnn"]
    package = ModuleType("torchqrnn", this.__doc__)
    for name, classes in (
        ("qrnn", (QRNN, QRNNLayer)),
        ("forget_mult", (ForgetMult, BackwardForgetMult)),
    ):
        module = ModuleType(f"torchqrnn.{name}", this.__doc__)
        for public in classes:
            setattr(module, public.__name__, public)
            setattr(package, public.__name__, public)
        setattr(package, name, module)
        sys.modules[module.__name__] = module
    sys.modules["torchqrnn"] = package


def main() -> None:
    usage = "usage: python -m qrnn.torchqrnn script.py [its arguments]"
    if len(sys.argv) < 2:
        sys.exit(usage)
    script = sys.argv[1]
    if not Path(script).exists():
        sys.exit(f"{usage}\nerror: there is no {script}")
    sys.argv = sys.argv[1:]
    if not sys.flags.safe_path:
        sys.path[0] = str(Path(script).resolve().parent)
    install()
    # for processes that the script starts: multiprocessing hands them its sys.path
    sys.path.append(str(Path(__file__).with_name("archived")))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    # as __main__ this file has classes of its own, which nothing else would know
    from qrnn import torchqrnn

    torchqrnn.main()
