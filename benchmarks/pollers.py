"""Those who wait for results in one event loop, as a triggerer does, each in a process of its own.

``python -m benchmarks.pollers ours JOB`` or ``python -m benchmarks.pollers http JOB``; JOB is JSON.

Time runs faster by a factor: every duration of the triggers is divided by it, and rates are multiplied by it. What a
poll costs, and how long the event loop is blocked, stays what it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow.sdk.module_loading import import_string  # type: ignore[attr-defined]
from airflow.triggers.base import BaseTrigger

from benchmarks.children import Child, keep_quiet, orders, say
from benchmarks.senders import memory

CONN_ID = "bench"
PACE = {"first_poll": 15.0, "max_poll": 60.0, "settle": 15.0}
"""The provider's defaults, in seconds."""
_TICK = 0.01


@dataclass(slots=True)
class _Told:
    """When events named a resource, in seconds since the epoch, by its key in the ledger."""

    done: dict[int, float] = field(default_factory=dict)
    urgent: dict[int, float] = field(default_factory=dict)

    def note(self, done: Iterable[int], urgent: Iterable[int]) -> None:
        """Keep when each was named first."""
        now = time.time()
        for times, keys in ((self.done, done), (self.urgent, urgent)):
            for key in keys:
                times.setdefault(key, now)


class _Costs:
    """What the process uses from now on."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._memory = memory("VmRSS")
        self._blocked = 0.0
        self._grown = 0

    def weigh(self) -> None:
        """Look how much memory there is now."""
        self._grown = max(self._grown, memory("VmRSS") - self._memory)

    async def watch(self) -> None:
        """See for how long the event loop lets nobody else in."""
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(_TICK)
            self._blocked = max(self._blocked, time.perf_counter() - begun - _TICK)

    def to_json(self) -> dict[str, float]:
        """Return CPU in seconds, growth of memory in bytes, and the longest block in seconds."""
        cpu = time.process_time() - self._cpu
        return {"cpu": cpu, "grown": self._grown, "blocked": self._blocked}


class Ours:
    """One trigger of the provider a batch, made anew after each event by the task that it wakes, which runs elsewhere.

    Args:
        job: ``batches`` of a ledger below ``store``, the server's ``plan``, ``factor``, ``seconds`` to measure (real
            ones), and how many resources will be ``ready``: those are waited for, up to five times as long.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        from qure_provider.triggers import results

        for name in ("GRACE_SECONDS", "STABLE_LIMIT_SECONDS", "HOLD_SECONDS"):
            setattr(results, name, getattr(results, name) / job["factor"])
        self._make = results.QureResultsTrigger
        self._event = results.ResultsEvent
        self._job = job
        self._deadline = 0.0
        self._told = _Told()
        self._costs = _Costs()
        self._rows: dict[int, tuple[str, str]] = {}
        self._began = 0.0
        self._turn = asyncio.Lock()
        settle = PACE["settle"] / job["factor"]
        self._task = Child("resumed_task", json.dumps({"plan": job["plan"], "store": job["store"], "settle": settle}))

    async def warm_up(self) -> None:
        """Do what a triggerer does only once."""
        trigger = self._make(
            qure_conn_id=CONN_ID, deadline=0.0, batch_id=self._job["batches"][0], store_root=self._job["store"]
        )
        async for _ in trigger.run():
            pass

    async def run(self, began: float) -> dict[str, Any]:
        """Wait, with a restart of the triggerer after half of the time."""
        with self._task:
            return await self._run(began)

    async def _run(self, began: float) -> dict[str, Any]:
        self._began = began
        seconds = self._job["seconds"]
        self._deadline = time.time() + 5 * seconds
        self._costs = _Costs()
        watcher = asyncio.create_task(self._costs.watch())
        for batch in self._job["batches"]:
            self._defer(batch)
        before = self._start()
        await asyncio.sleep(seconds / 2)
        self._costs.weigh()
        await _end(before)
        after = self._start()
        await asyncio.sleep(seconds / 2)
        said = self._costs.to_json()
        while len(self._told.done) < self._job["ready"] and time.time() < self._deadline:
            _raise_errors(after)
            await asyncio.sleep(0.1)
        await _end([*after, watcher])
        return {"done": self._told.done, "urgent": self._told.urgent, **said}

    def _start(self) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self._follow(batch)) for batch in self._job["batches"]]

    def _defer(self, batch: int) -> None:
        """Write the trigger's row, as the database would have it."""
        path, arguments = self._make(
            qure_conn_id=CONN_ID,
            deadline=self._deadline,
            batch_id=batch,
            store_root=self._job["store"],
            pace={name: seconds / self._job["factor"] for name, seconds in PACE.items()},
        ).serialize()
        self._rows[batch] = path, json.dumps(arguments)

    async def _follow(self, batch: int) -> None:
        while True:
            path, arguments = self._rows[batch]
            trigger: BaseTrigger = import_string(path)(**json.loads(arguments))
            async for fired in trigger.run():
                event = self._event.from_payload(fired.payload)
            if event.wake == "settings":
                raise RuntimeError("the trigger took its connection for wrong")
            self._told.note(event.done, event.urgent)
            if event.wake in ("all", "deadline"):
                return
            async with self._turn:
                order = json.dumps([batch, event.done, time.time() - self._began])
                taken = await asyncio.to_thread(self._task.ask, order)
            self._told.note(taken["done"], taken["urgent"])
            self._defer(batch)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    _raise_errors(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _raise_errors(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


class Http:
    """The http provider: the trigger of a deferrable ``HttpSensor`` for each resource.

    Args:
        job: ``count`` resources, the ``status`` that they are all answered with, ``factor``, ``seconds`` to wait.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        from airflow.providers.http.triggers.http import HttpSensorTrigger

        self._make = HttpSensorTrigger
        self._job = job

    async def warm_up(self) -> None:
        """Do what a triggerer does only once."""
        await self._first_event("200")

    async def run(self, began: float) -> dict[str, Any]:
        """Wait for all at once."""
        del began
        costs = _Costs()
        watcher = asyncio.create_task(costs.watch())
        waiting = [asyncio.create_task(self._first_event(self._job["status"])) for _ in range(self._job["count"])]
        await asyncio.sleep(self._job["seconds"])
        costs.weigh()
        said = costs.to_json()
        fired = sum(task.done() and not task.cancelled() for task in waiting)
        await _end([*waiting, watcher])
        return {"fired": fired, **said}

    async def _first_event(self, status: str) -> None:
        interval = PACE["max_poll"] / self._job["factor"]
        trigger = self._make(endpoint=f"status/{status}", http_conn_id=CONN_ID, poke_interval=interval)
        async for _ in trigger.run():
            return


POLLERS: Mapping[str, type[Ours | Http]] = {"ours": Ours, "http": Http}


def main() -> None:
    """Prepare, then wait whenever told when the server began."""
    name, job = sys.argv[1], json.loads(sys.argv[2])
    os.environ[f"AIRFLOW_CONN_{CONN_ID.upper()}"] = json.dumps(job["connection"])
    keep_quiet()

    async def run() -> None:
        poller = POLLERS[name](job)
        await poller.warm_up()
        say({"ready": name})
        lines = orders()
        while order := await asyncio.to_thread(next, lines, None):
            say(await poller.run(float(order)))

    asyncio.run(run())


if __name__ == "__main__":
    main()
