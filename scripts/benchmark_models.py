"""The benchmark's suites of whole models: ptb-step, translation and reviews
(scripts/benchmark.py)."""

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from benchmark_layers import layers64, output_of
from timing import TOLERANCE, Device, Row, WrongResult, race, ratio, rotation, verify
from torch import Tensor, nn
from torch.nn import functional as F

from qrnn import QRNN

PTB = {"batch": 20, "length": 105, "units": 640, "vocabulary": 10_000}
PAPER_MS = {  # read off the bars; its LSTM is cuDNN's
    "QRNN": {"RNN": 41, "softmax": 74, "optimiser": 36, "step": 151},
    "LSTM": {"RNN": 170, "softmax": 74, "optimiser": 45, "step": 289},
}

TRANSLATION = {"batch": 16, "source": 103, "target": 93}  # the mean lengths in the paper
REVIEWS = {"length": 272, "words": 67_559}  # mean length, vocabulary of word2vec-imdb
LOADED = 20  # batches


class LanguageModel:
    """A training step in parts. The embedding counts as RNN, as what cannot be told from it."""

    def __init__(self, device: Device, rnn: nn.Module) -> None:
        size, units = PTB["vocabulary"], PTB["units"]
        self.rnn = rnn
        self.embedding = nn.Embedding(size, units, device=device.kind)
        self.softmax = nn.Linear(units, size, device=device.kind)
        self.parameters = [p for m in (rnn, self.embedding, self.softmax) for p in m.parameters()]
        self.sgd = torch.optim.SGD(self.parameters, lr=1e-3)  # small: the targets are noise
        shape = (2, PTB["length"], PTB["batch"])
        self.words, self.targets = torch.randint(size, shape, device=device.kind)

    def forward(self) -> None:
        self.output = self.rnn(F.dropout(self.embedding(self.words), 0.5))[0]

    def loss(self) -> None:
        """Softmax and cross-entropy, summed over time and averaged over the batch, and backward."""
        self.hidden = self.output.detach().requires_grad_()
        logits = self.softmax(F.dropout(self.hidden, 0.5)).flatten(0, 1)
        total = F.cross_entropy(logits, self.targets.flatten(), reduction="sum")
        (total / PTB["batch"]).backward()

    def backward(self) -> None:
        self.output.backward(self.hidden.grad)

    def optimise(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 10)
        self.sgd.step()
        self.sgd.zero_grad()


def ptb_step(device: Device, seconds: float) -> Iterator[Row]:
    """The shares of a step with two layers and dropout 0.5, and nn.LSTM's time over the QRNN's."""
    size = PTB["units"]
    qrnn = QRNN(size, size, num_layers=2, dropout=0.5, device=device.kind)
    lstm = nn.LSTM(size, size, num_layers=2, dropout=0.5, device=device.kind)
    shape = (PTB["length"], PTB["batch"], size)
    x, grad = rotation(device, [shape] * 2, torch.float32)[0]
    verify("QRNN", output_of(qrnn.eval()), layers64, [x], grad, list(qrnn.parameters()))
    models = {"LSTM": lstm, "QRNN": qrnn.train()}
    steps = [LanguageModel(device, rnn) for rnn in models.values()]
    phases = [[call] for s in steps for call in (s.forward, s.loss, s.backward, s.optimise)]
    spent = race(device, phases, seconds)
    times: dict[str, dict[str, float]] = {}
    for model, (forward, softmax, backward, optimiser) in zip(
        models, (spent[:4], spent[4:]), strict=True
    ):
        times[model] = {"RNN": forward + backward, "softmax": softmax, "optimiser": optimiser}
        times[model]["step"] = sum(times[model].values())
    for model, part in product(times, times["QRNN"]):
        paper = PAPER_MS[model][part]
        yield {
            "part": part,
            "model": model,
            "share": ratio(times[model][part], times[model]["step"]),
            "lstm_over_qrnn": ratio(times["LSTM"][part], times["QRNN"][part]),
            "paper_share": ratio(paper, PAPER_MS[model]["step"]),
            "paper_lstm_over_qrnn": ratio(PAPER_MS["LSTM"][part], PAPER_MS["QRNN"][part]),
            **device.milliseconds(ms=times[model][part], paper_ms=paper / 1e3),
        }


def translation(device: Device, seconds: float) -> Iterator[Row]:
    """Target characters a second, forward and backward, over those of the LSTM.

    The models of iwslt_char.yaml and iwslt_char_lstm.yaml, in joeynmt; and the former with its
    decoder called for one step after the other, as the replication's was.
    """
    import with_joeynmt  # with what it imports, not on every GPU machine

    qrnn, lstm = (
        with_joeynmt.build(Path("configs") / name, symbols=183).to(device.kind)
        for name in ("iwslt_char.yaml", "iwslt_char_lstm.yaml")
    )
    B, S, T = TRANSLATION.values()
    source, target = (torch.randint(4, 187, (B, n), device=device.kind) for n in (S, T + 1))
    sides: dict[str, Any] = {
        "src": source,
        "src_mask": torch.ones(B, 1, S, dtype=torch.bool, device=device.kind),
        "src_length": torch.full((B,), S, device=device.kind),
        "trg_input": target[:, :-1],
        "trg": target[:, 1:],
        "trg_mask": torch.ones(B, 1, T, dtype=torch.bool, device=device.kind),
    }

    def at_once(model: nn.Module) -> Tensor:
        loss: Tensor = model(return_type="loss", **sides)[0]
        return loss

    def step_by_step(model: Any) -> Tensor:
        memory, final, _, _ = model(return_type="encode", **sides)
        embedded, hidden, logits = model.trg_embed(sides["trg_input"]), None, []
        for t in range(T):
            out, hidden, _, _ = model.decoder(
                embedded[:, t : t + 1], memory, final, sides["src_mask"], 1, hidden
            )
            logits.append(out)
        return model.loss_function(torch.cat(logits, 1).log_softmax(-1), **sides)

    expected, found = (f(qrnn).item() for f in (at_once, step_by_step))
    if not abs(found - expected) <= 1e-4 * abs(expected):
        raise WrongResult(f"step by step the loss is {found}, at once {expected}")
    rows = [("QRNN", qrnn, at_once), ("QRNN, step by step", qrnn, step_by_step)]
    rows.append(("LSTM", lstm, at_once))
    contenders = [[lambda m=m, f=f: f(m).backward()] for _, m, f in rows]
    times = race(device, contenders, seconds)
    for (name, model, _), spent in zip(rows, times, strict=True):
        yield {
            "model": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "speed_over_lstm": ratio(times[-1], spent),
            **device.milliseconds(ms=spent),
        }


def reviews(device: Device, seconds: float) -> Iterator[Row]:
    """Reviews a second, whole training steps, over the LSTM's: the models of IMDb's configs.

    In float32, and as the callback "bfloat16_autocast" trains. And those of their loader alone,
    which has read and indexed the reviews before.
    """
    import qrnn.allennlp  # isort: skip  # noqa: F401  (before allennlp, which it mends)
    from allennlp.common import Params
    from allennlp.data import Vocabulary
    from allennlp.models import Model
    from allennlp.training.optimizers import Optimizer

    words = REVIEWS["words"]
    vocabulary = Vocabulary()
    vocabulary.add_tokens_to_namespace([str(n) for n in range(words - 2)], "tokens")
    vocabulary.add_tokens_to_namespace(["neg", "pos"], "labels")
    random_start = {"model.text_field_embedder.token_embedders.tokens.pretrained_file": None}
    models: dict[str, nn.Module] = {}
    steps: list[Callable[[torch.dtype], None]] = []
    loader = review_loader(vocabulary, device)
    batch = next(iter(loader))
    for name, config in (("QRNN", "imdb"), ("QRNN, k = 4", "imdb_k4"), ("LSTM", "imdb_lstm")):
        params = Params.from_file(f"configs/{config}.jsonnet", random_start)
        model = models[name] = Model.from_params(params["model"], vocab=vocabulary).to(device.kind)
        wide = copy.deepcopy(model).double().eval()
        found, expected = (m(**batch)["probs"].double() for m in (model.eval(), wide))
        if not (off := (found - expected).abs().max()) <= TOLERANCE[torch.float32]:
            raise WrongResult(f"{name}: its probabilities are off by {off:.1e}")
        parameters = list(model.train().named_parameters())
        rmsprop = Optimizer.from_params(params["trainer"]["optimizer"], model_parameters=parameters)

        def step(dtype: torch.dtype, model: nn.Module = model, rmsprop: Any = rmsprop) -> None:
            rmsprop.zero_grad()
            with torch.autocast(device.kind, dtype, enabled=dtype != torch.float32):
                loss = model(**batch)["loss"]
            loss.backward()
            rmsprop.step()

        steps.append(step)
    for dtype in (torch.float32, torch.bfloat16):
        contenders = [[partial(step, dtype)] for step in steps]
        *times, loading = race(device, [*contenders, [lambda: list(loader)]], seconds)
        sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()}
        rows = [*sizes.items(), ("none, the loader alone", 0)]
        for (name, size), spent in zip(rows, [*times, loading / LOADED], strict=True):
            yield {
                "model": name,
                "parameters": size,
                "dtype": str(dtype).removeprefix("torch."),
                "speed_over_lstm": ratio(times[-1], spent),
                **device.milliseconds(ms=spent),
            }


def review_loader(vocabulary: Any, device: Device) -> Any:
    """The loader of configs/imdb.jsonnet, with LOADED batches of random reviews in memory."""
    from allennlp.common import Params
    from allennlp.data import DataLoader

    from qrnn.allennlp.readers import ImdbReader

    params = Params.from_file("configs/imdb.jsonnet")["data_loader"]
    T, words = REVIEWS.values()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        (Path(folder) / "meta.json").write_text('{"official": false, "note": "random numbers"}')
        with file.open("w", encoding="utf-8") as lines:
            for n in range(LOADED * params["batch_sampler"]["batch_size"]):
                text = " ".join(map(str, torch.randint(words - 2, (T,)).tolist()))
                print(json.dumps({"text": text, "label": ("neg", "pos")[n % 2]}), file=lines)
        loader = DataLoader.from_params(params, reader=ImdbReader(), data_path=str(file))
    loader.index_with(vocabulary)
    loader.set_target_device(torch.device(device.kind))
    if (found := len(list(loader))) != LOADED:
        raise WrongResult(f"the loader makes {found} batches of {LOADED}")
    return loader
