"""A FHIR connection as data: what a user entered, checked, with the defaults filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from qure_provider import connection_forms
from qure_provider.hooks.connection import Fields
from qure_provider.hooks.receiver import ReceiverSettingsError
from qure_provider.hooks.web import WebAirflowConnection, WebConnection
from qure_provider.reports.fhir import FhirOptions, ReportStatus


class FhirMode(StrEnum):
    """How a report is put."""

    AUTO = "auto"
    """The first of the others that the server's CapabilityStatement offers."""
    TRANSACTION = "transaction"
    """All its resources in one transaction."""
    SINGLE = "single"
    """One conditional request for each resource."""
    DOCUMENT = "document"
    """One DocumentReference with the PDF."""


@dataclass(frozen=True, slots=True)
class FhirConnection:
    """Where a FHIR server is and what a report looks like there.

    Attributes:
        web: Where it is and how to talk to it.
        patient_system: Identifier system of patient IDs; empty where only those of named issuers are known.
        patient_systems: IssuerOfPatientID to identifier system. Once there is one, an issuer that is not named here is
            known by no system.
        mode: How a report is put.
        options: What goes into a report.
    """

    web: WebConnection
    patient_system: str = ""
    patient_systems: Mapping[str, str] = field(default_factory=dict)
    mode: FhirMode = FhirMode.AUTO
    options: FhirOptions = field(default_factory=FhirOptions)

    @classmethod
    def from_airflow(cls, connection: WebAirflowConnection) -> FhirConnection:
        """Read an Airflow connection of type ``fhir``.

        Beside what ``WebConnection`` reads, ``extra`` holds ``patient_identifier_system``,
        ``patient_identifier_systems`` (JSON), ``report_status``, ``include_pdf``, ``include_scores``,
        ``accession_system`` and ``mode``.

        Args:
            connection: What Airflow returned.

        Returns:
            The settings.

        Raises:
            ReceiverSettingsError: A field is missing or wrong; the message names it and says what to enter.
        """
        fields = Fields.of(connection, connection_forms.FHIR, ReceiverSettingsError)
        system = _system(fields, "patient_identifier_system")
        systems = _systems(fields)
        if not (system or systems):
            raise fields.error(
                "patient_identifier_system",
                "is empty. Enter the system that patient IDs have in the server's Patient records, such as "
                "urn:oid:1.2.3 or https://hospital.example/patient-id",
            )
        return cls(
            web=WebConnection.from_airflow(
                connection, fields, "the base URL of the FHIR server, such as https://host/fhir"
            ),
            patient_system=system,
            patient_systems=systems,
            mode=fields.choice("mode", FhirMode.AUTO),
            options=FhirOptions(
                status=fields.choice("report_status", ReportStatus.PARTIAL),
                include_pdf=fields.boolean("include_pdf", default=True),
                include_scores=fields.boolean("include_scores", default=False),
                accession_system=_system(fields, "accession_system"),
            ),
        )

    def system_of(self, issuer: str) -> str:
        """Tell which identifier system an issuer's patient IDs have.

        Args:
            issuer: IssuerOfPatientID; empty where the source names none.

        Returns:
            The system; empty where none is known.
        """
        if issuer and self.patient_systems:
            return self.patient_systems.get(issuer, "")
        return self.patient_system


def _system(fields: Fields, name: str) -> str:
    system = fields.text(name)
    if not _is_uri(system):
        raise fields.error(name, "is not a URI, such as urn:oid:1.2.3 or https://hospital.example/id")
    return system


def _systems(fields: Fields) -> Mapping[str, str]:
    name = "patient_identifier_systems"
    value = fields.raw(name)
    try:
        systems = json.loads(value) if isinstance(value, str) else value or {}
        if all(isinstance(system, str) and system and _is_uri(system) for system in systems.values()):
            return {issuer.strip(): system for issuer, system in systems.items()}
    except (ValueError, AttributeError):
        pass
    raise fields.error(name, 'must be JSON from issuer to system, such as {"HOSPITAL A": "urn:oid:1.2.3"}')


def _is_uri(text: str) -> bool:
    return not text or (":" in text and text.isprintable() and not any(character.isspace() for character in text))
