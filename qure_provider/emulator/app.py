"""The routes: the vendor's side, and the control API beside it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from qure_provider.emulator import answers
from qure_provider.emulator.assets import Assets, Job, offered
from qure_provider.emulator.control_routes import control_routes
from qure_provider.emulator.exchange import Exchange, Noted, json_answer
from qure_provider.emulator.faults import Faults
from qure_provider.emulator.links import Refusal, Signer, Target
from qure_provider.emulator.model import Kind, MissingFiles, OtherPatient, PlannedOutcome
from qure_provider.emulator.service import Service, State
from qure_provider.emulator.settings import Answers, EmulatorSettings
from qure_provider.emulator.uploads import Uploads

if TYPE_CHECKING:
    from pathlib import Path

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
        self.uploads = Uploads(self.service, storage / "received.jsonl")

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
        return await self.uploads.take(exchange, self._refused(exchange.request))

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

    def forget(self) -> None:
        """Start afresh: nothing held, planned, switched on or noted."""
        self.service.store.forget()
        self.service.plans.clear()
        self.faults.clear()
        self.noted.clear()
        self.uploads.forget()


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
    app.include_router(control_routes(emulator))
    return app
