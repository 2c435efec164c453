"""Where an export lies: listing its files and reading parts of them, on a local disk or in an object store."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from qure_provider.dicom.model import Fate, PassedOver
from qure_provider.dicom.reader import Source, UnfitError
from qure_provider.dicom.reasons import Duplicate, Quarantine

_LOCAL = frozenset({"", "file", "local"})
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class TooManyFilesError(ValueError):
    """An export of more files than the limit. Nothing of it is read."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the export holds more than {limit} files: name a smaller folder, or raise [qure] max_files where it "
            "is so large"
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in an export.

    Attributes:
        files: Regular files, relative to the root, in order.
        passed_over: What is none: links, folders that cannot be listed, pipes and the like; one row each.
    """

    files: tuple[str, ...]
    passed_over: tuple[PassedOver, ...]


class ExportFile(Source, Protocol):
    """An opened file of an export.

    Attributes:
        modified: Modification time, seconds since the epoch; 0 where the store does not tell.
    """

    modified: float


class Export(Protocol):
    """A folder of files, wherever it is."""

    def list_all(self, limit: int) -> Listing:
        """Lists everything below the root; links are not followed.

        Raises:
            TooManyFilesError: If there is more than ``limit``.
            OSError: If the root itself cannot be listed.
        """
        ...

    def list_these(self, paths: Iterable[str]) -> Listing:
        """Lists the named files only; a link that stays inside stands for the file it leads to."""
        ...

    def open(self, path: str) -> AbstractContextManager[ExportFile]:
        """Opens one of the listed files.

        Raises:
            UnfitError: If this file cannot be read.
            OSError: If nothing can (no more file handles, the store does not answer).
        """
        ...


class RemotePath(Protocol):
    """What an ``ObjectStoragePath`` or ``UPath`` says of itself."""

    @property
    def fs(self) -> Any:
        """The fsspec file system."""

    @property
    def path(self) -> str:
        """The path in it."""

    @property
    def protocol(self) -> str:
        """Its name, ``s3`` for one."""


def export_at(root: Path | RemotePath) -> Export:
    """Gives the export below a folder.

    Args:
        root: A local path, or a path of any fsspec file system (``ObjectStoragePath``, ``UPath``).

    Returns:
        The export; nothing is read yet.
    """
    if isinstance(root, Path):
        return LocalExport(root)
    if root.protocol in _LOCAL:
        return LocalExport(Path(root.path))
    return RemoteExport(root.fs, root.path)


class LocalExport:
    """A folder on a local disk.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)

    def list_all(self, limit: int) -> Listing:
        """Lists with :func:`os.scandir`, which knows a file's kind without asking for it."""
        files: list[str] = []
        rows: list[PassedOver] = []
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self._at(folder)) as entries:
                    for entry in entries:
                        path = folder + entry.name
                        if entry.is_symlink():
                            rows.append(self._link(path))
                        elif entry.is_dir(follow_symlinks=False):
                            folders.append(path + "/")
                        elif entry.is_file(follow_symlinks=False):
                            files.append(path)
                        else:
                            rows.append(PassedOver(path, Fate.QUARANTINED, Quarantine.NOT_A_FILE.value))
                        if len(files) + len(rows) > limit:
                            raise TooManyFilesError(limit)
            except OSError as error:
                if not folder:
                    raise
                quarantine_for(error)
                rows.append(PassedOver(folder, Fate.QUARANTINED, Quarantine.FOLDER.value))
        return Listing(tuple(sorted(files)), tuple(rows))

    def list_these(self, paths: Iterable[str]) -> Listing:
        """Takes absolute paths below the root too."""
        files: set[str] = set()
        rows: dict[str, PassedOver] = {}
        for path in paths:
            named = os.path.normpath(path if path.startswith("/") else self._at(path))
            real = "" if "\0" in path else os.path.realpath(named)
            if self._is_inside(real):
                files.add(os.path.relpath(real, self._root))
            else:
                reason = Quarantine.LINK_OUT if self._is_inside(named) else Quarantine.OUTSIDE
                rows[path] = PassedOver(path, Fate.QUARANTINED, reason.value)
        return Listing(tuple(sorted(files)), tuple(rows.values()))

    def open(self, path: str) -> LocalFile:
        """Opens without following a link and without waiting for the other end of a pipe."""
        try:
            return LocalFile(self._at(path))
        except OSError as error:
            raise UnfitError(quarantine_for(error)) from None

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _is_inside(self, path: str) -> bool:
        return path.startswith(self._root.rstrip("/") + "/")

    def _link(self, path: str) -> PassedOver:
        target = os.path.realpath(self._at(path))
        if not self._is_inside(target) and target != self._root:
            return PassedOver(path, Fate.QUARANTINED, Quarantine.LINK_OUT.value)
        if not Path(target).exists():  # a link in a circle, too
            return PassedOver(path, Fate.QUARANTINED, Quarantine.LINK_BROKEN.value)
        return PassedOver(path, Fate.DUPLICATE, Duplicate.LINK.value)


class LocalFile:
    """An open file of a local disk; a context manager that closes it.

    Args:
        path: Its absolute path.

    Raises:
        UnfitError: If it is no regular file.
        OSError: If it cannot be opened.
    """

    __slots__ = ("_descriptor", "modified", "page", "size")

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise UnfitError(Quarantine.NOT_A_FILE)
        self.size = status.st_size
        self.modified = status.st_mtime
        self.page = 16 * 1024

    def read(self, offset: int, length: int) -> bytes:
        """Gives up to ``length`` bytes from ``offset``; fewer only where the file ends."""
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise UnfitError(quarantine_for(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


class RemoteExport:
    """A folder of an fsspec file system.

    Args:
        fs: The file system.
        root: The folder in it.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = fs._strip_protocol(root).rstrip("/")
        self._found: dict[str, dict[str, Any]] = {}

    def list_all(self, limit: int) -> Listing:
        """Lists in as few requests as the store needs for it; they give size and time, too."""
        self._fs.invalidate_cache(self._root)
        found = self._fs.find(self._root, detail=True)
        files = {
            name[len(self._root) + 1 :]: info
            for name, info in found.items()
            if info.get("type") == "file" and not name.endswith("/") and name != self._root
        }
        if not files and not self._fs.isdir(self._root):
            raise FileNotFoundError(errno.ENOENT, "no such folder in the store", self._root)
        if len(files) > limit:
            raise TooManyFilesError(limit)
        self._found = files
        return Listing(tuple(sorted(files)), ())

    def list_these(self, paths: Iterable[str]) -> Listing:
        """Asks for each of them when it is opened."""
        files: set[str] = set()
        rows: dict[str, PassedOver] = {}
        for path in paths:
            if ".." in path.split("/") or path.startswith("/"):
                rows[path] = PassedOver(path, Fate.QUARANTINED, Quarantine.OUTSIDE.value)
            else:
                files.add(path)
        return Listing(tuple(sorted(files)), tuple(rows.values()))

    def open(self, path: str) -> RemoteFile:
        """Asks for the file's size where the listing did not tell."""
        name = f"{self._root}/{path}"
        try:
            return RemoteFile(self._fs, name, self._found.get(path) or self._fs.info(name))
        except OSError as error:
            raise UnfitError(quarantine_for(error)) from None


class RemoteFile:
    """A file of an object store, read in ranges.

    Args:
        fs: The file system.
        name: Its full path there.
        info: What a listing says of it.
    """

    __slots__ = ("_fs", "_name", "modified", "page", "size")

    def __init__(self, fs: Any, name: str, info: dict[str, Any]) -> None:
        if info.get("type") != "file":
            raise UnfitError(Quarantine.NOT_A_FILE)
        self._fs = fs
        self._name = name
        self.size = int(info.get("size") or 0)
        self.modified = modified_seconds(info)
        self.page = 128 * 1024

    def read(self, offset: int, length: int) -> bytes:
        """Gives up to ``length`` bytes from ``offset``; fewer only where the file ends."""
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        try:
            return bytes(self._fs.cat_file(self._name, start=offset, end=end))
        except OSError as error:
            raise UnfitError(quarantine_for(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open."""


def quarantine_for(error: OSError) -> Quarantine:
    """Says what is wrong with the one file that an error is about.

    Args:
        error: What opening or reading it raised.

    Returns:
        The reason to quarantine it.

    Raises:
        OSError: The same one, if it is not about this file: our own limits, or a store that does not answer. The scan
            is to be tried again then; else a whole night would be quarantined for it.
    """
    if error.errno in _OURS or isinstance(error, (ConnectionError, TimeoutError)):
        raise error
    if isinstance(error, FileNotFoundError):
        return Quarantine.VANISHED
    if isinstance(error, PermissionError):
        return Quarantine.PERMISSION
    if error.errno in (errno.ELOOP, errno.ENXIO):
        return Quarantine.NOT_A_FILE
    return Quarantine.UNREADABLE


def modified_seconds(info: Mapping[str, Any]) -> float:
    """Gives a listing's modification time: each store has its own word and form for it.

    Args:
        info: What an fsspec file system lists of a file.

    Returns:
        Seconds since the epoch; 0 where the store does not tell.
    """
    value = next((info[name] for name in _TIMES if info.get(name)), 0.0)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return 0.0
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, (int, float)) else 0.0
