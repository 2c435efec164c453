"""Why a file is not de-identified, in fixed words."""

from __future__ import annotations

from enum import StrEnum


class Refusal(StrEnum):
    """Why a file stays here: sent as it is it would tell whose it is, or nobody can be sure that it would not."""

    NOT_DICOM = "cannot be de-identified: no DICOM file header"
    BROKEN = "cannot be de-identified: elements or sequences that are broken, cut off or out of order"
    DEFLATED = "cannot be de-identified: deflated as a whole"
    TOO_LARGE = "cannot be de-identified: header larger than the limit"
    NO_PIXELS = "cannot be de-identified: no pixel data"
    NO_UID = "cannot be de-identified: Study, Series or SOP Instance UID missing, or one of the standard's own"
    UNDECODABLE = "cannot be de-identified: the character set does not decode whose study it is"
    BURNED_IN = "cannot be de-identified: says that identifying text is burned into its pixels"
    KIND = "cannot be de-identified: of a kind that has text burned into its pixels"
    UNKNOWN_KIND = "cannot be de-identified: no image of a kind that the standard knows"
    SCREEN = "cannot be de-identified: image type of a screen, dose sheet or report"
    DIGITIZED = "cannot be de-identified: captured from film, video, paper or a workstation"
    OVERLAY = "cannot be de-identified: an overlay lies inside the pixel data"
    LEFT_OVER = "cannot be de-identified: a value that identifies is in a place that must stay"


class DeidentifyError(Exception):
    """A file that is quarantined instead of being sent.

    Args:
        reason: Why.
    """

    def __init__(self, reason: Refusal) -> None:
        super().__init__(str(reason))
        self.reason = reason
