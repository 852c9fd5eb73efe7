import errno
import gzip
import http.server
import io
import lzma
import os
import re
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fetch
import imdb
import iwslt
import ptb
import pytest
import vectors
from fetch import (
    FetchError,
    NotThere,
    alone,
    download,
    extract,
    fingerprint,
    left_to_load,
    source,
)

CONTENT = bytes(range(256)) * 2_000  # 512,000 bytes


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under every path; `requests` are the Range headers that it got."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/files/data.tar.gz"
        self.content = CONTENT
        self.tag: str | None = '"1"'
        self.date: str | None = None
        self.ranges = True  # whether it answers with 206
        self.checks_tag = True  # whether it heeds If-Range
        self.sends_length = True
        self.most = len(CONTENT)  # bytes in a partial answer
        self.cuts: list[int] = []  # bytes after which to hang up, one per request
        self.statuses: list[int] = []  # to answer with instead, one per request
        self.requests: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.requests.append(wanted)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start, size = 0, len(server.content)
        end = size
        fresh = self.headers["If-Range"] in (server.tag, server.date) or not server.checks_tag
        if wanted and server.ranges and fresh:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= size:
                self.send_error(416)
                return
            end = min(size, start + server.most)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            self.send_response(200)
        if server.sends_length:
            self.send_header("Content-Length", str(end - start))
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.date:
            self.send_header("Last-Modified", server.date)
        self.send_header("Content-Encoding", "gzip")  # as Apache does for .gz files
        self.end_headers()
        end = start + server.cuts.pop(0) if server.cuts else end
        self.wfile.write(server.content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    monkeypatch.setattr(fetch, "CHUNK", 10_000)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "download" / "data.tar.gz"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def part_of(target: Path) -> bytes:
    return target.with_name(target.name + ".part").read_bytes()


@pytest.mark.parametrize("module", [imdb, iwslt, ptb, vectors])
def test_what_another_process_prepares_is_waited_for(module, tmp_path, capsys):
    """Without a mirror to read from it fails, but not before the other one has ended."""
    folders = [tmp_path / "out", tmp_path / "cache"]
    arguments = [str(tmp_path / "mirror"), *folders]
    if module is vectors:
        arguments = [vectors.WORD2VEC_NAME, None, tmp_path / "data", *folders]

    def attempt():
        with pytest.raises(FetchError):
            module.prepare(*arguments)

    with ThreadPoolExecutor() as threads:
        with alone(tmp_path / "cache", module.__name__):
            second = threads.submit(attempt)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.2)
        second.result(timeout=10)
    assert f"waiting for another process that prepares {module.__name__}" in capsys.readouterr().out


def interrupted(server: Server, target: Path, size: int) -> None:
    """Leaves a part of `size` bytes behind, as a killed or failed run does."""
    server.cuts, server.statuses = [size], []
    tries, fetch.TRIES = fetch.TRIES, 1
    try:
        with pytest.raises(FetchError, match=r"continue .* MIRROR="):
            download(server.url, target)
    finally:
        fetch.TRIES = tries
    assert not target.exists()
    assert part_of(target) == server.content[:size]
    server.requests.clear()


def test_source_joins_the_official_name_to_a_mirror(tmp_path, monkeypatch):
    official = "https://example.org/some/where/data.tar.gz?download=1"
    assert source(official) == source(official, "") == official
    assert source(official, "http://mirror.org/x/") == "http://mirror.org/x/data.tar.gz"
    monkeypatch.chdir(tmp_path)
    assert source(official, "x") == str(tmp_path / "x" / "data.tar.gz")
    with pytest.raises(FetchError, match=r"MIRROR must be .* not ftp://x"):
        source(official, "ftp://x")


@pytest.mark.parametrize("sends_length", [True, False])
def test_download_once(server, target, sends_length, capsys):
    server.sends_length = sends_length
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == {target.name, target.name + ".json"}
    download(server.url, target)
    assert server.requests == [None]
    assert "already there" in capsys.readouterr().out


@pytest.mark.parametrize("dated", [False, True])
def test_a_dropped_connection_is_resumed(server, target, dated):
    if dated:
        server.tag, server.date = 'W/"1"', "Sat, 21 Nov 2026 12:00:00 GMT"
    server.cuts = [100_000, 50_000]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_run_resumes(server, target):
    interrupted(server, target, 200_000)
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == ["bytes=200000-"]
    assert names(target.parent) == {target.name, target.name + ".json"}


def test_less_than_the_whole_rest_is_not_taken_for_it(server, target):
    interrupted(server, target, 200_000)
    server.most = 200_000
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == ["bytes=200000-", "bytes=400000-"]


def test_a_complete_part_needs_no_request(server, target):
    interrupted(server, target, 200_000)
    target.with_name(target.name + ".part").write_bytes(CONTENT)
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == []


def test_a_server_without_ranges_starts_again(server, target):
    interrupted(server, target, 200_000)
    server.ranges = False
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == ["bytes=200000-"]


def test_a_server_without_versions_starts_again(server, target):
    server.tag = None
    interrupted(server, target, 200_000)
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [None]


@pytest.mark.parametrize("checks_tag", [True, False])
@pytest.mark.parametrize("size", [512_000, 150_000, 700_000])
def test_a_file_that_changed_between_tries_starts_again(server, target, checks_tag, size):
    interrupted(server, target, 200_000)
    server.content, server.tag, server.checks_tag = os.urandom(size), '"2"', checks_tag
    download(server.url, target)
    assert target.read_bytes() == server.content


def test_another_origin_never_continues_a_part(server, target):
    interrupted(server, target, 200_000)
    server.content = CONTENT[::-1]
    download(server.url + "?other", target)
    assert target.read_bytes() == CONTENT[::-1]
    assert server.requests == [None]


def test_another_origin_replaces_the_file(server, target, tmp_path):
    download(server.url, target)
    mirrored = tmp_path / "data.tar.gz"
    mirrored.write_bytes(b"other")
    download(str(mirrored), target)
    assert target.read_bytes() == b"other"
    download(server.url, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_another_origin_killed_at_any_rename(tmp_path, target, monkeypatch, moment):
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(name.encode())
    download(f"{tmp_path}/old", target)
    replace, left = os.replace, [None] * moment

    def replace_or_die(*names: Path) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        replace(*names)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace_or_die)
        download(f"{tmp_path}/new", target)
    for name in ("new", "old"):
        download(f"{tmp_path}/{name}", target)
        assert target.read_bytes() == name.encode()


def test_what_is_left_to_load(server, target):
    assert left_to_load(server.url, target, len(CONTENT)) == len(CONTENT)
    part = target.with_name(target.name + ".part")
    part.parent.mkdir()
    part.write_bytes(CONTENT[:100_000])
    assert left_to_load(server.url, target, len(CONTENT)) == len(CONTENT) - 100_000
    download(server.url, target)
    assert left_to_load(server.url, target, len(CONTENT)) == 0
    assert left_to_load("another", target, len(CONTENT)) == len(CONTENT)  # both, for a while
    target.with_name(target.name + ".json").unlink()
    assert left_to_load("another", target, len(CONTENT)) == 0  # put there by hand


def test_another_origin_that_fails_leaves_the_file(server, target):
    download(server.url, target)
    server.statuses = [404]
    with pytest.raises(FetchError):
        download(server.url + "?other", target)
    assert target.read_bytes() == CONTENT
    server.requests.clear()
    download(server.url, target)
    assert server.requests == []


def test_a_file_put_there_by_hand_is_taken(target):
    target.parent.mkdir()
    target.write_bytes(b"by hand")
    download("http://127.0.0.1:1/data.tar.gz", target)
    assert target.read_bytes() == b"by hand"


def test_one_in_the_place_of_a_file_that_was_loaded_is_taken(server, target):
    download(server.url, target)
    target.write_bytes(b"by hand")
    server.requests.clear()
    assert left_to_load("another", target, len(CONTENT)) == 0
    download("http://127.0.0.1:1/data.tar.gz", target)
    assert target.read_bytes() == b"by hand"


@pytest.mark.parametrize("record", ["{", "[]", "{}", '{"origin": "there"}'])
def test_a_record_that_is_none_is_of_nothing_known(target, record):
    target.parent.mkdir()
    target.write_bytes(b"by hand")
    target.with_name(target.name + ".json").write_text(record)
    download("http://127.0.0.1:1/data.tar.gz", target)
    assert target.read_bytes() == b"by hand"


def test_a_damaged_copy_names_what_it_is_a_copy_of(tmp_path, target):
    origin = tmp_path / "mirror.tgz"
    origin.write_bytes(b"no archive")
    download(str(origin), target)
    with pytest.raises(FetchError, match=r"run the command again; it is a copy of .*mirror\.tgz"):
        extract(target, tmp_path / "out")


def test_busy_servers_are_asked_again(server, target):
    server.statuses = [503, 429, 500]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 4


def test_progress_is_never_given_up(server, target):
    server.cuts = [20_000] * (3 * fetch.TRIES)
    download(server.url, target)
    assert target.read_bytes() == CONTENT


def test_no_progress_is_given_up(server, target):
    server.statuses = [503] * 100
    with pytest.raises(FetchError, match=f"{re.escape(server.url)}: HTTP 503(.|\n)*MIRROR="):
        download(server.url, target)
    assert len(server.requests) == fetch.TRIES
    assert names(target.parent) == set()


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final(server, target, status):
    server.statuses = [status]
    with pytest.raises(
        FetchError, match=f"{re.escape(server.url)}: HTTP {status}(.|\n)*MIRROR="
    ) as raised:
        download(server.url, target)
    assert isinstance(raised.value, NotThere) == (status != 403)
    assert len(server.requests) == 1
    assert names(target.parent) == set()


def test_no_network(server, target):
    with pytest.raises(FetchError, match=r"http://127.0.0.1:1/x.tgz: (.|\n)*x.tgz: MIRROR="):
        download("http://127.0.0.1:1/x.tgz", target)
    assert names(target.parent) == set()


def test_no_such_file_in_the_mirror(tmp_path, target):
    with pytest.raises(NotThere, match=f"no file {tmp_path}/data.tar.gz: MIRROR"):
        download(f"{tmp_path}/data.tar.gz", target)
    assert names(target.parent) == set()


def test_a_changed_file_in_the_mirror_is_copied_again(tmp_path, target):
    mirrored = tmp_path / "data.tar.gz"
    for content in (b"old", b"new", b"longer"):
        mirrored.write_bytes(content)
        os.utime(mirrored, ns=(0, content[0]))
        download(str(mirrored), target)
        assert target.read_bytes() == content


def test_a_full_disk(server, target, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FetchError, match="disk is full"):
            download(server.url, target)
    assert not target.exists()
    download(server.url, target)
    assert target.read_bytes() == CONTENT


def pack(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                file = tarfile.TarInfo(member[0])
                file.size = len(member[1])
                tar.addfile(file, io.BytesIO(member[1]))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_extract(tmp_path, mode):
    archive = pack(tmp_path / "data.tar", ("a/b/1.txt", b"one"), ("a/2.txt", b"two"), mode=mode)
    (tmp_path / "out.part" / "left").mkdir(parents=True)  # by a killed run
    extract(archive, tmp_path / "out")
    assert (tmp_path / "out/a/b/1.txt").read_bytes() == b"one"
    assert (tmp_path / "out/a/2.txt").read_bytes() == b"two"
    assert names(tmp_path) == {"data.tar", "out"} and names(tmp_path / "out") == {"a"}
    with pytest.raises(FetchError, match="out is in the way"):
        extract(archive, tmp_path / "out")


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "member",
    [
        ("/tmp/qrnn-evil", b"x"),
        ("../evil", b"x"),
        ("a/../../evil", b"x"),
        special("a/evil", tarfile.SYMTYPE, "/etc"),
        special("a/evil", tarfile.SYMTYPE, "good"),
        special("a/evil", tarfile.LNKTYPE, "../../secret"),
        special("a/evil", tarfile.CHRTYPE),
        special("a/evil", tarfile.BLKTYPE),
        special("a/evil", tarfile.FIFOTYPE),
        special("../evil", tarfile.DIRTYPE),
    ],
)
def test_unsafe_archives_are_refused(tmp_path, member):
    (tmp_path / "secret").write_text("mine")
    archive = pack(tmp_path / "data.tgz", ("a/good", b"x"), member)
    with pytest.raises(FetchError, match=r"data\.tgz is not safe to unpack: .*evil"):
        extract(archive, tmp_path / "out")
    assert names(tmp_path) == {"secret", "data.tgz"}
    assert not Path("/tmp/qrnn-evil").exists()


def test_a_name_that_cannot_be_is_damage(tmp_path):
    content = bytearray(pack(tmp_path / "a.tar", ("a/bcd", b"x"), mode="w").read_bytes())
    header = tarfile.TarInfo("a/bcd")
    header.linkname, header.type, header.pax_headers = "", tarfile.REGTYPE, {"path": "a/\0d"}
    archive = tmp_path / "data.tgz"
    archive.write_bytes(header.tobuf(tarfile.PAX_FORMAT) + bytes(content[-1024:]))
    with pytest.raises(FetchError, match=r"data\.tgz is damaged or incomplete"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("content", ["[]", "{", '{"files": []}', "\xff", '{"files": {"a": 1}}'])
def test_a_meta_that_is_none_is_of_nothing_prepared(tmp_path, content):
    (tmp_path / "meta.json").write_text(content, encoding="latin-1")
    assert fetch.finished_meta(tmp_path, {}) is None


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("damage", ["start", "middle", "checksum", "flipped", "no archive"])
def test_damaged_archives_are_refused(tmp_path, compress, damage):
    plain = pack(tmp_path / "plain", *((f"{i}.bin", os.urandom(9_000)) for i in range(9)), mode="w")
    content = bytearray(compress(plain.read_bytes()))
    plain.unlink()
    if damage == "flipped":
        content[-40_000] ^= 1  # random content: only a checksum can tell
    elif damage == "no archive":
        content = bytearray(b"<html>Not found</html>" * 100)
    else:
        del content[{"start": 100, "middle": 40_000, "checksum": -4}[damage] :]
    archive = tmp_path / "data.tgz"
    archive.write_bytes(content)
    with pytest.raises(FetchError, match=r"data\.tgz is damaged or incomplete(.|\n)*delete it and"):
        extract(archive, tmp_path / "out")
    assert names(tmp_path) == {"data.tgz"}


def test_fingerprint_sorts_paths_as_strings(tmp_path):
    contents = {"a/9.txt": b"3", "a/10.txt": b"2", "a-b/1.txt": b"1"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    sha256_of_123 = "a665a45920422f9d417e4867efdc4fb8a04a1f3fff1fa07e998e86f7f7a27ae3"
    assert fingerprint(tmp_path / name for name in contents) == sha256_of_123
