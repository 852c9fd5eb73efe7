"""Both directions, and sequences of different lengths.

python scripts/examples/directions.py
"""

import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from qrnn import QRNN
from qrnn.torchqrnn import BackwardForgetMult, ForgetMult


def both_ways() -> torch.Tensor:
    """A bidirectional recurrence by hand, (steps, batch, 2 * channels)."""
    f, x = torch.rand(6, 2, 4), torch.randn(6, 2, 4)
    return torch.cat([ForgetMult()(f, x), BackwardForgetMult()(f, x)], 2)


def packed() -> tuple[PackedSequence, torch.Tensor]:
    """Three sequences of 5, 2 and 3 steps through a bidirectional QRNN; its last outputs.

    The backward direction starts at each sequence's own last step. h_n is (layers * 2, batch,
    channels); the forward direction's is from step 4, 1 and 2, the backward's from step 0.
    """
    sequences = [torch.randn(steps, 3) for steps in (5, 2, 3)]
    rnn = QRNN(3, 4, num_layers=2, bidirectional=True).eval()
    output, (h_n, _) = rnn(pack_sequence(sequences, enforce_sorted=False))
    for sequence, own in zip(sequences, unpack_sequence(output), strict=True):
        # as if each had been alone
        torch.testing.assert_close(own, rnn(sequence)[0])
    return output, h_n


if __name__ == "__main__":
    print("ForgetMult and BackwardForgetMult:", tuple(both_ways().shape))
    output, h_n = packed()
    print("packed:", [tuple(v.shape) for v in unpack_sequence(output)], "h_n:", tuple(h_n.shape))
