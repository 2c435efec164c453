"""The header of one DICOM file, without its pixels, and whether the file is whole.

Reading twenty thousand headers is most of the work of a scan, and most elements of a header are of no interest here. So
elements are stepped over, and only the values asked for are kept, as bytes; a page of the file is read at a time, and a
large value is skipped unread. A header that is unusual in any way is left to pydicom.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Protocol

from pydicom import uid
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from qure_provider.dicom.reasons import Quarantine

PIXEL_DATA = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
TRANSFER_SYNTAX = 0x00020010
MEDIA_STORAGE_CLASS = 0x00020002
MEDIA_STORAGE_INSTANCE = 0x00020003

_META = frozenset({TRANSFER_SYNTAX, MEDIA_STORAGE_CLASS, MEDIA_STORAGE_INSTANCE})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_ROWS, _COLUMNS, _BITS, _SAMPLES, _FRAMES, _PHOTOMETRIC = (
    *(0x00280010, 0x00280011, 0x00280100, 0x00280002),
    *(0x00280008, 0x00280004),
)
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_NATIVE = frozenset(
    {
        *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian),
        *(uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian),
    }
)
_SEQUENCE_END_BYTES = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
_ITEM_HEADER = struct.Struct("<HHL").unpack
_LONG_VRS = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
_SHORT_VRS = (
    *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO"),
    *("LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"),
)
_VALUE_LIMIT = 64 * 1024
_DEPTH_LIMIT = 64
_CHUNK = 1024 * 1024
_INFLATED_LIMIT = 1024 * 1024 * 1024


class UnfitError(Exception):
    """A file that is quarantined.

    Args:
        reason: Why.
    """

    def __init__(self, reason: Quarantine) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Source(Protocol):
    """An opened file.

    Attributes:
        size: Its length in bytes.
        page: How many bytes to read at a time.
    """

    size: int
    page: int

    def read(self, offset: int, length: int) -> bytes:
        """Gives up to ``length`` bytes from ``offset``; fewer only where the file ends."""
        ...


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says of itself.

    Attributes:
        transfer_syntax_uid: TransferSyntaxUID of the file header.
        media_storage_class_uid: MediaStorageSOPClassUID of the file header.
        media_storage_instance_uid: MediaStorageSOPInstanceUID of the file header.
        values: The elements asked for that are there, as their bytes.
        big_endian: How numbers in them are written.
        has_pixels: Whether there is pixel data of any length.
        whole: Whether the file has all bytes that its elements announce.
    """

    transfer_syntax_uid: str
    media_storage_class_uid: str
    media_storage_instance_uid: str
    values: dict[int, bytes]
    big_endian: bool
    has_pixels: bool
    whole: bool

    def plain(self, tag: int) -> str:
        """An element of a VR without character set (UI, CS, DA, DS, ...), padding stripped; empty where absent."""
        return plain(self.values.get(tag, b""))

    def number(self, tag: int) -> int | None:
        """An element of VR US; None where absent or broken."""
        value = self.values.get(tag, b"")
        return int.from_bytes(value, "big" if self.big_endian else "little") if len(value) == 2 else None


def plain(value: bytes) -> str:
    """Text of a VR without character set, without its padding."""
    return value.decode("latin-1").strip(" \0")


def read_header(source: Source, wanted: Collection[int], *, limit: int) -> Header:
    """Reads the header of a file.

    Args:
        source: The file.
        wanted: Tags of the elements whose values are kept; those that describe the pixel data must be among them for
            its length to be checked against the image's dimensions.
        limit: Bytes of header that are read at most; values that are skipped do not count.

    Returns:
        What it says.

    Raises:
        UnfitError: If it is no DICOM file that can be sent, or cannot be parsed.
        OSError: If the source cannot be read.
    """
    if not source.size:
        raise UnfitError(Quarantine.EMPTY)
    window = _Window(source, limit)
    window.load(0)
    if window.data[128:132] != b"DICM":
        raise UnfitError(Quarantine.NO_FILE_HEADER if _is_bare_dataset(window.data) else Quarantine.NOT_DICOM)
    try:
        return _read(window, frozenset(wanted), limit)
    except _UnusualError:
        return _read_with_pydicom(source, frozenset(wanted), limit)


class _UnusualError(Exception):
    """Something that is left to pydicom."""


class _TruncatedError(Exception):
    """The file ends inside an element."""


class _Window:
    """The part of a file that is in memory.

    Attributes:
        data: Its bytes.
        base: Where in the file it begins.
        size: The file's length.
    """

    __slots__ = ("_left", "base", "data", "size", "source")

    def __init__(self, source: Source, limit: int) -> None:
        self.source = source
        self.size = source.size
        self.data = b""
        self.base = 0
        self._left = limit

    def load(self, position: int) -> None:
        """Moves the window to where the next element is."""
        self.data, self.base = self.read(position, self.source.page), position

    def read(self, position: int, length: int) -> bytes:
        """Reads elsewhere, at the cost of the same limit."""
        if self._left <= 0:
            raise UnfitError(Quarantine.HEADER_TOO_LARGE)
        data = self.source.read(position, length)
        if len(data) < min(length, self.size - position):
            raise UnfitError(Quarantine.UNREADABLE)
        self._left -= len(data)
        return data


class _Encoding:
    """How elements are written: explicit or implicit VR, little or big endian."""

    def __init__(self, *, explicit: bool, big_endian: bool = False) -> None:
        order = ">" if big_endian else "<"
        self.explicit = explicit
        self.big_endian = big_endian
        self.element = struct.Struct(f"{order}HHHH" if explicit else f"{order}HHL").unpack_from
        self.length = struct.Struct(f"{order}L").unpack_from
        number = struct.Struct(f"{order}H").unpack
        self.short = frozenset(number(vr.encode())[0] for vr in _SHORT_VRS)
        self.long = frozenset(number(vr.encode())[0] for vr in _LONG_VRS)
        self.unknown = number(b"UN")[0]


_IMPLICIT = _Encoding(explicit=False)
_EXPLICIT = _Encoding(explicit=True)
_BIG_ENDIAN = _Encoding(explicit=True, big_endian=True)
_ENCODINGS: Mapping[str, _Encoding] = {uid.ImplicitVRLittleEndian: _IMPLICIT, uid.ExplicitVRBigEndian: _BIG_ENDIAN}


@dataclass(frozen=True, slots=True)
class _Stop:
    """Where a walk ended.

    Attributes:
        tag: The element it ended at; 0 at the end of the file.
        position: Of that element's beginning.
        value: Of that element's value.
        length: Of that value; may be undefined.
    """

    tag: int
    position: int
    value: int = 0
    length: int = 0


def _walk(
    window: _Window, position: int, encoding: _Encoding, wanted: frozenset[int], values: dict[int, bytes], *, meta: bool
) -> _Stop:
    """Steps over the elements from ``position`` to the pixel data, or to the end of the file header.

    Raises:
        _TruncatedError: If the file ends inside an element; ``values`` has what came before.
        _UnusualError: If anything is not as the standard has it.
    """
    explicit, element, length_of = encoding.explicit, encoding.element, encoding.length
    short, long, unknown = encoding.short, encoding.long, encoding.unknown
    last = 0x0002FFFF if meta else 0x7FE00007
    size = window.size
    data, base = window.data, window.base
    end = len(data)
    position -= base
    open_parts: list[bool] = []  # of undefined length each: True for an item, False for a sequence
    vr = 0
    while True:
        if position + 12 > end and base + end < size:
            base += position
            if base > size:
                raise _TruncatedError
            window.load(base)
            data, position = window.data, 0
            end = len(data)
        if position + 8 > end:
            if position <= end and not open_parts:
                return _Stop(0, size)
            raise _TruncatedError
        if explicit:
            group, number, vr, length = element(data, position)
        else:
            group, number, length = element(data, position)
        tag = group << 16 | number
        value = position + 8
        if tag > last:
            if meta:
                return _Stop(tag, base + position)
            if group == 0xFFFE:
                length = length_of(data, position + 4)[0]
                position = value + _step(tag, length, open_parts)
                continue
        if explicit and vr not in short:
            if vr in long:
                if position + 12 > end:
                    raise _TruncatedError
                length = length_of(data, value)[0]
                value += 4
            elif meta:
                return _Stop(tag, base + position)
            else:
                raise _UnusualError
        if open_parts:
            if not open_parts[-1]:
                raise _UnusualError
        elif tag in PIXEL_DATA:
            return _Stop(tag, base + position, base + value, length)
        if length == _UNDEFINED:
            if vr == unknown:
                raise _UnusualError
            open_parts.append(False)
            position = value
            continue
        position = value + length
        if tag in wanted and not open_parts:
            if length > _VALUE_LIMIT:
                raise UnfitError(Quarantine.MALFORMED)
            if base + position > size:
                raise _TruncatedError
            content = data[value:position] if position <= end else window.read(base + value, length)
            if values.setdefault(tag, content) != content:
                raise UnfitError(Quarantine.MALFORMED)


def _step(tag: int, length: int, open_parts: list[bool]) -> int:
    """Enters or leaves an item or sequence, and says how many bytes of it to step over."""
    in_item = bool(open_parts) and open_parts[-1]
    if not open_parts or in_item is (tag != _ITEM_END) or len(open_parts) > _DEPTH_LIMIT:
        raise _UnusualError
    if tag == _ITEM:
        if length != _UNDEFINED:
            return length
        open_parts.append(True)
    elif tag in (_ITEM_END, _SEQUENCE_END):
        open_parts.pop()
    else:
        raise _UnusualError
    return 0


def _read(window: _Window, wanted: frozenset[int], limit: int) -> Header:
    meta: dict[int, bytes] = {}
    values: dict[int, bytes] = {}
    try:
        start = _walk(window, 132, _EXPLICIT, _META, meta, meta=True).position
    except _TruncatedError:
        raise UnfitError(Quarantine.TRUNCATED) from None
    syntax = plain(meta.get(TRANSFER_SYNTAX, b""))
    if not syntax:
        raise _UnusualError
    sop_class, sop_instance = plain(meta.get(MEDIA_STORAGE_CLASS, b"")), plain(meta.get(MEDIA_STORAGE_INSTANCE, b""))
    if sop_class == uid.MediaStorageDirectoryStorage:
        return Header(syntax, sop_class, sop_instance, {}, big_endian=False, has_pixels=False, whole=True)
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        window, start = _inflate(window, start, limit), 0
    encoding = _ENCODINGS.get(syntax, _EXPLICIT)
    try:
        stop = _walk(window, start, encoding, wanted, values, meta=False)
    except _TruncatedError:
        return Header(
            syntax, sop_class, sop_instance, values, big_endian=encoding.big_endian, has_pixels=False, whole=False
        )
    except _UnusualError:
        if syntax == uid.DeflatedExplicitVRLittleEndian:
            raise UnfitError(Quarantine.MALFORMED) from None
        raise
    header = Header(syntax, sop_class, sop_instance, values, encoding.big_endian, has_pixels=False, whole=True)
    return _with_pixels(window, header, stop)


def _read_with_pydicom(source: Source, wanted: frozenset[int], limit: int) -> Header:
    content = source.read(0, min(source.size, limit))
    if uid.DeflatedExplicitVRLittleEndian.encode() in content:
        raise UnfitError(Quarantine.MALFORMED)  # pydicom would inflate it without a limit
    stream = BytesIO(content)
    stop = _Stop(0, len(content))

    def at_pixels(tag: BaseTag, _: str | None, length: int) -> bool:
        nonlocal stop
        if tag in PIXEL_DATA:
            stop = _Stop(tag, stream.tell(), stream.tell(), length)
        return tag in PIXEL_DATA

    try:
        dataset = read_partial(stream, stop_when=at_pixels, specific_tags=sorted(wanted))
        meta = dataset.file_meta
        syntax, sop_class, sop_instance = (
            str(meta.get(name, ""))
            for name in ("TransferSyntaxUID", "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID")
        )
        big_endian = dataset.original_encoding[1] is False
        items = {tag: dataset.get_item(tag) for tag in wanted if tag in dataset}
    except Exception:  # what pydicom raises on a broken file is not limited to its own errors
        raise UnfitError(Quarantine.MALFORMED) from None
    if not syntax:
        raise UnfitError(Quarantine.NO_FILE_HEADER)
    values = {tag: _as_bytes(item.value) for tag, item in items.items()}
    if not stop.tag and len(content) < source.size:
        raise UnfitError(Quarantine.HEADER_TOO_LARGE)
    header = Header(syntax, sop_class, sop_instance, values, big_endian, has_pixels=False, whole=True)
    return _with_pixels(_Window(source, limit), header, stop)


def _as_bytes(value: Any) -> bytes:
    """An element's value as pydicom read it: bytes, nothing, or the character set, which it decodes at once."""
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    return "\\".join([value] if isinstance(value, str) else map(str, value)).encode("latin-1", "replace")


def _is_bare_dataset(head: bytes) -> bool:
    """Whether bytes without a preamble begin a DICOM dataset all the same."""
    if head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    try:
        dataset = read_partial(BytesIO(head), force=True, specific_tags=[_SOP_CLASS, _SOP_INSTANCE])
        return _SOP_CLASS in dataset or _SOP_INSTANCE in dataset
    except Exception:  # as above
        return False


def _with_pixels(window: _Window, header: Header, stop: _Stop) -> Header:
    """Adds whether the pixel data is there, and all of it."""
    if not stop.tag:
        return header
    if stop.length == _UNDEFINED:
        has_pixels, whole = _fragments(window, stop.value)
    else:
        has_pixels = stop.length > 0
        whole = stop.value + stop.length <= window.size
        if header.transfer_syntax_uid in _NATIVE:
            whole = whole and stop.length >= _image_bytes(header)
    return replace(header, has_pixels=has_pixels, whole=whole)


def _fragments(window: _Window, position: int) -> tuple[bool, bool]:
    """Whether encapsulated pixel data has a fragment, and whether it ends as it should.

    The end is looked for where nearly every file has it, in the last eight bytes; only where it is not, the fragments
    are stepped over.
    """
    ends_well = window.size - 8 > position and window.read(window.size - 8, 8) == _SEQUENCE_END_BYTES
    has_pixels, number = False, 0
    while position + 8 <= window.size:
        group, element, length = _ITEM_HEADER(window.read(position, 8))
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            return has_pixels, True
        if tag != _ITEM or length == _UNDEFINED:
            return has_pixels, False
        has_pixels = has_pixels or (number > 0 and length > 0)
        if has_pixels and ends_well:
            return True, True
        position += 8 + length
        number += 1
    return has_pixels, False


def _image_bytes(header: Header) -> int:
    """How long native pixel data must be; 0 where the header does not tell."""
    rows, columns, samples, bits = (header.number(tag) for tag in (_ROWS, _COLUMNS, _SAMPLES, _BITS))
    if not (rows and columns and bits) or "42" in header.plain(_PHOTOMETRIC):
        return 0  # YBR_FULL_422 and the like share samples between pixels
    return (rows * columns * (samples or 1) * frames(header) * bits + 7) // 8


def frames(header: Header) -> int:
    """NumberOfFrames, 1 where it is absent or no number."""
    try:
        return max(1, int(header.plain(_FRAMES)))
    except ValueError:
        return 1


class _Inflated:
    """The beginning of a deflated dataset."""

    def __init__(self, content: bytes, size: int) -> None:
        self._content = content
        self.size = size
        self.page = 16 * 1024

    def read(self, offset: int, length: int) -> bytes:
        """Gives what was kept; more than that is a header larger than its limit."""
        if offset < self.size and min(offset + length, self.size) > len(self._content):
            raise UnfitError(Quarantine.HEADER_TOO_LARGE)
        return self._content[offset : offset + length]


def _inflate(window: _Window, position: int, limit: int) -> _Window:
    """Inflates a dataset, keeping no more of it than its header may have."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    kept = bytearray()
    size = 0
    pending = b""
    try:
        while not inflater.eof:
            if not pending:
                pending = window.source.read(position, _CHUNK)
                position += len(pending)
                if not pending:
                    raise UnfitError(Quarantine.TRUNCATED)
            piece = inflater.decompress(pending, _CHUNK)
            pending = inflater.unconsumed_tail
            size += len(piece)
            kept += piece[: limit - len(kept)]
            if size > _INFLATED_LIMIT:
                raise UnfitError(Quarantine.TOO_LARGE)
    except zlib.error:
        raise UnfitError(Quarantine.MALFORMED) from None
    return _Window(_Inflated(bytes(kept), size), limit)
