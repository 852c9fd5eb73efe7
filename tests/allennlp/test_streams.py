import json
import random

import pytest
import torch
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError
from allennlp.data import DataLoader, DatasetReader, Vocabulary

from qrnn.allennlp import TokenLineLoader, TokenStreamLoader, TokenStreamReader

STREAM = "the cat sat <eos> <eos> the <unk> sat on the cat <eos>".split()


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(" the cat sat \n\nthe <unk> sat on the cat\n", encoding="utf-8")
    (tmp_path / "meta.json").write_text('{"name": "ptb", "official": true, "note": "x"}')
    return path


def vocabulary_of(path):
    instances = TokenStreamReader().read(path)
    return Vocabulary.from_instances(instances, non_padded_namespaces=["tokens"])


def pieces(path, bptt, batch_size, vocabulary=None):
    """The loader's batches, in words: lists of T lists of B."""
    vocabulary = vocabulary or vocabulary_of(path)
    options = Params({"type": "token_stream", "bptt": bptt, "batch_size": batch_size})
    loader = DataLoader.from_params(options, reader=TokenStreamReader(), data_path=path)
    loader.index_with(vocabulary)
    loader.set_target_device(torch.device("cpu"))
    batches = [
        {
            name: value
            if name == "start"
            else [[vocabulary.get_token_from_index(int(i)) for i in step] for step in value]
            for name, value in batch.items()
        }
        for batch in loader
    ]
    assert len(loader) == len(batches) and len(list(loader)) == len(batches)
    return batches


def test_the_vocabulary_is_the_words_and_the_end_of_a_line(corpus):
    reader = DatasetReader.by_name("token_stream")()
    lines = [[token.text for token in instance["tokens"]] for instance in reader.read(corpus)]
    assert lines == [STREAM[:4], ["<eos>"], STREAM[5:]]
    vocabulary = vocabulary_of(corpus)
    assert set(vocabulary.get_token_to_index_vocabulary()) == set(STREAM)
    assert vocabulary.get_vocab_size() == 6


@pytest.fixture
def reviews(tmp_path):
    """unsup.jsonl, which has a review of dev.jsonl and one of test.jsonl."""
    parts = {"unsup": ["a b", "c", "a b c", "d e"], "dev": ["c"], "test": ["f", "d  e"]}
    for part, texts in parts.items():
        lines = "".join(json.dumps({"id": "x", "text": text}) + "\n" for text in texts)
        (tmp_path / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "meta.json").write_text('{"name": "imdb", "official": true, "note": "x"}')
    return tmp_path / "unsup.jsonl"


def test_reviews_are_read_but_for_those_held_out(reviews, caplog):
    def read(file, *held_out, **options):
        reader = DatasetReader.from_params(
            Params({"type": "review_stream", "held_out": list(held_out), **options})
        )
        return [" ".join(t.text for t in instance["tokens"]) for instance in reader.read(file)]

    whole = ["a b <eos>", "c <eos>", "a b c <eos>", "d e <eos>"]
    assert read(reviews) == whole
    assert read(reviews, "dev.jsonl") == [whole[0], *whole[2:]]
    assert read(reviews, "dev.jsonl", "test.jsonl") == [whole[0], whole[2]]
    assert read(reviews, "test.jsonl", reverse=True) == ["b a <eos>", "c <eos>", "c b a <eos>"]
    assert "OFFICIAL" not in caplog.text
    with pytest.raises(ConfigurationError, match=r"nothing\.jsonl does not exist: run `make data"):
        read(reviews, "nothing.jsonl")
    with reviews.open("a", encoding="utf-8") as file:
        file.write("[]\n")
    with pytest.raises(ConfigurationError, match=r'unsup.jsonl, line 5: expected {"text": ...}'):
        read(reviews)


def test_rows_are_contiguous_and_pieces_go_on(corpus):
    first, last = pieces(corpus, bptt=4, batch_size=2)
    assert first == {
        "tokens": [["<eos>", "the"], ["the", "<unk>"], ["cat", "sat"], ["sat", "on"]],
        "targets": [["the", "<unk>"], ["cat", "sat"], ["sat", "on"], ["<eos>", "the"]],
        "start": True,
    }
    assert last == {
        "tokens": [["<eos>", "the"], ["<eos>", "cat"]],
        "targets": [["<eos>", "cat"], ["the", "<eos>"]],
        "start": False,
    }


@pytest.mark.parametrize("batch_size", [1, 5, 7, 12])
@pytest.mark.parametrize("bptt", [1, 5, 100])
def test_every_word_is_predicted_once(corpus, batch_size, bptt):
    batches = pieces(corpus, bptt, batch_size)
    steps = len(STREAM) // batch_size
    assert [batch["start"] for batch in batches] == [True] + [False] * (len(batches) - 1)
    assert [len(batch["targets"]) for batch in batches[:-1]] == [bptt] * (len(batches) - 1)
    for name, stream in (("targets", STREAM), ("tokens", ["<eos>", *STREAM])):
        joined = [step for batch in batches for step in batch[name]]
        rows = [word for row in zip(*joined, strict=True) for word in row]
        assert rows == stream[: steps * batch_size]


def test_unknown_words(corpus, tmp_path):
    other = tmp_path / "valid.txt"
    other.write_text("the dog\n")
    [batch] = pieces(other, 3, 1, vocabulary_of(corpus))
    assert batch["targets"] == [["the"], ["<unk>"], ["<eos>"]]
    none = Vocabulary({"tokens": {"<unk>": 1}}, non_padded_namespaces=["tokens"])
    [batch] = pieces(other, 3, 1, none)
    assert batch["tokens"] == [["<unk>"]] * 3
    with pytest.raises(ConfigurationError, match=r"train.txt: 'cat' is not in the vocabulary"):
        pieces(corpus, 3, 1, vocabulary_of(other))


def test_the_mark_that_a_file_may_begin_with_is_no_word(tmp_path):
    file = tmp_path / "marked.txt"
    file.write_text("the cat\n\ufeffsat\n", encoding="utf-8-sig")
    lines = [[t.text for t in line["tokens"]] for line in TokenStreamReader().read(file)]
    assert lines == [["the", "cat", "<eos>"], ["\ufeffsat", "<eos>"]]


def test_other_than_official_data_is_loudly_said(corpus, caplog):
    vocabulary_of(corpus)
    assert "OFFICIAL" not in caplog.text
    (corpus.parent / "meta.json").write_text('{"official": false, "note": "a stand-in"}')
    vocabulary_of(corpus)
    assert "NOT THE OFFICIAL" in caplog.text and "a stand-in" in caplog.text


def test_what_cannot_be_read_is_an_error(corpus, tmp_path):
    with pytest.raises(ConfigurationError, match="make data-ptb"):
        list(TokenStreamReader().read(tmp_path / "valid.txt"))
    (tmp_path / "latin.txt").write_bytes(b"the cat\ncaf\xe9\n")
    with pytest.raises(ConfigurationError, match=r"latin\.txt, line 2 is not UTF-8"):
        list(TokenStreamReader().read(tmp_path / "latin.txt"))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ConfigurationError, match=r"empty\.txt holds no lines"):
        list(TokenStreamReader().read(tmp_path / "empty.txt"))
    with pytest.raises(ConfigurationError, match=r"at least 13 words.*got 12"):
        pieces(corpus, 3, 13)
    for name in ("bptt", "batch_size"):
        with pytest.raises(ConfigurationError, match=f"{name}: expected at least 1, got 0"):
            pieces(corpus, **{"bptt": 3, "batch_size": 1, name: 0})
    with pytest.raises(RuntimeError, match="index_with"):
        len(TokenStreamLoader(TokenStreamReader(), str(corpus), 3))


def test_several_processes_are_refused(corpus, monkeypatch):
    monkeypatch.setattr("qrnn.allennlp.streams.is_distributed", lambda: True)
    with pytest.raises(ConfigurationError, match="one process"):
        TokenStreamLoader(TokenStreamReader(), str(corpus), 3)


def test_lines_on_their_own(corpus):
    vocabulary = vocabulary_of(corpus)
    loader = TokenLineLoader(TokenStreamReader(), corpus, batch_size=2)
    with pytest.raises(RuntimeError, match="index_with"):
        len(loader)
    loader.index_with(vocabulary)
    assert len(loader) == 2
    words = []
    for batch in loader:
        assert batch["start"] is True
        for b in range(batch["mask"].shape[1]):
            mask = batch["mask"][:, b]
            steps = int(mask.sum())
            assert mask[:steps].all()  # the padding is at the end
            tokens, targets = (
                [vocabulary.get_token_from_index(int(i)) for i in batch[name][:steps, b]]
                for name in ("tokens", "targets")
            )
            assert tokens == ["<eos>", *targets[:-1]]
            words += [targets]
    assert words == [["<eos>"], STREAM[:4], STREAM[5:]]


def test_lines_are_shuffled_anew_each_time(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"w{n}\n" for n in range(40)), encoding="utf-8")
    loader = TokenLineLoader(TokenStreamReader(), path, batch_size=7, shuffle=True)
    loader.index_with(vocabulary_of(path))

    def once(seed):
        random.seed(seed)
        return [[int(i) for batch in loader for i in batch["targets"][0]] for _ in range(2)]

    first, second = once(1)
    assert sorted(first) == sorted(second) and len(set(first)) == 40
    assert first != second and once(1) == [first, second]
