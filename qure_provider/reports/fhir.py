"""A study's AI report as HL7 FHIR R4 (4.0.1).

What is written, and by which request it is put: an update that replaces the resource with our identifier, or a create
that does nothing where there is one. The same report is therefore never there twice. A Patient, an ImagingStudy or a
ServiceRequest is only ever referred to.
"""

from __future__ import annotations

import base64
import hashlib
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from qure_provider.api.model import Meaning
from qure_provider.reports.fhir_text import (
    MANUFACTURER,
    MEANING_TEXTS,
    TITLE,
    conclusion,
    effective_time,
    fitting,
    subject_of,
)
from qure_provider.reports.result import MODEL_NOT_STATED, UNVERIFIED, WITHDRAWN, Result
from qure_provider.reports.study_report import StudyReport

Resource = dict[str, Any]
"""A FHIR resource or data type as JSON."""

_ROOT: Final = uuid.uuid5(uuid.NAMESPACE_URL, "airflow-provider-qure/fhir")
_ARC: Final = f"urn:oid:2.25.{_ROOT.int}"

REPORT_SYSTEM: Final = f"{_ARC}.1"
"""Of a report's number, which every revision keeps."""
REVISION_SYSTEM: Final = f"{_ARC}.2"
"""Of ``<number>.<revision>``."""
PART_SYSTEM: Final = f"{_ARC}.3"
"""Of the numbers of a report's observations."""
DEVICE_SYSTEM: Final = f"{_ARC}.4"
"""Of the numbers of product and model version."""
CODE_SYSTEM: Final = f"{_ARC}.5"
"""Of our own codes: no radiologist's report or finding has them."""

_AI_ASSERTED: Final = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
_DICOM_UID: Final = "urn:dicom:uid"
_IN_ERROR: Final = "entered-in-error"
_MEANING_CODES: Final = {
    Meaning.URGENT: "urgent",
    Meaning.ABNORMAL: "abnormal",
    Meaning.NO_FINDING: "no-finding-of-this-product",
    Meaning.UNKNOWN: "unknown",
}
_REVISION_DIGITS: Final = 18
_KINDS: Final = {
    "triage": "AI triage word",
    "meaning": "AI triage meaning",
    "finding": "AI finding",
    "decision": "AI decision: score beyond its threshold",
    "score": "AI score",
}


class ReportStatus(StrEnum):
    """How far a DiagnosticReport has come. There is no final one: an AI report is verified by nobody."""

    PARTIAL = "partial"
    PRELIMINARY = "preliminary"


@dataclass(frozen=True, slots=True)
class FhirOptions:
    """What a site decides about the content.

    Attributes:
        status: Of the DiagnosticReport.
        include_pdf: Whether the report's PDF goes along.
        include_scores: Whether scores go along, and decisions that are negative.
        accession_system: System of the accession numbers by which orders are referred to; may be empty.

    Raises:
        TypeError: If the status is not a ``ReportStatus``.
    """

    status: ReportStatus = ReportStatus.PARTIAL
    include_pdf: bool = True
    include_scores: bool = False
    accession_system: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.status, ReportStatus):
            raise TypeError("An AI report's status is partial or preliminary.")


@dataclass(frozen=True, slots=True)
class Part:
    """One resource and the request that puts it.

    Attributes:
        resource: The resource.
        criterion: The search that finds it again, such as ``identifier=<system>|<value>``.
        replaces: Whether one that is there is replaced; else it is left as it is.
    """

    resource: Resource
    criterion: str
    replaces: bool

    @property
    def kind(self) -> str:
        """Its resource type."""
        return str(self.resource["resourceType"])

    @property
    def request(self) -> Resource:
        """The request of its entry in a transaction."""
        if self.replaces:
            return {"method": "PUT", "url": f"{self.kind}?{self.criterion}"}
        return {"method": "POST", "url": self.kind, "ifNoneExist": self.criterion}

    @property
    def full_url(self) -> str:
        """The URN by which the other parts refer to it until the server gives it an id; always the same."""
        return _urn(self.kind, self.criterion)


def report_parts(report: StudyReport, patient: str, options: FhirOptions) -> tuple[Part, ...]:
    """Write a report as Devices, Observations, one DiagnosticReport and one Provenance, in an order to put them in.

    Report text is kept verbatim, but for characters that a FHIR string cannot hold: each of those is replaced by one
    (U+FFFD, or a plain blank for an unusual one).

    Args:
        report: What it says. Its ``issued`` must have the zone of the hospital's clock, which acquisition times are
            read in.
        patient: Reference to the patient's record on the server, such as ``Patient/17``.
        options: What goes into it.

    Returns:
        The parts, which refer to each other by ``full_url``.

    Raises:
        ValueError: If ``issued`` has no zone, or the result is not FHIR.
        OSError: If the PDF cannot be read.
    """
    return _Writer(report, patient, options).parts()


def document_part(report: StudyReport, patient: str, options: FhirOptions) -> Part:
    """Write a report as one DocumentReference, with the PDF or else its text, for servers that take nothing else.

    Args:
        report: What it says.
        patient: Reference to the patient's record on the server.
        options: What goes into it.

    Returns:
        The part; it refers to no other.

    Raises:
        ValueError: If ``issued`` has no zone, or the result is not FHIR.
        OSError: If the PDF cannot be read.
    """
    return _Writer(report, patient, options).document()


def transaction(parts: Iterable[Part], known: Mapping[str, str], replacements: Mapping[str, Resource]) -> Resource:
    """Put parts into one transaction.

    Its entries are in an order in which they can be carried out one by one, too: what is referred to comes first.

    Args:
        parts: What is to be put.
        known: ``full_url`` of parts that the server has already, to the reference that they have there. They are left
            out.
        replacements: References of resources that the server has, to what takes their place; they come before all else.

    Returns:
        A Bundle of type ``transaction``.
    """
    entries: list[Resource] = [
        {"resource": resource, "request": {"method": "PUT", "url": reference}}
        for reference, resource in replacements.items()
    ]
    entries += [
        {"fullUrl": part.full_url, "resource": resolved(part.resource, known), "request": part.request}
        for part in parts
        if part.full_url not in known
    ]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def as_object(value: Any) -> Resource:
    """Return a JSON object as it is, and an empty one in place of whatever else a server may have put there."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[Resource]:
    """Return the objects of a JSON list; whatever else a server may have put there is passed over."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def resolved(value: Any, known: Mapping[str, str]) -> Any:
    """Return a copy of a resource, with references replaced by those that the server gave.

    Args:
        value: A resource or any part of one.
        known: Reference as written, to the one that takes its place.
    """
    if isinstance(value, dict):
        return {
            key: known.get(item, item) if key == "reference" and isinstance(item, str) else resolved(item, known)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [resolved(item, known) for item in value]
    return value


def revision_of(resource: Resource, key: str) -> int | None:
    """Tell which revision of a report a server holds.

    Args:
        resource: A DiagnosticReport or DocumentReference.
        key: The report's number.

    Returns:
        The revision; None where it is not ours or does not say.
    """
    for identifier in objects(resource.get("identifier")):
        number, _, revision = str(identifier.get("value", "")).rpartition(".")
        is_ours = identifier.get("system") == REVISION_SYSTEM and number == key
        if is_ours and revision.isdecimal() and len(revision) <= _REVISION_DIGITS:
            return int(revision)
    return None


def is_in_error(resource: Resource) -> bool:
    """Tell whether a resource has been taken back."""
    return resource.get("status") == _IN_ERROR


def in_error(resource: Resource) -> Resource:
    """Take a resource back: its status says so, and where people read a conclusion, that does too.

    Args:
        resource: A DiagnosticReport, Observation or DocumentReference as the server holds it.

    Returns:
        The resource to put in its place.
    """
    taken_back = {**resource, "status": _IN_ERROR}
    for words in ("conclusion", "description"):
        if words in resource and not str(resource[words]).startswith(WITHDRAWN):
            taken_back[words] = f"{WITHDRAWN}\n\n{resource[words]}"
    if "docStatus" in resource:
        taken_back["docStatus"] = _IN_ERROR
    return taken_back


class _Writer:
    """Writes one report's resources."""

    def __init__(self, report: StudyReport, patient: str, options: FhirOptions) -> None:
        if report.issued.utcoffset() is None:
            raise ValueError("A report's time of issue needs a zone.")
        self._report = report
        self._patient = patient
        self._options = options
        self._issued = report.issued.isoformat(timespec="milliseconds")
        self._effective = effective_time(report.facts, report.issued.tzinfo)

    def parts(self) -> tuple[Part, ...]:
        devices = {version: self._device(version) for version in self._versions()}
        observations = [part for result in self._report.results for part in self._observations(result, devices)]
        diagnostic_report = self._diagnostic_report(observations)
        provenance = self._provenance([diagnostic_report, *observations], list(devices.values()))
        return _checked((*devices.values(), *observations, diagnostic_report, provenance))

    def document(self) -> Part:
        devices = [
            {**self._device(version).resource, "id": f"device-{number}"}
            for number, version in enumerate(self._versions(), 1)
        ]
        pdf = self._pdf()
        resource = {
            "resourceType": "DocumentReference",
            "meta": _meta(),
            "contained": devices,
            "masterIdentifier": _identifier(REPORT_SYSTEM, self._report.key),
            "identifier": self._identifiers(),
            "status": "current",
            "docStatus": "preliminary",
            "type": self._code(),
            "subject": {"reference": self._patient},
            "date": self._issued,
            "author": [{"reference": f"#{device['id']}"} for device in devices],
            "description": fitting(conclusion(self._report)),
            "content": [{"attachment": attachment} for attachment in (pdf or [self._text()])],
            "context": {"related": [self._imaging_study(), *self._orders()]},
        }
        part = Part(resource, f"identifier={REPORT_SYSTEM}|{self._report.key}", replaces=True)
        return _checked((part,))[0]

    def _versions(self) -> list[str | None]:
        return list(dict.fromkeys(result.model_version for result in self._report.results))

    def _device(self, version: str | None) -> Part:
        number = _digest(self._report.product, version or "")
        resource = {
            "resourceType": "Device",
            "identifier": [_identifier(DEVICE_SYSTEM, number)],
            "status": "active",
            "manufacturer": MANUFACTURER,
            "deviceName": [{"name": fitting(self._report.product) or "unknown", "type": "manufacturer-name"}],
            "type": {"text": "AI software for radiology images"},
            "version": [{"value": fitting(version or "") or MODEL_NOT_STATED}],
        }
        return Part(resource, f"identifier={DEVICE_SYSTEM}|{number}", replaces=False)

    def _observations(self, result: Result, devices: Mapping[str | None, Part]) -> Iterator[Part]:
        device = devices[result.model_version]
        seen: dict[tuple[str, str], int] = {}
        for kind, name, value in self._values(result):
            repeat = seen[kind, name] = seen.get((kind, name), 0) + 1
            number = f"{self._report.key}.{_digest(result.uid, kind, name, str(repeat))}"
            resource = {
                "resourceType": "Observation",
                "meta": _meta(),
                "identifier": [_identifier(PART_SYSTEM, number)],
                "status": "preliminary",
                "category": [
                    {
                        "coding": [
                            {
                                "system": "http://terminology.hl7.org/CodeSystem/observation-category",
                                "code": "imaging",
                                "display": "Imaging",
                            }
                        ]
                    }
                ],
                "code": {
                    "coding": [{"system": CODE_SYSTEM, "code": kind, "display": _KINDS[kind]}],
                    "text": fitting(name) or _KINDS[kind],
                },
                "subject": {"reference": self._patient},
                **self._when(),
                **value,
                "note": [{"text": UNVERIFIED}, {"text": f"About: {subject_of(result)}"}],
                "device": {"reference": device.full_url},
                "derivedFrom": [self._imaging_study()],
            }
            yield Part(resource, f"identifier={PART_SYSTEM}|{number}", replaces=True)

    def _values(self, result: Result) -> Iterator[tuple[str, str, Resource]]:
        yield "triage", _KINDS["triage"], _text_value(result.triage or "")
        yield "meaning", _KINDS["meaning"], {"valueCodeableConcept": _meaning(result.meaning)}
        for key, text in result.report.findings_list:
            yield "finding", key, _text_value(text)
        for key, decision in result.decisions.items():
            if decision or self._options.include_scores:
                yield "decision", key, {"valueBoolean": decision}
        if self._options.include_scores:
            for key, score in result.scores.items():
                yield "score", key, _number_value(score)

    def _diagnostic_report(self, observations: Iterable[Part]) -> Part:
        resource = {
            "resourceType": "DiagnosticReport",
            "meta": _meta(),
            "identifier": self._identifiers(),
            **({"basedOn": orders} if (orders := self._orders()) else {}),
            "status": self._options.status.value,
            "category": [
                {
                    "coding": [
                        {
                            "system": "http://terminology.hl7.org/CodeSystem/v2-0074",
                            "code": "RAD",
                            "display": "Radiology",
                        }
                    ]
                }
            ],
            "code": self._code(),
            "subject": {"reference": self._patient},
            **self._when(),
            "result": [
                {"reference": part.full_url, "identifier": dict(part.resource["identifier"][0])}
                for part in observations
            ],
            "imagingStudy": [self._imaging_study()],
            "conclusion": fitting(conclusion(self._report)),
            **({"presentedForm": pdf} if (pdf := self._pdf()) else {}),
        }
        return Part(resource, f"identifier={REPORT_SYSTEM}|{self._report.key}", replaces=True)

    def _provenance(self, targets: Iterable[Part], devices: Iterable[Part]) -> Part:
        # A Provenance has no identifier: its tag is what it is found by.
        tag = {"system": REVISION_SYSTEM, "code": self._revision()}
        resource = {
            "resourceType": "Provenance",
            "meta": {**_meta(), "tag": [tag]},
            "target": [{"reference": part.full_url} for part in targets],
            "recorded": self._issued,
            "activity": {"text": f"{TITLE}. {UNVERIFIED}"},
            "agent": [
                {
                    "type": {
                        "coding": [
                            {
                                "system": "http://terminology.hl7.org/CodeSystem/provenance-participant-type",
                                "code": "author",
                                "display": "Author",
                            }
                        ]
                    },
                    "who": {"reference": device.full_url},
                }
                for device in devices
            ],
            "entity": [{"role": "source", "what": self._imaging_study()}],
        }
        return Part(resource, f"_tag={tag['system']}|{tag['code']}", replaces=False)

    def _revision(self) -> str:
        return f"{self._report.key}.{self._report.revision}"

    def _identifiers(self) -> list[Resource]:
        return [_identifier(REPORT_SYSTEM, self._report.key), _identifier(REVISION_SYSTEM, self._revision())]

    def _code(self) -> Resource:
        return {
            "coding": [{"system": CODE_SYSTEM, "code": "ai-analysis", "display": TITLE}],
            "text": fitting(f"{TITLE}, {self._report.product}, not verified"),
        }

    def _when(self) -> Resource:
        effective = {"effectiveDateTime": self._effective} if self._effective else {}
        return {**effective, "issued": self._issued}

    def _imaging_study(self) -> Resource:
        uid = self._report.identity.study_instance_uid
        return {"type": "ImagingStudy", "identifier": _identifier(_DICOM_UID, f"urn:oid:{uid}")}

    def _orders(self) -> list[Resource]:
        accession = fitting(self._report.identity.accession_number)
        if not accession:
            return []
        acsn = {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN", "display": "Accession ID"}
        system = {"system": self._options.accession_system} if self._options.accession_system else {}
        return [
            {"type": "ServiceRequest", "identifier": {"type": {"coding": [acsn]}, **system, "value": accession}},
        ]

    def _pdf(self) -> list[Resource]:
        if self._report.pdf is None or not self._options.include_pdf:
            return []
        return [self._attachment("application/pdf", self._report.pdf.read_bytes())]

    def _text(self) -> Resource:
        return self._attachment("text/plain; charset=utf-8", fitting(conclusion(self._report)).encode())

    def _attachment(self, media: str, content: bytes) -> Resource:
        return {
            "contentType": media,
            "data": base64.b64encode(content).decode("ascii"),
            "size": len(content),
            "title": f"{TITLE}. {UNVERIFIED}",
            "creation": self._issued,
        }


def _text_value(text: str) -> Resource:
    said = fitting(text)
    return {"valueString": said} if said else {"dataAbsentReason": _absent("unknown", "Unknown")}


def _number_value(number: float) -> Resource:
    if not math.isfinite(number):
        return {"dataAbsentReason": _absent("error", "Error")}
    return {"valueQuantity": {"value": number}}


def _absent(code: str, display: str) -> Resource:
    system = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _meaning(meaning: Meaning) -> Resource:
    coding = {"system": CODE_SYSTEM, "code": _MEANING_CODES[meaning], "display": meaning.value}
    return {"coding": [coding], "text": MEANING_TEXTS[meaning]}


def _meta() -> Resource:
    return {"security": [dict(_AI_ASSERTED)]}


def _identifier(system: str, value: str) -> Resource:
    return {"system": system, "value": value}


def _digest(*parts: str) -> str:
    joined = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(joined).hexdigest()[:16].upper()


def _urn(*parts: str) -> str:
    return f"urn:uuid:{uuid.uuid5(_ROOT, '|'.join(parts))}"


def _checked(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return the parts if they are FHIR and none is final.

    FHIR R4B, whose models these are, has the same definitions of these resources as R4.
    """
    from fhir.resources.R4B import get_fhir_model_class
    from pydantic import ValidationError

    for part in parts:
        try:
            get_fhir_model_class(part.kind).model_validate(part.resource)
        except ValidationError as error:
            places = ", ".join(sorted({".".join(map(str, problem["loc"])) for problem in error.errors()}))
            raise ValueError(f"{part.kind} would not be FHIR: {places}.") from None
        if "final" in (part.resource.get("status"), part.resource.get("docStatus")):
            raise ValueError("An AI report is never final.")
    return parts
