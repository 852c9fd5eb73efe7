"""`python -m qrnn.joeynmt`, with stand-ins for joeynmt and for the rest of qrnn."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

MAIN = Path(__file__).parents[2] / "qrnn/joeynmt/__main__.py"

STAND_INS = {
    "qrnn/__init__.py": "",
    "qrnn/joeynmt/__init__.py": "",
    "qrnn/joeynmt/compat.py": """if True:
        def extend(): print('extend', flush=True)
        def extend_search(): print('search', flush=True)
        def extend_training(): print('training', flush=True)
    """,
    "joeynmt/__init__.py": "def work(): print('worker', flush=True)",
    "joeynmt/__main__.py": """if True:
        import multiprocessing, sys, joeynmt
        def main():
            print(*sys.argv[1:], flush=True)
            worker = multiprocessing.get_context("spawn").Process(target=joeynmt.work)
            worker.start()
            worker.join()
    """,
}


def test_it_extends_joeynmt_in_spawned_workers_too(tmp_path):
    for name, text in STAND_INS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(MAIN, tmp_path / "qrnn/joeynmt")
    process = subprocess.run(
        [sys.executable, "-m", "qrnn.joeynmt", "train", "a.yaml"],
        cwd=tmp_path,
        env={**os.environ, "QRNN_STARTUP": "0"},
        capture_output=True,
        text=True,
    )
    extended = ["extend", "search", "training"]
    assert process.stdout.splitlines() == [*extended, "train a.yaml", *extended, "worker"]
