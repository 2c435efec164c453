"""What is kept of an answer: all but what grants access, and nothing that a store cannot take."""

import json
import time

import pytest

from qure_provider.api.answers import RawAnswer, parse_result
from qure_provider.api.errors import QureTransientError
from qure_provider.api.files import FILE_KINDS
from qure_provider.api.model import Outcome, ResultsVersion, Route
from qure_provider.api.payload import MAX_DEPTH, URL_REMOVED

SECRET = "https://bucket.s3.amazonaws.com/1.dcm?X-Amz-Signature=SECRET"


def raw(body, status=200):
    return RawAnswer(status, "application/json", body if isinstance(body, bytes) else json.dumps(body).encode())


def read(status=200, **body):
    return parse_result(raw({"result": {"files": {}}} | body, status), Route.CT, ResultsVersion.V1)


def test_files_are_kept_as_counts():
    answer = read(result={"files": {"sc": [SECRET, SECRET], "pdf": SECRET, "seg": None, "sr": []}, "report": "text"})

    assert answer.content["result"] == {"files": {"sc": 2, "pdf": 1, "seg": 0, "sr": 0}, "report": "text"}
    assert answer.files == {"sc": (SECRET, SECRET), "pdf": (SECRET,)}


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"See {SECRET} for more",
        f"({SECRET})",
        SECRET.replace("https", "HTTPS"),
        "s3://bucket/SECRET",
        "//host/SECRET",
        "www.example.org/SECRET",
        "/media/1.dcm?X-Amz-Credential=SECRET",
        "/media/1.dcm?Expires=1&Signature=SECRET",
        "https%3A%2F%2Fhost%2FSECRET",
        json.dumps({"url": SECRET}),
        json.dumps(SECRET).replace("/", "\\/"),
    ],
)
def test_a_url_is_taken_out_wherever_it_stands(text):
    report = {"findings": text, "impression": text, "findings_list": [[text, text]]}
    answer = read(
        message=text,
        usecase=text,
        triage_status=text,
        metadata={"a": [{"b": text}], text: 1},
        result={
            "report": report,
            "scores": {text: 0.5},
            "decisions": {text: True},
            "qure_model_version": text,
            "files": {text: [SECRET], "sc": {"deep": SECRET}},
        },
    )

    for shown in (json.dumps(answer.content), repr(answer), repr(answer.file_counts)):
        assert "SECRET" not in shown
    assert answer.outcome is Outcome.READY


def test_what_stands_around_a_url_stays():
    answer = read(result={"report": f"Nodule, see {SECRET}\tand  prior", "files": {}})

    assert answer.report.lines == (f"Nodule, see {URL_REMOVED}\tand  prior",)


@pytest.mark.parametrize("status", [202, 206, 400, 404, 409])
def test_an_answer_that_is_not_ready_is_kept_without_urls_too(status):
    answer = read(status, reason=SECRET, message=SECRET, debug_info={"reason": SECRET}, accessionNumber="A1")

    assert answer.content["accessionNumber"] == "A1"
    assert "SECRET" not in json.dumps(answer.content) + repr(answer)


def test_a_url_as_plain_text_is_no_reason():
    answer = parse_result(RawAnswer(400, "text/plain", b"https://host/SECRET"), Route.CT, ResultsVersion.V1)

    assert "SECRET" not in repr(answer)


def test_patients_data_is_in_the_content_and_not_in_the_repr():
    answer = read(patient="PAT-1", metadata={"PatientName": "DOE^JANE"})

    assert answer.content["patient"] == "PAT-1"
    assert "PAT-1" not in repr(answer)
    assert "DOE" not in repr(answer)


def test_nothing_is_kept_that_utf_8_or_a_database_cannot_take():
    answer = parse_result(
        raw(b'{"a\\u0000": "\\ud800", "result": {"report": "A\\udfffB\\u0000C"}}'), Route.CT, ResultsVersion.V1
    )

    assert answer.report.lines == ("A\ufffdB\ufffdC",)
    kept = json.dumps(answer.content, ensure_ascii=False).encode()
    assert b"\x00" not in kept


@pytest.mark.parametrize(
    "url",
    [
        "https://host/a b",
        "https://host/a\n",
        "ftp://host/a",
        "file:///etc/passwd",
        "s3://bucket/a",
        "javascript:alert(1)",
        "/media/a",
        "host/a",
        "https://",
        "https:///a",
        "http://[::1",
        "https://host:99999/a",
        "https://host:0/a",
        "https://hôst/a",
        "",
        5,
        None,
        ["https://host/a"],
    ],
)
def test_what_is_no_web_address_is_no_file(url):
    answer = read(result={"files": {"sc": [url, SECRET]}})

    assert answer.files == {"sc": (SECRET,)}
    assert len(answer.warnings) == 1


@pytest.mark.parametrize("kind", ["", "../x", "a/b", "a b", "a.b", "x" * 65, "-a", "sç", "a\x00"])
def test_a_kind_that_could_not_be_a_file_name_is_passed_over_and_said_so(kind):
    answer = read(result={"files": {kind: [SECRET]}})

    assert answer.files == {}
    assert len(answer.warnings) == 1


@pytest.mark.parametrize("files", [{"sc": 5}, {"sc": {"a": SECRET}}, {"sc": True}])
def test_files_of_another_shape_are_passed_over_and_said_so(files):
    answer = read(result={"files": files})

    assert (answer.outcome, answer.files) == (Outcome.READY, {})
    assert len(answer.warnings) == 1


def test_files_that_cannot_be_read_do_not_change_what_the_findings_say():
    answer = read(triage_status="Routine", result={"files": {"sc": [5]}})

    assert answer.meaning == "no finding of this product"


def test_a_kind_nobody_heard_of_is_a_file_like_any_other():
    assert read(result={"files": {"heatmap": [SECRET]}}).files == {"heatmap": (SECRET,)}


def test_a_progression_report_is_not_described_as_a_presentation_state():
    assert "progression report" in FILE_KINDS["pr"]
    assert "presentation state" in FILE_KINDS["gsps"]


@pytest.mark.parametrize("depth", [MAX_DEPTH + 2, 5_000, 200_000])
def test_deep_nesting_is_not_understood(depth):
    body = b'{"result": {"files": {}}, "deep": ' + b"[" * depth + b"]" * depth + b"}"

    with pytest.raises(QureTransientError):
        parse_result(raw(body), Route.CT, ResultsVersion.V1)


@pytest.mark.parametrize("number", [b"9" * 5_000, b"-" + b"9" * 5_000])
def test_an_endless_number_is_not_understood(number):
    with pytest.raises(QureTransientError):
        parse_result(raw(b'{"result": {"files": {}}, "n": ' + number + b"}"), Route.CT, ResultsVersion.V1)


@pytest.mark.parametrize(
    "text", ["a" * 400_000, "a://" * 100_000, "// " * 130_000, "invalid " * 50_000, "\n" * 400_000]
)
@pytest.mark.parametrize("status", [200, 400])
def test_reading_takes_no_longer_than_in_proportion(text, status):
    body = {"message": text, "reason": text, "debug_info": {"reason": text}, text: text, "result": {"report": text}}
    body = raw(body, status)

    started = time.process_time()
    parse_result(body, Route.CT, ResultsVersion.V1)

    assert time.process_time() - started < 120  # a quadratic reading takes hours
