"""A moving average of the weights that an interrupted run takes up again."""

from typing import Any, Dict, Optional

from allennlp.training.moving_average import ExponentialMovingAverage, MovingAverage


@MovingAverage.register("exponential_average")
class ExponentialAverage(ExponentialMovingAverage):
    """AllenNLP's "exponential", fit for --recover.

    That one, loaded from a checkpoint, goes on averaging the parameters as they are in there, not
    those that the trainer trains, and puts the average where no model reads it. And the trainer's
    count of its steps, which the decay depends on, starts anew there.
    """

    updates = 0

    def apply(self, num_updates: Optional[int] = None) -> None:
        self.updates += 1
        super().apply(self.updates)

    def state_dict(self) -> Dict[str, Any]:
        return {"updates": self.updates, "shadows": self._shadows}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        for name, shadow in state_dict["shadows"].items():
            self._shadows[name].copy_(shadow)
