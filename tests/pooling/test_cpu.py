"""The compiled CPU backend against the reference.

The criterion of flash-attention: the largest error against the float64 result may be at most twice
that of the reference run in the same type, plus a floor for the cases where the reference happens
to be exact: half a unit of the type for the rounding of the result, which is all that the 16-bit
types need, and two units of float32 for the activations, at the largest value.
"""

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qrnn.pooling import reference

cpu = pytest.importorskip("qrnn.pooling.cpu", reason="numba is not installed", exc_type=ImportError)

GATES = {"f": 2, "fo": 3, "ifo": 4}
DIRECTIONS = ["forward", "reverse", "both"]
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
Results = dict[str, Tensor]


def make(
    T: int,
    B: int,
    H: int,
    pooling: str = "fo",
    direction: str = "forward",
    *,
    lengths: bool = False,
    c0: bool = False,
    seed: bool = False,
    zoneout: float = 0.0,
    random: int = 0,
) -> dict[str, Any]:
    """Arguments of `pool` by name; with `lengths` the first sequence has none and is all NaN."""
    generator = torch.Generator().manual_seed(random)
    D = 2 if direction == "both" else 1
    case: dict[str, Any] = {
        "gates": 2 * torch.randn(T, B, D * GATES[pooling] * H, generator=generator).double(),
        "c0": torch.randn(D, B, H, generator=generator).double() if c0 else None,
        "lengths": None,
        "seed": torch.randint(2**63 - 1, (), generator=generator) if seed else None,
        "pooling": pooling,
        "direction": direction,
        "zoneout": zoneout,
    }
    if lengths:
        values = torch.randint(T + 1, (B,), generator=generator)
        values[:1] = 0
        case["lengths"] = values
        padding = torch.arange(T)[:, None] >= values
        case["gates"].masked_fill_(padding[:, :, None], float("nan"))
    return case


def run(backend: Any, case: dict[str, Any], dtype: torch.dtype) -> Results:
    """h, h_n, c_n and the gradients of a fixed weighting of them, by `backend` in `dtype`."""
    case = dict(case)
    for name in ("gates", "c0"):
        if case[name] is not None:
            case[name] = case[name].to(dtype)
    generator = torch.Generator().manual_seed(1)
    if backend is cpu:
        h, cells, h_n, c_n = cpu.pool(**case, keep_cells=True)
    else:
        case["gates"] = case["gates"].detach().requires_grad_()
        start = torch.zeros_like(reference.pool(**case, keep_cells=False)[3])
        case["c0"] = (start if case["c0"] is None else case["c0"]).detach().requires_grad_()
        h, _, h_n, c_n = reference.pool(**case, keep_cells=False)
    outputs = {"h": h, "h_n": h_n, "c_n": c_n}
    weights = {
        f"grad_{name}": torch.randn(v.shape, generator=generator).to(torch.bfloat16).to(dtype)
        for name, v in outputs.items()
    }
    if backend is cpu:
        kept = h if case["pooling"] == "f" else cells
        grads = cpu.pool_backward(cells=kept, **weights, **case)
    else:
        grads = torch.autograd.grad(
            [*outputs.values()],
            [case["gates"], case["c0"]],
            [*weights.values()],
            materialize_grads=True,
        )
    results = {**outputs, "grad_gates": grads[0], "grad_c0": grads[1]}
    assert all(v.dtype == dtype for v in results.values())
    return {name: v.detach() for name, v in results.items()}


def rounded(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same case with values that `dtype` can hold, so that every type starts equal."""
    tensors = {n: case[n].to(dtype).double() for n in ("gates", "c0") if case[n] is not None}
    return case | tensors


def check_error(name: str, got: Tensor, same: Tensor, truth: Tensor) -> None:
    """`got` and `same` are compared with `truth`, which is in float64."""
    if got.dtype == torch.float64:
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12, msg=name)
    elif truth.numel():
        units = torch.finfo(got.dtype).eps / 2 + 2 * torch.finfo(torch.float32).eps
        allowed = 2 * (same.double() - truth).abs().max() + units * truth.abs().max()
        error = (got.double() - truth).abs().max()
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


def check_against_reference(case: dict[str, Any], dtype: torch.dtype) -> None:
    case = rounded(case, dtype)
    truth = run(reference, case, torch.float64)
    got, same = run(cpu, case, dtype), run(reference, case, dtype)
    for name in truth:
        check_error(name, got[name], same[name], truth[name])


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts back torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestPool:
    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("pooling", GATES)
    def test_equals_the_reference(self, pooling: str, direction: str, dtype: torch.dtype) -> None:
        for H in (1, 15, 16, 17, 33):
            for lengths in (False, True):
                case = make(12, 3, H, pooling, direction, lengths=lengths, c0=lengths, random=H)
                check_against_reference(case, dtype)

    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("pooling", GATES)
    @pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("seed", [False, True])
    def test_zoneout(self, seed: bool, rate: float, pooling: str, dtype: torch.dtype) -> None:
        for direction in DIRECTIONS:
            case = make(
                9, 3, 17, pooling, direction, lengths=True, c0=True, seed=seed, zoneout=rate
            )
            check_against_reference(case, dtype)

    @given(st.data())
    def test_random_cases(self, data: Any) -> None:
        case = make(
            data.draw(st.integers(0, 40), "T"),
            data.draw(st.integers(0, 4), "B"),
            data.draw(st.integers(1, 40), "H"),
            data.draw(st.sampled_from(list(GATES))),
            data.draw(st.sampled_from(DIRECTIONS)),
            lengths=data.draw(st.booleans(), "lengths"),
            c0=data.draw(st.booleans(), "c0"),
            seed=data.draw(st.booleans(), "seed"),
            zoneout=data.draw(st.floats(0, 1), "zoneout"),
            random=data.draw(st.integers(0, 2**32), "random"),
        )
        check_against_reference(case, data.draw(st.sampled_from(TYPES)))

    # the first is itself a number drawn, which must be below the rate, as it is for the second
    @pytest.mark.parametrize(
        "rate",
        [oracle.uniform(1, 50), oracle.uniform(1, 50) + 2**-25, 2**-24, 1e-9, 0.3, 1 - 2**-24],
    )
    def test_draws_the_same_entries_as_the_reference(self, rate: float) -> None:
        # z = 1, f = 1/2 and float64: an entry more or less shows
        gates = torch.zeros(300, 2, 2, 2, 60, dtype=torch.float64)
        gates[:, :, :, 0] = 40.0
        for seed in (0, 1, 2**63 - 2):
            rest = (None, None, torch.tensor(seed), "f", "both", rate, False)
            got = cpu.pool(gates.flatten(2), *rest)[0]
            want = reference.pool(gates.flatten(2), *rest)[0]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("pooling", GATES)
    def test_huge_and_infinite_pre_activations(self, pooling: str, dtype: torch.dtype) -> None:
        """Every pair of extreme values in two gates: sigmoid and tanh saturate as torch's do."""
        values = torch.tensor([0.5, 30, 80, 95, 710, 1e4, float("inf")], dtype=torch.float64)
        values = torch.cat([values, -values])
        G, n = GATES[pooling], len(values)
        for gate in range(G):
            gates = torch.randn(1, n, G, n, dtype=torch.float64).to(dtype).double()
            gates[0, :, gate] = values
            gates[0, :, (gate + 1) % G] = values[:, None]
            case = make(1, n, n, pooling, c0=True) | {"gates": gates.flatten(2)}
            case = rounded(case, dtype)
            got, want = run(cpu, case, dtype), run(reference, case, dtype)
            for name in got:
                assert got[name].isfinite().all()
                units = 4 * max(torch.finfo(dtype).eps, 2.0**-50)
                torch.testing.assert_close(got[name], want[name], rtol=units, atol=units, msg=name)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("pooling", GATES)
    def test_nan_goes_where_the_reference_lets_it(self, pooling: str, direction: str) -> None:
        D, G, H = 2 if direction == "both" else 1, GATES[pooling], 19
        for gate in range(G):
            case = make(5, 2, H, pooling, direction)
            case["gates"].view(5, 2, D, G, H)[2, 1, :, gate, 7] = float("nan")
            for dtype in (torch.float64, torch.float32):
                got, want = run(cpu, case, dtype), run(reference, case, dtype)
                assert got["h"].isnan().any()
                for name in got:
                    assert torch.equal(got[name].isnan(), want[name].isnan()), name

    def test_accuracy_of_the_activations(self) -> None:
        """In one step, to a few units in the last place, near 0 as well."""
        rest = (None, None, None)
        x = torch.cat([torch.logspace(-30, 1.9, 4001, dtype=torch.float64), torch.zeros(1)])
        x = torch.cat([x, -x])
        for dtype in (torch.float32, torch.float64):
            a = x.to(dtype)
            eps = torch.finfo(dtype).eps
            # tanh alone: an update gate of 1
            gates = torch.stack([a, torch.full_like(a, -200)]).view(1, 1, -1)
            z = cpu.pool(gates, *rest, "f", "forward", 0.0, False)[0].view(-1)
            want = a.double().tanh()
            assert ((z.double() - want).abs() <= 4 * eps * want.abs()).all()
            # sigmoid alone: cells of 1
            gates = torch.stack([torch.full_like(a, 200), torch.full_like(a, -200), a])
            o = cpu.pool(gates.view(1, 1, -1), *rest, "fo", "forward", 0.0, False)[0].view(-1)
            want = a.double().sigmoid()
            assert ((o.double() - want).abs() <= 4 * eps * want).all()
            # 1 - sigmoid alone: z of 1
            gates = torch.stack([torch.full_like(a, 200), a]).view(1, 1, -1)
            u = cpu.pool(gates, *rest, "f", "forward", 0.0, False)[0].view(-1)
            assert ((u.double() - (-a.double()).sigmoid()).abs() <= 2 * eps).all()

    @pytest.mark.parametrize("shape", [(0, 2, 3), (3, 0, 3), (3, 2, 0), (0, 0, 0), (1, 1, 1)])
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_empty_shapes(self, direction: str, shape: tuple[int, int, int]) -> None:
        case = make(*shape, "fo", direction, c0=True)
        for a, b in zip(
            cpu.pool(**case, keep_cells=True), reference.pool(**case, keep_cells=True), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
        check_against_reference(case, torch.float64)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("pooling", GATES)
    def test_padding_is_not_read(self, pooling: str, direction: str) -> None:
        case = make(6, 3, 17, pooling, direction, lengths=True, c0=True)
        padding = (torch.arange(6)[:, None] >= case["lengths"])[:, :, None]
        results = []
        for filler in (0.0, float("nan")):
            case["gates"].masked_fill_(padding, filler)
            h, cells, h_n, c_n = cpu.pool(**case, keep_cells=True)
            kept = h if pooling == "f" else cells
            given = {"grad_h": torch.ones_like(h).masked_fill(padding, filler)}
            given |= {"grad_h_n": h_n, "grad_c_n": c_n}
            grads = cpu.pool_backward(cells=kept, **given, **case)
            for value in (h, kept, grads[0]):
                assert not value.masked_select(padding).any()
            results.append([h, cells, h_n, c_n, *grads])
        for zero, nan in zip(*results, strict=True):
            assert torch.equal(zero, nan)

    @pytest.mark.parametrize("pooling", GATES)
    def test_cells_are_kept_on_request_only(self, pooling: str) -> None:
        case = make(5, 3, 17, pooling, "both", lengths=True)
        for keep in (False, True):
            got, want = (backend.pool(**case, keep_cells=keep) for backend in (cpu, reference))
            torch.testing.assert_close(got[1], want[1], rtol=0, atol=1e-14)

    def test_non_contiguous_arguments(self) -> None:
        case = make(6, 4, 17, "fo", "forward", c0=True)
        strided = dict(case)
        strided["gates"] = case["gates"].transpose(0, 1).contiguous().transpose(0, 1)
        strided["c0"] = case["c0"].repeat_interleave(2, 2)[:, :, ::2]
        strided["lengths"] = torch.tensor([5]).expand(4)
        case["lengths"] = torch.full((4,), 5)
        assert not strided["gates"].is_contiguous() and not strided["c0"].is_contiguous()
        got, want = (run(cpu, v, torch.float64) for v in (strided, case))
        for name in want:
            assert torch.equal(got[name], want[name])

    def test_arguments_are_left_alone(self) -> None:
        case = make(6, 4, 17, "ifo", "both", lengths=True, c0=True, seed=True, zoneout=0.5)
        before = {n: v.clone() for n, v in case.items() if isinstance(v, Tensor)}
        run(cpu, case, torch.float64)
        for name, value in before.items():
            torch.testing.assert_close(case[name], value, rtol=0, atol=0, equal_nan=True)


class TestLinearRecurrence:
    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("reverse", [False, True])
    def test_equals_the_reference(self, reverse: bool, dtype: torch.dtype) -> None:
        for T, B, H in ((20, 3, 1), (20, 3, 33), (1, 1, 16), (0, 2, 3), (3, 0, 3), (3, 2, 0)):
            f = (torch.rand(T, B, H) * 1.1).to(dtype)
            x, h0 = torch.randn(T, B, H).to(dtype), torch.randn(B, H).to(dtype)
            truth = reference.linear_recurrence(f.double(), x.double(), h0.double(), reverse)
            same = reference.linear_recurrence(f, x, h0, reverse)
            got = cpu.linear_recurrence(f, x, h0, reverse)
            assert got.dtype == dtype and got.shape == (T, B, H)
            check_error("h", got, same, truth)
            inputs = (torch.randn(T, B, H).to(dtype), f, h0, got)
            truths = reference.linear_recurrence_backward(*(v.double() for v in inputs), reverse)
            sames = reference.linear_recurrence_backward(*inputs, reverse)
            grads = cpu.linear_recurrence_backward(*inputs, reverse)
            for name, grad, same, truth in zip("fx0", grads, sames, truths, strict=True):
                assert grad.dtype == dtype and grad.shape == truth.shape
                check_error(name, grad, same, truth)

    def test_inf_and_nan_go_through(self) -> None:
        f, x = torch.full((4, 1, 17), 0.5), torch.ones(4, 1, 17)
        x[1, 0, 3], x[2, 0, 5] = float("nan"), float("inf")
        h = cpu.linear_recurrence(f, x, torch.zeros(1, 17), False)
        want = reference.linear_recurrence(f, x, torch.zeros(1, 17), False)
        torch.testing.assert_close(h, want, equal_nan=True)


def test_another_default_device() -> None:
    case = make(3, 2, 4, c0=True)
    f, x, h0 = torch.rand(3, 2, 4), torch.randn(3, 2, 4), torch.zeros(2, 4)

    def results() -> list[torch.Tensor]:
        return [*cpu.pool(**case, keep_cells=True), cpu.linear_recurrence(f, x, h0, False)]

    want = results()
    with torch.device("meta"):
        got = results()
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_without_the_compiler(tmp_path: Path) -> None:
    run_script(
        """
        import os
        import warnings
        os.environ["NUMBA_DISABLE_JIT"] = "1"
        import torch
        import qrnn

        with warnings.catch_warnings(record=True) as told:
            output, _ = qrnn.QRNN(3, 4)(torch.randn(3, 2, 3))
        assert output.shape == (3, 2, 4)
        assert "(NUMBA_DISABLE_JIT is set)" in str(told[0].message)
        """,
        tmp_path,
    )


class TestThreads:
    # more rows than threads, fewer, and one row whose channels do not divide evenly
    SHAPES = ((64, 8, 33), (90, 2, 100), (600, 1, 33), (140, 1, 130), (1200, 1, 15))

    @pytest.mark.usefixtures("threads")
    @pytest.mark.parametrize("seed", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_results_do_not_depend_on_their_number(
        self, shape: tuple[int, int, int], dtype: torch.dtype, seed: bool
    ) -> None:
        case = make(*shape, "ifo", "forward", lengths=True, c0=True, seed=seed, zoneout=0.3)
        case["lengths"][0] = shape[0]
        case["gates"].nan_to_num_(0.25)
        scans = [torch.rand(shape, dtype=dtype), torch.randn(shape, dtype=dtype)]
        runs = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results = run(cpu, case, dtype)
            start = torch.zeros(shape[1:], dtype=dtype)
            results["scan"] = cpu.linear_recurrence(*scans, start, False)
            results["scan backward"] = torch.stack(
                cpu.linear_recurrence_backward(*scans, start, results["scan"], False)[:2]
            )
            runs.append(results)
        for other in runs[1:]:
            for name, value in runs[0].items():
                assert torch.equal(value, other[name]), name

    @pytest.mark.usefixtures("threads")
    def test_concurrent_calls(self) -> None:
        torch.set_num_threads(2)
        cases = [make(80, 4 + n, 64, "fo", "forward", random=n) for n in range(8)]
        alone = [run(cpu, case, torch.float32) for case in cases]
        with ThreadPoolExecutor(len(cases)) as pool:
            for _ in range(3):
                together = list(pool.map(lambda case: run(cpu, case, torch.float32), cases))
                for got, want in zip(together, alone, strict=True):
                    for name in want:
                        assert torch.equal(got[name], want[name])

    def test_works_after_the_main_thread(self, tmp_path: Path) -> None:
        script = run_script(
            """
            import threading
            import torch
            from qrnn.pooling import cpu

            torch.set_num_threads(2)
            gates = torch.randn(70, 2, 3 * 128)
            options = (None, None, None, "fo", "forward", 0.0, False)
            before = cpu.pool(gates, *options)[0]

            def work():
                threading.main_thread().join()
                after = cpu.pool(gates, *options)[0]
                print(torch.equal(before, after))

            threading.Thread(target=work).start()
            """,
            tmp_path,
        )
        assert script.stdout == "True\n"

    @pytest.mark.parametrize("refused", [1, 1000])
    def test_works_where_no_thread_can_be_started(
        self, refused: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """ThreadPoolExecutor queues a call before it has a thread for it."""
        start, failed = threading.Thread.start, []

        def limited(thread: threading.Thread) -> None:
            if thread.name.startswith("qrnn") and len(failed) < refused:
                failed.append(thread)
                raise RuntimeError("can't start new thread")
            start(thread)

        gates = torch.randn(70, 4, 3 * 128)
        options = (None, None, None, "fo", "forward", 0.0, False)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(4)
            expected = cpu.pool(gates, *options)[0].clone()
            cpu._threads.cache_clear()
            monkeypatch.setattr(threading.Thread, "start", limited)
            found = cpu.pool(gates, *options)[0]
            assert failed and torch.equal(found, expected)
            found.zero_()
            cpu.pool(gates, *options)
            assert cpu._threads(os.getpid())._work_queue.qsize() == 0 and not found.any()
        finally:
            torch.set_num_threads(threads)

    def test_works_after_fork(self, tmp_path: Path) -> None:
        run_script(
            """
            import os
            import torch
            from qrnn.pooling import cpu

            torch.set_num_threads(2)
            # enough for two threads of ours, too little for torch to start its own
            gates = torch.randn(70, 2, 3 * 128)
            options = (None, None, None, "fo", "forward", 0.0, False)
            before = cpu.pool(gates, *options)[0]
            child = os.fork()
            if not child:
                after = cpu.pool(gates, *options)[0]
                os._exit(0 if torch.equal(before, after) else 3)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert torch.equal(before, cpu.pool(gates, *options)[0])
            """,
            tmp_path,
        )


def run_script(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    root = str(Path(__file__).parents[2])
    script.write_text(f"import sys\nsys.path.insert(0, {root!r})\n" + textwrap.dedent(code))
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


class TestCache:
    def test_a_second_process_compiles_nothing(self, tmp_path: Path) -> None:
        code = """
            import os, sys
            os.environ["NUMBA_CACHE_DIR"] = sys.argv[0] + ".cache"
            import torch
            from qrnn.pooling import cpu

            gates, options = torch.randn(3, 2, 6), (None, None, None, "f", "forward", 0.0)
            h, _, h_n, c_n = cpu.pool(gates, *options, True)
            cpu.pool_backward(gates, *options[:3], h, h, h_n, c_n, *options[3:])
            cpu.linear_recurrence(h, h, h[0], False)
            """
        written = []
        for _ in range(2):
            run_script(code, tmp_path)
            files = tmp_path.rglob("*.nb[ci]")
            written.append({file.name: file.stat().st_mtime_ns for file in files})
        assert len(written[0]) >= 6  # code and index of three kernels
        assert written[0] == written[1]

    def test_where_none_can_be_written(self, tmp_path: Path) -> None:
        """A read-only installation in a read-only home."""
        code = """
            import tempfile
            import torch

            def refuse(*_, **__):
                raise PermissionError("read-only")

            tempfile.TemporaryFile = refuse  # with which numba tries a folder
            from qrnn.pooling import cpu, operator
            assert operator._backend("cpu") is cpu
            x = torch.ones(3, 1, 1)
            assert cpu.linear_recurrence(x, x, x[0], False).flatten().tolist() == [2, 3, 4]
            """
        run_script(code, tmp_path)
        assert not list(tmp_path.rglob("*.nb[ci]"))


class TestWithoutNumba:
    def test_one_warning_and_the_same_results(self, tmp_path: Path) -> None:
        code = """
            import sys, warnings
            sys.modules["numba"] = None
            import torch
            from qrnn import QRNN, fo_pool, linear_recurrence

            torch.manual_seed(0)
            gates = torch.randn(5, 3, 12, dtype=torch.float64, requires_grad=True)
            c0 = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
            x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
            rnn = QRNN(4, 3, 2, bidirectional=True, zoneout=0.3, dtype=torch.float64)
            lengths = torch.tensor([5, 0, 2])
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                results = [*fo_pool(gates, c0, lengths=lengths)]
                results += [linear_recurrence(x.sigmoid(), x), rnn(x, lengths=lengths)[0]]
                leaves = [gates, c0, x, *rnn.parameters()]
                total = sum((r * r).sum() for r in results)
                results += torch.autograd.grad(total, leaves, create_graph=True)
                total = sum((r * r).sum() for r in results[4:])
                results += torch.autograd.grad(total, leaves)
            torch.save([r.detach() for r in results], sys.argv[0] + ".pt")
            texts = [str(w.message) for w in caught]
            """
        (tmp_path / "with").mkdir()
        (tmp_path / "without").mkdir()
        run_script(code.replace('sys.modules["numba"] = None', ""), tmp_path / "with")
        check = """
            assert len(texts) == 1 and "qrnn[cpu]" in texts[0], texts
            """
        run_script(code + check, tmp_path / "without")
        want, got = (torch.load(tmp_path / p / "script.py.pt") for p in ("with", "without"))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("T", [0, 1, 9])
@pytest.mark.parametrize("shift", [1, 5, -1, -4])
@pytest.mark.parametrize("pooling", GATES)
def test_halves_that_lie_apart(pooling: str, shift: int, T: int) -> None:
    oracle.check_shift(cpu, pooling, shift, T, torch.float32 if shift % 2 else torch.bfloat16)
