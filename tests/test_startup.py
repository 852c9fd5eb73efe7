"""The start-up hook, in a bare virtual environment with stand-ins for the frameworks and qrnn."""

import os
import subprocess
import textwrap
import venv
from pathlib import Path

import pytest

STARTUP = Path(__file__).parents[1] / "qrnn/startup"

# Each file says what happens to it; the order of the lines is what the tests look at.
STAND_INS = {
    "allennlp/__init__.py": "print('allennlp'); class_ = type('Model', (), {})",
    "allennlp/commands/__init__.py": "print('commands')",
    "allennlp-2.10.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: allennlp\nVersion: 2.10.1",
    "qrnn/__init__.py": "raise RuntimeError('qrnn must not be imported')",
    "qrnn/allennlp/__init__.py": "raise RuntimeError('it would import allennlp')",
    "qrnn/allennlp/compat.py": """
        print('compat')
        def mend(): print('mend')
        def extend(): print('extend')
    """,
    "joeynmt/__init__.py": "",
    "joeynmt/model.py": "print('model')",
    "joeynmt/search.py": "import joeynmt.model; print('search')",
    "joeynmt/training.py": "import joeynmt.search; print('training')",
    "qrnn/joeynmt/__init__.py": "raise RuntimeError('it would import joeynmt')",
    "qrnn/joeynmt/compat.py": """
        def extend(): print('extend')
        def extend_search(): print('extend_search')
        def extend_training(): print('extend_training')
    """,
}


class Environment:
    def __init__(self, path: Path) -> None:
        venv.create(path)
        self.python = path / "bin/python"
        [self.packages] = path.glob("lib/python*/site-packages")
        for file in STARTUP.glob("qrnn_startup.*"):
            (self.packages / file.name).write_bytes(file.read_bytes())

    def add(self, name: str, text: str) -> None:
        file = self.packages / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))

    def run(self, code: str, **env: str) -> list[str]:
        """Lines that the code prints; its exception, if it ends with one, is the last of them."""
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "QRNN_STARTUP")}
        process = subprocess.run(
            [self.python, "-c", textwrap.dedent(code)],
            env={**clean, **env},
            cwd=self.packages.parent,
            capture_output=True,
            text=True,
        )
        return process.stdout.splitlines() + process.stderr.splitlines()[-1:]


@pytest.fixture
def empty(tmp_path):
    return Environment(tmp_path)


@pytest.fixture
def env(empty):
    for name, text in STAND_INS.items():
        empty.add(name, text)
    return empty


def test_acts_once_before_allennlp_and_once_after_its_commands(env):
    ran = env.run("import allennlp.commands; import allennlp, allennlp.commands")
    assert ran == ["compat", "mend", "allennlp", "commands", "extend"]


def test_acts_after_joeynmts_model_search_and_training(env):
    expected = ["model", "extend", "search", "extend_search", "training", "extend_training"]
    assert env.run("import joeynmt.training, joeynmt.model") == expected
    assert env.run("import joeynmt.search, joeynmt.model") == expected[:4]
    assert env.run("import joeynmt.model") == expected[:2]
    assert env.run("import joeynmt.search", QRNN_STARTUP="0") == ["model", "search"]


def test_the_start_costs_next_to_nothing(env):
    imported = "import sys; print(*sorted(sys.modules))"
    [without] = env.run(imported, QRNN_STARTUP="0")
    [active] = env.run(imported)
    assert set(without.split()) == set(active.split())
    (env.packages / "qrnn_startup.pth").write_text("#")  # reading any imports a codec
    [absent] = env.run(imported)
    assert set(active.split()) - set(absent.split()) == {"qrnn_startup", "__future__"}


def test_off_switch(env):
    assert env.run("import allennlp.commands", QRNN_STARTUP="0") == ["allennlp", "commands"]


@pytest.mark.parametrize("folder", [False, True])
def test_without_allennlp_nothing_happens(empty, folder):
    if folder:  # of the same name, in a project that uses no allennlp
        (empty.packages / "allennlp").mkdir()
    code = """
        import sys, importlib.util
        print(importlib.util.find_spec("allennlp") is None)
        try:
            import allennlp
            print(list(allennlp.__path__) != [])
        except ModuleNotFoundError as error:
            print(error.name)
        print("importlib.metadata" in sys.modules, "qrnn" in sys.modules)
    """
    expected = ["False", "True"] if folder else ["True", "allennlp"]
    assert empty.run(code) == [*expected, "False False"]


def test_finding_is_not_importing(env):
    code = """
        import importlib.metadata, importlib.util, pickle, pkgutil
        spec = importlib.util.find_spec("allennlp")
        pickle.loads(pickle.dumps(spec))
        print(spec.origin.endswith("__init__.py"), "print" in spec.loader.get_source("allennlp"))
        print(importlib.metadata.version("allennlp"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        print(spec.loader is module.__loader__, type(spec.loader).__name__)
    """
    ran = env.run(code)
    assert ran == ["True True", "2.10.1", "compat", "mend", "allennlp", "True SourceFileLoader"]


def test_the_imported_module_is_as_without_the_hook(env):
    code = """
        import allennlp, importlib, inspect, pickle
        print(type(allennlp.__loader__).__name__, type(allennlp.__spec__.loader).__name__)
        print("print" in inspect.getsource(allennlp), len(pickle.dumps(allennlp.__spec__)) > 0)
        importlib.reload(allennlp)
    """
    ran = env.run(code)
    assert ran[:3] == ["compat", "mend", "allennlp"]
    assert ran[3:] == ["SourceFileLoader SourceFileLoader", "True True", "mend", "allennlp"]


def test_other_hooks_that_ask_all_finders(env):
    code = """
        import importlib.util, sys

        class Other:  # as import hooks of tracing packages do
            busy = False
            def find_spec(self, name, path=None, target=None):
                if name == "allennlp" and not self.busy:
                    self.busy = True
                    try:
                        return importlib.util.find_spec(name)
                    finally:
                        self.busy = False

        sys.meta_path.{place}
        import allennlp.commands
    """
    expected = ["compat", "mend", "allennlp", "commands", "extend"]
    assert env.run(code.format(place="insert(0, Other())")) == expected
    # Behind ours: found twice, and mended twice, which changes nothing.
    again = env.run(code.format(place="insert(1, Other())"))
    assert [line for i, line in enumerate(again) if line not in again[:i]] == expected


def test_errors_pass(env):
    code = """
        for _ in range(2):
            try:
                import allennlp
            except ImportError as error:
                print(type(error).__name__, error)
    """
    env.add("allennlp/__init__.py", "import spacy")
    missing = "ModuleNotFoundError No module named 'spacy'"
    assert env.run(code) == ["compat", "mend", missing, "mend", missing]

    env.add("qrnn/allennlp/compat.py", "def mend(): raise ImportError('not tested with it')")
    assert env.run(code) == ["ImportError not tested with it"] * 2

    env.add("qrnn/allennlp/compat.py", "import torch")
    assert env.run(code) == ["ModuleNotFoundError No module named 'torch'"] * 2


def test_a_hook_without_qrnn_says_so(empty):
    empty.add("allennlp/__init__.py", "")
    [error] = empty.run("import allennlp")
    assert "ModuleNotFoundError" in error
    assert "pip uninstall qrnn" in error and "QRNN_STARTUP=0" in error


def test_spawned_workers(env):
    env.add("work.py", "def work(model): print(type(model).__module__, flush=True)")
    env.add("allennlp/__init__.py", "class Model: pass")
    code = """
        import multiprocessing, allennlp, work
        process = multiprocessing.get_context("spawn").Process(
            target=work.work, args=(allennlp.Model(),)
        )
        print("parent", flush=True)
        process.start()
        process.join()
    """
    assert env.run(code, PYTHONUNBUFFERED="1") == [
        *["compat", "mend", "parent"],
        *["compat", "mend", "allennlp"],
    ]


def test_python_m_runs_with_the_hook(env):
    env.add("allennlp/__main__.py", "import allennlp.commands")
    ran = env.run("import runpy; runpy.run_module('allennlp', run_name='__main__')")
    assert ran == ["compat", "mend", "allennlp", "commands", "extend"]


def test_install_twice_is_install_once(env):
    code = """
        import qrnn_startup, sys
        qrnn_startup.install()
        print(sys.meta_path.count(qrnn_startup.Finder))
    """
    assert env.run(code) == ["1"]
    assert env.run(code, QRNN_STARTUP="0") == ["0"]
