"""One file on its way out: what of it is sent, and from where."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol


class Openable(Protocol):
    """A file by more than its name, an ``ObjectStoragePath`` say."""

    def open(self, mode: str) -> IO[Any]:
        """Open it for reading."""


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """What is sent for one instance: ``header + file[offset:]``.

    An instance that goes out as it is has no header. Where its identity is replaced, the header is the new one and the
    offset is where the pixels begin, which are streamed untouched.

    Attributes:
        sop_instance_uid: SOPInstanceUID as it stands in what is sent.
        series_instance_uid: SeriesInstanceUID as it stands in what is sent.
        path: A local path, or anything with ``open("rb")``.
        size: Bytes that are sent, the header's included.
        header: What goes before the file's own bytes.
        offset: How many of the file's first bytes are left out.
    """

    sop_instance_uid: str = field(repr=False)
    series_instance_uid: str = field(repr=False)
    path: str | Path | Openable = field(repr=False)
    size: int
    header: bytes = field(default=b"", repr=False)
    offset: int = 0

    def open(self) -> Any:
        """Open the file where its own bytes begin.

        Returns:
            A binary file, unbuffered where it is local.

        Raises:
            OSError: If it cannot be opened.
        """
        if isinstance(self.path, str | Path):
            file: Any = open(self.path, "rb", buffering=0)  # noqa: PTH123, SIM115
        else:
            file = self.path.open("rb")
        if self.offset:
            file.seek(self.offset)
        return file
