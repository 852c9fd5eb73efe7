import hashlib
import json

import pytest
from allennlp.common.checks import ConfigurationError
from allennlp.data import DatasetReader, Vocabulary

from qrnn.allennlp import ImdbReader
from qrnn.allennlp.readers import data_source


@pytest.fixture
def prepared(tmp_path):
    lines = [
        {"id": "train/pos/0_9", "text": "Really n't bad , that one .", "label": "pos"},
        {"id": "train/neg/0_1", "text": "Bad .", "label": "neg"},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "meta.json").write_text('{"name": "imdb", "official": true, "note": "x"}')
    return path


def words(instance):
    return [token.text for token in instance["tokens"]]


def test_reads_prepared_tokens_as_they_are(prepared):
    first, second = DatasetReader.by_name("imdb")().read(prepared)
    assert words(first) == ["Really", "n't", "bad", ",", "that", "one", "."]
    assert (first["label"].label, second["label"].label) == ("pos", "neg")
    vocabulary = Vocabulary.from_instances([first, second])
    assert vocabulary.get_vocab_size("labels") == 2


def test_raw_text_is_split_as_it_is_prepared():
    instance = ImdbReader().text_to_instance("It isn't bad.<br /><br />Go!")
    assert words(instance) == ["It", "is", "n't", "bad", ".", "Go", "!"]
    assert "label" not in instance.fields


def test_max_instances(prepared):
    [only] = ImdbReader(max_instances=1).read(prepared)
    assert words(only) == ["Really", "n't", "bad", ",", "that", "one", "."]


def test_an_empty_review_is_still_a_row():
    assert words(ImdbReader().text_to_instance("  ")) == [""]


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(ConfigurationError, match="make data-imdb"):
        list(ImdbReader().read(tmp_path / "train.jsonl"))


@pytest.mark.parametrize(
    "line",
    [
        *(
            b'{"text": "no label"}',
            b"[1]",
            b"{",
            b'{"text": 3, "label": "pos"}',
            b'{"text": "\xff"}',
        ),
        b'{"text": "x", "label": null}',
    ],
)
def test_a_damaged_line_is_named(prepared, line):
    with prepared.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(
        ConfigurationError, match=r"train\.jsonl, line 3.*\([A-Z]\w+Error: .{,90}\)$"
    ):
        list(ImdbReader().read(prepared))


def test_other_than_official_data_is_loudly_said(prepared, caplog):
    list(ImdbReader().read(prepared))
    assert "OFFICIAL" not in caplog.text
    (prepared.parent / "meta.json").write_text('{"official": false, "note": "a stand-in"}')
    list(ImdbReader().read(prepared))
    assert "NOT THE OFFICIAL" in caplog.text and "a stand-in" in caplog.text


def test_a_file_without_reviews_is_an_error(prepared):
    prepared.write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"train\.jsonl holds no reviews"):
        list(ImdbReader().read(prepared))


def test_data_that_has_changed_since_it_was_prepared_is_not_official(prepared):
    digest = hashlib.sha256(prepared.read_bytes()).hexdigest()
    meta = {"official": True, "note": "x", "files": {"train.jsonl": digest, "absent": digest}}
    (prepared.parent / "meta.json").write_text(json.dumps(meta))
    assert data_source(prepared.parent) == meta
    with prepared.open("a") as file:
        file.write("\n")
    note = "train.jsonl: changed since it was prepared"
    assert data_source(prepared.parent) == meta | {"official": False, "note": note}


@pytest.mark.parametrize("content", [None, "{}", "[]", "{"])
def test_data_without_meta_json_of_ours_is_not_official(tmp_path, content):
    if content:
        (tmp_path / "meta.json").write_text(content)
    assert data_source(tmp_path)["official"] is False
