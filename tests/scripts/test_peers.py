"""The adapters against stand-ins that do, in plain PyTorch, what the projects' documents say."""

import subprocess
import sys
import time
from types import ModuleType

import peers
import pytest
import torch


def loop(f, x, time):
    """h_t = f_t h_{t-1} + x_t along the dimension `time`."""
    h, all_h = torch.zeros_like(x.select(time, 0)), []
    for f_t, x_t in zip(f.unbind(time), x.unbind(time), strict=True):
        h = f_t * h + x_t
        all_h.append(h)
    return torch.stack(all_h, time)


def hgrn(x, g, initial_state=None, output_final_state=False):
    """(B, T, D), g is the logarithm of the factor; also returns a state."""
    assert x.is_contiguous() and g.is_contiguous()
    return loop(g.exp(), x, 1), None


def scan(gates, tokens):
    """(B, C, T)."""
    assert gates.is_contiguous() and tokens.is_contiguous()
    return loop(gates, tokens, 2)


class ForgetMult(torch.nn.Module):
    """(T, B, H), h_t = f_t x_t + (1 - f_t) h_{t-1}."""

    def forward(self, f, x, hidden_init=None, use_cuda=True):
        assert not use_cuda
        return loop(1 - f, f * x, 0)


STAND_INS = {
    "fla.ops.hgrn": {"fused_recurrent_hgrn": hgrn, "chunk_hgrn": hgrn},
    "accelerated_scan.warp": {"scan": scan},
    "accelerated_scan.scalar": {"scan": scan},
    "torchqrnn.forget_mult": {"ForgetMult": ForgetMult},
}


@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "SRU"])
def test_every_layout_gives_the_same_recurrence(name, monkeypatch):
    for module, names in STAND_INS.items():
        stand_in = ModuleType(module)
        stand_in.__dict__.update(names)
        monkeypatch.setitem(sys.modules, module.partition(".")[0], ModuleType("parent"))
        monkeypatch.setitem(sys.modules, module, stand_in)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    f = torch.rand(5, 3, 2, dtype=torch.float64, requires_grad=True)
    x, grad = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    x.requires_grad_()
    peer = peers.PEERS[name]()
    found, right = peer.timed(f, x), loop(f, x, 0)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(
        torch.autograd.grad(found, (f, x), grad), torch.autograd.grad(right, (f, x), grad)
    )
    native = peer.native(grad)
    assert native.shape == peer.scan(*map(peer.native, peer.inputs(f, x))).shape


@pytest.mark.parametrize("name", [name for name in peers.PEERS if "compile" not in name])
def test_what_is_missing_says_why(name, monkeypatch):
    for module in STAND_INS:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises((ImportError, NotImplementedError)):
        peers.PEERS[name]()


def test_the_first_call_goes_forward_and_backward(monkeypatch):
    seen = []

    def scan(f, x):
        seen.append((f.shape, f.requires_grad))
        return loop(f, x, 0)

    peer = peers.Peer((0, 1, 2), lambda f, x: (f, x), scan, most_steps=200)
    monkeypatch.setattr(peers, "PEERS", {"A": lambda: peer})
    peers.first_call("A", 2, 130, 3, "cpu")
    assert seen == [((128, 2, 3), False), ((128, 2, 3), True)]
    peers.first_call("A", 2, 201, 3, "cpu")
    assert len(seen) == 2
    monkeypatch.setattr(peers, "OF_EACH_SHAPE", {"A"})
    peer = peer._replace(forward_only="wrong")
    peers.first_call("A", 2, 130, 3, "cpu")
    assert seen[2:] == [((130, 2, 3), False)]


def test_each_peer_is_compiled_for_each_size_or_shape_in_a_process_of_its_own(monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command[-4:])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(peers, "PEERS", dict.fromkeys("AB"))
    monkeypatch.setattr(peers, "OF_EACH_SHAPE", {"B"})
    monkeypatch.setattr(peers.subprocess, "run", run)
    assert not peers.compile_side_by_side([(8, 64, 4), (9, 128, 4), (1, 7, 5)])
    of_each = ["A 8 64 4", "A 1 7 5", "B 8 64 4", "B 9 128 4", "B 1 7 5"]
    assert sorted(map(" ".join, commands)) == sorted(of_each)


def test_a_peer_that_does_not_end_compiling_is_ended_with_what_it_started(monkeypatch, tmp_path):
    program = tmp_path / "peers.py"
    program.write_text(
        "import subprocess, sys\n"
        "if sys.argv[1] == 'waits':\n"
        "    child = subprocess.Popen(['sleep', '300'])\n"
        f"    open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "    child.wait()\n"
    )
    monkeypatch.setattr(peers, "__file__", str(program))
    monkeypatch.setattr(peers, "PEERS", dict.fromkeys(["ends", "waits"]))
    monkeypatch.setattr(peers, "SECONDS", 2)
    assert peers.compile_side_by_side([(8, 64, 4)]) == {"waits"}
    ps = ["ps", "-o", "args=", "-p", (tmp_path / "child").read_text()]
    for _ in range(100):  # it has its signal, and may be about to go
        left = subprocess.run(ps, capture_output=True, text=True, check=False).stdout
        if "sleep 300" not in left:
            return
        time.sleep(0.05)
    raise AssertionError(left)
