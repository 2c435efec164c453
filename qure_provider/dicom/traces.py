"""Pseudonyms in what the service sent back: finding them in text, and putting in their place what they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date
from enum import StrEnum

from qure_provider.dicom.objects import readable
from qure_provider.dicom.pseudonym import IdentityMap

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_UID = r"(?<![0-9.])2\.25\.[0-9]{1,39}(?![0-9]|\.[0-9])"
_UID_BYTES = re.compile(_UID.encode())
_END_OF_DATE = r"(?=[^0-9A-Za-z]|$|T[0-9]{2}|[0-9]{4}(?:[0-9]{2})?(?:[^0-9]|$))"
"""What may follow a date: the time of day, or nothing that would make it part of something else."""
_TELLING = 10
"""Characters of a code's beginning that are enough to know it, where something cut it short."""
_SPACE = re.compile(r"\s+")


class Held(StrEnum):
    """Why a file of a result is not handed on, in fixed words."""

    IN_DOCUMENT = "held: a pseudonym is inside a document, which is not edited"
    IN_PICTURE = "held: a pseudonym is in what is written beside a picture, which is not edited"
    IN_BINARY = "held: a pseudonym is in a private or binary part of an object"
    LEFT = "held: a pseudonym is left after re-identification"
    AMBIGUOUS_DATE = "held: a date can be read in two ways, and stands for two"
    NO_TEXT = "held: a document without text, which cannot be searched for pseudonyms"
    UNREADABLE = "held: cannot be read, so it cannot be searched for pseudonyms"
    UNKNOWN = "held: of a kind that cannot be searched for pseudonyms"
    CHARACTER_SET = "held: its character set cannot be relied on to write whose it is"
    DANGLING = "held: it refers to something that was not sent"
    IDENTITY = "held: it does not agree with the source about whose it is"


class HeldError(Exception):
    """A file of a result cannot be handed on.

    Args:
        reason: Why.
    """

    def __init__(self, reason: Held) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Trace(StrEnum):
    """What was found of what was sent."""

    PATIENT_ID = "patient ID"
    PATIENT_NAME = "patient name"
    ACCESSION_NUMBER = "accession number"
    UID = "UID"
    DATE = "date"


Writer = Callable[[Trace, str, bool], str]
"""Writes what a pseudonym stands for, given what it is, the source's value, and whether it is the whole text."""


def plainly(trace: Trace, value: str, whole: bool) -> str:
    """Writes a value as it is; a name inside a text is written as words."""
    return value if whole or trace is not Trace.PATIENT_NAME else " ".join(words_of_name(value))


def words_of_name(name: str) -> list[str]:
    """Gives the components of a name that are there, in their order; see :func:`first_group`."""
    return [part.strip() for part in first_group(name).split("^") if part.strip()]


def first_group(name: str) -> str:
    """Gives the first group of a name that is not empty: the one in letters, or else in ideograms."""
    return next((group for group in name.split("=") if group.strip("^ ")), "")


class Tracker:
    """Finds what was sent in what came back.

    Codes are found in any case, and where only the beginning of one is left. Dates are found in the usual forms.

    Args:
        identity_map: What was sent.
    """

    def __init__(self, identity_map: IdentityMap) -> None:
        sent, source = identity_map.pseudonym, identity_map.source
        codes = (
            (sent.patient_id, source.patient_id, Trace.PATIENT_ID),
            (sent.patient_name, source.patient_name, Trace.PATIENT_NAME),
            (sent.accession_number, source.accession_number, Trace.ACCESSION_NUMBER),
        )
        self._codes = {code.lower(): (readable(meant), trace) for code, meant, trace in codes if code}
        self._uids = identity_map.uids
        self._dates = _written_dates(identity_map)
        self._may_stay = {Trace.DATE} if identity_map.dates.keys() & set(identity_map.dates.values()) else set()
        whole_codes = "|".join(map(re.escape, self._codes))
        dates = "|".join(map(re.escape, sorted(self._dates, key=len, reverse=True)))
        parts = [
            f"(?P<code>(?i:{whole_codes}))" if whole_codes else "",
            f"(?P<uid>{_UID})",
            f"(?<![0-9A-Za-z])(?P<date>{dates}){_END_OF_DATE}" if dates else "",
        ]
        self._pattern = re.compile("|".join(filter(None, parts)))
        self._beginnings = {code[:_TELLING]: trace for code, (_, trace) in self._codes.items()}

    def find(self, text: str) -> frozenset[Trace]:
        """Tells what a text has of what was sent."""
        squeezed = _SPACE.sub("", text).lower()
        found = {trace for beginning, trace in self._beginnings.items() if beginning in squeezed}
        found |= {trace for trace, _, _ in self._matches(text)}
        return frozenset(found)

    def find_in_bytes(self, content: bytes) -> frozenset[Trace]:
        """Tells what bytes of unknown meaning have of what was sent, in ASCII or UTF-16. Dates are not looked for."""
        found = set()
        for each in (content, content.replace(b"\0", b"")):
            lowered = each.lower()
            found |= {trace for beginning, trace in self._beginnings.items() if beginning.encode() in lowered}
            found |= {Trace.UID for match in _UID_BYTES.finditer(each) if match[0].decode() in self._uids}
        return frozenset(found)

    def is_left(self, found: frozenset[Trace]) -> bool:
        """Tells whether what was found means that something was not put back.

        A date does not where one of those that were sent is the source's on another day.
        """
        return bool(found - self._may_stay)

    def replace(self, text: str, write: Writer = plainly) -> str:
        """Puts in the place of what was sent what it stands for.

        Args:
            text: Any text.
            write: How values are written there.

        Returns:
            The new text.

        Raises:
            HeldError: If a date stands for two.
        """
        pieces, position = [], 0
        for trace, meant, match in self._matches(text):
            if meant is None:
                raise HeldError(Held.AMBIGUOUS_DATE)
            whole = match[0] == text.strip()
            pieces += [text[position : match.start()], write(trace, meant, whole)]
            position = match.end()
        return "".join([*pieces, text[position:]])

    def _matches(self, text: str) -> Iterator[tuple[Trace, str | None, re.Match[str]]]:
        for match in self._pattern.finditer(text):
            if match.lastgroup == "code":
                meant, trace = self._codes[match[0].lower()]
                yield trace, meant, match
            elif match.lastgroup == "date":
                yield Trace.DATE, self._dates[match[0]], match
            elif match[0] in self._uids:
                yield Trace.UID, self._uids[match[0]], match


def _written_dates(identity_map: IdentityMap) -> dict[str, str | None]:
    """From each date that was sent, in each form, to the source's in the same form; None where there are two."""
    written: dict[str, str | None] = {}
    for sent, meant in identity_map.dates.items():
        for form, source_form in zip(_forms(sent), _forms(meant), strict=True):
            written[form] = source_form if written.get(form, source_form) == source_form else None
    return written


def _forms(day: str) -> Iterator[str]:
    when = date(int(day[:4]), int(day[4:6]), int(day[6:]))
    year, month, of_month = f"{when.year:04}", f"{when.month:02}", f"{when.day:02}"
    yield year + month + of_month
    for mark in "-/.":
        yield mark.join((year, month, of_month))
        yield mark.join((of_month, month, year))
        yield mark.join((month, of_month, year))
    for name in (_MONTHS[when.month - 1], _MONTHS[when.month - 1][:3]):
        for number in (of_month, str(when.day)):
            yield f"{number} {name} {year}"
            yield f"{number}-{name}-{year}"
            yield f"{name} {number}, {year}"
            yield f"{number} {name.upper()} {year}"
            yield f"{number}-{name.upper()}-{year}"
