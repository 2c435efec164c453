"""What lies in the store, and what the summary makes of it."""

import json
import shutil
from dataclasses import replace

import pytest
from pipeline_kit import Hospital

from qure_provider.emulator.model import Answer
from qure_provider.hooks.qure import QureHook
from qure_provider.operators.fetching import fetch_result
from qure_provider.operators.summarize import NightUnresolvedError, QureSummarizeOperator
from qure_provider.store import Store


class TestNamesOfFiles:
    """Which kinds of files there are is the account's, and may change."""

    @pytest.fixture
    def fetched(self, hospital: Hospital):
        """Fetch a result that offers these kinds, so many files each; return its assets by kind."""
        (film,) = hospital.xray()
        (batch,) = hospital.plan()
        hospital.upload(batch)
        (row,) = hospital.rows().values()
        address = None

        def fetch(**counts):
            nonlocal address
            with QureHook() as hook:
                address = address or hook.result(row.ref).files["report_pdf"][0]
                files = {kind.replace("__", "-"): [address] * count for kind, count in counts.items()}
                patch = {"result": {"files": None}}
                hospital.control.plan(film.SOPInstanceUID, patch=patch)
                hospital.control.plan(film.SOPInstanceUID, patch={"result": {"files": files}}, kinds=())
                answer = hook.result(row.ref)
                result = fetch_result(hook, Store(str(hospital.root)), row.ref, answer, "one")
            folder = hospital.root / "one"
            names = [asset.name for asset in result.assets]
            assert len(set(names)) == len(names)
            assert {path.name for path in folder.iterdir()} == {"result.json", "answer.json", *names}
            assert all((folder / asset.name).stat().st_size == asset.size for asset in result.assets)
            return sorted((asset.kind, asset.name) for asset in result.assets)

        return fetch

    def test_each_kind_gives_its_name_and_several_are_numbered(self, fetched):
        assert fetched(report_pdf=1, sc=2) == [
            ("report_pdf", "report_pdf.pdf"),
            ("sc", "sc-2.pdf"),
            ("sc", "sc.pdf"),
        ]

    def test_a_kind_that_is_named_like_a_number_of_another_takes_nothing_from_it(self, fetched):
        assert len(fetched(sc=2, sc__2=1)) == 3

    def test_a_kind_that_is_named_like_our_own_files_does_not_replace_them(self, fetched):
        assert fetched(result=1, answer=1) == [("answer", "answer-2.pdf"), ("result", "result-2.pdf")]

    def test_late_files_are_added_and_none_is_taken_for_another(self, fetched, hospital):
        fetched(sc=1)
        hospital.control.forget_requests()
        assert fetched(a=1, sc=2) == [("a", "a.pdf"), ("sc", "sc-2.pdf"), ("sc", "sc-3.pdf")]
        assert hospital.control.count("asset") == 3

    def test_what_neither_gained_nor_lost_a_file_is_not_fetched_again(self, fetched, hospital):
        fetched(sc=2)
        hospital.control.forget_requests()
        assert fetched(a=1, sc=2) == [("a", "a.pdf"), ("sc", "sc-2.pdf"), ("sc", "sc.pdf")]
        assert hospital.control.count("asset") == 1

    def test_a_file_that_is_put_before_another_does_not_take_its_place(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, kinds=("report_pdf", "report_sr"))
        (batch,) = hospital.plan()
        hospital.upload(batch)
        (row,) = hospital.rows().values()
        store = Store(str(hospital.root))
        with QureHook() as hook:
            answer = hook.result(row.ref)
            first, second = answer.files["report_pdf"], answer.files["report_sr"]
            one = replace(answer, files={"sc": first})
            both = replace(answer, files={"sc": (*second, *first)})
            kept = fetch_result(hook, store, row.ref, one, "one").assets[0]
            assets = fetch_result(hook, store, row.ref, both, "one").assets
        assert kept.sha256 in {asset.sha256 for asset in assets}
        assert len({asset.sha256 for asset in assets}) == 2


class TestTheSummary:
    def test_is_written_as_data_and_as_a_page_beside_it(self, hospital):
        hospital.xray()
        hospital.ct()
        hospital.process(hospital.plan())
        returned = hospital.summarize()
        page = (hospital.root / returned["summary"]).with_name("index.html")
        assert returned["outcomes"] == {"ready": 2}
        assert "<html" in page.read_text(encoding="utf-8")

    def test_says_of_each_resource_what_became_of_it_without_naming_anybody(self, hospital):
        canary = {"PatientName": "CANARY^NAME", "PatientID": "CANARY-ID", "AccessionNumber": "CANARY-ACC"}
        films = [hospital.xray(f"CANARY-{number}", **canary)[0] for number in range(3)]
        for film, outcome in zip(films[1:], ("invalid", "unsupported"), strict=True):
            hospital.control.plan(film.SOPInstanceUID, outcome=outcome)

        summary = hospital.night()

        assert summary["outcomes"] == {"invalid": 1, "ready": 1, "unsupported": 1}
        assert all(row["reason"] for row in summary["resources"] if row["outcome"] != "ready")
        assert summary["problems"] == []
        for path in (hospital.root / "runs").rglob("summary.json"):
            assert "CANARY" not in path.read_text(encoding="utf-8")
        for path in (hospital.root / "runs").rglob("index.html"):
            assert "CANARY" not in path.read_text(encoding="utf-8")

    def test_names_what_is_unresolved_and_the_run_is_red(self, hospital):
        for number in range(22):
            hospital.xray(f"x{number}")
        hospital.plan()
        with pytest.raises(NightUnresolvedError) as failure:
            hospital.summarize()
        text = str(failure.value)
        assert text.startswith("Night 2026-11-20 needs somebody: ")
        assert text.count("Study ") == 20
        assert "And 2 more" in text
        assert len(hospital.summary()["resources"]) == 22

    def test_survives_files_that_were_removed_since_and_names_them(self, hospital):
        hospital.xray("a")
        hospital.xray("b")
        hospital.night()
        gone, _ = hospital.rows().values()
        shutil.rmtree(hospital.root / gone.store_path)
        hospital.new_run("manual__again")
        assert hospital.plan() == []

        with pytest.raises(NightUnresolvedError, match=r"no longer in the store"):
            hospital.summarize()

        assert len(hospital.summary()["resources"]) == 2

    @pytest.mark.parametrize("content", ["", "[]", '{"schema": 99}', '{"schema": 1}', "\x00"])
    def test_survives_a_damaged_result(self, hospital, content):
        hospital.xray()
        (batch,) = hospital.plan()
        hospital.process([batch])
        (row,) = hospital.rows().values()
        (hospital.root / row.store_path / "result.json").write_text(content)
        with pytest.raises(NightUnresolvedError, match="cannot be read"):
            hospital.summarize()

    def test_knows_how_long_each_took(self, hospital):
        hospital.xray()
        (row,) = hospital.night()["resources"]
        assert 0 <= row["seconds_to_ready"] < 300

    def test_shows_a_picture_that_is_there(self, hospital):
        hospital.xray()
        (row,) = hospital.night()["resources"]
        assert (hospital.root / row["image"]).read_bytes().startswith((b"\x89PNG", b"\xff\xd8"))

    def test_of_a_cleared_run_whose_plan_failed_is_red(self, hospital):
        hospital.xray()
        hospital.night()
        hospital.new_run(clear_number=1)
        (hospital.export / "xray/0.dcm").unlink()
        hospital.export.joinpath("xray").rmdir()
        hospital.export.rmdir()
        with pytest.raises(FileNotFoundError):
            hospital.plan()
        with pytest.raises(NightUnresolvedError):
            hospital.summarize()

    def test_a_share_beyond_reason_fails_when_the_dag_is_parsed(self):
        with pytest.raises(ValueError, match="between 0 and 1"):
            QureSummarizeOperator(task_id="summarize", least_share_of_usual=50)


def test_a_reason_of_the_services_own_that_may_name_somebody_is_not_repeated(hospital, caplog):
    """A body is never repeated, only a short remark of plain words."""
    (film,) = hospital.xray()
    (batch,) = hospital.plan()
    hospital.upload(batch)
    body = json.dumps({"reason": "Patient CANARY-4711 has no license"})
    hospital.control.inject(Answer(kind="results", status=400, body=body, times=None))
    hospital.collect(batch)
    row = hospital.rows()[film.SOPInstanceUID]
    assert row.outcome == "unsupported"
    assert "CANARY" not in row.reason + caplog.text
