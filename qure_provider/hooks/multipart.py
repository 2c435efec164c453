"""The body of an upload or of a STOW-RS request: its files as a stream of known length."""

from __future__ import annotations

import errno
import io
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

from qure_provider.api.errors import QureError, QureRejectedError, QureTransientError
from qure_provider.hooks.connection import UploadDialect
from qure_provider.hooks.outgoing import ChangedError, OutgoingFile

BLOCK = 1024 * 1024
"""Bytes that are read and sent at a time."""

_CONTENT_TYPES = {
    UploadDialect.FORM_DATA: "multipart/form-data; boundary={}",
    UploadDialect.RELATED: "multipart/related; type=application/dicom; boundary={}",
}
_BOUNDARY_LENGTH = 32
_LARGEST_INDEX = 9_999_999
_END_OF_PART = b"\r\n"


class OutgoingFileError(Exception):
    """One file of a request cannot be sent; the others can.

    Args:
        file: Which.
        error: Why, to be reported for it.
    """

    def __init__(self, file: OutgoingFile, error: QureError) -> None:
        super().__init__(str(error))
        self.file = file
        self.error = error


def form_key(index: int) -> str:
    """Name the form field of a file: its place in the request, nothing of the patient's or the export's.

    Args:
        index: Its place, from 0.

    Returns:
        ``file0`` and so on (OpenAPI, upload).
    """
    return f"file{index}"


def file_name(index: int) -> str:
    """Name a file: its place in the request, nothing of the patient's or the export's.

    Args:
        index: Its place, from 0.

    Returns:
        ``file0.dcm`` and so on.
    """
    return f"{form_key(index)}.dcm"


def part_size(file: OutgoingFile) -> int:
    """Tell how much of a request a file takes at most.

    Args:
        file: Any file.

    Returns:
        Bytes on the wire, the part's headers and closing included, wherever in the request it stands.
    """
    return _largest_framing() + file.size


CLOSING_SIZE = _BOUNDARY_LENGTH + 6
"""Bytes of a request that belong to no file."""


class PartsBody:
    """A multipart body, with its exact length and in blocks of 1 MiB.

    Files are read one after the other, one open at a time, small ones put together into one block. toolbelt's
    ``MultipartEncoder`` serves the same purpose, but holds every file of the request open and is about half as fast.

    It can be gone through again, from the start.

    Args:
        files: In their order.
        content_type: Of the body, with ``{}`` for the boundary.
        part_headers: Gives the header lines of a file's part and the empty one after them, by its place.
        before_block: Called before each block is handed out; what it raises breaks the body off.
    """

    def __init__(
        self,
        files: Sequence[OutgoingFile],
        content_type: str,
        part_headers: Callable[[int], bytes],
        before_block: Callable[[], None] = lambda: None,
    ) -> None:
        self._files = files
        self._part_headers = part_headers
        self._before_block = before_block
        boundary = uuid.uuid4().hex
        self._opening = f"--{boundary}\r\n".encode()
        self._closing = f"--{boundary}--\r\n".encode()
        self.content_type = content_type.format(boundary)
        self._length = sum(len(self._opening) + len(part_headers(index)) for index in range(len(files)))
        self._length += sum(file.size + len(_END_OF_PART) for file in files) + len(self._closing)
        self.sent = 0
        """Bytes handed out so far."""

    def __len__(self) -> int:
        """Return the exact number of bytes of the body."""
        return self._length

    def __iter__(self) -> Iterator[memoryview]:
        """Go through the body.

        Yields:
            Blocks of at most 1 MiB. They share their memory: each is good until the next one is asked for.

        Raises:
            OutgoingFileError: A file is gone, unreadable, or not the one any more that was listed. The body ends there,
                short of its length, so that no server can take it for whole.
        """
        block = memoryview(bytearray(BLOCK))
        filled = 0
        for piece in self._pieces():
            if isinstance(piece, bytes) and len(piece) < BLOCK - filled:
                block[filled : filled + len(piece)] = piece
                filled += len(piece)
                continue
            source = io.BytesIO(piece) if isinstance(piece, bytes) else piece
            while count := source.readinto(block[filled:]):
                filled += count
                if filled == BLOCK:
                    yield self._handed_out(block)
                    filled = 0
        yield self._handed_out(block[:filled])

    def _handed_out(self, block: memoryview) -> memoryview:
        self._before_block()
        self.sent += len(block)
        return block

    def _pieces(self) -> Iterator[bytes | _Measured]:
        end = b""
        for index, file in enumerate(self._files):
            yield end + self._opening + self._part_headers(index) + bytes(file.header)
            with _opened(file) as source:
                yield _Measured(file, source)
            end = _END_OF_PART
        yield end + self._closing


class MultipartBody(PartsBody):
    """The body of an upload, in both of the service's dialects.

    Args:
        files: In the order of their form keys.
        dialect: How they are wrapped. Both wrap the same parts, as the vendor's samples do.
        before_block: Called before each block is handed out; what it raises breaks the body off.
    """

    def __init__(
        self,
        files: Sequence[OutgoingFile],
        dialect: UploadDialect,
        before_block: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(files, _CONTENT_TYPES[dialect], _form_headers, before_block)


@lru_cache(maxsize=16_384)
def _form_headers(index: int) -> bytes:
    return (
        f'Content-Disposition: form-data; name="{form_key(index)}"; filename="{file_name(index)}"\r\n'
        "Content-Type: application/dicom\r\n\r\n"
    ).encode()


@cache
def _largest_framing() -> int:
    return _BOUNDARY_LENGTH + 4 + len(_form_headers(_LARGEST_INDEX)) + len(_END_OF_PART)


def _opened(file: OutgoingFile) -> Any:
    try:
        return file.open()
    except OSError as error:
        raise _unreadable(file, error) from None
    except ChangedError:
        raise _changed(file) from None


class _Measured:
    """Reads one file and holds it to the length that it was listed with.

    Of a file whose version is known no more is read than that: what it has beyond is left out on purpose.
    """

    def __init__(self, file: OutgoingFile, source: Any) -> None:
        self._file = file
        self._source = source
        self._left = file.size - len(file.header)
        self._is_at_end = file.version is not None and not self._left

    def readinto(self, view: memoryview) -> int:
        if self._is_at_end:
            if isinstance(self._source, io.FileIO):
                self._check_unchanged()
            return 0
        if self._file.version is not None:
            view = view[: self._left]
        try:
            count: int = self._source.readinto(view) or 0
        except OSError as error:
            raise _unreadable(self._file, error) from None
        self._left -= count
        if self._left < 0 or (self._left and not count):
            raise _changed(self._file)
        # A read that could have brought more, and did not, has seen the end of a local file.
        is_local = isinstance(self._source, io.FileIO)
        self._is_at_end = not self._left and (self._file.version is not None or (is_local and count < len(view)))
        return count

    def _check_unchanged(self) -> None:
        try:
            self._file.check_unchanged(self._source)
        except OSError as error:
            raise _unreadable(self._file, error) from None
        except ChangedError:
            raise _changed(self._file) from None


def _changed(file: OutgoingFile) -> OutgoingFileError:
    problem = "A file changed since it was planned, so it was not sent: run the plan again"
    return OutgoingFileError(file, QureRejectedError(f"{problem}."))


def _unreadable(file: OutgoingFile, error: OSError) -> OutgoingFileError:
    if isinstance(error, FileNotFoundError):
        return OutgoingFileError(file, QureRejectedError("A file is gone since it was listed, so it was not sent."))
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return OutgoingFileError(file, QureTransientError(f"A file could not be read ({name}), so it was not sent."))
