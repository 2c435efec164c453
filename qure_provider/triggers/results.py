"""Waiting for results in the triggerer: one trigger polls all that a batch still waits for."""

from __future__ import annotations

import asyncio
import heapq
import importlib
import logging
import random
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.context import Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

from qure_provider import settings
from qure_provider.api.errors import QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.api.model import Meaning, Outcome, ResourceRef, ResultAnswer, Route
from qure_provider.ledger.doubts import UNCHANGED
from qure_provider.triggers.alerts import Alert, Entry, Paging, channel_of, send, send_to_all

if TYPE_CHECKING:
    from qure_provider.hooks.qure_async import QureAsyncClient
    from qure_provider.ledger.ledger import Ledger, ResourceRow

log = logging.getLogger(__name__)

GRACE_SECONDS = 600.0
"""How long an answer that may still change without computation (not uploaded, not computed, denied, the service's
"Validity not determined yet!") is asked for again before it is taken as the answer."""
STABLE_LIMIT_SECONDS = 300.0
"""How long at most a growing set of files is watched."""
SHARE = 0.25
"""The task is resumed when so much of what it waits for is there, and nothing else is about to be ..."""
HOLD_SECONDS = 60.0
"""... or when something has been there for so long."""
CONCURRENCY = 16
TELLING_SECONDS = 5.0
"""How long the task's wake waits for alerts that are being sent; they are sent to the end all the same."""
ANSWERING_SECONDS = 5.0
"""How long the task's wake waits for questions that are under way, one of which may be about something urgent."""
TELL_AGAIN_SECONDS = 60.0
"""Between two rounds of trying to send the batch's alerts that did not get through, of what was fetched, too."""
GROWTH = 1.5
AGAIN_SECONDS = 60.0
"""How long what could not be taken is left alone at first, twice as long each time it fails again ..."""
AGAIN_LIMIT_SECONDS = 900.0
"""... and so long at most, unless the service asked for more."""


class Wake(StrEnum):
    """Why the task is resumed."""

    ALL = "all"
    SOME = "some"
    URGENT = "urgent"
    DEADLINE = "deadline"
    SETTINGS = "settings"


@dataclass(frozen=True, slots=True)
class Again:
    """A result that the task could not take, and when it is to try again.

    Attributes:
        key: How the event names it.
        times: How often it failed when its turn had come.
        at: When its turn comes, seconds since the epoch.
    """

    key: int
    times: int
    at: float

    @classmethod
    def after(cls, key: int, error: Exception, before: Again | None) -> Again:
        """Return when to try again.

        Args:
            key: What failed.
            error: What it failed with; a pause that the service asked for is kept.
            before: What was said before; a try that came before its turn counts for nothing.
        """
        now = time.time()
        asked = now + ((error.retry_after or 0.0) if isinstance(error, QureTransientError) else 0.0)
        if before is not None and now < before.at:
            return replace(before, at=max(before.at, asked))
        times = 1 if before is None else before.times + 1
        return cls(key, times, max(now + min(AGAIN_SECONDS * 2 ** (times - 1), AGAIN_LIMIT_SECONDS), asked))


@dataclass(frozen=True, slots=True)
class ResultsEvent:
    """What the trigger tells the task: which of its targets, by key, and never what their results say.

    Attributes:
        wake: Why it fires.
        urgent: Ready, and somebody is to be told. The files may still be growing.
        done: With an answer that no further question will change.
        told: Where there is no batch, whose ledger knows: which of them was told of by which notifier, by position.
        again: What the task could not take and was to be tried again, as the task said it.
    """

    wake: Wake
    urgent: tuple[int, ...] = ()
    done: tuple[int, ...] = ()
    told: tuple[tuple[int, int], ...] = ()
    again: tuple[Again, ...] = ()

    def to_payload(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "wake": self.wake.value,
            "urgent": list(self.urgent),
            "done": list(self.done),
            "told": [list(pair) for pair in self.told],
            "again": [list(astuple(each)) for each in self.again],
        }

    @classmethod
    def from_payload(cls, payload: Any) -> ResultsEvent:
        """Read an event.

        Raises:
            ValueError: If it is empty or not understood: an unknown answer must never be taken for a good one.
        """
        try:
            return cls(
                wake=Wake(payload["wake"]),
                urgent=tuple(int(key) for key in payload["urgent"]),
                done=tuple(int(key) for key in payload["done"]),
                told=tuple((int(key), int(position)) for key, position in payload.get("told", ())),
                again=_again_of(payload.get("again", ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(
                "The trigger's event was empty or not understood; the results are asked for again."
            ) from None


@dataclass(slots=True)
class Target:
    """One resource that is waited for.

    Attributes:
        key: How the event names it.
        ref: What to ask for.
        alert: What an alert about it would say, but for the result itself.
        alerted: The channels that were told already.
        sending: Whether people are being told right now.
        counts: The files that it had when last asked; None where it was not ready yet.
        digest: What it said then; None where it was not ready yet.
        stale: What it said before its images changed; empty where nothing else is waited for.
        ready_at: When it was first seen ready, seconds since the epoch.
        since: Since when a result can be expected, seconds since the epoch.
        interval: Seconds until it is asked for again.
        again_at: Before when it is not to be asked for, as the task could not take it; 0 where it never tried.
    """

    key: int
    ref: ResourceRef
    alert: Mapping[str, str]
    alerted: frozenset[str] = frozenset()
    sending: bool = False
    counts: Mapping[str, int] | None = None
    digest: str | None = None
    stale: str = ""
    ready_at: float | None = None
    since: float = field(default_factory=time.time)
    interval: float = 0.0
    again_at: float = 0.0


class QureResultsTrigger(BaseTrigger):
    """Poll results until something is worth resuming the task for.

    It fires when everything has its answer, when a quarter has and no other result is between its two looks, when
    something has waited a minute to be fetched, at once when a result pages somebody (who is told from here), and at
    the deadline. Where no batch is given it fires only when everything has its answer, and at the deadline. The service
    can cancel nothing and has no "failed" state: what it never finishes stays pending until the deadline.

    Args:
        qure_conn_id: The Qure connection.
        deadline: When waiting ends, seconds since the epoch.
        resources: ``[[uid, route, own uid], ...]``, the last one where the first is a pseudonym; the event's keys are
            positions in it. Empty where a batch is given.
        batch_id: A batch in the ledger; the event's keys are its resources' keys in the ledger.
        store_root: The store that the ledger belongs to.
        besides: Keys of resources that are not to be asked for.
        again: ``[[key, times, at], ...]``: see ``Again``. The task is resumed for one when its turn has come and it is
            ready, for one that pages at once.
        pace: Seconds: ``first_poll`` before the first question, ``max_poll`` the longest time between two for the same
            result, ``settle`` after which a ready result is asked for again, to see whether files were added.
        notifiers: Who is told of a paging result: ``{"path": class, "kwargs": arguments}`` each.
        meanings: See ``Paging``.
        findings: See ``Paging``.
        run: ``dag_id``, ``run_id`` and ``link``, for the alert's text.
    """

    def __init__(
        self,
        *,
        qure_conn_id: str,
        deadline: float,
        resources: Sequence[Sequence[str]] = (),
        batch_id: int | None = None,
        store_root: str = "",
        besides: Sequence[int] = (),
        again: Sequence[Sequence[float]] = (),
        pace: Mapping[str, float] = MappingProxyType({"first_poll": 15.0, "max_poll": 60.0, "settle": 15.0}),
        notifiers: Sequence[Mapping[str, Any]] = (),
        meanings: Sequence[str] = Paging().meanings,
        findings: Sequence[str] = (),
        run: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.qure_conn_id = qure_conn_id
        self.deadline = deadline
        self.resources = [list(resource) for resource in resources]
        self.batch_id = batch_id
        self.store_root = store_root
        self.besides = list(besides)
        self.again = [list(each) for each in again]
        self.pace = dict(pace)
        self.notifiers = [dict(notifier) for notifier in notifiers]
        self.meanings = list(meanings)
        self.findings = list(findings)
        self.run_facts = dict(run)
        self._paging = Paging(tuple(meanings), tuple(findings))
        self._sending: set[asyncio.Task[Any]] = set()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, for the trigger's row."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "qure_conn_id": self.qure_conn_id,
                "deadline": self.deadline,
                "resources": self.resources,
                "batch_id": self.batch_id,
                "store_root": self.store_root,
                "besides": self.besides,
                "again": self.again,
                "pace": self.pace,
                "notifiers": self.notifiers,
                "meanings": self.meanings,
                "findings": self.findings,
                "run": self.run_facts,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll, tell, and fire once."""
        # Importing the client takes long enough to hold up every other trigger of the process.
        hooks = await asyncio.to_thread(importlib.import_module, "qure_provider.hooks.qure_async")
        targets = await asyncio.to_thread(self._targets)
        telling = asyncio.create_task(self._tell_owed())
        try:
            async with hooks.shared_client(self.qure_conn_id) as client:
                event = await self._wait(client, targets)
                if self._sending:
                    await asyncio.wait(self._sending, timeout=None if self.batch_id is None else TELLING_SECONDS)
        except QureSettingsError as error:
            log.error("Polling stopped, a setting is wrong: %s", error)
            event = ResultsEvent(Wake.SETTINGS)
        finally:
            telling.cancel()
        event = replace(event, again=_again_of(self.again))
        if self.batch_id is None:
            event = replace(event, told=self._told(targets))
        yield TriggerEvent(event.to_payload())  # type: ignore[no-untyped-call]

    async def _wait(self, client: QureAsyncClient, targets: list[Target]) -> ResultsEvent:
        watch = _Watch({target.key: target for target in targets})
        for target in targets:
            watch.ask_in(self._first_wait(target) + random.uniform(0, 1), target)  # noqa: S311
        try:
            while watch.due or watch.asking:
                now = time.time()
                if now >= self.deadline:
                    return watch.event(Wake.DEADLINE)
                if self.batch_id is not None and (wake := watch.wake(now)):
                    await watch.hear(seconds=ANSWERING_SECONDS, all_of_them=True)
                    return watch.event(wake)
                while watch.due and watch.due[0][0] <= now and len(watch.asking) < CONCURRENCY:
                    due, key = heapq.heappop(watch.due)
                    if now - due > self.pace["max_poll"] and not watch.is_late:
                        watch.is_late = True
                        log.warning(
                            "Results are asked for late: late_seconds=%.0f pending=%d. Raise the connection's polling "
                            "ceiling as far as Qure agrees to it.",
                            now - due,
                            len(watch.due),
                        )
                    watch.asking[asyncio.create_task(self._ask(client, watch.targets[key]))] = watch.targets[key]
                is_full = not watch.due or len(watch.asking) >= CONCURRENCY
                await watch.hear(seconds=min(now + 1 if is_full else watch.due[0][0], self.deadline, now + 1) - now)
            return watch.event(Wake.ALL)
        finally:
            for task in watch.asking:
                task.cancel()

    async def _ask(self, client: QureAsyncClient, target: Target) -> _Verdict:
        try:
            answer = await client.result(target.ref)
        except QureTransientError as error:
            return _Verdict(wait=self._next_interval(target, error.retry_after))
        except QureRejectedError:
            return _Verdict(is_done=True)
        if answer.outcome is Outcome.READY:
            return await self._ready(target, answer)
        if answer.outcome.is_final:
            return _Verdict(is_done=True)
        in_doubt = answer.outcome is not Outcome.PENDING or bool(answer.stage)
        if in_doubt and time.time() - target.since >= GRACE_SECONDS:
            return _Verdict(is_done=True)
        return _Verdict(wait=self._next_interval(target, answer.retry_after))

    async def _ready(self, target: Target, answer: ResultAnswer) -> _Verdict:
        now, digest = time.time(), answer.digest
        is_first = target.ready_at is None
        if target.stale not in {"", digest}:
            target.stale, target.ready_at = "", now
        target.ready_at = target.ready_at or now
        is_new = target.digest != digest
        is_same = not is_new and target.counts == answer.file_counts and bool(answer.files)
        target.digest, target.counts = digest, answer.file_counts
        is_urgent = self._paging.wants(answer)
        if is_urgent:
            self._tell(target, answer)
        if target.stale:
            return _Verdict(is_urgent=is_urgent and is_new, wait=self._next_interval(target, answer.retry_after))
        is_stable = is_same or now - target.ready_at >= STABLE_LIMIT_SECONDS
        return _Verdict(
            is_done=is_stable and not is_first,
            is_settling=True,
            is_urgent=is_urgent and (is_new or target.again_at > 0),
            wait=self.pace["settle"],
        )

    def _tell(self, target: Target, answer: ResultAnswer) -> None:
        """Begin to tell people who were not told yet; what has begun goes on when this trigger is done."""
        meaning = answer.meaning.value
        waiting = [item for item in self.notifiers if channel_of(item, meaning) not in target.alerted]
        if waiting and not target.sending:
            target.sending = True
            self._begin(self._send(target, waiting, alert_about(answer, target.alert)))

    def _begin(self, sending: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(sending)
        for tasks in (self._sending, _UNDER_WAY):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _tell_owed(self) -> None:
        """Try again and again to send what did not get through, of results that were taken since, too."""
        while self.batch_id is not None and self.notifiers:
            try:
                for notifier, resource_id, alert in await asyncio.to_thread(self._owed):
                    self._begin(send(notifier, alert, Entry(_LedgerOf(self.store_root), resource_id)))
            except Exception as error:
                log.warning("The ledger could not be asked for alerts not sent: error=%s", type(error).__name__)
            await asyncio.sleep(TELL_AGAIN_SECONDS)

    def _owed(self) -> list[tuple[Mapping[str, Any], int, Alert]]:
        from qure_provider.ledger.ledger import Ledger
        from qure_provider.store import ledger_url

        with Ledger.open(ledger_url(self.store_root)) as ledger:
            return owed_alerts(ledger, self.notifiers, ledger.rows_of_batch(self.batch_id or 0), self.run_facts)

    async def _send(self, target: Target, notifiers: Sequence[Mapping[str, Any]], alert: Alert) -> None:
        entry = None if self.batch_id is None else Entry(_LedgerOf(self.store_root), target.key)
        errors = await send_to_all(notifiers, alert, entry)
        target.alerted |= {channel for channel, error in errors.items() if not error}
        target.sending = False

    def _told(self, targets: Iterable[Target]) -> tuple[tuple[int, int], ...]:
        return tuple(
            (target.key, position)
            for target in targets
            for position, notifier in enumerate(self.notifiers)
            if any(channel.startswith(channel_of(notifier)) for channel in target.alerted)
        )

    def _first_wait(self, target: Target) -> float:
        first = max(self.pace["first_poll"], target.again_at - time.time())
        return first if target.ready_at is None else max(first, self.pace["settle"])

    def _next_interval(self, target: Target, retry_after: float | None) -> float:
        target.interval = min(max(target.interval * GROWTH, self.pace["first_poll"]), self.pace["max_poll"])
        jittered = target.interval * random.uniform(0.8, 1.2)  # noqa: S311
        return max(min(jittered, self.pace["max_poll"]), retry_after or 0.0)

    def _targets(self) -> list[Target]:
        if self.batch_id is None:
            return [
                Target(
                    key=index,
                    ref=ResourceRef(uid, Route(route)),
                    alert={"study_ref": settings.short_ref(own_uid[0] if own_uid else uid), **self.run_facts},
                )
                for index, (uid, route, *own_uid) in enumerate(self.resources)
                if index not in self.besides
            ]
        from qure_provider.ledger.ledger import Ledger
        from qure_provider.store import ledger_url

        with Ledger.open(ledger_url(self.store_root)) as ledger:
            rows = [
                row
                for row in ledger.rows_of_batch(self.batch_id)
                if row.uploaded_at is not None and not row.is_over and row.id not in self.besides
            ]
            sent = ledger.sent_alerts(row.id for row in rows)
        again_at = {each.key: each.at for each in _again_of(self.again)}
        return [
            Target(
                key=row.id,
                ref=row.ref,
                alert=facts_of(row, self.run_facts),
                alerted=frozenset(channel for resource_id, channel in sent if resource_id == row.id),
                counts=row.file_counts if row.ready_at is not None else None,
                digest=row.digest,
                stale=(row.digest or "") if row.doubt == UNCHANGED else "",
                ready_at=row.ready_at,
                since=row.computed_at or row.uploaded_at or time.time(),
                again_at=again_at.get(row.id, 0.0),
            )
            for row in rows
        ]


_UNDER_WAY: set[asyncio.Task[Any]] = set()
"""Alerts that are being sent from this process, by triggers that may be done by now."""


@dataclass(frozen=True, slots=True)
class _LedgerOf:
    """The ledger of a store, opened for each call: an alert that is being tried may outlive its trigger."""

    store_root: str

    def begin_alert(self, resource_id: int, channel: str, *, seconds: float) -> bool:
        with self._open() as ledger:
            return ledger.begin_alert(resource_id, channel, seconds=seconds)

    def record_alert(self, resource_id: int, channel: str, *, error: str = "") -> None:
        with self._open() as ledger:
            ledger.record_alert(resource_id, channel, error=error)

    def _open(self) -> AbstractContextManager[Ledger]:
        from qure_provider.ledger.ledger import Ledger
        from qure_provider.store import ledger_url

        return Ledger.open(ledger_url(self.store_root))


@dataclass(frozen=True, slots=True)
class _Verdict:
    is_done: bool = False
    is_settling: bool = False
    is_urgent: bool = False
    wait: float = 0.0


@dataclass(slots=True)
class _Watch:
    """What a trigger knows of its targets while it polls: each question goes on by itself, so that none holds another.

    Attributes:
        targets: All, by key.
        due: When to ask for which, earliest first.
        asking: The questions under way.
        done: When each got its answer, in the order in which they did.
        settling: Ready, and about to be looked at again.
        urgent: Whose results page somebody.
        is_late: Whether the ceiling on requests let a question wait for longer than it should.
        expected: How many there are besides those that the task could not take, which keep nothing else waiting.
    """

    targets: Mapping[int, Target]
    due: list[tuple[float, int]] = field(default_factory=list)
    asking: dict[asyncio.Task[_Verdict], Target] = field(default_factory=dict)
    done: dict[int, float] = field(default_factory=dict)
    settling: set[int] = field(default_factory=set)
    urgent: list[int] = field(default_factory=list)
    is_late: bool = False
    expected: int = 0

    def __post_init__(self) -> None:
        first = {key: target for key, target in self.targets.items() if not target.again_at}
        self.settling |= {key for key, target in first.items() if target.ready_at is not None and not target.stale}
        self.expected = len(first)

    def ask_in(self, seconds: float, target: Target) -> None:
        """Ask for it then."""
        heapq.heappush(self.due, (time.time() + seconds, target.key))

    async def hear(self, *, seconds: float, all_of_them: bool = False) -> None:
        """Wait for an answer, or for all that are under way, no longer than so many seconds; take what came."""
        if not self.asking:
            await asyncio.sleep(0 if all_of_them else seconds)
            return
        when = asyncio.ALL_COMPLETED if all_of_them else asyncio.FIRST_COMPLETED
        finished, _ = await asyncio.wait(self.asking, timeout=seconds, return_when=when)
        for task in finished:
            self._take(self.asking.pop(task), task.result())

    def _take(self, target: Target, verdict: _Verdict) -> None:
        if verdict.is_done:
            self.done[target.key] = time.time()
            self.settling.discard(target.key)
        else:
            (self.settling.add if verdict.is_settling else self.settling.discard)(target.key)
            self.ask_in(verdict.wait, target)
        if verdict.is_urgent:
            self.urgent.append(target.key)

    def wake(self, now: float) -> Wake | None:
        """Return why the task is to be resumed before everything has its answer, or None.

        Results that come together are taken together: each wake is a task's start, and asks for all that is left.
        """
        if self.urgent:
            return Wake.URGENT
        is_share = len(self.done) >= SHARE * self.expected and not self.settling
        if self.done and (is_share or now - next(iter(self.done.values())) >= HOLD_SECONDS):
            return Wake.SOME
        return None

    def event(self, wake: Wake) -> ResultsEvent:
        """Return what the task is told."""
        return ResultsEvent(wake, tuple(self.urgent), tuple(self.done))


def _again_of(rows: Iterable[Sequence[float]]) -> tuple[Again, ...]:
    return tuple(Again(int(key), int(times), float(at)) for key, times, at in rows)


def alert_about(answer: ResultAnswer, facts: Mapping[str, str]) -> Alert:
    """Put an alert together from the answer and what is known of the study."""
    return Alert(
        product=answer.usecase or "the service",
        meaning=answer.meaning.value,
        triage=answer.triage or "none",
        **facts,
    )


def alert_of(row: ResourceRow, run: Mapping[str, str]) -> Alert:
    """Put an alert together from what is recorded of a result."""
    return Alert(
        product=row.usecase or "the service",
        meaning=row.meaning.value,
        triage=row.triage or "none",
        **facts_of(row, run),
    )


def owed_alerts(
    ledger: Ledger, notifiers: Sequence[Mapping[str, Any]], rows: Sequence[ResourceRow], run: Mapping[str, str]
) -> list[tuple[Mapping[str, Any], int, Alert]]:
    """Return which alerts about results were tried and never got through: the notifier, the resource and the alert.

    Each has the meaning that was to be told, which is not recorded of a result before it is fetched.
    """
    unsent = ledger.unsent_alerts(row.id for row in rows)
    return [
        (notifier, row.id, replace(alert_of(row, run), meaning=meaning.value))
        for row in rows
        for notifier in notifiers
        for meaning in Meaning
        if (row.id, channel_of(notifier, meaning)) in unsent
    ]


def facts_of(row: ResourceRow, run: Mapping[str, str]) -> dict[str, str]:
    """Return what an alert's reader finds a study by."""
    return {
        "study_ref": settings.short_ref(row.identity.study_instance_uid),
        "modality": row.modality,
        "station": row.station_name,
        "acquired": row.acquired,
        **run,
    }


def pace(first: float | None, longest: float | None, settle: float | None) -> dict[str, float]:
    """Return the trigger's three times, in seconds, with the configured ones where None."""
    return {
        "first_poll": settings.first_poll_seconds() if first is None else first,
        "max_poll": settings.max_poll_seconds() if longest is None else longest,
        "settle": settings.settle_seconds() if settle is None else settle,
    }


def run_facts(context: Context) -> dict[str, str]:
    """Return where an alert's reader finds the run."""
    dag_run = context["dag_run"]
    return {
        "dag_id": dag_run.dag_id,
        "run_id": dag_run.run_id,
        "link": settings.run_link(dag_run.dag_id, dag_run.run_id),
    }
