"""Writing HL7 v2: delimiters and escapes, names, times and numbers (HL7 v2.5.1, chapter 2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

ENCODING_CHARACTERS = r"^~\&"
"""MSH-2. The field separator is ``|``."""

_ESCAPES = {"|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\\": "\\E\\"}
_SPECIAL = re.compile("[|^&~\\\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")
_NULL = '""'
"""As a whole field it says "delete what you have"."""

_DICOM_TIME = re.compile(r"(\d{4}(?:\d{2}){0,5})(?:\.(\d{1,4})\d*)?")
_LEGACY_DATE = re.compile(r"(\d{4})\.(\d{2})\.(\d{2})")
_TIME_FORMATS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


class CharacterSet(StrEnum):
    """What a message is written in, by its name in MSH-18 (HL7 table 0211).

    Sets whose characters may hold the byte of a delimiter (GB 18030, BIG-5, ISO 2022) are not among them.
    """

    UTF_8 = "UNICODE UTF-8"
    ASCII = "ASCII"
    LATIN_1 = "8859/1"
    LATIN_2 = "8859/2"
    LATIN_3 = "8859/3"
    LATIN_4 = "8859/4"
    CYRILLIC = "8859/5"
    ARABIC = "8859/6"
    GREEK = "8859/7"
    HEBREW = "8859/8"
    LATIN_5 = "8859/9"
    LATIN_9 = "8859/15"

    @property
    def codec(self) -> str:
        """Its name in Python."""
        names: Mapping[str, str] = {"UNICODE UTF-8": "utf-8", "ASCII": "ascii"}
        return names.get(self.value) or f"iso{self.value.replace('/', '-')}"


def escape(text: str, character_set: CharacterSet) -> str:
    r"""Write a text so that it stays one value, whatever is in it.

    Delimiters become their escapes, control characters and Unicode's line ends ``\X..\`` with the bytes that they have
    in the character set. A text that is ``""``, which alone in a field would delete what the receiver has, is written
    as ``\X2222\``.

    Args:
        text: Any text.
        character_set: What the message is written in.

    Returns:
        The value.

    Raises:
        UnicodeEncodeError: If the character set does not hold one of the characters that are written as bytes.
    """

    def bytes_of(text: str) -> str:
        return f"\\X{text.encode(character_set.codec).hex().upper()}\\"

    if text == _NULL:
        return bytes_of(text)
    return _SPECIAL.sub(lambda match: _ESCAPES.get(match[0]) or bytes_of(match[0]), text)


def formatted(text: str, character_set: CharacterSet) -> str:
    r"""Write a text as formatted text (FT): as ``escape`` does, with line ends as ``\.br\``."""
    if text == _NULL:
        return escape(text, character_set)
    return "\\.br\\".join(escape(line, character_set) for line in _LINE_BREAK.split(text))


def patient_name(name: str, character_set: CharacterSet) -> str:
    """Write a DICOM person name as XPN, one repetition for each of its groups.

    DICOM orders prefix before suffix, HL7 suffix before prefix. Groups are marked alphabetic, ideographic or phonetic
    (table 4000) where there is more than the alphabetic one.

    Args:
        name: As DICOM writes it, ``family^given^middle^prefix^suffix``, groups between ``=``.
        character_set: What the message is written in.

    Returns:
        The field.
    """
    groups = name.split("=", 2)
    marks = ("A", "I", "P") if len(groups) > 1 else ("",)
    repetitions = [
        components(*_name_components(group, character_set), "", "", mark)
        for group, mark in zip(groups, marks, strict=False)
        if group
    ]
    return "~".join(repetitions)


def person(name: str, character_set: CharacterSet) -> str:
    """Write a DICOM person name, of its first group that is not empty, as XCN without an identifier."""
    group = next(filter(None, name.split("=", 2)), "")
    return components("", *_name_components(group, character_set))


def _name_components(group: str, character_set: CharacterSet) -> list[str]:
    family, given, middle, prefix, suffix = [*group.split("^", 4), "", "", "", ""][:5]
    return [escape(part, character_set) for part in (family, given, middle, suffix, prefix)]


def components(*values: str) -> str:
    """Put escaped values together as the components of a field, without empty ones at the end."""
    return "^".join(values).rstrip("^")


def segment(name: str, fields: Mapping[int, str]) -> str:
    """Put escaped fields together as a segment.

    Args:
        name: Its three characters.
        fields: By number, from 1 (in MSH, whose first field is the separator itself, from 2).

    Returns:
        The segment, without its end, without empty fields at the end.
    """
    first = 2 if name == "MSH" else 1
    values = (fields.get(number, "") for number in range(first, max(fields, default=0) + 1))
    return "|".join([name, *values]).rstrip("|")


def time_of(moment: datetime) -> str:
    """Write a time with its offset from UTC, to the second.

    Raises:
        ValueError: If it has no zone.
    """
    if moment.utcoffset() is None:
        raise ValueError("a time without its zone")
    return moment.strftime("%Y%m%d%H%M%S%z")[:19]


def time_of_dicom(text: str) -> str:
    """Write a DICOM date or time (DA, DT, or DA with TM behind it) as an HL7 time, as precisely as it is given.

    Args:
        text: As in the header; dates of the form ``2026.01.31`` and colons in times are taken, as DICOM asks.

    Returns:
        The time; empty for what is no time.
    """
    match = _DICOM_TIME.fullmatch(_LEGACY_DATE.sub(r"\1\2\3", text.strip()).replace(":", ""))
    if match is None or (match[2] and len(match[1]) != 14):
        return ""
    try:
        datetime.strptime(match[1], _TIME_FORMATS[len(match[1])])  # noqa: DTZ007 - only looked at
    except ValueError:
        return ""
    return f"{match[1]}.{match[2]}" if match[2] else match[1]


def number(value: float) -> str:
    """Write a number (NM), which knows no exponent.

    Raises:
        ValueError: If it is not finite.
    """
    exact = Decimal(str(value))
    if not exact.is_finite():
        raise ValueError("not a finite number")
    return f"{exact:f}"
