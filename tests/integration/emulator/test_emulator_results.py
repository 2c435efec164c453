"""What is answered of a resource, product by product and status by status."""

import time

import pytest
from emulator_images import Uploaded, a_ct, an_xray, read

from qure_provider.emulator.model import Plan

MARK = "SIMULATED, NOT FOR CLINICAL USE"
XRAY_FILES = {
    "sc",
    "sc_full_png",
    "sc_thumbnail",
    "sc_dicom_thumbnail",
    "original_thumbnail",
    "original",
    "report_pdf",
    "report_dcm",
    "report_sr",
}
QCT_FILES = {"sc", "pdf", "sr", "sc_key_slices", "seg", "gsps", "json", "hl7", "encapsulated_pdf"}
OLDER_FILES = {"reports", "sc_key_slices", "sc", "gsps", "sc_png"}


def _sent(client, upload):
    assert client.upload(upload).status_code == 200
    return upload


def _computed(client, ct):
    _sent(client, ct)
    assert client.get(f"/compute/{ct.series}").status_code == 200
    return ct


def test_xray_v2_says_what_it_found(client, control):
    xray = _sent(client, an_xray())
    control.plan(xray.sop, findings=["nodule", "pneumothorax"])
    answer = client.get(f"/results/v2/{xray.sop}")
    body = answer.json()
    assert (answer.status_code, body["success"]) == (200, True)
    assert (body["message"], body["triage_status"], body["usecase"]) == (
        "Results retrieved successfully!",
        "Critical",
        "qxr",
    )
    report = body["result"]["report"]
    assert [key for key, text in report["findings_list"]] == ["nodule", "pneumothorax"]
    assert "\n\n" in report["findings"]
    assert MARK in report["findings"]
    assert report["impression"] == f"{MARK}. Abnormal study"
    assert set(body["result"]["files"]) == XRAY_FILES
    assert len(body["result"]["files"]["sc"]) == 2
    assert set(body["result"]) == {"report", "files"}


def test_xray_v1_has_the_same_report_and_triage_in_lower_case(client, control):
    xray = _sent(client, an_xray())
    control.plan(xray.sop, findings=["nodule"])
    v1, v2 = client.get(f"/results/{xray.sop}").json(), client.get(f"/results/v2/{xray.sop}").json()
    assert v1["triage_status"] == "critical"
    assert v1["result"]["report"] == v2["result"]["report"]


def test_nothing_found_is_routine(client, control):
    xray = _sent(client, an_xray())
    control.plan(xray.sop, findings=[])
    body = client.get(f"/results/v2/{xray.sop}").json()
    assert body["triage_status"] == "Routine"
    assert body["result"]["report"]["findings_list"] == []


def test_each_image_of_an_xray_series_has_its_own_result(client, control):
    xray = _sent(client, an_xray(2))
    control.plan(xray.sops[0], findings=["nodule"])
    control.plan(xray.sops[1], findings=[])
    assert [client.get(f"/results/v2/{sop}").json()["triage_status"] for sop in xray.sops] == ["Critical", "Routine"]


def test_qer_has_lines_scores_and_decisions(client, control):
    ct = _computed(client, a_ct("HEAD"))
    control.plan(ct.series, findings=["midline_shift"])
    body = client.get(f"/results/{ct.series}").json()
    result = body["result"]
    assert (body["usecase"], body["triage_status"]) == ("qer", "critical")
    assert all(isinstance(line, str) for line in result["report"])
    assert MARK in result["report"][0]
    assert result["scores"].keys() == result["decisions"].keys()
    assert [key for key, decided in result["decisions"].items() if decided] == ["midline_shift"]
    assert all(0 <= score <= 1 for score in result["scores"].values())
    assert (result["reporting_params"], result["qure_model_version"]) == ([], "Latest")
    assert set(result["files"]) == XRAY_FILES


def test_qct_has_files_only(client):
    ct = _computed(client, a_ct("CHEST"))
    body = client.get(f"/results/{ct.series}").json()
    assert body["usecase"] == "qct"
    assert set(body["result"]) == {"files"}
    assert set(body["result"]["files"]) == QCT_FILES


@pytest.mark.parametrize(
    ("upload", "usecase"),
    [
        (lambda: an_xray(BodyPartExamined="CHEST"), "qxr"),
        (lambda: an_xray(BodyPartExamined="HAND"), "qmsk"),
        (lambda: an_xray(BodyPartExamined="", StudyDescription="XR WRIST"), "qxr"),
        (lambda: a_ct("HEAD"), "qer"),
        (lambda: a_ct("CHEST"), "qct"),
        (lambda: a_ct(""), "qer"),
        (lambda: a_ct("", StudyDescription="CT THORAX"), "qct"),
        (lambda: a_ct("ABDOMEN"), "not_implemented"),
        (lambda: Uploaded([read("MR-SIEMENS-DICOM-WithOverlays.dcm")]), "not_implemented"),
    ],
)
def test_the_product_is_decided_from_the_header(client, control, upload, usecase):
    _sent(client, upload())
    (resource,) = control.resources()
    assert resource.usecase == usecase


def test_an_unsupported_modality_is_400(client):
    mr = _sent(client, Uploaded([read("MR-SIEMENS-DICOM-WithOverlays.dcm")]))
    v2 = client.get(f"/results/v2/{mr.sop}")
    assert (v2.status_code, v2.text, v2.headers["content-type"]) == (
        400,
        "not implemented",
        "text/plain; charset=utf-8",
    )
    answer = client.get(f"/results/{mr.series}")
    body = answer.json()
    assert (answer.status_code, body["success"], body["message"]) == (400, False, "Use case not implemented.")
    assert (body["seriesInstanceUID"], body["result"]) == (mr.series, {})
    assert set(body) == {"success", "message", "seriesInstanceUID", "accessionNumber", "debug_info", "result"}


def test_what_was_not_uploaded_is_404(client):
    v2 = client.get("/results/v2/1.2.3")
    assert (v2.status_code, v2.content) == (404, b"")
    answer = client.get("/results/1.2.3")
    message = "Resource with SeriesInstanceUID 1.2.3 is not yet uploaded!"
    assert (answer.status_code, answer.json()) == (404, {"sucess": False, "message": message})


def test_results_of_the_wrong_grain_are_404(client):
    xray, ct = _sent(client, an_xray()), _computed(client, a_ct("HEAD"))
    assert client.get(f"/results/v2/{xray.series}").status_code == 404
    assert client.get(f"/results/{xray.series}").status_code == 404
    assert client.get(f"/results/{ct.sop}").status_code == 404
    assert client.get(f"/results/v2/{ct.series}").status_code == 404


def test_while_it_is_processed_it_is_202(client, control):
    control.configure(processing_seconds=0.3)
    xray, ct = _sent(client, an_xray()), _computed(client, a_ct("HEAD"))
    v2 = client.get(f"/results/v2/{xray.sop}")
    assert (v2.status_code, v2.json()) == (202, {"reason": "processing not started"})
    for uid in (xray.sop, ct.series):
        answer = client.get(f"/results/{uid}")
        message = f"Resource with sopInstanceUID {uid} is under process. Please check back in some time."
        assert (answer.status_code, answer.json()) == (202, {"success": False, "message": message})
    assert client.ready(f"/results/{ct.series}").status_code == 200
    for resource in control.resources():
        assert resource.ready_at - resource.started_at == pytest.approx(0.3)


def test_an_invalid_scan_is_206_on_v2_and_400_on_v1(client, control):
    xray = _sent(client, an_xray())
    control.plan(xray.sop, outcome="invalid", findings=["nodule"])
    answer = client.get(f"/results/v2/{xray.sop}")
    body = answer.json()
    assert (answer.status_code, body["triage_status"], body["usecase"]) == (206, "Routine", "not_implemented")
    assert body["result"]["report"]["impression"] == f"{MARK}. Uploaded Invalid X-RAY"
    assert "Invalid X-Ray" in body["result"]["report"]["findings"]
    assert body["result"]["report"]["findings_list"] == []
    assert set(body["result"]["files"]) == XRAY_FILES
    assert client.get(f"/results/{xray.sop}").status_code == 400


def test_an_invalid_scan_may_be_400_on_v2_too(client, control):
    xray = _sent(client, an_xray())
    control.plan(xray.sop, outcome="invalid as 400")
    answer = client.get(f"/results/v2/{xray.sop}")
    assert (answer.status_code, answer.text) == (400, "not implemented")


def test_the_validity_answer_looks_final_and_is_not(client, control):
    ct = a_ct("HEAD")
    control.plan(ct.series, validity_seconds=0.2, processing_seconds=0.3)
    _computed(client, ct)
    answer = client.get(f"/results/{ct.series}")
    assert answer.status_code == 400
    assert answer.json()["debug_info"] == {"reason": "Validity not determined yet!"}
    time.sleep(0.2)
    assert client.ready(f"/results/{ct.series}").status_code == 200


def test_a_resource_outside_the_workspace_is_403(client, control):
    xray = _sent(client, an_xray())
    control.plan(xray.sop, outcome="denied")
    v2 = client.get(f"/results/v2/{xray.sop}")
    assert (v2.status_code, v2.text) == (403, "Forbidden")
    assert client.get(f"/results/{xray.sop}").json() == {"success": False, "message": "Access denied!"}


def test_a_stuck_resource_never_gets_ready(client, control):
    xray = _sent(client, an_xray())
    control.plan(xray.sop, outcome="stuck")
    assert client.get(f"/results/v2/{xray.sop}").status_code == 202
    assert control.resources()[0].ready_at is None


def test_the_most_exact_plan_counts(client, control):
    xray = an_xray(2)
    control.plan(xray.study, outcome="stuck")
    control.plan(xray.sops[1], Plan(triage="Critical"))
    _sent(client, xray)
    assert [client.get(f"/results/v2/{sop}").status_code for sop in xray.sops] == [202, 200]
    control.clear_plans()
    assert client.get(f"/results/v2/{xray.sops[0]}").status_code == 200


def test_a_planned_triage_is_given_verbatim_and_a_patch_can_remove_it(client, control):
    xray = _sent(client, an_xray())
    control.plan(xray.sop, triage="URGENT?")
    assert client.get(f"/results/{xray.sop}").json()["triage_status"] == "URGENT?"
    control.plan(xray.sop, patch={"triage_status": None, "result": {"report": {"impression": None}}, "extra": [1]})
    body = client.get(f"/results/{xray.sop}").json()
    assert "triage_status" not in body
    assert "impression" not in body["result"]["report"]
    assert "findings" in body["result"]["report"]
    assert body["extra"] == [1]


def test_kinds_come_as_planned_and_late_ones_later(client, control):
    xray = _sent(client, an_xray())
    control.plan(xray.sop, kinds=["sc", "report_sr", "pr"], delays={"report_sr": 0.3})
    first = client.get(f"/results/v2/{xray.sop}").json()["result"]["files"]
    assert set(first) == {"sc", "pr"}
    time.sleep(0.35)
    assert set(client.get(f"/results/v2/{xray.sop}").json()["result"]["files"]) == {"sc", "pr", "report_sr"}


def test_what_is_found_is_drawn_from_the_uid(client, control):
    xray = _sent(client, an_xray(40))

    def found():
        return [client.get(f"/results/v2/{sop}").json()["triage_status"] for sop in xray.sops]

    drawn = found()
    assert found() == drawn
    assert set(drawn) == {"Critical", "Routine"}
    control.configure(seed="another")
    assert found() != drawn
    control.configure(abnormal_share=0)
    assert set(found()) == {"Routine"}
    control.configure(abnormal_share=1)
    assert set(found()) == {"Critical"}


@pytest.mark.parametrize("make", [an_xray, lambda: a_ct("HEAD"), lambda: a_ct("CHEST")])
def test_the_older_shape(client, control, make):
    control.configure(answers="older")
    upload = _sent(client, make())
    client.get(f"/compute/{upload.series}")
    body = client.get(f"/results/{upload.series}").json()
    assert set(body) == {"success", "message", "triage_status", "usecase", "result", "report"}
    assert body["report"] == []
    assert set(body["result"]) == {"report", "files"}
    assert MARK in body["result"]["report"]
    assert set(body["result"]["files"]) == OLDER_FILES
    assert body["triage_status"] in {"Routine", "Critical"}


def test_the_older_words_of_202_and_400(client, control):
    control.configure(answers="older", processing_seconds=60)
    xray = _sent(client, an_xray())
    message = f"Image Series with resource_uid {xray.series} is under process. Please check back in some time."
    assert client.get(f"/results/{xray.series}").json() == {"success": False, "message": message}
    control.plan(xray.series, outcome="unsupported")
    body = client.get(f"/results/{xray.series}").json()
    assert set(body) == {"success", "message", "debug_info", "remarks", "result"}
    assert (body["message"], body["remarks"]) == ("Not a valid use case", "{}")


def test_the_legacy_shape(client, control):
    control.configure(answers="legacy")
    xray = _sent(client, an_xray())
    control.plan(xray.sop, findings=["nodule"])
    body = client.get(f"/results/{xray.sop}").json()
    assert set(body) == {"success", "message", "files", "metadata", "tags", "patient", "report", "raw", "integrity"}
    assert (body["patient"], body["raw"], body["integrity"]) == ("SIM-1", xray.sop, True)
    assert MARK in body["report"]
    assert all(isinstance(url, str) for url in body["files"].values())
    assert [tag["tag"] for tag in body["tags"] if tag["presence"]] == ["nodule"]
    assert "result" in client.get(f"/results/v2/{xray.sop}").json()
