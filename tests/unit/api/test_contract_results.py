"""What a result says, whichever product and generation of the API wrote it."""

import copy
import json

import pytest

from qure_provider.api.answers import RawAnswer, parse_compute, parse_result
from qure_provider.api.errors import QureTransientError
from qure_provider.api.model import Meaning, Outcome, Report, ResultsVersion, Route

V1, V2 = ResultsVersion.V1, ResultsVersion.V2
URL = "https://bucket.s3.amazonaws.com/1.dcm?X-Amz-Signature=abc"

XRAY = {
    "success": True,
    "message": "Results retrieved successfully!",
    "triage_status": "Critical",
    "usecase": "qxr",
    "result": {
        "report": {
            "findings": "Opacity in the right lung.\n\nHeart size normal.",
            "impression": "Abnormal study",
            "findings_list": [["opacity", "Opacity in the right lung."], ["heart", "Heart size normal."]],
        },
        "files": {"sc": [URL, URL + "2"], "report_pdf": [URL]},
    },
}
QER = {
    "success": True,
    "message": "Results retrieved successfully!",
    "triage_status": "critical",
    "usecase": "qer",
    "result": {
        "report": ["Intracranial hemorrhage found", "No midline shift"],
        "scores": {"PATHOLOGY_1": 0.93, "PATHOLOGY_2": 0},
        "decisions": {"PATHOLOGY_1": True, "PATHOLOGY_2": False},
        "reporting_params": [],
        "qure_model_version": "Latest",
        "files": {"sc": [URL]},
    },
}
QCT = {
    "success": True,
    "triage_status": "routine",
    "usecase": "qct",
    "result": {"files": {"json": [URL], "pr": [URL], "seg": [URL], "hl7": [URL]}},
}
OLD = {
    "success": True,
    "message": "Results retrieved successfully!",
    "triage_status": "Routine",
    "usecase": "qer",
    "result": {"report": "No intracranial hemorrhage found", "files": {"sc": [], "gsps": [], "sc_png": [URL]}},
    "report": [],
}
LEGACY = {
    "success": True,
    "message": "ok",
    "files": {"sc": URL},
    "metadata": {"age": 40},
    "tags": [["opacity", True, 0.9]],
    "patient": "PAT-1",
    "report": "Opacity in the right lung.\n\nHeart size normal.",
    "raw": "image-1",
    "integrity": True,
}


def read(body, route=Route.XRAY, version=V1, status=200, content_type="application/json"):
    return parse_result(RawAnswer(status, content_type, json.dumps(body).encode()), route, version)


def changed(body, **changes):
    """A copy with other values; None removes a key."""
    body = copy.deepcopy(body) | changes
    return {key: value for key, value in body.items() if value is not None}


def with_result(body, **changes):
    return changed(body, result=changed(body["result"], **changes))


# --- Products and generations -----------------------------------------------------------------------------------------


def test_an_x_ray_report_is_an_object():
    answer = read(XRAY, version=V2)

    assert answer.outcome is Outcome.READY
    assert answer.report == Report(
        impression="Abnormal study",
        findings="Opacity in the right lung.\n\nHeart size normal.",
        findings_list=(("opacity", "Opacity in the right lung."), ("heart", "Heart size normal.")),
    )
    assert (answer.usecase, answer.triage) == ("qxr", "Critical")
    assert answer.files == {"sc": (URL, URL + "2"), "report_pdf": (URL,)}
    assert answer.file_counts == {"report_pdf": 1, "sc": 2}
    assert answer.warnings == ()


def test_a_qer_report_is_a_list_with_scores_and_decisions():
    answer = read(QER, Route.CT)

    assert answer.report.lines == ("Intracranial hemorrhage found", "No midline shift")
    assert answer.scores == {"PATHOLOGY_1": 0.93, "PATHOLOGY_2": 0.0}
    assert answer.decisions == {"PATHOLOGY_1": True, "PATHOLOGY_2": False}
    assert answer.model_version == "Latest"
    assert answer.warnings == ()


def test_a_qct_result_is_files_alone():
    answer = read(QCT, Route.CT)

    assert answer.outcome is Outcome.READY
    assert answer.report.is_empty
    assert answer.file_counts == {"hl7": 1, "json": 1, "pr": 1, "seg": 1}
    assert answer.warnings == ()


def test_the_older_pages_report_is_a_text_beside_a_stray_list():
    answer = read(OLD, Route.CT)

    assert answer.outcome is Outcome.READY
    assert answer.report.lines == ("No intracranial hemorrhage found",)
    assert answer.file_counts == {"sc_png": 1}
    assert answer.warnings == ()


@pytest.mark.parametrize("version", [V1, V2])
def test_the_legacy_format_has_no_triage_so_its_meaning_is_unknown(version):
    answer = read(LEGACY, version=version)

    assert (answer.outcome, answer.triage, answer.meaning) == (Outcome.READY, None, Meaning.UNKNOWN)
    assert answer.report.lines == ("Opacity in the right lung.", "Heart size normal.")
    assert answer.files == {"sc": (URL,)}
    assert answer.content["tags"] == [["opacity", True, 0.9]]


def test_a_legacy_answer_without_integrity_is_told_by_its_tags():
    assert read(changed(LEGACY, integrity=None)).outcome is Outcome.READY


def test_the_legacy_format_says_that_an_image_is_no_chest_x_ray():
    answer = read(changed(LEGACY, integrity=False))

    assert (answer.outcome, answer.meaning) == (Outcome.INVALID, Meaning.UNKNOWN)
    assert "chest" in answer.reason


@pytest.mark.parametrize(
    "body",
    [
        changed(LEGACY, tags=None, integrity=None),
        changed(LEGACY, tags=None, report=None),
        changed(LEGACY, tags="opacity", integrity=None),
        LEGACY | {"integrity": None},
        LEGACY | {"integrity": "true"},
        LEGACY | {"integrity": 1},
        LEGACY | {"success": False},
        LEGACY | {"result": None},
    ],
)
def test_half_a_legacy_answer_is_not_understood(body):
    with pytest.raises(QureTransientError):
        read(body)


def test_a_legacy_chest_x_ray_is_no_answer_for_a_ct_series():
    with pytest.raises(QureTransientError):
        read(LEGACY, Route.CT)


# --- What makes an answer ready ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["success", "sucess"])
@pytest.mark.parametrize("flag", [False, None, "false", "true", 0, 1])
@pytest.mark.parametrize("body", [XRAY, QER, QCT, OLD])
def test_a_result_that_denies_its_own_success_is_never_ready(body, key, flag):
    with pytest.raises(QureTransientError):
        read(body | {key: flag}, Route.CT)
    with pytest.raises(QureTransientError):
        read(body | {key: flag}, Route.XRAY, V1)


def test_x_ray_v2_has_a_deprecated_success_that_says_nothing():
    assert read(XRAY | {"success": False}, version=V2).outcome is Outcome.READY
    assert read(changed(XRAY, success=None), version=V2).outcome is Outcome.READY


@pytest.mark.parametrize(
    "result", [{}, [], "ready", None, 5, {"scores": {"A": 0.1}}, {"files": []}, {"files": None, "report": None}]
)
@pytest.mark.parametrize(("route", "version"), [(Route.XRAY, V1), (Route.XRAY, V2), (Route.CT, V1)])
def test_a_success_without_the_shape_of_a_result_is_never_ready(result, route, version):
    with pytest.raises(QureTransientError):
        read(XRAY | {"result": result}, route, version)


@pytest.mark.parametrize("word", ["not_implemented", "Not_Implemented", " not implemented "])
@pytest.mark.parametrize("triage", ["Routine", "Critical", None])
def test_a_use_case_that_is_not_implemented_is_unsupported_whatever_the_triage(word, triage):
    answer = read(changed(XRAY, usecase=word, triage_status=triage), version=V2)

    assert (answer.outcome, answer.meaning) == (Outcome.UNSUPPORTED, Meaning.UNKNOWN)
    assert answer.reason


@pytest.mark.parametrize("triage", ["Routine", "Critical"])
def test_a_206_is_invalid_and_never_normal(triage):
    body = XRAY | {"triage_status": triage, "usecase": "not_implemented"}
    body = with_result(body, report={"findings": "Invalid X-Ray", "impression": "Uploaded Invalid X-RAY"})

    answer = read(body, version=V2, status=206)

    assert (answer.outcome, answer.meaning, answer.triage) == (Outcome.INVALID, Meaning.UNKNOWN, triage)
    assert answer.report.impression == "Uploaded Invalid X-RAY"
    assert answer.file_counts == {"report_pdf": 1, "sc": 2}


# --- What triage means ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "version", "triage", "meaning"),
    [
        (Route.CT, V1, "Critical", Meaning.URGENT),
        (Route.CT, V2, "critical", Meaning.URGENT),
        (Route.CT, V1, "ROUTINE", Meaning.NO_FINDING),
        (Route.XRAY, V1, "critical", Meaning.URGENT),
        (Route.XRAY, V1, "Routine", Meaning.NO_FINDING),
        (Route.XRAY, V2, "Critical", Meaning.ABNORMAL),
        (Route.XRAY, V2, "CRITICAL", Meaning.ABNORMAL),
        (Route.XRAY, V2, " routine ", Meaning.NO_FINDING),
    ],
)
def test_triage_means_what_its_route_says_in_any_case(route, version, triage, meaning):
    answer = read(QCT | {"triage_status": triage}, route, version)

    assert (answer.outcome, answer.triage, answer.meaning) == (Outcome.READY, triage, meaning)


@pytest.mark.parametrize(
    "triage", [None, "", "Normal", "Urgent", "Routine/Critical", "non-critical", 0, True, ["Routine"]]
)
@pytest.mark.parametrize(("route", "version"), [(Route.XRAY, V1), (Route.XRAY, V2), (Route.CT, V1)])
def test_a_missing_or_new_triage_is_ready_and_its_meaning_unknown(triage, route, version):
    answer = read(changed(QCT, triage_status=triage), route, version)

    assert (answer.outcome, answer.meaning) == (Outcome.READY, Meaning.UNKNOWN)
    assert answer.triage == (triage if isinstance(triage, str) else None)


def test_routine_beside_a_positive_decision_is_unknown():
    answer = read(QER | {"triage_status": "Routine"}, Route.CT)

    assert (answer.outcome, answer.meaning) == (Outcome.READY, Meaning.UNKNOWN)


def test_routine_with_every_decision_negative_is_no_finding():
    body = with_result(QER | {"triage_status": "Routine"}, decisions={"PATHOLOGY_1": False})

    assert read(body, Route.CT).meaning is Meaning.NO_FINDING


@pytest.mark.parametrize(
    "unreadable",
    [
        {"report": 5},
        {"report": ["line", 5]},
        {"report": {"findings": ["a"]}},
        {"report": {"impression": 1}},
        {"report": {"findings_list": "a"}},
        {"report": {"findings_list": [["key"]]}},
        {"report": {"findings_list": [["key", None]]}},
        {"report": {"findings_list": [["key", "text", "more"]]}},
        {"scores": [0.1]},
        {"scores": {"A": "high"}},
        {"scores": {"A": True}},
        {"scores": {"A": None}},
        {"scores": {"A": float("nan")}},
        {"scores": {"A": float("inf")}},
        {"scores": {"A": 10**400}},
        {"decisions": "none"},
        {"decisions": {"A": "false"}},
        {"decisions": {"A": 0}},
    ],
)
def test_findings_that_cannot_be_read_are_kept_and_named_and_never_routine(unreadable):
    body = with_result(QER | {"triage_status": "Routine"}, decisions={"PATHOLOGY_1": False})
    body = with_result(body, **unreadable)

    answer = read(body, Route.CT)

    assert (answer.outcome, answer.meaning) == (Outcome.READY, Meaning.UNKNOWN)
    assert len(answer.warnings) == 1
    assert answer.content["result"].keys() == body["result"].keys()


def test_findings_that_cannot_be_read_leave_an_urgent_result_urgent():
    answer = read(with_result(QER, scores="?"), Route.CT)

    assert answer.meaning is Meaning.URGENT


def test_a_report_outside_of_the_result_is_not_passed_over_in_silence():
    answer = read(OLD | {"report": ["Fracture found"]}, Route.CT)

    assert answer.meaning is Meaning.UNKNOWN
    assert answer.warnings
    assert answer.content["report"] == ["Fracture found"]


def test_what_can_be_read_beside_what_cannot_is_read():
    body = with_result(QER, report=["first", 2, "third"], scores={"A": 0.5, "B": "?"})

    answer = read(body, Route.CT)

    assert answer.report.lines == ("first", "third")
    assert answer.scores == {"A": 0.5}


def test_numbers_that_json_does_not_know_stay_in_the_content_as_written():
    raw = json.dumps(QER).replace("0.93", "NaN").replace('"PATHOLOGY_2": 0', '"PATHOLOGY_2": 1e999').encode()

    answer = parse_result(RawAnswer(200, "application/json", raw), Route.CT, V1)

    assert answer.scores == {}
    assert answer.content["result"]["scores"] == {"PATHOLOGY_1": "NaN", "PATHOLOGY_2": "1e999"}
    json.dumps(answer.content, allow_nan=False)


# --- Answers that are not ready ---------------------------------------------------------------------------------------

VALIDITY = {
    "success": False,
    "message": "Use case not implemented.",
    "seriesInstanceUID": "1.2.3",
    "accessionNumber": "A1",
    "debug_info": {"reason": "Validity not determined yet!"},
    "result": {},
}


@pytest.mark.parametrize("route", [Route.XRAY, Route.CT])
def test_a_validity_not_determined_yet_is_pending_in_a_stage_of_its_own(route):
    answer = read(VALIDITY, route, V1, status=400)

    assert (answer.outcome, answer.stage) == (Outcome.PENDING, "validity")
    assert answer.reason == "Validity not determined yet!"


def test_x_ray_v2_knows_no_validity_stage():
    answer = read(VALIDITY, Route.XRAY, V2, status=400)

    assert (answer.outcome, answer.stage) == (Outcome.UNSUPPORTED, "")


@pytest.mark.parametrize(
    "text", ["not implemented", "Use case not implemented.", "Not a valid use case", "Unsupported anatomy", ""]
)
def test_a_400_is_unsupported(text):
    by_text = parse_result(RawAnswer(400, "text/plain", text.encode()), Route.XRAY, V2)
    by_json = read({"success": False, "message": text, "debug_info": {"reason": text}}, Route.CT, status=400)

    assert by_text.outcome is by_json.outcome is Outcome.UNSUPPORTED
    assert by_text.reason == by_json.reason == (text or "no product of the account handles this scan")


@pytest.mark.parametrize("text", ["Invalid X-Ray", "Uploaded Invalid X-RAY", "invalid scan", "The image is invalid"])
def test_a_400_that_judges_the_scan_is_invalid(text):
    by_text = parse_result(RawAnswer(400, "text/plain", text.encode()), Route.XRAY, V2)
    by_json = read({"success": False, "message": text}, Route.CT, status=400)
    by_reason = read({"success": False, "debug_info": {"reason": text}}, Route.CT, status=400)

    assert {by_text.outcome, by_json.outcome, by_reason.outcome} == {Outcome.INVALID}


@pytest.mark.parametrize("debug_info", [None, "text", [], {"reason": 5}, {"reason": {"a": "b"}}])
def test_a_400_with_an_odd_reason_is_unsupported(debug_info):
    assert read(VALIDITY | {"debug_info": debug_info}, Route.CT, status=400).outcome is Outcome.UNSUPPORTED


def test_the_services_own_reason_is_given_where_it_is_plain_words():
    assert read({"reason": "processing not started"}, version=V2, status=202).reason == "processing not started"


@pytest.mark.parametrize(
    "reason",
    [
        "Series 1.2.3 waits",
        "DOE^JANE waits",
        "Patient Jane Doe unknown",
        "unknown: DOE",
        "see https://example.org/x",
        "x" * 100,
        7,
        None,
    ],
)
def test_a_reason_that_may_name_someone_is_replaced_by_fixed_words(reason):
    assert read({"reason": reason}, version=V2, status=202).reason == "still being processed"


def test_a_message_with_a_uid_does_not_become_the_reason():
    answer = read({"success": False, "message": "Resource with sopInstanceUID 1.2.3 is under process."}, status=202)

    assert "1.2.3" not in answer.reason


@pytest.mark.parametrize("status", [403, 404, 409])
def test_a_bare_word_of_the_service_does_not_replace_what_the_status_explains(status):
    answer = parse_result(RawAnswer(status, "text/plain", b"Forbidden"), Route.XRAY, V2)

    assert "Forbidden" not in answer.reason
    assert len(answer.reason) > 20


def test_a_final_answer_asks_for_no_wait():
    raw = RawAnswer(400, "text/plain", b"not implemented", retry_after="5")

    assert parse_result(raw, Route.XRAY, V2).retry_after is None


# --- Compute ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [{}, {"message": "pushed"}, {"success": False}, {"success": "true"}, {"success": True, "sucess": False}]
)
def test_a_series_is_queued_only_where_compute_says_that_it_succeeded(body):
    with pytest.raises(QureTransientError):
        parse_compute(RawAnswer(200, "application/json", json.dumps(body).encode()))


def test_a_series_that_was_queued_before_is_told_apart_even_by_a_200():
    body = {"success": True, "message": "series_instance_uid was already pushed for computation!"}

    answer = parse_compute(RawAnswer(200, "application/json", json.dumps(body).encode()))

    assert (answer.queued, answer.already_queued) == (False, True)
