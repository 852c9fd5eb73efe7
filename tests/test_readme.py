import re
from pathlib import Path

import torch

from qrnn import DecoderState, QRNNState

README = Path(__file__).parents[1] / "README.md"


def test_its_python_runs() -> None:
    ten_lines, decoder = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(ten_lines, names)
    assert isinstance(names["state"], QRNNState)
    exec(decoder, names)
    assert isinstance(names["state"], DecoderState)
    torch.testing.assert_close(names["first"], names["whole"][:1])  # type: ignore[index]
