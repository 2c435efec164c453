"""De-identifying a file: its header is written anew, its pixel data never touched, nor read.

What a header tells is all that is looked at. Text in the picture itself is not seen unless the header says so or the
image's kind is known for it, and a face that could be rebuilt from a head CT is not blurred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, TypeVar

from qure_provider.dicom.header import EXPLICIT, Element, Encoding, FileHeader, read_file_header
from qure_provider.dicom.identifying import LOOKED_FOR, Identifying, UndecodableError, identifying
from qure_provider.dicom.kinds import refusal_for
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
from qure_provider.dicom.rewrite import PRIVATE, Change, Memory, Rewriter, Scope, Trace, known_decoder, meant_vr

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
_MAY_NAME = frozenset({"PN", "SQ", "UN"})
_OLDEST = 90
_BABY, _NEWBORN = 2 * 12, 1
_MOST = 16
"""Studies, and ways to write a dataset, that are remembered at most."""

K = TypeVar("K")
V = TypeVar("V")


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
class _Study:
    """What files that agree about whose they are have in common.

    Attributes:
        source: Whose they are.
        pseudonym: What is sent in its place.
        rewriter: Rewrites their datasets.
    """

    source: Identity
    pseudonym: Identity
    rewriter: Rewriter


class Deidentifier:
    """De-identifies files. One for many files is fast: what the files of a series have in common is done once.

    Not for use by several threads at once.

    Args:
        pseudonyms: Makes the pseudonyms.
        profile: What becomes of each attribute; None for the default one.
    """

    def __init__(self, pseudonyms: Pseudonymizer, profile: Profile | None = None) -> None:
        self._pseudonyms = pseudonyms
        self._profile = profile or Profile()
        self._key_id = pseudonyms.key_id
        self._studies: dict[tuple[Any, ...], _Study] = {}
        self._values: dict[tuple[str, bytes], Memory[frozenset[Identifying]]] = {}

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
        return self._deidentify(source, Trace(), explain=False)

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
        trace = Trace()
        self._deidentify(source, trace, explain=True)
        return tuple(sorted(trace.changes, key=lambda change: change.tags[0]))

    def _deidentify(self, source: Source, trace: Trace, *, explain: bool) -> Deidentified:
        header = read_file_header(source, private=explain or bool(self._profile.safe_private))
        values = {tag: header.data[value:end] for tag, _, _, value, end in header.elements}
        if refusal := refusal_for(values):
            raise DeidentifyError(refusal)
        sop_class, sop_instance, series, study_uid = (
            plain(values.get(tag, b"")) for tag in (SOP_CLASS, SOP_INSTANCE, SERIES_INSTANCE, _STUDY)
        )
        if any(not uid or "\\" in uid or uid.startswith(REGISTERED) for uid in (sop_instance, series, study_uid)):
            raise DeidentifyError(Refusal.NO_UID)
        study = self._study(header, values)
        dataset = study.rewriter.rewrite(header, trace, explain=explain)
        new_uids = {meant: new for new, meant in trace.uids.items()}
        return Deidentified(
            _file_header(sop_class, new_uids[sop_instance], header.transfer_syntax_uid) + dataset,
            header.offset,
            header.end,
            new_uids[sop_instance],
            new_uids[series],
            IdentityMap(study.source, study.pseudonym, trace.uids, trace.dates, self._key_id),
        )

    def _study(self, header: FileHeader, values: Mapping[int, bytes]) -> _Study:
        """What the file has in common with others of its study, remembered."""
        charset = values.get(CHARACTER_SET, b"")
        values_found: set[Identifying] = set()
        memory = _remembered(self._values, (header.transfer_syntax_uid, charset), Memory[frozenset[Identifying]])
        for element in header.elements:
            tag, vr, start, _, end = element
            if vr in _MAY_NAME or tag in LOOKED_FOR:
                raw = header.data[start:end]
                found = memory.get(raw)
                if found is None:
                    scope = Scope(header.encoding, known_decoder(charset))
                    found = frozenset(_identifying(scope, header.data, element, self._profile))
                    memory.keep(raw, found)
                values_found |= found
        key = (header.transfer_syntax_uid, *map(values.get, _OF_STUDY), frozenset(values_found))
        return _remembered(self._studies, key, lambda: self._new_study(header, values, values_found))

    def _new_study(self, header: FileHeader, values: Mapping[int, bytes], found: Iterable[Identifying]) -> _Study:
        scope = Scope(header.encoding, known_decoder(values.get(CHARACTER_SET, b"")))
        source = _whose(values)
        patient = Patient.of(source)
        pseudonym = self._pseudonyms.identity(source, sex=self._sex_sent(source.sex))
        written = self._written(header.encoding, values, source, pseudonym)
        shift = self._pseudonyms.date_shift(patient)
        return _Study(source, pseudonym, Rewriter(self._profile, self._pseudonyms, shift, scope, written, found))

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


def _remembered(memory: dict[K, V], key: K, make: Callable[[], V]) -> V:
    value = memory.get(key)
    if value is None:
        if len(memory) >= _MOST:
            memory.clear()
        value = memory[key] = make()
    return value


def _whose(values: Mapping[int, bytes]) -> Identity:
    """Whose a file is, just as a scan records it."""
    header = Header("", "", "", dict(values), big_endian=False, has_pixels=True, whole=True)
    with quiet_pydicom():
        identity = RecordMaker().make("", 0, 0.0, header).identity
    texts = (identity.patient_id, identity.issuer_of_patient_id, identity.accession_number, identity.patient_name)
    if any("\ufffd" in text for text in texts):
        raise DeidentifyError(Refusal.UNDECODABLE)
    return identity


def _identifying(scope: Scope, data: bytes, element: Element, profile: Profile) -> Iterator[Identifying]:
    """What identifies in an element, at any depth. What a site keeps does not."""
    tag, _, _, value, end = element
    vr = meant_vr(element)
    if tag & PRIVATE:
        return
    if vr == "SQ":
        for inner, elements in scope.items(data, element):
            for each in elements:
                yield from _identifying(inner, data, each, profile)
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


def _file_header(sop_class: str, sop_instance: str, transfer_syntax: str) -> bytes:
    """Preamble and file meta information with nothing of the source's but what the object is."""
    elements = (
        (_META_VERSION, "OB", b"\0\1"),
        (MEDIA_STORAGE_CLASS, "UI", sop_class.encode()),
        (MEDIA_STORAGE_INSTANCE, "UI", sop_instance.encode()),
        (TRANSFER_SYNTAX, "UI", transfer_syntax.encode()),
        (_IMPLEMENTATION_CLASS, "UI", IMPLEMENTATION_CLASS_UID.encode()),
        (_IMPLEMENTATION_VERSION, "SH", IMPLEMENTATION_VERSION_NAME.encode()),
    )
    meta = b"".join(EXPLICIT.element(*element) for element in elements)
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
