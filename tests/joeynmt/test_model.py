"""Encoder and decoder of type "qrnn" inside joeynmt's own model, initializer and search."""

import pytest
import torch
from joeynmt import model as joeynmt_model
from joeynmt.config import ConfigurationError
from joeynmt.search import beam_search, search
from joeynmt.vocabulary import Vocabulary
from torch.testing import assert_close
from translation import (
    DECODER,
    ENCODER,
    EOS,
    PAD,
    SOURCES,
    SPECIALS,
    TARGETS,
    batch,
    beams,
    build,
    decode,
    log_probabilities,
    shaken,
)

from qrnn.joeynmt import QRNNAttentionDecoder, QRNNEncoder

PAPER = {"first_kernel_size": 6, "masked": False, "reverse_source": True}
GRU = {**ENCODER, "type": "recurrent"}
VARIANTS = [
    ({}, {}),
    (PAPER, {"first_kernel_size": 3}),
    ({"bidirectional": True, "dense": True}, {"kernel_size": 1, "pooling": "f"}),
    ({"pooling": "ifo"}, {"pooling": "ifo", "hidden_size": 6}),
]
variants = pytest.mark.parametrize(("encoder", "decoder"), VARIANTS)


@variants
@torch.no_grad()
def test_step_by_step_is_all_at_once(encoder, decoder):
    model, made = shaken(encoder, decoder), batch(SOURCES, TARGETS)
    encoded = model(return_type="encode", **vars(made))[:2]
    logits, hidden, attention, vectors = decode(model, made, made.trg_input, encoded=encoded)
    B, T, S = 3, made.trg_input.shape[1], made.src.shape[1]
    assert logits.shape == (B, T, 8) and attention.shape == (B, T, S)
    assert vectors.shape == (B, T, model.decoder.hidden_size)
    assert all(value.shape[:2] == (B, 1) for value in hidden) and len(hidden) == 2
    state = None
    for t in range(T):
        step = decode(model, made, made.trg_input[:, t : t + 1], state, encoded)
        state = step[1]
        assert_close(step[0], logits[:, t : t + 1], atol=1e-5, rtol=1e-5)
        assert_close(step[2], attention[:, t : t + 1], atol=1e-5, rtol=1e-5)
    assert_close(state, hidden, atol=1e-5, rtol=1e-5)
    # a beam starts from the same state
    first = model.decoder._init_hidden(encoded[1])
    assert isinstance(first, tuple) and [value.dim() for value in first] == [3, 3]
    begun = decode(model, made, made.trg_input, tuple(v.transpose(0, 1) for v in first), encoded)
    assert_close(begun[0], logits)


@variants
def test_neither_padding_nor_the_rest_of_the_batch_matters(encoder, decoder):
    model, made = shaken(encoder, decoder), batch(SOURCES, TARGETS)
    with torch.no_grad():  # what padding reads
        model.src_embed.lut.weight[PAD] = torch.nan
        model.trg_embed.lut.weight[PAD] = 7
    together, *_ = decode(model, made, made.trg_input)
    attention = decode(model, made, made.trg_input)[2]
    assert (attention.masked_select(~made.src_mask) == 0).all()
    assert_close(attention.sum(-1), torch.ones(attention.shape[:2]))
    for b, i in enumerate(made.indices.tolist()):
        alone = batch([SOURCES[i]], [TARGETS[i]])
        logits, *_ = decode(model, alone, alone.trg_input)
        assert_close(together[b, : logits.shape[1]], logits[0], atol=1e-5, rtol=1e-5)
    loss = model(return_type="loss", **vars(made))[0]
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert loss.isfinite()


@torch.no_grad()
def test_a_reversed_source_is_a_source_written_backwards():
    forward, reverse = build(), build({"reverse_source": True})
    reverse.load_state_dict(forward.state_dict())
    made = batch(SOURCES)
    output, final = reverse(return_type="encode", **vars(made))[:2]
    assert final.shape == (3, 2, 6)
    for b, i in enumerate(made.indices.tolist()):
        written = [EOS, *SOURCES[i][::-1]]
        embedded = forward.src_embed(torch.tensor([written]))
        want, (h_n, _) = forward.encoder.stack(embedded)
        assert_close(output[b, : len(written)], want[0].flip(0))
        assert not output[b, len(written) :].any()
        assert_close(final[b], h_n[:, 0])


@torch.no_grad()
def test_each_layer_is_conditioned_on_the_layer_below_it_in_the_encoder():
    model, made = shaken(), batch(SOURCES, TARGETS)
    output, final = model(return_type="encode", **vars(made))[:2]
    want = decode(model, made, made.trg_input, encoded=(output, final))[0]
    embedded = model.src_embed(made.src)
    _, (h_n, _) = model.encoder.stack(embedded, lengths=made.src_length)
    assert_close(final, h_n.transpose(0, 1))
    state = model.decoder.stack.initial_state(h_n)
    h, *_ = model.decoder.stack(model.trg_embed(made.trg_input), state, output, made.src_length)
    assert_close(want, h @ model.decoder.output_layer.weight.T)


def test_dropout_only_where_it_is_asked_for():
    made = batch(SOURCES, TARGETS)
    for where in ("emb_dropout", "hidden_dropout", "dropout", "attention_dropout"):
        model = shaken(decoder={where: 0.5} if where != "emb_dropout" else None).train()
        if where == "emb_dropout":
            config = {"embeddings": {"embedding_dim": 5, "dropout": 0.5}}
            model = shaken(config, config).train()
            assert model.encoder.emb_dropout.p == model.decoder.emb_dropout.p == 0.5
        twice = [decode(model, made, made.trg_input)[0] for _ in range(2)]
        assert not torch.equal(*twice), where
    model = shaken().train()
    assert torch.equal(*[decode(model, made, made.trg_input)[0] for _ in range(2)])


def test_freezing_and_tying():
    model = build({"freeze": True}, {"freeze": True, "hidden_size": 5}, tied_softmax=True)
    assert model.decoder.output_layer.weight is model.trg_embed.lut.weight
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert {name.split(".")[0] for name in frozen} == {"encoder", "decoder"}
    assert not any(p.requires_grad for p in model.encoder.parameters())


class TestStart:
    @pytest.mark.parametrize("initializer", ["xavier_uniform", "zeros", "normal"])
    def test_values(self, initializer):
        wide = {"hidden_size": 64, "forget_bias": 1.5}
        model = build(wide, wide, initializer=initializer, embed_initializer="zeros")
        for stack in (model.encoder.stack, model.decoder.stack):
            for layer in stack.layers:
                z, f, o = layer.bias.view(3, 64)
                assert not z.any() and not o.any() and (f == 1.5).all()
                assert layer.weight.std().item() == pytest.approx(
                    layer.weight.shape[1] ** -0.5, rel=0.1
                )
        for linear in (*model.decoder.stack.conditions, model.decoder.stack.attention_k):
            assert linear.weight.std().item() == pytest.approx(1 / 8, rel=0.1)
        # joeynmt's initializer still concerns these
        assert not model.src_embed.lut.weight.any()
        assert bool(model.decoder.output_layer.weight.any()) == (initializer != "zeros")

    def test_names_that_joeynmt_takes_for_a_gru(self):
        assert not [name for name, _ in build().named_parameters() if "rnn" in name]

    def test_other_models_start_as_joeynmt_has_it(self):
        gru = {"encoder": GRU, "decoder": {**GRU, "attention": "luong"}}
        torch.manual_seed(1)
        models = [build(**gru)]
        with pytest.MonkeyPatch.context() as context:
            for name in ("initialize_model", "RecurrentEncoder", "RecurrentDecoder"):
                replaced = getattr(joeynmt_model, name)
                context.setattr(joeynmt_model, name, replaced.__wrapped__)
            torch.manual_seed(1)
            models.append(build(**gru))
        first, second = (model.state_dict() for model in models)
        assert list(first) == list(second)
        assert all(torch.equal(first[name], second[name]) for name in first)


class TestTypes:
    @pytest.mark.parametrize("kind", ["recurrent", "transformer"])
    def test_other_types_are_joeynmts(self, kind):
        if kind == "recurrent":
            options = {"attention": "luong", "unheard_of": 1}
        else:
            embeddings = {"embedding_dim": 8}
            options = {"num_heads": 2, "hidden_size": 8, "ff_size": 8, "embeddings": embeddings}
        model = build({**options, "type": kind}, {**options, "type": kind})
        for part, name in ((model.encoder, "Encoder"), (model.decoder, "Decoder")):
            assert type(part).__module__.startswith("joeynmt.")
            assert type(part).__name__ == kind.title() + name

    def test_ours(self):
        model = build()
        assert type(model.encoder) is QRNNEncoder
        assert type(model.decoder) is QRNNAttentionDecoder
        assert "QRNN(" in repr(model) and "kernel_size=2" in repr(model)

    @pytest.mark.parametrize("kind", ["recurrent", "transformer"])
    def test_one_of_them_alone(self, kind):
        own = {"num_heads": 2, "hidden_size": 6, "embeddings": {"embedding_dim": 6}, "ff_size": 8}
        with pytest.raises(ConfigurationError, match='needs an encoder of type "qrnn", got'):
            build({**own, "type": kind})
        other = {**own, "type": kind, "attention": "luong", "init_hidden": "zeros"}
        with pytest.raises(ConfigurationError, match='needs a decoder of type "qrnn", got'):
            build(None, other)


@pytest.mark.parametrize(
    ("encoder", "decoder", "expected"),
    [
        ({"kernel_sise": 2}, {}, r"encoder.* no option kernel_sise; valid .*, kernel_size,"),
        ({"rnn_type": "lstm"}, {}, "encoder.* no option rnn_type"),
        ({"attention": "qrnn-dot"}, {}, "encoder.* no option attention"),
        ({}, {"input_feeding": True}, "decoder.* no option input_feeding; valid .*, attention,"),
        ({}, {"init_hidden": "last", "masked": True}, "no option init_hidden, masked; valid"),
        ({}, {"attention": "luong"}, "attention: expected 'qrnn-dot', got 'luong'"),
        ({}, {"num_layers": 3}, "num_layers: expected 2, as in the encoder, got 3"),
        ({"hidden_size": 0}, {}, "encoder.* hidden_size: expected at least 1, got 0"),
        ({"pooling": "of"}, {}, "encoder.* pooling: expected one of f, fo, ifo, got 'of'"),
        ({"masked": "no"}, {}, "encoder.* masked: expected True or False, got 'no'"),
        ({}, {"zoneout": 2}, "decoder.* zoneout: expected a probability"),
        ({}, {"hidden_dropout": 2}, "decoder.* hidden_dropout: expected a probability"),
        ({"dropout": "0.1"}, {}, "encoder.*: dropout: expected a number, got str"),
        ({}, {"dropout": "0.1"}, "decoder.*: dropout: expected a number, got str"),
        (
            {"embeddings": {"embedding_dim": 8, "dropout": 1.5}},
            {},
            "encoder.* embeddings: dropout: expected a probability",
        ),
        (
            {},
            {"embeddings": {"embedding_dim": 8, "dropout": None}},
            "decoder.* embeddings: dropout: expected a number, got NoneType",
        ),
        ({}, {"freeze": 2}, "decoder.* freeze: expected True or False, got 2"),
    ],
)
def test_options_that_cannot_be(encoder, decoder, expected):
    with pytest.raises(ConfigurationError, match=expected):
        build(encoder, decoder)


def test_hidden_size_has_no_default():
    without = {name: value for name, value in ENCODER.items() if name != "hidden_size"}
    config = {"encoder": without, "decoder": DECODER}
    vocabulary = Vocabulary(["a"], SPECIALS)
    with pytest.raises(ConfigurationError, match=r"encoder.*hidden_size"):
        joeynmt_model.build_model(config, vocabulary, vocabulary)


@torch.no_grad()
def test_a_beam_of_one_is_greedy():
    model, made = shaken(symbols=6), batch(SOURCES)
    greedy, *_ = search(model, made, 12, 1, -1)
    for b, i in enumerate(made.indices.tolist()):
        prefix = []
        while len(prefix) < 12 and EOS not in prefix:
            log_p = log_probabilities(model, SOURCES[i], prefix)
            prefix.append(max(range(len(log_p)), key=log_p.__getitem__))
        assert greedy[b, : len(prefix)].tolist() == prefix
    output, final = model(return_type="encode", **vars(made))[:2]
    one, *_ = beam_search(
        model=model,
        beam_size=1,
        encoder_output=output,
        encoder_hidden=final,
        src_mask=made.src_mask,
        max_output_length=12,
        alpha=-1,
    )
    for row, beam in zip(greedy.tolist(), one.tolist(), strict=True):
        end = row.index(EOS) + 1 if EOS in row else len(row)
        assert beam[:end] == row[:end] and set(beam[end:]) <= {PAD}


@pytest.mark.parametrize(("size", "alpha"), [(3, -1), (4, 1.0)])
@variants
@torch.no_grad()
def test_beam_search_is_a_search_over_whole_prefixes(encoder, decoder, size, alpha):
    for seed in range(3):
        torch.manual_seed(seed)
        model, made = shaken(encoder, decoder), batch(SOURCES)
        found, scores, _ = search(model, made, 7, size, alpha, n_best=size, return_prob="hyp")
        for b, i in enumerate(made.indices.tolist()):
            want = sorted(
                (
                    (score / ((5 + len(prefix)) / 6) ** max(alpha, 0), prefix)
                    for prefix, score in beams(model, SOURCES[i], size, 7)
                ),
                reverse=True,
            )[:size]
            rows = slice(b * size, b * size + len(want))
            got = [[s for s in row if s != PAD] for row in found[rows].tolist()]
            assert got == [list(prefix) for _, prefix in want]
            assert scores[rows, 0].tolist() == pytest.approx([s for s, _ in want], abs=1e-4)
