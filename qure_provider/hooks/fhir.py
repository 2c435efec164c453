"""The hook to a FHIR R4 server of the hospital: an EHR, or what feeds it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from qure_provider.dicom.model import Identity
from qure_provider.hooks.connection import verdict_of
from qure_provider.hooks.fhir_connection import FhirConnection, FhirMode
from qure_provider.hooks.fhir_server import FhirServer, Found, Placed, TransactionRefusedError, escaped
from qure_provider.hooks.receiver import (
    DeliveryInDoubtError,
    ReceiverRefusedError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)
from qure_provider.hooks.web import WebConnection, WebHook, within_test_time
from qure_provider.reports.fhir import (
    DEVICE_SYSTEM,
    PART_SYSTEM,
    REPORT_SYSTEM,
    FhirOptions,
    Part,
    Resource,
    as_object,
    document_part,
    in_error,
    is_in_error,
    objects,
    report_parts,
    resolved,
    revision_of,
    transaction,
)
from qure_provider.reports.fhir_patient import carries, contradiction
from qure_provider.reports.study_report import StudyReport

log = logging.getLogger(__name__)

_PROBE = "QURE-CONNECTION-TEST"
"""A patient ID and report number that nobody has."""


class PatientNotFoundError(ReceiverRefusedError):
    """No record there is surely this patient's, and nothing was sent: hold the report until a person has looked."""


@dataclass(frozen=True, slots=True)
class FhirReceipt:
    """What a server has of a report.

    Attributes:
        mode: How it was put.
        resources: References with versions, where the server states them: the DiagnosticReport or DocumentReference
            first. Empty where there was nothing to take back.
    """

    mode: FhirMode
    resources: tuple[str, ...]


class FhirHook(WebHook):
    """Puts AI reports into a FHIR R4 server, on the record of the right patient, each once.

    The errors are those of ``qure_provider.hooks.receiver``. A repeat is safe at any time: all that is put is put by
    our own identifiers. So a lost answer is a ``ReceiverUnavailableError`` too: the request is simply made again.

    Args:
        fhir_conn_id: The Airflow connection, of type ``fhir``.
        operator: Class name of the operator, for the User-Agent.
    """

    conn_name_attr = "fhir_conn_id"
    default_conn_name = "fhir_default"
    conn_type = "fhir"
    hook_name = "FHIR R4"

    def __init__(self, fhir_conn_id: str = default_conn_name, *, operator: str = "") -> None:
        super().__init__(operator=operator)
        self.fhir_conn_id = fhir_conn_id
        self._devices: dict[str, str] = {}

    @cached_property
    def connection(self) -> FhirConnection:
        """The settings of its connection.

        Raises:
            ReceiverSettingsError: A field is missing or wrong; the message names it.
        """
        return FhirConnection.from_airflow(self.get_connection(self.fhir_conn_id))

    @property
    def web(self) -> WebConnection:
        """Where it is, and who we are there."""
        return self.connection.web

    @property
    def mode(self) -> FhirMode:
        """How reports are put: as the connection says, else the best that the server offers.

        Raises:
            ReceiverError: The server could not be asked, or offers no way.
        """
        if self.connection.mode is not FhirMode.AUTO:
            return self.connection.mode
        mode = self._server.capabilities.mode
        if mode is None:
            raise ReceiverSettingsError(
                "The FHIR server's CapabilityStatement offers no way to put a report once only: conditional create of "
                "Device with conditional update of Observation and DiagnosticReport, or conditional update of "
                "DocumentReference. Have one of them enabled, or set the connection's mode if the statement is wrong."
            )
        return mode

    def find_patient(self, identity: Identity) -> str:
        """Look the patient of a study up, and make sure that the patient ID is still that patient's.

        The record must carry exactly this ID in the system that belongs to its issuer, be in use, and contradict
        neither birth date nor sex.

        Args:
            identity: Whose study it is.

        Returns:
            The reference to the record, such as ``Patient/17``.

        Raises:
            PatientNotFoundError: There is none, there are several, or the one contradicts.
            ReceiverError: The server could not be asked.
        """
        # Blanks around a DICOM LO mean nothing.
        system = self.connection.system_of(identity.issuer_of_patient_id.strip())
        value = identity.patient_id.strip()
        if not value:
            raise PatientNotFoundError("The study has no patient ID to look the patient up by.")
        if not system:
            raise PatientNotFoundError(
                "The connection names no identifier system for the issuer of the study's patient ID. Add the issuer to "
                "patient_identifier_systems."
            )
        found = self._search("Asking for the patient", "Patient", system, value)
        patients = [patient for patient in found.resources if carries(patient, system, value)]
        if not patients:
            raise PatientNotFoundError("The server has no patient with exactly the study's patient ID.")
        if len(patients) > 1 or not found.is_all:
            raise PatientNotFoundError("The server has several patients with the study's patient ID.")
        problem = contradiction(patients[0], identity)
        if problem:
            raise PatientNotFoundError(
                f"The server's patient with the study's patient ID may be another one: {problem}."
            )
        placed = Placed.from_resource(patients[0])
        if placed is None:
            raise PatientNotFoundError("The server's patient with the study's patient ID has no id to refer to.")
        return placed.reference

    def submit(self, report: StudyReport) -> FhirReceipt:
        """Put a report on the patient's record, in place of its older revision.

        Observations that the older revision had and this one does not are marked as entered in error. A report that was
        put as a document is not replaced by one that is not, nor the other way round: withdraw it first.

        Args:
            report: What it says.

        Returns:
            What the server has now.

        Raises:
            PatientNotFoundError: Whose record it is, is not sure; nothing was sent.
            ReceiverRefusedError: The server refused it or has a newer revision, or it was withdrawn there.
            ReceiverUnavailableError: Try again; ``may_have_arrived`` says whether it may be there.
            ReceiverSettingsError: A person has to mend something.
            DeliveryInDoubtError: The server said yes, but the report is not to be found there.
            ValueError: It cannot be written as FHIR.
            OSError: The PDF cannot be read.
        """
        message = self._message(self.mode, report)
        try:
            mode, placed = self._send(self.mode, message)
        except ReceiverUnavailableError as error:
            error.may_have_arrived = True
            raise
        head = next((resource for resource in placed if resource.kind == _head_of(mode)), None)
        if head is None:
            receipt = self.find(report)
            if receipt is None:
                raise DeliveryInDoubtError("The FHIR server took the report, but it cannot be found there.")
            return receipt
        log.info("Put report: connection=%s mode=%s resources=%d", self.fhir_conn_id, mode, len(placed))
        return FhirReceipt(mode, (head.versioned, *(other.versioned for other in placed if other != head)))

    def find(self, report: StudyReport) -> FhirReceipt | None:
        """Ask whether exactly this revision of a report is there, and has not been taken back.

        Returns:
            A receipt with the DiagnosticReport or DocumentReference alone; None where it is not there.
        """
        mode = self.mode
        held = self._held(_head_of(mode), report)
        placed = Placed.from_resource(held) if held else None
        if held is None or placed is None or is_in_error(held) or revision_of(held, report.key) != report.revision:
            return None
        return FhirReceipt(mode, (placed.versioned,))

    def withdraw(self, report: StudyReport) -> FhirReceipt:
        """Take a report back: all of it that the server has is marked as entered in error.

        The patient is not looked up again: a report may have to be taken back because it is on the wrong record.

        Args:
            report: Any revision of it.

        Returns:
            What the server has now; without resources where it has none of the report.

        Raises:
            ReceiverError: One of its four kinds; a repeat is safe.
        """
        mode = self.mode
        placed: list[Placed] = []
        for replacements, there in self._withdrawals(mode, report):
            placed += self._send(mode, transaction((), {}, replacements))[1] if replacements else there
        log.info("Took report back: connection=%s mode=%s resources=%d", self.fhir_conn_id, mode, len(placed))
        return FhirReceipt(mode, tuple(resource.versioned for resource in placed))

    def render(self, report: StudyReport, *, withdrawn: bool = False) -> Resource:
        """Do all of ``submit`` or ``withdraw`` but the sending.

        Args:
            report: What it says.
            withdrawn: Whether it is to be taken back.

        Returns:
            A Bundle: of type ``transaction`` as it would be sent, or of type ``batch`` with what would be sent one by
            one.

        Raises:
            ReceiverError: As the two methods do.
            ValueError: It cannot be written as FHIR.
            OSError: The PDF cannot be read.
        """
        mode = self.mode
        if withdrawn:
            replacements: dict[str, Resource] = {}
            for more, _ in self._withdrawals(mode, report):
                replacements |= more
            bundle = transaction((), {}, replacements)
        else:
            bundle = self._message(mode, report)
        return bundle if mode is FhirMode.TRANSACTION else {**bundle, "type": "batch"}

    def test_connection(self) -> tuple[bool, str]:
        """Say within 10 seconds whether reports can be put, and how.

        It reads the CapabilityStatement, which servers give to anybody, and searches for a patient and a report that
        nobody has, which takes credentials and changes nothing.

        Returns:
            Whether all is well, and what is or what to set.
        """
        try:
            self.get_conn()
        except ReceiverSettingsError as error:
            return verdict_of(error, self.fhir_conn_id)
        return within_test_time(self._verdict)

    def _verdict(self) -> tuple[bool, str]:
        mode = self.mode
        for system in filter(None, (self.connection.patient_system, *self.connection.patient_systems.values())):
            self._search("Searching for a patient", "Patient", system, _PROBE)
        self._search("Searching for a report", _head_of(mode), REPORT_SYSTEM, _PROBE)
        left_out = (
            "" if mode is FhirMode.DOCUMENT or self._takes_provenance else " It takes no Provenance: none is put."
        )
        return True, f"The FHIR server answers and lets us search. {_MODE_WORDS[mode]}{left_out}"

    @cached_property
    def _server(self) -> FhirServer:
        return FhirServer(self.get_conn)

    @property
    def _takes_provenance(self) -> bool:
        forced = self.connection.mode is not FhirMode.AUTO
        return forced or self._server.capabilities.creates_once("Provenance")

    def _message(self, mode: FhirMode, report: StudyReport) -> Resource:
        patient = self.find_patient(report.identity)
        held = self._held(_head_of(mode), report)
        if held:
            _check_may_replace(held, report, patient)
        write = _document_parts if mode is FhirMode.DOCUMENT else report_parts
        written = write(report, patient, self.connection.options)
        parts = [part for part in written if part.kind != "Provenance" or self._takes_provenance]
        known = {part.full_url: there for part in parts if part.kind == "Device" and (there := self._device(part))}
        kept = {number for part in parts for number in _numbers(part.resource)}
        outdated = {
            placed.reference: in_error(observation)
            for placed, observation in self._observations(held or {}, kept)
            if not is_in_error(observation)
        }
        return transaction(parts, known, outdated)

    def _device(self, part: Part) -> str:
        """Where the server has a device, if it has.

        Two deliveries at once can make a device twice, since servers do not shut conditional creates off from each
        other; from then on a conditional create of it would be refused for ever.
        """
        number = part.resource["identifier"][0]["value"]
        if number not in self._devices:
            found = self._search("Asking for the device", "Device", DEVICE_SYSTEM, number).resources
            there = sorted(
                placed.reference
                for device in found
                if carries(device, DEVICE_SYSTEM, number) and (placed := Placed.from_resource(device))
            )
            if not there:
                return ""
            self._devices[number] = there[0]
        return self._devices[number]

    def _held(self, kind: str, report: StudyReport) -> Resource | None:
        """What the server has under a report's number."""
        found = self._search("Asking for the report", kind, REPORT_SYSTEM, report.key)
        held = [resource for resource in found.resources if carries(resource, REPORT_SYSTEM, report.key)]
        if len(held) > 1 or (held and not found.is_all):
            raise ReceiverRefusedError(
                f"The FHIR server has more than one {kind} with this report's number. Remove all but one there."
            )
        return held[0] if held else None

    def _observations(self, held: Resource, kept: Set[str]) -> Iterator[tuple[Placed, Resource]]:
        """A report's observations on the server that are ours, but for those with a number that is kept."""
        for reference in objects(held.get("result")):
            placed = Placed.from_location(str(reference.get("reference", "")))
            if placed is None or str(as_object(reference.get("identifier")).get("value")) in kept:
                continue
            observation = self._server.read("Reading an observation", placed)
            if observation and _numbers(observation) and kept.isdisjoint(_numbers(observation)):
                yield Placed.from_resource(observation) or placed, observation

    def _taken_back(self, kind: str, report: StudyReport) -> tuple[dict[str, Resource], list[Placed]]:
        """What takes the place of what the server has of a report, and where it has that."""
        held = self._held(kind, report)
        head = Placed.from_resource(held) if held else None
        if held is None or head is None:
            return {}, []
        there = [(head, held), *self._observations(held, frozenset())]
        replacements = {placed.reference: in_error(resource) for placed, resource in there if not is_in_error(resource)}
        return replacements, [placed for placed, _ in there]

    def _withdrawals(self, mode: FhirMode, report: StudyReport) -> Iterator[tuple[dict[str, Resource], list[Placed]]]:
        """What takes a report back, first as it is put now, then as it may have been put in another mode."""
        yield self._taken_back(_head_of(mode), report)
        other = "DiagnosticReport" if mode is FhirMode.DOCUMENT else "DocumentReference"
        if other not in self._server.capabilities.resources:
            return
        try:
            withdrawal = self._taken_back(other, report)
        except ReceiverSettingsError as error:  # what we may not even search for, we have not put
            log.warning("Not looked for as %s: connection=%s reason=%s", other, self.fhir_conn_id, error)
            return
        yield withdrawal

    def _send(self, mode: FhirMode, bundle: Resource) -> tuple[FhirMode, list[Placed]]:
        """Send a transaction's entries, and tell how that was done and what they became."""
        if mode is not FhirMode.TRANSACTION:
            return mode, self._send_one_by_one(bundle)
        try:
            return mode, [placed for placed in self._server.transaction("Putting the report", bundle) if placed]
        except TransactionRefusedError as error:
            if self.connection.mode is not FhirMode.AUTO:
                raise
            log.warning("Going on without a transaction: connection=%s reason=%s", self.fhir_conn_id, error)
            return FhirMode.SINGLE, self._send_one_by_one(bundle)

    def _send_one_by_one(self, bundle: Resource) -> list[Placed]:
        known: dict[str, str] = {}
        sent = []
        for entry in bundle["entry"]:
            resource = resolved(entry["resource"], known)
            placed = self._server.put("Putting the report", {**entry, "resource": resource}) or self._find_again(entry)
            if placed is None:
                raise DeliveryInDoubtError(f"The FHIR server took a {resource['resourceType']} and does not find it.")
            known[entry.get("fullUrl", "")] = placed.reference
            sent.append(placed)
        return sent

    def _find_again(self, entry: Resource) -> Placed | None:
        url, _, query = entry["request"]["url"].partition("?")
        parameter, _, value = entry["request"].get("ifNoneExist", query).partition("=")
        if not parameter:
            return Placed.from_location(url)
        found = self._server.search("Asking where it is", entry["resource"]["resourceType"], parameter, value)
        return Placed.from_resource(found.resources[0]) if len(found.resources) == 1 else None

    def _search(self, what: str, kind: str, system: str, value: str) -> Found:
        return self._server.search(what, kind, "identifier", f"{escaped(system)}|{escaped(value)}")


_MODE_WORDS: Mapping[FhirMode, str] = {
    FhirMode.TRANSACTION: "Reports are put whole, in one transaction.",
    FhirMode.SINGLE: "Reports are put by one conditional request for each resource.",
    FhirMode.DOCUMENT: "Reports are put as a DocumentReference.",
}


def _document_parts(report: StudyReport, patient: str, options: FhirOptions) -> tuple[Part, ...]:
    return (document_part(report, patient, options),)


def _head_of(mode: FhirMode) -> str:
    return "DocumentReference" if mode is FhirMode.DOCUMENT else "DiagnosticReport"


def _numbers(resource: Resource) -> set[str]:
    """The numbers that make a resource an observation of ours."""
    return {
        str(identifier.get("value"))
        for identifier in objects(resource.get("identifier"))
        if resource["resourceType"] == "Observation" and identifier.get("system") == PART_SYSTEM
    }


def _check_may_replace(held: Resource, report: StudyReport, patient: str) -> None:
    subject = Placed.from_location(str(as_object(held.get("subject")).get("reference", "")))
    if subject is None or subject.reference != patient:
        raise PatientNotFoundError(
            "The server has this report on another patient's record. Take it back there, or have the records mended."
        )
    revision = revision_of(held, report.key)
    if is_in_error(held) and (revision is None or revision >= report.revision):
        raise ReceiverRefusedError("The report was taken back there, so it was not put again.")
    if revision is not None and revision > report.revision:
        raise ReceiverRefusedError("The server has a newer revision of this report, so it was not replaced.")
