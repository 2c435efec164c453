"""EHRs as destinations: FHIR R4."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from qure_provider.delivery.destination import Arrival, HeldError, Receipt, ReportParcel
from qure_provider.hooks.connection import is_loopback
from qure_provider.hooks.fhir import FhirHook, PatientNotFoundError
from qure_provider.ledger.deliveries import ParcelKind


class FhirDestination:
    """A FHIR R4 server that takes DiagnosticReports, or else DocumentReferences.

    Everything is put by our own identifiers, so that a repeat makes nothing twice.

    Args:
        name: The connection's id.
    """

    takes = ParcelKind.REPORT
    only_dicom = False
    lanes = 4

    def __init__(self, name: str) -> None:
        self._hook = FhirHook(name, operator=type(self).__name__)

    @cached_property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(urlsplit(self._hook.connection.web.base_url).hostname or "")

    def send(self, parcel: ReportParcel) -> Receipt:
        """Put the report on the patient's record, or take it back; see ``FhirHook``."""
        try:
            receipt = self._hook.withdraw(parcel.report) if parcel.withdrawn else self._hook.submit(parcel.report)
        except (PatientNotFoundError, ValueError) as error:
            raise HeldError(str(error)) from None
        return {"mode": receipt.mode.value, "resources": list(receipt.resources)}

    def arrived(self, parcel: ReportParcel) -> Arrival:
        """Ask whether exactly this revision is there; of a withdrawal it cannot tell, and a repeat is safe."""
        if parcel.withdrawn:
            return Arrival.CANNOT_TELL
        return Arrival.ARRIVED if self._hook.find(parcel.report) else Arrival.ABSENT

    def render(self, parcel: ReportParcel, folder: Path) -> None:
        """Write the bundle."""
        try:
            bundle = self._hook.render(parcel.report, withdrawn=parcel.withdrawn)
        except (PatientNotFoundError, ValueError) as error:
            raise HeldError(str(error)) from None
        (folder / "bundle.json").write_text(json.dumps(bundle, indent=1) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close its connections."""
        self._hook.close()
