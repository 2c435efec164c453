"""De-identifying a file: its header is written anew, its pixel data never touched, nor read.

What a header tells is all that is looked at. Text in the picture itself is not seen unless the header says so or the
image's kind is known for it, and a face that could be rebuilt from a head CT is not blurred.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from qure_provider.dicom.header import EXPLICIT, Alike, Element, Encoding, Passage, read_file_header
from qure_provider.dicom.identifying import LOOKED_FOR, Identifying, UndecodableError, identifying
from qure_provider.dicom.kinds import is_looked_at, refusal_for
from qure_provider.dicom.model import Identity
from qure_provider.dicom.profile import Action, Profile
from qure_provider.dicom.pseudonym import REGISTERED, IdentityMap, Patient, Pseudonymizer
from qure_provider.dicom.quiet import quiet_pydicom
from qure_provider.dicom.reader import (
    MEDIA_STORAGE_CLASS,
    MEDIA_STORAGE_INSTANCE,
    TRANSFER_SYNTAX,
    Header,
    Source,
    plain,
)
from qure_provider.dicom.record import CHARACTER_SET, SERIES_INSTANCE, SOP_CLASS, SOP_INSTANCE, RecordMaker
from qure_provider.dicom.refusal import DeidentifyError, Refusal
from qure_provider.dicom.rewrite import PRIVATE, Change, Piece, Rewriter, Scope, Trace, known_decoder, meant_vr

IMPLEMENTATION_CLASS_UID = "2.25.253480319158226530467309211829172934771"
IMPLEMENTATION_VERSION_NAME = "QURE_PROVIDER"

_STUDY, _ACCESSION, _NAME, _PATIENT_ID, _ISSUER = 0x0020000D, 0x00080050, 0x00100010, 0x00100020, 0x00100021
_BIRTH_DATE, _SEX, _AGE, _STUDY_DATE = 0x00100030, 0x00100040, 0x00101010, 0x00080020
_OF_STUDY = (
    *(CHARACTER_SET, _STUDY, _ACCESSION, _NAME, _PATIENT_ID, _ISSUER),
    *(_BIRTH_DATE, _SEX, _AGE, _STUDY_DATE),
)
_IDENTITY_REMOVED, _METHOD, _METHOD_CODES, _DATES_MODIFIED = 0x00120062, 0x00120063, 0x00120064, 0x00280303
_CODE_VALUE, _CODING_SCHEME, _CODE_MEANING = 0x00080100, 0x00080102, 0x00080104
_META_VERSION, _META_LENGTH, _IMPLEMENTATION_CLASS, _IMPLEMENTATION_VERSION = (
    *(0x00020001, 0x00020000, 0x00020012, 0x00020013),
)
_PREAMBLE = bytes(128) + b"DICM"
_DECIDING = frozenset({SOP_CLASS, SERIES_INSTANCE, *_OF_STUDY, *LOOKED_FOR})
_MAY_NAME = frozenset({"PN", "SQ", "UN"})
_OLDEST = 90
_BABY, _NEWBORN = 2 * 12, 1


@dataclass(frozen=True, slots=True)
class Deidentified:
    """A file as it may leave: ``header``, then the source's bytes from ``offset`` to ``end``.

    Together they are a DICOM file of the same transfer syntax. What the source has after ``end`` (padding, a signature,
    private elements) does not go with it.

    Attributes:
        header: Everything before the pixel data.
        offset: Where in the source the pixel data element begins.
        end: Where it ends.
        sop_instance_uid: SOPInstanceUID as it stands in what is sent.
        series_instance_uid: SeriesInstanceUID as it stands in what is sent.
        identity_map: The way back from this file.
    """

    header: bytes = field(repr=False)
    offset: int
    end: int
    sop_instance_uid: str
    series_instance_uid: str
    identity_map: IdentityMap = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes that are sent."""
        return len(self.header) + self.end - self.offset


@dataclass(frozen=True, slots=True)
class _Part:
    """What passages come to in any file of their study.

    Attributes:
        values: Of their public elements, by tag.
        identifying: What identifies in them.
        pieces: What is left of them.
        trace: What was done to them.
    """

    values: Mapping[int, bytes] = field(default_factory=dict)
    identifying: frozenset[Identifying] = frozenset()
    pieces: Sequence[Piece] = ()
    trace: Trace = field(default_factory=Trace)

    @classmethod
    def of_all(cls, parts: Iterable[_Part]) -> _Part:
        """Puts several together."""
        values: dict[int, bytes] = {}
        identifying: frozenset[Identifying] = frozenset()
        pieces: list[Piece] = []
        trace = Trace()
        for part in parts:
            values.update(part.values)
            identifying |= part.identifying
            pieces += part.pieces
            trace.uids.update(part.trace.uids)
            trace.dates.update(part.trace.dates)
        return cls(values, identifying, pieces, trace)


_NOTHING = _Part()


@dataclass(slots=True)
class _Study:
    """What files that agree about whose they are have in common.

    Attributes:
        key: Wherein they agree. Files of the same key have the same done to the same bytes.
        source: Whose they are.
        pseudonym: What is sent in its place.
        scope: How their datasets are written.
        rewriter: Rewrites these.
        alike: What their headers have in common.
        parts: What each passage of that comes to.
        met: The passages that the latest of them has, and what they come to together.
        is_judged: Whether a file that has these, and decides nothing besides, may leave as one of this study.
    """

    key: tuple[Any, ...]
    source: Identity
    pseudonym: Identity
    scope: Scope
    rewriter: Rewriter
    alike: Alike
    parts: WeakKeyDictionary[Passage, _Part] = field(default_factory=WeakKeyDictionary)
    met: tuple[Sequence[Passage], _Part] = ((), _NOTHING)
    is_judged: bool = False


class Deidentifier:
    """De-identifies files. One for many files is fast: a series' headers are compared, and what is alike is done once.

    Not for use by several threads at once.

    Args:
        pseudonyms: Makes the pseudonyms.
        profile: What becomes of each attribute; None for the default one.
    """

    def __init__(self, pseudonyms: Pseudonymizer, profile: Profile | None = None) -> None:
        self._pseudonyms = pseudonyms
        self._profile = profile or Profile()
        self._key_id = pseudonyms.key_id
        self._last: _Study | None = None

    def deidentify(self, source: Source) -> Deidentified:
        """De-identifies one file.

        Args:
            source: The file.

        Returns:
            What may leave of it.

        Raises:
            DeidentifyError: If nobody can be sure that it would not tell whose it is. It is to be quarantined.
            UnfitError: If it cannot be read.
        """
        return self._deidentify(source, Trace())

    def explain(self, source: Source) -> tuple[Change, ...]:
        """Tells what becomes of each attribute of a file.

        Args:
            source: The file.

        Returns:
            One entry for each attribute, in the order of their tags; those of a sequence's items follow it.

        Raises:
            DeidentifyError: As :meth:`deidentify` does.
            UnfitError: If it cannot be read.
        """
        trace = Trace(explains=True)
        self._deidentify(source, trace)
        return tuple(sorted(trace.changes, key=lambda change: change.tags[0]))

    def _deidentify(self, source: Source, trace: Trace) -> Deidentified:
        last = None if trace.explains else self._last
        header = read_file_header(source, last.alike if last else None)
        met = self._met(last, header.met) if last else _NOTHING
        elements = header.elements if trace.explains else self._treated(header.elements)
        values = {**met.values, **_values(header.data, elements)}
        sop_class, sop_instance, series, study_uid = (
            plain(values.get(tag, b"")) for tag in (SOP_CLASS, SOP_INSTANCE, SERIES_INSTANCE, _STUDY)
        )
        if any(not uid or "\\" in uid or uid.startswith(REGISTERED) for uid in (sop_instance, series, study_uid)):
            raise DeidentifyError(Refusal.NO_UID)
        decides = any(tag in _DECIDING or vr in _MAY_NAME or is_looked_at(tag) for tag, vr, *_ in elements)
        if last and last.is_judged and not decides:
            study = last
        else:
            if refusal := refusal_for(values):
                raise DeidentifyError(refusal)
            scope = Scope(header.encoding, known_decoder(values.get(CHARACTER_SET, b"")))
            found = met.identifying | _identifying(scope, header.data, elements, self._profile)
            key = (header.transfer_syntax_uid, *map(values.get, _OF_STUDY), found)
            if last and last.key != key:
                last = self._last = None
                if header.met:  # read by another study's passages
                    return self._deidentify(source, trace)
            study = last or self._new_study(key, scope, values, found)
            study.is_judged = not decides
        pieces = [*met.pieces, *study.rewriter.rewrite(header.data, elements, trace)]
        trace.uids.update(met.trace.uids)
        trace.dates.update(met.trace.dates)
        new_uids = {meant: new for new, meant in trace.uids.items()}
        if not new_uids.keys() >= {sop_instance, series, study_uid}:  # one is written as a sequence
            raise DeidentifyError(Refusal.NO_UID)
        dataset = study.rewriter.joined(pieces, trace)
        if not trace.explains:
            study.alike.learn(header)  # only now: what of it is met again has been found fit to leave
            self._last = study
        return Deidentified(
            _file_header(sop_class, new_uids[sop_instance], header.transfer_syntax_uid) + dataset,
            header.offset,
            header.end,
            new_uids[sop_instance],
            new_uids[series],
            IdentityMap(study.source, study.pseudonym, trace.uids, trace.dates, self._key_id),
        )

    def _treated(self, elements: Iterable[Element]) -> list[Element]:
        """Elements without those that are removed in any case: private ones, where the profile has none that stay."""
        return [each for each in elements if not each[0] & PRIVATE or self._profile.safe_private]

    def _met(self, study: _Study, passages: Sequence[Passage]) -> _Part:
        """What passages come to together, which in most files of a study are those of the file before."""
        if study.met[0] != passages:
            study.is_judged = False
            study.met = passages, _Part.of_all(self._part(study, passage) for passage in passages)
        return study.met[1]

    def _part(self, study: _Study, passage: Passage) -> _Part:
        part = study.parts.get(passage)
        if part is None:
            data, elements, trace = passage.data, self._treated(passage.elements), Trace()
            part = study.parts[passage] = _Part(
                _values(data, elements),
                _identifying(study.scope, data, elements, self._profile),
                study.rewriter.in_rows(study.rewriter.rewrite(data, elements, trace)),
                trace,
            )
        return part

    def _new_study(
        self, key: tuple[Any, ...], scope: Scope, values: Mapping[int, bytes], found: frozenset[Identifying]
    ) -> _Study:
        source = _whose(values)
        patient = Patient.of(source)
        pseudonym = self._pseudonyms.identity(source, sex=self._sex_sent(source.sex))
        written = self._written(scope.encoding, values, source, pseudonym)
        shift = self._pseudonyms.date_shift(patient)
        rewriter = Rewriter(self._profile, self._pseudonyms, shift, scope, written, found)
        return _Study(key, source, pseudonym, scope, rewriter, Alike(self._is_in_order))

    def _is_in_order(self, tag: int) -> bool:
        """Whether what becomes of an attribute depends on another: a private one on who has reserved its block."""
        return bool(tag & PRIVATE and self._profile.safe_private)

    def _sex_sent(self, sex: str) -> str:
        action = self._profile.action(_SEX)
        return {Action.KEEP: sex, Action.REPLACE: self._profile.replacement(_SEX)}.get(action, "")

    def _written(
        self, encoding: Encoding, values: Mapping[int, bytes], source: Identity, pseudonym: Identity
    ) -> dict[int, tuple[bytes, Action]]:
        """The elements that are written anew in every file of a study."""
        profile = self._profile
        method = "\\".join(profile.method)
        codes = encoding.items([_code(encoding, value, meaning) for value, meaning in profile.codes])
        new: dict[int, tuple[str, bytes, Action]] = {
            _NAME: ("PN", pseudonym.patient_name.encode(), Action.PSEUDONYM),
            _PATIENT_ID: ("LO", pseudonym.patient_id.encode(), Action.PSEUDONYM),
            _IDENTITY_REMOVED: ("CS", b"YES", Action.ADD),
            _METHOD: ("LO", method.encode(), Action.ADD),
            _METHOD_CODES: ("SQ", codes, Action.ADD),
            _DATES_MODIFIED: ("CS", b"MODIFIED" if profile.shift_dates else b"REMOVED", Action.ADD),
        }
        if _ACCESSION in values:
            new[_ACCESSION] = ("SH", pseudonym.accession_number.encode(), Action.PSEUDONYM)
        if _AGE not in values and profile.action(_AGE) is Action.KEEP:
            age = _age(source.birth_date, plain(values.get(_STUDY_DATE, b"")))
            if age:
                new[_AGE] = ("AS", age.encode(), Action.ADD)
        return {tag: (encoding.element(tag, vr, value), action) for tag, (vr, value, action) in new.items()}


def _values(data: bytes, elements: Iterable[Element]) -> dict[int, bytes]:
    return {tag: data[value:end] for tag, _, _, value, end in elements if not tag & PRIVATE}


def _whose(values: Mapping[int, bytes]) -> Identity:
    """Whose a file is, just as a scan records it."""
    header = Header("", "", "", dict(values), big_endian=False, has_pixels=True, whole=True)
    with quiet_pydicom():
        identity = RecordMaker().make("", 0, 0.0, header).identity
    texts = (identity.patient_id, identity.issuer_of_patient_id, identity.accession_number, identity.patient_name)
    if any("\ufffd" in text for text in texts):
        raise DeidentifyError(Refusal.UNDECODABLE)
    return identity


def _identifying(scope: Scope, data: bytes, elements: Iterable[Element], profile: Profile) -> frozenset[Identifying]:
    """What identifies in the elements of a dataset."""
    return frozenset(
        found
        for element in elements
        if element[1] in _MAY_NAME or element[0] in LOOKED_FOR
        for found in _identifying_in(scope, data, element, profile)
    )


def _identifying_in(scope: Scope, data: bytes, element: Element, profile: Profile) -> Iterator[Identifying]:
    """What identifies in an element, at any depth. What a site keeps does not."""
    tag, _, _, value, end = element
    vr = meant_vr(element)
    if tag & PRIVATE:
        return
    if vr == "SQ":
        for inner, elements in scope.items(data, element):
            for each in elements:
                yield from _identifying_in(inner, data, each, profile)
    elif profile.action(tag) is not Action.KEEP:
        content = data[value:end]
        try:
            text = scope.decode(content)
        except UndecodableError:
            text = content.decode("latin-1")
        yield from identifying(tag, vr, text)


def _code(encoding: Encoding, value: str, meaning: str) -> bytes:
    return (
        encoding.element(_CODE_VALUE, "SH", value.encode())
        + encoding.element(_CODING_SCHEME, "SH", b"DCM")
        + encoding.element(_CODE_MEANING, "LO", meaning.encode())
    )


@lru_cache(maxsize=16)
def _around_instance(sop_class: str, transfer_syntax: str) -> tuple[bytes, bytes]:
    """What stands before and after the SOP instance in file meta information."""
    before = ((_META_VERSION, "OB", b"\0\1"), (MEDIA_STORAGE_CLASS, "UI", sop_class.encode()))
    after = (
        (TRANSFER_SYNTAX, "UI", transfer_syntax.encode()),
        (_IMPLEMENTATION_CLASS, "UI", IMPLEMENTATION_CLASS_UID.encode()),
        (_IMPLEMENTATION_VERSION, "SH", IMPLEMENTATION_VERSION_NAME.encode()),
    )
    written = [b"".join(EXPLICIT.element(*element) for element in part) for part in (before, after)]
    return written[0], written[1]


def _file_header(sop_class: str, sop_instance: str, transfer_syntax: str) -> bytes:
    """Preamble and file meta information with nothing of the source's but what the object is."""
    before, after = _around_instance(sop_class, transfer_syntax)
    meta = before + EXPLICIT.element(MEDIA_STORAGE_INSTANCE, "UI", sop_instance.encode()) + after
    return _PREAMBLE + EXPLICIT.element(_META_LENGTH, "UL", len(meta).to_bytes(4, "little")) + meta


def _age(birth_date: str, study_date: str) -> str:
    """An age as DICOM AS: in years, of a baby in months, of a newborn in days; empty where it cannot be told."""
    try:
        born, studied = date.fromisoformat(birth_date), date.fromisoformat(study_date)
    except ValueError:
        return ""
    if studied < born:
        return ""
    months = 12 * (studied.year - born.year) + studied.month - born.month - (studied.day < born.day)
    if months < _NEWBORN:
        return f"{(studied - born).days:03}D"
    return f"{months:03}M" if months < _BABY else f"{min(months // 12, _OLDEST):03}Y"
