"""Several GPUs: DataParallel in one process, DistributedDataParallel in several.

python scripts/examples/parallel.py     # without GPUs: two processes on the CPU

DataParallel splits a time-major batch with dim=1, and puts outputs and states together there.
"""

import os
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from qrnn import QRNN

PROCESSES = 2


def make() -> tuple[QRNN, Tensor]:
    """The same model and batch in every process."""
    torch.manual_seed(1)
    return QRNN(8, 16, num_layers=2, kernel_size=2), torch.randn(20, 4 * PROCESSES, 8)


def data_parallel() -> Tensor:
    """One process, the batch split over all GPUs; (T, B, H)."""
    rnn, x = make()
    if torch.cuda.is_available():
        rnn, x = rnn.cuda(), x.cuda()
    output, (h_n, _) = nn.DataParallel(rnn, dim=1)(x)
    torch.testing.assert_close((output, h_n), (rnn(x)[0], rnn(x)[1][0]), rtol=1e-4, atol=1e-5)
    return output


def step(rank: int, folder: str) -> None:
    """One process of several: the gradient of its part of the batch, averaged over all."""
    gpus = torch.cuda.device_count() >= PROCESSES
    distributed.init_process_group(
        "nccl" if gpus else "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(minutes=1),
    )
    device = torch.device("cuda", rank) if gpus else torch.device("cpu")
    rnn, x = make()
    parallel = DistributedDataParallel(rnn.to(device), device_ids=[rank] if gpus else None)
    output, _ = parallel(x.chunk(PROCESSES, 1)[rank].to(device))
    output.square().mean().backward()
    if rank == 0:
        torch.save(
            [p.grad.cpu() for p in rnn.parameters() if p.grad is not None], f"{folder}/grads"
        )
    distributed.destroy_process_group()


def distributed_data_parallel() -> list[Tensor]:
    """The gradients that several processes agree on: those of the whole batch."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(step, (folder,), PROCESSES)
        grads: list[Tensor] = torch.load(Path(folder) / "grads")
    rnn, x = make()
    rnn(x)[0].square().mean().backward()
    for got, parameter in zip(grads, rnn.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-6)
    return grads


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("DataParallel:", tuple(data_parallel().shape), f"on {torch.cuda.device_count()} GPUs")
    grads = distributed_data_parallel()
    print(f"DistributedDataParallel: {len(grads)} gradients from {PROCESSES} processes")
