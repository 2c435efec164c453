"""Destinations that take clinical messages."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from qure_provider.delivery.destination import Arrival, HeldError, Receipt, ReportParcel
from qure_provider.hooks.connection import is_loopback
from qure_provider.hooks.mllp import MllpHook
from qure_provider.hooks.receiver import ReceiverSettingsError
from qure_provider.ledger.deliveries import ParcelKind
from qure_provider.reports.hl7 import Hl7ContentError, build_oru
from qure_provider.reports.hl7_fields import Hl7SettingsError


class MllpDestination:
    """A RIS or EHR that takes ORU^R01 over MLLP.

    It cannot be asked whether a message arrived; one in doubt is sent again with the same control id.

    Args:
        name: The connection's id.
    """

    takes = ParcelKind.REPORT
    only_dicom = False
    lanes = 1  # interface engines take few connections of one sender, often a single one

    def __init__(self, name: str) -> None:
        self._hook = MllpHook(name)

    @cached_property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(self._hook.connection.host)

    def send(self, parcel: ReportParcel) -> Receipt:
        """Send the message and wait for its acknowledgement; see ``MllpHook.send``."""
        acknowledgement = self._hook.send(self._message(parcel))
        return {"acknowledgement": acknowledgement.code, "control_id": acknowledgement.control_id}

    def arrived(self, parcel: ReportParcel) -> Arrival:
        """Return that it cannot tell."""
        return Arrival.CANNOT_TELL

    def render(self, parcel: ReportParcel, folder: Path) -> None:
        """Write the message."""
        (folder / "message.hl7").write_bytes(self._message(parcel))

    def close(self) -> None:
        """Nothing to let go of: each message has its own connection."""

    def _message(self, parcel: ReportParcel) -> bytes:
        try:
            return build_oru(parcel.report, self._hook.connection.fields, withdrawn=parcel.withdrawn)
        except Hl7ContentError as error:
            raise HeldError(str(error)) from None
        except Hl7SettingsError as error:
            raise ReceiverSettingsError(str(error)) from None
