"""Whether a FHIR Patient record is surely the patient of a study."""

from __future__ import annotations

from typing import Any

from qure_provider.dicom.model import Identity

_SEXES = {"M": "male", "F": "female"}


def carries(resource: dict[str, Any], system: str, value: str) -> bool:
    """Tell whether a resource carries exactly this identifier.

    Args:
        resource: As a server sent it.
        system: Of the identifier.
        value: Of the identifier.
    """
    identifiers = resource.get("identifier")
    return isinstance(identifiers, list) and any(
        isinstance(identifier, dict) and (identifier.get("system"), identifier.get("value")) == (system, value)
        for identifier in identifiers
    )


def contradiction(patient: dict[str, Any], identity: Identity) -> str:
    """Tell what speaks against a Patient record being the patient of a study.

    A record that was merged into another or is no longer in use contradicts, and so do a birth date and a sex that both
    sides state and that differ.

    Args:
        patient: The record.
        identity: Whose study it is.

    Returns:
        What it is, in fixed words; empty where nothing does.
    """
    links = patient.get("link")
    if isinstance(links, list) and any(isinstance(link, dict) and link.get("type") == "replaced-by" for link in links):
        return "its record was replaced by another one"
    if patient.get("active") is False:
        return "its record is no longer in use"
    born = str(patient.get("birthDate") or "").replace("-", "")
    stated = identity.birth_date.strip().replace(".", "")  # DICOM's old way to write a date
    if born and stated and not stated.startswith(born):
        return "its record has another birth date"
    sex = _SEXES.get(identity.sex.strip().upper())
    if sex and str(patient.get("gender")) in set(_SEXES.values()) - {sex}:
        return "its record has another sex"
    return ""
