"""Reading an export within the configured limits, and selecting what is sent of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from qure_provider import settings

if TYPE_CHECKING:
    from qure_provider.dicom.model import Scan, Selection
    from qure_provider.dicom.select import SelectionRules
    from qure_provider.operators.sending import Sender
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


def select_sendable(
    folder: AnyPath, scanned: Scan, rules: SelectionRules, known: Collection[str], sender: Sender
) -> tuple[Scan, Selection]:
    """Select what is sent of an export; files that the rules choose and that cannot be sent are quarantined.

    Such a file counts like one that cannot be read: what is left of a CT series is held, and another reconstruction may
    be chosen in its place.

    Args:
        folder: Where the export lies.
        scanned: What it holds.
        rules: What the site sends.
        known: See ``select``.
        sender: Says which files cannot be sent.

    Returns:
        What the export holds with these files quarantined, and what is sent of it.
    """
    from qure_provider.dicom.scan import quarantine
    from qure_provider.dicom.select import select

    tried: set[str] = set()
    while True:
        selection = select(scanned, rules, known)
        chosen = [item.series for item in selection.selected if item.series.series_instance_uid not in tried]
        refused = sender.refused(folder, chosen)
        if not refused:
            return scanned, selection
        tried.update(series.series_instance_uid for series in chosen)
        scanned = quarantine(scanned, refused)
