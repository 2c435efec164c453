"""Every answer has the types that the vendor's two OpenAPI files (version 3.1.33) state for its path and status."""

import pytest
import requests
from emulator_images import a_ct, an_xray
from jsonschema import Draft202012Validator


def an(**properties):
    return {"type": "object", "properties": properties}


TEXT, FLAG, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "number"}
TEXTS = {"type": "array", "items": TEXT}
SAID = an(success=FLAG, message=TEXT)
FILES = {"type": "object", "additionalProperties": TEXTS}
REPORT = an(findings=TEXT, impression=TEXT, findings_list={"type": "array", "items": TEXTS})


def result(**properties):
    return an(success=FLAG, message=TEXT, triage_status=TEXT, usecase=TEXT, result=an(files=FILES, **properties))


UPLOADED = an(
    message=TEXT,
    status=TEXT,
    messages={
        "type": "object",
        "additionalProperties": an(message=TEXT, created=FLAG, license_expired=FLAG, metadata={"type": "object"}),
    },
    series_instance_uids=TEXTS,
    detailed_info={"type": "array", "items": an(SeriesInstanceUID=TEXT, NumberOfSeriesRelatedInstances=NUMBER)},
)
NO_TOKEN = an(message=TEXT, next=TEXT, authenticated=FLAG)
NOT_THERE = an(sucess=FLAG, message=TEXT)
UNSUPPORTED = an(
    success=FLAG,
    message=TEXT,
    seriesInstanceUID=TEXT,
    accessionNumber=TEXT,
    debug_info=an(reason=TEXT),
    result={"type": "object"},
)
XRAY = result(report=REPORT)
QER = result(
    report=TEXTS,
    scores={"type": "object", "additionalProperties": NUMBER},
    decisions={"type": "object", "additionalProperties": FLAG},
    reporting_params=TEXTS,
    qure_model_version=TEXT,
)
RESULTS = {202: SAID, 400: UNSUPPORTED, 401: NO_TOKEN, 403: SAID, 404: NOT_THERE, 409: SAID}
STATED = {
    "/studies": {200: UPLOADED, 400: NO_TOKEN, 401: an(message=TEXT)},
    "/compute": {200: SAID, 401: NO_TOKEN, 403: SAID, 404: NOT_THERE},
    "xray v1": RESULTS | {200: XRAY},
    "xray v2": {200: XRAY, 206: XRAY, 202: an(reason=TEXT)},
    "qer": RESULTS | {200: QER},
    "qct": RESULTS | {200: result()},
}
WORDS = {("xray v2", 400): "not implemented", ("xray v2", 403): "Forbidden"}
"""What is text, and no JSON."""


def check(kind, answer, status):
    assert answer.status_code == status
    if (kind, status) in WORDS:
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.text == WORDS[kind, status]
    elif status in STATED[kind]:
        assert answer.headers["Content-Type"].startswith("application/json")
        body = answer.json()
        problems = [error.message for error in Draft202012Validator(STATED[kind][status]).iter_errors(body)]
        assert problems == []
        assert STATED[kind][status]["properties"].keys() & body.keys(), "nothing of what is stated is there"


def test_of_an_upload(client, emulator):
    check("/studies", client.upload(an_xray(), a_ct("HEAD")), 200)
    check("/studies", client.session.post(f"{emulator.base_url}/studies", files={"a": ("", b"")}, timeout=30), 400)
    without = requests.post(f"{emulator.base_url}/studies", files={"a": ("a", b"x")}, timeout=30)
    check("/studies", without, 401)


def test_of_a_computation(client, emulator):
    ct = a_ct("HEAD")
    path = f"/compute/{ct.series}"
    check("/compute", client.get(path), 404)
    client.upload(ct)
    check("/compute", client.get(path), 200)
    check("/compute", client.get(path), 304)
    check("/compute", requests.get(emulator.base_url + path, timeout=30), 401)
    token_alone = {"Authorization": client.session.headers["Authorization"]}
    check("/compute", requests.get(emulator.base_url + path, headers=token_alone, timeout=30), 403)


@pytest.mark.parametrize("kind", ["xray v1", "xray v2"])
@pytest.mark.parametrize(
    ("plan", "status"),
    [
        ({"findings": ["nodule", "pneumothorax"]}, 200),
        ({"findings": []}, 200),
        ({"outcome": "stuck"}, 202),
        ({"outcome": "invalid"}, None),
        ({"outcome": "unsupported"}, 400),
        ({"outcome": "denied"}, 403),
    ],
)
def test_of_an_image(client, control, kind, plan, status):
    image = an_xray()
    control.plan(image.sop, **plan)
    client.upload(image)
    path = f"/results/v2/{image.sop}" if kind == "xray v2" else f"/results/{image.sop}"
    check(kind, client.get(path), status or (206 if kind == "xray v2" else 400))


@pytest.mark.parametrize(("kind", "usecase"), [("qer", "qer"), ("qct", "qct")])
@pytest.mark.parametrize(
    ("plan", "status"),
    [({}, 200), ({"outcome": "stuck"}, 202), ({"outcome": "invalid"}, 400), ({"outcome": "denied"}, 403)],
)
def test_of_a_series(client, control, kind, usecase, plan, status):
    ct = a_ct("HEAD")
    control.plan(ct.series, usecase=usecase, **plan)
    path = f"/results/{ct.series}"
    check(kind, client.get(path), 404)
    client.upload(ct)
    check(kind, client.get(path), 403 if status == 403 else 409)
    client.get(f"/compute/{ct.series}")
    check(kind, client.get(path), status)
    check(kind, requests.get(client.emulator.base_url + path, timeout=30), 401)
