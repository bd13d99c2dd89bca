"""Where a run lies: a folder on a disk, or in an object store (``s3://``, ``gs://``), both reached through pyarrow.

Every file is written whole or not at all: on a disk by a synced temporary sibling that is renamed, in an object store
by one upload of the finished bytes. Nothing else is relied upon: no rename, no append, no lock.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from factory.errors import InputError

SCHEMES = ("s3://", "gs://", "gcs://")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A file or folder. Cheap, compared by its address, and picklable: the connection is made where it is used."""

    uri: str

    @classmethod
    def of(cls, where: str | os.PathLike[str] | Place) -> Place:
        """The place of a path (made absolute) or address.

        Raises:
            InputError: an address of another kind.
        """
        if isinstance(where, Place):
            return where
        text = os.fspath(where)
        if not is_remote(text):
            return cls(str(Path(text).absolute()))
        if not text.startswith(SCHEMES) or "?" in text:
            raise InputError(
                f"run: {text}: a local path, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER, without options; region, "
                "endpoint and keys come from the environment (AWS_REGION, AWS_ENDPOINT_URL, ...)"
            )
        return cls(text.rstrip("/"))

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    def __fspath__(self) -> str:
        if is_remote(self.uri):
            raise TypeError(f"{self.uri} is not on a disk")
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.uri.rpartition("/")[2]

    @property
    def disk(self) -> Path | None:
        """The path, where this is on a disk."""
        return None if is_remote(self.uri) else Path(self.uri)

    def is_file(self) -> bool:
        return self._info().type == pafs.FileType.File

    def is_dir(self) -> bool:
        return self._info().type == pafs.FileType.Directory

    def entries(self) -> list[Place]:
        """What lies directly below a folder, by name; nothing where there is no folder."""
        return [self / info.base_name for info in self._list(recursive=False)]

    def files(self) -> dict[str, int]:
        """All files below a folder: relative name and size in bytes, without those that are being written."""
        root = self._path()
        found = {info.path.removeprefix(root).lstrip("/"): info for info in self._list(recursive=True)}
        return {
            name: info.size
            for name, info in sorted(found.items())
            if info.type == pafs.FileType.File and not info.base_name.startswith(".")
        }

    def read(self) -> bytes:
        with self.opened() as file:
            return bytes(file.read())

    def opened(self) -> pa.NativeFile:
        """For reading at any position."""
        return self._files().open_input_file(self._path())

    def write(self, content: bytes | pa.Buffer) -> None:
        """Make the file with this content, whole or not at all; its folder is made too."""
        if self.disk is None:
            with self._files().open_output_stream(self._path()) as stream:
                stream.write(content)
            return
        self.disk.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.disk.with_name(f".{self.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.disk)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove a file, or a folder with all that is in it; nothing happens where there is none."""
        if self.is_dir():
            self._files().delete_dir(self._path())
        elif self.is_file():
            self._files().delete_file(self._path())

    def upload(self, folder: Path) -> None:
        """Copy the files of a folder on this machine's disk here."""
        pafs.copy_files(str(folder), self._path(), destination_filesystem=self._files())

    def download(self, folder: Path) -> None:
        """Copy the files below this place into a folder on this machine's disk."""
        folder.mkdir(parents=True, exist_ok=True)
        pafs.copy_files(self._path(), str(folder), source_filesystem=self._files())

    def _info(self) -> Any:
        return self._files().get_file_info(self._path())

    def _list(self, *, recursive: bool) -> list[Any]:
        selector = pafs.FileSelector(self._path(), recursive=recursive, allow_not_found=True)
        return sorted(self._files().get_file_info(selector), key=lambda info: str(info.path))

    def _files(self) -> pafs.FileSystem:
        return _connection(_root(self.uri))

    def _path(self) -> str:
        return self.uri.partition("://")[2] if is_remote(self.uri) else self.uri


def is_remote(text: str) -> bool:
    """Whether an address names an object store."""
    return "://" in text


def _root(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if rest else ""


@cache
def _connection(root: str) -> pafs.FileSystem:
    """One connection to a bucket in a process: looking up its region and credentials takes requests of its own."""
    return pafs.FileSystem.from_uri(root)[0] if root else pafs.LocalFileSystem()
