"""Images that may have identifying text in their pixels, as far as a header can tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from qure_provider.dicom.reader import plain
from qure_provider.dicom.refusal import Refusal

_TELLING = (0x00280301, 0x00080016, 0x00080060, 0x00080008, 0x00080064)
"""BurnedInAnnotation, SOPClassUID, Modality, ImageType, ConversionType."""
_IMAGES = "1.2.840.10008.5.1.4.1.1."
_KINDS = (
    *("3", "3.1", "6", "6.1", "6.2", "6.3"),  # ultrasound
    *("7", "7.1", "7.2", "7.3", "7.4"),  # secondary capture
    *("77.1.1", "77.1.1.1", "77.1.4", "77.1.4.1"),  # endoscopy and photographs, with their videos
)
_WITH_TEXT = frozenset(_IMAGES + kind for kind in _KINDS)
_MODALITIES = frozenset({"US", "IVUS", "ES", "XC", "DOC"})
_SCREENS = frozenset({"SAVE", "SCREENSAVE", "SCREENSHOT", "SCREEN", "CAPTURE", "DOSE", "REPORT", "PROT", "PROTOCOL"})
"""Words of ImageType: screen saves of any spelling, dose sheets, reports and protocol pages of the makers."""
_WORD = re.compile(r"[A-Z]+")
_DIRECT = frozenset({"", "DI"})
_FIRST_OVERLAY, _ROWS, _DATA = 0x60000000, 0x0010, 0x3000


def is_looked_at(tag: int) -> bool:
    """Tells whether :func:`refusal_for` looks at an element."""
    return tag >= _FIRST_OVERLAY or tag in _TELLING


def refusal_for(values: Mapping[int, bytes]) -> Refusal | None:
    """Tells whether an image may have identifying text in its pixels.

    It is the header's word. An image that says nothing, and is of a kind that usually has none (CR, DX, CT), is let
    pass: whether a technician burned a name into a film cannot be told from its header.

    Args:
        values: Its elements' values, by tag.

    Returns:
        Why it stays; None where nothing speaks against it.
    """
    if refusal := _refusal_for_kind(*map(values.get, _TELLING)):
        return refusal
    overlays = {tag & 0xFFFF0000 for tag in values if tag >= _FIRST_OVERLAY}
    if any(group | _ROWS in values and not values.get(group | _DATA) for group in overlays):
        return Refusal.OVERLAY  # it has no data of its own, so its drawing lies in the unused bits of the pixels
    return None


@lru_cache(maxsize=16)
def _refusal_for_kind(*told: bytes | None) -> Refusal | None:
    """The same for what the values of ``_TELLING`` say, which all images of a series say alike."""
    burned_in, sop_class, modality, image_type, conversion = (plain(value or b"") for value in told)
    if burned_in.upper() == "YES":
        return Refusal.BURNED_IN
    if not sop_class.startswith(_IMAGES):
        return Refusal.UNKNOWN_KIND
    if sop_class in _WITH_TEXT or modality.upper() in _MODALITIES:
        return Refusal.KIND
    if not _SCREENS.isdisjoint(_WORD.findall(image_type.upper())):
        return Refusal.SCREEN
    return None if conversion.upper() in _DIRECT else Refusal.DIGITIZED
