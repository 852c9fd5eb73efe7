"""Other projects' scans for h_t = f_t h_{t-1} + x_t, each in its own layout, for the benchmarks.

None of them is a dependency: those that are installed are measured, and of the others the record
says why not.
"""

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from qrnn.pooling import reference

Function = Callable[..., Tensor]


class Peer(NamedTuple):
    """How to call a scan.

    order: its layout, as a permutation of (T, B, H).
    inputs: f and x as it wants them, differentiable; still (T, B, H).
    scan: from such inputs, in its layout, to all h.
    most_steps: T from which on it is not measured.
    """

    order: tuple[int, int, int]
    inputs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    scan: Function
    most_steps: int = 1 << 62

    def native(self, value: Tensor) -> Tensor:
        """From (T, B, H) to its layout."""
        return value.permute(self.order).contiguous()

    def timed(self, f: Tensor, x: Tensor) -> Tensor:
        """The scan from and to (T, B, H), for comparing results."""
        h = self.scan(*map(self.native, self.inputs(f, x)))
        back = sorted(range(3), key=self.order.__getitem__)
        return h.permute(back)


def hgrn(module: str, function: str) -> Peer:
    scan = getattr(import_module(module), function)
    return Peer((1, 0, 2), lambda f, x: (f.log(), x), lambda g, x: scan(x, g)[0])


def accelerated_scan() -> Peer:
    scan = import_module("accelerated_scan.warp").scan
    return Peer((1, 2, 0), lambda f, x: (f, x), scan, most_steps=65_536)


def forget_mult() -> Peer:
    """Its gate is what is let in: h_t = f_t x_t + (1 - f_t) h_{t-1}."""
    scan = import_module("torchqrnn.forget_mult").ForgetMult()

    def on_device(f: Tensor, x: Tensor) -> Tensor:
        return scan(f, x, None, f.is_cuda)

    return Peer((0, 1, 2), lambda f, x: (1 - f, x / (1 - f)), on_device)


def sru() -> Peer:
    raise NotImplementedError(
        "another recurrence: its kernel makes f_t from c_{t-1}, and takes no ready factors"
    )


def compiled() -> Peer:
    """Unrolled by the compiler, which takes minutes for more steps than these."""
    scan = torch.compile(reference.linear_recurrence, dynamic=False)

    def from_zero(f: Tensor, x: Tensor) -> Tensor:
        return scan(f, x, f.new_zeros(f.shape[1:]), False)

    return Peer((0, 1, 2), lambda f, x: (f, x), from_zero, most_steps=64)


PEERS: dict[str, Callable[[], Peer]] = {
    "fla HGRN recurrent": lambda: hgrn("fla.ops.hgrn", "fused_recurrent_hgrn"),
    "fla HGRN chunk": lambda: hgrn("fla.ops.hgrn", "chunk_hgrn"),
    "accelerated-scan warp": accelerated_scan,
    "SRU": sru,
    "torchqrnn ForgetMult": forget_mult,
    "torch.compile of the loop": compiled,
}
"""Name to a function that finds the peer; it raises whatever keeps the peer from being used."""
