"""Whether an export is complete. DICOM has no "study complete": it is a judgement, and recorded as one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qure_provider.store import AnyPath


class Completeness(StrEnum):
    """By what an export was judged complete."""

    MARKER = "the marker file is there"
    COUNT = "the expected number of files is there"
    QUIET = "nothing was added for the quiet time"
    LIMIT = "taken as it was at the limit"
    MISSING = "the folder was not there at the limit"
    NOT_YET = "not yet"


def judge(export: str, *, quiet_seconds: float, marker: str, expected_files: int, limit: float) -> Completeness:
    """Look at an export folder once.

    Args:
        export: The folder: a path or a URL that ``ObjectStoragePath`` understands.
        quiet_seconds: Complete when nothing was added or changed for so long; only where neither of the next two is
            given.
        marker: Complete when a file of this name lies in the folder; empty for none.
        expected_files: Complete when so many files are there, the marker not counted; 0 for no expectation.
        limit: When it is taken as it is, seconds since the epoch.

    Returns:
        The judgement.
    """
    from qure_provider.store import open_path

    folder = open_path(export)
    is_late = time.time() >= limit
    if not folder.is_dir():
        return Completeness.MISSING if is_late else Completeness.NOT_YET
    if marker and (folder / marker).exists():
        return Completeness.MARKER
    count, newest = _count_and_newest(folder)
    if expected_files and count >= expected_files:
        return Completeness.COUNT
    has_other_sign = bool(marker or expected_files)
    if not has_other_sign and count and time.time() - newest >= quiet_seconds:
        return Completeness.QUIET
    return Completeness.LIMIT if is_late else Completeness.NOT_YET


def _count_and_newest(folder: AnyPath) -> tuple[int, float]:
    count, newest = 0, 0.0
    for modified in _local_times(folder) if isinstance(folder, Path) else _remote_times(folder):
        count += 1
        newest = max(newest, modified)
    return count, newest


def _local_times(folder: Path) -> Iterator[float]:
    """Yield when each file was changed, or came; what is renamed or removed while we look was changed now.

    A copy may give files their old times. When it did so is not its to choose.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _local_times(Path(entry.path))
                else:
                    status = entry.stat(follow_symlinks=False)
                    yield max(status.st_mtime, status.st_ctime)
    except FileNotFoundError:
        yield time.time()


def _remote_times(folder: AnyPath) -> Iterator[float]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.stat().st_mtime
