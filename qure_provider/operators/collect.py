"""Waiting for a batch's results and taking each as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.context import Context
from airflow.sdk.exceptions import TaskDeferralTimeout

from qure_provider import settings
from qure_provider.api.model import Meaning
from qure_provider.delivery.rules import rules_from
from qure_provider.ledger.batch_ref import BatchRef
from qure_provider.ledger.doubts import UNCHANGED
from qure_provider.operators.base import QureOperator
from qure_provider.operators.dry_run import ShowOnly, show_only_of
from qure_provider.operators.troubles import tell_of_results, tell_of_troubles, tell_of_unfetched
from qure_provider.operators.work import BatchWork, open_batch
from qure_provider.retries import StepIncompleteError
from qure_provider.triggers.alerts import Paging, check_paging
from qure_provider.triggers.results import (
    STABLE_LIMIT_SECONDS,
    Again,
    QureResultsTrigger,
    ResultsEvent,
    Wake,
    alert_about,
    facts_of,
    pace,
    run_facts,
)

if TYPE_CHECKING:
    from qure_provider.api.model import ResultAnswer
    from qure_provider.hooks.qure import QureHook
    from qure_provider.ledger.ledger import ResourceRow

PARALLEL = 4
ALERTS = 16
"""How many results people are told of at once; a notifier that hangs must not hold up the others."""
DELIVER_SECONDS = 600.0
"""How long a batch, and the run, delivers at most at its end; the rest goes by qure_redeliver."""
AWAY = 2 * PARALLEL
"""After so many questions in a row without an answer it is the service that is away, and not a few results."""
BETWEEN_SECONDS = 10.0
"""How long it delivers while results are waited for: nobody looks for urgent ones meanwhile."""
_ASKING = "asking: "
_T = TypeVar("_T")


class QureCollectBatchOperator(QureOperator):
    """Wait for a batch's results without holding a worker; fetch what is ready at each wake, urgent ones first.

    It asks once, then defers. The trigger wakes it when something urgent is ready (people are told from the triggerer),
    when a share of the batch is, and at the run's deadline; what is ready is then fetched into the store and the rest
    is waited for. What the service never finishes is recorded as timed out: it has neither a "failed" state nor a
    cancel. A result whose files cannot be fetched is tried again, ever more rarely, while others are waited for; people
    who were told of it are told that it is not there. It fails the task after everything else was done.

    Args:
        batch: One of the batches that the plan returned.
        store_root: The store's root; None for ``[qure] store_root``.
        notifiers: Who is told of an urgent result: ``AsyncCallback(Notifier, kwargs={...})`` each; templates in the
            arguments can use ``{{ alert.text }}`` and the other fields of ``Alert``.
        page_on: Triage meanings that people are told of.
        page_findings: Finding or decision keys that people are told of.
        deliver_to: Destinations that get everything: connection ids, or folders' URLs; a list, or separated by blanks.
        rules: What goes where, as ``delivery.rules.rules_from`` takes it; they stand before ``deliver_to``.
        show_only: With ``deliver`` or ``upload`` nothing is delivered.
        only_urgent: Whether to deliver only what is urgent and leave the rest, which is recorded as owed, to a
            ``QureDeliverOperator`` of the same run: thousands of routine deliveries then hold up no urgent one.
        first_poll_seconds: Between deferring and the first question; None for ``[qure] first_poll_seconds``.
        max_poll_seconds: Longest time between two questions; None for ``[qure] max_poll_seconds``.
        settle_seconds: Between two looks at a ready result's files; None for ``[qure] settle_seconds``.
        kwargs: See ``QureOperator``.
    """

    template_fields = ("batch", "deliver_to", "show_only", "qure_conn_id")
    ui_color = "#efe3f4"

    def __init__(
        self,
        *,
        batch: Any,
        store_root: str | None = None,
        notifiers: Sequence[AsyncCallback] = (),
        page_on: Sequence[str] = ("urgent",),
        page_findings: Sequence[str] = (),
        deliver_to: Sequence[str] | str = (),
        rules: Sequence[Mapping[str, Any]] = (),
        show_only: str | None = None,
        only_urgent: bool = False,
        first_poll_seconds: float | None = None,
        max_poll_seconds: float | None = None,
        settle_seconds: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_paging(notifiers, page_on, page_findings)
        rules_from(deliver_to, rules)
        self.deliver_to = deliver_to
        self.rules = list(rules)
        self.show_only = show_only
        self.only_urgent = only_urgent
        self.batch = batch
        self.store_root = store_root
        self.notifiers = [notifier.serialize() for notifier in notifiers]
        self.page_on = list(page_on)
        self.page_findings = list(page_findings)
        self.first_poll_seconds = first_poll_seconds
        self.max_poll_seconds = max_poll_seconds
        self.settle_seconds = settle_seconds

    def execute(self, context: Context) -> None:
        """Ask for everything once, what had timed out before included; take what is there; wait for the rest."""
        self._collect(context, ResultsEvent(Wake.SOME), is_begun_anew=True)

    def resume(self, context: Context, event: Any = None) -> None:
        """Go on after the trigger fired.

        Raises:
            ValueError: If the event is empty or not understood; the retry asks for everything again.
        """
        self._collect(context, ResultsEvent.from_payload(event))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Take a deferral's timeout for what it is, the deadline, where the base class would fail the task."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            return self._collect(context, ResultsEvent(Wake.DEADLINE))

    def _collect(self, context: Context, known: ResultsEvent, *, is_begun_anew: bool = False) -> None:
        from qure_provider.api.model import Outcome
        from qure_provider.hooks.qure import QureHook

        with open_batch(self.batch, self.store_root, context) as work:
            rows = [
                row
                for row in work.rows()
                if row.uploaded_at is not None
                and (not row.is_over or (is_begun_anew and row.outcome is Outcome.TIMED_OUT))
            ]
            missed = _Missed()
            if rows:
                with QureHook(self.qure_conn_id, operator=type(self).__name__) as hook:
                    missed = self._take(context, work, hook, rows, set(known.done), set(known.urgent))
            failed = missed.failed
            left = [row for row in work.rows() if row.uploaded_at is not None and not row.is_over]
            if known.wake is Wake.DEADLINE or time.time() >= work.run.deadline:
                unheard = [row for row in left if row.outcome is not Outcome.READY]
                failed |= {row.id: missed.unasked[row.id] for row in unheard if row.id in missed.unasked}
                _end_waiting(work, [row for row in left if row.id not in failed])
                left = []
            waiting = [row for row in left if row.id not in failed]
            touched = {row.id for row in rows}
            self._deliver(
                context,
                work,
                [row for row in work.rows() if is_begun_anew or row.id in touched],
                seconds=BETWEEN_SECONDS if waiting else DELIVER_SECONDS,
                only_urgent=self.only_urgent,
            )
            again = missed.again(known.again, {*known.done, *known.urgent})
            self._tell_of_unfetched(context, work, missed.urgent, again)
            self.log.info("Collected: asked=%d failed=%d waiting=%d", len(rows), len(failed), len(waiting))
            deadline = work.run.deadline
        if waiting:
            self._defer(context, deadline, again=again)
        if failed:
            refs = {row.id: settings.short_ref(row.uid) for row in rows}
            raise StepIncompleteError(
                "Fetching results", ((refs[row_id], error) for row_id, error in failed.items()), len(rows)
            )

    def _take(
        self,
        context: Context,
        work: BatchWork,
        hook: QureHook,
        rows: list[ResourceRow],
        done: set[int],
        urgent: set[int],
    ) -> _Missed:
        """Ask for every row's result, tell people of the urgent ones as they come, and fetch what is ready.

        What the trigger saw to be urgent is asked for, fetched and delivered before anything else is asked for, and
        what turns out to be urgent before anything else is fetched. What it saw to be ready comes before the rest, and
        what got no answer the last time comes last: questions that fail must not keep the others from being asked.

        A question that failed leaves its row to be asked again by the trigger, and so does a service that is away: it
        is not waited for here. What the trigger saw to be ready is then left alone for a while: the trigger, which got
        an answer, would wake the task for it again and again. One image alone may be denied for its own sake, or for a
        moment after its upload; and an answer to one that blames the settings holds back no other.

        Returns:
            What could not be taken.

        Raises:
            QureSettingsError: If every answer says that a setting is wrong.
        """
        from qure_provider.api.errors import QureRejectedError, QureSettingsError
        from qure_provider.api.model import Outcome

        ready: list[tuple[ResourceRow, ResultAnswer]] = []
        blamed: dict[int, Exception] = {}
        missed = _Missed(urgent={row.id for row in rows if row.id in urgent and row.outcome is not Outcome.READY})
        denied = 0
        alerts: list[Future[None]] = []
        facts = run_facts(context)
        questions = _Questions(hook)
        parts = (
            [row for row in rows if row.id in urgent],
            [row for row in rows if row.id in done - urgent],
            sorted(
                (row for row in rows if row.id not in done | urgent), key=lambda row: row.reason.startswith(_ASKING)
            ),
        )
        with ThreadPoolExecutor(ALERTS) as pool:
            for part in filter(None, parts):
                pressing: list[tuple[ResourceRow, ResultAnswer]] = []
                for row, answer, error in _in_parallel(questions.ask, part):
                    work.check()
                    if isinstance(error, QureSettingsError):
                        blamed[row.id] = error
                        work.ledger.record_failure([row.id], row.outcome or Outcome.PENDING, f"{_ASKING}{error}")
                    elif isinstance(error, QureRejectedError):
                        work.ledger.record_failure([row.id], Outcome.FAILED, str(error))
                    elif error is not None:
                        self.log.warning("A question failed: resource=%s error=%s", settings.short_ref(row.uid), error)
                        if row.id in questions.unanswered:
                            work.ledger.record_failure([row.id], row.outcome or Outcome.PENDING, f"{_ASKING}{error}")
                        missed.unasked[row.id] = error
                    elif answer is not None and answer.outcome is Outcome.READY:
                        is_paging = self._paging().wants(answer)
                        (pressing if is_paging or answer.meaning is Meaning.URGENT else ready).append((row, answer))
                        if is_paging:
                            alerts.append(pool.submit(self._alert, facts, work, row, answer))
                    elif answer is not None:
                        denied += answer.outcome is Outcome.DENIED
                        work.ledger.record_answer(row.id, answer, settled=row.id in done and _is_taken(answer))
                if pressing:
                    missed.failed |= self._fetch_all(work, hook, pressing, done)
                    missed.urgent |= {row.id for row, answer in pressing if _is_new(row, answer)}
                    fetched = work.ledger.rows_by_id(row.id for row, _ in pressing)
                    self._deliver(context, work, fetched, seconds=BETWEEN_SECONDS, only_urgent=True)
            if len(blamed) == len(rows):
                raise next(iter(blamed.values()))
            if denied == len(rows) > 1 and denied == sum(row.uploaded_at is not None for row in work.rows()):
                raise QureSettingsError(
                    "The service denies every result of this batch: check the connection's Source, and that the images "
                    "were sent to the same workspace."
                )
            missed.failed |= blamed | self._fetch_all(work, hook, ready, done)
            for alert in alerts:
                alert.result()
        return missed

    def _fetch_all(
        self, work: BatchWork, hook: QureHook, ready: list[tuple[ResourceRow, ResultAnswer]], done: set[int]
    ) -> dict[int, Exception]:
        from qure_provider.api.errors import QureRejectedError
        from qure_provider.api.model import Outcome

        answers = {row.id: answer for row, answer in ready}
        settled = {row.id for row, answer in ready if row.id in done or self._is_second_look(row, answer)}
        failed: dict[int, Exception] = {}
        for row, _, error in _in_parallel(
            lambda row: _fetch(work, hook, row, answers[row.id], is_settled=row.id in settled),
            [row for row, _ in ready],
        ):
            work.check()
            is_outdated = row.outcome is Outcome.READY and _is_new(row, answers[row.id])
            if isinstance(error, QureRejectedError):
                work.ledger.record_failure([row.id], Outcome.FAILED, f"fetching: {error}", is_outdated=is_outdated)
            elif error is not None:
                failed[row.id] = error
                outcome = Outcome.PENDING if is_outdated else row.outcome or Outcome.PENDING
                work.ledger.record_failure([row.id], outcome, f"fetching: {error}", is_outdated=is_outdated)
        return failed

    def _is_second_look(self, row: ResourceRow, answer: ResultAnswer) -> bool:
        """Whether a result says the same, with as many files, as when this task last looked, long enough ago."""
        from qure_provider.api.model import Outcome

        if row.outcome is not Outcome.READY or row.digest != answer.digest or row.file_counts != answer.file_counts:
            return False
        now = time.time()
        has_files = bool(answer.files) or now - (row.ready_at or now) >= STABLE_LIMIT_SECONDS
        return has_files and now - row.updated_at >= self._pace()["settle"]

    def _alert(self, facts: Mapping[str, str], work: BatchWork, row: ResourceRow, answer: ResultAnswer) -> None:
        """Tell people of an urgent result that nobody was told of yet; the trigger told them of those that it saw."""
        tell_of_results(work.ledger, self.notifiers, {row.id: alert_about(answer, facts_of(row, facts))})

    def _tell_of_unfetched(
        self, context: Context, work: BatchWork, urgent: Collection[int], again: Iterable[Again]
    ) -> None:
        """Tell people of urgent results that could not be fetched when their turn had come again either."""
        rows = work.ledger.rows_by_id(each.key for each in again if each.times > 1 and each.key in urgent)
        tell_of_unfetched(work.ledger, self.notifiers, rows, run_facts(context))

    def _deliver(
        self, context: Context, work: BatchWork, rows: Sequence[ResourceRow], *, seconds: float, only_urgent: bool
    ) -> None:
        """Take what was fetched onward. What cannot be delivered now is owed, and does not hold the batch."""
        rules = rules_from(self.deliver_to, self.rules)
        if not rules or show_only_of(self.show_only) is not ShowOnly.NO:
            return
        from qure_provider.delivery.courier import Courier
        from qure_provider.delivery.rules import destinations_of

        courier = Courier(work.store, work.ledger, work.owner, self._paging())
        for problem in courier.enqueue(work.run.id, rows, rules):
            self.log.error("%s", problem)
        courier.deliver(destinations_of(rules), run_id=work.run.id, seconds=seconds, only_urgent=only_urgent)
        tell_of_troubles(work.ledger, self.notifiers, run_facts(context), run_id=work.run.id)

    def _pace(self) -> dict[str, float]:
        return pace(self.first_poll_seconds, self.max_poll_seconds, self.settle_seconds)

    def _paging(self) -> Paging:
        return Paging(tuple(self.page_on), tuple(self.page_findings))

    def _defer(self, context: Context, deadline: float, *, again: Iterable[Again]) -> NoReturn:
        self.defer(
            trigger=QureResultsTrigger(
                qure_conn_id=self.qure_conn_id,
                deadline=deadline,
                batch_id=BatchRef.from_xcom(self.batch).batch_id,
                store_root=self.store_root or settings.store_root(),
                again=[astuple(each) for each in again],
                notifiers=self.notifiers,
                meanings=self.page_on,
                findings=self.page_findings,
                pace=self._pace(),
                run=run_facts(context),
            ),
            method_name="resume",
            timeout=timedelta(seconds=max(deadline - time.time(), 1.0) + 60.0),
        )


@dataclass(slots=True)
class _Missed:
    """What could not be taken this time, by key.

    Attributes:
        failed: What could not be fetched, or whose question blamed the settings, and why.
        unasked: Whose question failed otherwise, or was not asked, and why.
        urgent: What pages somebody and was not fetched before.
    """

    failed: dict[int, Exception] = field(default_factory=dict)
    unasked: dict[int, Exception] = field(default_factory=dict)
    urgent: set[int] = field(default_factory=set)

    def again(self, before: Iterable[Again], seen: Collection[int]) -> list[Again]:
        """Return when each is to be tried again: what could not be fetched, or was seen to be ready and not asked for.

        Args:
            before: What was said before.
            seen: What the trigger saw to be ready.
        """
        known = {each.key: each for each in before}
        missed = self.failed | {key: error for key, error in self.unasked.items() if key in seen}
        return [Again.after(key, error, known.get(key)) for key, error in missed.items()]


class _Questions:
    """Questions to a service that may be away: once some in a row got no answer, the others are not asked."""

    def __init__(self, hook: QureHook) -> None:
        self._hook = hook
        self._failed = 0
        self.unanswered: set[int] = set()

    def ask(self, row: ResourceRow) -> ResultAnswer:
        from qure_provider.api.errors import QureTransientError

        if self._failed >= AWAY:
            raise QureTransientError("not asked: the service does not answer")
        try:
            answer = self._hook.result(row.ref, tries=1)
        except QureTransientError:
            self._failed += 1
            self.unanswered.add(row.id)
            raise
        self._failed = 0
        return answer


def _fetch(work: BatchWork, hook: QureHook, row: ResourceRow, answer: ResultAnswer, *, is_settled: bool) -> None:
    from qure_provider.api.errors import QureRejectedError
    from qure_provider.operators.fetching import fetch_result
    from qure_provider.store import result_folder

    work.check()
    way_back = None
    if row.sent_uid is not None:
        way_back = work.ledger.pseudonyms.way_back(row.id)
        if way_back is None:
            raise QureRejectedError("the ledger has forgotten what was sent in place of whose it is; recompute it")
    study = row.identity.study_instance_uid
    folder = result_folder(study, row.series_instance_uid, row.uid, row.route, row.revision)
    fetch_result(
        hook,
        work.store,
        row.ref,
        answer,
        folder,
        revision=row.revision,
        study_instance_uid=study,
        series_instance_uid=row.series_instance_uid,
        way_back=way_back,
    )
    is_unchanged = row.doubt in {"", UNCHANGED} and _is_unchanged(work, row, answer, folder)
    if is_unchanged:
        work.ledger.record_doubt(row.id, UNCHANGED)
    elif row.doubt == UNCHANGED:
        work.ledger.record_doubt(row.id, "")
    work.ledger.record_answer(row.id, answer, store_path=folder, settled=is_settled and not is_unchanged)


def _is_unchanged(work: BatchWork, row: ResourceRow, answer: ResultAnswer, folder: str) -> bool:
    """Whether images that changed have the very answer that they had before."""
    from qure_provider.api.model import digest_of

    if answer.digest == row.baseline:
        return True
    before = work.ledger.result_before_change(row.id) if row.revision > 1 else None
    if before is None:
        return False
    try:
        old, new = (work.store.read_json(f"{place}/answer.json") for place in (before, folder))
        return digest_of(old) == digest_of(new)
    except (FileNotFoundError, ValueError):
        return False


def _is_new(row: ResourceRow, answer: ResultAnswer) -> bool:
    """Whether what an answer says was never fetched."""
    return row.store_path is None or row.digest != answer.digest


def _is_taken(answer: ResultAnswer) -> bool:
    """Whether an answer that the trigger stopped asking for is the last; one that is processed again is not."""
    from qure_provider.api.model import Outcome

    return not answer.outcome.is_final and (answer.outcome is not Outcome.PENDING or bool(answer.stage))


def _end_waiting(work: BatchWork, left: Iterable[ResourceRow]) -> None:
    from qure_provider.api.model import Outcome

    pending = [row.id for row in left if row.outcome in {None, Outcome.PENDING}]
    work.ledger.mark_timed_out(pending, "the service had no result at the run's deadline; a later run asks again")
    work.ledger.mark_settled(row.id for row in left if row.id not in set(pending))


def _in_parallel(
    action: Callable[[ResourceRow], _T], rows: Sequence[ResourceRow]
) -> Iterable[tuple[ResourceRow, _T | None, Exception | None]]:
    """Apply an action to each row, a few at once; return what became of each as it comes."""
    from qure_provider.api.errors import QureError, QureTransientError

    def attempt(row: ResourceRow) -> tuple[ResourceRow, _T | None, Exception | None]:
        try:
            return row, action(row), None
        except QureError as error:
            return row, None, error
        except OSError as error:
            problem = error.strerror or type(error).__name__
            return row, None, QureTransientError(f"the store could not be used ({problem}): check its disk and access")

    with ThreadPoolExecutor(PARALLEL) as pool:
        try:
            for future in as_completed([pool.submit(attempt, row) for row in rows]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
