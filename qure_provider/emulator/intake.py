"""Taking in an upload: a multipart body of either dialect, streamed to files."""

from __future__ import annotations

import email.message
import email.utils
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_DIALECTS = frozenset({"multipart/form-data", "multipart/related"})


@dataclass(slots=True)
class Part:
    """One part of an upload, in a file.

    Attributes:
        path: Where its bytes lie.
        number: Its number over all uploads.
        headers: Its headers, names in lower case.
        size: Bytes.
        sha256: Of them.
    """

    path: Path
    number: int
    headers: dict[str, str] = field(default_factory=dict)
    size: int = 0
    sha256: str = ""

    @property
    def key(self) -> str:
        """The form field's name; ``fileN`` where the part names none."""
        return self._parameter("name") or f"file{self.number}"

    @property
    def file_name(self) -> str | None:
        """The part's file name."""
        return self._parameter("filename")

    def _parameter(self, name: str) -> str | None:
        message = email.message.Message()
        message["Content-Disposition"] = self.headers.get("content-disposition", "")
        value = message.get_param(name, header="content-disposition")
        return None if value is None else email.utils.collapse_rfc2231_value(value)


def media_type(content_type: str) -> tuple[str, str]:
    """Split a Content-Type.

    Args:
        content_type: The header's value.

    Returns:
        The media type in lower case, and its boundary (empty if none).
    """
    message = email.message.Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    return content_type.partition(";")[0].strip().lower(), boundary if isinstance(boundary, str) else ""


class Intake:
    """One upload's body on its way to disk. Memory does not grow with it.

    Args:
        content_type: The request's Content-Type.
        place: Gives the number and the path for the next file.
    """

    def __init__(self, content_type: str, place: Callable[[], tuple[int, Path]]) -> None:
        self.dialect, boundary = media_type(content_type)
        self.parts: list[Part] = []
        self._place = place
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._name = self._value = b""
        self._whole = False
        self._parser: MultipartParser | None = None
        if self.dialect in _DIALECTS and boundary:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_end": self._finish,
                },
            )

    @property
    def understood(self) -> bool:
        """Whether the body was a whole multipart one of a known dialect."""
        return self._whole

    def write(self, data: bytes) -> None:
        """Take the next bytes of the body.

        Args:
            data: The bytes.
        """
        if self._parser is None:
            return
        try:
            self._parser.write(data)
        except FormParserError:
            self._parser = None

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Throw away everything taken in."""
        self.close()
        for part in self.parts:
            part.path.unlink(missing_ok=True)
        self.parts.clear()

    def _begin(self) -> None:
        number, path = self._place()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.parts.append(Part(path, number))

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self.parts[-1].headers[self._name.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        piece = memoryview(data)[start:end]
        if self._file is not None:
            self._file.write(piece)
        self._digest.update(piece)
        self.parts[-1].size += len(piece)

    def _end(self) -> None:
        self.close()
        self.parts[-1].sha256 = self._digest.hexdigest()

    def _finish(self) -> None:
        self._whole = True
