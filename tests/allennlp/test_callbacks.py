"""What callbacks do to a trainer, without one; the rest is in test_train.py."""

from types import SimpleNamespace

import torch

from qrnn.allennlp import BFloat16Autocast


def test_the_model_runs_in_bfloat16_until_the_end(tmp_path):
    model = torch.nn.Linear(3, 2)
    trainer = SimpleNamespace(model=model, cuda_device=torch.device("cpu"))
    callback = BFloat16Autocast(str(tmp_path))
    callback.on_start(trainer)
    output = model(torch.randn(4, 3))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert model.weight.grad.dtype == torch.float32
    callback.on_end(trainer)
    assert model(torch.randn(4, 3)).dtype == torch.float32
