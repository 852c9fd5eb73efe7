"""Bucketing inside joeynmt's own data loader."""

import random
from itertools import chain

import pytest
from joeynmt import config
from joeynmt.config import ConfigurationError
from joeynmt.datasets import PlaintextDataset
from joeynmt.tokenizers import BasicTokenizer
from joeynmt.vocabulary import Vocabulary
from translation import SPECIALS

from qrnn.joeynmt.batching import BucketSize


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """300 pairs of 1 to 60 characters, of which 5 sources are longer than max_length."""
    numbers = random.Random(1)
    lengths = [numbers.randrange(1, 60) for _ in range(295)] + [70] * 5
    numbers.shuffle(lengths)
    folder = tmp_path_factory.mktemp("data")
    for language, factor in (("de", 1.0), ("en", 0.8)):
        lines = ["a" * max(1, int(n * factor)) + "\n" for n in lengths]
        (folder / f"train.{language}").write_text("".join(lines))
    vocabulary = Vocabulary(["a"], SPECIALS)
    tokenizer = BasicTokenizer(level="char", max_length=65)
    tokenizer.set_vocab(vocabulary)
    languages = ("de", "en")
    return PlaintextDataset(
        path=str(folder / "train"),
        src_lang="de",
        trg_lang="en",
        split="train",
        has_trg=True,
        has_prompt=dict.fromkeys(languages, False),
        tokenizer=dict.fromkeys(languages, tokenizer),
        sequence_encoder=dict.fromkeys(languages, vocabulary.sentences_to_ids),
    )


def epoch(iterator, seed):
    iterator.batch_sampler.set_seed(seed)
    return list(iterator)


def indices(batches):
    return [batch.indices.tolist() for batch in batches]


def flat(lists):
    return list(chain.from_iterable(lists))


def padded_to_real(batches):
    cells = sum(b.src.numel() + b.trg.numel() for b in batches)
    return cells / sum(int(b.src_mask.sum() + b.trg_mask.sum()) for b in batches)


def make(data, size, shuffle=True, seed=1):
    return data.make_iter(batch_size=size, shuffle=shuffle, seed=seed)


def test_every_sentence_once_in_batches_of_similar_length(data):
    plain = epoch(make(data, 16), 1)
    bucketed = epoch(make(data, BucketSize(16, 10)), 1)
    order = indices(bucketed)
    assert sorted(flat(order)) == sorted(flat(indices(plain)))
    assert len(flat(order)) == 295
    sizes = [len(batch) for batch in order]
    assert sorted(sizes) == sorted(map(len, indices(plain))) and sizes.count(16) == 18
    # per sentence </s>, and in the target <s>, which no mask counts
    assert padded_to_real(plain) > 1.6 and padded_to_real(bucketed) < 1.2
    longest = [int(batch.src_length.max()) for batch in bucketed]
    assert longest != sorted(longest)  # batches are in no order of length


def test_epochs_differ_and_seeds_repeat(data):
    first, second = make(data, BucketSize(16, 4)), make(data, BucketSize(16, 4))
    one, two = indices(epoch(first, 1)), indices(epoch(first, 2))
    assert one != two
    assert {frozenset(batch) for batch in one} != {frozenset(batch) for batch in two}
    assert indices(epoch(second, 2)) == two and indices(epoch(second, 1)) == one


def test_a_bucket_is_taken_from_the_shuffled_order(data):
    plain = flat(indices(epoch(make(data, 16), 3)))
    bucketed = indices(epoch(make(data, BucketSize(16, 5)), 3))
    assert sorted(flat(bucketed[:5])) == sorted(plain[:80])


def test_without_the_option_it_is_joeynmts_own(data):
    iterator = make(data, 16, shuffle=False)
    sampler = iterator.batch_sampler
    original = type(sampler).__iter__.__wrapped__
    assert list(sampler) == list(original(sampler))


class TestConfig:
    def test_it_reaches_the_batch_size(self):
        size = config.parse_train_args({"batch_size": 16, "bucket": 50}).batch_size
        assert (size, size.bucket) == (16, 50)
        assert type(config.parse_train_args({"batch_size": 16}).batch_size) is int

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"bucket": 0}, "bucket: expected at least 1, got 0"),
            ({"bucket": "big"}, "bucket: expected an int, got str"),
            ({"bucket": 5, "batch_type": "token"}, "bucket needs batch_type"),
        ],
    )
    def test_errors(self, options, expected):
        with pytest.raises(ConfigurationError, match=expected):
            config.parse_train_args({"batch_size": 16, **options})
