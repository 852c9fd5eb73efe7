import gzip
from pathlib import Path

import pytest
import torch
from allennlp.common import Params
from allennlp.common.checks import ConfigurationError
from allennlp.data import Instance, Vocabulary
from allennlp.data.fields import TextField
from allennlp.data.token_indexers import SingleIdTokenIndexer
from allennlp.data.tokenizers import Token
from allennlp.modules import TokenEmbedder

from qrnn.allennlp import word_vectors


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
    with pytest.raises(ConfigurationError, match=r"glove\.txt\.gz does not exist, and with train"):
        embedder(vocabulary, pretrained_file=path, trainable=False)


def test_a_url_is_refused(vocabulary):
    url = "https://nlp.stanford.edu/data/glove.txt.gz"
    with pytest.raises(ConfigurationError, match=r"expected a local file, got https://nlp"):
        embedder(vocabulary, pretrained_file=url)
    with pytest.raises(ConfigurationError, match=r"expected a local file, got https://nlp"):
        word_vectors.WordVectorsVocabulary.from_instances([], pretrained_file=url)


@pytest.fixture
def file(tmp_path):
    """Vectors of two words of the vocabulary and of one that is not in it, as vectors.py writes."""
    rng = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, 40, generator=rng) * 0.2 + 0.05
    lines = [
        f"{word} {' '.join(map(str, row))}\n"
        for word, row in zip(("word3", "word7", "once"), vectors.tolist(), strict=True)
    ]
    path = tmp_path / "tiny.40d.txt.gz"
    path.write_bytes(gzip.compress("".join(lines).encode()))
    about = '{"name": "Tiny", "official": true, "note": "two words", "data": {"x": "y"}}'
    (tmp_path / "tiny.40d.json").write_text(about)
    return str(path), vectors


def test_vectors_come_from_the_file(vocabulary, file):
    path, vectors = file
    found = embedder(vocabulary, pretrained_file=path, trainable=False)
    for word, vector in zip(("word3", "word7"), vectors, strict=False):
        torch.testing.assert_close(found.weight[vocabulary.get_token_index(word)], vector)
    assert (found.weight[0] == 0).all()
    others = found.weight[1:3]  # unknown and word0
    assert abs(others.mean() - vectors[:2].mean()) < 0.06
    assert abs(others.std() / vectors[:2].std() - 1) < 0.25
    assert found.source == "Tiny (two words)" and found.reviews == {"x": "y"}
    assert not found.weight.requires_grad


@pytest.mark.parametrize("about", [None, "{", "[]", '{"name": "Tiny"}'])
def test_a_file_of_unknown_origin_says_so(vocabulary, file, tmp_path, about):
    (tmp_path / "tiny.40d.json").unlink()
    if about:
        (tmp_path / "tiny.40d.json").write_text(about)
    found = embedder(vocabulary, pretrained_file=file[0])
    assert found.source == f"{file[0]}, not prepared by scripts/vectors.py"
    assert found.reviews is None


def test_a_damaged_file_is_named(vocabulary, file):
    content = Path(file[0]).read_bytes()
    Path(file[0]).write_bytes(content[:-20])
    with pytest.raises(ConfigurationError, match=r"tiny\.40d\.txt\.gz is damaged or incomplete"):
        embedder(vocabulary, pretrained_file=file[0])


@pytest.mark.parametrize("number", ["x", "nan", "inf"])
def test_a_vector_that_is_not_of_numbers_is_named(vocabulary, tmp_path, number):
    path = tmp_path / "tiny.txt"
    path.write_text(f"word word3 1 2\nword1 1 2\nword3 1 {number}\nword2 3 4\n")
    with pytest.raises(ConfigurationError, match=r"tiny\.txt: the vector of 'word3' is not of fin"):
        embedder(vocabulary, embedding_dim=2, pretrained_file=str(path))


def test_an_error_that_no_vector_explains_stays_itself(file):
    with pytest.raises(ValueError, match=r"^other$"), word_vectors._named(file[0], 40):
        raise ValueError("other")


def test_an_empty_file_is_named_before_the_data_is_read(vocabulary, tmp_path):
    path = tmp_path / "tiny.txt"
    path.touch()
    with pytest.raises(ConfigurationError, match=r"tiny\.txt is empty"):
        embedder(vocabulary, pretrained_file=str(path))
    params = Params({"type": "word_vectors", "pretrained_file": str(path)})
    instances = iter([Instance({})])
    with pytest.raises(ConfigurationError, match=r"tiny\.txt is empty"):
        Vocabulary.from_params(params, instances=instances)
    assert list(instances)  # still there


def test_a_word_seen_once_is_known_if_it_has_a_vector(file, tmp_path):
    def words(path):
        fields = {"tokens": TextField([*map(Token, ["once", "never", "word3", "more", "more"])])}
        fields["tokens"]._token_indexers = {"tokens": SingleIdTokenIndexer()}
        params = {"type": "word_vectors", "min_count": {"tokens": 2}, "pretrained_file": path}
        found = Vocabulary.from_params(Params(params), instances=[Instance(fields)])
        found.save_to_files(str(tmp_path / "vocabulary"))
        again = type(found).from_files(str(tmp_path / "vocabulary"))
        assert again.get_index_to_token_vocabulary() == found.get_index_to_token_vocabulary()
        return set(found.get_token_to_index_vocabulary()) - {"@@PADDING@@", "@@UNKNOWN@@"}

    assert words(file[0]) == {"once", "word3", "more"}
    assert words(str(tmp_path / "missing.txt.gz")) == words(None) == {"more"}


def test_dropout_is_on_elements_and_in_training_only(vocabulary):
    found = embedder(vocabulary, dropout=0.5)
    tokens = torch.arange(1, 52)[None]
    dropped, whole = found(tokens), found.eval()(tokens)
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    torch.testing.assert_close(whole[0], found.weight[1:])
    with pytest.raises(ConfigurationError, match="dropout: expected 0 <= dropout < 1, got 1"):
        embedder(vocabulary, dropout=1.0)
