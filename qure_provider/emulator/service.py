"""What the emulator would answer now: what is held, what was planned and what time it is, put together."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from qure_provider.emulator.findings import Findings, find
from qure_provider.emulator.header import NOT_IMPLEMENTED
from qure_provider.emulator.model import Plan, PlannedOutcome, ResourceState
from qure_provider.emulator.settings import Recompute
from qure_provider.emulator.store import Computation, Store

if TYPE_CHECKING:
    from pathlib import Path

    from qure_provider.emulator.settings import EmulatorSettings
    from qure_provider.emulator.store import Resource


class State(StrEnum):
    """What a results endpoint has to say of a resource it holds."""

    NOT_COMPUTED = "not computed"
    PENDING = "pending"
    VALIDITY = "validity"
    READY = "ready"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What there is to say of a resource at one moment.

    Attributes:
        state: What a results endpoint has to say.
        resource: The resource.
        plan: Its plan.
        findings: What is found in it.
        revision: Number of the computation that this is of; 0 before the first.
        images: How many images it was computed from.
        started_at: When that computation began; None before the first.
        ready_at: When its result is or was available; None if never.
    """

    state: State
    resource: Resource
    plan: Plan
    findings: Findings
    revision: int = 0
    images: int = 0
    started_at: float | None = None
    ready_at: float | None = None

    @property
    def usecase(self) -> str:
        """The product's name, as answered."""
        return NOT_IMPLEMENTED if self.state is State.INVALID else self.findings.usecase

    @property
    def triage(self) -> str:
        """``Critical`` or ``Routine``, or the planned word."""
        if self.plan.triage is not None:
            return self.plan.triage
        return "Critical" if self.findings.present and self.state is State.READY else "Routine"


class Service:
    """The emulated service without its HTTP.

    Args:
        settings: How it behaves.
        storage: Folder for what is received and made.
    """

    def __init__(self, settings: EmulatorSettings, storage: Path) -> None:
        self.settings = settings
        self.storage = storage
        self.store = Store(storage / "received")
        self.plans: dict[str, Plan] = {}

    @property
    def quiet_seconds(self) -> float | None:
        """After how much quiet a CT series is computed by itself; None for never."""
        return self.settings.stability_seconds if self.settings.stability else None

    def plan(self, resource: Resource) -> Plan:
        """The most exact plan for a resource."""
        for uid in resource.uids:
            if uid in self.plans:
                return self.plans[uid]
        return Plan()

    def find(self, uid: str, *, by_series: bool = False) -> Resource | None:
        """Find what a results endpoint was asked for.

        Args:
            uid: The UID in the path.
            by_series: Whether an X-ray may be asked for by its series, as the older documentation does.

        Returns:
            The resource, or None.
        """
        resource = self.store.find(uid)
        if resource is None and by_series:
            resource = next(iter(self.store.by_series(uid)), None)
        return resource

    def usecase(self, resource: Resource) -> str:
        """The product that a resource is for."""
        return self.plan(resource).usecase or resource.header.usecase

    def verdict(self, resource: Resource, now: float | None = None) -> Verdict:
        """Say what there is to say of a resource.

        Args:
            resource: The resource.
            now: Seconds since the epoch; None takes the clock's.

        Returns:
            The verdict.
        """
        now = time.time() if now is None else now
        resource.settle(now, self.quiet_seconds)
        plan = self.plan(resource)
        invalid = plan.outcome in {PlannedOutcome.INVALID, PlannedOutcome.INVALID_AS_400}
        findings = find(
            self.usecase(resource),
            resource.uid,
            seed=self.settings.seed,
            abnormal_share=self.settings.abnormal_share,
            planned=() if invalid else plan.findings,
        )
        if plan.outcome is PlannedOutcome.DENIED:
            return Verdict(State.DENIED, resource, plan, findings)
        if plan.outcome is PlannedOutcome.UNSUPPORTED or findings.usecase == NOT_IMPLEMENTED:
            return Verdict(State.UNSUPPORTED, resource, plan, findings)
        if not resource.computations:
            state = State.PENDING if self.settings.stability else State.NOT_COMPUTED
            return Verdict(state, resource, plan, findings)

        seconds = self.settings.processing_seconds if plan.processing_seconds is None else plan.processing_seconds
        never = plan.outcome is PlannedOutcome.STUCK or not resource.licensed
        revision = len(resource.computations)
        if self.settings.recompute is Recompute.STALE:
            while revision > 1 and now < resource.computations[revision - 1].started_at + seconds:
                revision -= 1
        computation = resource.computations[revision - 1]
        ready_at = computation.started_at + seconds
        if never or now < ready_at:
            checking = now < computation.started_at + plan.validity_seconds
            state = State.VALIDITY if checking else State.PENDING
        elif invalid:
            state = State.INVALID
        else:
            state = State.READY
        return Verdict(
            state,
            resource,
            plan,
            findings,
            revision=revision,
            images=computation.images,
            started_at=computation.started_at,
            ready_at=None if never else ready_at,
        )

    def result_of(self, resource: Resource, revision: int) -> Verdict | None:
        """Say what the result of one revision is or was.

        Args:
            resource: The resource.
            revision: Which, from 1.

        Returns:
            The verdict of a ready or invalid result; None where there was no such revision.
        """
        if not 0 < revision <= len(resource.computations):
            return None
        verdict = self.verdict(resource)
        invalid = verdict.plan.outcome in {PlannedOutcome.INVALID, PlannedOutcome.INVALID_AS_400}
        return replace(
            verdict,
            state=State.INVALID if invalid else State.READY,
            revision=revision,
            images=resource.computations[revision - 1].images,
            started_at=resource.computations[revision - 1].started_at,
        )

    def compute(self, series_instance_uid: str, *, recompute: bool, now: float | None = None) -> bool | None:
        """Queue a series.

        Asked of X-rays, which the documentation says never to do, it answers as for anything that was queued before.

        Args:
            series_instance_uid: Which.
            recompute: Whether to do so although it was queued before.
            now: Seconds since the epoch; None takes the clock's.

        Returns:
            True where this queued it, False where it had been queued before, None where it is not held.
        """
        now = time.time() if now is None else now
        resources = self.store.by_series(series_instance_uid)
        if not resources:
            return None
        queued = False
        for resource in resources:
            resource.settle(now, self.quiet_seconds)
            again = recompute and self.settings.recompute is not Recompute.IGNORED
            if again or not resource.computations:
                resource.computations.append(Computation(now, len(resource.images)))
                queued = True
        return queued

    def offered(self, verdict: Verdict, kinds: tuple[str, ...], now: float | None = None) -> tuple[str, ...]:
        """Choose which kinds of files a result offers by now.

        Args:
            verdict: Of the resource.
            kinds: All of the product.
            now: Seconds since the epoch; None takes the clock's.

        Returns:
            Those planned (or all) whose delay is over.
        """
        now = time.time() if now is None else now
        ready_at = verdict.ready_at or now
        chosen = kinds if verdict.plan.kinds is None else verdict.plan.kinds
        return tuple(kind for kind in chosen if now >= ready_at + verdict.plan.delays.get(kind, 0))

    def state(self, resource: Resource) -> ResourceState:
        """Show a resource as it is now.

        Args:
            resource: The resource.

        Returns:
            Its state.
        """
        verdict = self.verdict(resource)
        uid, series, study = resource.uids
        return ResourceState(
            uid=uid,
            series_instance_uid=series,
            study_instance_uid=study,
            usecase=verdict.findings.usecase,
            images=len(resource.images),
            computed_images=verdict.images,
            revision=verdict.revision,
            started_at=verdict.started_at,
            ready_at=verdict.ready_at,
        )
