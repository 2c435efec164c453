"""One file on its way out: what of it is sent, and from where."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from qure_provider.dicom.export import modified_seconds


class Openable(Protocol):
    """A file by more than its name, an ``ObjectStoragePath`` say."""

    @property
    def fs(self) -> Any:
        """The fsspec file system."""

    @property
    def path(self) -> str:
        """The path in it."""

    def open(self, mode: str) -> IO[Any]:
        """Open it for reading."""


class ChangedError(Exception):
    """A file is not the one any more that was looked at."""


@dataclass(frozen=True, slots=True)
class FileVersion:
    """What tells a file from another that took its place.

    Attributes:
        size: In bytes.
        modified: Modification time, seconds since the epoch; 0 where an object store does not tell.
    """

    size: int
    modified: float


class HeaderSpool:
    """Keeps headers on local disk until they are sent, so that memory does not grow with their number.

    Use it in a ``with`` block, which outlasts the upload; the file has no name and is gone afterwards. The latest ones
    are written down together, and most are sent before that. One thread keeps headers; any may read them.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._latest: tuple[int, bytearray] = (0, bytearray())  # replaced at once, for those who read meanwhile

    def __enter__(self) -> HeaderSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def keep(self, header: bytes) -> SpooledHeader:
        """Keep a header.

        Raises:
            OSError: If there is no room for it on disk.
        """
        start, latest = self._latest
        if latest and len(latest) + len(header) > _LATEST:
            if os.pwrite(self._file.fileno(), latest, start) != len(latest):
                raise OSError(errno.ENOSPC, "no room for de-identified headers in the temporary folder")
            start, latest = self._latest = start + len(latest), bytearray()
        kept = SpooledHeader(self, start + len(latest), len(header))
        latest += header
        return kept

    def read(self, start: int, length: int) -> bytes:
        """Read what was kept, by its place."""
        on_disk, latest = self._latest
        if start < on_disk:
            return os.pread(self._file.fileno(), length, start)
        return bytes(latest[start - on_disk : start - on_disk + length])


_LATEST = 1024 * 1024
"""Bytes of headers that are in memory at most."""


@dataclass(frozen=True, slots=True)
class SpooledHeader:
    """A header that is on disk, or about to be.

    Attributes:
        spool: What keeps it.
        start: Where it begins there.
        length: In bytes.
    """

    spool: HeaderSpool
    start: int
    length: int

    def __len__(self) -> int:
        """Return its length in bytes."""
        return self.length

    def __bytes__(self) -> bytes:
        """Read it."""
        return self.spool.read(self.start, self.length)


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """What is sent for one instance: ``header`` and ``file[offset:]``, of that as much as ``size`` says.

    An instance that goes out as it is has no header. Where its identity is replaced, the header is the new one and the
    offset is where the pixels begin, which are streamed untouched; what the file has after them stays here.

    Attributes:
        sop_instance_uid: SOPInstanceUID as it stands in what is sent.
        series_instance_uid: SeriesInstanceUID as it stands in what is sent.
        path: A local path, or anything with ``open("rb")``.
        size: Bytes that are sent, the header's included.
        header: What goes before the file's own bytes.
        offset: How many of the file's first bytes are left out.
        version: The file as it was when it was decided whose it is; None where nobody looked.
    """

    sop_instance_uid: str = field(repr=False)
    series_instance_uid: str = field(repr=False)
    path: str | Path | Openable = field(repr=False)
    size: int
    header: bytes | SpooledHeader = field(default=b"", repr=False)
    offset: int = 0
    version: FileVersion | None = field(default=None, repr=False)

    def __hash__(self) -> int:
        """Files are told apart by their instance as a rule, and put into many dictionaries."""
        return hash(self.sop_instance_uid)

    def open(self) -> Any:
        """Open the file where its own bytes begin.

        Returns:
            A binary file, unbuffered where it is local.

        Raises:
            OSError: If it cannot be opened.
            ChangedError: If it is another file, or another version of it, than the one that was looked at.
        """
        if isinstance(self.path, str | Path):
            file: Any = _opened(self.path)
        else:
            file = self.path.open("rb")
        try:
            self.check_unchanged(file)
            if self.offset:
                file.seek(self.offset)
        except BaseException:
            file.close()
            raise
        return file

    def check_unchanged(self, file: Any) -> None:
        """Compare an opened file with the one that was looked at.

        A local file is asked through its own descriptor, so nothing can be put in its place in between. Of object
        storage, what the store lists at this moment is compared.

        Args:
            file: What ``open`` gave.

        Raises:
            ChangedError: If it is another.
        """
        if self.version is None:
            return
        if isinstance(self.path, str | Path):
            status = os.fstat(file.fileno())
            found = FileVersion(status.st_size, status.st_mtime)
        else:
            self.path.fs.invalidate_cache(self.path.path)
            listed = self.path.fs.info(self.path.path)
            found = FileVersion(int(listed.get("size") or 0), modified_seconds(listed))
        if found != self.version:
            raise ChangedError


def _opened(path: str | Path) -> io.FileIO:
    descriptor = os.open(path, _FOLLOW_NO_LINK)
    try:
        return io.FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


_FOLLOW_NO_LINK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
"""A scan passes over links; one that took a file's place since must not lead out of the export."""
