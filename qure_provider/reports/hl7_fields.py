"""How a hospital wants its ORU messages: versions, names, statuses, and what stands in which field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType

from qure_provider.dicom.model import Identity, StudyFacts
from qure_provider.reports.hl7_syntax import CharacterSet

OBSERVATION = "OBX "
"""What the name of a place begins with that is an observation of its own; the rest is its OBX-3."""

SENDING_APPLICATION = "QURE-AI"
"""MSH-3, if the connection does not say otherwise."""

DEFAULT_PLACES: Mapping[str, str] = MappingProxyType(
    {
        "PID-3": "{patient_id}^^^{issuer_of_patient_id}",
        "ORC-2": "{placer_order_number}",
        "OBR-2": "{placer_order_number}",
        "OBR-3": "{report_number}^QURE-AI",
        "OBR-4": "AI-{product}^AI analysis {product}^99QURE",
        "OBR-7": "{acquired}",
        "OBR-16": "{referring_physician}",
        "OBR-18": "{accession_number}",
        "OBR-24": "RAD",
        "OBX 113014^DICOM Study^DCM": "{study_instance_uid}",
    }
)
"""What stands where, if the connection does not say otherwise.

OBR-18 and the study's observation are where IHE puts accession number and StudyInstanceUID (IHE RAD TF-2, 4.7, and
RAD-128). The source's filler order number stands nowhere: under it the radiologist's report is filed.
"""

PLACEHOLDERS = frozenset(
    {item.name for item in (*fields(Identity), *fields(StudyFacts))} | {"product", "report_number", "revision"}
)
"""What a place may name in braces."""

_PLACE = re.compile(r"(MSH|PID|PV1|ORC|OBR|Z[A-Z0-9]{2})-([1-9]\d?)")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_CODED = re.compile(r"[^|~\\&{}\x00-\x1f\x7f]+")
_STARTS = {"PID-3": "{patient_id}", "OBR-3": "{report_number}"}
"""By these the receiver knows patient and report; nothing else may stand there."""
_OURS = frozenset(
    {
        *(f"MSH-{number}" for number in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 15, 16, 18)),
        *(f"PID-{number}" for number in (1, 5, 7, 8)),
        *(f"ORC-{number}" for number in (1, 3, 5)),
        *(f"OBR-{number}" for number in (1, 22, 25, 32)),
    }
)
"""What is the report's own, or a setting of its own, or must stay empty (OBR-32, who is responsible)."""
_HIERARCHIC = re.compile(r"[^|~\\&{}\x00-\x1f\x7f]*")


class Hl7SettingsError(ValueError):
    """The settings cannot make a message; mend the connection. The message names the setting."""


class Hl7Version(StrEnum):
    """MSH-12."""

    V2_3_1 = "2.3.1"
    V2_4 = "2.4"
    V2_5_1 = "2.5.1"


class ProcessingId(StrEnum):
    """MSH-11 (table 0103): what the receiver does with it."""

    PRODUCTION = "P"
    TRAINING = "T"


class ResultStatus(StrEnum):
    """OBR-25 and OBX-11 (tables 0123, 0085). There is no final: nobody has verified what an AI says."""

    NOT_VERIFIED = "R"
    PRELIMINARY = "P"


class WithdrawnStatus(StrEnum):
    """OBR-25 of a withdrawal, whose observations have W ("post original as wrong") in OBX-11.

    Table 0123 has no W for OBR-25. In HL7 v2.5.1 ``C`` is any correction to results, which a withdrawal is; later
    versions keep it for what was final and have ``M`` for what was not. ``X`` says that there are no results, but also
    "order canceled", which a receiver might take for the order of the images.
    """

    CORRECTION = "C"
    CORRECTION_OF_NOT_FINAL = "M"
    CANCELED = "X"
    WRONG = "W"


class AcknowledgementMode(StrEnum):
    """Which acknowledgements the receiver is asked for (HL7 v2.5.1, 2.9)."""

    ORIGINAL = "original"
    """One, by the application: AA, AE or AR."""
    ENHANCED = "enhanced"
    """Two on the same connection: CA, CE or CR when it is stored, then the application's."""
    COMMIT = "commit"
    """Enhanced mode with the first of the two alone."""

    @property
    def requested(self) -> tuple[str, str]:
        """MSH-15 and MSH-16 (table 0155)."""
        return {"original": ("", ""), "enhanced": ("AL", "AL"), "commit": ("AL", "NE")}[self.value]


@dataclass(frozen=True, slots=True)
class Hl7Fields:
    """The settings that a message is built by.

    Attributes:
        processing_id: MSH-11.
        version: MSH-12.
        sending_application: MSH-3; components divided by ``^``.
        sending_facility: MSH-4, likewise.
        receiving_application: MSH-5, likewise.
        receiving_facility: MSH-6, likewise.
        acknowledgement: What MSH-15 and MSH-16 ask for.
        character_set: MSH-18, and what the message is encoded in.
        report_status: OBR-25 and OBX-11.
        withdrawn_status: OBR-25 of a withdrawal.
        include_scores: Whether scores, and decisions made by them, are sent.
        include_pdf: Whether the report's PDF is sent along.
        places: What stands where: a field (``OBR-19``, ``ZDS-1``, ``PV1-2``) or an observation of its own (``OBX``, a
            blank, and its OBX-3), to its content as HL7 writes it, with names of ``PLACEHOLDERS`` in braces. It is laid
            over ``DEFAULT_PLACES``; an empty content takes a place away. PID-3 and OBR-3 have to begin with
            ``{patient_id}`` and ``{report_number}``, and OBR-4 may name only ``{product}``: by these three a receiver
            knows the patient, and that an update replaces our report and nobody else's.

    Raises:
        Hl7SettingsError: If one of them is not as described.
    """

    processing_id: ProcessingId
    version: Hl7Version = Hl7Version.V2_5_1
    sending_application: str = SENDING_APPLICATION
    sending_facility: str = ""
    receiving_application: str = ""
    receiving_facility: str = ""
    acknowledgement: AcknowledgementMode = AcknowledgementMode.ORIGINAL
    character_set: CharacterSet = CharacterSet.UTF_8
    report_status: ResultStatus = ResultStatus.NOT_VERIFIED
    withdrawn_status: WithdrawnStatus = WithdrawnStatus.CORRECTION
    include_scores: bool = False
    include_pdf: bool = False
    places: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise Hl7SettingsError(f"{name}: must be one of {', '.join(kind)}")
        for name in ("sending_application", "sending_facility", "receiving_application", "receiving_facility"):
            if not _HIERARCHIC.fullmatch(getattr(self, name)):
                raise Hl7SettingsError(f"{name}: must hold none of | ~ & \\ {{ }} and no control character")
        for place, content in {**DEFAULT_PLACES, **self.places}.items():
            _check(place, content)

    def filled(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return what stands in which place.

        Args:
            values: What each of ``PLACEHOLDERS`` stands for, as HL7 writes it.

        Returns:
            Place to content, without those that are empty, or name only what is.
        """
        texts = {}
        for place, content in {**DEFAULT_PLACES, **self.places}.items():
            names = _PLACEHOLDER.findall(content)
            if content and (not names or any(values[name] for name in names)):
                texts[place] = _PLACEHOLDER.sub(lambda match: values[match[1]], content).rstrip("^")
        return texts


_KINDS: Mapping[str, type[StrEnum]] = {
    "processing_id": ProcessingId,
    "version": Hl7Version,
    "acknowledgement": AcknowledgementMode,
    "character_set": CharacterSet,
    "report_status": ResultStatus,
    "withdrawn_status": WithdrawnStatus,
}


def _check(place: str, content: str) -> None:
    if place in _OURS:
        raise Hl7SettingsError(f"places: {place} is not to be chosen; it is made from the report or another setting")
    if place.startswith(OBSERVATION):
        if not _CODED.fullmatch(place.removeprefix(OBSERVATION)):
            raise Hl7SettingsError(f"places: {place!r} must be OBX, a blank and an identifier such as 1234^Name^L")
    elif not _PLACE.fullmatch(place):
        raise Hl7SettingsError(
            f"places: {place!r} is no place. Use a field of MSH, PID, PV1, ORC, OBR or a Z-segment, such as OBR-19 or "
            "ZDS-1, or OBX, a blank and an identifier"
        )
    if not isinstance(content, str):
        raise Hl7SettingsError(f"places: the content of {place} must be a text")
    names = set(_PLACEHOLDER.findall(content))
    if unknown := names - PLACEHOLDERS:
        raise Hl7SettingsError(f"places: {place} names what there is not: {', '.join(sorted(unknown))}")
    if re.search(r"[|\\{}\x00-\x1f\x7f]", _PLACEHOLDER.sub("", content)):
        raise Hl7SettingsError(
            f"places: the content of {place} must hold no | or \\, no brace without a name, no line end"
        )
    start = _STARTS.get(place)
    if start and ("~" in content or content.split("^")[0] != start):
        raise Hl7SettingsError(f"places: {place} must be one value with {start} as its first component")
    if place == "OBR-4" and (not content or not names <= {"product"}):
        raise Hl7SettingsError("places: OBR-4 must be there, and name nothing but {product}: it tells reports apart")
