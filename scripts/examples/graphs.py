"""A training step as one CUDA graph: the time of a short sequence is all kernel launches.

python scripts/examples/graphs.py       # needs a GPU

The graph works on the memory that it was captured with: copy each batch into the same tensors.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from qrnn import QRNN

Step = Callable[[], Tensor]


def make(device: str) -> tuple[Step, Tensor, Tensor]:
    """A step of training, and the tensors that it reads: a batch x (T, B, I), and its target."""
    torch.manual_seed(1)
    rnn, head = QRNN(64, 128, num_layers=2).to(device), nn.Linear(128, 1).to(device)
    sgd = torch.optim.SGD([*rnn.parameters(), *head.parameters()], lr=0.1)
    x, target = torch.randn(32, 8, 64, device=device), torch.randn(8, 1, device=device)

    def step() -> Tensor:
        sgd.zero_grad()
        output, _ = rnn(x)
        loss = (head(output[-1]) - target).square().mean()
        loss.backward()
        sgd.step()
        return loss.detach()

    return step, x, target


def captured(step: Step, warm_up: int = 3) -> Step:
    """`step` in one launch; its result is overwritten by the next. Runs `step` as often before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are compiled, and libraries take their memory
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def seconds(step: Step, times: int = 200) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("needs a GPU: there are no CUDA graphs on a CPU")
    step, x, target = make("cuda")
    replay = captured(step)
    for _ in range(500):
        x.normal_()  # a real batch would be copied into x and target
        target.copy_(x[-8:, :, :1].mean(0))
        loss = replay()
    print(f"loss after 500 steps: {loss.item():.3f}")
    print(f"the graph is {seconds(step) / seconds(replay):.1f} times as fast as the step it is of")
