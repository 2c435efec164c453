"""What a night's plan left for somebody to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qure_provider import settings

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

    plan = store.read_json(run.counts.get("plan", f"{run.folder}/plan.json"))  # without: of an earlier version
    held = (
        *(Quarantine.TWO_PATIENTS, Quarantine.TWO_STUDIES, Quarantine.TWO_SERIES, Quarantine.TWO_MODALITIES),
        *(Quarantine.DIFFERENT_COPIES, Reason.INCOMPLETE),
    )
    for reason in held:
        if number := run.counts["reasons"].get(f"quarantined: {reason.value}"):
            yield f"{number} files were held back, {reason.value}: see passed_over.jsonl, and export them again."
    fates = ["quarantined"] if plan["has_rules"] else ["quarantined", "not selected"]
    if not plan["is_whole"] and (left := _reasons(run, *fates)):
        yield f"Of the files that were chosen, some were not sent: {left}."
    elif (unfit := run.counts["unfit"]) and not settings.allow_quarantined():
        yield (
            f"{unfit} files that may be images are quarantined and were not sent ({_reasons(run, 'quarantined')}): see "
            "passed_over.jsonl. Where a site has always some, [qure] allow_quarantined says that they are in order."
        )
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
    if runs := run.counts.get("left"):
        yield (
            f"Results that runs {', '.join(runs)} left waiting go to other destinations than this run's, and were not "
            "asked for: clear the collect tasks of those runs."
        )
    if late := _late(plan, run):
        yield f"{late} files came into the export after it was read, and were not sent: run the night again."


def _reasons(run: RunRow, *fates: str) -> str:
    return "; ".join(
        f"{number} {reason.partition(': ')[2]}"
        for reason, number in run.counts["reasons"].items()
        if reason.partition(": ")[0] in fates
    )


def _late(plan: Mapping[str, Any], run: RunRow) -> int:
    """Count the files that came after the plan had listed the export; none where it is gone, or files were chosen."""
    from qure_provider.dicom.export import export_at
    from qure_provider.store import open_path

    folder = open_path(plan["export"])
    if not plan["is_whole"] or not folder.is_dir():
        return 0
    listing = export_at(folder).list_all(settings.max_files())
    return max(len(listing.files) + len(listing.passed_over) - int(run.counts["found"]), 0)


def _named(refs: list[str]) -> str:
    more = f" and {len(refs) - _NAMED} others" if len(refs) > _NAMED else ""
    return f"{', '.join(refs[:_NAMED])}{more}"
