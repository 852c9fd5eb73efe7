"""`python -m qrnn.allennlp`, with stand-ins for allennlp and for the rest of qrnn."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

MAIN = Path(__file__).parents[2] / "qrnn/allennlp/__main__.py"

STAND_INS = {
    "qrnn/__init__.py": "",
    "qrnn/allennlp/__init__.py": "",
    "qrnn/allennlp/compat.py": "def extend(): print('extend', flush=True)",
    "allennlp/__init__.py": "def work(): print('worker', flush=True)",
    "allennlp/__main__.py": """if True:
        import multiprocessing, sys, allennlp
        def run():
            print(*sys.argv[1:], flush=True)
            worker = multiprocessing.get_context("spawn").Process(target=allennlp.work)
            worker.start()
            worker.join()
    """,
}


def test_it_extends_allennlp_in_spawned_workers_too(tmp_path):
    for name, text in STAND_INS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(MAIN, tmp_path / "qrnn/allennlp")
    process = subprocess.run(
        [sys.executable, "-m", "qrnn.allennlp", "train", "a.jsonnet"],
        cwd=tmp_path,
        env={**os.environ, "QRNN_STARTUP": "0"},
        capture_output=True,
        text=True,
    )
    assert process.stdout.splitlines() == ["extend", "train a.jsonnet", "extend", "worker"]
