"""How the benchmarks time and check: the two kinds of device, races, and results verified.

Contenders take turns, so that all of them see the same machine; the median counts. A contender is
a list of calls, one per set of inputs, which are used in rotation.
"""

import ctypes
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import records
import torch
from torch import Tensor
from torch.backends import cudnn

Call = Callable[[], object]
Function = Callable[..., Tensor]
Row = dict[str, Any]  # of a record's table

WARM_UP = 1  # turns that are not counted
CAPTURED = 4  # calls in a graph, at least
# of the norm of a difference to the norm of the result; TF32 would be near 3e-4
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
SAMPLE = 1 << 20  # elements of a sequence from which on only one is verified


class WrongResult(Exception):
    """What was to be timed does not compute what it should."""


class Cpu:
    """All that differs between devices; times are in seconds, sizes in bytes.

    kind: torch's name for it. name, row, note: the record's device, row and note.
    dtypes: measured. seconds, turns: for which a row is repeated, and how often at least. limit:
    what a row of the scan suite may move. copied: size of a copy that no cache holds.
    """

    kind = "cpu"
    row = "cpu"
    note = ""
    turns = 3
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    limit = 256 * 10**6
    copied = 128 * 2**20
    seconds = 1.0

    def __init__(self) -> None:
        self.name = records.device(self.kind)

    def copies(self, size: int) -> int:
        """How many sets of inputs of this size have to rotate."""
        return 1

    def time(self, call: Call) -> float:
        """The time of one call, from an idle device until it is idle again."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """One call that repeats all of these without launching each; None where that fails."""
        return None

    def peak(self, call: Call) -> int:
        """The most memory that `call` held at once, beyond what was in use before."""
        raise NotImplementedError("memory is counted on CUDA only")

    def lstm_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type of nn.LSTM that `dtype` is compared with."""
        return dtype

    def milliseconds(self, **seconds: float | None) -> dict[str, float | None]:
        """Columns with absolute times: none on a CPU, whose name says too little about it."""
        return {}

    def clear(self) -> None:
        """Gives back memory that nothing uses."""


class Cuda:
    """The current GPU. float32 is meant: TF32 is switched off, for cuDNN and for products.

    `time` starts from an idle GPU and so includes what launching costs a program that waits for
    each result; a captured graph's replay hardly has any of that.
    """

    kind = "cuda"
    turns = 20
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    limit = 6 * 10**9
    copied = 2**30
    seconds = 0.03

    def __init__(self) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.name = records.device(self.kind)
        self.row = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        self.note = (
            f"TF32 off for matrix products and cuDNN; CUDA {torch.version.cuda}, "
            f"cuDNN {torch.backends.cudnn.version()}"
        )
        self._cache = torch.cuda.get_device_properties().L2_cache_size
        self._captures = True

    def copies(self, size: int) -> int:
        return self._cache // max(size, 1) + 1

    def time(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def capture(self, calls: Sequence[Call]) -> Call | None:
        if not self._captures:
            return None
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
        except RuntimeError as error:
            told = f"no CUDA graphs since one failed: {reason(error)}"
            print(told)
            self.note += f"; {told}"
            # torch leaves its stream and its random numbers as they were in the middle of it, and
            # its allocator, for good, believing that it goes on
            self._captures = False
            torch.cuda.set_stream(stream)
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(torch.Generator("cuda").graphsafe_get_state())
            torch.cuda.synchronize()
            return None
        return graph.replay

    def peak(self, call: Call) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def lstm_dtype(self, dtype: torch.dtype) -> torch.dtype:
        # what nn.LSTM asks before it lays out its weights as cuDNN wants them, once and for all
        if dtype.itemsize == 2 and not cudnn.is_acceptable(torch.empty(0, dtype=dtype).cuda()):
            return torch.float16
        return dtype

    def milliseconds(self, **seconds: float | None) -> dict[str, float | None]:
        return {k: None if v is None else round(v * 1e3, 5) for k, v in seconds.items()}

    def clear(self) -> None:
        torch.cuda.empty_cache()


Device = Cpu | Cuda


def keep_memory() -> bool:
    """Makes glibc's malloc keep what is given back; False where there is another malloc.

    By default what is larger than 32 MB goes back to the system, which clears it for the next one.
    That takes longer than the kernels, and whether it happens depends on the size alone.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    trim_threshold, mmap_max = -1, -4  # as in malloc.h
    return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1))


def reason(error: BaseException) -> str:
    """The first line of what went wrong."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def race(device: Device, contenders: Sequence[Sequence[Call]], seconds: float) -> list[float]:
    """The median time of each contender's calls."""
    times: list[list[float]] = [[] for _ in contenders]
    turn, end = -WARM_UP, math.inf
    while turn < device.turns or time.monotonic() < end:
        for calls, spent in zip(contenders, times, strict=True):
            spent.append(device.time(calls[turn % len(calls)]))
        turn += 1
        if turn == 0:
            times, end = [[] for _ in contenders], time.monotonic() + seconds
    return [statistics.median(spent) for spent in times]


def replays(
    device: Device, contenders: Sequence[Sequence[Call]], seconds: float
) -> list[float | None]:
    """As `race`, after it, with the calls of each contender in one captured graph."""
    found: list[float | None] = [None] * len(contenders)
    sizes, graphs = {}, []
    for n, calls in enumerate(contenders):
        repeated = list(calls) * -(-CAPTURED // len(calls))
        graph = device.capture(repeated)
        if graph is not None:
            sizes[n] = len(repeated)
            graphs.append([graph])
    if graphs:
        for n, spent in zip(sizes, race(device, graphs, seconds), strict=True):
            found[n] = spent / sizes[n]
    return found


def ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else round(above / below, 3)


def rotation(
    device: Device, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> list[tuple[Tensor, ...]]:
    """Sets of random inputs, together too large for the cache."""
    size = sum(map(math.prod, shapes)) * dtype.itemsize
    return [
        tuple(torch.randn(shape, device=device.kind, dtype=dtype) for shape in shapes)
        for _ in range(device.copies(size))
    ]


def run(
    function: Function,
    inputs: Sequence[Tensor],
    grad: Tensor | None = None,
    parameters: Sequence[Tensor] = (),
) -> list[Tensor]:
    """What is timed: forward without a graph, or forward and backward from the gradient `grad`.

    Returns function(*inputs), and then the gradients at the inputs, which from then on require
    one, and the parameters.
    """
    if grad is None:
        with torch.no_grad():
            return [function(*inputs)]
    for value in inputs:
        value.requires_grad_()
    output = function(*inputs)
    return [output, *torch.autograd.grad(output, (*inputs, *parameters), grad)]


def calls(
    function: Function,
    sets: Sequence[tuple[Tensor, ...]],
    backward: bool,
    parameters: Sequence[Tensor] = (),
) -> list[Call]:
    """A contender: `run` on each set, whose last tensor, with `backward`, is the gradient."""

    def call(inputs: tuple[Tensor, ...]) -> Call:
        if backward:
            return lambda: run(function, inputs[:-1], inputs[-1], parameters)
        return lambda: run(function, inputs)

    return [call(inputs) for inputs in sets]


def verify(
    what: str,
    function: Function,
    oracle: Function,
    inputs: Sequence[Tensor],
    grad: Tensor | None = None,
    parameters: Sequence[Tensor] = (),
) -> None:
    """Raises WrongResult unless `function` agrees with `oracle`, which takes float64.

    Inputs, output and gradient are (T, B, ...), and sequences are independent: compared is a
    sample of them, the last one among them. The gradient comes from these alone, so that those of
    the parameters, which `oracle` takes as its further arguments, are compared as a whole.
    """
    T, B = inputs[0].shape[:2]
    one = max(value[:, 0].numel() for value in inputs) > SAMPLE
    chosen = [B - 1] if one else sorted({0, B // 2, B - 1})
    masked = None
    if grad is not None:
        masked = torch.zeros_like(grad)
        masked[:, chosen] = grad[:, chosen]
    found = run(function, inputs, masked, parameters)
    wide = [value.detach()[:, chosen].double() for value in inputs]
    wide += [value.detach().double() for value in parameters]
    expected = run(oracle, wide, None if grad is None else grad[:, chosen].double())
    for n, (got, right) in enumerate(zip(found, expected, strict=True)):
        tolerance = TOLERANCE[got.dtype]
        if not torch.isfinite(got).all():
            raise WrongResult(f"{what}: result {n} is not finite")
        if n <= len(inputs):
            got = got[:, chosen]
        error = ((got.double() - right).norm() / right.norm()).item()
        if not error <= tolerance:
            raise WrongResult(f"{what}: result {n} is off by {error:.1e}, of {tolerance} allowed")
