"""A header's elements as they lie in the file, and new ones written in the same encoding.

What is kept of a header is copied byte for byte: no number is written in another form than its maker's, and it costs a
fraction of what decoding would. Nothing is guessed either: a header that is not as the standard has it is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType

from pydicom import uid

from qure_provider.dicom.profile import vr_of
from qure_provider.dicom.reader import PIXEL_DATA, TRANSFER_SYNTAX, Source, plain
from qure_provider.dicom.refusal import DeidentifyError, Refusal

Element = tuple[int, str, int, int, int]
"""An element by where it lies: its tag, its VR, where it begins, where its value begins and where it ends.

Where the encoding has no VR it is the data dictionary's, or ``UN``. A plain tuple, for a header has hundreds.
"""

LONG_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
SHORT_VRS = frozenset(
    {
        *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO"),
        *("LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"),
    }
)

_LONG_CODES, _SHORT_CODES = (frozenset(vr.encode() for vr in vrs) for vrs in (LONG_VRS, SHORT_VRS))
_SHORT_HEAD = struct.Struct("<HH2sH")
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LAST_OF_FILE_HEADER, _DELIMITERS = 0x0007FFFF, 0xFFFC0000
_META = 132
_HEADER_LIMIT = 64 * 1024 * 1024
_GROWTH = 4
_DEPTH_LIMIT = 32
_FRAGMENT_PAGE = 64
_LARGEST_ALIKE = 256 * 1024
_NO_TAG = -1
_LONGEST_SHORT = 0xFFFE
_PADDED_WITH_NULL = frozenset({"OB", "UI", "UN"})


class _ShortError(Exception):
    """The bytes end inside an element."""


class _EndError(_ShortError):
    """The bytes end after an element."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Passage:
    """Some elements in a row of a header.

    Attributes:
        data: What they lie in.
        elements: They, one at least, in order.
        raw: Their bytes, from the first's beginning to the last's end.
    """

    data: bytes = field(repr=False)
    elements: Sequence[Element]
    raw: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "raw", self.data[self.elements[0][2] : self.elements[-1][4]])

    def divided(self, stays: Callable[[int, bytes], bool]) -> Iterator[Passage]:
        """Gives the longest passages of it whose elements all stay, told by their tag and their bytes."""
        for kept, elements in groupby(self.elements, lambda each: stays(each[0], self.data[each[2] : each[4]])):
            if kept:
                yield Passage(self.data, tuple(elements))


Passages = Mapping[int, Passage]
"""Passages by the tag that each begins with."""
_NO_PASSAGES: Passages = MappingProxyType({})


class Encoding:
    """How elements are written.

    Args:
        explicit: Whether with their VR.
        big_endian: Whether the highest byte of a number comes first.
    """

    def __init__(self, *, explicit: bool, big_endian: bool = False) -> None:
        order = ">" if big_endian else "<"
        self.explicit = explicit
        self._with_vr = struct.Struct(f"{order}HHHH")
        self._without_vr = struct.Struct(f"{order}HHL")
        self._long_head = struct.Struct(f"{order}HH2s2xL")
        self._short_head = struct.Struct(f"{order}HH2sH")
        self._length = struct.Struct(f"{order}L")
        number = struct.Struct(f"{order}H").unpack
        self._short_vrs = {number(vr.encode())[0]: vr for vr in SHORT_VRS}
        self._long_vrs = {number(vr.encode())[0]: vr for vr in LONG_VRS}

    def element(self, tag: int, vr: str, value: bytes) -> bytes:
        """Writes an element, its value padded to even length; as UN where it is too long for its VR (PS3.5, 6.2.2)."""
        if len(value) & 1:
            value += b"\0" if vr in _PADDED_WITH_NULL else b" "
        if vr not in LONG_VRS and len(value) > _LONGEST_SHORT:
            vr = "UN"
        group, number = tag >> 16, tag & 0xFFFF
        if not self.explicit:
            return self._without_vr.pack(group, number, len(value)) + value
        head = self._long_head if vr in LONG_VRS else self._short_head
        return head.pack(group, number, vr.encode(), len(value)) + value

    def items(self, contents: Sequence[bytes]) -> bytes:
        """Writes the items of a sequence."""
        return b"".join(self._without_vr.pack(0xFFFE, 0xE000, len(content)) + content for content in contents)

    def elements(self, data: bytes, position: int, end: int) -> list[Element]:
        """Reads the elements between two places.

        Raises:
            DeidentifyError: If they are not as the standard has them.
        """
        try:
            return self._elements(data, position, end, 0)[0]
        except _ShortError:
            raise DeidentifyError(Refusal.BROKEN) from None

    def contents(self, data: bytes, position: int, end: int) -> list[tuple[int, int]]:
        """Gives where the content of each item of a sequence begins and ends, from the places of its value.

        Raises:
            DeidentifyError: If they are not as the standard has them.
        """
        try:
            contents, stop = self._contents(data, position, end, 0, delimited=False)
        except _ShortError:
            raise DeidentifyError(Refusal.BROKEN) from None
        if stop != end:
            raise DeidentifyError(Refusal.BROKEN)
        return contents

    def elements_before_pixels(
        self, data: bytes, position: int, known: Passages, met: list[Passage]
    ) -> tuple[list[Element], int, int, int]:
        """Reads a dataset's elements up to its pixel data.

        Args:
            data: The file's first bytes.
            position: Where the dataset begins.
            known: Passages that are only compared; those that lie here, byte for byte, are not read.
            met: Takes these.

        Returns:
            The elements that were read; where the pixel data element begins, where its value begins, and how long that
            is.
        """
        elements, start = self._elements(data, position, len(data), 0, until=min(PIXEL_DATA), known=known, met=met)
        value = start + 8
        group, number, length = self._without_vr.unpack_from(data, start)
        if group << 16 | number not in PIXEL_DATA:
            raise DeidentifyError(Refusal.NO_PIXELS)
        if self.explicit:
            code = self._with_vr.unpack_from(data, start)[2]
            _, length, value = self._long(data, value, len(data), self._long_vrs.get(code, ""))
        return elements, start, value, length

    def _elements(
        self,
        data: bytes,
        position: int,
        end: int,
        depth: int,
        *,
        until: int | None = None,
        known: Passages = _NO_PASSAGES,
        met: list[Passage] | None = None,
    ) -> tuple[list[Element], int]:
        """Reads elements up to ``end``; or, where ``until`` is given, up to a tag that is as high or higher."""
        if depth > _DEPTH_LIMIT:
            raise DeidentifyError(Refusal.BROKEN)
        explicit, short_vrs, long_vrs = self.explicit, self._short_vrs, self._long_vrs
        with_vr, without_vr = self._with_vr.unpack_from, self._without_vr.unpack_from
        found: list[Element] = []
        last, limit = _LAST_OF_FILE_HEADER, min(until or _DELIMITERS, _DELIMITERS)
        while position < end:
            value = position + 8
            if value > end:
                raise _ShortError
            if explicit:
                group, number, code, length = with_vr(data, position)
            else:
                group, number, length = without_vr(data, position)
            tag = group << 16 | number
            if not last < tag < limit:
                if until is not None and tag >= until:
                    return found, position
                raise DeidentifyError(Refusal.BROKEN)
            if met is not None and tag in known and data.startswith(known[tag].raw, position):
                passage = known[tag]
                met.append(passage)
                last, position = passage.elements[-1][0], position + len(passage.raw)
                continue
            last = tag
            if not explicit:
                vr = vr_of(tag) or "UN"
            elif code in short_vrs:
                vr = short_vrs[code]
            else:
                vr, length, value = self._long(data, value, end, long_vrs.get(code, ""))
            if length == _UNDEFINED:
                vr, stop = self._undefined(data, vr, value, end, depth)
            else:
                stop = value + length
                if stop > end:
                    raise _ShortError
            found.append((tag, vr, position, value, stop))
            position = stop
        if until is not None:
            raise _EndError
        return found, position

    def _long(self, data: bytes, position: int, end: int, vr: str) -> tuple[str, int, int]:
        """The VR, the length and the place of a value whose length has four bytes."""
        if not vr:
            raise DeidentifyError(Refusal.BROKEN)
        if position + 4 > end:
            raise _ShortError
        return vr, self._length.unpack_from(data, position)[0], position + 4

    def _undefined(self, data: bytes, vr: str, value: int, end: int, depth: int) -> tuple[str, int]:
        """The VR and the end of an element of undefined length."""
        encoding = self
        if vr == "UN" and self.explicit:
            encoding = IMPLICIT
        elif vr == "UN":
            vr = "SQ"
        elif vr not in ("SQ", "OB", "OW"):
            raise DeidentifyError(Refusal.BROKEN)
        return vr, encoding._contents(data, value, end, depth, delimited=True)[1]

    def _contents(
        self, data: bytes, position: int, end: int, depth: int, *, delimited: bool
    ) -> tuple[list[tuple[int, int]], int]:
        """Reads items up to ``end``, or to the delimiter that is to follow them."""
        found: list[tuple[int, int]] = []
        while position < end:
            tag, length, position = self._item_head(data, position, end)
            if tag == _SEQUENCE_END and not length:
                return found, position
            if tag != _ITEM:
                raise DeidentifyError(Refusal.BROKEN)
            if length == _UNDEFINED:
                _, stop = self._elements(data, position, end, depth + 1, until=_ITEM_END)
                found.append((position, stop))
                tag, length, position = self._item_head(data, stop, end)
                if tag != _ITEM_END or length:
                    raise DeidentifyError(Refusal.BROKEN)
            else:
                found.append((position, position + length))
                position += length
                if position > end:
                    raise _ShortError
        if delimited:
            raise _ShortError
        return found, position

    def _item_head(self, data: bytes, position: int, end: int) -> tuple[int, int, int]:
        """Tag and length of an item or a delimiter, and where its content begins."""
        if position + 8 > end:
            raise _ShortError
        group, number, length = self._without_vr.unpack_from(data, position)
        return group << 16 | number, length, position + 8


IMPLICIT = Encoding(explicit=False)
EXPLICIT = Encoding(explicit=True)
BIG_ENDIAN = Encoding(explicit=True, big_endian=True)
_ENCODINGS: Mapping[str, Encoding] = {uid.ImplicitVRLittleEndian: IMPLICIT, uid.ExplicitVRBigEndian: BIG_ENDIAN}


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What lies before a file's pixel data.

    Attributes:
        data: The file's first bytes, the whole header among them.
        elements: Those of the dataset, in order; no tag twice. Those of ``met`` are not among them.
        met: Passages of the dataset that were known already.
        encoding: How they are written.
        transfer_syntax_uid: TransferSyntaxUID.
        offset: Where in the file the pixel data element begins.
        end: Where it ends. What follows it, if anything, is padding, a signature or private.
    """

    data: bytes
    elements: list[Element]
    met: list[Passage]
    encoding: Encoding
    transfer_syntax_uid: str
    offset: int
    end: int


class Alike:
    """What headers have had in common so far: it need not be read again, only compared.

    Args:
        varies: Says of some elements by their tag that they are read in each file all the same.
    """

    def __init__(self, varies: Callable[[int], bool] = lambda tag: False) -> None:
        self._varies = varies
        self._passages: dict[int, Passage] = {}
        self._transfer_syntax_uid = ""

    def passages(self, transfer_syntax_uid: str) -> Passages:
        """Gives them; none for another transfer syntax, in which the same bytes mean something else."""
        return self._passages if transfer_syntax_uid == self._transfer_syntax_uid else _NO_PASSAGES

    def learn(self, header: FileHeader) -> None:
        """Divide the passages that a header, which was read with them, does not have, where it differs.

        The first header is kept as a whole until the second comes; from then on each passage only ever shrinks.
        """
        if not self._transfer_syntax_uid:
            self._transfer_syntax_uid = header.transfer_syntax_uid
            if header.offset <= _LARGEST_ALIKE:
                self._passages[_NO_TAG] = Passage(header.data, tuple(header.elements))
        elif len(header.met) < len(self._passages):
            met, data = set(header.met), header.data
            here = {data[start:end] for _, _, start, _, end in header.elements}
            for tag, passage in list(self._passages.items()):
                if passage not in met:
                    del self._passages[tag]
                    parts = passage.divided(lambda tag, raw: raw in here and not self._varies(tag))
                    self._passages.update((part.elements[0][0], part) for part in parts)


def read_file_header(source: Source, known: Alike | None = None) -> FileHeader:
    """Reads a file's header, and finds where its pixel data ends.

    Args:
        source: The file.
        known: What is only compared.

    Returns:
        The header.

    Raises:
        DeidentifyError: If it is not as the standard has it, is deflated, or lacks pixel data.
        UnfitError: If the file cannot be read.
    """
    length = source.page
    while True:
        data = source.read(0, length)
        try:
            return _file_header(source, data, known)
        except _ShortError as error:
            if length >= source.size:
                raise DeidentifyError(Refusal.NO_PIXELS if isinstance(error, _EndError) else Refusal.BROKEN) from None
            if length >= _HEADER_LIMIT:
                raise DeidentifyError(Refusal.TOO_LARGE) from None
            length *= _GROWTH


def _file_header(source: Source, data: bytes, known: Alike | None) -> FileHeader:
    if data[_META - 4 : _META] != b"DICM":
        raise DeidentifyError(Refusal.NOT_DICOM)
    syntax, position = _meta(data)
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        raise DeidentifyError(Refusal.DEFLATED)
    encoding = _ENCODINGS.get(syntax, EXPLICIT)
    passages = known.passages(syntax) if known else _NO_PASSAGES
    met: list[Passage] = []
    elements, offset, value, length = encoding.elements_before_pixels(data, position, passages, met)
    end = _end_of_fragments(source, value) if length == _UNDEFINED else value + length
    if end > source.size:
        raise DeidentifyError(Refusal.BROKEN)
    return FileHeader(data, elements, met, encoding, syntax, offset, end)


def _meta(data: bytes) -> tuple[str, int]:
    """The transfer syntax, and where the dataset begins."""
    position, syntax = _META, ""
    while True:
        if position + 12 > len(data):
            raise _ShortError
        group, number, vr, length = _SHORT_HEAD.unpack_from(data, position)
        if group != 2:
            break
        value = position + 8
        if vr in _LONG_CODES:
            (length,) = struct.unpack_from("<L", data, value)
            value += 4
        elif vr not in _SHORT_CODES:
            raise DeidentifyError(Refusal.BROKEN)
        position = value + length
        if group << 16 | number == TRANSFER_SYNTAX:
            syntax = plain(data[value:position])
    if not syntax:
        raise DeidentifyError(Refusal.BROKEN)
    return syntax, position


def _end_of_fragments(source: Source, position: int) -> int:
    """Where encapsulated pixel data ends. Only the head of each fragment is read."""
    base, page = position, source.read(position, _FRAGMENT_PAGE)
    while True:
        if position + 8 > base + len(page):
            base, page = position, source.read(position, _FRAGMENT_PAGE)
            if len(page) < 8:
                raise DeidentifyError(Refusal.BROKEN)
        group, number, length = struct.unpack_from("<HHL", page, position - base)
        position += 8
        tag = group << 16 | number
        if tag == _SEQUENCE_END and not length:
            return position
        if tag != _ITEM or length == _UNDEFINED:
            raise DeidentifyError(Refusal.BROKEN)
        position += length
