"""What each layer's receivers have, in the terms of the conservation check."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from chaos.conservation import ArrivedMessage, ArrivedObject, ArrivedReport
from demo.hospital import Hospital
from tests.support.dicom_archive import DicomArchive
from tests.support.fhir_server import FhirServer
from tests.support.hl7_reader import Message
from tests.support.hl7_receiver import Hl7Receiver


@dataclass(slots=True)
class InProcess:
    """Receivers that live in this process and misbehave on demand.

    Attributes:
        archive: The archive, over DIMSE.
        ris: The RIS, over MLLP.
        ehr: The EHR, over FHIR.
        pages: The studies, by pseudonym, that people were told of.
    """

    archive: DicomArchive
    ris: Hl7Receiver
    ehr: FhirServer
    pages: list[str]

    def objects(self) -> list[ArrivedObject]:
        """What the archive has."""
        return [_object(dataset) for dataset in self.archive.received]

    def messages(self) -> list[ArrivedMessage]:
        """What the RIS got, in order."""
        return [_message(message) for message in self.ris.messages]

    def reports(self) -> list[ArrivedReport]:
        """What the EHR has."""
        patients = {f"Patient/{each['id']}": _patient_id(each) for each in self.ehr.resources("Patient")}
        return [_report(each, patients) for each in self.ehr.resources("DiagnosticReport")]

    def told(self) -> Counter[str]:
        """How often people were told of which study."""
        return Counter(self.pages)


@dataclass(slots=True)
class AsPrograms:
    """Receivers that are programs of their own: Orthanc or its stand-in, the RIS and the EHR of the demo's hospital.

    Attributes:
        hospital: The programs.
        pager: The file that gets a line, a study's pseudonym, whenever people are told.
    """

    hospital: Hospital
    pager: Path

    def objects(self) -> list[ArrivedObject]:
        """What the archive has."""
        if not self.hospital.orthanc_url:
            found = (self.hospital.folder / "archive").glob("*.dcm")
            return [_object(pydicom.dcmread(path, stop_before_pixels=True)) for path in found]
        url = self.hospital.orthanc_url
        tags = (_get(f"{url}/instances/{instance}/simplified-tags") for instance in _get(f"{url}/instances"))
        return [
            ArrivedObject(
                instance=each["SOPInstanceUID"],
                study=each["StudyInstanceUID"],
                patient_id=each.get("PatientID", ""),
                patient_name=each.get("PatientName", ""),
                accession=each.get("AccessionNumber", ""),
            )
            for each in tags
        ]

    def messages(self) -> list[ArrivedMessage]:
        """What the RIS keeps: one file for each control id, as a RIS does."""
        found = sorted((self.hospital.folder / "ris").glob("*.hl7"), key=lambda path: path.stat().st_mtime_ns)
        return [_message(Message(path.read_bytes())) for path in found]

    def reports(self) -> list[ArrivedReport]:
        """What the EHR has."""
        found = [each["resource"] for each in _get(f"{self.hospital.ehr_url}DiagnosticReport").get("entry", [])]
        asked = {each["subject"]["reference"] for each in found}
        patients = {reference: _patient_id(_get(f"{self.hospital.ehr_url}{reference}")) for reference in asked}
        return [_report(each, patients) for each in found]

    def told(self) -> Counter[str]:
        """How often people were told of which study."""
        return Counter(self.pager.read_text(encoding="utf-8").split()) if self.pager.exists() else Counter()


def _object(dataset: pydicom.Dataset) -> ArrivedObject:
    return ArrivedObject(
        instance=str(dataset.SOPInstanceUID),
        study=str(dataset.StudyInstanceUID),
        patient_id=str(dataset.get("PatientID", "")),
        patient_name=str(dataset.get("PatientName", "")),
        accession=str(dataset.get("AccessionNumber", "")),
    )


def _message(message: Message) -> ArrivedMessage:
    request = message["OBR"]
    return ArrivedMessage(
        number=request.values(3)[0],
        control_id=message.control_id,
        patient_id=message["PID"].values(3)[0],
        accession=request.values(18)[0],
        digest=hashlib.sha256(message.raw).hexdigest(),
    )


def _report(resource: Mapping[str, Any], patients: Mapping[str, str]) -> ArrivedReport:
    (study,) = resource["imagingStudy"]
    return ArrivedReport(
        number=resource["identifier"][0]["value"],
        study=study["identifier"]["value"].removeprefix("urn:oid:"),
        patient_id=patients[resource["subject"]["reference"]],
    )


def _patient_id(patient: Mapping[str, Any]) -> str:
    return str(patient["identifier"][0]["value"])


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
        return json.load(answer)
