import asyncio
import threading
import time
from dataclasses import fields, replace
from typing import ClassVar

import pendulum
import pytest
from airflow.sdk import BaseNotifier
from airflow.sdk.definitions.callback import AsyncCallback

from qure_provider.api.model import Meaning, Outcome, Report, ResultAnswer
from qure_provider.triggers import alerts
from qure_provider.triggers.alerts import (
    BLOCKING,
    PAUSES_SECONDS,
    TRY_SECONDS,
    Alert,
    Entry,
    Paging,
    channel_of,
    check_paging,
    send,
    tell,
)

ALERT = Alert("ab12", "qer", "urgent", "Critical", "CT", "ROOM1", "20261120101500.123", "dag", "run", "https://ui/run")


def ready(**values):
    return ResultAnswer(Outcome.READY, **values)


class TestWhatIsSaid:
    def test_names_study_product_station_and_time_and_that_it_is_unverified(self):
        for part in ("AI output, unverified", "qer", "CT", "urgent", "Critical", "ab12", "ROOM1", "https://ui/run"):
            assert part in ALERT.text

    def test_knows_how_old_the_images_are_by_the_hospitals_clock(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__QURE__TIMEZONE", "Asia/Kolkata")
        monkeypatch.setattr(pendulum, "now", lambda tz: pendulum.datetime(2026, 11, 20, 4, 52).in_timezone(tz))
        assert ALERT.minutes_since_acquisition == 7
        assert "7 min after acquisition" in ALERT.text
        assert replace(ALERT, acquired="202611201015").minutes_since_acquisition == 7

    @pytest.mark.parametrize(
        ("acquired", "shown"),
        [
            ("20261120101500.123", "acquired 2026-11-20 10:15 +05:30 at ROOM1"),
            ("202611201015", "acquired 2026-11-20 10:15 +05:30 at ROOM1"),
            ("20261120", "acquired 2026-11-20 at ROOM1"),
            ("2026112010", "acquired at an unknown time at ROOM1"),
            ("20269920", "acquired at an unknown time at ROOM1"),
            ("", "acquired at an unknown time at ROOM1"),
        ],
    )
    def test_says_when_as_people_write_it_with_the_hospitals_zone(self, monkeypatch, acquired, shown):
        monkeypatch.setenv("AIRFLOW__QURE__TIMEZONE", "Asia/Kolkata")
        assert shown in replace(ALERT, acquired=acquired).text

    def test_a_time_to_come_has_no_age(self):
        alert = replace(ALERT, acquired="29991120101500")
        assert alert.minutes_since_acquisition is None
        assert "min after" not in alert.text

    @pytest.mark.parametrize("acquired", ["", "20261120", "2026112010", "20261120101", "20269920101500", "nonsense"])
    def test_a_header_that_does_not_tell_stops_nothing(self, acquired):
        alert = Alert("ab12", "qer", "urgent", "Critical", acquired=acquired)
        assert alert.minutes_since_acquisition is None
        assert "unverified" in alert.text
        assert "min after" not in alert.text

    def test_what_the_service_left_out_is_said_to_be_so(self):
        text = replace(ALERT, product="", triage="").text
        assert "the service marks a CT as urgent (triage word: none)" in text

    def test_templates_can_use_all_of_it(self):
        (alert,) = ALERT.as_context().values()
        assert {field.name for field in fields(Alert)} | {"text", "acquired_at", "minutes_since_acquisition"} == set(
            alert
        )


class TestWhatPages:
    def test_by_default_only_what_is_urgent(self):
        wanted = [meaning for meaning in Meaning if Paging().wants(ready(meaning=meaning))]
        assert wanted == [Meaning.URGENT]

    def test_a_finding_by_decision_or_by_listing(self):
        paging = Paging((), ("sdh",))
        assert paging.wants(ready(decisions={"sdh": True}))
        assert paging.wants(ready(decisions={"SDH": True}))
        assert Paging((), ("SDH",)).wants(ready(decisions={"sdh": True}))
        assert paging.wants(ready(report=Report(findings_list=(("sdh", "text"),))))
        assert not paging.wants(ready(decisions={"sdh": False}))
        assert not paging.wants(ready(meaning=Meaning.URGENT))

    def test_a_meaning_that_does_not_exist_is_refused(self):
        with pytest.raises(ValueError, match=r"no triage meaning 'dire'\. It takes urgent, abnormal, "):
            check_paging((), ("urgent", "dire"))

    @pytest.mark.parametrize("key", ['["sdh"]', "sdh; ich", '"sdh"', " "])
    def test_so_is_what_can_be_no_findings_key(self, key):
        with pytest.raises(ValueError, match=r"is no finding's key\. It takes keys as the service writes them"):
            check_paging((), (), ("ich", key))

    @pytest.mark.parametrize("arguments", [((), "urgent", ()), ((), (), "sdh"), ((), (None,), ())])
    def test_so_is_what_is_no_list(self, arguments):
        with pytest.raises(ValueError, match="must be a list of texts"):
            check_paging(*arguments)

    def test_so_is_what_is_no_notifier(self):
        with pytest.raises(ValueError, match="AsyncCallback"):
            check_paging(("mail",), ())


class TestChannels:
    def channel(self, **arguments):
        return channel_of(AsyncCallback("a.module.Notifier", kwargs=arguments).serialize())

    def test_the_same_settings_are_the_same_channel_however_they_are_ordered(self):
        assert self.channel(a=1, b=[2]) == self.channel(b=[2], a=1)

    def test_others_are_another_and_do_not_show(self):
        assert self.channel(to="someone@example.org") != self.channel(to="other@example.org")
        assert "someone" not in self.channel(to="someone@example.org")

    def test_who_was_told_of_another_meaning_is_another(self):
        notifier = AsyncCallback("a.module.Notifier", kwargs={}).serialize()
        assert channel_of(notifier) == channel_of(notifier, "urgent")
        assert len({channel_of(notifier, meaning) for meaning in Meaning}) == len(Meaning)


def test_a_notifier_has_its_three_tries_within_a_minute():
    assert len(PAUSES_SECONDS) == 3
    assert sum(PAUSES_SECONDS) + len(PAUSES_SECONDS) * TRY_SECONDS < 60


class BlackHole(BaseNotifier):
    """A notifier that cannot be awaited and whose server answers nothing until the test ends.

    Attributes:
        released: Set when the server answers again.
        blocking: How many threads wait for it.
    """

    released: ClassVar[threading.Event] = threading.Event()
    blocking: ClassVar[list[threading.Thread]] = []

    def notify(self, context):
        BlackHole.blocking.append(threading.current_thread())
        BlackHole.released.wait(60)
        BlackHole.blocking.remove(threading.current_thread())


class Told(BaseNotifier):
    """A notifier that cannot be awaited, either, and works."""

    studies: ClassVar[list[str]] = []

    def notify(self, context):
        Told.studies.append(context["alert"]["study_ref"])


class Book:
    """A record that lets everybody try."""

    def begin_alert(self, resource_id, channel, *, seconds):
        return True

    def record_alert(self, resource_id, channel, *, error=""):
        pass


def notifier(kind, **arguments):
    return AsyncCallback(kind, kwargs=arguments).serialize()


class TestANotifierThatBlocks:
    @pytest.fixture(autouse=True)
    def black_hole(self, monkeypatch):
        BlackHole.released, BlackHole.blocking, Told.studies = threading.Event(), [], []
        monkeypatch.setattr(alerts, "_FREE", {})
        yield
        blocking = list(BlackHole.blocking)
        BlackHole.released.set()
        for thread in blocking:
            thread.join(10)

    def test_keeps_no_later_alert_from_another_channel(self, monkeypatch):
        monkeypatch.setattr(alerts, "TRY_SECONDS", 5.0)
        urgent = [replace(ALERT, study_ref=str(number)) for number in range(20)]

        async def told():
            stuck = [asyncio.create_task(send(notifier(BlackHole), alert, Entry(Book(), 1))) for alert in urgent]
            await asyncio.sleep(0.2)
            for alert in urgent:
                async with asyncio.timeout(1.0):
                    assert await send(notifier(Told), alert, Entry(Book(), 1)) == ""
            for task in stuck:
                task.cancel()

        asyncio.run(told())
        assert Told.studies == [alert.study_ref for alert in urgent]

    def test_ends_a_try_in_time_and_keeps_no_task_from_ending(self, monkeypatch):
        monkeypatch.setattr(alerts, "TRY_SECONDS", 0.2)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(tell(notifier(BlackHole), ALERT))
        assert time.monotonic() - begun < 2
        assert BlackHole.blocking[0].daemon

    def test_holds_a_few_threads_however_often_it_is_tried(self, monkeypatch):
        monkeypatch.setattr(alerts, "TRY_SECONDS", 0.1)
        monkeypatch.setattr(alerts, "PAUSES_SECONDS", (0.0, 0.0))

        async def tried():
            return await asyncio.gather(*(send(notifier(BlackHole), ALERT) for _ in range(20)))

        assert asyncio.run(tried()) == ["TimeoutError"] * 20
        assert len(BlackHole.blocking) == BLOCKING

    def test_is_tried_again_once_it_answers(self, monkeypatch):
        monkeypatch.setattr(alerts, "TRY_SECONDS", 0.1)
        for _ in range(BLOCKING + 1):
            with pytest.raises(TimeoutError):
                asyncio.run(tell(notifier(BlackHole), ALERT))
        monkeypatch.setattr(alerts, "TRY_SECONDS", 5.0)
        threading.Timer(0.2, BlackHole.released.set).start()
        asyncio.run(tell(notifier(BlackHole), ALERT))  # its threads' loops are closed by now
        assert BlackHole.blocking == []

    def test_more_alerts_than_threads_all_get_through_where_it_works(self):
        async def told():
            return await asyncio.gather(*(send(notifier(Told), ALERT) for _ in range(5 * BLOCKING)))

        assert asyncio.run(told()) == [""] * (5 * BLOCKING)
        assert len(Told.studies) == 5 * BLOCKING
