"""Asking Qure to compute CT series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.context import Context

from qure_provider import settings
from qure_provider.operators.base import QureOperator, as_bool
from qure_provider.operators.work import open_batch
from qure_provider.retries import StepIncompleteError

if TYPE_CHECKING:
    from qure_provider.hooks.qure import QureHook

STALE = "may predate late images: the service said that the series had been computed before it grew"


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
                    error, already = _compute(hook, row.ref.uid, recompute=row.revision > 1)
                    work.check()
                    if error:
                        failures.append((settings.short_ref(row.uid), error))
                        work.ledger.record_failure([row.id], Outcome.NOT_COMPUTED, f"compute: {error}")
                        continue
                    work.ledger.mark_computed([row.id])
                    if already and row.revision > 1:
                        work.ledger.record_doubt(row.id, STALE)
            if failures:
                raise StepIncompleteError("Computing", failures, len(todo))


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
