import json

import files
import pytest
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
