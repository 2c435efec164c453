"""Waiting for results that other tasks asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseSensorOperator, PokeReturnValue, RetryPolicy
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.context import Context
from airflow.sdk.exceptions import AirflowSensorTimeout

from qure_provider import settings
from qure_provider.ledger.batch_ref import BatchRef
from qure_provider.retries import QureRetryPolicy
from qure_provider.triggers.alerts import Alert, Paging, channel_of, check_paging, send
from qure_provider.triggers.results import QureResultsTrigger, ResultsEvent, alert_about, pace, run_facts

if TYPE_CHECKING:
    from qure_provider.api.model import ResourceRef, ResultAnswer


class QureResultsSensor(BaseSensorOperator):
    """Wait until every result asked for has its final answer, and return what each is.

    It asks once, then defers to the triggerer and holds no worker. A result that is urgent is told to people by the
    triggerer, at once. The service has no "failed" state and no cancel: what it never finishes is waited for until the
    deadline, which is computed once and kept over retries; the sensor then fails with a timeout.

    An image that is not for the product, or invalid, does not fail the sensor: its outcome is in what is returned, and
    is never ``ready``. A ready result may still gain files: ``QureFetchResultsOperator`` looks again until none comes.

    Args:
        sop_instance_uids: X-ray images, one SOPInstanceUID or several.
        series_instance_uids: CT series, one SeriesInstanceUID or several.
        batch: Instead of these, one of the batches that ``QurePlanOperator`` returned.
        store_root: For a batch, its store's root; None for ``[qure] store_root``.
        qure_conn_id: The Qure connection.
        wait_seconds: How long it waits at most, in seconds, from its first try on.
        deferrable: Whether to wait in the triggerer; otherwise a worker sleeps between questions.
        notifiers: Who is told of an urgent result: ``AsyncCallback(Notifier, kwargs={...})`` each.
        page_on: Triage meanings that people are told of.
        page_findings: Finding or decision keys that people are told of.
        first_poll_seconds: Between deferring and the first question; None for ``[qure] first_poll_seconds``.
        max_poll_seconds: Longest time between two questions; None for ``[qure] max_poll_seconds``.
        settle_seconds: Between two looks at a ready result's files; None for ``[qure] settle_seconds``.
        kwargs: As for every sensor.

    Returns:
        For each UID ``{"outcome": ..., "meaning": ..., "usecase": ...}``.
    """

    template_fields: Sequence[str] = ("sop_instance_uids", "series_instance_uids", "batch", "qure_conn_id")
    ui_color = "#efe3f4"

    def __init__(
        self,
        *,
        sop_instance_uids: Sequence[str] | str = (),
        series_instance_uids: Sequence[str] | str = (),
        batch: Any = None,
        store_root: str | None = None,
        qure_conn_id: str = "qure_default",
        wait_seconds: float = 8 * 3600,
        deferrable: bool = conf.getboolean("qure", "deferrable", fallback=True),
        notifiers: Sequence[AsyncCallback] = (),
        page_on: Sequence[str] = ("urgent",),
        page_findings: Sequence[str] = (),
        first_poll_seconds: float | None = None,
        max_poll_seconds: float | None = None,
        settle_seconds: float | None = None,
        retries: int = 3,
        retry_policy: RetryPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            retries=retries, retry_policy=retry_policy or QureRetryPolicy(), timeout=wait_seconds, **kwargs
        )
        check_paging(notifiers, page_on, page_findings)
        if wait_seconds <= 0:
            raise ValueError("wait_seconds must be more than 0")
        self.sop_instance_uids = sop_instance_uids
        self.series_instance_uids = series_instance_uids
        self.batch = batch
        self.store_root = store_root
        self.qure_conn_id = qure_conn_id
        self.wait_seconds = wait_seconds
        self.deferrable = deferrable
        self.notifiers = [notifier.serialize() for notifier in notifiers]
        self.page_on = list(page_on)
        self.page_findings = list(page_findings)
        self.first_poll_seconds = first_poll_seconds
        self.max_poll_seconds = max_poll_seconds
        self.settle_seconds = settle_seconds

    def execute(self, context: Context) -> Any:
        """Ask once, then wait."""
        if not self.deferrable:
            return super().execute(context)
        return self._finish_or_defer(context, done=(), told=())

    def poke(self, context: Context) -> PokeReturnValue:
        """Ask for everything once, in a worker."""
        if time.time() >= self._deadline(context):
            raise AirflowSensorTimeout(_TIMEOUT)
        refs = self._refs()
        answers = self._ask(context, refs, told=())
        is_over = all(answer is not None and answer.outcome.is_final for answer in answers)
        return PokeReturnValue(is_over, _outcomes(refs, answers) if is_over else None)

    def resume(self, context: Context, event: Any = None) -> Any:
        """Go on after the trigger fired.

        Raises:
            ValueError: If the event is empty or not understood; the retry asks for everything again.
        """
        known = ResultsEvent.from_payload(event)
        return self._finish_or_defer(context, done=known.done, told=known.told)

    def _finish_or_defer(
        self, context: Context, *, done: Sequence[int], told: Sequence[tuple[int, int]]
    ) -> dict[str, dict[str, str | None]]:
        refs = self._refs()
        answers = self._ask(context, refs, told=told)
        over = [index for index, answer in enumerate(answers) if _is_over(answer, seen_by_trigger=index in done)]
        if len(over) == len(refs):
            return _outcomes(refs, answers)
        deadline = self._deadline(context)
        if time.time() >= deadline:
            raise AirflowSensorTimeout(_TIMEOUT)
        return self._defer(context, refs, deadline, besides=over)

    def _defer(self, context: Context, refs: Sequence[ResourceRef], deadline: float, *, besides: list[int]) -> NoReturn:
        self.defer(
            trigger=QureResultsTrigger(
                qure_conn_id=self.qure_conn_id,
                deadline=deadline,
                resources=[[ref.uid, ref.route.value, ref.own_uid] for ref in refs],
                besides=besides,
                pace=pace(self.first_poll_seconds, self.max_poll_seconds, self.settle_seconds),
                notifiers=self.notifiers,
                meanings=self.page_on,
                findings=self.page_findings,
                run=run_facts(context),
            ),
            method_name="resume",
            timeout=timedelta(seconds=deadline - time.time() + 60.0),
        )

    def _refs(self) -> list[ResourceRef]:
        if self.batch is not None:
            return _refs_of_batch(self.batch, self.store_root)
        return refs_of(self.sop_instance_uids, self.series_instance_uids)

    def _ask(
        self, context: Context, refs: Sequence[ResourceRef], *, told: Sequence[tuple[int, int]]
    ) -> list[ResultAnswer | None]:
        """Ask for everything once, and tell people of what is urgent and was not told yet.

        Returns:
            An answer for each; None where the question itself failed and can be put again.
        """
        from qure_provider.api.errors import QureRejectedError, QureTransientError
        from qure_provider.api.model import Outcome, ResultAnswer
        from qure_provider.hooks.qure import QureHook

        answers: list[ResultAnswer | None] = []
        with QureHook(self.qure_conn_id, operator=type(self).__name__) as hook:
            for ref in refs:
                try:
                    answers.append(hook.result(ref))
                except QureTransientError as error:
                    self.log.warning("A question failed: resource=%s error=%s", settings.short_ref(ref.own_uid), error)
                    answers.append(None)
                except QureRejectedError as error:
                    answers.append(ResultAnswer(Outcome.FAILED, reason=str(error)))
        self._tell(context, refs, answers, told)
        return answers

    def _tell(
        self,
        context: Context,
        refs: Sequence[ResourceRef],
        answers: Sequence[ResultAnswer | None],
        told: Sequence[tuple[int, int]],
    ) -> None:
        from qure_provider.api.model import Outcome

        if not self.notifiers:
            return
        paging = Paging(tuple(self.page_on), tuple(self.page_findings))
        channels = [channel_of(notifier) for notifier in self.notifiers]
        state = context["task_state_store"]
        recorded = state.get(_TOLD, default=[])
        known = {tuple(pair) for pair in recorded if isinstance(pair, list)} if isinstance(recorded, list) else set()
        known |= {(index, channels[position]) for index, position in told}
        waiting = [
            (index, notifier, alert_about(answer, {"study_ref": settings.short_ref(ref.own_uid), **run_facts(context)}))
            for index, (ref, answer) in enumerate(zip(refs, answers, strict=True))
            if answer is not None and answer.outcome is Outcome.READY and paging.wants(answer)
            for notifier, channel in zip(self.notifiers, channels, strict=True)
            if (index, channel) not in known
        ]
        errors = asyncio.run(_send_all(waiting))
        known |= {
            (index, channel_of(notifier))
            for (index, notifier, _), error in zip(waiting, errors, strict=True)
            if not error
        }
        if known:
            state.set(_TOLD, [list(pair) for pair in sorted(known)])

    def _deadline(self, context: Context) -> float:
        """Return when waiting ends: set by the first try, kept by retries, set anew when a person clears the task."""
        state = context["task_state_store"]
        key = f"{_DEADLINE}:{context['dag_run'].clear_number or 0}"
        recorded = state.get(key)
        if isinstance(recorded, float | int):
            return float(recorded)
        deadline = time.time() + self.wait_seconds
        state.set(key, deadline)
        return deadline


async def _send_all(alerts: Iterable[tuple[int, Mapping[str, Any], Alert]]) -> list[str | None]:
    return await asyncio.gather(*(send(notifier, alert) for _, notifier, alert in alerts))


_TOLD = "told"
_DEADLINE = "deadline"
_TIMEOUT = (
    "The service had no final answer for every result before the deadline. It has no failed state, so this may be one "
    "that never comes: ask Qure's support, or clear the task to wait again."
)


def refs_of(sop_instance_uids: Sequence[str] | str, series_instance_uids: Sequence[str] | str) -> list[ResourceRef]:
    """Return what results are asked for: X-ray images by SOPInstanceUID, CT series by SeriesInstanceUID."""
    from qure_provider.api.model import ResourceRef, Route

    images = [sop_instance_uids] if isinstance(sop_instance_uids, str) else sop_instance_uids
    series = [series_instance_uids] if isinstance(series_instance_uids, str) else series_instance_uids
    return [ResourceRef(uid, Route.XRAY) for uid in images] + [ResourceRef(uid, Route.CT) for uid in series]


def _is_over(answer: ResultAnswer | None, *, seen_by_trigger: bool) -> bool:
    from qure_provider.api.model import Outcome

    if answer is None:
        return False
    return answer.outcome.is_final or (seen_by_trigger and answer.outcome is not Outcome.PENDING)


def _outcomes(refs: Sequence[ResourceRef], answers: Iterable[ResultAnswer | None]) -> dict[str, dict[str, str | None]]:
    return {
        ref.own_uid: {"outcome": answer.outcome.value, "meaning": answer.meaning.value, "usecase": answer.usecase}
        for ref, answer in zip(refs, answers, strict=True)
        if answer is not None
    }


def _refs_of_batch(batch: Any, store_root: str | None) -> list[ResourceRef]:
    from qure_provider.ledger.ledger import Ledger
    from qure_provider.store import ledger_url

    with Ledger.open(ledger_url(store_root or settings.store_root())) as ledger:
        return [row.ref for row in ledger.rows_of_batch(BatchRef.from_xcom(batch).batch_id)]
