import gzip
import hashlib
import http.server
import json
import lzma
import os
import random
import tarfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import imdb
import pytest
import sample
from corpora import archive_of, files_of, mirror_of
from fetch import FetchError, download
from imdb import FOLDERS, OFFICIAL_COUNTS, OFFICIAL_FINGERPRINT, URL, Review, prepare, split

ROOT = Path(imdb.__file__).parents[1]
MIRROR = Path(os.environ.get("QRNN_MIRROR", ROOT.parent / "shared/data/mirror"))


@pytest.fixture
def mirror(tmp_path) -> Path:
    """A folder with a small archive: 60 reviews to train on, 20 to test on."""
    return mirror_of(imdb, tmp_path / "mirror", sample.archive({"train": 60, "test": 20}))


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(mirror: Path | None, out: str = "out") -> dict[str, bytes]:
    prepare(mirror and str(mirror), Path(out), Path("cache"))
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


def rows(written: dict[str, bytes], part: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in written[f"{part}.jsonl"].decode().splitlines()]


def test_what_is_written(mirror):
    written = run(mirror)
    assert set(written) == {"train.jsonl", "dev.jsonl", "test.jsonl", "meta.json"}
    meta = json.loads(written["meta.json"])
    assert {part: (n["pos"], n["neg"]) for part, n in meta["counts"].items()} == {
        "train": (27, 27),
        "dev": (3, 3),
        "test": (10, 10),
    }
    originals = files_of((mirror / "aclImdb_v1.tar.gz").read_bytes())
    ids = set()
    for part in ("train", "dev", "test"):
        for row in rows(written, part):
            assert set(row) == {"id", "text", "label"}
            text = originals[f"aclImdb/{row['id']}.txt"].decode().replace("<br />", "")
            assert row["text"].replace(" ", "") == text.replace(" ", "")
            assert row["id"].split("/")[:2] == ["test" if part == "test" else "train", row["label"]]
            ids.add(f"aclImdb/{row['id']}.txt")
        tokens = sum(len(row["text"].split(" ")) for row in rows(written, part))
        assert meta["counts"][part]["tokens"] == tokens
    assert ids == set(originals)
    assert not any("unpacked" in name for name in os.listdir("cache"))


def test_a_prefix_of_each_part_is_mixed(mirror):
    written = run(mirror)
    for part in ("train", "test"):
        labels = Counter(row["label"] for row in rows(written, part)[:10])
        assert min(labels["pos"], labels["neg"]) >= 2


def test_other_content_is_not_official(mirror, capsys):
    meta = json.loads(run(mirror)["meta.json"])
    assert meta["name"] == "imdb" and meta["official"] is False
    assert "NOT OFFICIAL: train/pos 30, train/neg 30, test/pos 10, test/neg 10" in meta["note"]
    warning = capsys.readouterr().err
    assert "# WARNING" in warning and meta["note"] in warning


def test_official_content_is_official(mirror, monkeypatch, capsys):
    found = json.loads(run(mirror)["meta.json"])["fingerprint"]
    monkeypatch.setattr(imdb, "OFFICIAL_FINGERPRINT", found)
    capsys.readouterr()
    meta = json.loads(run(mirror, "official")["meta.json"])
    assert meta["official"] is True and "NOT" not in meta["note"]
    assert "WARNING" not in capsys.readouterr().err


def test_one_changed_letter_is_another_fingerprint(mirror, tmp_path):
    files = files_of((mirror / "aclImdb_v1.tar.gz").read_bytes())
    before = json.loads(run(mirror)["meta.json"])["fingerprint"]
    name = next(iter(files))
    files[name] = files[name].replace(b"e", b"a", 1)
    after = json.loads(run(mirror_of(imdb, tmp_path / "changed", archive_of(files)))["meta.json"])
    assert after["fingerprint"] != before


def test_what_else_is_in_the_official_archive_is_passed_over(mirror, tmp_path):
    files = files_of((mirror / "aclImdb_v1.tar.gz").read_bytes())
    extras = [
        "aclImdb/README",
        "aclImdb/imdb.vocab",
        "aclImdb/train/unsup/urls.txt",
        "aclImdb/train/urls_pos.txt",
        "aclImdb/train/labeledBow.feat",
        "aclImdb/train/pos/._0_9.txt",
        "aclImdb/train/pos/README.txt",
    ]
    fuller = archive_of(files | dict.fromkeys(extras, b"\xff"))
    assert run(mirror, "a") == run(mirror_of(imdb, tmp_path / "fuller", fuller), "b")


def test_the_order_in_the_archive_does_not_matter(mirror, tmp_path):
    files = list(files_of((mirror / "aclImdb_v1.tar.gz").read_bytes()).items())
    random.Random(1).shuffle(files)
    assert run(mirror, "a") == run(
        mirror_of(imdb, tmp_path / "other", archive_of(dict(files))), "b"
    )


UNLABELLED = {f"aclImdb/train/unsup/{n}_0.txt": b"Unlabelled %d,<br />x" % n for n in range(5)}


def test_unlabelled_reviews_in_the_archive_are_written_too(mirror, tmp_path):
    without = run(mirror)
    files = files_of((mirror / "aclImdb_v1.tar.gz").read_bytes())
    written = run(mirror_of(imdb, tmp_path / "fuller", archive_of(files | UNLABELLED)))
    assert sorted(rows(written, "unsup"), key=lambda row: row["id"]) == [
        {"id": f"train/unsup/{n}_0", "text": f"Unlabelled {n} , x"} for n in range(5)
    ]
    before, meta = json.loads(without["meta.json"]), json.loads(written["meta.json"])
    assert meta["counts"].pop("unsup") == {"reviews": 5, "tokens": 20}
    digest = hashlib.sha256(written["unsup.jsonl"]).hexdigest()
    assert meta["files"].pop("unsup.jsonl") == digest
    content = b"".join(UNLABELLED[name] for name in sorted(UNLABELLED))
    assert meta.pop("unsup_fingerprint") == hashlib.sha256(content).hexdigest()
    before.pop("unsup_fingerprint")
    assert meta == before  # what is labelled is as without
    for part in ("train", "dev", "test"):
        assert written[f"{part}.jsonl"] == without[f"{part}.jsonl"]


@pytest.mark.parametrize("by_url", [False, True])
def test_unlabelled_reviews_beside_the_archive_are_taken(mirror, tmp_path, by_url, monkeypatch):
    files = files_of((mirror / "aclImdb_v1.tar.gz").read_bytes())
    whole = run(mirror_of(imdb, tmp_path / "fuller", archive_of(files | UNLABELLED)), "whole")
    without = run(mirror)
    packed = lzma.compress(gzip.decompress(archive_of(UNLABELLED)))
    if by_url:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        handler = partial(QuietHandler, directory=mirror)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            url = f"http://127.0.0.1:{server.server_address[1]}"
            prepare(url, Path("out"), Path("cache"))  # without: the server says 404
            assert not Path("out/unsup.jsonl").exists()
            (mirror / "aclImdb_unsup.tar.xz").write_bytes(packed)
            prepare(url, Path("out"), Path("cache"))
            server.shutdown()
            thread.join()
        written = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    else:
        (mirror / "aclImdb_unsup.tar.xz").write_bytes(packed)
        written = run(mirror)
    assert written == whole
    assert not any("unpacked" in name for name in os.listdir("cache"))
    (mirror / "aclImdb_unsup.tar.xz").unlink()
    assert run(mirror) == without


def test_an_official_corpus_without_them_says_where_they_are(monkeypatch, capsys):
    def finished(out: Path, recipe: dict) -> dict:
        return {"official": True, "files": {"train.jsonl": ""}}

    monkeypatch.setattr(imdb, "finished_meta", finished)
    prepare(None, Path("out"), Path("cache"))
    said = capsys.readouterr().out
    assert "but for the reviews without labels: MIRROR=https://ai.stanford.edu/" in said


def test_unlabelled_reviews_that_cannot_be_asked_for_are_not_taken_for_none(mirror, monkeypatch):
    packed = lzma.compress(gzip.decompress(archive_of(UNLABELLED)))
    (mirror / "aclImdb_unsup.tar.xz").write_bytes(packed)
    written = run(mirror)

    def refuse(origin: str, target: Path) -> None:
        if "unsup" in origin:
            raise FetchError("HTTP 403")
        download(origin, target)

    monkeypatch.setattr(imdb, "download", refuse)
    with pytest.raises(FetchError, match="HTTP 403"):
        run(mirror)
    assert written == {path.name: path.read_bytes() for path in Path("out").iterdir()}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("/test/neg/", None, "no reviews aclImdb/test/neg/NUMBER"),
        ("/train/", None, "no reviews aclImdb/train/pos/NUMBER"),
        ("/train/pos/0_10.txt", b" <br />", "train/pos/0_10.txt holds no words"),
        ("/train/pos/0_10.txt", b"caf\xe9", "train/pos/0_10.txt is not UTF-8"),
        ("/train/pos/", b"the same", "too few different reviews"),
    ],
)
def test_an_unusable_archive_is_an_error(tmp_path, name, content, error):
    files = files_of(sample.archive({"train": 60, "test": 20}))
    assert any(name in file for file in files)
    files = {file: content if name in file else text for file, text in files.items()}
    archive = archive_of({file: text for file, text in files.items() if text is not None})
    with pytest.raises(FetchError, match=error):
        run(mirror_of(imdb, tmp_path / "mirror", archive))
    assert not Path("out").exists()
    assert not any("unpacked" in name for name in os.listdir("cache"))


def reviews(texts: dict[str, int], label: str) -> list[Review]:
    made = [text for text, number in texts.items() for _ in range(number)]
    return [Review(f"train/{label}/{i}_1", text, label) for i, text in enumerate(made)]


def test_split_is_a_fixed_stratified_tenth():
    corpus = reviews({f"p{i}": 1 for i in range(200)}, "pos")
    corpus += reviews({f"n{i}": 1 for i in range(100)}, "neg")
    train, dev = split(corpus)
    assert Counter(r.label for r in dev) == {"pos": 20, "neg": 10}
    assert sorted(train + dev) == sorted(corpus)
    random.Random(1).shuffle(corpus)
    assert split(corpus) == (train, dev)
    # The split that published results were made with: a change has to be meant.
    assert [r.text for r in dev[:4]] == ["p186", "p174", "n59", "p86"]


def test_split_keeps_equal_texts_together():
    corpus = reviews({f"p{i}": 1 + i % 4 for i in range(100)}, "pos")
    corpus += reviews({f"{'pn'[i % 2]}{i}": 1 + i % 3 for i in range(100)}, "neg")
    train, dev = split(corpus)
    assert len(train) + len(dev) == len(corpus)
    assert not {r.text for r in train} & {r.text for r in dev}
    totals = Counter(r.label for r in corpus)
    assert Counter(r.label for r in dev) == {k: (n + 5) // 10 for k, n in totals.items()}
    assert any(n > 1 for n in Counter(r.text for r in dev).values())


def test_the_real_corpus_is_official():
    archive = MIRROR / URL.rsplit("/", 1)[1]
    if not archive.exists():
        pytest.skip(f"no real data: there is no {archive} (QRNN_MIRROR)")
    counts, contents = Counter(), {}
    with tarfile.open(archive) as tar:
        for member in tar:
            folder = member.name.removeprefix("aclImdb/").rsplit("/", 1)[0]
            if member.isfile() and folder in FOLDERS:
                counts[folder] += 1
                contents[member.name] = tar.extractfile(member).read()
    assert counts == OFFICIAL_COUNTS
    digest = hashlib.sha256(b"".join(contents[name] for name in sorted(contents)))
    assert digest.hexdigest() == OFFICIAL_FINGERPRINT
