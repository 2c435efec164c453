"""What an error tells its reader, and how long it asks to wait."""

import email.utils
import time

import pytest

from qure_provider.api.answers import RawAnswer, parse_compute, parse_result, parse_upload
from qure_provider.api.errors import QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.api.model import Outcome, ResultsVersion, Route
from qure_provider.api.statuses import MAX_RETRY_AFTER, Step, error_for_status, parse_retry_after, transient_error

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("step", "status", "names"),
    [
        (Step.UPLOAD, 401, ["upload", "401", "token", "password"]),
        (Step.COMPUTE, 403, ["compute", "403", "Source"]),
        (Step.RESULTS, 403, ["results", "403", "Source"]),
        (Step.UPLOAD, 413, ["413", "max_request_bytes"]),
        (Step.UPLOAD, 415, ["415", "upload_dialect"]),
        (Step.UPLOAD, 404, ["404", "base URL"]),
        (Step.RESULTS_V2, 302, ["302", "base URL", "token"]),
        (Step.RESULTS_V2, 407, ["407", "proxies"]),
        (Step.RESULTS_V2, 429, ["429", "requests_per_second"]),
        (Step.DOWNLOAD, 403, ["download", "403", "result again"]),
    ],
)
def test_an_error_names_the_step_the_answer_and_what_to_mend(step, status, names):
    message = str(error_for_status(step, status))

    assert [name for name in names if name not in message] == []


def test_a_page_in_place_of_an_answer_is_described_without_a_word_of_it():
    raw = RawAnswer(200, "text/html; charset=utf-8", b"<html>Sign in, Jane Doe</html>")

    with pytest.raises(QureTransientError) as caught:
        parse_result(raw, Route.CT, ResultsVersion.V1)

    assert "text/html" in str(caught.value)
    assert "30 bytes" in str(caught.value)
    assert "base URL" in str(caught.value)
    assert "Jane" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_unheard_of_media_type_is_not_repeated():
    with pytest.raises(QureTransientError) as caught:
        parse_compute(RawAnswer(200, "x/secret", b""))

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 503, 200])
def test_what_the_service_asked_to_wait_comes_with_the_error(status):
    with pytest.raises(QureTransientError) as caught:
        parse_upload(RawAnswer(status, "", b"", retry_after="7"))

    assert caught.value.retry_after == 7.0


def test_what_the_service_asked_to_wait_comes_with_a_pending_answer():
    answer = parse_result(RawAnswer(202, "", b"", retry_after="30"), Route.XRAY, ResultsVersion.V2)

    assert (answer.outcome, answer.retry_after) == (Outcome.PENDING, 30.0)


def test_a_broken_connection_is_told_by_the_class_of_its_error():
    error = transient_error(Step.UPLOAD, "ConnectionResetError")

    assert isinstance(error, QureTransientError)
    assert "upload" in str(error)
    assert "ConnectionResetError" in str(error)


def test_errors_of_settings_and_refusals_are_never_taken_for_passing_ones():
    assert not issubclass(QureSettingsError, QureTransientError)
    assert not issubclass(QureRejectedError, QureTransientError)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 3 ", 3.0),
        ("1.5", 1.5),
        ("-5", 0.0),
        ("999999999", MAX_RETRY_AFTER),
        ("9" * 30, MAX_RETRY_AFTER),
        ("9" * 100_000, None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("soon", None),
        (email.utils.formatdate(NOW + 60, usegmt=True), 60.0),
        (email.utils.formatdate(NOW - 60, usegmt=True), 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
        ("Tue, 14 Nov 2023 22:14:20 -0000", 60.0),
        ("Wed, 99 Foo 2023 99:99:99 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(text, seconds):
    assert parse_retry_after(text, now=NOW) == seconds


def test_a_date_without_a_zone_is_utc_wherever_we_run(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert parse_retry_after("Tue, 14 Nov 2023 22:14:20 -0000", now=NOW) == 60.0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_date_is_measured_against_the_clock():
    assert 50 < parse_retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
