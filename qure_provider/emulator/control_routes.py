"""The control API's routes; ``control.EmulatorControl`` is their client."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import ValidationError

from qure_provider.emulator.model import AnyFault, Kind, Plan, ReceivedFile, RequestRecord, ResourceState
from qure_provider.emulator.settings import FIXED_AT_START, EmulatorSettings

if TYPE_CHECKING:
    from qure_provider.emulator.app import Emulator


def _loopback_only(request: Request) -> None:
    if request.client is None or not ipaddress.ip_address(request.client.host).is_loopback:
        raise HTTPException(403, "The control API answers this machine only.")


def control_routes(emulator: Emulator) -> APIRouter:
    """Make the routes of the control API.

    Args:
        emulator: What they look at and steer.

    Returns:
        The routes, for this machine only.
    """
    control = APIRouter(prefix="/_emulator", dependencies=[Depends(_loopback_only)])

    @control.get("/settings")
    def settings() -> dict[str, Any]:
        return emulator.service.settings.model_dump(mode="json", exclude={"token", "source"})

    @control.patch("/settings", status_code=204)
    def configure(changes: dict[str, Any]) -> None:
        if fixed := FIXED_AT_START & changes.keys():
            raise HTTPException(422, f"Fixed at start: {', '.join(sorted(fixed))}")
        try:
            emulator.service.settings = EmulatorSettings.model_validate(
                emulator.service.settings.model_dump() | changes
            )
        except ValidationError as error:
            raise HTTPException(422, error.errors(include_url=False, include_context=False)) from error

    @control.put("/plans/{uid}", status_code=204)
    def put_plan(uid: str, plan: Plan) -> None:
        emulator.service.plans[uid] = plan

    @control.delete("/plans", status_code=204)
    def delete_plans() -> None:
        emulator.service.plans.clear()

    @control.post("/faults", status_code=204)
    def post_fault(fault: AnyFault) -> None:
        emulator.faults.add(fault)

    @control.get("/faults")
    def faults() -> list[AnyFault]:
        return emulator.faults.pending()

    @control.delete("/faults", status_code=204)
    def delete_faults() -> None:
        emulator.faults.clear()

    @control.get("/requests", response_model=list[RequestRecord])
    def requests(kind: Kind | None = None, uid: str | None = None) -> list[RequestRecord]:
        return [
            record
            for record in emulator.noted.records
            if (kind is None or record.kind == kind) and (uid is None or record.uid == uid)
        ]

    @control.get("/count")
    def count(kind: Kind, status: int | None = None, uid: str | None = None) -> int:
        return sum(
            times
            for (of_kind, of_uid, of_status), times in emulator.noted.counts.items()
            if of_kind == kind and status in {None, of_status} and uid in {None, of_uid}
        )

    @control.get("/peaks")
    def peaks() -> dict[Kind, int]:
        return dict(emulator.noted.peaks)

    @control.delete("/requests", status_code=204)
    def delete_requests() -> None:
        emulator.noted.clear()

    @control.get("/received")
    def received(uid: str | None = None) -> list[ReceivedFile]:
        return emulator.uploads.received(uid)

    @control.get("/resources")
    def resources(uid: str | None = None) -> list[ResourceState]:
        service = emulator.service
        return [service.state(resource) for resource in service.store.all() if uid is None or uid in resource.uids]

    @control.delete("/everything", status_code=204)
    def forget() -> None:
        emulator.forget()

    return control
