"""A small joeynmt model of type "qrnn", its batches, and a beam search over whole prefixes."""

import math
from types import SimpleNamespace

import torch
from joeynmt import model as joeynmt_model
from joeynmt.batch import Batch
from joeynmt.vocabulary import Vocabulary

from qrnn.joeynmt import compat

compat.extend()
compat.extend_search()

UNK, PAD, BOS, EOS = range(4)
SPECIALS = SimpleNamespace(
    unk_token="<unk>",
    pad_token="<pad>",
    bos_token="<s>",
    eos_token="</s>",
    sep_token=None,
    unk_id=UNK,
    pad_id=PAD,
    bos_id=BOS,
    eos_id=EOS,
    sep_id=None,
    lang_tags=[],
)
ENCODER = {"type": "qrnn", "hidden_size": 6, "num_layers": 2, "embeddings": {"embedding_dim": 5}}
DECODER = {**ENCODER, "attention": "qrnn-dot", "hidden_size": 7}


def build(encoder=None, decoder=None, symbols=4, **options):
    """joeynmt's model of `symbols` symbols and 4 specials."""
    vocabulary = Vocabulary([chr(97 + i) for i in range(symbols)], SPECIALS)
    config = {
        "encoder": {**ENCODER, **(encoder or {})},
        "decoder": {**DECODER, **(decoder or {})},
        **options,
    }
    model = joeynmt_model.build_model(config, vocabulary, vocabulary)
    model.loss_function = ("crossentropy", 0.0)
    return model.eval()


def shaken(*args, **options):
    """`build` with weights that tell symbols, steps and layers apart."""
    model = build(*args, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.9)
    return model


def batch(sources, targets=None):
    def padded(sentences):
        longest = max(map(len, sentences))
        return torch.tensor([[*s, *[PAD] * (longest - len(s))] for s in sentences])

    sources = [[*s, EOS] for s in sources]
    made = Batch(
        src=padded(sources),
        src_length=torch.tensor([len(s) for s in sources]),
        src_prompt_mask=None,
        trg=padded([[BOS, *t, EOS] for t in targets]) if targets else None,
        trg_prompt_mask=None,
        indices=torch.arange(len(sources)),
        device=torch.device("cpu"),
        pad_index=PAD,
        eos_index=EOS,
    )
    made.sort_by_src_length()
    return made


SOURCES = [[4, 5, 6, 7, 5, 4, 4], [6, 4], [7, 5, 6, 6]]
TARGETS = [[5, 5, 4], [7, 6, 5, 4, 4, 6], [4]]


def decode(model, made, trg_input, hidden=None, encoded=None):
    output, final = encoded or model(return_type="encode", **vars(made))[:2]
    return model(
        return_type="decode",
        trg_input=trg_input,
        encoder_output=output,
        encoder_hidden=None if hidden is not None else final,
        src_mask=made.src_mask,
        unroll_steps=trg_input.shape[1],
        decoder_hidden=hidden,
    )


def log_probabilities(model, source, prefix):
    """Of the next symbol, by one pass over the whole prefix; as joeynmt, never <s> or <pad>."""
    made = batch([source])
    logits, *_ = decode(model, made, torch.tensor([[BOS, *prefix]]))
    log_p = logits[0, -1].log_softmax(-1)
    log_p[[BOS, PAD]] = -math.inf
    if not prefix:
        log_p[EOS] = -math.inf  # min_output_length 1
    return log_p.tolist()


def beams(model, source, size, longest):
    """Every finished hypothesis of a beam search and its log probability, in joeynmt's way.

    That is: a beam's place counts as closed once </s> came up in it; what has </s> stays in the
    beam, and only what continues without one can be finished later.
    """
    alive = [((), 0.0)]
    closed = [False] * size
    finished = []
    for step in range(longest):
        candidates = [
            ((*prefix, symbol), score + p)
            for prefix, score in alive
            for symbol, p in enumerate(log_probabilities(model, source, prefix))
        ]
        alive = sorted(candidates, key=lambda c: c[1], reverse=True)[:size]
        last = step + 1 == longest
        for place, (prefix, _) in enumerate(alive):
            closed[place] |= last or prefix[-1] == EOS
        for prefix, score in alive:
            ends = prefix.count(EOS)
            if (ends == 1 and prefix[-1] == EOS) or (last and ends == 0):
                finished.append((prefix, score))
        if all(closed):
            break
    return finished
