import sys
from types import SimpleNamespace

import pytest
import wheelhouse

PACKAGES = {
    "qrnn": ['torch>=2.11; extra == ""', "torch", 'allennlp-needs; extra == "allennlp"'],
    "allennlp-needs": ["Helper[fast]>=1", "pylint", 'old; python_version < "3.12"'],
    "helper": ['speed; extra == "fast"', 'rest; extra == "slow"', "allennlp_needs"],
    "torch": ["filelock", "nvidia-cublas", "triton; platform_system == 'Linux'"],
    "filelock": [],
    "speed": [],
    "old": [],
}


@pytest.fixture
def packages(monkeypatch):
    def distribution(name):
        return SimpleNamespace(requires=PACKAGES[name])

    monkeypatch.setattr(wheelhouse, "distribution", distribution)


def test_what_is_needed_is_followed_through_extras_and_markers(packages):
    assert wheelhouse.needs("qrnn", (), "3.12") == {"qrnn", "torch", "filelock"}
    found = wheelhouse.needs("qrnn", ("allennlp",), "3.12")
    assert found == {"qrnn", "torch", "filelock", "allennlp-needs", "helper", "speed"}
    assert "old" in wheelhouse.needs("qrnn", ("allennlp",), "3.11")


def test_names_and_versions_are_read():
    freeze = "torch==2.11.0+cu130\ncupy @ file:///wheels/cupy.whl\n-e git+x\nTyping_Extensions==4\n"
    assert wheelhouse.names(freeze) >= {"torch", "cupy", "typing-extensions"}
    pins = wheelhouse.locked("# made by\nPyYAML==6.0.3\nh5py==3.16.0\n")
    assert pins == {"pyyaml": "6.0.3", "h5py": "3.16.0", "allennlp": wheelhouse.ALLENNLP}


@pytest.fixture
def pip(packages, monkeypatch, tmp_path):
    """Stands for pip: leaves wheels, of as many kilobytes as their names have letters."""
    calls = []

    def run(command, *arguments):
        calls.append([command, *map(str, arguments)])
        folder = arguments[
            [*arguments].index("--dest" if command == "download" else "--wheel-dir") + 1
        ]
        folder.mkdir(exist_ok=True)
        for name in (a.split("==")[0] for a in map(str, arguments) if "==" in a or a == "."):
            stem = "qrnn" if name == "." else name.replace("-", "_")
            (folder / f"{stem}-1.0-py3-none-any.whl").write_bytes(bytes(1000 * len(stem)))

    monkeypatch.setattr(wheelhouse, "pip", run)
    monkeypatch.setattr(wheelhouse, "MIB", 1000)
    monkeypatch.setattr(wheelhouse, "check_root", lambda parser: None)
    monkeypatch.chdir(tmp_path)
    lock = "".join(f"{name}==1.0\n" for name in PACKAGES if name not in ("qrnn", "torch"))
    (tmp_path / "requirements.lock").write_text(lock)
    return calls


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["wheelhouse.py", *arguments])
    wheelhouse.main()


def test_a_wheelhouse_replaces_the_one_before(pip, monkeypatch, tmp_path):
    (tmp_path / "wheelhouse").mkdir()
    (tmp_path / "wheelhouse/old").touch()
    (tmp_path / "have").write_text("speed==0.1\n")
    main(monkeypatch, "--extras", "allennlp", "--have", "have", "--python", "python3.12")
    lines = (tmp_path / "wheelhouse/requirements.txt").read_text().split()
    assert lines == ["allennlp-needs==1.0", "allennlp==1.0", "helper==1.0", "qrnn==1.0"]
    assert "--python-version 3.12" in " ".join(pip[0]) and pip[0][0] == "download"
    assert not (tmp_path / "wheelhouse/old").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "have", "requirements.lock", "wheelhouse"
    ]  # fmt: skip


def test_it_is_split_into_folders_of_a_size(pip, monkeypatch, tmp_path, capsys):
    main(monkeypatch, "--extras", "allennlp", "--split", "14")
    house = tmp_path / "wheelhouse"
    found = {n: {file.name.split("-")[0] for file in (house / n).iterdir()} for n in "123"}
    assert found == {"1": {"allennlp_needs"}, "2": {"allennlp", "helper"}, "3": {"speed", "qrnn"}}
    said = capsys.readouterr().out
    assert "14.0 MiB in 1\n" in said and "37.0 MiB in 5 wheels" in said


def test_where_everything_is_there_the_wheel_of_qrnn_is_left(pip, monkeypatch, tmp_path):
    have = [*PACKAGES, "allennlp"]
    (tmp_path / "have").write_text("".join(f"{name}==1.0\n" for name in have))
    main(monkeypatch, "--extras", "allennlp", "--have", "have")
    assert [call[0] for call in pip] == ["wheel"]
    assert (tmp_path / "wheelhouse/requirements.txt").read_text() == "qrnn==1.0\n"


@pytest.mark.parametrize(
    "wrong", [["--python", "3.14"], ["--extras", "allennlp,onnx"], ["--split", "0"]]
)
def test_wrong_options_are_named(pip, monkeypatch, capsys, wrong):
    with pytest.raises(SystemExit):
        main(monkeypatch, *wrong)
    assert wrong[0] in capsys.readouterr().err and not pip
