"""Watching in the triggerer for what a run comes to owe its receivers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""Between two looks at the ledger and at the run's tasks."""
_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


class QureOwedTrigger(BaseTrigger):
    """Fire when a run owes its receivers something, or when none of its tasks brings results any more.

    Run outside a triggerer, by ``dag.test()``, it fires at once: there nothing happens beside it.

    Args:
        dag_id: The run's DAG.
        run_id: The run.
        ledger_run: The run's key in the ledger.
        store_root: The store that the ledger belongs to.
        bringers: The ids of the tasks that bring results.
        pause: Before the first look, in seconds.
        owed_from: Before this time, seconds since the epoch, what is owed is left alone: it was just tried.
        deadline: When it fires at the latest, seconds since the epoch.
    """

    def __init__(
        self,
        *,
        dag_id: str,
        run_id: str,
        ledger_run: int,
        store_root: str,
        bringers: Sequence[str],
        pause: float,
        owed_from: float,
        deadline: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dag_id = dag_id
        self.run_id = run_id
        self.ledger_run = ledger_run
        self.store_root = store_root
        self.bringers = list(bringers)
        self.pause = pause
        self.owed_from = owed_from
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, for the trigger's row."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "dag_id": self.dag_id,
                "run_id": self.run_id,
                "ledger_run": self.ledger_run,
                "store_root": self.store_root,
                "bringers": self.bringers,
                "pause": self.pause,
                "owed_from": self.owed_from,
                "deadline": self.deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is something to do; the event says whether the run brings nothing more."""
        is_alone = self.trigger_id is None
        if not is_alone:
            await asyncio.sleep(self.pause)
        is_over = is_alone or await self._is_over()
        while not is_over and not await self._is_owed():
            await asyncio.sleep(LOOK_SECONDS)
            is_over = await self._is_over()
        yield TriggerEvent({"is_over": is_over})  # type: ignore[no-untyped-call]

    async def _is_over(self) -> bool:
        if time.time() >= self.deadline:
            return True
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        try:
            runs = await sync_to_async(RuntimeTaskInstance.get_task_states)(
                dag_id=self.dag_id, task_ids=self.bringers, run_ids=[self.run_id]
            )
        except Exception as error:
            log.warning("Airflow could not be asked for the run's tasks: error=%s", type(error).__name__)
            return False
        states = runs.get(self.run_id) or {}
        return bool(states) and _ENDED.issuperset(states.values())

    async def _is_owed(self) -> bool:
        if time.time() < self.owed_from:
            return False
        try:
            return await asyncio.to_thread(self._look)
        except Exception as error:
            log.warning("The ledger could not be asked for what is owed: error=%s", type(error).__name__)
            return False

    def _look(self) -> bool:
        from qure_provider.ledger.ledger import Ledger
        from qure_provider.store import ledger_url

        with Ledger.open(ledger_url(self.store_root)) as ledger:
            return ledger.deliveries.is_owed(self.ledger_run)
