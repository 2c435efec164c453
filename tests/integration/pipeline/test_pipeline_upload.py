import json
import os
import time
from dataclasses import replace

import pydicom
import pytest
from pipeline_kit import image
from pydicom.uid import generate_uid

from qure_provider.api.errors import QureSettingsError, QureTransientError
from qure_provider.emulator.model import Answer, LicenseExpired, LoseFiles, Reset
from qure_provider.hooks.qure import QureHook
from qure_provider.hooks.upload import UploadFailure, UploadReport, UploadRun
from qure_provider.ledger.doubts import STALE
from qure_provider.ledger.ledger import LeaseLostError
from qure_provider.operators.summarize import NightUnresolvedError
from qure_provider.retries import QureRetryPolicy, StepIncompleteError


@pytest.fixture
def small_requests(monkeypatch):
    """Two slices fill a request, and requests go out one after the other."""
    fields = json.loads(os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
    fields["extra"] |= {"max_request_bytes": 6000, "parallel_uploads": 1}
    monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))


def registered(hospital):
    return [file.sop_instance_uid for file in hospital.control.received() if file.registered]


class TestARetryUploadsOnlyTheRemainder:
    def test_after_the_service_went_away_in_the_middle(self, hospital, small_requests):
        hospital.ct(count=10)
        (batch,) = hospital.plan()
        hospital.control.inject(Answer(kind="upload", status=503, skip=2, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.upload(batch)
        before = registered(hospital)
        assert 0 < len(before) < 10
        hospital.control.clear_faults()
        hospital.control.forget_requests()

        hospital.upload(batch)

        after = registered(hospital)[len(before) :]
        assert len(before) + len(after) == 10
        assert set(before).isdisjoint(after)

    def test_after_a_worker_was_killed_in_the_middle(self, hospital, small_requests, monkeypatch):
        """The process is gone: nothing runs any more, whatever was acknowledged is in the ledger."""
        hospital.ct(count=10)
        (batch,) = hospital.plan()
        real = UploadRun._take
        answers = []

        def die(self, files, answer):
            if len(answers) == 2:
                raise SystemExit("killed")
            answers.append(answer)
            real(self, files, answer)

        with monkeypatch.context() as killing:
            killing.setattr(UploadRun, "_take", die)
            with pytest.raises(SystemExit):
                hospital.upload(batch)
        with hospital.ledger() as ledger:
            (row,) = hospital.rows().values()
            acknowledged = ledger.acknowledged([row.id])[row.id]
        assert 0 < len(acknowledged) < 10
        sent = len(hospital.control.received())

        hospital.upload(batch)

        again = {file.sop_instance_uid for file in hospital.control.received()[sent:]}
        assert again.isdisjoint(acknowledged)
        assert len(acknowledged | again) == 10

    def test_and_one_that_has_nothing_left_to_do_asks_nothing(self, hospital):
        hospital.ct()
        (batch,) = hospital.plan()
        hospital.upload(batch)
        hospital.control.forget_requests()
        hospital.upload(batch)
        assert hospital.control.requests() == []


class TestOneBadSeriesNeverHoldsBackTheOthers:
    def plan(self, hospital, **arguments):
        """Three films and a CT, in one batch for each route."""
        films = [hospital.xray(f"x{number}")[0] for number in range(3)]
        series = hospital.ct()[0].SeriesInstanceUID
        return films, series, hospital.plan(max_batches=2, **arguments)

    def process(self, hospital, batches):
        failures = []
        for batch in batches:
            for step in (hospital.upload, hospital.compute, hospital.collect):
                if step == hospital.compute and batch["route"] == "xray":
                    continue
                try:
                    step(batch)
                except StepIncompleteError as failure:
                    failures.append(str(failure))
        return failures

    def test_one_that_the_service_refuses(self, hospital):
        films, series, batches = self.plan(hospital)
        refused = films[1].SOPInstanceUID
        hospital.control.inject(Answer(kind="upload", uid=refused, status=400, json_body={"message": "no"}, times=None))

        failures = self.process(hospital, batches)

        rows = hospital.rows()
        assert len(failures) == 1
        assert "Uploading failed for 1 of 3" in failures[0]
        assert {rows[film.SOPInstanceUID].outcome for film in (films[0], films[2])} == {"ready"}
        assert rows[series].outcome == "ready"
        assert rows[refused].outcome == "not uploaded"
        assert "no DICOM file in the request" in rows[refused].reason
        with pytest.raises(NightUnresolvedError, match=r"not uploaded\. upload: "):
            hospital.summarize()

    def test_one_whose_file_is_gone_or_unreadable(self, hospital):
        films, series, batches = self.plan(hospital)
        (hospital.export / "x1/0.dcm").unlink()

        failures = self.process(hospital, batches)

        rows = hospital.rows()
        assert len(failures) == 1
        assert rows[films[1].SOPInstanceUID].outcome == "not uploaded"
        assert [rows[uid].outcome for uid in (films[0].SOPInstanceUID, films[2].SOPInstanceUID, series)] == [
            "ready"
        ] * 3
        assert "x1" not in failures[0]

    def test_one_that_is_stuck(self, hospital):
        films, series, batches = self.plan(hospital, wait_seconds=2)
        hospital.control.plan(films[1].SOPInstanceUID, outcome="stuck")

        failures = self.process(hospital, batches)

        rows = hospital.rows()
        assert failures == []
        assert rows[films[1].SOPInstanceUID].outcome == "timed out"
        assert [rows[uid].outcome for uid in (films[0].SOPInstanceUID, films[2].SOPInstanceUID, series)] == [
            "ready"
        ] * 3

    def test_one_that_cannot_be_computed(self, hospital):
        bad = hospital.ct("bad")[0].SeriesInstanceUID
        good = hospital.ct("good")[0].SeriesInstanceUID
        hospital.control.inject(Answer(kind="compute", uid=bad, status=500, times=None))
        batches = hospital.plan(wait_seconds=2)

        failures = self.process(hospital, batches)

        assert len(failures) == 1
        assert hospital.rows()[good].outcome == "ready"
        assert hospital.rows()[bad].outcome == "not computed"


class TestWhatTheServiceLost:
    def test_a_series_of_which_it_lost_files_is_not_taken_for_uploaded(self, hospital, monkeypatch):
        """All was acknowledged, and the service's own counts contradicted it in the end."""
        hospital.ct()
        (batch,) = hospital.plan()
        real = UploadRun.report

        def contradict(self, traffic):
            report = real(self, traffic)
            lost, *kept = report.acknowledged
            error = QureTransientError("The service holds fewer files of a series than it acknowledged.")
            return replace(report, acknowledged=tuple(kept), failed=(UploadFailure(lost, error),))

        with monkeypatch.context() as losing:
            losing.setattr(UploadRun, "report", contradict)
            with pytest.raises(StepIncompleteError, match="holds fewer files"):
                hospital.upload(batch)
        (row,) = hospital.rows().values()
        assert (row.outcome, row.uploaded_at) == ("not uploaded", None)
        hospital.compute(batch)
        assert hospital.control.count("compute") == 0
        sent = hospital.sent()

        hospital.upload(batch)

        assert hospital.sent() == sent + 1
        assert hospital.rows()[row.uid].uploaded_at

    def test_files_that_it_does_not_acknowledge_are_not_taken_for_uploaded(self, hospital):
        hospital.ct()
        (batch,) = hospital.plan()
        hospital.control.inject(LoseFiles(count=1, acknowledged=False, times=None))
        with pytest.raises(StepIncompleteError, match="did not acknowledge"):
            hospital.upload(batch)
        (row,) = hospital.rows().values()
        assert (row.outcome, row.uploaded_at) == ("not uploaded", None)
        hospital.control.clear_faults()
        hospital.upload(batch)
        assert hospital.control.resources(row.uid)[0].images == 10

    def test_an_expired_license_is_told_and_not_retried(self, hospital):
        hospital.xray()
        (batch,) = hospital.plan()
        hospital.control.inject(LicenseExpired(times=None))
        with pytest.raises(StepIncompleteError, match="license has expired") as failure:
            hospital.upload(batch)
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "fail"

    @pytest.mark.parametrize("parallel", [1, 4])
    def test_a_series_is_computed_only_when_the_service_says_that_it_holds_all_of_it(
        self, hospital, monkeypatch, parallel
    ):
        """It acknowledges files that it loses; a retry that sends the rest must not take the series for whole."""
        fields = json.loads(os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
        fields["extra"] |= {"max_request_bytes": 8600, "parallel_uploads": parallel}
        monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))
        hospital.ct(count=12)
        (batch,) = hospital.plan()
        hospital.control.inject(LoseFiles(count=1, acknowledged=True, skip=3, times=12))

        failures = []
        for _ in range(8):
            try:
                hospital.upload(batch)
                break
            except StepIncompleteError as failure:
                failures.append(failure)
                (row,) = hospital.rows().values()
                assert (row.outcome, row.uploaded_at) == ("not uploaded", None)
                hospital.compute(batch)
                assert hospital.control.count("compute") == 0

        assert failures
        assert all(QureRetryPolicy().evaluate(failure, 1, 3).action.value != "fail" for failure in failures)
        hospital.compute(batch)
        assert hospital.control.resources(row.uid)[0].images == 12

    def test_a_series_that_it_never_holds_whole_says_so(self, hospital, small_requests):
        """The images that an earlier try had acknowledged are gone when the rest is there."""
        hospital.ct(count=10)
        (batch,) = hospital.plan()
        with hospital.ledger() as ledger:
            (row,) = hospital.rows().values()
            ledger.acknowledge((row.id, uid) for uid in sorted(self.images(hospital))[:2])

        with pytest.raises(StepIncompleteError, match="holds 8 images of a series of which it acknowledged 10"):
            hospital.upload(batch)

        (row,) = hospital.rows().values()
        assert (row.outcome, row.uploaded_at) == ("not uploaded", None)
        assert "not computed" in row.reason
        hospital.upload(batch)
        assert len(set(registered(hospital))) == 10

    @staticmethod
    def images(hospital):
        return [pydicom.dcmread(path).SOPInstanceUID for path in hospital.export.rglob("*.dcm")]


class TestAFileThatIsReplacedAfterThePlan:
    """The plan says whose it is: another file in its place would be sent under that name."""

    def replace(self, hospital, name):
        """Put another patient's image of the same UIDs and length in a file's place."""
        path = hospital.export / name
        old = pydicom.dcmread(path)
        keep = {key: old[key].value for key in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")}
        hospital.put(name, image("CR", PatientName="SIMULATED^ANOTHER", PatientID="SIM-2", InstanceNumber=1, **keep))

    def test_is_not_sent_and_harms_no_other(self, hospital):
        (film,), (other,) = hospital.xray("x0"), hospital.xray("x1")
        hospital.ct()
        (batch,) = (batch for batch in hospital.plan(max_batches=2) if batch["route"] == "xray")
        before = (hospital.export / "x0/0.dcm").stat()
        self.replace(hospital, "x0/0.dcm")
        assert (hospital.export / "x0/0.dcm").stat().st_size == before.st_size

        with pytest.raises(StepIncompleteError, match="changed since it was planned") as failure:
            hospital.upload(batch)

        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "fail"
        rows = hospital.rows()
        assert registered(hospital) == [other.SOPInstanceUID]
        assert rows[film.SOPInstanceUID].outcome == "not uploaded"
        assert "run the plan again" in rows[film.SOPInstanceUID].reason
        assert rows[other.SOPInstanceUID].uploaded_at

    def test_goes_out_as_what_it_is_with_the_next_plan(self, hospital):
        (film,) = hospital.xray("x0")
        (batch,) = hospital.plan()
        self.replace(hospital, "x0/0.dcm")
        with pytest.raises(StepIncompleteError):
            hospital.upload(batch)
        hospital.new_run("scheduled__2")

        (batch,) = hospital.plan()
        hospital.upload(batch)

        row = hospital.rows()[film.SOPInstanceUID]
        assert row.uploaded_at
        assert row.identity.patient_id == "SIM-2"

    def test_one_slice_of_a_series_keeps_the_series_back(self, hospital):
        slices = hospital.ct()
        (batch,) = hospital.plan()
        (hospital.export / "ct/3.dcm").touch()

        with pytest.raises(StepIncompleteError, match="changed since it was planned"):
            hospital.upload(batch)

        hospital.compute(batch)
        assert slices[3].SOPInstanceUID not in registered(hospital)
        assert hospital.control.count("compute") == 0


class TestTheThreeKindsOfErrors:
    def test_a_wrong_token_fails_at_once(self, hospital):
        hospital.xray()
        (batch,) = hospital.plan()
        hospital.control.configure(token="another")
        with pytest.raises(QureSettingsError, match="token") as failure:
            hospital.upload(batch)
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "fail"
        assert hospital.control.count("upload") == 1

    def test_a_wait_that_the_service_asks_for_is_kept(self, hospital):
        hospital.xray()
        (batch,) = hospital.plan()
        busy = Answer(kind="upload", status=429, headers={"Retry-After": "120"}, times=None)
        hospital.control.inject(busy)
        with pytest.raises(StepIncompleteError) as failure:
            hospital.upload(batch)
        decision = QureRetryPolicy().evaluate(failure.value, 1, 3)
        assert (decision.action.value, decision.retry_delay.total_seconds()) == ("retry", 120)

    def test_what_may_pass_is_retried(self, hospital):
        hospital.xray()
        (batch,) = hospital.plan()
        hospital.control.inject(Reset(kind="upload", times=None))
        with pytest.raises(StepIncompleteError) as failure:
            hospital.upload(batch)
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "default"
        hospital.control.clear_faults()
        hospital.upload(batch)
        assert len(registered(hospital)) == 1


class TestTwoMayRunAtOnce:
    def test_an_orphan_stops_when_a_newer_try_took_the_batch(self, hospital, small_requests, monkeypatch):
        hospital.ct(count=10)
        (batch,) = hospital.plan()
        real = UploadRun._take

        def overtake(self, files, answer):
            monkeypatch.setattr(UploadRun, "_take", real)
            with hospital.ledger() as ledger:
                ledger.take_lease(batch["batch_id"], "the newer try")
            real(self, files, answer)

        monkeypatch.setattr(UploadRun, "_take", overtake)
        with pytest.raises(LeaseLostError, match="Another try"):
            hospital.upload(batch)
        (row,) = hospital.rows().values()
        with hospital.ledger() as ledger:
            assert ledger.acknowledged([row.id])[row.id] == set()

        hospital.upload(batch)
        assert hospital.rows()[row.uid].uploaded_at

    def test_an_orphan_computes_nothing_more(self, hospital, monkeypatch):
        hospital.ct("a")
        hospital.ct("b")
        batch, other = hospital.plan()
        hospital.upload(batch)
        hospital.upload(other)
        hospital.sql("UPDATE planned SET batch_id = :batch", batch=batch["batch_id"])
        real = QureHook.compute

        def overtake(self, *arguments, **options):
            with hospital.ledger() as ledger:
                ledger.take_lease(batch["batch_id"], "the newer try")
            return real(self, *arguments, **options)

        monkeypatch.setattr(QureHook, "compute", overtake)
        with pytest.raises(LeaseLostError):
            hospital.compute(batch)
        assert hospital.control.count("compute") == 1


class TestCompute:
    def test_a_series_is_computed_only_when_all_of_it_is_there(self, hospital, small_requests):
        hospital.ct()
        (batch,) = hospital.plan()
        hospital.control.inject(Answer(kind="upload", status=503, skip=2, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.upload(batch)
        hospital.compute(batch)
        assert hospital.control.count("compute") == 0

    def test_what_is_doubted_is_sent_again_though_the_worker_dies_meanwhile(self, hospital, monkeypatch):
        series = hospital.ct()[0].SeriesInstanceUID
        (batch,) = hospital.plan()

        def killed(hook, files, *, on_acknowledged, on_doubted):
            sent = list(files)
            on_acknowledged(sent)
            on_doubted(sent)
            raise KeyboardInterrupt

        with monkeypatch.context() as dying:
            dying.setattr(QureHook, "upload", killed)
            with pytest.raises(KeyboardInterrupt):
                hospital.upload(batch)
        assert hospital.rows()[series].uploaded_at is None
        hospital.upload(batch)
        assert hospital.sent() == 10

    def test_one_that_was_queued_before_is_done(self, hospital):
        series = hospital.ct()[0].SeriesInstanceUID
        (batch,) = hospital.plan()
        hospital.upload(batch)
        hospital.compute(batch)
        hospital.sql("UPDATE resources SET computed_at = NULL")
        hospital.compute(batch)
        assert hospital.control.count("compute", status=304) == 1
        row = hospital.rows()[series]
        assert row.computed_at
        assert row.doubt == ""

    def test_a_series_that_the_service_does_not_hold_yet_is_retried(self, hospital):
        series = hospital.ct()[0].SeriesInstanceUID
        (batch,) = hospital.plan()
        hospital.upload(batch)
        hospital.control.inject(Answer(kind="compute", status=404, json_body={"sucess": False}))
        with pytest.raises(StepIncompleteError, match="was its upload finished") as failure:
            hospital.compute(batch)
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "default"
        hospital.compute(batch)
        assert hospital.rows()[series].computed_at

    def test_a_wrong_source_fails_at_once(self, hospital):
        hospital.ct()
        (batch,) = hospital.plan()
        hospital.upload(batch)
        hospital.control.configure(source="another")
        with pytest.raises(QureSettingsError, match="Source"):
            hospital.compute(batch)


def test_an_image_of_another_kind_in_the_folder_is_not_sent(hospital):
    (film,) = hospital.xray()
    hospital.put("mr.dcm", image("MR", StudyInstanceUID=film.StudyInstanceUID))
    hospital.night()
    assert registered(hospital) == [film.SOPInstanceUID]


class TestWhoComesSecond:
    """An upload that ends after another one did the same work does not undo it."""

    def overtaken(self, hospital, monkeypatch, meanwhile, ending):
        real = QureHook.upload

        def slow(hook, files, **arguments):
            monkeypatch.setattr(QureHook, "upload", real)
            meanwhile()
            return ending(hook, list(files), arguments)

        monkeypatch.setattr(QureHook, "upload", slow)

    def test_an_orphan_whose_requests_failed(self, hospital, monkeypatch):
        series = hospital.ct()[0].SeriesInstanceUID
        (batch,) = hospital.plan()
        self.overtaken(
            hospital,
            monkeypatch,
            lambda: hospital.process([batch]),
            lambda hook, files, _: UploadReport(
                failed=tuple(UploadFailure(file, QureTransientError("reset")) for file in files)
            ),
        )
        with pytest.raises(LeaseLostError):
            hospital.upload(batch)
        row = hospital.rows()[series]
        with hospital.ledger() as ledger:
            sent = ledger.sent_uids(row.identity.study_instance_uid)
        assert (row.outcome, len(sent)) == ("ready", 11)

    def test_another_run_of_the_same_night(self, hospital, monkeypatch):
        series = hospital.ct()[0].SeriesInstanceUID
        (one,) = hospital.plan()
        first = hospital.run

        def second_run():
            hospital.new_run("manual__2")
            hospital.night()
            hospital.run = first

        def go_on(hook, files, arguments):
            return hook.upload(files, **arguments)

        self.overtaken(hospital, monkeypatch, second_run, go_on)
        hospital.process([one])
        hospital.summarize()
        row = hospital.rows()[series]
        assert (row.outcome, row.is_resolved) == ("ready", True)


def test_images_owed_from_two_nights_under_one_folder_are_all_sent(hospital):
    study, series = generate_uid(), generate_uid()
    films = [image("CR", StudyInstanceUID=study, SeriesInstanceUID=series) for _ in range(2)]
    for number, film in enumerate(films):
        hospital.new_run(f"scheduled__{number}")
        hospital.put(f"x/{number}.dcm", film)
        hospital.plan(files=[f"x/{number}.dcm"], catch_up=False)
        with pytest.raises(NightUnresolvedError):
            hospital.summarize()
    hospital.new_run("scheduled__2")
    hospital.xray("tonight")
    hospital.night(files=["tonight/0.dcm"])
    assert {row.outcome for row in hospital.rows().values()} == {"ready"}
    assert {file.sop_instance_uid for file in hospital.control.received()} == set(hospital.rows())


class TestACtThatWentInParts:
    """The service may compute by itself what came first, in the pause."""

    @pytest.fixture
    def batch(self, hospital, monkeypatch):
        hospital.control.configure(stability=True, stability_seconds=0.2)
        fields = json.loads(os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
        fields["extra"]["max_request_bytes"] = 12_000
        monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))
        hospital.ct(count=20)
        (batch,) = hospital.plan()
        hospital.control.inject(Answer(kind="upload", status=503, skip=2, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.upload(batch)
        time.sleep(0.3)
        hospital.control.clear_faults()
        hospital.upload(batch)
        return batch

    def test_is_computed_again(self, hospital, batch):
        hospital.compute(batch)
        hospital.collect(batch)
        hospital.summarize()
        (row,) = hospital.summary()["resources"]
        assert "20 images" in row["impression"]

    def test_and_in_doubt_where_the_service_refuses(self, hospital, batch):
        hospital.control.configure(recompute="ignored")
        hospital.compute(batch)
        (row,) = hospital.rows().values()
        assert row.doubt == STALE

    def test_no_run_asks_for_it_while_another_does(self, hospital, batch):
        hospital.sql("UPDATE resources SET computing_run_id = 99, computing_until = 9e9")
        with pytest.raises(StepIncompleteError, match="another run is asking for it right now"):
            hospital.compute(batch)
        hospital.sql("UPDATE resources SET computed_at = 1")
        hospital.compute(batch)
        assert hospital.control.requests("compute") == []

    def test_but_one_does_where_another_died_and_every_try_of_its_own_may(self, hospital, batch):
        hospital.sql("UPDATE resources SET computing_run_id = 99, computing_until = 1")
        hospital.compute(batch)
        hospital.sql("UPDATE resources SET computed_at = NULL")
        hospital.compute(batch)
        assert len(hospital.control.requests("compute")) == 2

    def test_and_at_once_where_another_run_was_refused(self, hospital, batch):
        hospital.control.inject(Answer(kind="compute", status=400))
        with pytest.raises(StepIncompleteError):
            hospital.compute(batch)
        hospital.sql("UPDATE resources SET computing_run_id = 99")  # as if that had been another's try
        hospital.compute(batch)
        assert len(hospital.control.requests("compute")) == 2
