"""The operators on their own: plain paths and UIDs, no store and no ledger."""

import json
import os
import time

import pytest
import requests
from pipeline_kit import State, image

from qure_provider.api.errors import QureRejectedError, QureSettingsError
from qure_provider.emulator.model import Answer, MissingFiles
from qure_provider.hooks.upload import UploadRun
from qure_provider.operators import fetch as fetch_module
from qure_provider.operators.compute import QureComputeOperator
from qure_provider.operators.fetch import QureFetchResultsOperator
from qure_provider.operators.upload import QureUploadOperator
from qure_provider.retries import QureRetryPolicy, StepIncompleteError
from qure_provider.settings import IdentityPolicyError


@pytest.fixture(autouse=True)
def _no_ledger(hospital):
    yield
    assert not hospital.root.exists()


class TestUpload:
    def upload(self, hospital, *paths, state=None, **arguments):
        operator = QureUploadOperator(task_id="upload", paths=[str(path) for path in paths], **arguments)
        return operator.execute(hospital.context(state))

    def test_it_returns_what_results_can_be_asked_for(self, hospital):
        films = hospital.xray(images=2)
        series = hospital.ct()[0].SeriesInstanceUID
        sent = self.upload(hospital, hospital.export)
        assert sorted(sent["xray"]) == sorted(film.SOPInstanceUID for film in films)
        assert sent["ct"] == [series]
        assert sent["files"] == 12
        assert len(hospital.control.received()) == 12

    def test_files_and_folders_can_be_named(self, hospital):
        hospital.xray("a", images=2)
        (film,) = hospital.xray("b")
        sent = self.upload(hospital, hospital.export / "a/1.dcm", hospital.export / "b")
        assert sent["files"] == 2
        assert film.SOPInstanceUID in sent["xray"]

    def test_what_is_not_there_is_said_so_without_its_name(self, hospital):
        with pytest.raises(FileNotFoundError, match="neither a file nor a folder") as failure:
            self.upload(hospital, "/no/SIMULATED^PATIENT.dcm")
        assert "PATIENT" not in str(failure.value)

    def test_nothing_to_upload_fails_when_the_dag_is_parsed(self):
        with pytest.raises(ValueError, match="at least one"):
            QureUploadOperator(task_id="upload", paths=[])

    def test_undecided_about_identity_it_sends_nothing(self, hospital, monkeypatch):
        monkeypatch.delenv("AIRFLOW__QURE__IDENTITY_POLICY")
        hospital.xray()
        with pytest.raises(IdentityPolicyError):
            self.upload(hospital, hospital.export)
        assert hospital.control.requests() == []
        assert self.upload(hospital, hospital.export, identity_policy="identified")["files"] == 1

    def test_a_retry_sends_only_what_was_not_acknowledged(self, hospital, monkeypatch):
        fields = json.loads(os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
        fields["extra"] |= {"max_request_bytes": 6000, "parallel_uploads": 1}
        monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))
        hospital.ct()
        hospital.control.inject(Answer(kind="upload", status=503, skip=2, times=None))
        state = State()
        with pytest.raises(StepIncompleteError) as failure:
            self.upload(hospital, hospital.export, state=state)
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "default"
        hospital.control.clear_faults()

        assert self.upload(hospital, hospital.export, state=state)["files"] == 10

        assert len([file for file in hospital.control.received() if file.registered]) == 10
        assert state == {}

    def test_a_worker_that_was_killed_left_its_progress(self, hospital, monkeypatch):
        fields = json.loads(os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
        fields["extra"] |= {"max_request_bytes": 6000, "parallel_uploads": 1}
        monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))
        hospital.ct()
        real, state, answers = UploadRun._take, State(), []

        def die(self, files, answer):
            if len(answers) == 2:
                raise SystemExit("killed")
            answers.append(files)
            real(self, files, answer)

        with monkeypatch.context() as killing:
            killing.setattr(UploadRun, "_take", die)
            with pytest.raises(SystemExit):
                self.upload(hospital, hospital.export, state=state)
        acknowledged = {file.sop_instance_uid for files in answers for file in files}
        before = len(hospital.control.received())

        self.upload(hospital, hospital.export, state=state)

        again = {file.sop_instance_uid for file in hospital.control.received()[before:]}
        assert again.isdisjoint(acknowledged)
        assert len(again | acknowledged) == 10

    def test_what_it_keeps_between_tries_names_nobody(self, hospital):
        (film,) = hospital.xray()
        hospital.xray("b")
        hospital.control.inject(
            Answer(kind="upload", uid=film.SOPInstanceUID, status=400, json_body={"message": "no"}, times=None)
        )
        state = State()
        with pytest.raises(StepIncompleteError):
            self.upload(hospital, hospital.export, state=state)
        text = json.dumps(state)
        assert len(state["acknowledged"]) == 1
        assert film.SOPInstanceUID not in text

    def test_a_bad_file_is_told_after_the_good_ones_went(self, hospital):
        (film,) = hospital.xray()
        (hospital.export / "SIMULATED^PATIENT.dcm").write_bytes(b"not DICOM")
        with pytest.raises(StepIncompleteError, match="failed for 1 of 2") as failure:
            self.upload(hospital, hospital.export)
        assert [file.sop_instance_uid for file in hospital.control.received()] == [film.SOPInstanceUID]
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "fail"
        assert "PATIENT" not in str(failure.value)

    def test_what_the_service_took_is_known_though_the_task_failed(self, hospital, monkeypatch):
        fields = json.loads(os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
        fields["extra"] |= {"max_request_bytes": 6000, "parallel_uploads": 1}
        monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))
        whole, broken = hospital.ct("whole"), hospital.ct("broken")
        (film,) = hospital.xray()
        hospital.control.inject(
            Answer(kind="upload", uid=broken[3].SOPInstanceUID, status=400, json_body={"message": "no"}, times=None)
        )
        with pytest.raises(StepIncompleteError):
            self.upload(hospital, hospital.export)
        taken = len([file for file in hospital.control.received() if file.registered])
        assert hospital.pushed["accepted"] == {
            "xray": [film.SOPInstanceUID],
            "ct": [whole[0].SeriesInstanceUID],
            "files": taken,
        }

    def test_a_text_beside_the_images_of_a_folder_is_no_failure(self, hospital):
        hospital.xray()
        (hospital.export / "Export log.txt").write_text("SIMULATED")
        assert self.upload(hospital, hospital.export)["files"] == 1

    def test_one_that_was_named_is(self, hospital):
        note = hospital.export / "Export log.txt"
        note.write_text("SIMULATED")
        with pytest.raises(StepIncompleteError, match="not DICOM"):
            self.upload(hospital, note)

    @pytest.mark.parametrize("modality", ["MR", None])
    def test_nothing_to_send_is_no_success(self, hospital, modality):
        if modality:
            hospital.put("scan.dcm", image(modality))
        with pytest.raises(QureRejectedError, match="nothing to upload: check 'paths' and 'selection'") as failure:
            self.upload(hospital, hospital.export)
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "fail"
        assert hospital.control.requests() == []

    def test_selection_rules_apply(self, hospital):
        hospital.xray()
        hospital.ct()
        hospital.put("mr.dcm", image("MR"))
        sent = self.upload(hospital, hospital.export, selection={"modalities": ["CT"]})
        assert (sent["xray"], len(sent["ct"])) == ([], 1)


class TestCompute:
    @pytest.fixture
    def series(self, hospital):
        uid = hospital.ct()[0].SeriesInstanceUID
        QureUploadOperator(task_id="upload", paths=str(hospital.export)).execute(hospital.context())
        return uid

    def compute(self, hospital, uids, **arguments):
        operator = QureComputeOperator(task_id="compute", series_instance_uids=uids, **arguments)
        return operator.execute(hospital.context())

    def test_one_that_was_queued_before_counts_as_done(self, hospital, series):
        assert self.compute(hospital, series) == {"queued": 1, "already_queued": 0}
        assert self.compute(hospital, [series]) == {"queued": 0, "already_queued": 1}

    def test_it_can_be_asked_for_again(self, hospital, series):
        self.compute(hospital, series)
        assert self.compute(hospital, series, recompute=True) == {"queued": 1, "already_queued": 0}

    def test_one_that_is_not_there_yet_holds_back_nobody_and_is_retried(self, hospital, series):
        with pytest.raises(StepIncompleteError, match="failed for 1 of 2") as failure:
            self.compute(hospital, ["1.2.3", series])
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "default"
        assert hospital.control.count("compute", status=200) == 1

    def test_a_wrong_source_fails_at_once(self, hospital, series):
        hospital.control.configure(source="another")
        with pytest.raises(QureSettingsError, match="Source"):
            self.compute(hospital, series)

    def test_nothing_to_compute_is_done(self, hospital):
        assert self.compute(hospital, []) == {"queued": 0, "already_queued": 0}

    def test_recompute_may_come_from_a_template(self, hospital, series):
        self.compute(hospital, series)
        assert self.compute(hospital, series, recompute="False") == {"queued": 0, "already_queued": 1}


class TestFetch:
    @pytest.fixture
    def film(self, hospital):
        (film,) = hospital.xray()
        QureUploadOperator(task_id="upload", paths=str(hospital.export)).execute(hospital.context())
        return film.SOPInstanceUID

    @pytest.fixture
    def folder(self, tmp_path):
        return tmp_path / "results"

    def fetch(self, hospital, folder, *uids, **arguments):
        operator = QureFetchResultsOperator(
            task_id="fetch",
            **{
                "destination": str(folder),
                "sop_instance_uids": list(uids),
                "settle_seconds": 0.05,
                **arguments,
            },
        )
        return operator.execute(hospital.context())

    def test_it_brings_the_files_and_says_what_each_result_is(self, hospital, folder, film):
        returned = self.fetch(hospital, folder, film)
        assert returned[film]["outcome"] == "ready"
        assert returned[film]["meaning"] == "no finding of this product"
        listing = json.loads((folder / film / "result.json").read_text(encoding="utf-8"))
        assert returned[film]["files"] == len(listing["assets"]) > 5
        assert (folder / film / "answer.json").is_file()
        for asset in listing["assets"]:
            assert (folder / returned[film]["folder"] / asset["name"]).stat().st_size == asset["size"]

    def test_a_file_that_comes_late_is_added(self, hospital, folder, film):
        hospital.control.plan(film, kinds=("sc_thumbnail", "report_pdf"))
        hospital.control.inject(MissingFiles(kinds=("report_pdf",)))
        assert self.fetch(hospital, folder, film)[film]["files"] == 2
        assert hospital.control.count("asset", status=200) == 2

    def test_one_that_says_something_else_is_fetched_anew_and_looked_at_again(self, hospital, folder, film):
        hospital.control.plan(film, findings=[], kinds=("report_sr",))
        headers = {**hospital.emulator.headers, "User-Agent": "test"}
        old = requests.get(f"{hospital.emulator.base_url}/results/v2/{film}", headers=headers, timeout=10).json()
        hospital.control.plan(film, findings=["pneumothorax"], kinds=("report_sr",))
        hospital.control.inject(Answer(kind="results", status=200, json_body=old))
        hospital.control.forget_requests()
        assert self.fetch(hospital, folder, film)[film]["meaning"] == "abnormal"
        assert (hospital.control.count("results"), hospital.control.count("asset")) == (3, 2)

    def test_one_without_files_is_looked_at_until_it_has_some(self, hospital, folder, film):
        hospital.control.plan(film, kinds=("report_pdf",), delays={"report_pdf": 1.0})
        assert self.fetch(hospital, folder, film)[film]["files"] == 1

    def test_a_set_that_never_stops_growing_is_taken_after_a_limit(self, hospital, folder, film, monkeypatch):
        assert fetch_module.STABLE_LIMIT_SECONDS == 300
        monkeypatch.setattr(fetch_module, "STABLE_LIMIT_SECONDS", 0.3)
        hospital.control.plan(film, kinds=("sc_thumbnail", "report_pdf"))
        for number in range(400):
            hospital.control.inject(MissingFiles(kinds=(("sc_thumbnail", "report_pdf")[number % 2],)))
        begun = time.monotonic()
        assert self.fetch(hospital, folder, film)[film]["files"] == 1
        assert time.monotonic() - begun < 60
        hospital.control.clear_faults()

    def test_one_that_is_not_ready_fails_after_the_others_were_fetched(self, hospital, folder, film):
        (other,) = hospital.xray("other")
        QureUploadOperator(task_id="upload", paths=str(hospital.export / "other")).execute(hospital.context())
        hospital.control.plan(other.SOPInstanceUID, outcome="stuck")
        with pytest.raises(StepIncompleteError, match="no result yet: pending") as failure:
            self.fetch(hospital, folder, other.SOPInstanceUID, film)
        assert "1 of 2" in str(failure.value)
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "default"
        assert (folder / film / "result.json").is_file()

    def test_one_that_fails_at_a_later_look_is_counted_once(self, hospital, folder, film):
        hospital.control.inject(Answer(kind="results", status=500, skip=1, times=None))
        with pytest.raises(StepIncompleteError, match="failed for 1 of 1"):
            self.fetch(hospital, folder, film)

    @pytest.mark.parametrize("planned", ["invalid", "unsupported"])
    def test_an_image_that_is_not_for_it_has_nothing_to_fetch(self, hospital, folder, film, planned):
        hospital.control.plan(film, outcome=planned)
        returned = self.fetch(hospital, folder, film)[film]
        assert returned == {"outcome": planned, "meaning": "unknown", "folder": "", "files": 0}
        assert not (folder / film).exists()

    def test_a_retry_fetches_only_what_is_missing(self, hospital, folder, film):
        self.fetch(hospital, folder, film)
        hospital.control.forget_requests()
        self.fetch(hospital, folder, film)
        assert hospital.control.count("asset") == 0

    def test_what_can_be_no_uid_leads_nowhere(self, hospital, folder):
        with pytest.raises(StepIncompleteError) as failure:
            self.fetch(hospital, folder, "../../etc")
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "fail"
        assert not folder.exists() or not list(folder.rglob("*.json"))

    def test_without_a_destination_it_fails_when_the_dag_is_parsed(self):
        with pytest.raises(ValueError, match="destination"):
            QureFetchResultsOperator(task_id="fetch", destination="")
