"""Takes a worker away in the middle of an upload, and a triggerer in the middle of waiting."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select

from cluster.night import Instances, Workplace, batch_label
from demo.export import ExportFacts
from qure_provider.api.model import Route
from qure_provider.emulator.model import At, Kind, Stall
from qure_provider.ledger.schema import acknowledged, resources

_SEVERAL = 2
_LONG, _SHORT = 40.0, 5.0  # seconds that a result takes


class Losses:
    """What is lost in one night, and how long it takes until others have taken over.

    The emulator is told to never answer one of the requests by which a CT series is uploaded. Its worker is killed when
    all other uploads are through, so that nothing but this request is under way and every file has to arrive exactly
    once. A triggerer is killed as soon as several tasks wait in it; results take long until then.

    Args:
        work: Where.
        facts: The night's export.

    Attributes:
        recovery: What was lost to the seconds until it was made up for.
    """

    def __init__(self, work: Workplace, facts: ExportFacts) -> None:
        self.recovery: dict[str, float] = {}
        self._work = work
        self._facts = facts
        self._series = next(resource for resource in facts.resources if resource.route is Route.CT)
        self._worker = self._triggerer = ""
        self._lost_upload: Mapping[str, Any] = {}
        self._lost_waits: set[int] = set()
        self._lost_job = 0
        self._moved: set[int] = set()
        self._at: dict[str, float] = {}
        fault = Stall(kind=Kind.UPLOAD, at=At.REQUEST, seconds=None, uid=self._series.uid, skip=1)
        work.service.control.inject(fault)
        work.service.control.configure(processing_seconds=_LONG)

    @property
    def problems(self) -> tuple[str, ...]:
        """What should have been lost and made up for, and was not, in words."""
        wanted = {"worker": self._worker, "triggerer": self._triggerer}
        return tuple(
            f"the {name or kind} was {'not made up for' if name else 'never lost'}"
            for kind, name in wanted.items()
            if name not in self.recovery
        )

    def look(self, instances: Instances) -> None:
        """Take away what is to be taken away now, and see who has taken over.

        Args:
            instances: The night's task instances.
        """
        if not self._worker:
            self._lose_worker(instances)
        elif self._worker not in self.recovery:
            self._see_upload(instances)
        if not self._triggerer:
            self._lose_triggerer(instances)
        elif self._triggerer not in self.recovery:
            self._see_waits(instances)

    def _lose_worker(self, instances: Instances) -> None:
        label = batch_label(self._work.store, self._facts.night, self._series.uid)
        uploads = [each for each in instances if each["task_id"].endswith(".upload")]
        under_way = [each for each in uploads if each["state"] not in ("success", "failed")]
        if len(under_way) != 1 or under_way[0]["state"] != "running" or under_way[0]["rendered_map_index"] != label:
            return
        if self._work.service.control.pending_faults() or not 0 < self._acknowledged() < self._series.files:
            return
        self._lost_upload = under_way[0]
        self._worker = under_way[0]["hostname"]
        self._kill(self._worker, f"an upload of which {self._acknowledged()} of {self._series.files} files had arrived")

    def _see_upload(self, instances: Instances) -> None:
        key = ("task_id", "map_index")
        (now,) = [each for each in instances if all(each[part] == self._lost_upload[part] for part in key)]
        if now["state"] == "success":
            self._recovered(self._worker, f"the upload ended on {now['hostname']}, try {now['try_number']}")

    def _lose_triggerer(self, instances: Instances) -> None:
        waits = _waits(instances)
        by_triggerer = Counter(triggerer for triggerer in waits.values() if triggerer)
        if max(by_triggerer.values(), default=0) < _SEVERAL:
            return
        self._lost_job = by_triggerer.most_common(1)[0][0]
        self._lost_waits = {wait for wait, triggerer in waits.items() if triggerer == self._lost_job}
        self._triggerer = self._work.hosts("TriggererJob")[self._lost_job]
        self._kill(self._triggerer, f"{len(self._lost_waits)} tasks waiting in it")

    def _see_waits(self, instances: Instances) -> None:
        waits = {wait: triggerer for wait, triggerer in _waits(instances).items() if wait in self._lost_waits}
        self._moved |= {wait for wait, triggerer in waits.items() if triggerer not in (0, self._lost_job)}
        if self._moved and self._lost_job not in waits.values():
            self._recovered(self._triggerer, f"{len(self._moved)} waits were seen to go on in the other")
            self._work.service.control.configure(processing_seconds=_SHORT)

    def _kill(self, name: str, what: str) -> None:
        self._work.cluster.kill(name)
        self._at[name] = time.monotonic()
        self._work.progress.say(f"{name} is killed with {what}")

    def _recovered(self, name: str, what: str) -> None:
        self.recovery[name] = round(time.monotonic() - self._at[name], 1)
        self._work.progress.say(f"{name} is made up for after {self.recovery[name]} s: {what}")

    def _acknowledged(self) -> int:
        with self._work.ledger.connect() as connection:
            return int(
                connection.scalar(
                    select(func.count())
                    .select_from(acknowledged.join(resources, acknowledged.c.resource_id == resources.c.id))
                    .where(resources.c.uid == self._series.uid)
                )
                or 0
            )


def _waits(instances: Instances) -> dict[int, int]:
    """Trigger to triggerer (0 for none yet) of every task that waits."""
    triggers = [each["trigger"] for each in instances if each["state"] == "deferred" and each["trigger"]]
    return {trigger["id"]: trigger["triggerer_id"] or 0 for trigger in triggers}
