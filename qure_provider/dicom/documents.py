"""Searching what a result has beside DICOM objects for pseudonyms: PDF, pictures, and text of any kind.

What a picture shows is not read: a pseudonym that is painted into it is not found. It names nobody.
"""

from __future__ import annotations

import html
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any

from qure_provider.dicom.traces import Held, HeldError, Trace, Tracker, first_group, plainly, words_of_name

PDF, PNG, JPEG = "application/pdf", "image/png", "image/jpeg"
JSON, HL7, HTML = "application/json", "x-application/hl7-v2+er7", "text/html"
TEXTS = frozenset({JSON, HL7, HTML, "text/plain", "application/octet-stream"})
"""Media whose pseudonyms are replaced. What is of no known kind is among them: it may be text."""

_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_PNG_START = 8
_PDF_OBJECTS, _PDF_DEPTH = 100_000, 50
_INFLATED_LIMIT = 16 * 1024 * 1024
_HL7_CODECS: Mapping[str, str] = {
    "ASCII": "ascii",
    "UNICODE UTF-8": "utf-8",
    "UTF-8": "utf-8",
    **{f"8859/{part}": f"iso8859-{part}" for part in (*range(1, 10), 15)},
}
_MSH_DELIMITERS, _MSH_CHARACTER_SET = slice(3, 8), 17
_XPN_ORDER = (0, 1, 2, 4, 3)
"""Which component of a DICOM name stands where in one of HL7 v2: prefix and suffix are the other way round."""


def find_in_document(content: bytes, media: str, tracker: Tracker) -> frozenset[Trace]:
    """Tells what a file has of what was sent.

    Args:
        content: The file.
        media: Its media type, as recognized from its content.
        tracker: What was sent.

    Returns:
        What was found.

    Raises:
        HeldError: If it cannot be searched: it is broken, encrypted, of an unknown kind, or a document without text.
    """
    if media == PDF:
        return tracker.find("\n".join(_pdf_texts(content)))
    if media == PNG:
        return tracker.find_in_bytes(b"\n".join([content, *_png_texts(content)]))
    if media == JPEG:
        return tracker.find_in_bytes(content)
    if media not in TEXTS:
        raise HeldError(Held.UNKNOWN)
    text, _ = _decoded(content, media)
    if media == JSON:
        text = "\n".join([text, *_json_texts(text)])
    elif media == HTML:
        text = "\n".join([text, html.unescape(text)])
    return tracker.find(text)


def reidentify_document(content: bytes, media: str, tracker: Tracker) -> bytes:
    """Puts what pseudonyms stand for in their place, in text; anything else must have none.

    Args:
        content: The file.
        media: Its media type, as recognized from its content.
        tracker: What was sent.

    Returns:
        The file as it may go on; the same bytes where nothing had to be replaced.

    Raises:
        HeldError: If it cannot go on.
    """
    if not find_in_document(content, media, tracker):
        return content
    if media == PDF:
        raise HeldError(Held.IN_DOCUMENT)
    if media not in TEXTS:
        raise HeldError(Held.IN_PICTURE)
    text, codec = _decoded(content, media)
    if media == HL7:
        new, codec = _replaced_in_hl7(text, codec, tracker)
    elif media == JSON:
        new = _JSON_STRING.sub(lambda match: _replaced_in_json(match[0], tracker), text)
    elif media == HTML:
        new = tracker.replace(text, _in_html)
    else:
        new = tracker.replace(text)
    try:
        replaced = new.encode(codec)
    except UnicodeEncodeError:
        raise HeldError(Held.CHARACTER_SET) from None
    if tracker.is_left(find_in_document(replaced, media, tracker)):
        raise HeldError(Held.LEFT)
    return replaced


def _decoded(content: bytes, media: str) -> tuple[str, str]:
    """A text, and the codec that it is written in."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        codec = "utf-16"
    elif media in (JSON, HL7, HTML):
        codec = "utf-8" if _is_utf_8(content) else "latin-1"
    elif _is_utf_8(content) and b"\0" not in content:
        codec = "utf-8"
    else:
        raise HeldError(Held.UNKNOWN)
    try:
        return content.decode(codec), codec
    except UnicodeDecodeError:
        raise HeldError(Held.UNREADABLE) from None


def _is_utf_8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _json_texts(text: str) -> Iterator[str]:
    try:
        json.loads(text.removeprefix("\ufeff"))
        for match in _JSON_STRING.finditer(text):
            yield json.loads(match[0], strict=False)
    except (ValueError, RecursionError):
        raise HeldError(Held.UNREADABLE) from None


def _replaced_in_json(string: str, tracker: Tracker) -> str:
    old = json.loads(string, strict=False)
    new = tracker.replace(old)
    return string if new == old else json.dumps(new)


def _in_html(trace: Trace, value: str, whole: bool) -> str:
    return html.escape(plainly(trace, value, whole)).encode("ascii", "xmlcharrefreplace").decode("ascii")


def _replaced_in_hl7(text: str, codec: str, tracker: Tracker) -> tuple[str, str]:
    """The new message, and its codec: one that it declares, where it has more than ASCII now."""
    segments = re.split(r"(\r\n|\r|\n)", text)
    header = segments[0].lstrip("\ufeff\x0b")
    if not header.startswith(("MSH", "FHS", "BHS")) or len(header) <= _MSH_DELIMITERS.stop:
        raise HeldError(Held.UNREADABLE)
    delimiters = header[_MSH_DELIMITERS]
    if any(each.isalnum() or each.isspace() for each in delimiters):
        raise HeldError(Held.UNREADABLE)
    component, repetition = delimiters[1], delimiters[2]

    def write(trace: Trace, value: str, whole: bool) -> str:
        if trace is not Trace.PATIENT_NAME:
            return _escaped(value, delimiters)
        if not whole:
            return _escaped(" ".join(words_of_name(value)), delimiters)
        parts = [*first_group(value).split("^"), *[""] * len(_XPN_ORDER)]
        return component.join(_escaped(parts[place], delimiters) for place in _XPN_ORDER).rstrip(component)

    def replaced(segment: str) -> str:
        fields = re.split(f"([{re.escape(delimiters[0])}{re.escape(repetition)}])", segment)
        return "".join(tracker.replace(field, write) for field in fields)

    new = "".join(map(replaced, segments))
    if new.isascii():
        return new, codec
    declared = header.split(delimiters[0])[_MSH_CHARACTER_SET : _MSH_CHARACTER_SET + 1]
    known = _HL7_CODECS.get(declared[0].split(repetition)[0].strip().upper()) if declared else None
    if known is None:
        raise HeldError(Held.CHARACTER_SET)
    return new, known


def _escaped(value: str, delimiters: str) -> str:
    """A value in an HL7 v2 message: its delimiters are written as escape sequences (HL7 v2, chapter 2.7)."""
    names, escape = dict(zip(delimiters, "FSRET", strict=True)), delimiters[3]
    return "".join(f"{escape}{names[each]}{escape}" if each in names else each for each in value)


def _png_texts(content: bytes) -> Iterator[bytes]:
    """What is written beside the picture, inflated."""
    position = _PNG_START
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">L4s", content, position)
        body = content[position + 8 : position + 8 + length]
        position += length + 12
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            for start in (match.end() for match in re.finditer(rb"\0", body)):
                with suppress(zlib.error):
                    yield zlib.decompressobj().decompress(body[start + (kind != b"iTXt") :], _INFLATED_LIMIT)


def _pdf_texts(content: bytes) -> Iterator[str]:
    """All texts of a PDF: of its pages as a reader sees them, and of every object in it, inflated."""
    from pypdf import PdfReader

    try:
        reader = PdfReader(BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise HeldError(Held.UNREADABLE)
        pages = [page.extract_text() for page in reader.pages]
        within = list(_pdf_objects(reader))
    except HeldError:
        raise
    except Exception:  # what pypdf raises on a broken file is not limited to its own errors
        raise HeldError(Held.UNREADABLE) from None
    if not any(page.strip() for page in pages):
        raise HeldError(Held.NO_TEXT)
    yield from pages
    yield from within


def _pdf_objects(reader: Any) -> Iterator[str]:
    """Strings and streams of every object, also of those that no page shows."""
    yield reader.stream.getvalue().decode("latin-1")
    for number in range(1, min(int(reader.trailer["/Size"]), _PDF_OBJECTS)):
        yield from _pdf_strings(reader.get_object(number), 0)


def _pdf_strings(value: Any, depth: int) -> Iterator[str]:
    from pypdf.generic import StreamObject

    if depth > _PDF_DEPTH:
        raise HeldError(Held.UNREADABLE)
    if isinstance(value, StreamObject):
        yield value.get_data().decode("latin-1")
    if isinstance(value, bytes):
        yield value.decode("latin-1")
    elif isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _pdf_strings(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            yield from _pdf_strings(each, depth + 1)
