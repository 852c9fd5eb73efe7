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


def test_no_changed_bit_is_an_error(tmp_path):
    """A file of zip takes a changed bit for encryption, a compression, a place in the file, ..."""
    file = tmp_path / "model.th"
    torch.save({"w": torch.arange(3.0)}, file)
    content = file.read_bytes()
    found = []
    for place in range(len(content)):
        for bit in (1, 8, 128):
            file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            found.append(is_whole(file))
    assert found.count(False) > len(found) / 4
