import re
from pathlib import Path

from qrnn import QRNNState

README = Path(__file__).parents[1] / "README.md"


def test_the_ten_lines_of_use_run() -> None:
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["state"], QRNNState)
