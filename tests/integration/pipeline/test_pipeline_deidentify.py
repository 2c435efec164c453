"""A night whose studies are de-identified on the way out and put back on the way in."""

import base64
import json
import os
from pathlib import Path

import pydicom
import pytest
from pipeline_kit import image
from pydicom.uid import generate_uid
from support.deidentified import identifying_values, told

from qure_provider.api.errors import QureSettingsError
from qure_provider.dicom.pseudonym import Pseudonymizer
from qure_provider.dicom.refusal import Refusal
from qure_provider.dicom.verify import Contradiction, verify_objects
from qure_provider.emulator.model import Answer, OtherPatient
from qure_provider.hooks.deidentify import DeidentifyHook
from qure_provider.operators.returning import return_files
from qure_provider.operators.upload import QureUploadBatchOperator, QureUploadOperator
from qure_provider.reports.result import Asset
from qure_provider.retries import NightUnresolvedError, QureRetryPolicy, StepIncompleteError
from qure_provider.sensors.results import QureResultsSensor
from qure_provider.settings import IdentityPolicyError

KEY = base64.b64encode(b"a key for tests that nobody uses").decode()
NAME = "SIMULATED^Quäxlinger"


def use_key(monkeypatch, key=KEY, **extra):
    fields = {"conn_type": "qure_deidentify", "password": key, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_QURE_DEIDENTIFY_DEFAULT", json.dumps(fields))


@pytest.fixture(autouse=True)
def deidentifying(connected, monkeypatch):
    connected.control.clear_faults()
    monkeypatch.setenv("AIRFLOW__QURE__IDENTITY_POLICY", "deidentify")
    use_key(monkeypatch)


@pytest.fixture
def small_requests(monkeypatch):
    """Two slices fill a request, and requests go out one after the other."""
    fields = json.loads(os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
    fields["extra"] |= {"max_request_bytes": 6000, "parallel_uploads": 1}
    monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))


def bodies(hospital):
    """Every file as the service received it."""
    return [Path(file.path).read_bytes() for file in hospital.control.received()]


def objects_of(hospital, row):
    """The result's DICOM objects that may go on."""
    for asset in hospital.result(row)["assets"]:
        if asset["media"] == "application/dicom":
            yield asset["kind"], pydicom.dcmread(hospital.root / row.store_path / asset["name"])


def held(hospital, row):
    return {file["kind"]: file["reason"] for file in hospital.result(row)["held"]}


def failures_of(hospital, batches):
    """Upload batches; return what failed."""
    failures = []
    for batch in batches:
        try:
            hospital.upload(batch)
        except StepIncompleteError as failure:
            failures.append(failure)
    return failures


def only_row(hospital):
    (row,) = hospital.rows().values()
    return row


class TestAWholeNight:
    def test_comes_back_about_the_patient(self, hospital):
        films, slices = hospital.xray(images=2, PatientName=NAME), hospital.ct(PatientName=NAME)

        summary = hospital.night()

        rows = hospital.rows()
        assert {row.outcome.value for row in rows.values()} == {"ready"}
        assert {row.uid for row in rows.values()} == {film.SOPInstanceUID for film in films} | {
            slices[0].SeriesInstanceUID
        }
        for row in rows.values():
            objects = dict(objects_of(hospital, row))
            assert hospital.result(row)["uid"] == row.uid
            assert "sc" in objects or "sc_key_slices" in objects
            for dataset in objects.values():
                assert dataset.StudyInstanceUID == row.identity.study_instance_uid
                assert (dataset.PatientID, dataset.PatientName, dataset.AccessionNumber) == ("SIM-1", NAME, "SIM-A1")
                assert dataset.StudyDate == "20261120"
                assert "PatientIdentityRemoved" not in dataset
        assert summary["counts"]["selected"] == len(films) + len(slices)

    def test_tells_the_service_nothing(self, hospital):
        sources = [*hospital.xray(images=2, PatientName="SIMULATED^Quäxlinger", InstitutionName="SIMULATED CLINIC")]
        sources += hospital.ct(ReferringPhysicianName="SIMULATED^Yttrium")

        hospital.night()

        identifying = set().union(*map(identifying_values, sources)) - {"SIMULATED", "PATIENT"}
        assert len(identifying) > len(sources)
        for content in bodies(hospital):
            assert told(content, identifying) == set()
        for request in hospital.control.requests():
            assert told(request.path.encode(), identifying) == set()
        for file in hospital.control.received():
            assert told(f"{file.key}{file.file_name}{file.headers}".encode(), identifying) == set()

    def test_leaves_the_pixels_and_the_length_as_they_are(self, hospital):
        (film,) = hospital.xray()
        (batch,) = hospital.plan()

        hospital.upload(batch)

        (file,) = hospital.control.received()
        sent = pydicom.dcmread(file.path)
        assert sent.PixelData == film.PixelData
        assert sent.PatientIdentityRemoved == "YES"
        assert sent.SOPInstanceUID == only_row(hospital).sent_uid != film.SOPInstanceUID

    def test_holds_a_document_that_names_the_pseudonym_and_nothing_else(self, hospital):
        hospital.xray()

        hospital.night()

        row = only_row(hospital)
        reasons = held(hospital, row)
        assert set(reasons) == {"report_pdf", "report_dcm"}
        assert all("is not edited" in reason for reason in reasons.values())
        kinds = {asset["kind"] for asset in hospital.result(row)["assets"]}
        assert {"sc", "report_sr"} <= kinds
        assert not kinds & set(reasons)

    def test_says_in_its_summary_what_is_held(self, hospital):
        hospital.xray()

        (resource,) = hospital.night()["resources"]

        assert "report_pdf held: a pseudonym is inside a document" in resource["reason"]
        assert resource["is_resolved"]

    def test_is_waited_for_by_its_own_name(self, hospital):
        (film,) = hospital.xray()
        (batch,) = hospital.plan()
        hospital.upload(batch)
        sensor = QureResultsSensor(task_id="wait", batch=batch, store_root=str(hospital.root), deferrable=False)

        outcomes = sensor.poke(hospital.context()).xcom_value

        assert {uid: row["outcome"] for uid, row in outcomes.items()} == {film.SOPInstanceUID: "ready"}

    def test_is_not_asked_for_twice(self, hospital):
        hospital.xray()
        hospital.ct()
        hospital.night()
        sent = hospital.sent()
        hospital.new_run("scheduled__2")

        hospital.night()

        assert hospital.sent() == sent

    def test_puts_back_the_words_of_the_answer(self, hospital, monkeypatch):
        monkeypatch.setattr("qure_provider.triggers.results.STABLE_LIMIT_SECONDS", 0.0)  # it has no files
        hospital.xray()
        (batch,) = hospital.plan()
        hospital.upload(batch)
        row = only_row(hospital)
        with hospital.ledger() as ledger:
            sent = ledger.pseudonyms.way_back(row.id).pseudonym
        body = {
            "success": True,
            "message": "Processed",
            "result": {
                "usecase": "qxr",
                "triage_status": "Routine",
                "report": {"impression": f"SIMULATED {sent.patient_id}", "findings": row.sent_uid, "findings_list": []},
                "files": {},
            },
        }
        hospital.control.inject(Answer(kind="results", status=200, json_body=body, times=None))

        hospital.collect(batch)

        stored = (hospital.root / only_row(hospital).store_path / "answer.json").read_text()
        assert hospital.result(only_row(hospital))["report"]["impression"] == "SIMULATED SIM-1"
        assert row.uid in stored
        assert row.sent_uid not in stored
        assert sent.patient_id not in stored


class TestWhatCannotBeDeidentified:
    BROKEN = bytes.fromhex("08004011 53510000 08000000") + b"NO ITEMS"
    """A sequence that holds no items."""

    def test_is_quarantined_with_its_reason_and_harms_no_other(self, hospital, monkeypatch):
        monkeypatch.setenv("AIRFLOW__QURE__ALLOW_QUARANTINED", "True")
        hospital.xray("x0", BurnedInAnnotation="YES")
        hospital.xray("x1", PatientID="SIM-7788", BodyPartExamined="SIM-7788")
        hospital.xray("x2", SpecificCharacterSet="ISO_IR 999")
        (path,) = (hospital.export / "x3" / "0.dcm" for _ in hospital.xray("x3"))
        before, after = path.read_bytes().split(b"\x10\0\x10\0PN")
        path.write_bytes(before + self.BROKEN + b"\x10\0\x10\0PN" + after)
        (good,) = hospital.xray("x4")

        summary = hospital.night()

        counts = summary["counts"]
        assert (counts["found"], counts["selected"], counts["quarantined"]) == (5, 1, 4)
        assert [row.uid for row in hospital.rows().values()] == [good.SOPInstanceUID]
        assert hospital.sent() == 1
        assert only_row(hospital).outcome == "ready"
        assert counts["reasons"] == {
            f"quarantined: {refusal.value}": 1
            for refusal in (Refusal.BURNED_IN, Refusal.LEFT_OVER, Refusal.UNDECODABLE, Refusal.BROKEN)
        }
        lines = [json.loads(line) for line in next(hospital.root.rglob("passed_over.jsonl")).read_text().splitlines()]
        assert {line["path"] for line in lines} == {f"x{number}/0.dcm" for number in range(4)}

    def test_needs_somebody_unless_the_site_says_that_it_is_in_order(self, hospital):
        hospital.xray("x0", BurnedInAnnotation="YES")
        hospital.xray("x1")

        with pytest.raises(NightUnresolvedError, match="1 cannot be de-identified: says that identifying text"):
            hospital.night()

        assert {row.outcome for row in hospital.rows().values()} == {"ready"}

    def test_keeps_its_whole_series_back(self, hospital, monkeypatch):
        monkeypatch.setenv("AIRFLOW__QURE__ALLOW_QUARANTINED", "True")
        hospital.xray()
        slices = hospital.ct(count=12)
        slices[4].BurnedInAnnotation = "YES"
        hospital.put("ct/4.dcm", slices[4])

        with pytest.raises(NightUnresolvedError, match="11 files were held back"):
            hospital.night()

        counts = hospital.summary()["counts"]
        assert (counts["found"], counts["selected"], counts["quarantined"]) == (13, 1, 12)
        assert hospital.sent() == 1
        assert only_row(hospital).outcome == "ready"

    def test_leaves_a_series_of_which_a_part_may_be_sent(self, hospital):
        slices = hospital.ct(count=11)
        slices[4].BurnedInAnnotation = "YES"
        hospital.put("ct/4.dcm", slices[4])

        (batch,) = hospital.plan(selection={"incomplete_ct": "send"})
        hospital.upload(batch)

        assert hospital.sent() == 10

    def test_lets_another_reconstruction_take_its_place(self, hospital):
        study, frame = generate_uid(), generate_uid()
        best = hospital.ct("thin", StudyInstanceUID=study, FrameOfReferenceUID=frame, SliceThickness=1.25)
        other = hospital.ct("thick", StudyInstanceUID=study, FrameOfReferenceUID=frame, BurnedInAnnotation="NO")
        hospital.plan()
        assert only_row(hospital).uid == best[0].SeriesInstanceUID
        for number, each in enumerate(best):
            each.BurnedInAnnotation = "YES"
            hospital.put(f"thin/{number}.dcm", each)

        hospital.new_run("scheduled__2")
        hospital.plan(catch_up=False)

        assert only_row(hospital).uid == other[0].SeriesInstanceUID

    def test_is_not_looked_at_where_it_would_not_be_sent_anyway(self, hospital):
        hospital.put("mr.dcm", image("MR", BurnedInAnnotation="YES"))
        hospital.xray()

        assert hospital.night()["counts"]["not_selected"] == 1

    def test_is_not_sent_either_where_only_the_upload_finds_out(self, hospital, monkeypatch):
        monkeypatch.setenv("AIRFLOW__QURE__IDENTITY_POLICY", "identified")
        (bad,) = hospital.xray("x0", BurnedInAnnotation="YES")
        (good,) = hospital.xray("x1")
        slices = hospital.ct()
        slices[4].BurnedInAnnotation = "YES"
        hospital.put("ct/4.dcm", slices[4])
        batches = hospital.plan()
        monkeypatch.setenv("AIRFLOW__QURE__IDENTITY_POLICY", "deidentify")

        failures = failures_of(hospital, batches)

        assert len(failures) == 2
        for failure in failures:
            assert "burned into its pixels" in str(failure)
            assert QureRetryPolicy().evaluate(failure, 1, 3).action.value == "fail"
        rows = hospital.rows()
        assert rows[bad.SOPInstanceUID].outcome == rows[slices[0].SeriesInstanceUID].outcome == "not uploaded"
        assert "burned into its pixels" in rows[bad.SOPInstanceUID].reason
        assert rows[good.SOPInstanceUID].uploaded_at
        assert [file.sop_instance_uid for file in hospital.control.received()] == [rows[good.SOPInstanceUID].sent_uid]

    def test_nor_is_a_file_that_was_replaced_after_the_plan(self, hospital):
        (film,) = hospital.xray()
        (batch,) = hospital.plan()
        film.PatientID = "SIM-2"
        hospital.put("xray/0.dcm", film)

        with pytest.raises(StepIncompleteError, match="changed since it was planned"):
            hospital.upload(batch)

        assert hospital.sent() == 0

    @pytest.mark.parametrize("key", ["", "c2hvcnQ=", "no Base64!"])
    def test_nothing_is_sent_without_a_key(self, hospital, monkeypatch, key):
        hospital.xray()
        (batch,) = hospital.plan()
        use_key(monkeypatch, key)

        with pytest.raises(QureSettingsError, match="secret key") as failure:
            hospital.upload(batch)

        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "fail"
        assert hospital.control.requests() == []

    def test_a_night_without_a_key_fails_before_anything_is_read(self, hospital, monkeypatch):
        hospital.xray()
        monkeypatch.delenv("AIRFLOW_CONN_QURE_DEIDENTIFY_DEFAULT")

        with pytest.raises(QureSettingsError, match="openssl rand -base64 32"):
            hospital.plan()

    def test_two_patients_of_one_pseudonym_are_never_both_sent(self, hospital, monkeypatch):
        hospital.xray("x0", PatientID="SIM-1")
        hospital.xray("x1", PatientID="SIM-2")
        monkeypatch.setattr(Pseudonymizer, "patient_id", lambda self, patient: "PSAME")

        (failure,) = failures_of(hospital, hospital.plan())

        assert "same pseudonym" in str(failure)
        assert hospital.sent() == 1

    def test_an_operator_without_a_way_back_refuses(self, hospital):
        hospital.xray()
        operator = QureUploadOperator(task_id="upload", paths=str(hospital.export))

        with pytest.raises(IdentityPolicyError, match="keeps no way back"):
            operator.execute(hospital.context())

        assert hospital.sent() == 0


class TestTheRightPatientOrNoOne:
    def other_patient(self, hospital):
        attributes = {"PatientID": "PAAAAAAAAAAAAAAA", "PatientName": "NAAAAAAAAAAAAAAA"}
        hospital.control.inject(OtherPatient(attributes=attributes, times=None))

    def test_an_object_of_another_pseudonym_is_never_taken_for_the_patients(self, hospital):
        hospital.xray()
        self.other_patient(hospital)
        (batch,) = hospital.plan()
        hospital.upload(batch)

        hospital.collect(batch)

        row = only_row(hospital)
        assert row.outcome == "failed"
        assert "another patient ID" in row.reason
        assert not (hospital.root / "studies").exists()

    def test_and_holds_the_whole_result_where_it_can_be_put_back_in_part(self, hospital, tmp_path):
        hospital.xray()
        (batch,) = hospital.plan()
        hospital.upload(batch)
        row = only_row(hospital)
        with hospital.ledger() as ledger:
            way_back, sent = ledger.pseudonyms.way_back(row.id), ledger.sent_uids(row.identity.study_instance_uid)
        other = image("CR", StudyInstanceUID=way_back.pseudonym.study_instance_uid, PatientID="PAAAAAAAAAAAAAAA")
        other.save_as(tmp_path / "sc.dcm")
        (tmp_path / "copies").mkdir()
        asset = Asset("sc", "sc.dcm", "application/dicom", 1, "")

        (returned,) = return_files([(asset, tmp_path / "sc.dcm")], way_back, tmp_path / "copies")

        assert returned.held is None
        contradiction = verify_objects([returned.path], row.identity, sent)
        assert contradiction in {Contradiction.PATIENT_ID, Contradiction.NAME, Contradiction.BIRTH_DATE}


class TestANewKey:
    OTHER = base64.b64encode(b"another key for tests, not used!").decode()

    def test_what_was_sent_with_the_old_one_still_comes_back(self, hospital, monkeypatch):
        hospital.xray(PatientName=NAME)
        (batch,) = hospital.plan()
        hospital.upload(batch)
        use_key(monkeypatch, self.OTHER)

        hospital.collect(batch)

        row = only_row(hospital)
        assert row.outcome == "ready"
        assert dict(objects_of(hospital, row))["sc"].PatientName == NAME

    def test_a_series_that_was_begun_with_the_old_one_is_sent_anew(self, hospital, monkeypatch, small_requests):
        hospital.ct(count=10)
        (batch,) = hospital.plan()
        hospital.control.inject(Answer(kind="upload", status=503, skip=2, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.upload(batch)
        before = only_row(hospital).sent_uid
        hospital.control.clear_faults()
        use_key(monkeypatch, self.OTHER)

        hospital.upload(batch)

        after = only_row(hospital).sent_uid
        assert after != before
        received = [file for file in hospital.control.received() if file.series_instance_uid == after]
        assert len({file.sop_instance_uid for file in received}) == 10
        hospital.compute(batch)
        hospital.collect(batch)
        assert only_row(hospital).outcome == "ready"

    def test_what_was_begun_as_it_is_is_sent_anew(self, hospital, monkeypatch, small_requests):
        slices = hospital.ct(count=10)
        (batch,) = hospital.plan()
        hospital.control.inject(Answer(kind="upload", status=503, skip=2, times=None))
        monkeypatch.setenv("AIRFLOW__QURE__IDENTITY_POLICY", "identified")
        with pytest.raises(StepIncompleteError):
            hospital.upload(batch)
        hospital.control.clear_faults()
        monkeypatch.setenv("AIRFLOW__QURE__IDENTITY_POLICY", "deidentify")

        hospital.upload(batch)

        row = only_row(hospital)
        assert row.sent_uid not in {None, slices[0].SeriesInstanceUID}
        received = {f.sop_instance_uid for f in hospital.control.received() if f.series_instance_uid == row.sent_uid}
        assert len(received) == 10


class TestARetry:
    def test_sends_only_what_is_lacking_under_the_same_pseudonyms(self, hospital, small_requests):
        hospital.ct(count=10)
        (batch,) = hospital.plan()
        hospital.control.inject(Answer(kind="upload", status=503, skip=2, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.upload(batch)
        hospital.control.clear_faults()

        hospital.upload(batch)

        received = [file for file in hospital.control.received() if file.registered]
        assert len({file.sop_instance_uid for file in received}) == len(received) == 10
        assert {file.series_instance_uid for file in received} == {only_row(hospital).sent_uid}
        hospital.compute(batch)
        hospital.collect(batch)
        assert only_row(hospital).outcome == "ready"


class TestADryRun:
    def lines(self, hospital):
        (batch,) = hospital.plan()
        operator = QureUploadBatchOperator(
            task_id="upload", batch=batch, store_root=str(hospital.root), show_only="upload"
        )
        operator.execute(hospital.context())
        (path,) = hospital.root.rglob("upload-*.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    def test_shows_what_becomes_of_each_tag(self, hospital):
        hospital.xray(StudyDescription="SIMULATED", OperatorsName="SIMULATED^OPERATOR")

        (line,) = self.lines(hospital)

        actions = {tag["keyword"]: tag["action"] for tag in line["tags"]}
        assert line["identity_policy"] == "deidentify"
        assert actions["PatientName"] == actions["PatientID"] == "replaced by a pseudonym"
        assert actions["SOPInstanceUID"] == "replaced by a keyed UID"
        assert actions["PatientBirthDate"] in {"removed", "emptied"}
        assert actions["OperatorsName"] in {"removed", "replaced by a dummy"}
        assert actions["Rows"] == "kept"
        assert actions["PatientIdentityRemoved"] == "added"
        assert hospital.sent() == 0

    def test_says_that_nothing_would_be_sent(self, hospital, monkeypatch):
        monkeypatch.setattr("qure_provider.operators.sending.Deidentifying.refused", lambda *_: {})
        hospital.xray(BurnedInAnnotation="YES")

        (line,) = self.lines(hospital)

        assert "nothing is sent" in line["tags"][0]["action"]


class TestTheConnection:
    def test_tells_keys_apart_and_nothing_of_the_key(self, monkeypatch):
        is_good, message = DeidentifyHook().test_connection()

        assert is_good
        assert Pseudonymizer(base64.b64decode(KEY)).key_id in message
        assert KEY not in message

    @pytest.mark.parametrize(
        ("key", "profile", "problem"),
        [
            ("c2hvcnQ=", "", "has 5 bytes, and 32 random ones are needed"),
            (KEY, "{", "must be a JSON object"),
            (KEY, '{"keep": ["PatientName"]}', "never leaves as it is"),
        ],
    )
    def test_says_what_is_wrong(self, monkeypatch, key, profile, problem):
        use_key(monkeypatch, key, profile=profile)

        is_good, message = DeidentifyHook().test_connection()

        assert not is_good
        assert problem in message
        assert "qure_deidentify_default" in message

    def test_says_that_there_is_none(self, monkeypatch):
        monkeypatch.delenv("AIRFLOW_CONN_QURE_DEIDENTIFY_DEFAULT")

        is_good, message = DeidentifyHook().test_connection()

        assert not is_good
        assert "openssl rand -base64 32" in message

    def test_its_profile_is_followed(self, hospital, monkeypatch):
        use_key(monkeypatch, profile={"remove": ["BodyPartExamined"]})
        hospital.xray()
        (batch,) = hospital.plan()

        hospital.upload(batch)

        (file,) = hospital.control.received()
        assert "BodyPartExamined" not in pydicom.dcmread(file.path)
