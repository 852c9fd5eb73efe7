"""Downloading, unpacking and checking archives, for the scripts that prepare data sets.

Nothing here leaves a half-written file or folder under its final name: everything grows beside it
and is renamed when complete, so a name that exists is a thing that is finished.
"""

import errno
import fcntl
import hashlib
import json
import lzma
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from files import beside, read_json, rename, sync, write_atomically
from tqdm import tqdm

CHUNK = 1 << 20  # bytes
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, BadGzipFile, ValueError)
TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
TRIES = 5  # in a row without a single new byte
PAUSE = 1.0  # seconds before the second try, doubled before each further one


class FetchError(Exception):
    """What went wrong with which URL or file, and what to do about it."""


class NotThere(FetchError):
    """There is no such file or URL."""


class _Interrupted(Exception):
    """A failure that another try may cure."""


def source(official_url: str, mirror: str | None = None) -> str:
    """Where to take an archive from: its official URL, or the same file name under `mirror`, a
    folder or a URL prefix."""
    if not mirror:
        return official_url
    name = _name(official_url)
    if is_url(mirror):
        return f"{mirror.rstrip('/')}/{name}"
    if "://" in mirror:
        raise FetchError(f"MIRROR must be a folder or start with http:// or https://, not {mirror}")
    return str(Path(mirror).expanduser().resolve() / name)


def is_url(origin: str) -> bool:
    return origin.lower().startswith(("http://", "https://"))


@contextmanager
def alone(cache: Path, name: str) -> Iterator[None]:
    """Waits until no other process prepares `name` in this folder: each would take the other's
    unfinished download for its own."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f"{name}.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares {name} in {cache}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def download(origin: str, target: Path) -> None:
    """Copies a URL or a local file to `target`; does nothing if that has been done before.

    `target.json` stays beside it and says where it came from: another origin replaces it. While
    incomplete it is called `target.part`, and the next call continues a URL from there. A target
    without a record was put there by hand and is taken as it is.

    Raises NotThere where there is no such file, and FetchError without network, for an HTTP error
    or a full disk.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_url(origin):
            _download_url(origin, target)
        else:
            _copy_file(Path(origin), target)
    except requests.RequestException as error:
        raise FetchError(f"cannot download {origin}: {error}") from error
    except OSError as error:
        raise _explained(error) from error


def left_to_load(origin: str, target: Path, size: int) -> int:
    """How many of a file's `size` bytes `download` would need room for."""
    if target.exists():
        record = _record_of(target)
        if not record or record["origin"] == origin:
            return 0
    return max(0, size - _size(beside(target, ".part")))


def extract(archive: Path, target: Path) -> None:
    """Unpacks a tar archive (plain, gz, bz2 or xz) into the new folder `target`.

    Only plain files and folders: a data set needs no links, and links are how archives reach out of
    their folder. Raises FetchError, and leaves nothing behind, for links, devices, paths that lead
    outside, a damaged archive or a full disk.
    """
    if target.exists():
        raise FetchError(f"{target} is in the way: unpacking {archive} wants to create it")
    part = beside(target, ".part")
    if part.exists():
        shutil.rmtree(part)
    try:
        part.mkdir(parents=True)
        with (
            open(archive, "rb") as file,
            tqdm.wrapattr(
                file, "read", total=_size(archive), desc=f"unpacking {archive.name}"
            ) as counted,
            tarfile.open(fileobj=counted) as tar,
        ):
            for member in tar:
                _refuse_unsafe(archive, member)
                tar.extract(member, part, filter="data")
            # The compressed stream's checksum comes after the end of the tar inside it.
            assert tar.fileobj is not None
            while tar.fileobj.read(CHUNK):
                pass
        rename(part, target)
    except DAMAGE as error:
        raise damaged(archive, error) from error
    except OSError as error:
        raise _explained(error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def damaged(archive: Path, error: BaseException) -> FetchError:
    told = f"{archive} is damaged or incomplete ({error}): delete it and run the command again"
    origin = _record_of(archive).get("origin")
    if origin and not is_url(origin):
        told += f"; it is a copy of {origin}, which may be damaged, too"
    return FetchError(told)


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """The folder that `extract` makes beside an archive, for as long as it is needed."""
    folder = beside(archive, ".unpacked")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    try:
        extract(archive, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fingerprint(files: Iterable[Path]) -> str:
    """sha256 (hex) over the concatenated contents, in the order of the paths as plain strings with
    forward slashes ("a/10_1.txt" comes before "a/9_1.txt")."""
    digest = hashlib.sha256()
    for file in tqdm(sorted(files, key=Path.as_posix), desc="checking", unit=" files"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def finished_meta(out: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """meta.json of a prepared data set: what `files` names is intact, and today's `recipe` would
    write the same from its corpus. None if not."""
    try:
        meta = read_json(out / "meta.json")
        intact = all(
            hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
            for name, digest in meta["files"].items()
        )
    except (FileNotFoundError, KeyError, TypeError, AttributeError, ValueError):
        return None  # missing, or not what was written
    return meta if intact and meta.items() >= recipe.items() else None


def is_of(finished: dict[str, Any] | None, found: dict[str, Any], out: Path) -> bool:
    """Whether `finished`, of `finished_meta`, is of the corpus with these fingerprints; tells."""
    if not finished or not finished.items() >= found.items():
        return False
    print(f"{out} is already prepared from this corpus")
    if not finished["official"]:
        warn(finished["note"])
    return True


def write_prepared(out: Path, texts: dict[str, str], meta: dict[str, Any]) -> None:
    """The files of a prepared data set, by name, and last of all meta.json with their hashes."""
    meta["files"] = {
        name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "meta.json").unlink(missing_ok=True)
    for name, text in texts.items():
        write_atomically(out / name, text)
    write_atomically(out / "meta.json", json.dumps(meta, indent=2) + "\n")


def warn(note: str) -> None:
    lines = ["WARNING", note, "Every result made from this data is recorded as not official."]
    width = max(map(len, lines))
    bar = "#" * (width + 4)
    print(bar, *(f"# {line:{width}} #" for line in lines), bar, sep="\n", file=sys.stderr)


def _download_url(url: str, target: Path) -> None:
    if _is_there(target, url):
        return
    failures = 0
    while True:
        part = beside(target, ".part")
        before = _size(part)
        try:
            _continue_url(url, target)
            return
        except (
            _Interrupted,
            requests.ConnectionError,
            requests.Timeout,
            urllib3.exceptions.HTTPError,
        ) as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= TRIES:
                raise FetchError(
                    f"cannot download {url}: {error}\n"
                    f"Run the command again to continue after {_size(part):,} bytes, or "
                    f"{_other_way(url)}"
                ) from error
            pause = PAUSE * 2 ** (failures - 1)
            tqdm.write(f"{url}: {error}; trying again in {pause:g} s")
            time.sleep(pause)


def _continue_url(url: str, target: Path) -> None:
    """One request, for what `target.part` lacks."""
    part = beside(target, ".part")
    known = _read_record(part)
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}
    if start and known.get("origin") == url and known["version"] and known["size"]:
        if start == known["size"]:
            _finish(target)
            return
        headers |= {"Range": f"bytes={start}-", "If-Range": known["version"]}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise _Interrupted(f"HTTP {answer.status_code} {answer.reason}")
        if answer.status_code == 416 or (
            answer.status_code == 206 and not _continues(answer, known, start)
        ):
            part.unlink(missing_ok=True)
            raise _Interrupted("the file has changed on the server")
        if answer.status_code not in (200, 206):
            kind = NotThere if answer.status_code in (404, 410) else FetchError
            raise kind(
                f"cannot download {url}: HTTP {answer.status_code} {answer.reason}\n"
                f"You can {_other_way(url)}"
            )
        if answer.status_code == 200:
            start = 0
            length = answer.headers.get("Content-Length")
            known = {"origin": url, "version": _version(answer), "size": length and int(length)}
            part.unlink(missing_ok=True)  # before the record says that it is of this version
            _write_record(part, known)
        with (
            open(part, "ab") as file,
            tqdm.wrapattr(
                file, "write", total=known["size"], initial=start, desc=f"loading {target.name}"
            ) as counted,
        ):
            # Undecoded: some servers call a .gz file's own compression a content encoding.
            for chunk in answer.raw.stream(CHUNK, decode_content=False):
                counted.write(chunk)
            sync(file)
    if known["size"] is not None and _size(part) != known["size"]:
        raise _Interrupted(f"{_size(part):,} of {known['size']:,} bytes arrived")
    _finish(target)


def _continues(answer: requests.Response, known: dict[str, Any], start: int) -> bool:
    """Whether a partial answer (206) goes on with the file that the part was taken from."""
    extent = answer.headers.get("Content-Range", "")
    return (
        extent.startswith(f"bytes {start}-")
        and extent.endswith(f"/{known['size']}")
        and _version(answer) in (None, known["version"])  # a date need not be repeated
    )


def _version(answer: requests.Response) -> str | None:
    """What If-Range may carry: a strong ETag, else the date."""
    tag = answer.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _copy_file(origin: Path, target: Path) -> None:
    if not origin.is_file():
        raise NotThere(
            f"there is no file {origin}: MIRROR must be a folder or URL prefix that holds it"
        )
    stat = origin.stat()
    version = f"{stat.st_size} bytes, {stat.st_mtime_ns} ns"
    if _is_there(target, str(origin), version):
        return
    part = beside(target, ".part")
    part.unlink(missing_ok=True)
    _write_record(part, {"origin": str(origin), "version": version, "size": stat.st_size})
    with (
        open(origin, "rb") as original,
        open(part, "wb") as file,
        tqdm.wrapattr(file, "write", total=stat.st_size, desc=f"copying {target.name}") as counted,
    ):
        shutil.copyfileobj(original, counted, CHUNK)
        sync(file)
    _finish(target)


def _is_there(target: Path, origin: str, version: str | None = None) -> bool:
    """Whether `target` was taken from `origin` (and, where it is cheap to know, is up to date)."""
    if not target.exists():
        return False
    record = _record_of(target)
    there = not record or (record["origin"] == origin and version in (None, record["version"]))
    if there:
        print(f"{target} is already there")
    return there


def _finish(target: Path) -> None:
    """Gives a complete part its name. In this order no target ever stands beside the record of
    another one, or, as if put there by hand, beside none."""
    target.unlink(missing_ok=True)
    rename(_record(beside(target, ".part")), _record(target))
    rename(beside(target, ".part"), target)


def _record(file: Path) -> Path:
    return beside(file, ".json")


def _read_record(file: Path) -> dict[str, Any]:
    """Where a file came from: origin, version, size in bytes; empty if nothing is known."""
    try:
        record = read_json(_record(file))
        return record if record.keys() >= {"origin", "version", "size"} else {}
    except (FileNotFoundError, AttributeError, ValueError):
        return {}  # missing, or not what was written


def _record_of(target: Path) -> dict[str, Any]:
    """The same of a whole file, unless another one has been put in its place."""
    record = _read_record(target)
    return record if record and record["size"] in (None, _size(target)) else {}


def _write_record(file: Path, record: dict[str, Any]) -> None:
    write_atomically(_record(file), json.dumps(record, indent=2) + "\n")


def _refuse_unsafe(archive: Path, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        problem = "is a link or a device"
    elif path.is_absolute() or ".." in path.parts:
        problem = "leads out of the target folder"
    else:
        return
    raise FetchError(f"{archive} is not safe to unpack: {member.name!r} {problem}")


def _explained(error: OSError) -> FetchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchError(f"the disk is full ({error}): free some space and run the command again")
    return FetchError(str(error))


def _other_way(url: str) -> str:
    return f"give a folder or URL prefix that holds {_name(url)}: MIRROR=..."


def _name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
