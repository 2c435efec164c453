"""The nights that a store keeps, read for somebody who names them in an address.

What an address says is never made into a path beyond the names of a night and of a run. A file is found by what the
run's summary and the resource's ``result.json`` say of it, so nothing else in the store can be asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qure_provider import settings
from qure_provider.hooks.media import Media
from qure_provider.reports.result import Result, ResultFormatError
from qure_provider.reports.summary import Summary, SummaryFormatError, SummaryRow
from qure_provider.store import AnyPath, Store

_NAME = re.compile(r"(?!\.+\Z)[A-Za-z0-9._-]{1,255}")
_RESULT_FILES = ("result.json", "answer.json")
PASSED_OVER = "passed_over.jsonl"


class NotKeptError(Exception):
    """The store keeps no such thing; the message says what a reader may do."""


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file that may be shown.

    Attributes:
        path: Where it lies.
        media: What its content is.
        name: What to call it outside the store; it names study and resource by their pseudonyms.
    """

    path: AnyPath
    media: Media
    name: str


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A run whose summary is written.

    Attributes:
        folder: Its folder, relative to the store's root.
        summary: What it says.
    """

    folder: str
    summary: Summary

    def row(self, resource: str) -> SummaryRow:
        """Return a resource by its pseudonym.

        Raises:
            NotKeptError: If the run names none so, or more than one.
        """
        rows = [row for row in self.summary.rows if row.resource == resource and row.folder]
        if len(rows) != 1:
            raise NotKeptError("This night has no such result.")
        return rows[0]


class Archive:
    """A store, for readers.

    Args:
        root: The store's root; None for ``[qure] store_root``.
    """

    def __init__(self, root: str | None = None) -> None:
        self._store = Store(root or settings.store_root())

    def run(self, night: str, name: str) -> KeptRun:
        """Return a run.

        Args:
            night: The night's name.
            name: The name of the run's folder.

        Raises:
            NotKeptError: If no summary of it is there, or none that this version reads.
        """
        folder = f"runs/{night}/{name}"
        path = self._path(folder, "summary.json") if _NAME.fullmatch(night) and _NAME.fullmatch(name) else None
        if path is None:
            raise NotKeptError("The store keeps no summary of this run. Its summarize task writes one.")
        try:
            return KeptRun(folder, _parse(path.read_bytes()))
        except SummaryFormatError:
            raise NotKeptError(
                "The summary of this run is of another version of the provider, or damaged. Open index.html in its "
                "folder in the store."
            ) from None

    def nights(self, before: str = "") -> Iterator[str]:
        """Yield the names of the nights, the newest first.

        Args:
            before: The name that they must sort before; empty for all.
        """
        for name in sorted(self._names("runs"), reverse=True):
            if not before or name < before:
                yield name

    def runs(self, night: str) -> Iterator[str]:
        """Yield the names of a night's runs, in order."""
        yield from sorted(self._names(f"runs/{night}"))

    def passed_over(self, run: KeptRun) -> KeptFile:
        """Return the list of the files that a run did not send.

        Raises:
            NotKeptError: If it is not there.
        """
        path = self._path(run.folder, PASSED_OVER)
        if path is None:
            raise NotKeptError("The store keeps no such file.")
        return KeptFile(path, Media.UNKNOWN, PASSED_OVER)

    def result(self, row: SummaryRow) -> Result:
        """Return what a resource's ``result.json`` says.

        Raises:
            NotKeptError: If it is not there, or none that this version reads.
        """
        path = self._path(row.folder, "result.json")
        if path is None:
            raise NotKeptError("The store does not keep this result any more.")
        try:
            return Result.from_json(json.loads(path.read_bytes()))
        except (ResultFormatError, ValueError):
            raise NotKeptError(
                "This result is of another version of the provider, or damaged. Its files are in the store."
            ) from None

    def file(self, row: SummaryRow, name: str) -> KeptFile:
        """Return a file of a resource.

        Args:
            row: The resource.
            name: The file's name.

        Raises:
            NotKeptError: If the result does not name it, or it is not there.
        """
        medias = {asset.name: Media(asset.media) for asset in self.result(row).assets}
        media = medias.get(name, Media.JSON if name in _RESULT_FILES else None)
        path = self._path(row.folder, name) if media else None
        if media is None or path is None:
            raise NotKeptError("This result has no such file.")
        return KeptFile(path, media, f"{row.study}-{row.resource}-{name}")

    def _names(self, folder: str) -> list[str]:
        path = self._store.path(folder)
        if not path.is_dir():
            return []
        return [entry.name for entry in path.iterdir() if _NAME.fullmatch(entry.name)]

    def _path(self, folder: str, name: str) -> AnyPath | None:
        """Return a file's path if it is there, and there in truth: no link leads out of the store."""
        path = self._store.path(f"{folder}/{name}")
        root = self._store.root
        if isinstance(path, Path) and isinstance(root, Path) and not path.resolve().is_relative_to(root.resolve()):
            return None
        return path if path.is_file() else None


@lru_cache(maxsize=8)
def _parse(content: bytes) -> Summary:
    """Read a summary; a page asks for it once for each of its pictures."""
    try:
        return Summary.from_json(json.loads(content))
    except ValueError as error:
        raise SummaryFormatError("The summary is damaged.") from error
