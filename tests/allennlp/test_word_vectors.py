import pytest
import torch
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.modules import TokenEmbedder


@pytest.fixture
def vocabulary():
    counts = {"tokens": {f"word{n}": 2 for n in range(50)}}
    return Vocabulary(counts)


def embedder(vocabulary, **options):
    params = Params({"type": "word_vectors", "embedding_dim": 40, **options})
    return TokenEmbedder.from_params(params, vocab=vocabulary)


def test_random_vectors_are_standard_normal_and_padding_is_zero(vocabulary, caplog):
    weight = embedder(vocabulary).weight
    assert weight.shape == (52, 40) and weight.requires_grad
    assert (weight[0] == 0).all()
    assert abs(weight[1:].mean()) < 0.1 and abs(weight[1:].std() - 1) < 0.1
    assert "NO WORD VECTORS" not in caplog.text


def test_a_missing_file_is_a_loud_warning_and_a_random_start(vocabulary, tmp_path, caplog):
    path = str(tmp_path / "glove.txt.gz")
    found = embedder(vocabulary, pretrained_file=path)
    assert "NO WORD VECTORS" in caplog.text and path in caplog.text
    assert found.source == "none (random start)"


def test_vectors_come_from_the_file(vocabulary, tmp_path):
    path = tmp_path / "vectors.txt"
    vectors = torch.arange(80.0).view(2, 40)
    rows = zip(("word3", "word7"), vectors.tolist(), strict=True)
    path.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in rows))
    found = embedder(vocabulary, pretrained_file=str(path), trainable=False)
    for word, vector in zip(("word3", "word7"), vectors, strict=True):
        torch.testing.assert_close(found.weight[vocabulary.get_token_index(word)], vector)
    assert found.source == str(path) and not found.weight.requires_grad
