import benchmark
import pytest
import records

from qrnn import QRNNLayer


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "UNITS", 8)
    monkeypatch.setattr(benchmark, "BATCHES", (1, 2))
    monkeypatch.setattr(benchmark, "LENGTHS", (3, 4))
    argv = ["benchmark.py", "--results", str(tmp_path), "--repeat", "1", "--seconds", "0"]
    monkeypatch.setattr("sys.argv", argv)
    return tmp_path


def test_every_cell_is_measured_recorded_and_rendered(small, capsys):
    benchmark.main()
    [record] = records.load(small).values()
    assert len(record["table"]) == 2 * 2 * 2
    assert all(row["lstm_over_qrnn"] > 0 for row in record["table"])
    text = benchmark.render(record)
    assert text in capsys.readouterr().out
    assert "| batch \\ length | 3 | 4 |" in text
    cell = record["table"][0]
    assert f"| {cell['batch']} | {cell['lstm_over_qrnn']:.2f} |" in text


def test_a_layer_with_wrong_results_is_not_timed(small):
    class Wrong(QRNNLayer):
        def forward(self, *arguments):
            output, state = super().forward(*arguments)
            return output + 1e-3, state

    with pytest.raises(AssertionError):
        benchmark.verify(Wrong(8, 8))
