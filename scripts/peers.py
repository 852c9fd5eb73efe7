"""Other projects' scans for h_t = f_t h_{t-1} + x_t, each in its own layout, for the benchmarks.

None of them is a dependency: those that are installed are measured, and of the others the record
says why not. As a program, python scripts/peers.py NAME B T H, it compiles what a peer needs.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    forward_only: why its gradients are not measured; empty if they are.
    """

    order: tuple[int, int, int]
    inputs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    scan: Function
    most_steps: int = 1 << 62
    forward_only: str = ""

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


def accelerated_scan(module: str) -> Peer:
    scan = import_module(module).scan
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


def associative_scan() -> Peer:
    """torch's own, of which it makes other code for each shape.

    On a GPU its gradient of f is zero, and takes T * T * B * H elements (pytorch issue 172568).
    """
    scan = import_module("torch._higher_order_ops.associative_scan").associative_scan

    def combined(early: tuple[Tensor, Tensor], late: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        (f, x), (g, y) = early, late
        return f * g, g * x + y

    def from_zero(f: Tensor, x: Tensor) -> Tensor:
        mode = "pointwise" if f.is_cuda else "generic"
        h: Tensor = scan(combined, (f, x), 0, combine_mode=mode)[1]
        return h

    torch._dynamo.config.recompile_limit = 64  # what is beyond it would run uncompiled
    compiled = torch.compile(from_zero, dynamic=False, fullgraph=True)
    wrong = "the gradient of a scan of several values is wrong" if torch.cuda.is_available() else ""
    return Peer((0, 1, 2), lambda f, x: (f, x), compiled, forward_only=wrong)


PEERS: dict[str, Callable[[], Peer]] = {
    "fla HGRN recurrent": lambda: hgrn("fla.ops.hgrn", "fused_recurrent_hgrn"),
    "fla HGRN chunk": lambda: hgrn("fla.ops.hgrn", "chunk_hgrn"),
    "accelerated-scan warp": lambda: accelerated_scan("accelerated_scan.warp"),
    "accelerated-scan scalar": lambda: accelerated_scan("accelerated_scan.scalar"),
    "SRU": sru,
    "torchqrnn ForgetMult": forget_mult,
    "torch.compile of the loop": compiled,
    "torch.compile of associative_scan": associative_scan,
}
"""Name to a function that finds the peer; it raises whatever keeps the peer from being used."""

OF_EACH_SHAPE = {"torch.compile of associative_scan"}  # needs its code anew
MANY = 128  # steps, of which the other peers make no other kernels than of more
SECONDS = 120  # that a process may compile


def compile_side_by_side(shapes: Sequence[tuple[int, int, int]]) -> set[str]:
    """Has all peers put into their caches on disk what they compile at the first call.

    In a process for each peer and H of the shapes (B, T, H), or for each shape, on a GPU: one after
    the other they would take minutes. Returns the peers that took more than SECONDS, which must not
    be used: they may wait without end, as torch does for the lock of a build that was killed. Which
    of the others fails, and why, shows where it is measured.
    """
    shortest = {shape[2]: shape for shape in sorted(shapes, key=lambda s: s[1], reverse=True)}
    # which kernel is fastest fla has to find out, and remember, with nothing beside it
    environment = os.environ | {"FLA_CACHE_RESULTS": "0"}
    late = set()

    def compile_one(task: tuple[str, tuple[int, int, int]]) -> None:
        name, shape = task
        # `timeout` ends the compilers as well, and then returns 124
        command = ["timeout", str(SECONDS), sys.executable, __file__, name, *map(str, shape)]
        nowhere = subprocess.DEVNULL
        run = subprocess.run(command, env=environment, stdout=nowhere, stderr=nowhere, check=False)
        if run.returncode == 124:
            late.add(name)

    tasks = [
        (name, shape)
        for name in PEERS
        for shape in (shapes if name in OF_EACH_SHAPE else shortest.values())
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, tasks))
    return late


def first_call(name: str, B: int, T: int, H: int, device: str) -> None:
    """Forward alone, and with backward, unless the peer is not measured for so many steps."""
    peer = PEERS[name]()
    if T > peer.most_steps:
        return
    steps = T if name in OF_EACH_SHAPE else min(T, MANY)
    f, x = torch.rand(2, steps, B, H, device=device)
    native = [peer.native(value).detach() for value in peer.inputs(f, x)]
    with torch.no_grad():
        peer.scan(*native)
    if peer.forward_only:
        return
    for value in native:
        value.requires_grad_()
    h = peer.scan(*native)
    torch.autograd.grad(h, native, torch.ones_like(h))


if __name__ == "__main__":
    name, B, T, H = sys.argv[1:]
    first_call(name, int(B), int(T), int(H), "cuda")
