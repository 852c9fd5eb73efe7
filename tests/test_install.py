"""What pip installs, from a wheel and as an editable installation, without a network."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml

from qrnn import __version__

ROOT = Path(__file__).parents[1]
HOOK = {"qrnn_startup.py", "qrnn_startup.pth"}
KINDS = ["wheel", "editable"]
SLOW_VENV = """#!/bin/sh
echo "$@" >> called
if [ "$2" = venv ]; then
  sleep 0.5
  mkdir -p .venv/bin
  cp python .venv/bin/python
fi
"""


def run(*command: object, **options: object) -> str:
    process = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the build reads; it leaves its own files beside it."""
    source = tmp_path_factory.mktemp("a folder") / "qrnn source"
    source.mkdir()
    for file in ["setup.py", "pyproject.toml", "LICENSE", "README.md"]:
        shutil.copy(ROOT / file, source)
    shutil.copytree(ROOT / "qrnn", source / "qrnn", ignore=shutil.ignore_patterns("__pycache__"))
    return source


@pytest.fixture(scope="module")
def wheels(source):
    """The wheels that `pip install .` and `pip install -e .` make."""
    for kind in KINDS:
        build = f"import setuptools.build_meta as build; build.build_{kind}({kind!r})"
        assert "Deprecat" not in run(sys.executable, "-c", build, cwd=source)
    return {kind: next((source / kind).glob("*.whl")) for kind in KINDS}


@pytest.fixture
def project(tmp_path):
    """A folder with the Makefile, installed: .venv/bin/python notes what it is called with, and
    fails where $FAILING is among that."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("requirements.lock", "setup.py", ".venv/installed"):
        (tmp_path / name).touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    stub = tmp_path / ".venv/bin/python"
    stub.write_text('#!/bin/sh\necho "$@" >> called\n! [ "$2" = "$FAILING" ]\n')
    stub.chmod(0o755)
    return tmp_path


def make(project, *arguments, failing="none"):
    """What Python was called with."""
    (project / "called").write_text("")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    run("make", *arguments, cwd=project, env={**environment, "FAILING": failing})
    return (project / "called").read_text()


def test_what_needs_onnxscript_is_documented_where_there_is_one(project):
    assert "qrnn.allennlp qrnn.joeynmt qrnn.onnx\n" in make(project, "docs")
    called = make(project, "docs", failing="import onnxscript")
    assert "qrnn.allennlp qrnn.joeynmt\n" in called and "qrnn.onnx" not in called


@pytest.mark.parametrize("target", ["bench", "gpu-check", "reproduce-all", "report"])
def test_a_tilde_in_results_is_the_home_folder(project, target):
    assert f"--results {Path.home()}/mine\n" in make(project, target, "RESULTS=~/mine")
    assert make(project, target).endswith(("y\n", "--device cuda\n"))


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], ""),
        (["PYTHON=3.12"], " --python python3.12"),
        (["PYTHON=3.14"], " --python python3.14"),
        (["PYTHON=3.12.1"], " --python python3.12.1"),
        (["PYTHON=/opt/py312/bin/python3"], " --python /opt/py312/bin/python3"),
    ],
)
def test_the_python_of_a_wheelhouse_is_what_was_given(project, given, passed):
    """Whether it can be used wheelhouse.py says."""
    assert make(project, "wheelhouse", *given) == f"scripts/wheelhouse.py{passed}\n"


@pytest.mark.skipif(not shutil.which("flock"), reason="util-linux's flock is not installed")
def test_a_second_make_waits_for_the_first_and_does_not_install_again(project):
    """Where the first is at work, as .venv/unfinished says."""
    shutil.rmtree(project / ".venv")
    python = project / "python"  # stands for a Python whose venv takes a while
    python.write_text(SLOW_VENV)
    python.chmod(0o755)
    command = ["make", "install", f"PYTHON={python}"]
    makes = [subprocess.Popen(command, cwd=project) for _ in range(2)]
    assert [process.wait() for process in makes] == [0, 0]
    called = (project / "called").read_text().splitlines()
    assert [line for line in called if line.startswith("-m venv")] == ["-m venv .venv"]
    assert len([line for line in called if "requirements.lock" in line]) == 1
    assert (project / ".venv/installed").exists()


@pytest.fixture
def python(tmp_path):
    venv.create(tmp_path)
    return tmp_path / "bin/python"


def test_the_wheel_holds_the_package_and_nothing_else(wheels):
    with zipfile.ZipFile(wheels["wheel"]) as wheel:
        names = set(wheel.namelist())
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "qrnn").rglob("*.py")}
    assert {n for n in names if n.endswith(".py")} == {
        *(module for module in modules if not module.startswith("qrnn/startup/")),
        "qrnn_startup.py",
    }
    assert HOOK | {"qrnn/py.typed"} <= names
    assert {n.split("/")[0] for n in names} == {"qrnn", f"qrnn-{__version__}.dist-info", *HOOK}


@pytest.mark.parametrize("kind", KINDS)
def test_metadata(wheels, kind):
    with zipfile.ZipFile(wheels[kind]) as wheel:
        info = f"qrnn-{__version__}.dist-info"
        metadata = message_from_string(wheel.read(f"{info}/METADATA").decode())
        assert f"{info}/licenses/LICENSE" in wheel.namelist()
    needs = metadata.get_all("Requires-Dist")
    assert [need[:5] for need in needs if "extra ==" not in need] == ["torch"]
    extras = ["cpu", "allennlp", "joeynmt", "onnx", "cuda12", "cuda13", "test"]
    extras += ["docs", "scripts", "bench"]
    assert metadata.get_all("Provides-Extra") == extras
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def train_with_joeynmt(python, packages):
    """`python -m joeynmt train`, which fails on such a config where joeynmt does not know qrnn."""
    # lends this environment's packages, but none of its .pth files: neither its hook nor its qrnn
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    folder = packages.parent
    for name in ["train.de", "train.en", "dev.de", "dev.en"]:
        (folder / name).write_text("ab\nabba\n")
    (folder / "vocab.txt").write_text("a\nb\n")
    config = yaml.safe_load((ROOT / "configs/iwslt_quick.yaml").read_text(encoding="utf-8"))
    config["data"] |= {"train": "train", "dev": "dev", "test": None}
    for side in ("src", "trg"):
        config["data"][side]["voc_file"] = "vocab.txt"
    config["training"] |= {"updates": 1, "logging_freq": 1, "validation_freq": 2}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    # compiling would take longer than all the rest
    (folder / "numba.py").write_text("raise ModuleNotFoundError('no numba', name='numba')")
    said = run(python, "-m", "joeynmt", "train", "config.yaml", "--skip-test", cwd=folder)
    assert "joeynmt.qrnn - QRNN encoder and decoder built" in said
    assert (folder / "runs/iwslt_quick/1.ckpt").exists()
    (packages / "lent.pth").unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_the_hook_is_installed_and_uninstalled(wheels, source, python, kind):
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--no-index", "--no-deps", wheels[kind])
    [packages] = python.parents[1].glob("lib/python*/site-packages")
    assert {file.name for file in packages.glob("qrnn_startup.*")} == HOOK
    code = """if True:
        import importlib.util, sys
        print(sys.modules["qrnn_startup"].Finder in sys.meta_path, "qrnn" in sys.modules)
        print(importlib.util.find_spec("qrnn").origin)
    """
    place = source if kind == "editable" else packages
    assert run(python, "-c", code, cwd=packages.parent).splitlines() == [
        "True False",
        str(place / "qrnn/__init__.py"),
    ]
    train_with_joeynmt(python, packages)
    run(*pip, "uninstall", "--yes", "qrnn")
    assert not list(packages.glob("*qrnn*"))
    assert run(python, "-c", "import sys; print(sys.meta_path[0].__name__)") == "BuiltinImporter\n"
