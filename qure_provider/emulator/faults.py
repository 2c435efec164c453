"""Which fault the next request suffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from qure_provider.emulator.model import AnyFault, Kind


@dataclass(slots=True)
class _Pending:
    fault: AnyFault
    skip: int
    left: int | None


class Faults:
    """The faults switched on, oldest first."""

    def __init__(self) -> None:
        self._pending: list[_Pending] = []

    def add(self, fault: AnyFault) -> None:
        """Switch one on."""
        self._pending.append(_Pending(fault, fault.skip, fault.times))

    def clear(self) -> None:
        """Switch all off."""
        self._pending.clear()

    def pending(self) -> list[AnyFault]:
        """Those still on, with the times that are left of each."""
        return [
            pending.fault.model_copy(update={"skip": pending.skip, "times": pending.left}) for pending in self._pending
        ]

    def take(self, kind: Kind, uids: Collection[str | None]) -> AnyFault | None:
        """Take the fault that a request suffers.

        Args:
            kind: The request's kind.
            uids: What it is about; None among them takes faults for any UID too.

        Returns:
            The oldest that fits, or None.
        """
        for pending in self._pending:
            fault = pending.fault
            if fault.kind != kind or fault.uid not in uids:
                continue
            if pending.skip:
                pending.skip -= 1
                continue
            if pending.left is not None:
                pending.left -= 1
                if not pending.left:
                    self._pending.remove(pending)
            return fault
        return None
