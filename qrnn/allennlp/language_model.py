"""Word-level language models that run over a stream in pieces.

T steps, B rows of the stream, I input features, H hidden units, V words, N = T * B.
"""

import math
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from allennlp.common.checks import ConfigurationError
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.modules.token_embedders import TokenEmbedder
from allennlp.nn import InitializerApplicator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from qrnn.allennlp.streams import NAMESPACE
from qrnn.checks import check, check_choice, check_probability
from qrnn.layers import QRNN

RNNS: Dict[str, Any] = {"qrnn": QRNN, "lstm": nn.LSTM}
FIXED = ("batch_first", "bidirectional", "proj_size")  # options that a stream leaves no choice in
# How many logits are in memory at a time; more on a GPU, where the number of calls is what costs.
LOGITS, GPU_LOGITS = 1 << 23, 1 << 25


class _SummedCrossEntropy(torch.autograd.Function):
    """See `summed_cross_entropy`. The loss is a scalar: its gradients are made with its value."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Any, targets: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
        grads = [torch.zeros_like(x) for x in inputs] if wanted else []
        rows = max(1, (GPU_LOGITS if hidden.is_cuda else LOGITS) // len(weight))
        total = torch.zeros((), device=hidden.device, dtype=_exact(hidden.dtype))
        for start in range(0, len(hidden), rows):
            h, t = hidden[start : start + rows], targets[start : start + rows, None]
            logits = F.linear(h, weight, bias)
            dtype = logits.dtype  # under autocast another one than the parameters'
            log_p = logits.log_softmax(1, dtype=_exact(dtype))
            del logits
            total -= log_p.gather(1, t).sum()
            if wanted:
                grad = log_p.exp_()
                grad.scatter_add_(1, t, grad.new_full(t.shape, -1))
                if bias is not None:
                    grads[2] += grad.sum(0)
                grad = grad.to(dtype)
                grads[0][start : start + rows] = grad @ weight
                grads[1] += grad.t() @ h
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> Any:
        grads = [grad_total * grad for grad in ctx.saved_tensors]
        return (*grads, *[None] * (4 - len(grads)))


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Optional[Tensor], targets: Tensor
) -> Tensor:
    """The sum of F.cross_entropy(F.linear(hidden, weight, bias), targets), without all its memory.

    hidden (N, H), weight (V, H), bias (V,), targets (N,) integers. The N * V logits, most of a
    language model's memory, are made for some rows at a time, and their gradients with them, so
    that no more multiplications are made than for all at once. In 16-bit types the softmax and the
    sum are float32. Not differentiable twice.
    """
    inputs = (hidden, weight, bias)
    if not torch.is_grad_enabled():
        inputs = (hidden.detach(), weight.detach(), None if bias is None else bias.detach())
    return _SummedCrossEntropy.apply(*inputs, targets)


def summed_adaptive_cross_entropy(
    hidden: Tensor, softmax: nn.AdaptiveLogSoftmaxWithLoss, targets: Tensor
) -> Tensor:
    """The sum of -softmax(hidden, targets).output, as `summed_cross_entropy` makes it.

    hidden (N, H), targets (N,) integers. Unlike torch's own it takes 16-bit types and autocast.
    """
    cutoffs = softmax.cutoffs  # the last one is V
    cluster = torch.bucketize(targets, targets.new_tensor(cutoffs[:-1]), right=True)
    in_head = targets.where(cluster == 0, cutoffs[0] - 1 + cluster)
    total = summed_cross_entropy(hidden, softmax.head.weight, softmax.head.bias, in_head)
    tails: Any = softmax.tail
    for n, (low, (down, up)) in enumerate(zip(cutoffs, tails, strict=False), 1):
        rows = cluster == n
        x = down(hidden[rows])
        total = total + summed_cross_entropy(x, up.weight, up.bias, targets[rows] - low)
    return total


class _Stream:
    """Where a pass over a stream has come to: the state, and what has been predicted so far."""

    def __init__(self) -> None:
        self.state: Any = None
        self.forget_counts()

    def forget_counts(self) -> None:
        self.nats = 0.0  # sum of -log p
        self.tokens = 0


class StreamModel(Model):
    """What language models over a "token_stream" share: the state between pieces, and perplexity.

    The state after a piece (the QRNN's windows included) is where the next one starts, cut from
    the graph. It starts anew with each epoch and each evaluation, and those of training and of
    evaluation do not touch each other. It is not part of the state_dict.

    The metric "perplexity" is exp of the mean of -log p over all words since it was last reset.

    A subclass has `softmax`, and says what the recurrent layers do.
    """

    softmax: Any  # nn.Linear or nn.AdaptiveLogSoftmaxWithLoss

    def __init__(self, vocab: Vocabulary, **kwargs: Any) -> None:
        super().__init__(vocab, **kwargs)
        if vocab.is_padded(NAMESPACE):
            raise ConfigurationError(
                "language model: the vocabulary has words for padding and unknown that "
                f'never occur. Set "vocabulary": {{"non_padded_namespaces": ["{NAMESPACE}"]}}'
            )
        self._streams = {True: _Stream(), False: _Stream()}  # of training and of evaluation

    def initial_state(self, batch_size: int) -> Any:
        raise NotImplementedError

    def read(self, tokens: Tensor, state: Any) -> Tuple[Tensor, Any, Union[Tensor, float]]:
        """tokens (T, B) to the softmax's inputs (T, B, H), the state to go on with, a penalty."""
        raise NotImplementedError

    def scale(self, total: Tensor, batch_size: int, words: int) -> Tensor:
        """The loss to optimise, from the sum of -log p over all the batch's words."""
        raise NotImplementedError

    def negative_log_likelihood(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The sum of -log p of targets (N,), of which the softmax is given hidden (N, H)."""
        if isinstance(self.softmax, nn.AdaptiveLogSoftmaxWithLoss):
            return summed_adaptive_cross_entropy(hidden, self.softmax, targets)
        return summed_cross_entropy(hidden, self.softmax.weight, self.softmax.bias, targets)

    def forward(
        self, tokens: Tensor, targets: Tensor, start: bool, mask: Optional[Tensor] = None
    ) -> Dict[str, Any]:
        """tokens, targets (T, B): a piece and its next words; start: whether it is the first one;
        mask (T, B): which of them are words, all when None.

        Returns {"loss": a scalar, "tokens": how many were predicted, "steps": T}.
        """
        T, B = tokens.shape
        stream = self._streams[self.training]
        if start or stream.state is None:  # None after --recover from inside an epoch
            stream.state = self.initial_state(B)
        output, state, penalty = self.read(tokens, stream.state)
        stream.state = detached(state)
        if mask is None:
            output, targets = output.flatten(0, 1), targets.flatten()
        else:
            output, targets = output[mask], targets[mask]
        total = self.negative_log_likelihood(output, targets)
        stream.nats += total.item()  # waits for a GPU, as the trainer does for every loss
        stream.tokens += targets.numel()
        loss = self.scale(total, B, targets.numel()) + penalty
        return {"loss": loss, "tokens": targets.numel(), "steps": T}

    def get_metrics(self, reset: bool = False) -> Dict[str, float]:
        stream = self._streams[self.training]
        if not stream.tokens:
            return {}
        mean = stream.nats / stream.tokens
        if reset:
            stream.forget_counts()
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf}


@Model.register("language_model")
class LanguageModel(StreamModel):
    """Embedding, recurrent layers and softmax over the words of a "token_stream" data loader.

    "loss", which is optimised, is summed over time and averaged over the batch, as in Zaremba et
    al. 2014 and, going by its learning rates, in Bradbury et al. 2016; it is not per word.

    Args:
        rnn: {"type": "qrnn" or "lstm", "input_size": ..., "hidden_size": ...} and other options of
            `QRNN` or `nn.LSTM`. The embeddings have its input_size.
        dropout: rate on the embeddings and on the last layer's output. `rnn` has its own option
            for that between layers.
        embedding: of AllenNLP, such as "word_vectors"; None for one that starts as U(-0.05, 0.05).
        cutoffs: None for a softmax whose weights start as N(0, 1 / fan-in), its biases at 0;
            otherwise, for large vocabularies, where the words, which are numbered by how often they
            come, are cut into clusters for nn.AdaptiveLogSoftmaxWithLoss (Grave et al. 2017).
        initializer: of AllenNLP, after the initial values above.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        rnn: Dict[str, Any],
        dropout: float = 0.0,
        embedding: Optional[TokenEmbedder] = None,
        cutoffs: Optional[List[int]] = None,
        initializer: Optional[InitializerApplicator] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocab, **kwargs)
        words = vocab.get_vocab_size(NAMESPACE)
        try:
            check_probability("dropout", dropout)
            options = dict(rnn)
            self.rnn = _build(options.pop("type", None), options)
            I, H = self.rnn.input_size, self.rnn.hidden_size
            if embedding is not None:
                size = embedding.get_output_dim()
                check(size == I, "embedding", f"vectors of rnn's input_size {I}", size)
            if cutoffs is not None:
                self.softmax = nn.AdaptiveLogSoftmaxWithLoss(H, words, cutoffs)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f'model "language_model": {error}') from error
        self.embedding = nn.Embedding(words, I) if embedding is None else embedding
        self.dropout = dropout
        with torch.no_grad():
            if embedding is None:
                self.embedding.weight.uniform_(-0.05, 0.05)
            if cutoffs is None:
                self.softmax = nn.Linear(H, words)
                self.softmax.weight.normal_(std=H**-0.5)
                self.softmax.bias.zero_()
        if initializer is not None:
            initializer(self)

    def initial_state(self, batch_size: int) -> Any:
        if isinstance(self.rnn, QRNN):
            return self.rnn.initial_state(batch_size)
        shape = (self.rnn.num_layers, batch_size, self.rnn.hidden_size)
        zeros = next(self.rnn.parameters()).new_zeros(shape)
        return zeros, zeros

    def read(self, tokens: Tensor, state: Any) -> Tuple[Tensor, Any, float]:
        x = F.dropout(self.embedding(tokens), self.dropout, self.training)
        output, state = self.rnn(x, state)
        return F.dropout(output, self.dropout, self.training), state, 0.0

    def scale(self, total: Tensor, batch_size: int, words: int) -> Tensor:
        return total / batch_size


def _build(rnn_type: Any, options: Dict[str, Any]) -> Any:
    check_choice("rnn type", rnn_type, RNNS)
    for name in FIXED:
        check(name not in options, "rnn", f"no option {name} in a language model", options)
    rnn = RNNS[rnn_type](**options)
    if isinstance(rnn, QRNN):
        rnn.initial_state(0)  # raises for a QRNN that cannot run in pieces
    return rnn


def detached(state: Any) -> Any:
    """The same state, cut from the graph: a tensor, a QRNNState, or a tuple of such."""
    return tuple(map(detached, state)) if type(state) is tuple else state.detach()
