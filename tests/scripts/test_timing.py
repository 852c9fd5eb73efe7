import itertools

import pytest
import timing
import torch
from timing import WrongResult


class Scripted(timing.Cpu):
    """A device on which a call takes as long as it returns."""

    sets = 3

    def copies(self, size):
        self.asked = size
        return self.sets

    def time(self, call):
        return call()

    def capture(self, calls):
        return lambda: sum(call() for call in calls)


def test_contenders_take_turns_rotate_and_warm_up_uncounted():
    order = []

    def contender(name, times):
        times = iter(times)

        def call(n):
            order.append((name, n))
            return next(times)

        return [lambda n=n: call(n) for n in range(2)]

    a = contender("a", [900, 1, 50, 3])
    b = contender("b", [700, 4, 2, 6])
    assert timing.race(Scripted(), [a, b], 0.0) == [3, 4]
    assert [name for name, _ in order] == ["a", "b"] * 4
    assert [n for name, n in order if name == "a"] == [1, 0, 1, 0]


def test_a_row_is_repeated_for_its_seconds(monkeypatch):
    monkeypatch.setattr(timing.time, "monotonic", itertools.count().__next__)
    times = itertools.count(1 - timing.WARM_UP)
    # the clock is read after the warm-up, and before each turn but the first three
    assert timing.race(Scripted(), [[lambda: next(times)]], 9.0) == [(1 + 3 + 8) / 2]


def test_a_replay_counts_for_the_calls_in_it():
    fast, slow = [lambda: 2.0], [lambda: 3.0, lambda: 5.0]
    assert timing.replays(Scripted(), [fast, slow], 0.0) == [2.0, 4.0]


def test_what_cannot_be_captured_has_no_time():
    class Refuses(Scripted):
        def capture(self, calls):
            return None if len(calls) == 5 else super().capture(calls)

    assert timing.replays(Refuses(), [[lambda: 1.0] * 5, [lambda: 3.0]], 0.0) == [None, 3.0]
    assert timing.replays(timing.Cpu(), [[lambda: 1.0]], 0.0) == [None]
    assert timing.ratio(None, 3.0) is None and timing.ratio(3.0, 2.0) == 1.5


def test_a_rotation_is_as_long_as_the_device_asks_for_its_size():
    device = Scripted()
    sets = timing.rotation(device, [(2, 3, 4), (2, 3)], torch.bfloat16)
    assert device.asked == (24 + 6) * 2 and len(sets) == 3
    assert [value.shape for value in sets[0]] == [(2, 3, 4), (2, 3)]
    assert not torch.equal(sets[0][0], sets[1][0])


def test_a_cpu_has_no_absolute_times():
    assert timing.Cpu().milliseconds(ms=1.0) == {}


WEIGHT = torch.tensor([2.0, 3.0])


def product(x, weight=WEIGHT):
    return x * weight


def verified(function, grad=True, parameters=()):
    x = torch.randn(4, 7, 2)
    given = torch.randn(4, 7, 2) if grad else None
    oracle = product if parameters else lambda x: x * WEIGHT.double()
    timing.verify("it", function, oracle, [x], given, parameters)


class Times(torch.autograd.Function):
    """A right product whose gradient is wrong by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x * WEIGHT

    @staticmethod
    def backward(ctx, grad):
        return grad * WEIGHT * ctx.factor, None


def off_at(place, by):
    def function(x):
        wrong = torch.zeros_like(x)
        wrong[place] = by
        return x * WEIGHT + wrong

    return function


def test_right_results_pass():
    verified(product)
    verified(product, grad=False)
    weight = WEIGHT.clone().requires_grad_()
    verified(lambda x: product(x, weight), parameters=[weight])


@pytest.mark.parametrize(
    "function",
    [
        off_at((-1, -1), 0.1),  # the last sequence is always in the sample
        off_at((2, 5), float("nan")),  # everything has to be finite
        lambda x: x * WEIGHT * (1 + 3e-4),  # as far off as TF32
        lambda x: Times.apply(x, 1.001),
    ],
)
def test_wrong_results_are_refused(function):
    with pytest.raises(WrongResult, match=r"it: result [01] is"):
        verified(function)


def test_a_wrong_gradient_of_a_parameter_is_refused():
    weight = WEIGHT.clone().requires_grad_()
    with pytest.raises(WrongResult, match="result 2 is off by 5"):
        verified(lambda x: x * (weight / 2 + WEIGHT / 2), parameters=[weight])


def test_of_very_long_sequences_only_the_last_is_looked_at(monkeypatch):
    monkeypatch.setattr(timing, "SAMPLE", 7)
    with pytest.raises(WrongResult):
        verified(off_at((0, 6), 9.0))
    verified(off_at((0, 0), 9.0))
