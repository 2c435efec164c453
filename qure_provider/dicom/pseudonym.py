"""Pseudonyms that only the holder of a key can make, and the way back from them."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from types import MappingProxyType
from typing import Any

from qure_provider.dicom.model import Identity

KEY_LENGTH = 32
"""Bytes that a key has at least."""

REGISTERED = "1.2.840.10008."
"""Beginning of the UIDs that the standard itself defines: they are the same everywhere, and name nobody."""

_CODE_LENGTH = 16
"""Characters of a code: as many as an accession number may have."""
_SHORTEST_SHIFT, _LONGEST_SHIFT = 366, 3652
"""Days. A year at least, so that the true year of a recent study is never told, ten at most."""
_UUID_BITS = 128
_DATE = 8


class PseudonymCollisionError(ValueError):
    """Two sources have the same pseudonym. Nothing more may be sent with it: results could not be told apart."""


@dataclass(frozen=True, slots=True)
class Patient:
    """Whom a study belongs to, as far as pseudonyms depend on it.

    A study without a patient ID is a patient of its own: nothing says that another one is of the same person.

    Attributes:
        patient_id: PatientID; empty where the study has none.
        issuer: IssuerOfPatientID; the same ID of two issuers is of two patients.
        study_instance_uid: StudyInstanceUID where there is no patient ID, else empty.
    """

    patient_id: str
    issuer: str = ""
    study_instance_uid: str = ""

    @classmethod
    def of(cls, identity: Identity) -> Patient:
        """Gives the patient of a study."""
        patient_id = identity.patient_id.strip()
        if patient_id:
            return cls(patient_id, identity.issuer_of_patient_id.strip())
        return cls("", "", identity.study_instance_uid)


class Pseudonymizer:
    """Makes pseudonyms from a key: the same source always has the same one, and without the key none leads back.

    All files of a patient agree, on any night and any machine with the same key. Nothing is random and nothing is
    remembered.

    Changing the key: studies get new pseudonyms from then on, so a patient's earlier studies are no longer linked to
    later ones at the service. What was sent with the old key still comes back, because the way back is an
    :class:`IdentityMap` of stored pairs and needs no key. Keep the old key until no result is awaited for it: only
    with it can a lost map be made again from the source files.

    Args:
        key: The secret, ``KEY_LENGTH`` bytes or more, from a source of randomness.

    Raises:
        ValueError: If it is shorter.
    """

    __slots__ = ("_keyed", "_keyed_for_uids")

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_LENGTH:
            raise ValueError(f"the key for pseudonyms has {len(key)} bytes: it needs {KEY_LENGTH} random ones or more")
        self._keyed = hmac.new(key, digestmod="sha256")
        self._keyed_for_uids = self._hashed(self._keyed, "uid")

    def __repr__(self) -> str:
        return f"Pseudonymizer(key_id={self.key_id!r})"

    @property
    def key_id(self) -> str:
        """Tells keys apart, and tells nothing of the key."""
        return self._digest("key").hex()[:_CODE_LENGTH]

    def uid(self, original: str) -> str:
        """Gives the pseudonym of a UID: a UUID under ``2.25`` (PS3.5, B.2), of the version for one's own making.

        Args:
            original: The UID, or whatever stands in the place of one.

        Returns:
            The new UID, of 44 characters at most.
        """
        number = int.from_bytes(self._hashed(self._keyed_for_uids, original).digest()[:16], "big")
        number = number & ~(0xF << 76) | 0x8 << 76
        number = number & ~(0x3 << 62) | 0x2 << 62
        return f"2.25.{number}"

    def patient_id(self, patient: Patient) -> str:
        """Gives what stands for a patient's ID."""
        return "P" + self._code("patient id", patient)

    def patient_name(self, patient: Patient) -> str:
        """Gives what stands for a patient's name: one word, which nothing that prints it can take apart.

        It belongs to the patient's ID, not to the name: two people of one name differ, and a corrected name changes
        nothing.
        """
        return "N" + self._code("patient name", patient)

    def accession(self, accession_number: str, patient: Patient) -> str:
        """Gives what stands for an accession number; empty for none."""
        accession_number = accession_number.strip()
        return "A" + self._code("accession", patient, accession_number) if accession_number else ""

    def date_shift(self, patient: Patient) -> int:
        """Gives by how many days all of a patient's dates are moved.

        Always into the past, by more than a year: a date that the service itself writes is never taken for a shifted
        one.

        Args:
            patient: Whose dates.

        Returns:
            Days, negative.
        """
        number = int.from_bytes(self._digest("date shift", *_parts(patient))[:8], "big")
        return -(_SHORTEST_SHIFT + number % (_LONGEST_SHIFT - _SHORTEST_SHIFT))

    def identity(self, identity: Identity, *, sex: str = "") -> Identity:
        """Gives what stands for a whole identity.

        Args:
            identity: The source's.
            sex: As it is sent.

        Returns:
            Pseudonyms; issuer and birth date are empty.
        """
        patient = Patient.of(identity)
        return Identity(
            study_instance_uid=self.uid(identity.study_instance_uid),
            patient_id=self.patient_id(patient),
            accession_number=self.accession(identity.accession_number, patient),
            sex=sex,
            patient_name=self.patient_name(patient),
        )

    def _code(self, purpose: str, patient: Patient, *more: str) -> str:
        return base64.b32encode(self._digest(purpose, *_parts(patient), *more)).decode()[: _CODE_LENGTH - 1]

    def _digest(self, *parts: str) -> bytes:
        return self._hashed(self._keyed, *parts).digest()

    @staticmethod
    def _hashed(keyed: hmac.HMAC, *parts: str) -> hmac.HMAC:
        """The keyed hash of texts, each with its length, so that no two lists of texts are the same bytes."""
        code = keyed.copy()
        for part in parts:
            encoded = part.encode("utf-8", "surrogatepass")
            code.update(b"%d:%b" % (len(encoded), encoded))
        return code


def _parts(patient: Patient) -> tuple[str, str, str]:
    return patient.patient_id, patient.issuer, patient.study_instance_uid


def shifted(day: str, days: int) -> str:
    """Moves a date.

    Args:
        day: As DICOM DA, ``20240501``; the old form ``2024.05.01`` is understood.
        days: By how many.

    Returns:
        As DICOM DA.

    Raises:
        ValueError: If it is no date.
    """
    digits = day.replace(".", "") if len(day) == _DATE + 2 else day
    if len(digits) != _DATE or not (digits.isascii() and digits.isdecimal()):
        raise ValueError("no date of the form YYYYMMDD")
    try:
        moved = date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) + timedelta(days=days)
    except OverflowError:
        raise ValueError("a date that cannot be moved so far") from None
    return f"{moved.year:04}{moved.month:02}{moved.day:02}"


@dataclass(frozen=True, slots=True)
class IdentityMap:
    """The way back from what was sent of one study. It names a patient: it is kept where other patient data is.

    It holds what was sent and no key, so it stays good when the key changes.

    Attributes:
        source: Whose study it is, exactly as the source's header says.
        pseudonym: What was sent in its place.
        uids: From each UID that was sent to the source's.
        dates: From each date that was sent to the source's, as DICOM DA.
        key_id: Of the key that it was made with.
    """

    source: Identity = field(repr=False)
    pseudonym: Identity
    uids: Mapping[str, str] = field(repr=False)
    dates: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    key_id: str = ""

    def joined(self, others: Iterable[IdentityMap]) -> IdentityMap:
        """Puts the maps of several files of the same study together.

        Args:
            others: Of the same study, made with the same key.

        Returns:
            One map for all, with this one's source: what its files say beside whose they are may differ.

        Raises:
            ValueError: If one is of another study, patient, accession number or key.
            PseudonymCollisionError: If one pseudonym stands for two sources.
        """
        uids, dates = dict(self.uids), dict(self.dates)
        for other in others:
            if other._about != self._about:
                raise ValueError(
                    "maps of different studies, patients, accession numbers or keys cannot be put together"
                )
            ensure_distinct(uids, other.uids)
            ensure_distinct(dates, other.dates)
            uids.update(other.uids)
            dates.update(other.dates)
        return IdentityMap(self.source, self.pseudonym, uids, dates, self.key_id)

    @property
    def _about(self) -> tuple[str, ...]:
        sent = self.pseudonym
        return sent.study_instance_uid, sent.patient_id, sent.accession_number, self.key_id

    def to_mapping(self) -> dict[str, Any]:
        """Gives it as plain JSON values."""
        return {
            "source": asdict(self.source),
            "pseudonym": asdict(self.pseudonym),
            "uids": dict(self.uids),
            "dates": dict(self.dates),
            "key_id": self.key_id,
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> IdentityMap:
        """Takes what :meth:`to_mapping` gave.

        Raises:
            KeyError: If something is missing.
            TypeError: If something is of another form.
        """
        return cls(
            Identity(**values["source"]),
            Identity(**values["pseudonym"]),
            dict(values["uids"]),
            dict(values["dates"]),
            str(values["key_id"]),
        )


def ensure_distinct(known: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Makes sure that no pseudonym stands for two sources.

    A source that has two pseudonyms is none: that is what a changed key brings.

    Args:
        known: From pseudonym to source, of everything that was ever sent.
        new: The same, of what is about to be sent. A patient's source is the patient ID with its issuer, say, not the
            ID alone.

    Raises:
        PseudonymCollisionError: If one would.
    """
    for pseudonym, source in new.items():
        if known.get(pseudonym, source) != source:
            raise PseudonymCollisionError(
                "Two sources have the same pseudonym, so nothing was sent. Change the key for pseudonyms, and keep the "
                "old one until its studies are done."
            )
