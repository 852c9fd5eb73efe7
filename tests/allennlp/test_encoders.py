import pytest
import torch
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError
from allennlp.modules import Seq2SeqEncoder, Seq2VecEncoder
from allennlp.modules.seq2seq_encoders import PytorchSeq2SeqWrapper
from allennlp.modules.seq2vec_encoders import PytorchSeq2VecWrapper

from qrnn import QRNN
from qrnn.allennlp import (
    BidirectionalSeq2VecEncoder,
    DenseLSTMSeq2VecEncoder,
    QRNNSeq2SeqEncoder,
    QRNNSeq2VecEncoder,
)

OPTIONS = {
    "input_size": 5,
    "hidden_size": 7,
    "num_layers": 2,
    "bias": True,
    "dropout": 0.25,
    "bidirectional": True,
    "kernel_size": 3,
    "first_kernel_size": 4,
    "pooling": "ifo",
    "zoneout": 0.1,
    "zoneout_eval": "none",
    "weight_dropout": 0.25,
    "dense": True,
    "masked": False,
    "forget_bias": 1.5,
}
LENGTHS = [6, 0, 3, 1]


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (4, 6, 5) with NaN for padding, and their mask."""
    torch.manual_seed(seed)
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    return torch.randn(4, 6, 5).masked_fill(~mask[:, :, None], torch.nan), mask


@pytest.mark.parametrize("kind", [Seq2SeqEncoder, Seq2VecEncoder])
def test_a_config_sets_every_option(kind):
    encoder = kind.from_params(Params({"type": "qrnn", **OPTIONS}))
    module = encoder.module
    for name in ("input_size", "hidden_size", "num_layers", "dropout", "bidirectional", "dense"):
        assert getattr(module, name) == OPTIONS[name]
    assert [layer.kernel_size for layer in module.layers] == [4, 3]
    for layer in module.layers:
        for name in ("pooling", "zoneout", "zoneout_eval", "masked", "forget_bias"):
            assert getattr(layer, name) == OPTIONS[name]
        assert layer.weight_dropout == OPTIONS["weight_dropout"]
    assert (encoder.get_input_dim(), encoder.get_output_dim()) == (5, 14)
    if kind is Seq2SeqEncoder:
        assert encoder.is_bidirectional()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_each_row_is_encoded_as_if_alone_and_padding_gives_zeros(bidirectional, masked):
    encoder = QRNNSeq2SeqEncoder(
        5, 7, 2, bidirectional=bidirectional, kernel_size=3, masked=masked, dense=True
    ).double()
    x, mask = batch()
    output = encoder(x.double(), mask)
    assert output.shape == (4, 6, encoder.get_output_dim())
    for row, length in enumerate(LENGTHS):
        assert (output[row, length:] == 0).all()
        if length:
            alone, _ = encoder.module(x[row : row + 1, :length].double())
            torch.testing.assert_close(output[row : row + 1, :length], alone)


def test_no_mask_means_no_padding():
    encoder = QRNNSeq2SeqEncoder(5, 7)
    x = torch.randn(3, 4, 5)
    full = torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(encoder(x, None), encoder(x, full))
    vector = QRNNSeq2VecEncoder(input_size=5, hidden_size=7, heads=["last", "mean", "max"])
    torch.testing.assert_close(vector(x, None), vector(x, full))


def test_vectors_of_no_steps_are_zero():
    vector = QRNNSeq2VecEncoder(input_size=5, hidden_size=7, heads=["last", "mean", "max"])
    x, mask = torch.randn(2, 0, 5), torch.ones(2, 0, dtype=torch.bool)
    for found in (vector(x, mask), vector(x, None)):
        assert found.shape == (2, 21) and not found.any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_vectors_are_the_last_valid_state_and_the_pools_of_valid_steps(bidirectional):
    encoder = QRNNSeq2VecEncoder(
        input_size=5,
        hidden_size=7,
        num_layers=2,
        bidirectional=bidirectional,
        heads=["last", "max", "mean"],
    )
    x, mask = batch()
    vectors = encoder(x, mask)
    width = 14 if bidirectional else 7
    assert encoder.get_output_dim() == 3 * width == vectors.shape[1]
    assert (vectors[1] == 0).all()
    for row, length in enumerate(LENGTHS):
        if length:
            output = encoder.module(x[row : row + 1, :length])[0][0]
            last = torch.cat([output[-1, :7], output[0, 7:]])
            expected = torch.cat([last, output.amax(0), output.mean(0)])
            torch.testing.assert_close(vectors[row], expected)


def test_gradients_ignore_padding():
    for encoder in (
        QRNNSeq2SeqEncoder(5, 7, kernel_size=3, masked=False, bidirectional=True),
        QRNNSeq2VecEncoder(input_size=5, hidden_size=7, heads=["last", "max", "mean"]),
    ):
        encoder(*batch()).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize("bidirectional", [False, True])
def test_agrees_with_a_qrnn_in_allennlps_own_wrappers(bidirectional):
    options = {"num_layers": 2, "bidirectional": bidirectional, "kernel_size": 3, "dense": True}
    module = QRNN(5, 7, batch_first=True, **options)
    x, mask = batch()
    x = x.nan_to_num()
    for ours, wrapper in (
        (QRNNSeq2SeqEncoder, PytorchSeq2SeqWrapper),
        (QRNNSeq2VecEncoder, PytorchSeq2VecWrapper),
    ):
        encoder = ours(input_size=5, hidden_size=7, **options)
        encoder.module.load_state_dict(module.state_dict())
        torch.testing.assert_close(encoder(x, mask), wrapper(module)(x, mask))


def test_wrapper_passes_an_initial_state():
    module = QRNN(5, 7, batch_first=True)
    x, mask = batch()
    state = (torch.zeros(1, 4, 7), torch.randn(1, 4, 7))
    output = PytorchSeq2SeqWrapper(module)(x.nan_to_num(), mask, state)
    ours = QRNNSeq2SeqEncoder(5, 7)
    ours.module.load_state_dict(module.state_dict())
    torch.testing.assert_close(output, ours(x, mask, state))


def test_stateful_pieces_are_the_whole():
    encoder = QRNNSeq2SeqEncoder(5, 7, 2, kernel_size=3, dense=True, stateful=True).double()
    x = torch.randn(4, 9, 5, dtype=torch.double)
    mask = torch.ones(4, 9, dtype=torch.bool)
    whole, _ = encoder.module(x)
    pieces = [encoder(x[:, a:b], mask[:, a:b]) for a, b in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    assert not any(state.requires_grad for state in encoder._states)


def test_stateful_rows_keep_their_state_while_they_are_absent():
    encoder = QRNNSeq2SeqEncoder(5, 7, kernel_size=3, stateful=True).double()
    x = torch.randn(4, 6, 5, dtype=torch.double)
    whole, _ = encoder.module(x)
    first, second = x[:, :3], x[:, 3:]
    encoder(first[:2], torch.ones(2, 3, dtype=torch.bool))  # rows 2 and 3 come later
    mask = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
    encoder(first, mask)  # rows 0 and 1 are padding only
    torch.testing.assert_close(
        encoder(second[:3], torch.ones(3, 3, dtype=torch.bool)), whole[:3, 3:]
    )
    mask = torch.tensor([[0], [0], [0], [1]], dtype=torch.bool)
    torch.testing.assert_close(encoder(second[:, :1], mask)[3], whole[3, 3:4])


def test_reset_states_clears_all_or_some_rows():
    encoder = QRNNSeq2SeqEncoder(5, 7, kernel_size=3, stateful=True)
    x, mask = torch.randn(2, 4, 5), torch.ones(2, 4, dtype=torch.bool)
    fresh = encoder(x, mask)
    carried = encoder(x, mask)
    assert not torch.allclose(fresh, carried)
    encoder.reset_states()
    torch.testing.assert_close(encoder(x, mask), fresh)
    encoder.reset_states(torch.tensor([True, False]))
    again = encoder(x, mask)
    torch.testing.assert_close(again[0], fresh[0])
    torch.testing.assert_close(again[1], carried[1])


def test_stateful_takes_no_state_from_outside():
    encoder = QRNNSeq2SeqEncoder(5, 7, stateful=True)
    with pytest.raises(ValueError, match="hidden_state"):
        encoder(torch.randn(1, 2, 5), None, (torch.zeros(1, 1, 7), torch.zeros(1, 1, 7)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_mask_may_be_of_numbers(dtype):
    """AllenNLP's TokenCharactersEncoder passes integers."""
    heads = ["last", "max", "mean"]
    both = (QRNNSeq2VecEncoder(input_size=5, hidden_size=7, heads=heads) for _ in range(2))
    x, mask = batch()
    for encoder in (
        QRNNSeq2SeqEncoder(5, 7),
        BidirectionalSeq2VecEncoder(*both),
        DenseLSTMSeq2VecEncoder(5, 7),
    ):
        clean = x.nan_to_num()
        expected = encoder(clean, mask)
        torch.testing.assert_close(encoder(clean, mask.to(dtype)), expected, rtol=0, atol=0)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 3\), got \(2, 4\)"):
        QRNNSeq2SeqEncoder(5, 7)(torch.randn(2, 3, 5), torch.ones(2, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    "options, named",
    [
        ({"pooling": "lstm"}, "pooling"),
        ({"dropout": 2.0}, "dropout"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"stateful": True, "bidirectional": True}, "bidirectional"),
        ({"stateful": True, "masked": False}, "masked"),
    ],
)
def test_bad_options_are_configuration_errors(options, named):
    with pytest.raises(ConfigurationError, match=named):
        QRNNSeq2SeqEncoder(**{"input_size": 5, "hidden_size": 7, **options})


@pytest.mark.parametrize("options", [{"heads": []}, {"heads": ["first"]}, {"stateful": True}])
def test_bad_options_of_the_vector_encoder(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        QRNNSeq2VecEncoder(input_size=5, hidden_size=7, **options)


@pytest.mark.parametrize("kind", [Seq2SeqEncoder, Seq2VecEncoder])
def test_an_unknown_option_is_refused(kind):
    with pytest.raises(ConfigurationError, match="kernels"):
        kind.from_params(Params({"type": "qrnn", "input_size": 5, "hidden_size": 7, "kernels": 2}))


def both_ways(hidden_size=7, **backward) -> BidirectionalSeq2VecEncoder:
    encoder = {
        "type": "qrnn",
        "input_size": 5,
        "hidden_size": hidden_size,
        "heads": ["last", "max"],
    }
    params = {"type": "bidirectional", "forward_encoder": encoder}
    return Seq2VecEncoder.from_params(Params({**params, "backward_encoder": encoder | backward}))


def test_the_backward_encoder_reads_every_row_from_its_last_valid_step():
    encoder = both_ways(hidden_size=4, num_layers=3)
    x, mask = batch()
    vectors = encoder(x, mask)
    assert encoder.get_input_dim() == 5
    assert vectors.shape == (4, encoder.get_output_dim()) == (4, 16)
    for row, length in enumerate(LENGTHS):
        alone = x[row : row + 1, :length]
        if length:
            torch.testing.assert_close(encoder(alone, None), vectors[row : row + 1])
            expected = encoder.backward_encoder(alone.flip(1), None)
            torch.testing.assert_close(vectors[row : row + 1, 8:], expected)
        else:
            assert (vectors[row] == 0).all()


def test_both_ways_are_the_two_directions_of_a_layer():
    layer = QRNN(5, 7, batch_first=True, bidirectional=True)
    encoder = both_ways()
    halves = (encoder.forward_encoder, encoder.backward_encoder)
    for name, both in layer.layers[0].named_parameters():
        for half, values in zip(halves, both.chunk(2), strict=True):
            half.module.layers[0].get_parameter(name).data.copy_(values.data)
    x, mask = batch()
    options = {"input_size": 5, "hidden_size": 7, "bidirectional": True, "heads": ["last", "max"]}
    whole = QRNNSeq2VecEncoder(**options)
    whole.module.load_state_dict(layer.state_dict())
    last, top = whole(x, mask).chunk(2, 1)
    order = [last[:, :7], top[:, :7], last[:, 7:], top[:, 7:]]
    torch.testing.assert_close(encoder(x, mask), torch.cat(order, 1))


def test_encoders_that_read_the_same_are_of_one_input_size():
    with pytest.raises(ConfigurationError, match=r"backward_encoder: expected .* 5, .* got 6"):
        both_ways(input_size=6)


def dense_lstm(**options) -> DenseLSTMSeq2VecEncoder:
    params = {"type": "dense_lstm", "input_size": 5, "hidden_size": 7, "num_layers": 3, **options}
    return Seq2VecEncoder.from_params(Params(params))


def lstm_by_hand(layer: torch.nn.LSTM, x: torch.Tensor) -> torch.Tensor:
    """The LSTM's equations on (T, I), step by step: every h (T, H)."""
    h = c = torch.zeros(layer.hidden_size, dtype=x.dtype)
    output = []
    for step in x:
        gates = layer.weight_ih_l0 @ step + layer.bias_ih_l0 + layer.weight_hh_l0 @ h
        i, f, g, o = (gates + layer.bias_hh_l0).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        output.append(h)
    return torch.stack(output)


def test_dense_lstm_is_each_rows_last_state_over_all_lower_layers():
    encoder = dense_lstm().double().eval()
    x, mask = batch()
    x = x.double().nan_to_num(9.0)  # AllenNLP's padding holds numbers
    vectors = encoder(x, mask)
    assert vectors.shape == (4, encoder.get_output_dim()) and encoder.get_input_dim() == 5
    for row, length in enumerate(LENGTHS):
        inputs = x[row, :length]
        for layer in encoder.layers:
            if length:
                output = lstm_by_hand(layer, inputs)
                inputs = torch.cat([inputs, output], -1)
        expected = output[-1] if length else torch.zeros(7).double()
        torch.testing.assert_close(vectors[row], expected)
    torch.testing.assert_close(encoder(x, None)[0], vectors[0])


def test_dense_lstms_dropout_is_between_layers_and_its_forget_bias_is_one_sum():
    x, mask = batch()
    x = x.nan_to_num()
    dropped = dense_lstm(dropout=0.5)
    assert not torch.equal(*dropped(x.repeat(2, 1, 1), None).chunk(2))
    torch.testing.assert_close(dropped.eval()(x, mask), dropped(x, mask))
    single = dense_lstm(dropout=0.5, num_layers=1)
    torch.testing.assert_close(single(x, mask), single(x, mask))
    for layer in dense_lstm(forget_bias=1.5).layers:
        total = layer.bias_ih_l0 + layer.bias_hh_l0
        assert (total[7:14] == 1.5).all() and (total[:7] != 0).all() and (total[14:] != 0).all()


@pytest.mark.parametrize("options", [{"num_layers": 0}, {"hidden_size": 0}, {"dropout": 1.0}])
def test_bad_options_of_the_dense_lstm(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        dense_lstm(**options)
