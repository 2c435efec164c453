"""Fetching results that are ready."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.context import Context

from qure_provider import settings
from qure_provider.operators.base import QureOperator
from qure_provider.retries import StepIncompleteError

if TYPE_CHECKING:
    from qure_provider.api.model import ResourceRef
    from qure_provider.hooks.qure import QureHook
    from qure_provider.store import Store

STABLE_LIMIT_SECONDS = 300.0


class QureFetchResultsOperator(QureOperator):
    """Fetch ready results into a folder: ``<destination>/<uid>/result.json``, ``answer.json`` and the files.

    A result can be ready before all of its files are: it is asked for again until it says the same with as many files,
    and with any, for 300 s at most. What is not ready fails the task after the rest was fetched, so put
    ``QureResultsSensor`` before it.

    Args:
        destination: A path, or a URL that ``ObjectStoragePath`` understands.
        sop_instance_uids: X-ray images, one SOPInstanceUID or several.
        series_instance_uids: CT series, one SeriesInstanceUID or several.
        settle_seconds: Between two looks at the set of files; None for ``[qure] settle_seconds``.
        kwargs: See ``QureOperator``.

    Returns:
        For each UID ``{"outcome": ..., "meaning": ..., "folder": ..., "files": n}``; ``folder`` is empty where there is
        nothing to fetch (the image is not for the product, or invalid).
    """

    template_fields = ("destination", "sop_instance_uids", "series_instance_uids", "qure_conn_id")
    ui_color = "#e3f0e8"

    def __init__(
        self,
        *,
        destination: str,
        sop_instance_uids: Sequence[str] | str = (),
        series_instance_uids: Sequence[str] | str = (),
        settle_seconds: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not destination:
            raise ValueError("destination must name a folder")
        self.destination = destination
        self.sop_instance_uids = sop_instance_uids
        self.series_instance_uids = series_instance_uids
        self.settle_seconds = settle_seconds

    def execute(self, context: Context) -> dict[str, dict[str, Any]]:
        """Fetch the results."""
        from qure_provider.hooks.qure import QureHook
        from qure_provider.sensors.results import refs_of
        from qure_provider.store import Store

        refs = waiting = refs_of(self.sop_instance_uids, self.series_instance_uids)
        store = Store(self.destination)
        pause = settings.settle_seconds() if self.settle_seconds is None else self.settle_seconds
        give_up = time.monotonic() + STABLE_LIMIT_SECONDS
        fetched: dict[str, dict[str, Any]] = {}
        seen: dict[str, tuple[str, int]] = {}
        failures: list[tuple[str, Exception]] = []
        with QureHook(self.qure_conn_id, operator=type(self).__name__) as hook:
            while waiting:
                growing = []
                for ref in waiting:
                    taken = _fetch_one(hook, store, ref, failures)
                    if taken is None:
                        continue
                    row, digest = taken
                    fetched[ref.uid] = row
                    look = digest, row["files"]
                    if row["folder"] and (look != seen.get(ref.uid) or not row["files"]):
                        growing.append(ref)
                    seen[ref.uid] = look
                waiting = growing if time.monotonic() < give_up else []
                if waiting:
                    time.sleep(pause)
        if failures:
            raise StepIncompleteError("Fetching results", failures, len(refs))
        return fetched


def _fetch_one(
    hook: QureHook, store: Store, ref: ResourceRef, failures: list[tuple[str, Exception]]
) -> tuple[dict[str, Any], str] | None:
    """Return what is told of a result, and the digest of what it says; None where it failed."""
    from qure_provider.api.errors import QureRejectedError, QureTransientError
    from qure_provider.api.model import Outcome
    from qure_provider.operators.fetching import fetch_result

    try:
        answer = hook.result(ref)
        row = {"outcome": answer.outcome.value, "meaning": answer.meaning.value, "folder": "", "files": 0}
        if answer.outcome is Outcome.READY:
            result = fetch_result(hook, store, ref, answer, ref.uid)
            return {**row, "folder": ref.uid, "files": len(result.assets)}, answer.digest
    except (QureTransientError, QureRejectedError) as error:
        failures.append((settings.short_ref(ref.uid), error))
        return None
    if not answer.outcome.is_final:
        failures.append((settings.short_ref(ref.uid), QureTransientError(f"no result yet: {answer.outcome.value}")))
        return None
    return row, answer.digest
