"""Doing to each element of a header what a profile has for it."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from pydicom.datadict import keyword_for_tag

from qure_provider.dicom.header import IMPLICIT, Element, Encoding
from qure_provider.dicom.identifying import Decode, Finder, Identifying, UndecodableError, decoder
from qure_provider.dicom.profile import CAPPED_AGE, DUMMY_DATE, DUMMY_TEXT, Action, Profile, vr_of
from qure_provider.dicom.pseudonym import REGISTERED, Pseudonymizer, shifted
from qure_provider.dicom.reader import plain
from qure_provider.dicom.refusal import DeidentifyError, Refusal

PRIVATE = 0x10000
"""The bit of a tag that tells a private group."""

_CHARSET, _AGE = 0x00080005, 0x00101010
_OF_DEVICE = frozenset({0x00080070, 0x00081090, 0x00181020, 0x00181210})
"""Manufacturer, its model name, software versions and convolution kernel."""

_NUMBERS = frozenset({"AT", "FD", "FL", "OD", "OF", "OL", "OV", "SL", "SS", "SV", "UL", "US", "UV"})
_NUMBERS_AS_TEXT = frozenset({"DA", "DS", "DT", "IS", "TM"})
_CODED = frozenset({"AE", "AS", "CS", "UI", "UR"}) | _NUMBERS_AS_TEXT
_FREE_TEXT = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_OF_NUMBERS = b"0123456789+-.eE:\\ \0"
_DUMMIES = {
    **dict.fromkeys(("AE", "CS", *_FREE_TEXT), DUMMY_TEXT.encode()),
    "AS": b"000D",
    "DA": DUMMY_DATE.encode(),
    "DS": b"0",
    "DT": DUMMY_DATE.encode(),
    "IS": b"0",
    "TM": b"000000",
}
_DATE_LENGTH = 8
_REST_OF_DATE_TIME = re.compile(r"[0-9]{0,6}(?:\.[0-9]{1,6})?(?:[+-][0-9]{4})?")
_REGISTERED_UID = re.compile(re.escape(REGISTERED) + r"[0-9.]+")
_AGE_FORM = re.compile(r"([0-9]{3})([DWMY])")
_IN_A_YEAR = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}
_OLDEST = 90
_FIRST_BLOCK, _LAST_BLOCK = 0x10, 0xFF


@dataclass(frozen=True, slots=True)
class Change:
    """What was done to one attribute; never its value.

    Attributes:
        tags: Of the sequences that it is in, the outermost first, and its own last.
        action: What was done.
    """

    tags: tuple[int, ...]
    action: Action

    @property
    def keyword(self) -> str:
        """Of the attribute; empty for a private one."""
        return keyword_for_tag(self.tags[-1])


@dataclass(slots=True)
class Trace:
    """What was done on the way through a header.

    Attributes:
        explains: Whether each change is noted.
        uids: From each new UID to the source's.
        dates: From each new date to the source's.
        changes: What was done to each attribute; those of a sequence follow it.
    """

    explains: bool = False
    uids: dict[str, str] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def note(self, within: tuple[int, ...], tag: int, action: Action) -> None:
        """Adds what was done to an attribute."""
        if self.explains:
            self.changes.append(Change((*within, tag), action))


Piece = tuple[int, bytes]
"""An element as it is sent, or several in a row, after its tag or the first one's."""


@dataclass(frozen=True, slots=True)
class Scope:
    """How the elements of an object or item are written.

    Attributes:
        encoding: Their encoding.
        decode: Decodes their texts.
        within: Tags of the sequences that they are in, the outermost first.
    """

    encoding: Encoding
    decode: Decode
    within: tuple[int, ...] = ()

    def items(self, data: bytes, element: Element) -> Iterator[tuple[Scope, list[Element]]]:
        """Gives the items of a sequence: each may have a character set of its own, and one in UN has no VRs.

        Raises:
            DeidentifyError: If they are not as the standard has them.
        """
        encoding = IMPLICIT if element[1] == "UN" else self.encoding
        for first, last in encoding.contents(data, element[3], element[4]):
            elements = encoding.elements(data, first, last)
            own = [data[value:end] for tag, _, _, value, end in elements if tag == _CHARSET]
            decode = known_decoder(own[0]) if own else self.decode
            yield Scope(encoding, decode, (*self.within, element[0])), elements


def known_decoder(charset: bytes) -> Decode:
    """Gives what decodes the texts of an object or item.

    Raises:
        DeidentifyError: If there is no such character set.
    """
    try:
        return decoder(charset)
    except UndecodableError:
        raise DeidentifyError(Refusal.UNDECODABLE) from None


def meant_vr(element: Element) -> str:
    """Gives an element's VR, the data dictionary's where it is written as UN; empty where that does not know it."""
    return vr_of(element[0]) if element[1] == "UN" else element[1]


class Rewriter:
    """Rewrites the datasets of one study.

    Args:
        profile: What is done to each attribute.
        pseudonyms: Makes the UIDs.
        shift: Days by which dates are moved.
        scope: How the datasets are written.
        written: Elements that are written anew whatever the source has, and what that is called.
        identifying: Values that must not be found in what is kept.
    """

    def __init__(
        self,
        profile: Profile,
        pseudonyms: Pseudonymizer,
        shift: int,
        scope: Scope,
        written: Mapping[int, tuple[bytes, Action]],
        identifying: Iterable[Identifying],
    ) -> None:
        self._profile = profile
        self._pseudonyms = pseudonyms
        self._shift = shift
        self._scope = scope
        self._written = written
        self._new: list[Piece] = [(tag, piece) for tag, (piece, _) in written.items()]
        self._finder = Finder(identifying)

    def rewrite(self, data: bytes, elements: Iterable[Element], trace: Trace) -> list[Piece]:
        """Rewrites elements of a dataset, all of its private ones or none.

        Args:
            data: What they lie in.
            elements: They, in order.
            trace: Takes what is done on the way.

        Returns:
            What is left of them.

        Raises:
            DeidentifyError: If a sequence is broken, or a value that identifies is where it cannot be replaced.
        """
        action_of, blocks = self._profile.action, _PrivateBlocks(self._profile)
        pieces = []
        for element in elements:
            tag, vr, start, value, end = element
            if tag in self._written:
                continue
            action = blocks.action(tag, vr, data[value:end]) if tag & PRIVATE else action_of(tag)
            if action is Action.REMOVE or (action is Action.KEEP and vr in _NUMBERS):
                if action is Action.KEEP:
                    pieces.append((tag, data[start:end]))
                trace.note((), tag, action)
            else:
                pieces.append((tag, self._treat(self._scope, data, element, action, trace)))
        return pieces

    def in_rows(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Puts pieces of elements that follow each other together, wherever nothing is written anew between them."""
        written = sorted(self._written)
        rows = [list(row) for _, row in groupby(pieces, lambda piece: bisect(written, piece[0]))]
        return [(row[0][0], b"".join([piece for _, piece in row])) for row in rows]

    def joined(self, pieces: Iterable[Piece], trace: Trace) -> bytes:
        """Puts the pieces of a dataset together, and those that are written anew.

        Args:
            pieces: What is left of all its elements, in any order.
            trace: Takes what is written anew.

        Returns:
            The dataset's new bytes, up to its pixel data.
        """
        if trace.explains:
            for tag, (_, action) in self._written.items():
                trace.note((), tag, action)
        return b"".join([piece for _, piece in sorted([*pieces, *self._new])])

    def _treat(self, scope: Scope, data: bytes, element: Element, action: Action, trace: Trace) -> bytes:
        """Gives one element as it stays; nothing where it does not."""
        tag, _, start, value, end = element
        vr = meant_vr(element) or "UN"
        if vr == "SQ":
            return self._sequence(scope, data, element, action, trace)
        content = data[value:end]
        if action in (Action.REMOVE, Action.WITHIN):
            new, action = None, Action.REMOVE
        elif action is Action.REPLACE:
            vr, new = vr_of(tag), self._profile.replacement(tag).encode("ascii")
        elif not content.strip(b" \0"):
            new, action = content, Action.KEEP
        elif action is Action.UID:
            new, action = self._uids(content, trace)
        elif action is Action.SHIFT:
            new, action = self._dates(tag, vr, content, trace)
        elif action is Action.KEEP:
            new, action = self._kept(scope, tag, vr, content)
        else:
            new = _dummy(vr, content) if action is Action.DUMMY else b""
        trace.note(scope.within, tag, action)
        if new is None:
            return b""
        return data[start:end] if new is content else scope.encoding.element(tag, vr, new)

    def _sequence(self, scope: Scope, data: bytes, element: Element, action: Action, trace: Trace) -> bytes:
        tag, written_vr, *_ = element
        if action is Action.EMPTY:
            trace.note(scope.within, tag, action)
            return scope.encoding.element(tag, written_vr, b"")
        if action not in (Action.KEEP, Action.WITHIN):
            trace.note(scope.within, tag, Action.REMOVE)
            return b""
        trace.note(scope.within, tag, Action.WITHIN)
        contents = [self._item(inner, data, elements, trace) for inner, elements in scope.items(data, element)]
        encoding = IMPLICIT if written_vr == "UN" else scope.encoding
        return scope.encoding.element(tag, written_vr, encoding.items(contents))

    def _item(self, scope: Scope, data: bytes, elements: Iterable[Element], trace: Trace) -> bytes:
        blocks = _PrivateBlocks(self._profile)
        pieces = []
        for element in elements:
            tag, vr, _, value, end = element
            action = blocks.action(tag, vr, data[value:end]) if tag & PRIVATE else self._profile.action(tag)
            pieces.append(self._treat(scope, data, element, action, trace))
        return b"".join(pieces)

    def _uids(self, content: bytes, trace: Trace) -> tuple[bytes, Action]:
        new = []
        for uid in plain(content).split("\\"):
            if not uid or _REGISTERED_UID.fullmatch(uid):
                new.append(uid)
            else:
                new.append(self._pseudonyms.uid(uid))
                trace.uids[new[-1]] = uid
        text = "\\".join(new)
        return (content, Action.KEEP) if text == plain(content) else (text.encode("ascii"), Action.UID)

    def _dates(self, tag: int, vr: str, content: bytes, trace: Trace) -> tuple[bytes | None, Action]:
        try:
            new = [self._date(vr, part.strip(), trace) for part in plain(content).split("\\")]
        except ValueError:
            action = self._profile.strict_action(tag)
            if action is Action.DUMMY:
                return _dummy(vr, content), action
            return (b"", action) if action is Action.EMPTY else (None, Action.REMOVE)
        return "\\".join(new).encode("ascii"), Action.SHIFT

    def _date(self, vr: str, text: str, trace: Trace) -> str:
        if not text:
            return text
        day, rest = (text[:_DATE_LENGTH], text[_DATE_LENGTH:]) if vr == "DT" else (text, "")
        if not _REST_OF_DATE_TIME.fullmatch(rest):
            raise ValueError("no date and time")
        moved = shifted(day, self._shift)
        trace.dates[moved] = shifted(day, 0)
        return moved + rest

    def _kept(self, scope: Scope, tag: int, vr: str, content: bytes) -> tuple[bytes, Action]:
        """What is kept, searched for values that identify: text is replaced then, anything else cannot be."""
        is_number = vr in _NUMBERS or (vr in _NUMBERS_AS_TEXT and not content.translate(None, _OF_NUMBERS))
        if is_number or _reserves_block(tag):  # a private creator that is kept is one of the safe list
            return content, Action.KEEP
        if tag == _AGE:
            return _capped(content)
        if not self._identifies(tag, vr, content, scope.decode):
            return content, Action.KEEP
        if vr not in _FREE_TEXT:
            raise DeidentifyError(Refusal.LEFT_OVER)
        return _dummy(vr, content), Action.CLEAN

    def _identifies(self, tag: int, vr: str, content: bytes, decode: Decode) -> bool:
        if vr in _FREE_TEXT:
            try:
                return self._finder.is_in_text(decode(content), only_patients=tag in _OF_DEVICE)
            except UndecodableError:
                return True  # nobody can say that it does not
        if vr in _CODED:
            return self._finder.is_in_text(content.decode("latin-1"), only_patients=True)
        return self._finder.is_in_bytes(content)


class _PrivateBlocks:
    """Who has reserved which private blocks of an object or item."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._creators: dict[int, str] = {}

    def action(self, tag: int, vr: str, content: bytes) -> Action:
        """What is done to a private element; they come in the order of their tags."""
        if not self._profile.safe_private:
            return Action.REMOVE
        group, number = tag & 0xFFFF0000, tag & 0xFFFF
        if _reserves_block(tag):
            creator = self._creators[tag] = plain(content)
            return Action.KEEP if self._profile.has_safe(creator, tag >> 16) else Action.REMOVE
        if not self._profile.is_safe(self._creators.get(group | number >> 8, ""), tag):
            return Action.REMOVE
        dates = Action.SHIFT if self._profile.shift_dates else Action.REMOVE
        return {"PN": Action.EMPTY, "UI": Action.UID, "DA": dates, "DT": dates}.get(vr, Action.KEEP)


def _reserves_block(tag: int) -> bool:
    return bool(tag & PRIVATE) and _FIRST_BLOCK <= tag & 0xFFFF <= _LAST_BLOCK


def _dummy(vr: str, content: bytes) -> bytes:
    """Something that is valid and says nothing; as many zeros where the VR has no text."""
    return _DUMMIES.get(vr) or bytes(len(content))


def _capped(content: bytes) -> tuple[bytes, Action]:
    match = _AGE_FORM.fullmatch(plain(content))
    if not match:
        return b"", Action.EMPTY
    if int(match[1]) / _IN_A_YEAR[match[2]] < _OLDEST:
        return content, Action.KEEP
    return CAPPED_AGE.encode(), Action.CAP
