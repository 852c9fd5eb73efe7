"""Settings of hypothesis, fixed random numbers, and the path of `oracle`, which tests share."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# appended, so that no folder in here can hide the package that it is named after
sys.path.append(str(Path(__file__).parent))

settings.register_profile("qrnn", deadline=None, derandomize=True, max_examples=60)
# for a longer search: pytest --hypothesis-profile explore
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("qrnn")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
