"""The routes: the vendor's side, and the control API beside it."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from pydantic import ValidationError
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from qure_provider.emulator import answers
from qure_provider.emulator.assets import Assets, Job, offered
from qure_provider.emulator.exchange import Exchange, Noted, json_answer
from qure_provider.emulator.faults import Faults
from qure_provider.emulator.header import NOT_IMPLEMENTED, Header, read_header
from qure_provider.emulator.intake import Intake
from qure_provider.emulator.links import Refusal, Signer, Target
from qure_provider.emulator.model import (
    AnyFault,
    Kind,
    LicenseExpired,
    LoseFiles,
    MissingFiles,
    OtherPatient,
    Plan,
    PlannedOutcome,
    ReceivedFile,
    RequestRecord,
    ResourceState,
)
from qure_provider.emulator.service import Service, State
from qure_provider.emulator.settings import FIXED_AT_START, Answers, Counting, EmulatorSettings, MessageKeys

if TYPE_CHECKING:
    from pathlib import Path

    from qure_provider.emulator.intake import Part
    from qure_provider.emulator.service import Verdict


class Emulator:
    """Everything behind the routes.

    Args:
        settings: How it behaves.
        storage: Folder for what is received and made.
    """

    def __init__(self, settings: EmulatorSettings, storage: Path) -> None:
        self.service = Service(settings, storage)
        self.faults = Faults()
        self.noted = Noted()
        self._assets = Assets(storage / "made")
        self._signer = Signer()
        self._uploads = 0
        self._received = storage / "received.jsonl"
        self._received.touch()

    @property
    def _settings(self) -> EmulatorSettings:
        return self.service.settings

    def _refused(self, request: Request, *, v2: bool = False) -> Response | None:
        """Check token, Source and User-Agent, in this order (which is not stated anywhere)."""
        if request.headers.get("authorization") != f"Token {self._settings.token}":
            return Response(status_code=401) if v2 else json_answer(answers.INVALID_TOKEN, 401)
        if request.headers.get("source") != self._settings.source:
            return PlainTextResponse(answers.V2_FORBIDDEN, 403) if v2 else json_answer(answers.ACCESS_DENIED, 403)
        if self._settings.require_user_agent and not request.headers.get("user-agent"):
            if v2:
                return PlainTextResponse(answers.NO_USER_AGENT["message"], 400)
            return json_answer(answers.NO_USER_AGENT, 400)
        return None

    async def upload(self, request: Request) -> Response:
        """``POST /studies``, ``/studies/``, ``/upload``."""
        return await Exchange(request, Kind.UPLOAD, self.noted, self.faults).run(self._upload)

    async def _upload(self, exchange: Exchange) -> Response:
        request = exchange.request
        refused = self._refused(request)
        limit = self._settings.max_request_bytes
        intake = Intake(request.headers.get("content-type", ""), self.service.store.place)
        kept = False
        try:
            # What is not wanted is read all the same: a client that is still sending would miss the answer.
            async for chunk in request.stream():
                exchange.record.size += len(chunk)
                if refused is None and exchange.record.size <= limit:
                    intake.write(chunk)
            if exchange.record.size > limit:
                return Response(answers.TOO_LARGE, 413, media_type="text/html")
            if refused:
                return refused
            cut = not self._settings.keep_received
            headers = await asyncio.to_thread(
                lambda: [read_header(part.path, cut=cut) if part.size else None for part in intake.parts]
            )
            about = {
                uid
                for header in headers
                if header
                for uid in (header.sop_instance_uid, header.series_instance_uid, header.study_instance_uid)
            }
            if early := await exchange.suffer(about):
                return early
            kept = intake.understood
            return self._registered(exchange, intake, headers if intake.understood else [])
        finally:
            intake.close() if kept else intake.discard()

    def _registered(self, exchange: Exchange, intake: Intake, headers: list[Header | None]) -> Response:
        now = time.time()
        self._uploads += 1
        rejected = self._settings.reject_unsupported_uploads and all(
            header is None or header.usecase == NOT_IMPLEMENTED for header in headers
        )
        fault = exchange.fault
        lost = 0
        if isinstance(fault, LoseFiles):
            lost = len(headers) if fault.count is None else fault.count
        messages: dict[str, Any] = {}
        counted: dict[str, set[str]] = {}
        lines = []
        for index, (part, header) in enumerate(zip(intake.parts, headers, strict=False)):
            is_lost = index >= len(headers) - lost
            created = False
            if header is not None and not is_lost and not rejected:
                created = self._register(header, part, now, licensed=not isinstance(fault, LicenseExpired))
                counted.setdefault(header.series_instance_uid, set()).add(header.sop_instance_uid)
            registered = header is not None and not is_lost and not rejected
            lines.append(_received_line(part, header, now, self._uploads, intake.dialect, registered, created))
            key = part.key if self._settings.message_keys is MessageKeys.FORM else f"file{index}"
            if not is_lost:
                messages[key] = _message(header, created=created, expired=isinstance(fault, LicenseExpired))
            elif isinstance(fault, LoseFiles) and fault.acknowledged:
                messages[key] = _message(header, created=True, expired=False)
        with self._received.open("a", encoding="utf-8") as received:
            received.writelines(lines)
        if not any(headers):
            return json_answer(answers.NO_FILES, 400)
        if rejected:
            return json_answer(answers.NOT_IMPLEMENTED, 400)
        body = {
            "message": "Success",
            "status": "success",
            "messages": messages,
            "series_instance_uids": list(counted),
            "detailed_info": [
                {
                    "SeriesInstanceUID": uid,
                    "NumberOfSeriesRelatedInstances": self.service.store.held(uid)
                    if self._settings.counts is Counting.HELD
                    else len(sops),
                }
                for uid, sops in counted.items()
            ],
        }
        if self._settings.answers is Answers.OLDER:
            del body["status"], body["messages"]
        return json_answer(body)

    def _register(self, header: Header, part: Part, now: float, *, licensed: bool) -> bool:
        created = self.service.store.register(header, part.number, now, self.service.quiet_seconds)
        resource = self.service.store.by_sop(header.sop_instance_uid)
        if not licensed and resource is not None:
            resource.licensed = False
        return created

    async def compute(self, request: Request) -> Response:
        """``GET /compute/{SeriesInstanceUID}``."""
        uid = request.path_params["uid"]
        return await Exchange(request, Kind.COMPUTE, self.noted, self.faults, uid).run(self._compute, self._about(uid))

    async def _compute(self, exchange: Exchange) -> Response:
        uid = exchange.record.uid
        if refused := self._refused(exchange.request):
            return refused
        try:
            body = json.loads(await exchange.request.body() or b"{}")
        except ValueError:
            body = {}
        recompute = isinstance(body, dict) and body.get("recompute") is True
        queued = self.service.compute(uid, recompute=recompute)
        if queued is None:
            return json_answer(answers.not_uploaded(uid, self._settings.answers), 404)
        return json_answer(answers.QUEUED) if queued else Response(status_code=304)

    async def results_v2(self, request: Request) -> Response:
        """``GET /results/v2/{SOPInstanceUID}``."""
        uid = request.path_params["uid"]
        return await Exchange(request, Kind.RESULTS, self.noted, self.faults, uid).run(
            self._results_v2, self._about(uid)
        )

    async def _results_v2(self, exchange: Exchange) -> Response:
        """What it says of a series' UID is not stated anywhere: here, that there is no such thing."""
        if refused := self._refused(exchange.request, v2=True):
            return refused
        resource = self.service.store.by_sop(exchange.record.uid)
        if resource is None:
            return Response(status_code=404)
        if not resource.header.is_xray:
            return PlainTextResponse(answers.V2_NOT_IMPLEMENTED, 400)
        verdict = self.service.verdict(resource)
        match verdict.state:
            case State.READY:
                return self._result(exchange, verdict, v2=True)
            case State.INVALID if verdict.plan.outcome is PlannedOutcome.INVALID:
                return self._result(exchange, verdict, v2=True, status=206)
            case State.INVALID | State.UNSUPPORTED:
                return PlainTextResponse(answers.V2_NOT_IMPLEMENTED, 400)
            case State.DENIED:
                return PlainTextResponse(answers.V2_FORBIDDEN, 403)
        return json_answer(answers.V2_PENDING, 202)

    async def results(self, request: Request) -> Response:
        """``GET /results/{uid}``: X-ray v1 by image, qER and qCT by series."""
        uid = request.path_params["uid"]
        return await Exchange(request, Kind.RESULTS, self.noted, self.faults, uid).run(self._results, self._about(uid))

    async def _results(self, exchange: Exchange) -> Response:
        uid = exchange.record.uid
        if refused := self._refused(exchange.request):
            return refused
        generation = self._settings.answers
        resource = self.service.find(uid, by_series=generation is Answers.OLDER)
        if resource is None:
            return json_answer(answers.not_uploaded(uid, generation), 404)
        verdict = self.service.verdict(resource)
        match verdict.state:
            case State.READY:
                return self._result(exchange, verdict, v2=False)
            case State.VALIDITY | State.INVALID | State.UNSUPPORTED:
                return json_answer(answers.no_result(verdict, generation), 400)
            case State.NOT_COMPUTED:
                return json_answer(answers.not_computed(uid), 409)
            case State.DENIED:
                return json_answer(answers.ACCESS_DENIED, 403)
        return json_answer(answers.under_process(uid, generation), 202)

    def _result(self, exchange: Exchange, verdict: Verdict, *, v2: bool, status: int = 200) -> Response:
        files = self._files(exchange.request, verdict)
        if isinstance(exchange.fault, MissingFiles):
            gone = exchange.fault.kinds or tuple(files)
            files = {kind: urls for kind, urls in files.items() if kind not in gone}
        return json_answer(answers.result(verdict, files, self._settings.answers, v2=v2), status)

    def _files(self, request: Request, verdict: Verdict) -> answers.Files:
        expires = int(time.time() + self._settings.url_seconds)
        base = request.url.replace(path="", query="")
        if self._settings.url_host:
            base = base.replace(hostname=self._settings.url_host)
        counts = offered(
            verdict.findings.usecase,
            verdict.resource.header,
            verdict.images,
            older=self._settings.answers is Answers.OLDER,
        )

        def url(kind: str, index: int) -> str:
            target = Target(verdict.resource.uid, verdict.revision, kind, index)
            return f"{base}/assets/{self._signer.sign(target, expires)}?expires={expires}"

        return {
            kind: [url(kind, index) for index in range(counts.get(kind, 1))]
            for kind in self.service.offered(verdict, tuple(counts))
        }

    def _job(self, verdict: Verdict) -> Job:
        images = sorted(verdict.resource.images[: verdict.images], key=lambda image: image.instance_number)
        return Job(
            uid=verdict.resource.uid,
            usecase=verdict.findings.usecase,
            revision=verdict.revision,
            made_at=verdict.started_at or 0.0,
            findings=verdict.findings,
            impression=answers.impression(verdict),
            lines=tuple(answers.report_lines(verdict)),
            sources=tuple(self.service.store.path(image.number) for image in images),
        )

    async def asset(self, request: Request) -> Response:
        """``GET /assets/{opaque}?expires=...``: a file of a result."""
        now = time.time()
        target = self._signer.read(request.path_params["opaque"], request.query_params.get("expires", ""), now)
        uid = "" if isinstance(target, Refusal) else target.uid
        exchange = Exchange(request, Kind.ASSET, self.noted, self.faults, uid)

        async def carry_out(exchange: Exchange) -> Response:
            if not self._settings.presigned and (refused := self._refused(request)):
                return refused
            if self._settings.presigned and "authorization" in request.headers:
                return _refusal(400, "InvalidArgument", "Only one auth mechanism allowed")
            if isinstance(target, Refusal):
                return _refusal(403, target.value, "Request has expired or its signature does not match")
            resource = self.service.find(target.uid)
            verdict = self.service.result_of(resource, target.revision) if resource else None
            if verdict is None or target.kind in verdict.plan.missing:
                return _refusal(404, "NoSuchKey", "The specified key does not exist.")
            attributes = dict(verdict.plan.attributes.get("*", {})) | verdict.plan.attributes.get(target.kind, {})
            if isinstance(exchange.fault, OtherPatient):
                attributes |= exchange.fault.attributes
            content = await asyncio.to_thread(
                self._assets.content, self._job(verdict), target.kind, target.index, attributes
            )
            return Response(content, media_type="binary/octet-stream")

        return await exchange.run(carry_out, self._about(uid))

    def _about(self, uid: str) -> set[str]:
        """Every UID that plans and faults may name what was asked for by."""
        store = self.service.store
        found = store.find(uid) or store.by_sop(uid)
        resources = [found] if found else store.by_series(uid)
        return {uid, *(other for resource in resources for other in resource.uids)}

    def received(self, uid: str | None) -> list[ReceivedFile]:
        """List the files received.

        Args:
            uid: Only those of this study, series or image.

        Returns:
            The files, in order of arrival.
        """
        with self._received.open(encoding="utf-8") as lines:
            files = [ReceivedFile.model_validate_json(line) for line in lines if uid is None or uid in line]
        return [file for file in files if uid is None or uid in file.uids]

    def forget(self) -> None:
        """Start afresh: nothing held, planned, switched on or noted."""
        self.service.store.forget()
        self.service.plans.clear()
        self.faults.clear()
        self.noted.clear()
        self._uploads = 0
        self._received.write_text("")


def _received_line(
    part: Part, header: Header | None, now: float, upload: int, dialect: str, registered: bool, created: bool
) -> str:
    record = ReceivedFile.model_construct(
        at=now,
        request=upload,
        number=part.number,
        key=part.key,
        file_name=part.file_name,
        headers=part.headers,
        dialect=dialect,
        size=part.size,
        sha256=part.sha256,
        path=str(part.path),
        study_instance_uid=header.study_instance_uid if header else "",
        series_instance_uid=header.series_instance_uid if header else "",
        sop_instance_uid=header.sop_instance_uid if header else "",
        registered=registered,
        created=created,
    )
    return record.model_dump_json() + "\n"


def _message(header: Header | None, *, created: bool, expired: bool) -> answers.Json:
    """One entry of ``messages``. What ``metadata`` holds is not stated anywhere."""
    return {
        "message": answers.REGISTERED if header else answers.NOT_DICOM,
        "created": created,
        "license_expired": expired,
        "metadata": {
            "PatientID": header.patient_id,
            "StudyInstanceUID": header.study_instance_uid,
            "SeriesInstanceUID": header.series_instance_uid,
            "SOPInstanceUID": header.sop_instance_uid,
            "Modality": header.modality,
        }
        if header
        else {},
    }


def _refusal(status: int, code: str, message: str) -> Response:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Response(body, status, media_type="application/xml")


def create_app(settings: EmulatorSettings, storage: Path) -> FastAPI:
    """Make the application.

    Args:
        settings: How it behaves.
        storage: Folder for what is received and made.

    Returns:
        The application.
    """
    emulator = Emulator(settings, storage)
    vendor: list[BaseRoute] = [
        Route(path, emulator.upload, methods=["POST"]) for path in ("/studies", "/studies/", "/upload", "/upload/")
    ]
    for path, endpoint in (
        ("/compute/{uid}", emulator.compute),
        ("/results/v2/{uid}", emulator.results_v2),
        ("/results/{uid}", emulator.results),
    ):
        vendor += [Route(path, endpoint, methods=["GET"]), Route(f"{path}/", endpoint, methods=["GET"])]
    vendor.append(Route("/assets/{opaque}", emulator.asset, methods=["GET"]))
    app = FastAPI(routes=vendor, openapi_url=None, redirect_slashes=False)
    _add_control(app, emulator)
    return app


def _loopback_only(request: Request) -> None:
    if request.client is None or not ipaddress.ip_address(request.client.host).is_loopback:
        raise HTTPException(403, "The control API answers this machine only.")


def _add_control(app: FastAPI, emulator: Emulator) -> None:
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
        return emulator.received(uid)

    @control.get("/resources")
    def resources(uid: str | None = None) -> list[ResourceState]:
        service = emulator.service
        return [service.state(resource) for resource in service.store.all() if uid is None or uid in resource.uids]

    @control.delete("/everything", status_code=204)
    def forget() -> None:
        emulator.forget()

    app.include_router(control)
