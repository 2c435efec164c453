"""Why a result may not be the answer to what was sent last, in the words that the ledger keeps."""

from __future__ import annotations

STALE = "may predate late images: the service said that the series had been computed before it grew"
UNCHANGED = "may predate late images: the result is the very one that the images had before they changed"
"""This one may pass: the service is asked until it says something else, or waiting ends."""
UNDER_WAY = "may predate late images: the service was computing the series already when its last images had come"
