"""Telling people about an urgent result, the moment it is seen."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pendulum
from airflow.sdk import BaseNotifier
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.module_loading import import_string  # type: ignore[attr-defined]

from qure_provider import settings
from qure_provider.api.model import Meaning, ResultAnswer
from qure_provider.background import in_background

if TYPE_CHECKING:
    from qure_provider.reports.result import Result

log = logging.getLogger(__name__)

PAUSES_SECONDS = (0.0, 2.0, 6.0)
"""Before each try to send one alert; a later wake of the task tries again."""
TRY_SECONDS = 15.0
"""How long one try may take."""
BLOCKING = 4
"""In how many threads at once a notifier that cannot be awaited may block, which one that hangs never leaves."""
TURN_SECONDS = 0.05
"""Between two looks whether one of them is free."""
_NOT_IN_KEYS = frozenset('[]{}";')


@dataclass(frozen=True, slots=True)
class Paging:
    """Which ready results people are told of at once.

    Attributes:
        meanings: Of these triage meanings; by default only ``urgent``.
        findings: Or with one of these keys, in upper or lower case, among the decisions that are true or the findings
            listed; empty by default.
    """

    meanings: tuple[str, ...] = (Meaning.URGENT.value,)
    findings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = [meaning.value for meaning in Meaning]
        unknown = sorted(set(self.meanings) - set(known))
        if unknown:
            raise ValueError(
                f"page_on: there is no triage meaning {', '.join(map(repr, unknown))}. It takes {', '.join(known)}."
            )
        if strange := [key for key in self.findings if not key.strip() or _NOT_IN_KEYS.intersection(key)]:
            raise ValueError(
                f"page_findings: {', '.join(map(repr, strange))} is no finding's key. It takes keys as the service "
                "writes them; in [qure] page_findings separated by commas, without brackets or quotes."
            )

    def wants(self, answer: ResultAnswer | Result) -> bool:
        """Return whether this result is one of them."""
        if answer.meaning.value in self.meanings:
            return True
        found = {key for key, decision in answer.decisions.items() if decision}
        found |= {key for key, _ in answer.report.findings_list}
        return not {key.casefold() for key in found}.isdisjoint(key.casefold() for key in self.findings)


@dataclass(frozen=True, slots=True)
class Alert:
    """What an alert says: enough to find the study behind a login, no name and no number of the patient.

    Attributes:
        study_ref: The study's pseudonym, as tables and pages show it.
        product: As the service named it.
        meaning: What the triage word means on this route.
        triage: The vendor's word.
        modality: The modality; empty where not known.
        station: The station's name; empty where not known.
        acquired: When it was acquired, as DICOM DT in the hospital's clock; empty where not known.
        dag_id: The DAG that waits for it.
        run_id: Its run.
        link: The run in the Airflow UI; empty where ``[api] base_url`` is not set.
        problem: What keeps the result from its readers; empty where nothing does.
    """

    study_ref: str
    product: str
    meaning: str
    triage: str
    modality: str = ""
    station: str = ""
    acquired: str = ""
    dag_id: str = ""
    run_id: str = ""
    link: str = ""
    problem: str = ""

    @property
    def acquired_at(self) -> str:
        """When it was acquired, by the hospital's clock: ``2026-11-20 10:15 +05:30``.

        Only the day where the header tells no time; empty where it tells neither.
        """
        moment = self._acquired(12, 14)
        if moment is not None:
            return str(moment.format("YYYY-MM-DD HH:mm Z"))
        day = self._acquired(8)
        return "" if day is None else str(day.to_date_string())

    @property
    def minutes_since_acquisition(self) -> int | None:
        """How old the images are, in minutes; None where the header does not tell, or names a time to come."""
        moment = self._acquired(12, 14)
        if moment is None:
            return None
        minutes = int((pendulum.now("UTC") - moment).total_seconds() // 60)
        return minutes if minutes >= 0 else None

    def _acquired(self, *lengths: int) -> pendulum.DateTime | None:
        """Read the time, if it has so many digits: pendulum finds one in others, too, and a wrong one."""
        digits = self.acquired.partition(".")[0]
        if len(digits) not in lengths:
            return None
        try:
            return pendulum.from_format(digits.ljust(14, "0"), "YYYYMMDDHHmmss", tz=settings.timezone())
        except ValueError:
            return None

    @property
    def text(self) -> str:
        """The alert as one paragraph."""
        age = self.minutes_since_acquisition
        where = f"acquired {self.acquired_at or 'at an unknown time'} at {self.station or 'an unknown station'}"
        problem = f"NOT DELIVERED: {self.problem.rstrip('.')}. " if self.problem else ""
        return (
            f"{problem}AI output, unverified: {self.product or 'the service'} marks a {self.modality or 'study'} "
            f"as {self.meaning} (triage word: {self.triage or 'none'}). Study ref {self.study_ref}, {where}"
            f"{'' if age is None else f', {age} min after acquisition'}. Please have it read. {self.link}"
        ).strip()

    def as_context(self) -> dict[str, Any]:
        """Return what a notifier's templates can use: ``{{ alert.text }}``, ``{{ alert.study_ref }}``, ..."""
        return {
            "alert": {
                **asdict(self),
                "text": self.text,
                "acquired_at": self.acquired_at,
                "minutes_since_acquisition": self.minutes_since_acquisition,
            }
        }


@dataclass(frozen=True, slots=True)
class TrialAlert(Alert):
    """An alert about nothing, by which the way to its readers is tried."""

    study_ref: str = "TEST"
    product: str = "TEST"
    meaning: str = "TEST"
    triage: str = "TEST"

    @property
    def text(self) -> str:
        """What nobody can take for a result."""
        return (
            "TEST, of no patient and no study: an alert about an urgent AI result would reach you this way. There is "
            "nothing to be read."
        )


def check_paging(
    notifiers: Sequence[AsyncCallback], page_on: Sequence[str] = (), page_findings: Sequence[str] = ()
) -> None:
    """Check the paging arguments, when the DAG is parsed.

    Raises:
        ValueError: If a notifier is no ``AsyncCallback``, a meaning does not exist, or what should be a list of texts
            is none.
    """
    for name, texts in (("page_on", page_on), ("page_findings", page_findings)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} must be a list of texts")
    for notifier in notifiers:
        if not isinstance(notifier, AsyncCallback):
            raise ValueError("notifiers must be AsyncCallback(NotifierClass, kwargs={...}) objects")
    Paging(tuple(page_on), tuple(page_findings))


def channel_of(notifier: Mapping[str, Any], meaning: str = Meaning.URGENT) -> str:
    """Return a stable name for a notifier and its settings, under which it is recorded that it was told.

    Who was told that a result is unknown or abnormal was not told that it is urgent.

    Args:
        notifier: The notifier.
        meaning: What it was told that the triage means.
    """
    settings_of_it = json.dumps(notifier["kwargs"], sort_keys=True, default=str)
    channel = f"{notifier['path']}#{hashlib.sha256(settings_of_it.encode()).hexdigest()[:12]}"
    return channel if meaning == Meaning.URGENT else f"{channel}|{meaning}"


class Record(Protocol):
    """Where it is kept who was told of what, so that nobody is told twice. The ledger is one."""

    def begin_alert(self, resource_id: int, channel: str, *, seconds: float) -> bool:
        """Record that it is about to be sent; return whether it is to be."""

    def record_alert(self, resource_id: int, channel: str, *, error: str = "") -> None:
        """Record that it was sent, or that a try failed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where in a record it is kept that an alert was sent.

    Attributes:
        record: The record.
        resource_id: The resource that it is about.
        occasion: Told apart from other alerts about the same resource by this; empty for its result.
    """

    record: Record
    resource_id: int
    occasion: str = ""

    async def begin(self, channel: str) -> bool:
        """Return whether to try now: not where it was sent, or somebody else is trying.

        Where the record itself fails, people are told: rather twice than not at all.
        """
        try:
            return await asyncio.to_thread(
                self.record.begin_alert, self.resource_id, channel + self.occasion, seconds=TRY_SECONDS + 5.0
            )
        except Exception as error:
            log.warning("The ledger could not be asked before an alert: error=%s", type(error).__name__)
            return True

    async def end(self, channel: str, error: str) -> None:
        """Record what became of a try."""
        try:
            await asyncio.to_thread(self.record.record_alert, self.resource_id, channel + self.occasion, error=error)
        except Exception as problem:
            log.warning("The ledger could not keep that an alert was sent: error=%s", type(problem).__name__)


async def send(notifier: Mapping[str, Any], alert: Alert, entry: Entry | None = None) -> str | None:
    """Send one alert through one notifier, trying a few times.

    A notifier is made anew for each try, with its own copy of its arguments: a notifier renders its templates in
    place, so that one used twice would name the first study again.

    Args:
        notifier: ``{"path": class, "kwargs": arguments}``, as ``AsyncCallback`` serializes.
        alert: What to say.
        entry: Where it is recorded, which keeps two from sending the same at once; None for nowhere.

    Returns:
        An empty text, or the class of the exception that the last try ended with; None where somebody else has sent
        it or is about to. It never raises.
    """
    channel = channel_of(notifier, alert.meaning)
    error = ""
    for pause in PAUSES_SECONDS:
        await asyncio.sleep(pause)
        if entry is not None and not await entry.begin(channel):
            return None
        error = await _try(notifier, alert)
        if entry is not None:
            await entry.end(channel, error)
        if not error:
            log.info("An alert was sent: study=%s", alert.study_ref)
            return ""
        log.warning("An alert could not be sent: error=%s study=%s", error, alert.study_ref)
    return error


async def _try(notifier: Mapping[str, Any], alert: Alert) -> str:
    """Try once; return the class of the exception that it ended with, or an empty text."""
    try:
        await tell(notifier, alert)
    except Exception as problem:
        return type(problem).__name__
    return ""


async def tell(notifier: Mapping[str, Any], alert: Alert) -> None:
    """Send one alert through one notifier, once.

    Args:
        notifier: As ``send`` takes it.
        alert: What to say.

    Raises:
        Exception: What the notifier raises, or ``TimeoutError``. Its text may be secret.
    """
    context = alert.as_context()
    make = import_string(notifier["path"])
    instance = make(**copy.deepcopy(dict(notifier["kwargs"])), context=context)
    async with asyncio.timeout(TRY_SECONDS):
        if getattr(type(instance), "async_notify", None) is BaseNotifier.async_notify:
            await _block(channel_of(notifier), lambda: _notify(instance, context))
        else:
            await instance


def _notify(notifier: BaseNotifier, context: Any) -> None:
    """Notify as ``BaseNotifier`` does where it cannot be awaited, but without the error's text in the log."""
    notifier.render_template_fields(context)
    notifier.notify(context)


_FREE: dict[str, threading.Semaphore] = {}
"""By channel: in how many threads more it may block. They are the process's, as a loop may end before its threads."""


async def _block(channel: str, action: Callable[[], None]) -> None:
    """Do what may block for ever in a thread of its own, which nobody waits for when this is cancelled.

    In the loop's own pool it would take the threads from those who ask the ledger, and would hold the loop's end.
    """
    free = _FREE.setdefault(channel, threading.Semaphore(BLOCKING))
    while not free.acquire(blocking=False):  # noqa: ASYNC110 - it is threads of several loops that set it free
        await asyncio.sleep(TURN_SECONDS)

    def run() -> None:
        try:
            action()
        finally:
            free.release()

    try:
        ended = in_background(partial(contextvars.copy_context().run, run), "notifier")
    except RuntimeError:  # the process has no thread left
        free.release()
        raise
    await asyncio.wrap_future(ended)


async def send_to_all(
    notifiers: Sequence[Mapping[str, Any]], alert: Alert, entry: Entry | None = None
) -> dict[str, str]:
    """Send one alert through every notifier at once.

    Returns:
        For each channel that was tried an empty text, or the class of the exception that its last try ended with.
    """
    errors = await asyncio.gather(*(send(notifier, alert, entry) for notifier in notifiers))
    channels = [channel_of(notifier, alert.meaning) for notifier in notifiers]
    return {channel: error for channel, error in zip(channels, errors, strict=True) if error is not None}
