"""Archives, for the tests of the scripts that prepare the three corpora."""

import io
import tarfile
from pathlib import Path
from types import ModuleType


def archive_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def files_of(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def archive_name(corpus: ModuleType) -> str:
    """As the script `corpus` downloads it."""
    return corpus.URL.rsplit("/", 1)[1]


def mirror_of(corpus: ModuleType, folder: Path, archive: bytes) -> Path:
    folder.mkdir()
    (folder / archive_name(corpus)).write_bytes(archive)
    return folder
