import torch

from qrnn.checkpoints import is_whole


def test_a_file_that_is_missing_cut_or_changed_is_not_whole(tmp_path):
    file = tmp_path / "model.th"
    assert not is_whole(file)
    torch.save({"w": torch.arange(1000.0)}, file)
    assert is_whole(file)
    content = file.read_bytes()
    middle = len(content) // 2
    for damaged in (
        b"",
        content[:middle],
        content[:-1],
        content[:middle] + b"changed" + content[middle + 7 :],
    ):
        file.write_bytes(damaged)
        assert not is_whole(file)
