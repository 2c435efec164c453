"""The nights as pages in the Airflow UI.

Every route asks for a login of Airflow's and for the permission to see the runs of the DAG that made the night.
Addresses name resources by their pseudonyms, since servers log addresses.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import Depends, FastAPI, HTTPException, Request, Response, status
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.exceptions import HTTPException as AnyHttpException
from starlette.middleware.base import RequestResponseEndpoint

from qure_provider import settings
from qure_provider.hooks.media import Media
from qure_provider.ledger.deliveries import OPEN_STATES, TROUBLED_STATES
from qure_provider.links import base_path, page_address
from qure_provider.nights import local_time
from qure_provider.plugin.access import may_see
from qure_provider.plugin.archive import Archive, KeptFile, KeptRun, NotKeptError
from qure_provider.plugin.study import study_of
from qure_provider.reports.page import environment, style
from qure_provider.reports.result import UNVERIFIED
from qure_provider.reports.summary import SummaryRow

NIGHTS = 31
"""How many nights the list shows at once."""

_CHUNK = 1 << 20
_SHOWN_AS = {
    Media.PNG: "image/png",
    Media.JPEG: "image/jpeg",
    Media.PDF: "application/pdf",
    Media.JSON: "application/json",
}
"""What a browser may show; everything else is downloaded."""

_PICTURES = (Media.PNG, Media.JPEG)

# No documentation routes: they would need no login.
app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


def _archive() -> Archive:
    return Archive()


ArchiveDep = Annotated[Archive, Depends(_archive)]


def _run(night: str, run: str, archive: ArchiveDep, user: GetUserDep) -> KeptRun:
    kept = archive.run(night, run)
    if not may_see(kept.summary.dag_id, user):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "You may not see the runs of the DAG that made this night.")
    return kept


RunDep = Annotated[KeptRun, Depends(_run)]


@app.get("/")
def show_nights(archive: ArchiveDep, user: GetUserDep, before: str = "") -> Response:
    """The nights that the user may see, the newest first."""
    nights = list(islice(archive.nights(before), NIGHTS + 1))
    rows: list[KeptRun] = []
    unreadable = 0
    for night in nights[:NIGHTS]:
        for name in archive.runs(night):
            try:
                kept = archive.run(night, name)
            except NotKeptError:
                unreadable += 1
                continue
            if may_see(kept.summary.dag_id, user):
                rows.append(kept)
    older = f"?before={quote(nights[NIGHTS - 1])}" if len(nights) > NIGHTS else ""
    return _page("nights.html.jinja", runs=rows, unreadable=unreadable, older=older, airflow=f"{base_path()}/")


@app.get("/runs/{night}/{run}/")
def show_run(run: RunDep) -> Response:
    """A night's summary."""
    summary = run.summary
    links = {"All nights": page_address()}
    if in_airflow := settings.run_link(summary.dag_id, summary.run_id):
        links["The run in Airflow"] = in_airflow
    return HTMLResponse(summary.to_html(_address, index="", links=links, study="studies/{}/"))


@app.get("/runs/{night}/{run}/passed_over.jsonl")
def show_passed_over(run: RunDep, archive: ArchiveDep) -> Response:
    """The files that were not sent, each with its reason."""
    return _send(archive.passed_over(run), "text/plain; charset=utf-8")


@app.get("/runs/{night}/{run}/studies/{study}/")
def show_study(study: str, run: RunDep) -> Response:
    """One study: what became of it, and of each of its deliveries, up to now."""
    return _page(
        "study.html.jinja",
        night=run.summary.night,
        study=study_of(run, study),
        open={*OPEN_STATES, *TROUBLED_STATES},
        time=_time,
        simulated=run.summary.is_simulated,
        notice=UNVERIFIED,
    )


@app.get("/runs/{night}/{run}/results/{resource}/")
def show_result(resource: str, run: RunDep, archive: ArchiveDep) -> Response:
    """One resource: what the service said of it, and its files."""
    row = run.row(resource)
    result = archive.result(row)
    pictures = [asset for asset in result.assets if asset.media in _PICTURES and asset.kind.startswith("sc")]
    return _page(
        "result.html.jinja",
        night=run.summary.night,
        row=row,
        result=result,
        picture=max(pictures, key=lambda asset: asset.size).name if pictures else row.picture,
        simulated=run.summary.is_simulated,
        notice=UNVERIFIED,
    )


@app.get("/runs/{night}/{run}/results/{resource}/{name}")
def send_file(resource: str, name: str, run: RunDep, archive: ArchiveDep) -> Response:
    """One file of a resource."""
    kept = archive.file(run.row(resource), name)
    shown_as = _SHOWN_AS.get(kept.media)
    disposition = "inline" if shown_as else "attachment"
    return _send(kept, shown_as or str(kept.media), {"Content-Disposition": f'{disposition}; filename="{kept.name}"'})


@app.exception_handler(NotKeptError)
def _say_not_kept(_: Request, error: NotKeptError) -> Response:
    return PlainTextResponse(str(error), status.HTTP_404_NOT_FOUND)


@app.exception_handler(AnyHttpException)
def _say_why_not(request: Request, error: AnyHttpException) -> Response:
    """Send a person without a session to the login, and tell everybody else in plain words."""
    if error.status_code == status.HTTP_401_UNAUTHORIZED and "text/html" in request.headers.get("accept", ""):
        wanted = quote(request.url.path, safe="")
        return RedirectResponse(f"{base_path()}/api/v2/auth/login?next={wanted}", status.HTTP_303_SEE_OTHER)
    return PlainTextResponse(str(error.detail), error.status_code)


@app.middleware("http")
async def _protect(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers.update(_protection())
    return response


@cache
def _protection() -> dict[str, str]:
    """Nothing runs, nothing is loaded from elsewhere, and nothing of it stays in a cache or reaches another site."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return {
        "Content-Security-Policy": f"default-src 'none'; img-src 'self'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
        "Cache-Control": "no-store",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _address(row: SummaryRow, name: str) -> str:
    return f"results/{quote(row.resource)}/{quote(name)}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else local_time(seconds, settings.timezone())


def _page(template: str, **content: object) -> Response:
    return HTMLResponse(environment(Path(__file__).parent).get_template(template).render(**content))


def _send(kept: KeptFile, content_type: str, headers: dict[str, str] | None = None) -> Response:
    """Send a file; one that can't be opened is an error, and not an empty answer."""
    chunks = _chunks(kept)
    first = next(chunks, b"")
    return StreamingResponse(chain([first], chunks), media_type=content_type, headers=headers)


def _chunks(kept: KeptFile) -> Iterator[bytes]:
    with kept.path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
