"""Asking Qure to compute CT series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.context import Context

from qure_provider import settings
from qure_provider.ledger.doubts import STALE, UNDER_WAY
from qure_provider.operators.base import QureOperator, as_bool
from qure_provider.operators.work import BatchWork, open_batch
from qure_provider.retries import StepIncompleteError

if TYPE_CHECKING:
    from qure_provider.hooks.qure import QureHook
    from qure_provider.ledger.ledger import ResourceRow


class QureComputeOperator(QureOperator):
    """Trigger computation of CT series, after all their images were uploaded. X-rays need none.

    A series that was queued before counts as done. One that the service does not hold yet is retried.

    Args:
        series_instance_uids: One SeriesInstanceUID or several; an empty list does nothing.
        recompute: Sent as ``{"recompute": true}``; its effect is not described by the vendor.
        kwargs: See ``QureOperator``.

    Returns:
        ``{"queued": n, "already_queued": n}``.
    """

    template_fields = ("series_instance_uids", "recompute", "qure_conn_id")
    ui_color = "#f6ecd9"

    def __init__(
        self, *, series_instance_uids: Sequence[str] | str, recompute: bool | str = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.series_instance_uids = series_instance_uids
        self.recompute = recompute

    def execute(self, context: Context) -> dict[str, int]:
        """Ask for computation."""
        from qure_provider.hooks.qure import QureHook

        uids = [self.series_instance_uids] if isinstance(self.series_instance_uids, str) else self.series_instance_uids
        counts = {"queued": 0, "already_queued": 0}
        failures: list[tuple[str, Exception]] = []
        with QureHook(self.qure_conn_id, operator=type(self).__name__) as hook:
            for uid in uids:
                error, already = _compute(hook, uid, recompute=as_bool(self.recompute))
                if error:
                    failures.append((settings.short_ref(uid), error))
                else:
                    counts["already_queued" if already else "queued"] += 1
        if failures:
            raise StepIncompleteError("Computing", failures, len(uids))
        return counts


class QureComputeBatchOperator(QureOperator):
    """Trigger computation of a batch's CT series that are uploaded and were not queued yet.

    One that grew, or was sent over several tries, may have been computed in part by the service itself: it is computed
    again, and what the service said before is kept, so that it is not taken for the new result.

    Args:
        batch: One of the batches that the plan returned.
        store_root: The store's root; None for ``[qure] store_root``.
        kwargs: See ``QureOperator``.
    """

    template_fields = ("batch", "qure_conn_id")
    ui_color = "#f6ecd9"

    def __init__(self, *, batch: Any, store_root: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batch = batch
        self.store_root = store_root

    def execute(self, context: Context) -> None:
        """Ask for computation."""
        from qure_provider.api.model import Outcome
        from qure_provider.hooks.qure import QureHook

        with open_batch(self.batch, self.store_root, context) as work:
            todo = [row for row in work.rows() if row.uploaded_at is not None and row.computed_at is None]
            if not todo:
                return
            failures: list[tuple[str, Exception]] = []
            with QureHook(self.qure_conn_id, operator=type(self).__name__) as hook:
                for row in todo:
                    if not work.ledger.begin_compute(row.id, work.run.id):
                        if work.ledger.rows_by_id([row.id])[0].computed_at is None:
                            failures.append((settings.short_ref(row.uid), _busy()))
                        continue
                    try:
                        error = _ask(work, hook, row)
                    finally:
                        work.ledger.end_compute(row.id, work.run.id)
                    if error:
                        failures.append((settings.short_ref(row.uid), error))
                        work.ledger.record_failure([row.id], Outcome.NOT_COMPUTED, f"compute: {error}")
            if failures:
                raise StepIncompleteError("Computing", failures, len(todo))


def _ask(work: BatchWork, hook: QureHook, row: ResourceRow) -> Exception | None:
    """Ask for one series and record that; return what went wrong, if anything but the settings."""
    is_again = row.revision > 1 or row.sent_in_parts
    error = _keep_baseline(work, hook, row) if is_again else None
    already = False
    if error is None:
        error, already = _compute(hook, row.ref.uid, recompute=is_again)
    work.check()
    if error is None:
        work.ledger.mark_computed([row.id])
        if already and is_again:
            work.ledger.record_doubt(row.id, STALE)
    return error


def _busy() -> Exception:
    from qure_provider.api.errors import QureTransientError

    return QureTransientError("another run is asking for it right now")


def _keep_baseline(work: BatchWork, hook: QureHook, row: ResourceRow) -> Exception | None:
    """Keep what the service says before it computes anew, where that may be of fewer images and nobody fetched it.

    What it was computing when asked cannot be told from what it computes afterwards, so that stays in doubt.
    """
    from qure_provider.api.errors import QureRejectedError, QureTransientError
    from qure_provider.api.model import Outcome

    is_known = row.baseline is not None or (not row.sent_in_parts and not work.ledger.lacks_result_before(row.id))
    if is_known:
        return None
    try:
        answer = hook.result(row.ref)
    except (QureTransientError, QureRejectedError) as error:
        return error
    if answer.outcome is Outcome.PENDING:
        work.ledger.record_doubt(row.id, UNDER_WAY)
    work.ledger.record_baseline(row.id, answer.digest if answer.outcome is Outcome.READY else "")
    return None


def _compute(hook: QureHook, uid: str, *, recompute: bool) -> tuple[Exception | None, bool]:
    """Ask for one series; return what went wrong, if anything but the settings, and whether it had been queued."""
    from qure_provider.api.errors import QureRejectedError, QureTransientError

    try:
        answer = hook.compute(uid, recompute=recompute)
    except (QureTransientError, QureRejectedError) as error:
        return error, False
    if answer.not_uploaded:
        return QureTransientError("the service does not hold this series (yet): was its upload finished?"), False
    return None, answer.already_queued
