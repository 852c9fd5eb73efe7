import json

import files
import ptb_start
import pytest
import quick
import reproduce
import wheelhouse
from files import write_atomically


def test_write_atomically(tmp_path, monkeypatch):
    path = tmp_path / "meta.json"
    write_atomically(path, "é\n")
    assert path.read_bytes() == "é\n".encode()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, json.dumps("new"))
    assert path.read_bytes() == "é\n".encode()


@pytest.mark.parametrize("script", [ptb_start, quick, reproduce, wheelhouse])
def test_what_needs_the_root_writes_nothing_elsewhere(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["script.py"])
    with pytest.raises(SystemExit):
        script.main()
    assert f"run it from the repository's root, not from {tmp_path}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
