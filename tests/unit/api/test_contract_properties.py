"""What holds for any answer whatever."""

import contextlib
import json

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from qure_provider.api.answers import RawAnswer, parse_compute, parse_result, parse_upload
from qure_provider.api.errors import QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.api.model import ComputeAnswer, Meaning, Outcome, ResultAnswer, ResultsVersion, Route, UploadAnswer
from qure_provider.api.statuses import MAX_RETRY_AFTER, Step, error_for_status, parse_retry_after

# A deadline for one example would fail on a busy machine; pytest's output shows what is slow.
thorough = settings(max_examples=150, deadline=None)
quick = settings(max_examples=50, deadline=None)

OURS = (QureSettingsError, QureTransientError, QureRejectedError)

URLS = st.from_regex(r"(https?|s3)://[a-z]{1,8}/SECRET[!-~]{0,20}", fullmatch=True)

# Keys and words of the contract, so that generated answers come near to real ones.
KEYS = (
    st.text(max_size=5)
    | st.sampled_from(["success", "sucess", "authenticated", "triage_status", "usecase", "result", "report", "files"])
    | st.sampled_from(["tags", "integrity", "messages", "message", "created", "reason", "debug_info", "detailed_info"])
)
PHRASES = st.sampled_from(
    [
        "1.2.3",
        "success",
        "DICOM registered successfully.",
        "Not registered",
        "Invalid X-Ray",
        "Validity not determined yet!",
    ]
)
TRIAGES = st.sampled_from(["Routine", "routine", "ROUTINE", "Critical", "critical"])
USECASES = st.sampled_from(["qxr", "qer", "qct", "not_implemented"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | PHRASES | TRIAGES | URLS | st.text(max_size=10)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=15
)


def mostly(usual, key):
    """Nearly always what the vendor documents, and at times anything."""
    return st.integers(0, 9).flatmap(lambda n: JSON if n == 0 else usual).map(lambda value: (key, value))


def objects(**usual):
    """Objects of the documented shape, here and there without a key or with something else under it."""
    pairs = st.tuples(*(st.none() | mostly(values, key) | mostly(values, key) for key, values in usual.items()))
    return pairs.map(lambda chosen: dict(pair for pair in chosen if pair))


FILES = st.dictionaries(st.sampled_from(["sc", "pdf", "json"]), st.lists(URLS, max_size=2), max_size=2)
REPORTS = (
    st.text(max_size=20)
    | URLS
    | st.lists(st.text(max_size=10) | URLS, max_size=3)
    | objects(
        findings=st.text(max_size=10) | URLS, impression=st.text(max_size=10), findings_list=st.just([["a", "b"]])
    )
)
RESULTS = objects(
    success=st.just(True),
    triage_status=TRIAGES,
    usecase=USECASES,
    result=objects(
        report=REPORTS,
        files=FILES,
        scores=st.dictionaries(KEYS, st.floats(), max_size=2),
        decisions=st.dictionaries(KEYS, st.booleans(), max_size=2),
    ),
    message=URLS,
)
LEGACIES = objects(
    success=st.just(True), tags=st.just([["a", True]]), integrity=st.booleans(), report=REPORTS, files=FILES
)
FILE_MESSAGES = objects(message=PHRASES, created=st.booleans(), license_expired=st.booleans(), metadata=JSON)
UPLOADS = objects(
    status=st.just("success"),
    messages=st.dictionaries(KEYS, FILE_MESSAGES, max_size=3),
    series_instance_uids=st.just(["1.2.3"]),
    detailed_info=st.lists(
        objects(SeriesInstanceUID=PHRASES, NumberOfSeriesRelatedInstances=st.integers()), max_size=2
    ),
)
STATUSES = st.sampled_from([200, 202, 206, 304, 400, 401, 403, 404, 409, 413, 429, 500, 502]) | st.integers(-5, 1100)


def answers(bodies, statuses):
    return st.builds(
        RawAnswer,
        status=statuses,
        content_type=st.sampled_from(["application/json", "text/plain", "text/html", ""]) | st.text(max_size=20),
        body=bodies,
        retry_after=st.none() | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str),
    )


def as_json(values):
    return values.map(lambda value: json.dumps(value).encode())


ANY = answers(st.binary(max_size=200) | as_json(JSON) | as_json(RESULTS | LEGACIES | UPLOADS), st.just(200) | STATUSES)
LIKELY = answers(as_json(RESULTS | LEGACIES), st.just(200)) | ANY
LIKELY_UPLOADS = answers(as_json(UPLOADS), st.just(200)) | ANY
ROUTES = st.sampled_from(Route)
VERSIONS = st.sampled_from(ResultsVersion)


def result_of(raw, route, version):
    """The answer, or None where it is one of our errors; anything else fails the test."""
    try:
        return parse_result(raw, route, version)
    except OURS:
        return None


@pytest.mark.parametrize("meaning", Meaning)
def test_the_generated_answers_reach_every_meaning(meaning):
    def has_it(case):
        answer = result_of(*case)
        return answer is not None and answer.outcome is Outcome.READY and answer.meaning is meaning

    find(
        st.tuples(LIKELY, ROUTES, VERSIONS),
        has_it,
        settings=settings(max_examples=5000, deadline=None, phases=[Phase.generate]),
    )


@thorough
@given(ANY, ROUTES, VERSIONS)
def test_no_answer_whatever_raises_anything_but_our_errors(raw, route, version):
    for parse, expected in ((parse_upload, UploadAnswer), (parse_compute, ComputeAnswer)):
        with contextlib.suppress(*OURS):
            assert isinstance(parse(raw), expected)
    assert isinstance(result_of(raw, route, version), ResultAnswer | None)


@thorough
@given(LIKELY, ROUTES, VERSIONS)
def test_only_a_200_with_the_shape_of_a_result_is_ready(raw, route, version):
    answer = result_of(raw, route, version)
    if answer is None or answer.outcome is not Outcome.READY:
        return

    body = json.loads(raw.body)
    assert raw.status == 200
    assert (
        bool(body["result"])
        if isinstance(body.get("result"), dict)
        else "result" not in body
        and route is Route.XRAY
        and (isinstance(body.get("tags"), list) or body.get("integrity") is True)
    )
    if route is Route.CT or version is ResultsVersion.V1:
        assert body.get("success", True) is True
        assert body.get("sucess", True) is True


@thorough
@given(LIKELY, ROUTES, VERSIONS)
def test_nothing_is_called_without_finding_but_a_ready_result_that_says_routine(raw, route, version):
    answer = result_of(raw, route, version)
    if answer is None or answer.meaning is Meaning.UNKNOWN:
        return

    assert answer.outcome is Outcome.READY
    assert answer.usecase != "not_implemented"
    word = json.loads(raw.body)["triage_status"].strip().lower()
    if answer.meaning is Meaning.NO_FINDING:
        assert word == "routine"
        assert True not in answer.decisions.values()
    else:
        assert word == "critical"


@thorough
@given(LIKELY, ROUTES, VERSIONS)
def test_what_is_kept_and_shown_of_an_answer_holds_no_url_and_can_be_written(raw, route, version):
    answer = result_of(raw, route, version)
    if answer is None:
        return

    assert "SECRET" not in repr(answer)
    written = json.dumps(answer.content, ensure_ascii=False, allow_nan=False).encode()
    assert b"SECRET" not in written
    assert json.loads(written) == answer.content
    assert all(url.startswith(("http://", "https://")) for urls in answer.files.values() for url in urls)


@quick
@given(ANY, ROUTES, VERSIONS)
def test_no_word_of_a_body_is_in_an_error(raw, route, version):
    said = []
    for parse in (parse_upload, parse_compute, lambda raw: parse_result(raw, route, version)):
        try:
            parse(raw)
        except OURS as error:
            said.append(str(error))

    assert "SECRET" not in " ".join(said)


@quick
@given(LIKELY_UPLOADS)
def test_a_file_is_accepted_only_in_a_200_that_flags_it_or_has_a_word_of_success(raw):
    try:
        answer = parse_upload(raw)
    except OURS:
        return

    assert raw.status == 200
    sent = json.loads(raw.body).get("messages") or {}
    for key in (key for key, file in answer.files.items() if file.accepted):
        words = sent[key] if isinstance(sent[key], str) else sent[key].get("message")
        assert (isinstance(words, str) and words) or sent[key]["created"] is True


@quick
@given(st.text() | st.floats().map(str) | st.integers().map(str) | st.datetimes().map(str), st.floats(0, 4e9))
def test_a_wait_is_never_negative_nor_endless(text, now):
    seconds = parse_retry_after(text, now=now)

    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


@quick
@given(st.sampled_from(Step), st.integers(-5, 1100))
def test_a_status_is_an_error_of_the_three_kinds_or_a_documented_one(step, status):
    error = error_for_status(step, status)

    assert isinstance(error, OURS) or (error is None and status in {200, 202, 206, 304, 400, 403, 404, 409})
