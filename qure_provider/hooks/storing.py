"""What an archive says of each object that it was sent, over DIMSE and over DICOMweb alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class StoreKind(StrEnum):
    """What became of one object."""

    STORED = "stored"
    WARNING = "stored with a warning"
    """It arrived, though the archive changed it or has something to say of it."""
    REFUSED = "refused"
    """The archive looked at it and said no; the same object will always be refused."""
    UNAVAILABLE = "try later"
    """The archive did not take it, or it was never sent."""
    IN_DOUBT = "in doubt"
    """It was sent, and nothing tells whether it arrived."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What became of one object.

    Attributes:
        sop_instance_uid: Which.
        kind: What became of it.
        status: What the archive answered (PS3.4, B.2.3; PS3.7, annex C); None where it did not.
        reason: What that means, in fixed words; empty where it is stored.
    """

    sop_instance_uid: str = field(repr=False)
    kind: StoreKind
    status: int | None = None
    reason: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether the archive has it."""
        return self.kind in (StoreKind.STORED, StoreKind.WARNING)


_MEANINGS: tuple[tuple[int, int, StoreKind, str], ...] = (
    (0x0000, 0x0000, StoreKind.STORED, ""),
    (0x0001, 0x0001, StoreKind.WARNING, "a warning without particulars"),
    (0x0107, 0x0107, StoreKind.WARNING, "some attributes are not known to the archive"),
    (0x0116, 0x0116, StoreKind.WARNING, "some values were out of range"),
    (0x0111, 0x0111, StoreKind.WARNING, "the archive has an object of this UID already"),
    (0x0110, 0x0110, StoreKind.UNAVAILABLE, "the archive failed while it processed the object"),
    (0x0122, 0x0122, StoreKind.REFUSED, "the archive does not take this kind of object"),
    (0x0124, 0x0124, StoreKind.REFUSED, "we are not authorized to store this there"),
    (0x0100, 0x02FF, StoreKind.REFUSED, "the archive does not take the request as it is"),
    (0xA700, 0xA7FF, StoreKind.UNAVAILABLE, "the archive is out of resources"),
    (0xA900, 0xA9FF, StoreKind.REFUSED, "the object does not match its SOP class"),
    (0xA000, 0xAFFF, StoreKind.REFUSED, "the archive refuses the object"),
    (0xB000, 0xB000, StoreKind.WARNING, "the archive changed attributes of the object"),
    (0xB006, 0xB006, StoreKind.WARNING, "the archive left attributes of the object out"),
    (0xB007, 0xB007, StoreKind.WARNING, "the object does not match its SOP class"),
    (0xB000, 0xBFFF, StoreKind.WARNING, "a warning of the archive's own"),
    (0xC000, 0xCFFF, StoreKind.REFUSED, "the archive cannot understand the object"),
)
"""First and last status, and what they mean; the first row that fits counts. A processing failure (0110) says nothing
of the object, so it is tried again."""


def meaning(status: int) -> tuple[StoreKind, str]:
    """Tell what a status means.

    Args:
        status: As the archive answered.

    Returns:
        What became of the object, and what the status says in fixed words; a status that nobody knows leaves it in
        doubt.
    """
    for first, last, kind, words in _MEANINGS:
        if first <= status <= last:
            return kind, f"{words} ({status:04X})" if words else ""
    return StoreKind.IN_DOUBT, f"a status that the standard does not know ({status:04X})"
