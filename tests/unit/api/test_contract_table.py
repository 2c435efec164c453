"""Every documented status of every step, in every form that a body may come in, is one named outcome or one error."""

import json

import pytest

from qure_provider.api.answers import RawAnswer, parse_compute, parse_result, parse_upload
from qure_provider.api.errors import QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.api.model import Outcome, ResultsVersion, Route
from qure_provider.api.statuses import RULES, RULES_OF_EVERY_STEP, Step, error_for_status

SETTINGS, LATER, NEVER = QureSettingsError, QureTransientError, QureRejectedError
UID = "1.2.826.0.1.3680043.8.498.1"

MODERN = {
    "success": True,
    "message": "Results retrieved successfully!",
    "triage_status": "Routine",
    "usecase": "qxr",
    "result": {"report": {"findings": "", "impression": "", "findings_list": []}, "files": {}},
}
UPLOADED = {
    "message": "Success",
    "status": "success",
    "messages": {"file0": {"message": "DICOM registered successfully.", "created": True, "license_expired": False}},
    "series_instance_uids": [UID],
    "detailed_info": [{"SeriesInstanceUID": UID, "NumberOfSeriesRelatedInstances": 1}],
}
NOT_YET = {"sucess": False, "message": f"Resource with SeriesInstanceUID {UID} is not yet uploaded!"}
NO_ACCESS = {"success": False, "message": "Access denied!"}
NO_USE_CASE = {
    "success": False,
    "message": "Use case not implemented.",
    "seriesInstanceUID": UID,
    "accessionNumber": "A1",
    "debug_info": {"reason": "Unsupported modality"},
    "result": {},
}
NO_TOKEN = {
    "message": "Invalid token header. No credentials provided.",
    "next": "/accounts/login/",
    "authenticated": False,
}

# What the body may be instead of the documented one.
FORMS = {
    "text": ("text/plain", b"Forbidden"),
    "empty": ("", b""),
    "html": ("text/html", b"<!DOCTYPE html><title>Gateway</title>"),
    "array": ("application/json", b"[]"),
    "other object": ("application/json", b'{"hello": "world"}'),
    "not json": ("application/json", b'{"success": tr'),
    "no text": ("application/json", b"\xff\xfe\x00\x01"),
}


def whatever(documented, expected):
    """The status decides alone."""
    return documented, dict.fromkeys(["documented", *FORMS], expected)


def only_documented(documented, expected, otherwise=LATER):
    """The body must be what the vendor documents."""
    return documented, {"documented": expected} | dict.fromkeys(FORMS, otherwise)


def but_no_page(documented, expected):
    """The status decides, unless a page shows that it was not the service that answered."""
    return documented, dict.fromkeys(["documented", *FORMS], expected) | {"html": LATER}


ANYWHERE = {
    401: whatever(NO_TOKEN, SETTINGS),
    402: whatever(NO_ACCESS, SETTINGS),
    407: whatever(None, SETTINGS),
    408: whatever(None, LATER),
    425: whatever(None, LATER),
    429: whatever(None, LATER),
    500: whatever(None, LATER),
    502: whatever(None, LATER),
    503: whatever(None, LATER),
    504: whatever(None, LATER),
    # Nobody documents these.
    100: whatever(None, LATER),
    201: whatever(MODERN | UPLOADED, LATER),
    204: whatever(None, LATER),
    301: whatever(None, SETTINGS),
    302: whatever(None, SETTINGS),
    307: whatever(None, SETTINGS),
    308: whatever(None, SETTINGS),
    405: whatever(None, SETTINGS),
    418: whatever(None, NEVER),
    431: whatever(None, NEVER),
    0: whatever(MODERN | UPLOADED, LATER),
    999: whatever(MODERN | UPLOADED, LATER),
}

RESULTS = ANYWHERE | {
    200: only_documented(MODERN, Outcome.READY),
    206: but_no_page(MODERN, Outcome.INVALID),
    304: whatever(MODERN, LATER),
    404: whatever(NOT_YET, Outcome.NOT_UPLOADED),
    409: whatever({"success": False, "message": f"GET base_url/compute/{UID}"}, Outcome.NOT_COMPUTED),
    410: whatever(None, NEVER),
}

TABLE = {
    "upload": ANYWHERE
    | {
        200: only_documented(UPLOADED, "accepted"),
        202: whatever(UPLOADED, LATER),
        206: whatever(UPLOADED, LATER),
        304: whatever(UPLOADED, LATER),
        400: whatever({"message": "No DICOM files were uploaded!"}, NEVER),
        403: whatever(NO_ACCESS, SETTINGS),
        404: whatever(None, SETTINGS),
        409: whatever(None, NEVER),
        413: whatever(None, NEVER),
        415: whatever(None, SETTINGS),
    },
    "compute": ANYWHERE
    | {
        200: only_documented(
            {"message": "series_instance_uid successfully pushed for computation!", "success": True}, "queued"
        ),
        202: whatever({"success": True}, LATER),
        304: whatever(
            {"message": "series_instance_uid was already pushed for computation!", "success": True}, "already queued"
        ),
        400: whatever(NO_USE_CASE, NEVER),
        403: whatever(NO_ACCESS, SETTINGS),
        404: whatever(NOT_YET, "not uploaded"),
        409: whatever(None, NEVER),
    },
    "results v2": RESULTS
    | {
        202: whatever({"reason": "processing not started"}, Outcome.PENDING),
        400: but_no_page(None, Outcome.UNSUPPORTED),
        403: whatever(None, Outcome.DENIED),
    },
    "results v1": RESULTS
    | {
        202: whatever(
            {"success": False, "message": f"Resource with sopInstanceUID {UID} is under process."}, Outcome.PENDING
        ),
        400: but_no_page(NO_USE_CASE, Outcome.UNSUPPORTED),
        403: whatever(NO_ACCESS, SETTINGS),
    },
    "results ct": RESULTS
    | {
        202: whatever(
            {"success": False, "message": f"Image Series with resource_uid {UID} is under process."}, Outcome.PENDING
        ),
        400: but_no_page(NO_USE_CASE, Outcome.UNSUPPORTED),
        403: whatever(NO_ACCESS, SETTINGS),
    },
}

DOWNLOAD = dict.fromkeys((200,), None) | {
    206: LATER,
    301: LATER,
    302: LATER,
    303: LATER,
    304: LATER,
    307: LATER,
    308: LATER,
    400: LATER,
    401: LATER,
    403: LATER,
    404: LATER,
    410: LATER,
    407: SETTINGS,
    408: LATER,
    416: NEVER,
    429: LATER,
    500: LATER,
    503: LATER,
}


def test_every_rule_of_the_package_has_its_row_here():
    tested = {
        Step.UPLOAD: TABLE["upload"],
        Step.COMPUTE: TABLE["compute"],
        Step.RESULTS_V2: TABLE["results v2"],
        Step.RESULTS: TABLE["results v1"],
        Step.DOWNLOAD: DOWNLOAD,
    }

    assert {step: rules.keys() - tested[step].keys() for step, rules in RULES.items()} == {step: set() for step in Step}
    assert RULES_OF_EVERY_STEP.keys() - {304} <= ANYWHERE.keys()


def what_it_says(step, raw):
    """Everything of an answer that the table speaks of, or the kind of error."""
    try:
        if step == "upload":
            answer = parse_upload(raw)
            return "accepted" if all(file.accepted for file in answer.files.values()) and answer.files else answer
        if step == "compute":
            answer = parse_compute(raw)
            said = {
                "queued": answer.queued,
                "already queued": answer.already_queued,
                "not uploaded": answer.not_uploaded,
            }
            (word,) = [word for word, is_so in said.items() if is_so]
            return word
        route, version = {
            "results v2": (Route.XRAY, ResultsVersion.V2),
            "results v1": (Route.XRAY, ResultsVersion.V1),
            "results ct": (Route.CT, ResultsVersion.V2),
        }[step]
        return parse_result(raw, route, version).outcome
    except (SETTINGS, LATER, NEVER) as error:
        return type(error)


@pytest.mark.parametrize(
    ("step", "status", "form", "expected"),
    [
        pytest.param(step, status, form, expected, id=f"{step}-{status}-{form}")
        for step, rows in TABLE.items()
        for status, (_, by_form) in rows.items()
        for form, expected in by_form.items()
    ],
)
def test_an_answer_is_one_outcome_or_one_kind_of_error(step, status, form, expected):
    documented = TABLE[step][status][0]
    if form == "documented":
        raw = RawAnswer(status, "application/json", b"" if documented is None else json.dumps(documented).encode())
    else:
        raw = RawAnswer(status, *FORMS[form])

    assert what_it_says(step, raw) == expected


@pytest.mark.parametrize(("status", "expected"), DOWNLOAD.items())
def test_a_refused_download_asks_for_a_fresh_address_and_never_blames_the_token(status, expected):
    error = error_for_status(Step.DOWNLOAD, status)

    assert (error and type(error)) == expected


@pytest.mark.parametrize("step", TABLE)
@pytest.mark.parametrize("status", [200, 202, 206, 400, 403, 404, 500])
def test_a_body_that_says_not_authenticated_is_about_the_token_whatever_its_status(step, status):
    assert what_it_says(step, RawAnswer(status, "application/json", json.dumps(NO_TOKEN).encode())) is SETTINGS


@pytest.mark.parametrize(
    ("step", "status"), [(step, 200) for step in TABLE] + [("results v1", 206), ("results v1", 400)]
)
def test_a_body_over_the_limit_is_not_read(step, status):
    documented = TABLE[step][status][0]
    raw = RawAnswer(status, "application/json", json.dumps(documented).encode() + b" " * 17 * 1024 * 1024)

    assert what_it_says(step, raw) is LATER


def test_the_limit_is_the_callers():
    raw = RawAnswer(200, "application/json", json.dumps(MODERN).encode())

    assert parse_result(raw, Route.CT, ResultsVersion.V1, max_bytes=len(raw.body)).outcome is Outcome.READY
    with pytest.raises(LATER):
        parse_result(raw, Route.CT, ResultsVersion.V1, max_bytes=len(raw.body) - 1)
