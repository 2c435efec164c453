import json
import os
import shutil
import time
from datetime import UTC, datetime

import pydicom
import pytest
import requests
from pipeline_kit import NIGHT, Pager, image, slices
from pydicom.uid import generate_uid

from qure_provider.emulator.model import Answer
from qure_provider.ledger.ledger import LeaseLostError, Why
from qure_provider.operators.plan import QurePlanOperator, run_folder
from qure_provider.operators.planned import problems_of_plan
from qure_provider.operators.summarize import NightUnresolvedError
from qure_provider.settings import IdentityPolicyError
from qure_provider.store import Store
from qure_provider.triggers import results as trigger_module


class TestEverythingIsAccountedFor:
    def test_found_is_what_was_selected_not_selected_duplicate_or_quarantined(self, hospital):
        (film,) = hospital.xray()
        hospital.put("copy.dcm", film)
        hospital.put("mr.dcm", image("MR"))
        (hospital.export / "Export log.txt").write_text("SIMULATED export")
        (hospital.export / "empty.dcm").touch()
        hospital.ct(count=10)

        hospital.plan()
        with pytest.raises(NightUnresolvedError):
            hospital.summarize()

        summary = hospital.summary()
        counts = summary["counts"]
        assert summary["sums_hold"]
        assert counts["found"] == 15
        assert (counts["selected"], counts["not_selected"], counts["duplicate"], counts["quarantined"]) == (11, 1, 1, 2)
        assert (counts["series"], counts["resources"], len(summary["resources"])) == (2, 2, 2)

    def test_every_file_passed_over_has_a_row_with_a_reason(self, hospital):
        hospital.xray()
        hospital.put("mr.dcm", image("MR"))
        (hospital.export / "Export log.txt").write_text("SIMULATED export")

        hospital.plan()

        (listing,) = hospital.root.glob("runs/*/*/passed_over.jsonl")
        rows = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
        assert {row["path"]: row["fate"] for row in rows} == {
            "mr.dcm": "not selected",
            "Export log.txt": "quarantined",
        }
        assert all(row["reason"] for row in rows)

    def test_the_run_is_red_when_a_resource_got_lost_between_the_steps(self, hospital):
        hospital.xray("a")
        hospital.xray("b")
        hospital.process(hospital.plan())
        hospital.sql("DELETE FROM planned WHERE resource_id = 1")

        with pytest.raises(NightUnresolvedError, match="sums are off: not every selected resource"):
            hospital.summarize()

    def test_the_run_is_red_when_a_file_got_lost(self, hospital):
        hospital.xray()
        hospital.process(hospital.plan())
        hospital.sql("""UPDATE runs SET counts = json_set(counts, '$.found', 2)""")

        with pytest.raises(NightUnresolvedError, match="sums are off: not every file"):
            hospital.summarize()
        assert not hospital.summary()["sums_hold"]

    def test_names_that_are_no_valid_text_stop_nothing(self, hospital):
        """A name in Latin-1 on a disk that speaks UTF-8, as PACS on Windows leave them."""
        (film,) = hospital.xray()
        strange = os.fsencode(hospital.export) + b"/R\xf6ntgen"
        (hospital.export / "xray/0.dcm").rename(os.fsdecode(strange + b".dcm"))
        with open(strange + b".txt", "w") as note:  # noqa: PTH123
            note.write("SIMULATED")

        summary = hospital.night()

        assert summary["outcomes"] == {"ready": 1}
        assert summary["counts"]["quarantined"] == 1
        assert film.SOPInstanceUID in hospital.rows()


class TestAnEmptyOrThinNightIsNotGreen:
    def test_a_night_without_a_series_is_red(self, hospital):
        hospital.put("mr.dcm", image("MR"))
        assert hospital.plan() == []
        with pytest.raises(NightUnresolvedError, match="empty: no series was selected"):
            hospital.summarize()

    def test_where_that_is_in_order_somebody_says_so(self, hospital):
        hospital.put("mr.dcm", image("MR"))
        hospital.plan()
        hospital.summarize(allow_empty=True)
        assert hospital.summary()["problems"] == []

    def usual_nights(self, hospital, *series):
        for number, count in enumerate(series):
            hospital.new_run(f"scheduled__{number}")
            shutil.rmtree(hospital.export)
            hospital.export.mkdir()
            for each in range(count):
                hospital.xray(f"{number}-{each}")
            hospital.plan()
            with pytest.raises(NightUnresolvedError) as failure:
                hospital.summarize()
        return str(failure.value)

    def test_far_fewer_series_than_usual_are_red(self, hospital):
        problem = self.usual_nights(hospital, 5, 4, 6, 2)
        assert "Far fewer series than usual: 2, where the median is 5." in problem

    def test_half_of_the_usual_is_enough(self, hospital):
        assert "Far fewer" not in self.usual_nights(hospital, 4, 4, 4, 2)

    def test_two_nights_are_not_yet_what_is_usual(self, hospital):
        assert "Far fewer" not in self.usual_nights(hospital, 5, 5, 1)

    def test_another_dag_has_its_own_usual(self, hospital):
        self.usual_nights(hospital, 5, 5, 5)
        hospital.new_run("x", dag_id="another")
        shutil.rmtree(hospital.export)
        hospital.xray("one")
        hospital.plan()
        with pytest.raises(NightUnresolvedError) as failure:
            hospital.summarize()
        assert "Far fewer" not in str(failure.value)


class TestLeavingTheBuildingIsADecision:
    @pytest.fixture(autouse=True)
    def _undecided(self, hospital, monkeypatch):
        monkeypatch.delenv("AIRFLOW__QURE__IDENTITY_POLICY")

    def test_without_it_the_plan_refuses_and_explains(self, hospital):
        hospital.xray()
        with pytest.raises(IdentityPolicyError, match="nothing was sent"):
            hospital.plan()

    def test_without_it_an_upload_sends_nothing(self, hospital):
        hospital.xray()
        (batch,) = hospital.plan(identity_policy="identified")
        with pytest.raises(IdentityPolicyError, match=r"\[qure\] identity_policy"):
            hospital.upload(batch)
        assert hospital.control.requests() == []


class TestANightIsNamedByTheHospitalsClock:
    def test_two_in_the_morning_in_kolkata_reads_that_days_folder(self, hospital, monkeypatch):
        monkeypatch.setenv("AIRFLOW__QURE__TIMEZONE", "Asia/Kolkata")
        hospital.run.logical_date = datetime(2026, 11, 19, 20, 30, tzinfo=UTC)
        hospital.xray()
        assert hospital.night()["night"] == NIGHT
        assert [path.name for path in (hospital.root / "runs").iterdir()] == [NIGHT]

    def test_a_partition_is_read_by_its_key(self, hospital):
        hospital.run.partition_key = NIGHT
        hospital.run.logical_date = None
        hospital.xray()
        assert hospital.night()["night"] == NIGHT


class TestWhatEarlierRunsDid:
    def test_a_whole_night_twice_sends_nothing_again_and_its_results_are_still_there(self, hospital):
        hospital.xray(images=2)
        hospital.ct()
        first = hospital.night()
        hospital.control.forget_requests()
        hospital.new_run("manual__again")

        assert hospital.plan() == []
        hospital.summarize()

        second = hospital.summary()
        assert hospital.control.requests() == []
        assert second["outcomes"] == first["outcomes"] == {"ready": 3}
        assert {row["why"] for row in second["resources"]} == {"done"}
        assert [row["folder"] for row in second["resources"]] == [row["folder"] for row in first["resources"]]
        assert all((hospital.root / row["folder"] / "result.json").is_file() for row in second["resources"])

    def test_the_same_run_cleared_sends_nothing_again_either(self, hospital):
        hospital.ct()
        hospital.night()
        hospital.control.forget_requests()
        hospital.new_run(clear_number=1)

        assert hospital.plan() == []
        assert hospital.control.requests() == []

    def test_a_series_left_waiting_is_waited_for_and_not_uploaded_again(self, hospital):
        (film,) = hospital.xray()
        series = hospital.ct()[0].SeriesInstanceUID
        hospital.control.plan(film.StudyInstanceUID, outcome="stuck")
        hospital.control.plan(series, outcome="stuck")
        hospital.process(hospital.plan(wait_seconds=0.3))
        assert {row.outcome for row in hospital.rows().values()} == {"timed out"}
        sent, hospital_requests = hospital.sent(), hospital.control.count("compute")
        hospital.control.clear_plans()
        hospital.new_run("scheduled__2")

        summary = hospital.night()

        assert summary["outcomes"] == {"ready": 2}
        assert {row["why"] for row in summary["resources"]} == {"waiting"}
        assert hospital.sent() == sent
        assert hospital.control.count("compute") == hospital_requests

    def test_what_the_service_had_no_product_for_is_not_sent_again(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, outcome="unsupported")
        hospital.night()
        hospital.new_run("scheduled__2")
        assert hospital.plan() == []
        hospital.summarize()
        assert hospital.summary()["outcomes"] == {"unsupported": 1}

    def test_sending_again_is_for_the_asking(self, hospital):
        hospital.ct()
        hospital.night()
        sent = hospital.sent()
        hospital.new_run("scheduled__2")

        summary = hospital.night(recompute="True")

        assert hospital.sent() == 2 * sent
        assert hospital.control.count("compute", status=200) == 2
        assert [row["revision"] for row in summary["resources"]] == [2]

    def test_only_the_image_that_is_new_is_sent_of_an_xray_series(self, hospital):
        first, second = hospital.xray(images=2)
        path = hospital.export / "xray/1.dcm"
        content = path.read_bytes()
        path.unlink()
        hospital.night()
        path.write_bytes(content)
        hospital.control.forget_requests()
        sent = hospital.sent()
        hospital.new_run("scheduled__2")

        summary = hospital.night()

        assert hospital.sent() == sent + 1
        assert hospital.control.count("results", uid=first.SOPInstanceUID) == 0
        assert hospital.control.count("results", uid=second.SOPInstanceUID) > 0
        assert sorted(row["why"] for row in summary["resources"]) == ["done", "new"]


class TestASeriesThatGained:
    @pytest.fixture
    def grown(self, hospital):
        """A CT of ten slices that had its result, and two slices more since."""
        all_of_it = slices(12)
        for number, each in enumerate(all_of_it[:10]):
            hospital.put(f"ct/{number}.dcm", each)
        hospital.night()
        for number, each in enumerate(all_of_it[10:]):
            hospital.put(f"ct/late{number}.dcm", each)
        hospital.new_run("scheduled__2")
        hospital.control.forget_requests()
        return all_of_it[0].SeriesInstanceUID

    def test_is_a_new_revision_and_computed_again(self, hospital, grown):
        summary = hospital.night()

        (row,) = summary["resources"]
        assert (row["revision"], row["why"], row["outcome"], row["doubt"]) == (2, "revision", "ready", "")
        assert row["folder"].endswith("/r2")
        assert "12 images analysed, revision 2" in row["impression"]
        assert hospital.control.count("compute", status=200) == 1
        assert (hospital.root / row["folder"].replace("/r2", "/r1") / "result.json").is_file()

    def test_whose_recompute_was_ignored_is_in_doubt_and_the_run_is_red(self, hospital, grown):
        hospital.control.configure(recompute="ignored")
        (batch,) = hospital.plan()
        hospital.process([batch])

        with pytest.raises(NightUnresolvedError, match="may predate late images"):
            hospital.summarize()

        assert hospital.control.count("compute", status=304) == 1
        (row,) = hospital.summary()["resources"]
        assert "may predate late images" in row["doubt"]

    def test_whose_result_is_the_one_from_before_is_in_doubt_and_the_run_is_red(self, hospital, grown):
        """The service gives the old result until the new one is ready, or for ever."""
        headers = {**hospital.emulator.headers, "User-Agent": "test"}
        old = requests.get(f"{hospital.emulator.base_url}/results/{grown}", headers=headers, timeout=10).json()
        hospital.control.inject(Answer(kind="results", uid=grown, status=200, json_body=old, times=None))
        hospital.process(hospital.plan(wait_seconds=1))

        with pytest.raises(NightUnresolvedError, match="may predate late images"):
            hospital.summarize()

        (row,) = hospital.summary()["resources"]
        assert "the very one" in row["doubt"]
        hospital.control.clear_faults()
        hospital.new_run("scheduled__3")
        (row,) = hospital.night()["resources"]
        assert (row["why"], row["doubt"], "12 images" in row["impression"]) == ("waiting", "", True)

    def test_is_asked_for_until_the_new_result_comes(self, hospital, grown):
        hospital.control.configure(recompute="stale", processing_seconds=1.5)
        (batch,) = hospital.plan()
        hospital.upload(batch)
        time.sleep(1.5)  # in which the old result would be ready even if it were slow
        hospital.compute(batch)

        hospital.collect(batch)

        hospital.summarize()
        (row,) = hospital.summary()["resources"]
        assert (row["doubt"], "12 images" in row["impression"]) == ("", True)

    def test_is_in_doubt_no_more_when_the_new_result_comes(self, hospital, grown):
        hospital.control.configure(recompute="stale", processing_seconds=60)
        (batch,) = hospital.plan()
        hospital.upload(batch)
        hospital.compute(batch)
        hospital.meanwhile = lambda: hospital.control.configure(processing_seconds=0)
        hospital.collect(batch)

        hospital.summarize()

        (row,) = hospital.summary()["resources"]
        assert (row["doubt"], "12 images" in row["impression"]) == ("", True)

    def test_a_film_that_was_exported_anew_with_another_picture_cannot_be_computed_again_and_is_in_doubt(
        self, hospital
    ):
        (film,) = hospital.xray()
        hospital.night()
        again = image("CR", pixels=40, SOPInstanceUID=film.SOPInstanceUID, StudyInstanceUID=film.StudyInstanceUID)
        again.SeriesInstanceUID = film.SeriesInstanceUID
        hospital.put("xray/0.dcm", again)
        hospital.new_run("scheduled__2")
        hospital.process(hospital.plan(wait_seconds=1))
        with pytest.raises(NightUnresolvedError, match="may predate late images"):
            hospital.summarize()

    @pytest.fixture
    def never_fetched(self, hospital):
        """A CT of ten slices whose result did not come in its night, and two slices more since."""
        all_of_it = slices(12)
        series = all_of_it[0].SeriesInstanceUID
        for number, each in enumerate(all_of_it[:10]):
            hospital.put(f"ct/{number}.dcm", each)
        hospital.control.plan(series, outcome="stuck")
        (batch,) = hospital.plan(wait_seconds=0.1)
        hospital.upload(batch)
        hospital.compute(batch)
        time.sleep(0.1)
        hospital.collect(batch)
        for number, each in enumerate(all_of_it[10:]):
            hospital.put(f"ct/late{number}.dcm", each)
        hospital.new_run("scheduled__2")
        (batch,) = hospital.plan()
        hospital.upload(batch)
        return series, batch

    def test_does_not_take_the_result_of_fewer_images_that_nobody_fetched(self, hospital, never_fetched):
        _, batch = never_fetched
        hospital.control.clear_plans()
        hospital.control.configure(recompute="stale")
        hospital.compute(batch)
        hospital.control.configure(processing_seconds=1.5)

        hospital.collect(batch)

        hospital.summarize()
        (row,) = hospital.summary()["resources"]
        assert (row["doubt"], "12 images" in row["impression"]) == ("", True)

    def test_and_was_being_computed_then_is_in_doubt(self, hospital, never_fetched):
        _, batch = never_fetched
        hospital.compute(batch)
        hospital.control.clear_plans()
        hospital.collect(batch)
        with pytest.raises(NightUnresolvedError, match="was computing the series already"):
            hospital.summarize()

    def test_one_sent_again_unchanged_is_expected_to_have_the_same_result(self, hospital):
        hospital.xray()
        hospital.night()
        hospital.new_run("scheduled__2")
        (row,) = hospital.night(recompute=True)["resources"]
        assert (row["revision"], row["doubt"]) == (2, "")

    def test_and_whose_patient_was_corrected_is_a_new_revision_too(self, hospital):
        (film,) = hospital.xray()
        hospital.night()
        film.PatientID = "SIM-2"
        hospital.put("xray/0.dcm", film)
        hospital.new_run("scheduled__2")

        hospital.plan()

        (row,) = hospital.rows().values()
        assert (row.revision, row.why, row.identity.patient_id) == (2, Why.REVISION, "SIM-2")


class TestAPartOfASeries:
    """What is exported or chosen by hand with fewer images than the service has."""

    @pytest.fixture
    def known(self, hospital):
        hospital.ct(count=12)
        hospital.night()
        hospital.new_run("manual__part")
        hospital.control.forget_requests()
        return [f"ct/{number}.dcm" for number in range(10)]

    def test_does_not_take_the_whole_ones_place(self, hospital, known):
        assert hospital.plan(files=known) == []
        assert hospital.control.requests() == []
        (row,) = hospital.rows().values()
        assert (row.revision, row.why, row.outcome) == (1, Why.DONE, "ready")

    def test_makes_the_run_red_that_says_what_to_do(self, hospital, known):
        hospital.plan(files=known)
        with pytest.raises(NightUnresolvedError, match="Fewer images than the service has"):
            hospital.summarize()
        assert hospital.summary()["sums_hold"]

    def test_is_sent_for_the_asking(self, hospital, known):
        (row,) = hospital.night(files=known, recompute=True)["resources"]
        assert (row["revision"], row["outcome"]) == (2, "ready")
        assert "12 images analysed" in row["impression"]

    def test_of_another_patient_is_a_new_revision(self, hospital, known):
        for name in known:
            path = hospital.export / name
            each = pydicom.dcmread(path)
            each.PatientID = "SIM-2"
            each.save_as(path)
        hospital.plan(files=known)
        (row,) = hospital.rows().values()
        assert (row.revision, row.identity.patient_id) == (2, "SIM-2")

    def test_of_which_not_all_had_been_sent_is_sent(self, hospital):
        hospital.ct(count=12)
        hospital.plan()
        hospital.new_run("manual__part")
        (row,) = hospital.night(files=[f"ct/{number}.dcm" for number in range(10)])["resources"]
        assert (row["revision"], row["outcome"]) == (2, "ready")


class TestWhatTheServiceNoLongerHolds:
    def test_is_sent_again_when_the_night_is_repeated(self, hospital, monkeypatch):
        monkeypatch.setattr(trigger_module, "GRACE_SECONDS", 0.0)
        hospital.xray()
        hospital.ct()
        batches = hospital.plan()
        for batch in batches:
            hospital.upload(batch)
            if batch["route"] == "ct":
                hospital.compute(batch)
        hospital.control.forget_everything()
        for batch in batches:
            hospital.collect(batch)
        assert {row.outcome for row in hospital.rows().values()} == {"not uploaded"}
        hospital.new_run(clear_number=1)

        assert hospital.night()["outcomes"] == {"ready": 2}

        assert hospital.sent() == 11

    def test_is_computed_again_where_only_that_was_forgotten(self, hospital):
        hospital.ct()
        (batch,) = hospital.plan()
        hospital.upload(batch)
        hospital.compute(batch)
        hospital.sql("UPDATE resources SET outcome = 'not computed', settled_at = 1")
        hospital.new_run(clear_number=1)
        hospital.night()
        assert hospital.control.count("compute", status=304) == 1
        assert hospital.sent() == 10


def leave_waiting(hospital, *, show_only="", **planned):
    """Export a film, and run a night that ends before its result is there; return the film."""
    (film,) = hospital.xray("last night")
    hospital.control.plan(film.StudyInstanceUID, outcome="stuck")
    hospital.process(hospital.plan(wait_seconds=0.2, show_only=show_only, **planned), show_only=show_only)
    return film


class TestWhatIsOwedIsCaughtUp:
    @pytest.fixture
    def owed(self, hospital):
        """A film whose result did not come last night, and an export of tonight without it."""
        film = leave_waiting(hospital)
        hospital.control.clear_plans()
        shutil.rmtree(hospital.export)
        hospital.export.mkdir()
        hospital.new_run("scheduled__2")
        hospital.control.forget_requests()
        return film.SOPInstanceUID

    def test_the_next_night_waits_for_it_and_sends_nothing(self, hospital, owed):
        hospital.xray("tonight")

        summary = hospital.night()

        assert hospital.rows()[owed].outcome == "ready"
        assert summary["outcomes"] == {"ready": 2}
        assert summary["counts"]["carried_over"] == 1
        assert hospital.control.count("upload") == 1

    def test_where_that_is_not_wanted_it_is_left(self, hospital, owed):
        hospital.xray("tonight")
        hospital.process(hospital.plan(catch_up=False))
        assert owed not in hospital.rows()

    def test_it_is_not_left_to_another_connection(self, hospital, owed, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
        hospital.xray("tonight")
        hospital.plan(qure_conn_id="other")
        assert owed not in hospital.rows()

    def test_it_does_not_go_where_another_runs_results_go(self, hospital, owed):
        hospital.xray("tonight")
        hospital.plan(deliver_to="research")
        assert owed not in hospital.rows()
        with hospital.ledger() as ledger:
            run = ledger.find_run(dag_id="night", run_id="scheduled__2", group_id="")
            assert run.counts["left"] == ["scheduled__1"]
            (problem,) = [text for text in problems_of_plan(Store(str(hospital.root)), run) if "other dest" in text]
        assert problem.startswith("Results that runs scheduled__1 left waiting go to other destinations")

    def test_a_rule_that_changed_changes_nothing_where_the_receivers_are_the_same(self, hospital):
        film = leave_waiting(hospital, deliver_to="ris pacs")
        hospital.new_run("scheduled__2")
        hospital.put("tonight.dcm", image("CR"))
        rules = [{"when": {"product": ["qxr"]}, "send": [], "to": ["ris"]}]
        hospital.plan(files=["tonight.dcm"], deliver_to=["pacs", "ris"], rules=rules)
        assert film.SOPInstanceUID in hospital.rows()

    def test_what_tonights_export_has_again_is_not_named_as_left(self, hospital):
        leave_waiting(hospital)
        hospital.new_run("scheduled__2")
        hospital.plan(deliver_to="research")
        with hospital.ledger() as ledger:
            assert ledger.find_run(dag_id="night", run_id="scheduled__2", group_id="").counts["left"] == []

    @pytest.mark.parametrize(("deliver_to", "is_taken"), [("", True), ("research", False)])
    def test_another_dag_takes_it_on_where_it_delivers_to_the_same_places(self, hospital, owed, deliver_to, is_taken):
        hospital.new_run("manual__1", dag_id="by_hand")
        hospital.xray("tonight")
        hospital.plan(deliver_to=deliver_to)
        assert (owed in hospital.rows()) is is_taken

    def test_what_a_dry_run_began_is_delivered_by_no_other(self, hospital):
        film = leave_waiting(hospital, show_only="deliver")
        hospital.new_run("scheduled__2")
        hospital.put("tonight.dcm", image("CR"))
        hospital.plan(files=["tonight.dcm"])
        assert film.SOPInstanceUID not in hospital.rows()

    def test_a_cleared_run_waits_for_its_own_whatever_its_export_has_by_then(self, hospital, owed):
        hospital.new_run("scheduled__1", clear_number=1)
        hospital.xray("exported anew")
        assert hospital.night(catch_up=False)["outcomes"] == {"ready": 2}
        assert hospital.rows()[owed].outcome == "ready"

    def test_a_result_that_came_too_late_for_a_second_look_is_owed_its_files(self, hospital, owed):
        hospital.sql("UPDATE resources SET outcome = 'ready', settled_at = NULL, ready_at = 1")
        hospital.xray("tonight")
        hospital.night()
        assert hospital.rows()[owed].settled_at

    @pytest.fixture
    def unsent(self, hospital):
        """A film that could not be uploaded last night, in an export that is still there."""
        (film,) = hospital.xray("last night")
        hospital.plan()
        with pytest.raises(NightUnresolvedError):
            hospital.summarize()
        hospital.new_run("scheduled__2")
        hospital.xray("tonight")
        return film.SOPInstanceUID

    def test_what_could_not_be_uploaded_is(self, hospital, unsent):
        summary = hospital.night(files=["tonight/0.dcm"])
        assert hospital.rows()[unsent].outcome == "ready"
        assert (summary["outcomes"], summary["counts"]["carried_over"]) == ({"ready": 2}, 1)
        assert hospital.sent() == 2

    def test_what_the_service_said_that_it_does_not_have_is(self, hospital, unsent):
        hospital.sql("UPDATE resources SET outcome = 'not uploaded', uploaded_at = 1 WHERE uid = :uid", uid=unsent)
        hospital.night(files=["tonight/0.dcm"])
        assert hospital.rows()[unsent].outcome == "ready"
        assert hospital.sent() == 2

    @pytest.mark.parametrize(("dag_id", "is_sent"), [("night", True), ("by_hand", False)])
    def test_it_is_not_sent_under_the_identity_policy_of_another_dag(self, hospital, unsent, dag_id, is_sent):
        hospital.sql(
            "UPDATE runs SET counts = json_set(counts, '$.terms.policy', 'deidentify') WHERE run_id = 'scheduled__1'"
        )
        hospital.new_run("scheduled__2", dag_id=dag_id)
        hospital.plan(files=["tonight/0.dcm"])
        assert (unsent in hospital.rows()) is is_sent

    def test_an_export_that_cannot_be_reached_holds_back_nothing_of_tonight(self, hospital, unsent):
        (manifest,) = hospital.root.glob("runs/*/night__scheduled__1/batch-*.json")
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"export_root": f"/{'x' * 5000}"}))
        hospital.plan(files=["tonight/0.dcm"])
        assert len(hospital.rows()) == 1
        assert unsent not in hospital.rows()

    def test_a_part_of_a_series_is_not_sent_in_place_of_all_of_it(self, hospital):
        series = hospital.ct(count=12)[0].SeriesInstanceUID
        hospital.control.plan(series, outcome="stuck")
        hospital.process(hospital.plan(wait_seconds=0.2))
        for number in (10, 11):
            (hospital.export / f"ct/{number}.dcm").unlink()
        hospital.new_run("scheduled__2")
        hospital.process(hospital.plan(wait_seconds=0.2))
        hospital.sql("UPDATE resources SET outcome = 'not uploaded'")
        with pytest.raises(NightUnresolvedError):
            hospital.summarize()
        hospital.new_run("scheduled__3")
        hospital.xray("tonight")
        hospital.plan(files=["tonight/0.dcm"])
        assert series not in hospital.rows()
        assert "The store has lost what an earlier night planned" in problem_of(hospital)

    def test_without_its_export_it_is_left_to_its_own_night(self, hospital, unsent):
        moved = hospital.export.rename(hospital.export.with_name("tonight"))
        hospital.plan(export=str(moved), files=["tonight/0.dcm"])
        assert unsent not in hospital.rows()

    def test_a_dry_run_owes_nothing(self, hospital):
        (film,) = hospital.xray("shown only")
        hospital.plan(show_only="upload")
        hospital.summarize(show_only="upload")
        hospital.new_run("scheduled__2")
        hospital.xray("tonight")
        hospital.plan(files=["tonight/0.dcm"])
        assert film.SOPInstanceUID not in hospital.rows()

    def test_a_dry_run_takes_the_place_of_nothing(self, hospital):
        """A report made of what was only shown would lack its result; what is in earnest then is the next revision."""
        all_of_it = slices(12)
        for number, each in enumerate(all_of_it[:10]):
            hospital.put(f"ct/{number}.dcm", each)
        study, series = each.StudyInstanceUID, each.SeriesInstanceUID
        (batch,) = hospital.plan()
        hospital.upload(batch)
        hospital.compute(batch)
        for number, each in enumerate(all_of_it[10:]):
            hospital.put(f"ct/late{number}.dcm", each)
        first = hospital.run
        for _ in range(2):
            hospital.new_run("dry")
            hospital.plan(show_only="upload")
            hospital.summarize(show_only="upload")
            (shown,) = hospital.summary()["resources"]
            assert (shown["revision"], shown["why"]) == (2, "revision")

        hospital.run = first
        hospital.collect(batch)
        with hospital.ledger() as ledger:
            assert [(row.revision, row.outcome) for row in ledger.rows_of_study(study)] == [(1, "ready")]

        hospital.new_run("scheduled__2")
        hospital.process(hospital.plan())
        assert (hospital.rows()[series].revision, hospital.rows()[series].outcome) == (2, "ready")
        assert hospital.sent() == 22

    def test_what_waits_is_as_it_was_after_a_dry_run(self, hospital):
        film = leave_waiting(hospital)
        hospital.new_run("dry")
        assert hospital.plan(show_only="upload") == []
        hospital.summarize(show_only="upload")
        assert (hospital.rows()[film.SOPInstanceUID].outcome, hospital.summary()["sums_hold"]) == ("timed out", True)

    @pytest.mark.parametrize("show_only", ["upload", "deliver"])
    def test_a_dry_run_takes_on_nothing_that_would_then_be_delivered_nowhere(self, hospital, owed, show_only):
        hospital.plan(show_only=show_only)
        assert owed not in hospital.rows()

    def test_a_run_without_a_summary_is_under_way_or_was_stopped_and_keeps_what_it_has_to_send(self, hospital):
        (film,) = hospital.xray("last night")
        hospital.plan()
        hospital.new_run("scheduled__2")
        hospital.xray("tonight")
        hospital.plan(files=["tonight/0.dcm"])
        assert film.SOPInstanceUID not in hospital.rows()

    def test_a_ct_that_could_not_be_computed_is_owed(self, hospital):
        series = hospital.ct("last night")[0].SeriesInstanceUID
        (batch,) = hospital.plan(wait_seconds=0.2)
        hospital.upload(batch)
        hospital.collect(batch)
        assert hospital.rows()[series].outcome == "not computed"
        shutil.rmtree(hospital.export)
        hospital.new_run("scheduled__2")
        hospital.xray("tonight")

        hospital.night()

        assert hospital.rows()[series].outcome == "ready"

    def test_a_revision_that_a_newer_one_took_the_place_of_is_owed_no_more(self, hospital):
        """Its answer would be the newer one's, stored and shown as if it were of the older images."""
        all_of_it = slices(12)
        for number, each in enumerate(all_of_it[:10]):
            hospital.put(f"ct/{number}.dcm", each)
        series = all_of_it[0].SeriesInstanceUID
        hospital.control.plan(series, outcome="stuck")
        hospital.process(hospital.plan(wait_seconds=0.2))
        hospital.control.clear_plans()
        for number, each in enumerate(all_of_it[10:]):
            hospital.put(f"ct/late{number}.dcm", each)
        hospital.new_run("scheduled__2")
        hospital.night()
        shutil.rmtree(hospital.export)
        hospital.new_run("scheduled__3")
        hospital.xray("tonight")

        assert len(hospital.plan()) == 1

        assert series not in hospital.rows()


class TestTheDeadline:
    def deadline(self, hospital):
        with hospital.ledger() as ledger:
            return ledger.find_run(dag_id="night", run_id=hospital.run.run_id, group_id="").deadline

    def test_is_computed_once_and_kept_over_retries(self, hospital):
        hospital.xray()
        hospital.plan(wait_seconds=1000)
        first = self.deadline(hospital)
        hospital.plan(wait_seconds=5000)
        assert self.deadline(hospital) == first

    def test_is_set_anew_when_a_person_clears_the_run(self, hospital):
        hospital.xray()
        hospital.plan(wait_seconds=1000)
        first = self.deadline(hospital)
        hospital.new_run(clear_number=1)
        hospital.plan(wait_seconds=1000)
        assert self.deadline(hospital) > first


class TestPlanningAnew:
    def test_takes_the_batches_from_who_still_works_on_the_old_ones(self, hospital):
        hospital.xray()
        (old,) = hospital.plan()
        (new,) = hospital.plan()
        with pytest.raises(LeaseLostError, match="planned anew"):
            hospital.upload(old)
        hospital.upload(new)
        assert hospital.sent() == 1

    def test_after_a_crash_before_the_end_sends_everything_once(self, hospital, monkeypatch):
        hospital.ct()
        with monkeypatch.context() as broken:
            broken.setattr(Store, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                hospital.plan()

        summary = hospital.night()

        assert summary["outcomes"] == {"ready": 1}
        assert hospital.sent() == 10
        assert [row["revision"] for row in summary["resources"]] == [1]

    def test_a_summary_without_a_plan_is_red(self, hospital):
        with pytest.raises(NightUnresolvedError, match="plan did not finish"):
            hospital.summarize()


class TestBatches:
    def test_xray_and_ct_travel_apart_and_in_no_more_batches_than_asked_for(self, hospital):
        for number in range(5):
            hospital.xray(f"x{number}")
        for number in range(3):
            hospital.ct(f"ct{number}")

        batches = hospital.plan(max_batches=4)

        assert len(batches) == 4
        assert {batch["route"] for batch in batches} == {"xray", "ct"}
        assert sum(batch["series"] for batch in batches) == sum(batch["resources"] for batch in batches) == 8
        assert len({batch["label"] for batch in batches}) == 4

    def test_they_say_nothing_of_patients(self, hospital):
        (film,) = hospital.xray()
        text = json.dumps(hospital.plan())
        for secret in (film.SOPInstanceUID, film.StudyInstanceUID, "SIMULATED", "SIM-", "xray/0", str(hospital.export)):
            assert secret not in text


class TestArguments:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"max_batches": 1},
            {"wait_seconds": 0},
            {"selection": {"no such rule": 1}},
            {"selection": {"modalities": ["MR"]}},
        ],
    )
    def test_bad_ones_fail_when_the_dag_is_parsed(self, wrong):
        with pytest.raises(ValueError):  # noqa: PT011
            QurePlanOperator(task_id="plan", export="/x", **wrong)

    def test_a_selection_may_come_as_json_from_a_form(self, hospital):
        hospital.xray()
        hospital.ct()
        (batch,) = hospital.plan(selection='{"modalities": ["CT"]}')
        assert batch["route"] == "ct"

    @pytest.mark.parametrize("nothing", ["", "{}", "None", None, {}])
    def test_an_empty_selection_means_the_defaults(self, hospital, nothing):
        hospital.xray()
        assert len(hospital.plan(selection=nothing)) == 1

    def test_a_selection_that_is_no_object_is_refused(self, hospital):
        with pytest.raises(ValueError, match="JSON object"):
            hospital.plan(selection="[1]")

    def test_files_may_come_one_a_line(self, hospital):
        hospital.xray("a")
        hospital.xray("b")
        hospital.plan(files="a/0.dcm\n\n")
        with pytest.raises(NightUnresolvedError):
            hospital.summarize()
        assert hospital.summary()["counts"]["found"] == 1

    def test_a_folder_that_is_not_there_is_said_so(self, hospital):
        with pytest.raises(FileNotFoundError, match=r"no folder '/no/such/folder' \(night 2026-11-20\)"):
            hospital.plan(export="/no/such/folder")


class TestARunsOwnFolder:
    def test_two_runs_of_a_night_never_share_one_however_long_their_names(self):
        name = "a_very_long_name_of_a_dag_" * 6
        folders = {run_folder(NIGHT, name, run_id, "group") for run_id in ("manual__1", "manual__2")}
        assert len(folders) == 2
        assert all(len(part) <= 160 for folder in folders for part in folder.split("/"))


def problem_of(hospital, **arguments):
    """What a red summary says."""
    with pytest.raises(NightUnresolvedError) as failure:
        hospital.summarize(**arguments)
    return str(failure.value)


def process_urgent(hospital, **arguments):
    """Export a CT whose result is urgent, and bring it home."""
    series = hospital.ct()[0].SeriesInstanceUID
    hospital.control.plan(series, findings=["subdural_hemorrhage"])
    hospital.process(hospital.plan(), **arguments)


class TestWhatNobodyMayOverlook:
    """What of the export was not sent, and would be green otherwise."""

    def test_files_that_came_after_the_plan(self, hospital):
        hospital.xray("a")
        batches = hospital.plan()
        hospital.xray("late", images=2)
        hospital.process(batches)
        assert "2 files came into the export after it was read" in problem_of(hospital)

    def test_a_damaged_image(self, hospital, monkeypatch):
        hospital.xray("good")
        (hospital.export / "bad.dcm").write_bytes(b"SIMULATED")
        hospital.process(hospital.plan())
        assert "1 files that may be images are quarantined and were not sent (1 not DICOM)" in problem_of(hospital)
        monkeypatch.setenv("AIRFLOW__QURE__ALLOW_QUARANTINED", "True")
        hospital.summarize()

    def test_what_was_chosen_by_hand_and_is_not_sent(self, hospital):
        hospital.xray("good")
        hospital.put("mr.dcm", image("MR"))
        hospital.process(hospital.plan(files=["good/0.dcm", "mr.dcm"]))
        assert "Of the files that were chosen, some were not sent: 1 modality not selected" in problem_of(hospital)

    def test_what_was_chosen_by_hand_and_the_sites_own_rules_leave_out(self, hospital, monkeypatch):
        rules = {"modalities": ["CT"]}
        monkeypatch.setenv("AIRFLOW__QURE__SELECTION", json.dumps(rules))
        hospital.ct("good")
        hospital.xray("film")
        hospital.process(hospital.plan(files=["good", "film/0.dcm"], selection=rules))
        assert "Of the files that were chosen, some were not sent: 1 modality not selected" in problem_of(hospital)

    def test_an_urgent_result_that_nobody_is_told_of(self, hospital):
        process_urgent(hospital)
        assert "1 urgent results, and nobody was told" in problem_of(hospital)
        for _ in range(2):
            hospital.summarize(notifiers=[Pager.callback()])
        assert len(Pager.told) == 1

    def test_an_urgent_result_that_a_notifier_with_wrong_arguments_told_nobody_of(self, hospital):
        wrong = [Pager.callback("to nobody")]
        Pager.problems[:] = [OSError("no such address")] * 100
        process_urgent(hospital, notifiers=wrong)
        assert "1 alerts never got through" in problem_of(hospital, notifiers=wrong)
        Pager.problems.clear()
        for _ in range(2):
            hospital.summarize(notifiers=[Pager.callback()])
        assert len(Pager.told) == 1

    def test_one_that_came_long_ago_pages_nobody(self, hospital):
        process_urgent(hospital)
        hospital.sql("UPDATE resources SET ready_at = 1")
        hospital.summarize(notifiers=[Pager.callback()])
        assert Pager.told == []

    def test_an_image_with_a_finding_that_pages(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, findings=["pneumothorax"])
        hospital.process(hospital.plan())
        hospital.summarize(notifiers=[Pager.callback()])
        assert Pager.told == []
        hospital.summarize(notifiers=[Pager.callback()], page_findings=["pneumothorax"])
        assert len(Pager.told) == 1

    def test_which_were_not_chosen_are_in_order(self, hospital):
        hospital.xray("a")
        batches = hospital.plan(files=["a/0.dcm"])
        hospital.xray("late")
        hospital.process(batches)
        hospital.summarize()

    def test_an_export_that_was_removed_since_is_in_order(self, hospital):
        hospital.xray("a")
        hospital.process(hospital.plan())
        shutil.rmtree(hospital.export)
        hospital.summarize()

    def test_two_patients_under_one_study(self, hospital):
        hospital.xray("good")
        study = generate_uid()
        hospital.xray("one", StudyInstanceUID=study, PatientID="SIM-1")
        hospital.xray("two", StudyInstanceUID=study, PatientID="SIM-2")
        hospital.process(hospital.plan())
        assert "disagree about the patient" in problem_of(hospital)

    def test_a_ct_series_with_an_unreadable_slice(self, hospital):
        hospital.ct(count=20)
        (hospital.export / "ct/9.dcm").write_bytes(b"")
        hospital.xray("good")
        hospital.process(hospital.plan())
        assert "it would be sent incomplete" in problem_of(hospital)
        assert hospital.sent() == 1

    @pytest.mark.parametrize("outcome", ["unsupported", "invalid"])
    def test_a_night_without_a_single_result(self, hospital, outcome):
        for number in range(3):
            (film,) = hospital.xray(str(number))
            hospital.control.plan(film.SOPInstanceUID, outcome=outcome)
        hospital.process(hospital.plan())
        assert "Not one of 3 resources has a result" in problem_of(hospital)

    def test_a_manifest_that_an_earlier_night_lost(self, hospital):
        (film,) = hospital.xray("a")
        hospital.control.plan(film.SOPInstanceUID, outcome="stuck")
        hospital.process(hospital.plan(wait_seconds=0.2))
        shutil.rmtree(next(hospital.root.glob("runs/*/*")))
        hospital.new_run("scheduled__2")
        hospital.xray("b")
        hospital.process(hospital.plan(files=["b/0.dcm"]))
        assert "lost what an earlier night planned" in problem_of(hospital)
        assert [row.outcome for row in hospital.rows().values()] == ["ready"]


class TestLateImagesOfAKnownSeries:
    def test_are_sent_though_they_are_fewer_than_a_series_must_have(self, hospital):
        images = slices(25)
        for number, each in enumerate(images[:20]):
            hospital.put(f"ct/{number}.dcm", each)
        hospital.night()
        shutil.rmtree(hospital.export)
        for number, each in enumerate(images[20:]):
            hospital.put(f"ct/late{number}.dcm", each)
        hospital.new_run("scheduled__2")
        (row,) = hospital.night()["resources"]
        assert (row["revision"], row["outcome"]) == (2, "ready")
        assert "25 images analysed" in row["impression"]


class TestAnotherConnection:
    def test_has_results_of_its_own(self, hospital, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_PREPRODUCTION", os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
        (film,) = hospital.xray()
        hospital.process(hospital.plan(qure_conn_id="preproduction"))
        hospital.new_run("scheduled__2")
        hospital.night()
        row = hospital.rows()[film.SOPInstanceUID]
        assert (row.revision, row.why, hospital.sent()) == (2, Why.REVISION, 2)


class TestAnInstanceInAnotherSeries:
    def test_is_sent_anew_and_stops_no_other(self, hospital):
        (film,) = hospital.xray("a")
        hospital.xray("b")
        hospital.plan()
        film.SeriesInstanceUID = generate_uid()
        hospital.put("a/0.dcm", film)
        hospital.new_run("scheduled__2")
        for batch in hospital.plan(max_batches=2):
            hospital.upload(batch)
        assert all(row.uploaded_at for row in hospital.rows().values())


class TestAnotherPatientUnderTheSameImageUid:
    def test_does_not_get_the_first_ones_result(self, hospital):
        """The service answers by UID; of a film with the same size nothing else differs."""
        (film,) = hospital.xray("a", PatientID="SIM-1")
        hospital.control.plan(film.SOPInstanceUID, findings=["pneumothorax"], kinds=["report_pdf"])
        hospital.night()
        film.PatientID = "SIM-2"
        study = film.StudyInstanceUID
        film.StudyInstanceUID = study[:-1] + ("1" if study[-1] != "1" else "2")
        hospital.put("a/0.dcm", film)
        hospital.new_run("scheduled__2")
        hospital.process(hospital.plan(wait_seconds=0.5))
        (row,) = hospital.rows().values()
        assert (row.revision, "may predate" in row.doubt) == (2, True)


class TestAnOrphanedPlan:
    def test_leaves_the_night_to_the_try_that_came_after_it(self, hospital, monkeypatch):
        hospital.xray()
        real, batches = QurePlanOperator._divide, []

        def overtaken(self, *arguments):
            monkeypatch.setattr(QurePlanOperator, "_divide", real)
            hospital.xray("came meanwhile")
            batches.extend(hospital.plan())
            return real(self, *arguments)

        monkeypatch.setattr(QurePlanOperator, "_divide", overtaken)
        with pytest.raises(LeaseLostError, match="Another try of the plan began since"):
            hospital.plan()
        hospital.process(batches)
        hospital.summarize()
        assert hospital.summary()["outcomes"] == {"ready": 2}
