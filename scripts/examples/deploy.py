"""A trained QRNN elsewhere: torch.compile, torch.export and ONNX, streaming step by step.

python scripts/examples/deploy.py [FOLDER]      # writes rnn.pt2 and rnn.onnx

ONNX needs what the extra qrnn[onnx] installs.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from qrnn import QRNN, QRNNState


def compiled(rnn: QRNN, x: Tensor) -> Tensor:
    output, _ = torch.compile(rnn, fullgraph=True, dynamic=True)(x)
    return output


def exported(rnn: QRNN, x: Tensor, file: Path) -> Tensor:
    """Any number of steps from 1 on, and any batch. `import qrnn` before loading it."""
    sizes = ({0: Dim("steps"), 1: Dim("batch")},)
    program = torch.export.export(rnn, (torch.randn(5, 2, rnn.input_size),), dynamic_shapes=sizes)
    torch.export.save(program, file)
    output, _ = torch.export.load(file).module()(x)
    return output


def onnx(rnn: QRNN, x: Tensor, file: Path) -> Tensor:
    """Run by onnxruntime, one step at a time: the state goes in and comes out as tensors."""
    import onnxruntime

    from qrnn.onnx import TRANSLATIONS

    batch = {1: Dim("batch")}
    state_sizes = QRNNState(batch, batch, (batch,) * rnn.num_layers)  # type: ignore[arg-type]
    torch.onnx.export(
        rnn,
        (torch.randn(5, 2, rnn.input_size), rnn.initial_state(2)),
        file,
        dynamo=True,
        dynamic_shapes=({0: Dim("steps"), **batch}, state_sizes),
        custom_translation_table=TRANSLATIONS,
        external_data=False,  # weights in the same file
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file)
    names = [value.name for value in session.get_inputs()]
    state = rnn.initial_state(x.shape[1])
    tensors, outputs = [v.numpy() for v in (state.h, state.c, *state.window)], []
    for step in x.split(1):
        output, *tensors = session.run(
            None, dict(zip(names, [step.numpy(), *tensors], strict=True))
        )
        outputs.append(torch.from_numpy(output))
    return torch.cat(outputs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", nargs="?", default=".", type=Path)
    folder = parser.parse_args().folder
    if not folder.is_dir():
        parser.error(f"there is no folder {folder}")
    rnn = QRNN(8, 16, num_layers=2, kernel_size=2).eval().requires_grad_(False)
    x = torch.randn(12, 3, 8)
    want, _ = rnn(x)
    for name, run in (
        ("torch.compile", lambda: compiled(rnn, x)),
        ("torch.export", lambda: exported(rnn, x, folder / "rnn.pt2")),
        ("ONNX, step by step", lambda: onnx(rnn, x, folder / "rnn.onnx")),
    ):
        print(f"{name}: largest difference from eager {(run() - want).abs().max():.1e}")
