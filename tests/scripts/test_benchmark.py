import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import benchmark
import benchmark_layers
import benchmark_models
import benchmark_scans
import pytest
import records
import timing
import torch
from torch.nn import functional as F

from qrnn import QRNN, QRNNLayer
from qrnn.pooling import reference

SIZES = {
    benchmark_scans: {
        "COLUMNS": ((1, 8), (4, 8)),
        "STEPS": (3, 70),
        "PEER_SHAPES": {"cpu": ((2, 8, 4),)},
    },
    benchmark_layers: {
        "UNITS": 8,
        "LENGTHS": (3, 4),
        "PAPER": {1: (1.5, 2.5), 5: (3.5, 4.5)},
        "MEMORY_SHAPES": ((3, 5, 8),),
        "GROWTH": {"cpu": {"length": 3, "batch": 2, "units": 4}},
        "INPUTS": (4,),
        "CONVOLUTION_SHAPES": {"cpu": ((5, 3),)},
    },
    benchmark_models: {
        "PTB": {"batch": 3, "length": 5, "units": 8, "vocabulary": 11},
        "TRANSLATION": {"batch": 2, "source": 5, "target": 3},
        "REVIEWS": {"length": 3, "words": 7},
        "LOADED": 2,
    },
}


class Accelerated(timing.Cpu):
    """The CPU with all that a GPU has: rotation, graphs, bfloat16, memory, absolute times."""

    row = "some-gpu"
    note = "not a GPU"
    dtypes = (torch.float32, torch.bfloat16)
    milliseconds = timing.Cuda.milliseconds

    def lstm_dtype(self, dtype):
        return torch.float32

    def copies(self, size):
        return 3

    def capture(self, calls):
        return lambda: [call() for call in calls]

    def peak(self, call):
        call()
        return 7


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module, sizes in SIZES.items():
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(timing.Cpu, "copied", 4096)
    peers = {"itself": itself, "absent": absent, "wrong": lambda: itself(1.001)}
    monkeypatch.setattr(benchmark_scans.neighbours, "PEERS", peers)


def itself(factor=1.0):
    scan = benchmark_scans.linear_recurrence
    peer = benchmark_scans.neighbours.Peer
    return peer((0, 1, 2), lambda f, x: (f, factor * x), scan, most_steps=64)


def absent():
    raise ImportError("No module named 'absent'")


@pytest.fixture
def main(monkeypatch, tmp_path):
    def run(*arguments):
        argv = ["benchmark.py", "--results", str(tmp_path), "--seconds", "0", *arguments]
        monkeypatch.setattr("sys.argv", argv)
        benchmark.main()

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setattr(benchmark, "keep_memory", lambda: False)  # it would outlive the test
    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


ROWS = {"figure4": 8, "ptb-step": 8, "scan": 20, "peers": 5, "memory": 2, "growth": 12}
ROWS |= {"convolution": 18, "translation": 3, "reviews": 8}


def test_every_suite_writes_a_record_and_a_cpu_only_ratios(main, tmp_path):
    main("--device", "cpu")
    found = records.load(tmp_path)
    assert set(found) == {f"bench-{suite}-cpu.json" for suite in ROWS if suite != "memory"}
    for suite in ROWS.keys() - {"memory"}:
        record = found[f"bench-{suite}-cpu.json"]
        assert record["device"].startswith("CPU (") and len(record["table"]) == ROWS[suite]
        keys = {key for row in record["table"] for key in row}
        assert not [key for key in keys if key.endswith("ms")]
    figure4 = found["bench-figure4-cpu.json"]["table"]
    assert [(r["batch"], r["length"], r["paper_ratio"]) for r in figure4[:4]] == [
        (1, 3, 1.5), (1, 4, 2.5), (5, 3, 3.5), (5, 4, 4.5),
    ]  # fmt: skip
    assert all(row["ratio"] > 0 and row["graph_ratio"] is None for row in figure4)


@pytest.mark.parametrize("suite", ROWS)
def test_every_suite_runs_with_graphs_rotation_and_two_dtypes(suite):
    table = list(benchmark.SUITES[suite](Accelerated(), 0.0))
    assert len({tuple(row) for row in table}) == 1
    if suite in ("figure4", "scan", "memory", "convolution"):
        assert len(table) == 2 * ROWS[suite] // (1 + (suite == "memory"))
        assert {row["dtype"] for row in table} == {"float32", "bfloat16"}
    if suite in ("figure4", "scan"):
        column = {"figure4": "graph_ratio", "scan": "graph_share"}[suite]
        assert all(row[column] is not None for row in table)
    if suite != "memory":
        assert all(any(key.endswith("ms") for key in row) for row in table)
    if suite == "memory":
        assert all(row[key] == 7 for row in table for key in row if key.endswith("bytes"))


def test_a_peer_that_is_absent_wrong_or_too_slow_has_a_reason_and_no_ratio(monkeypatch):
    monkeypatch.setitem(benchmark_scans.PEER_SHAPES, "cpu", ((2, 8, 4), (1, 65, 4)))
    table = list(benchmark.peers(timing.Cpu(), 0.0))
    rows = {(row["peer"], row["length"], row["mode"]): row for row in table}
    assert rows["itself", 8, "forward+backward"]["ratio"] > 0
    assert rows["itself", 8, "forward"]["reason"] is None
    assert rows["itself", 65, "forward"]["reason"] == "not measured for T > 64"
    assert rows["absent", None, None]["reason"] == "No module named 'absent'"
    assert rows["wrong", 8, "forward"]["reason"].startswith("wrong: result 0 is off by")
    assert [row["ratio"] for row in table].count(None) == len(table) - 2


def test_a_peer_without_gradients_is_measured_forward(monkeypatch):
    forward = itself()._replace(forward_only="its gradient is wrong")
    monkeypatch.setattr(benchmark_scans.neighbours, "PEERS", {"itself": lambda: forward})
    rows = {row["mode"]: row for row in benchmark.peers(timing.Cpu(), 0.0)}
    assert rows["forward"]["ratio"] > 0
    assert rows["forward+backward"]["reason"] == "its gradient is wrong"


def test_a_peer_that_does_not_end_compiling_is_not_touched(monkeypatch):
    gpu = Accelerated()
    gpu.kind = "cuda"
    monkeypatch.setitem(benchmark_scans.PEER_SHAPES, "cuda", ())
    monkeypatch.setattr(
        benchmark_scans.neighbours, "compile_side_by_side", lambda shapes: {"itself"}
    )
    monkeypatch.setitem(benchmark_scans.neighbours.PEERS, "itself", None)
    reasons = {row["peer"]: row["reason"] for row in benchmark.peers(gpu, 0.0)}
    assert reasons["itself"] == f"not compiled within {benchmark_scans.neighbours.SECONDS} s"
    assert reasons["absent"] == "No module named 'absent'"


def test_a_run_builds_extensions_in_a_folder_of_its_own_unless_told_where(
    main, tmp_path, monkeypatch
):
    folders = []

    def suite(device, seconds):
        folders.append(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
        assert len(folders) == 1 or folders[-1].is_dir()
        yield {}

    monkeypatch.setitem(benchmark.SUITES, "peers", suite)
    main("peers", "--device", "cpu")
    for _ in range(2):
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
        main("peers", "--device", "cpu")
    assert folders[0] == tmp_path / "extensions" and len(set(folders)) == 3
    assert not any(folder.exists() for folder in folders)


def test_a_suite_that_fails_is_named_and_does_not_stop_the_others(
    main, tmp_path, monkeypatch, capsys
):
    class Wrong(QRNNLayer):
        def forward(self, *arguments):
            output, state = super().forward(*arguments)
            return output * 1.001, state

    monkeypatch.setattr(benchmark_layers, "QRNNLayer", Wrong)
    with pytest.raises(SystemExit) as stopped:
        main("figure4", "scan", "growth", "--device", "cpu")
    assert stopped.value.code == "failed: figure4, growth"  # printed, exit status 1
    assert list(records.load(tmp_path)) == ["bench-scan-cpu.json"]
    assert "QRNNLayer: result 0 is off by 1.0e-03" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["memory", "--device", "cpu"], "memory: cannot be measured here"),
        (["scan", "--device", "cpu", "--results", __file__], "--results: [Errno 17] File exists"),
    ],
)
def test_what_cannot_be_measured_or_kept_is_not_begun(main, capsys, arguments, told):
    with pytest.raises(SystemExit):
        main(*arguments)
    assert told in capsys.readouterr().err


def test_rows_of_a_suite_that_is_stopped_are_kept_and_are_no_record(main, tmp_path, monkeypatch):
    def suite(device, seconds):
        yield {"n": 1}
        yield {"n": 2}
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setitem(benchmark.SUITES, "peers", suite)
    with pytest.raises(KeyboardInterrupt):
        main("peers", "--device", "cpu")
    part = tmp_path / "bench-peers-cpu.part.jsonl"
    assert part.read_text("utf-8") == '{"n": 1}\n{"n": 2}\n'
    assert records.load(tmp_path) == {}


@pytest.mark.parametrize(
    ("suite", "target", "wrong"),
    [
        ("peers", "scans.linear_recurrence", lambda f, x: f * x),
        ("convolution", "layers.WAYS", {"no window": lambda x, weight, bias: x @ weight[:, :4].T}),
        (
            "scan",
            "scans.SCANS",
            {"pool": (4, lambda gates: gates[..., :8], benchmark_scans.pool64)},
        ),
        ("memory", "layers.composed", lambda layer: lambda x: layer(x.flip(0))[0]),
        ("ptb-step", "models.layers64", lambda x, *weights: x + 0 * sum(w.sum() for w in weights)),
    ],
)
def test_nothing_is_timed_that_disagrees(suite, target, wrong, monkeypatch):
    monkeypatch.setattr(f"benchmark_{target}", wrong)
    for module in SIZES:
        monkeypatch.setattr(module, "race", None)
    with pytest.raises(timing.WrongResult, match="is off by"):
        list(benchmark.SUITES[suite](Accelerated(), 0.0))


def test_unknown_suites_and_absent_devices_are_refused(main, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main("figure5")
    assert "figure5: expected one of figure4, ptb-step" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main("--device", "cuda")
    assert "torch sees no GPU" in capsys.readouterr().err


def test_the_loop_that_stands_in_for_a_kernel_is_not_measured(main, monkeypatch):
    def warns(device, seconds):
        warnings.warn("qrnn runs its slow PyTorch loop on cpu", stacklevel=2)
        yield {}

    monkeypatch.setitem(benchmark.SUITES, "scan", warns)
    with pytest.raises(SystemExit, match="failed: scan"):
        main("scan", "--device", "cpu")


def test_the_oracles_are_the_recurrence_and_the_layer():
    f, x = torch.rand(2, 13, 3, 4, dtype=torch.float64)
    h, expected = torch.zeros_like(x[0]), []
    for f_t, x_t in zip(f, x, strict=True):
        h = f_t * h + x_t
        expected.append(h)
    torch.testing.assert_close(benchmark_scans.scan64(f, x), torch.stack(expected))

    weight, bias = torch.randn(9, 8, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    gates = before @ weight[:, :4].T + x @ weight[:, 4:].T + bias
    expected, *_ = reference.pool(gates, None, None, None, "fo", "forward", 0.0, False)
    torch.testing.assert_close(benchmark_layers.layers64(x, weight, bias), expected)


def test_the_parts_of_a_step_are_a_whole_step():
    rnn = QRNN(8, 8, num_layers=2, dropout=0.5)
    model = benchmark_models.LanguageModel(timing.Cpu(), rnn)
    start = [value.detach().clone() for value in model.parameters]
    torch.manual_seed(3)
    for phase in (model.forward, model.loss, model.backward, model.optimise):
        phase()
    after = [value.detach().clone() for value in model.parameters]
    for value, old in zip(model.parameters, start, strict=True):
        value.data = old
    torch.manual_seed(3)
    output, _ = rnn(F.dropout(model.embedding(model.words), 0.5))
    scores = model.softmax(F.dropout(output, 0.5)).log_softmax(-1)
    loss = -scores.gather(2, model.targets[..., None]).sum() / 3
    grads = torch.autograd.grad(loss, model.parameters)
    scale = min(1.0, 10 / torch.stack([grad.norm() for grad in grads]).norm().item())
    for value, grad, old in zip(after, grads, start, strict=True):
        torch.testing.assert_close(value, old - 1e-3 * scale * grad)


@pytest.mark.parametrize(("inputs", "units"), [(320, 320), (16, 320)])
def test_a_layer_keeps_no_more_for_its_backward_than_torchqrnns(inputs, units):
    """The most that a device holds is for `bench memory` on a GPU; what is kept is the same."""
    layer, x = QRNNLayer(inputs, units), torch.randn(20, 3, inputs)
    weights = {value.untyped_storage().data_ptr() for value in (x, *layer.parameters())}
    kept = []
    for forward in (benchmark_layers.output_of(layer), benchmark_layers.composed(layer)):
        storages = {}

        def keep(value, storages=storages):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            output = forward(x)
        kept.append(sum(size for place, size in storages.items() if place not in weights))
        del output
    assert 0 < kept[0] <= kept[1]


def test_needs_no_more_than_gpu_check_is_promised_to_need():
    refuse = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('requests', 'urllib3', 'yaml', 'numba'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import benchmark\n"
    )
    folders = os.pathsep.join(str(records.ROOT / name) for name in ("scripts", "."))
    subprocess.run(
        [sys.executable, "-c", refuse], check=True, env={**os.environ, "PYTHONPATH": folders}
    )
