"""The AWD recipe of Merity et al. 2017 (arXiv 1708.02182), for a QRNN: its model and its optimizer.

T steps, B rows of the stream, L layers, V words.
"""

from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

import torch
from allennlp.common.checks import ConfigurationError
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.nn import InitializerApplicator
from allennlp.training import TrainerCallback
from allennlp.training.moving_average import MovingAverage
from torch import Tensor, nn
from torch.nn import functional as F

from qrnn.allennlp.language_model import StreamModel
from qrnn.allennlp.streams import NAMESPACE
from qrnn.checks import check, check_number, check_probability
from qrnn.layers import QRNNLayer, QRNNState

METRIC = "validation_perplexity"


@Model.register("awd_language_model")
class AWDLanguageModel(StreamModel):
    """A QRNN language model with tied weights and the regularisation of Merity et al. 2017.

    "loss" is the mean of -log p per word, and, with h the last layer's output (T, B, E), the
    penalties activation_penalty * mean(dropped h ** 2) and
    temporal_penalty * mean((h_t - h_(t-1)) ** 2); sections 4.5 and 4.6.

    The embeddings, which are the softmax's weights too, start as N(0, 1 / embedding_size), its
    biases at 0.

    Args:
        embedding_size: E, of the embeddings and of the last layer's output.
        hidden_size: of the layers before the last one.
        num_layers: L, at least 2.
        first_kernel_size: of the first layer; the others' windows are of one step.
        pooling: "f", "fo" or "ifo".
        forget_bias: initial value of the forget gates' bias.
        weight_dropout: rate on the elements of the layers' weights.
        word_dropout: rate at which a word of the vocabulary is zero wherever it is read in a
            piece (section 4.3).
        input_dropout, hidden_dropout, output_dropout: rates on the embeddings, between the layers
            and on the last one's output, with one mask for all steps of a piece (section 4.2).
        activation_penalty, temporal_penalty: the factors of the penalties.
        initializer: of AllenNLP, after the initial values above.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        embedding_size: int,
        hidden_size: int,
        num_layers: int,
        first_kernel_size: int = 2,
        pooling: str = "fo",
        forget_bias: float = 0.0,
        weight_dropout: float = 0.0,
        word_dropout: float = 0.0,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
        initializer: Optional[InitializerApplicator] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocab, **kwargs)
        self.word_dropout = word_dropout
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        self.output_dropout = output_dropout
        self.activation_penalty = activation_penalty
        self.temporal_penalty = temporal_penalty
        try:
            for name in ("word", "input", "hidden", "output"):
                check_probability(f"{name}_dropout", getattr(self, f"{name}_dropout"))
            for name in ("activation_penalty", "temporal_penalty"):
                check_number(name, getattr(self, name))
                check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
            check(num_layers >= 2, "num_layers", "at least 2", num_layers)
            sizes = [embedding_size, *[hidden_size] * (num_layers - 1), embedding_size]
            self.layers = nn.ModuleList(
                QRNNLayer(
                    sizes[n],
                    sizes[n + 1],
                    kernel_size=1 if n else first_kernel_size,
                    pooling=pooling,
                    weight_dropout=weight_dropout,
                    forget_bias=forget_bias,
                )
                for n in range(num_layers)
            )
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f'model "awd_language_model": {error}') from error
        self.softmax = nn.Linear(embedding_size, vocab.get_vocab_size(NAMESPACE))
        with torch.no_grad():
            self.softmax.weight.normal_(std=embedding_size**-0.5)
            self.softmax.bias.zero_()
        if initializer is not None:
            initializer(self)

    def initial_state(self, batch_size: int) -> Tuple[QRNNState, ...]:
        layers: Iterable[Any] = self.layers
        return tuple(layer.initial_state(batch_size) for layer in layers)

    def read(
        self, tokens: Tensor, state: Tuple[QRNNState, ...]
    ) -> Tuple[Tensor, Tuple[QRNNState, ...], Union[Tensor, float]]:
        x = F.embedding(tokens, self.softmax.weight)
        if self.training and self.word_dropout:
            words = self.softmax.weight.new_ones(self.softmax.out_features)
            x = x * F.dropout(words, self.word_dropout)[tokens][:, :, None]
        x = self._dropped(x, self.input_dropout)
        states = []
        for n, layer in enumerate(self.layers):
            h, after = layer(x, state[n])
            states.append(after)
            last = n + 1 == len(self.layers)
            x = self._dropped(h, self.output_dropout if last else self.hidden_dropout)
        penalty: Union[Tensor, float] = 0.0
        if self.training and self.activation_penalty:
            penalty = penalty + self.activation_penalty * x.square().mean()
        if self.training and self.temporal_penalty and len(h) > 1:
            penalty = penalty + self.temporal_penalty * h.diff(dim=0).square().mean()
        return x, tuple(states), penalty

    def scale(self, total: Tensor, batch_size: int, words: int) -> Tensor:
        return total / words

    def _dropped(self, x: Tensor, rate: float) -> Tensor:
        """Dropout of x (T, B, .) with the same mask at every step."""
        if not self.training or not rate:
            return x
        return x * F.dropout(torch.ones_like(x[0]), rate)


class _Average(MovingAverage):
    """The mean of the parameters after each step since `start`, unlike a moving average."""

    def __init__(self, parameters: Iterable[Tuple[str, Tensor]]) -> None:
        super().__init__(parameters)
        self.steps = 0
        self.started = False

    def apply(self, num_updates: Optional[int] = None) -> None:
        if not self.started:
            return
        self.steps += 1
        for name, parameter in self._parameters:
            self._shadows[name].lerp_(parameter.data, 1 / self.steps)

    def assign_average_value(self) -> None:
        if self.steps:
            super().assign_average_value()

    def restore(self) -> None:
        if self.steps:
            super().restore()

    def state_dict(self) -> Dict[str, Any]:
        return {"steps": self.steps, "started": self.started, "shadows": self._shadows}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.steps, self.started = state_dict["steps"], state_dict["started"]
        for name, shadow in state_dict["shadows"].items():
            self._shadows[name].copy_(shadow)


@TrainerCallback.register("nt_asgd")
class NTASGD(TrainerCallback):
    """Averaged SGD with a non-monotonic trigger: algorithm 1 of Merity et al. 2017.

    The trainer's optimizer is plain SGD. Once validation perplexity is worse than the best of more
    than `window` epochs ago, the parameters are averaged over all steps from then on. The average
    is what is validated and saved; training goes on from the parameters themselves. The trainer may
    have no moving_average of its own: this callback puts one there.

    window: n of the paper, in epochs.
    triggered: whether the average begins with the first step, as in fine-tuning (section 5).
    """

    def __init__(self, serialization_dir: str, window: int = 5, triggered: bool = False) -> None:
        super().__init__(serialization_dir)
        if window < 1:
            raise ConfigurationError(f"nt_asgd: window: expected at least 1, got {window}")
        self.window = window
        self.triggered = triggered
        self.average: Optional[_Average] = None
        self.saved: Optional[Dict[str, Any]] = None
        self.perplexities: List[float] = []

    def on_start(self, trainer: Any, is_primary: bool = True, **kwargs: Any) -> None:
        super().on_start(trainer, is_primary, **kwargs)
        if trainer._moving_average is not None:
            raise ConfigurationError("nt_asgd: the trainer already has a moving_average")
        if trainer._validation_data_loader is None:
            raise ConfigurationError("nt_asgd: there is no validation data to decide on")
        self.average = _Average(trainer.model.named_parameters())
        self.average.started = self.triggered
        if self.saved is not None:
            self.perplexities = list(self.saved["perplexities"])
            self.average.load_state_dict(self.saved["average"])
        trainer._moving_average = self.average

    def on_epoch(
        self,
        trainer: Any,
        metrics: Dict[str, Any],
        epoch: int,
        is_primary: bool = True,
        **kwargs: Any,
    ) -> None:
        if METRIC not in metrics:
            raise ConfigurationError(
                f"nt_asgd: expected a model whose metrics have {METRIC}, got {', '.join(metrics)}"
            )
        assert self.average is not None
        before = self.perplexities[: -self.window]
        if before and metrics[METRIC] > min(before):
            self.average.started = True
        self.perplexities.append(metrics[METRIC])

    def state_dict(self) -> Dict[str, Any]:
        assert self.average is not None
        return {"perplexities": self.perplexities, "average": self.average.state_dict()}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.saved = state_dict


@TrainerCallback.register("rate_by_length")
class RateByLength(TrainerCallback):
    """For each step, the learning rate times the piece's steps over `bptt` (Merity et al. 2017,
    section 4.1): with pieces of random length, and a loss per word, short ones would count more.

    The model's output has the piece's "steps". bptt: at least 1.
    """

    def __init__(self, serialization_dir: str, bptt: int) -> None:
        super().__init__(serialization_dir)
        if bptt < 1:
            raise ConfigurationError(f"rate_by_length: bptt: expected at least 1, got {bptt}")
        self.bptt = bptt
        self.steps = bptt
        self.rates: List[float] = []

    def on_start(self, trainer: Any, is_primary: bool = True, **kwargs: Any) -> None:
        if (several := trainer._num_gradient_accumulation_steps) != 1:
            raise ConfigurationError(
                "rate_by_length: expected num_gradient_accumulation_steps 1, since a step is for "
                f"one piece, got {several}"
            )
        super().on_start(trainer, is_primary, **kwargs)
        # right at the step: schedulers set the rate between on_backward and there
        trainer.optimizer.register_step_pre_hook(self._scale)
        trainer.optimizer.register_step_post_hook(self._restore)

    def on_backward(
        self, trainer: Any, batch_outputs: Dict[str, Any], backward_called: bool, **kwargs: Any
    ) -> bool:
        if "steps" not in batch_outputs:
            raise ConfigurationError(
                "rate_by_length: expected a model whose output has steps, such as a language "
                f"model, got {type(trainer.model).__name__}"
            )
        self.steps = batch_outputs["steps"]
        return False

    def _scale(self, optimizer: Any, *arguments: Any) -> None:
        self.rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= self.steps / self.bptt

    def _restore(self, optimizer: Any, *arguments: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
