"""Telling people of urgent results that do not reach their receivers."""

import asyncio
import time

from pipeline_kit import Pager

from qure_provider import settings
from qure_provider.operators.troubles import tell_of_troubles
from qure_provider.triggers import alerts

FACTS = {"dag_id": "night", "run_id": "scheduled__1", "link": ""}


def urgent_and_held(night):
    night.sql("UPDATE resources SET doubt = 'SIMULATED doubt', meaning = 'urgent'")
    night.sql("UPDATE parcels SET urgent = 1")
    night.deliver(night.to_folder)
    assert night.states() == {"held": 3}


def test_one_notifier_that_hangs_does_not_hold_up_the_others(night, monkeypatch):
    async def hang(self, context):
        await asyncio.sleep(60)

    night.enqueue([night.to_folder])
    urgent_and_held(night)
    monkeypatch.setattr(alerts, "TRY_SECONDS", 1.0)
    monkeypatch.setattr(Pager, "async_notify", hang)
    began = time.monotonic()
    with night.ledger() as ledger:
        tell_of_troubles(ledger, [Pager.callback().serialize()], FACTS)
    tries = len(alerts.PAUSES_SECONDS)
    assert time.monotonic() - began < 2 * tries  # one after another it is three times as long as all at once


def test_each_is_told_once(night):
    night.enqueue([night.to_folder])
    urgent_and_held(night)
    with night.ledger() as ledger:
        for _ in range(2):
            tell_of_troubles(ledger, [Pager.callback().serialize()], FACTS)
    chest, head = settings.short_ref(night.chest), settings.short_ref(night.head)
    assert sorted(message for _, message in Pager.told) == sorted([chest, chest, head])
