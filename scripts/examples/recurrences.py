"""Other recurrences on the same kernel: a moving average, a minGRU and an SRU-like layer.

python scripts/examples/recurrences.py

All are h_t = f_t h_{t-1} + x_t with f and x known beforehand, which is `linear_recurrence`;
`torchqrnn.ForgetMult` is the case where x is weighted by 1 - f. Everything is time-major.
"""

import torch
from torch import Tensor, nn

from qrnn import linear_recurrence
from qrnn.torchqrnn import ForgetMult


def moving_average(x: Tensor, weight: float) -> Tensor:
    """The exponential moving average of x (T, B, H), which starts as the first step."""
    rest = ForgetMult()(torch.full_like(x[1:], weight), x[1:], x[0])
    return torch.cat([x[:1], rest])


class MinGRU(nn.Module):
    """h_t = (1 - z_t) h_{t-1} + z_t h~_t, gate and candidate from x alone (Feng et al. 2024)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, 2 * hidden_size)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> Tensor:
        """x (T, B, I), h0 (B, H) to h (T, B, H)."""
        gate, candidate = self.linear(x).chunk(2, -1)
        # sigmoid(-gate) is 1 - sigmoid(gate), without its rounding
        return linear_recurrence((-gate).sigmoid(), gate.sigmoid() * candidate, h0)


class SRULayer(nn.Module):
    """The Simple Recurrent Unit without cells in its gates (Lei et al. 2017, first version).

    c_t = f_t c_{t-1} + (1 - f_t) x~_t, h_t = r_t tanh(c_t) + (1 - r_t) x_t.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.candidate = nn.Linear(size, size, bias=False)
        self.gates = nn.Linear(size, 2 * size)

    def forward(self, x: Tensor, c0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (T, B, H), c0 (B, H) to h (T, B, H) and the last cell (B, H)."""
        f, r = self.gates(x).sigmoid().chunk(2, -1)
        c = linear_recurrence(f, (1 - f) * self.candidate(x), c0)
        return r * c.tanh() + (1 - r) * x, c[-1]


if __name__ == "__main__":
    x = torch.arange(5.0).view(5, 1, 1)
    print("moving average:", moving_average(x, 0.5).flatten().tolist())
    x = torch.randn(100, 8, 16)
    print("minGRU:", tuple(MinGRU(16, 32)(x).shape))
    h, c = SRULayer(16)(x)
    print("SRU:", tuple(h.shape), tuple(c.shape))
