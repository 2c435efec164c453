"""Reading an export within the configured limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qure_provider import settings

if TYPE_CHECKING:
    from qure_provider.dicom.model import Scan
    from qure_provider.store import AnyPath


def scan_export(folder: AnyPath, files: Sequence[str] = ()) -> Scan:
    """Read the headers of an export.

    Args:
        folder: Where it lies.
        files: Paths relative to it, to read only these; none for all that is there.

    Returns:
        What it holds.
    """
    from qure_provider.dicom.scan import ScanLimits, scan, scan_files

    limits = ScanLimits(files=settings.max_files(), header_bytes=settings.max_header_bytes())
    return scan_files(folder, files, limits=limits) if files else scan(folder, limits=limits)
