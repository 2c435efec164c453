"""What a night's plan left for somebody to look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qure_provider import settings
from qure_provider.operators.plan import PLAN

if TYPE_CHECKING:
    from qure_provider.ledger.ledger import RunRow
    from qure_provider.store import Store

_NAMED = 20


def problems_of_plan(store: Store, run: RunRow) -> Iterator[str]:
    """Say what of the export, and of what earlier nights owe, was not sent and may have to be.

    Args:
        store: The store.
        run: The run, planned.

    Yields:
        Each problem, in words that name no patient.
    """
    from qure_provider.dicom.reasons import Quarantine
    from qure_provider.dicom.select import Reason

    held = (
        *(Quarantine.TWO_PATIENTS, Quarantine.TWO_STUDIES, Quarantine.TWO_SERIES, Quarantine.TWO_MODALITIES),
        *(Quarantine.DIFFERENT_COPIES, Reason.INCOMPLETE),
    )
    for reason in held:
        if number := run.counts["reasons"].get(f"quarantined: {reason.value}"):
            yield f"{number} files were held back, {reason.value}: see passed_over.jsonl, and export them again."
    if shrunk := run.counts["shrunk"]:
        yield (
            f"Fewer images than the service has of series {_named(shrunk)}: nothing was sent, since the service does "
            "not forget images. Their result is of all of them; 'recompute' has them computed again."
        )
    if lost := run.counts["lost"]:
        yield (
            f"The store has lost what an earlier night planned of {_named(lost)}, which are still owed: export them "
            "again."
        )
    if late := _late(store, run):
        yield f"{late} files came into the export after it was read, and were not sent: run the night again."


def _late(store: Store, run: RunRow) -> int:
    """Count the files that came after the plan had listed the export; none where it is gone, or files were chosen."""
    from qure_provider.dicom.export import export_at
    from qure_provider.store import open_path

    plan = store.read_json(f"{run.folder}/{PLAN}")
    folder = open_path(plan["export"])
    if not plan["is_whole"] or not folder.is_dir():
        return 0
    listing = export_at(folder).list_all(settings.max_files())
    return max(len(listing.files) + len(listing.passed_over) - int(run.counts["found"]), 0)


def _named(refs: list[str]) -> str:
    more = f" and {len(refs) - _NAMED} others" if len(refs) > _NAMED else ""
    return f"{', '.join(refs[:_NAMED])}{more}"
