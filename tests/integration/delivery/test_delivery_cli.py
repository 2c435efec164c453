import csv
import io
import json
import re
import time

import pytest
from airflow.cli.cli_config import ActionCommand
from airflow.cli.cli_parser import get_parser
from delivery_kit import mllp_connection
from pipeline_kit import Pager
from support import hl7_receiver as receivers

from qure_provider import cli, settings
from qure_provider.ledger.deliveries import ParcelKind
from qure_provider.retries import NightUnresolvedError

NAMES = ("SIMULATED", "SIM-1", "SIM-2", "SIM-A1", "SIM-A2", "19700101")


@pytest.fixture
def qure(night, capsys):
    """Run ``airflow qure ...`` through Airflow's own parser; return what it printed."""
    (group,) = cli.get_qure_cli_commands()
    commands = {command.name: command for command in group.subcommands}

    def run(name, *words):
        parser = parser_of(commands[name])
        arguments = parser.parse_args([*map(str, words), "--store-root", str(night.root)])
        capsys.readouterr()
        commands[name].func(arguments)
        return capsys.readouterr().out

    return run


def parser_of(command: ActionCommand):
    import argparse

    parser = argparse.ArgumentParser()
    for argument in command.args:
        argument.add_to_parser(parser)
    return parser


def withdraw(qure, *words, yes=True):
    who = ["--by", "Dr Simulated", "--why", "SIMULATED reason"]
    return json.loads(qure("withdraw", *words, *who, *(["--yes"] if yes else [])))


class TestLooking:
    def test_the_commands_are_airflows(self):
        assert get_parser().parse_args(["qure", "night", "2026-11-20"]).night == "2026-11-20"

    def test_everything_of_a_study_with_whose_it_is(self, night, qure, ris):
        night.onward(night.to_folder, "ris")
        shown = json.loads(qure("study", night.chest))
        assert shown["identity"]["patient_id"] == "SIM-1"
        assert [resource["outcome"] for resource in shown["resources"]] == ["ready", "ready"]
        assert {(row["destination"], row["state"]) for row in shown["deliveries"]} == {
            (night.to_folder, "delivered"),
            ("ris", "delivered"),
        }
        assert [event["kind"] for event in shown["events"]] == ["delivered"] * 3

    def test_a_study_is_found_by_the_ref_that_an_alert_gives(self, night, qure):
        assert qure("study", settings.short_ref(night.chest)) == qure("study", night.chest)

    def test_an_unknown_study_or_night_is_said_to_be_so(self, qure):
        with pytest.raises(SystemExit, match="knows no such study"):
            qure("study", "1.2.3")
        with pytest.raises(SystemExit, match=r"knows no such night\. The newest that it knows: 2026-11-20"):
            qure("night", "1999-01-01")

    def test_times_are_those_of_the_hospitals_clock(self, night, qure, ris, monkeypatch):
        monkeypatch.setenv("AIRFLOW__QURE__TIMEZONE", "Asia/Kolkata")
        night.onward("ris")
        shown = json.loads(qure("study", night.head))
        (run,) = json.loads(qure("night", "2026-11-20"))
        (row, *_) = json.loads(qure("export"))
        times = [
            shown["resources"][0]["uploaded_at"],
            shown["deliveries"][0]["delivered_at"],
            shown["events"][0]["at"],
            run["deadline"],
            row["ready_at"],
        ]
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+05:30", text) for text in times), times

    def test_a_store_that_is_not_there_is_not_made(self, night, qure, tmp_path):
        night.root = tmp_path / "typo"
        with pytest.raises(SystemExit, match=r"There is no store at .*typo: name its folder with --store-root"):
            qure("night", "2026-11-20")
        assert not night.root.exists()

    def test_a_ledger_that_cannot_be_read_is_said_to_be_so(self, night, qure):
        (night.root / "ledger.sqlite3").write_bytes(b"no database" * 1000)
        with pytest.raises(SystemExit, match=r"database cannot be used \(DatabaseError\): check"):
            qure("night", "2026-11-20")

    def test_a_ledger_connection_that_does_not_exist_is_said_to_be_so(self, qure, monkeypatch):
        monkeypatch.setenv("AIRFLOW__QURE__LEDGER_CONN_ID", "typo")
        with pytest.raises(SystemExit, match="no connection 'typo'"):
            qure("night", "2026-11-20")

    def test_a_night_without_names_and_what_needs_somebody(self, night, qure, ris):
        ris.actions = [receivers.answer("AR")]
        night.onward(night.to_folder, "ris")
        printed = qure("night", "2026-11-20")
        (shown,) = json.loads(printed)
        assert shown["outcomes"] == {"ready": 3}
        assert shown["deliveries"]["ris"] == {"dead": 1, "delivered": 1}
        (stuck,) = shown["needs_somebody"]
        assert (stuck["destination"], stuck["state"]) == ("ris", "dead")
        assert not any(word in printed for word in [*NAMES, night.chest, night.head])

    def test_a_night_with_what_its_summary_says_is_wrong(self, night, qure, ris):
        (shown,) = json.loads(qure("night", "2026-11-20"))
        assert shown["problems"] == [
            "The store has no summary of this run that can be read: its summarize task writes one."
        ]
        night.sql("UPDATE resources SET doubt = 'SIMULATED doubt' WHERE uid = :uid", uid=night.lateral)
        with pytest.raises(NightUnresolvedError):
            night.summarize(deliver_to=["ris"], show_only="deliver")
        (shown,) = json.loads(qure("night", "2026-11-20"))
        assert any("report for ris would not be sent: SIMULATED doubt." in problem for problem in shown["problems"])

    @pytest.mark.parametrize("form", ["json", "csv"])
    def test_all_resources_without_names(self, night, qure, form):
        printed = qure("export", "--format", form)
        rows = json.loads(printed) if form == "json" else list(csv.DictReader(io.StringIO(printed)))
        assert sorted(row["product"] for row in rows) == ["qer", "qxr", "qxr"]
        assert {row["night"] for row in rows} == {"2026-11-20"}
        assert not any(word in printed for word in [*NAMES, night.chest, night.head, night.frontal])

    def test_where_no_night_was_planned_yet_it_says_so(self, night, qure, tmp_path):
        night.root = tmp_path / "nothing"
        night.root.mkdir()
        with pytest.raises(SystemExit, match="run the plan task first"):
            qure("export")

    @pytest.mark.parametrize(("form", "printed"), [("json", "[]\n"), ("csv", "night\r\n")])
    def test_of_no_night_at_all_there_is_an_empty_table(self, night, qure, form, printed):
        night.sql("DELETE FROM planned")
        assert qure("export", "--format", form) == printed


class TestForgetting:
    def finish(self, night):
        with night.ledger() as ledger:
            ledger.finish_run(night.run_row(ledger).id)
        long_ago = time.time() - 100 * 86_400
        night.sql("UPDATE runs SET finished_at = :then", then=long_ago)
        night.sql("UPDATE resources SET updated_at = :then", then=long_ago)

    def forget(self, qure, days):
        return json.loads(qure("prune", "--older-than-days", days, "--yes"))["forgotten"]

    def test_it_is_first_counted_and_nothing_is_done(self, night, qure):
        self.finish(night)
        shown = json.loads(qure("prune", "--older-than-days", 90))
        assert shown["would_forget"] == {"runs": 1, "resources": 3, "studies": 2}
        assert "add --yes" in shown["note"]
        assert len(night.table("resources")) == 3

    def test_a_finished_night_that_owes_nothing(self, night, qure):
        night.onward(night.to_folder)
        self.finish(night)
        assert self.forget(qure, 90) == {"runs": 1, "resources": 3, "studies": 2}
        assert night.received()
        assert list((night.root / "studies").rglob("result.json"))

    def test_not_a_newer_one(self, night, qure):
        night.onward(night.to_folder)
        self.finish(night)
        assert self.forget(qure, 101) == {"runs": 0, "resources": 0, "studies": 0}

    def test_not_one_that_never_finished(self, night, qure):
        night.sql("UPDATE resources SET updated_at = 0")
        assert self.forget(qure, 1) == {"runs": 0, "resources": 0, "studies": 0}

    @pytest.mark.parametrize("state", ["waiting", "in doubt", "held", "sending"])
    def test_not_what_is_still_owed(self, night, qure, ris, state):
        night.onward("ris")
        night.sql("UPDATE deliveries SET state = :state", state=state)
        self.finish(night)
        assert self.forget(qure, 90) == {"runs": 0, "resources": 0, "studies": 0}

    def test_a_delivery_of_forgotten_images_that_is_opened_again_is_held(self, night, qure, ris):
        ris.actions = [receivers.answer("AR"), receivers.answer("AR")]
        night.onward("ris")
        self.finish(night)
        self.forget(qure, 90)
        night.redeliver(states="dead")
        assert {row["state"] for row in night.table("deliveries")} == {"held"}
        assert len(ris.messages) == 2

    def test_no_newer_image_gets_the_key_of_one_that_was_forgotten(self, night, qure):
        newest = max(row["id"] for row in night.table("resources"))
        self.finish(night)
        self.forget(qure, 90)
        night.xray("another")
        night.new_run("scheduled__2")
        night.plan()
        assert min(row["id"] for row in night.table("resources")) > newest

    def test_a_day_is_the_least(self, qure):
        with pytest.raises(SystemExit, match="1 or more"):
            qure("prune", "--older-than-days", 0)


class TestTakingBack:
    def test_it_is_first_shown_and_nothing_is_done(self, night, qure, ris):
        night.onward("ris")
        shown = withdraw(qure, "--study", night.chest, yes=False)
        assert [row["product"] for row in shown["would_withdraw"]] == ["qxr"]
        assert "add --yes" in shown["note"]
        assert len(ris.messages) == 2
        assert not any(event["kind"] == "withdrawn" for event in night.history(night.chest))

    def test_a_study_from_all_who_got_it(self, night, qure, ris):
        night.onward(night.to_folder, "ris")
        shown = withdraw(qure, "--study", night.chest)
        assert len(shown["withdrawn"]) == 3
        assert (shown["troubles"], shown["still_owed_to"]) == ([], [])

        message = ris.messages[-1]
        first = next(message for message in ris.messages if night.chest in message.raw.decode())
        assert message["OBR"][3] == first["OBR"][3]
        assert message.control_id != first.control_id
        assert {line[11] for line in message.all("OBX")} == {"W"}
        notes = [name for name in night.received() if name.endswith("WITHDRAWN.json")]
        assert {name.split("/")[0] for name in notes} == {night.chest}
        assert json.loads((night.out / notes[0]).read_text())["because"] == "SIMULATED reason"
        assert len(notes) == 2

    def test_who_and_why_are_recorded(self, night, qure, ris):
        night.onward("ris")
        withdraw(qure, "--study", night.chest)
        (event,) = [event for event in night.history(night.chest) if event["kind"] == "withdrawn"]
        assert (event["detail"]["by"], event["detail"]["why"]) == ("Dr Simulated", "SIMULATED reason")

    def test_a_repeat_does_nothing_new(self, night, qure, ris):
        night.onward(night.to_folder, "ris")
        withdraw(qure, "--study", night.chest)
        events, messages = night.history(night.chest), len(ris.messages)
        assert withdraw(qure, "--study", night.chest)["withdrawn"] == []
        assert (night.history(night.chest), len(ris.messages)) == (events, messages)

    def test_by_product_in_whatever_case(self, night, qure, ris):
        night.onward("ris")
        withdraw(qure, "--product", "qER")
        assert night.head in ris.messages[-1].raw.decode()
        assert len(ris.messages) == 3

    def test_by_model(self, night, qure, ris):
        night.onward("ris")
        assert withdraw(qure, "--model", "another")["withdrawn"] == []
        (row,) = withdraw(qure, "--model", "Latest")["withdrawn"]
        assert row["product"] == "qer"

    def test_results_whose_model_cannot_be_looked_up_are_named_and_hold_up_nothing(self, night, qure, ris):
        night.onward("ris")
        (night.root / night.rows()[night.lateral].store_path / "result.json").unlink()
        shown = withdraw(qure, "--model", "Latest")
        assert [row["product"] for row in shown["withdrawn"]] == ["qer"]
        assert [row["product"] for row in shown["model_not_known"]] == ["qxr"]

    def test_by_date(self, night, qure, ris):
        night.onward("ris")
        assert withdraw(qure, "--since", "2999-01-01", yes=False)["would_withdraw"] == []
        assert len(withdraw(qure, "--since", "2020-01-01", yes=False)["would_withdraw"]) == 2

    @pytest.mark.parametrize("date", ["yesterday", "20.11.2026", "2026-02-30"])
    def test_what_is_no_date_is_refused(self, qure, date):
        with pytest.raises(SystemExit, match=f"--since: '{date}' is no date: write it as YYYY-MM-DD"):
            withdraw(qure, "--since", date, yes=False)

    def test_something_must_be_named(self, qure):
        with pytest.raises(SystemExit, match="Say what to withdraw"):
            withdraw(qure)

    def test_what_was_not_sent_yet_never_goes(self, night, qure, ris, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(None))
        night.onward("ris")
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(ris))
        withdraw(qure, "--study", night.chest)
        night.redeliver(even_if_not_due=True)
        assert [night.head in message.raw.decode() for message in ris.messages] == [True]
        assert {row.reason for row in night.deliveries("ris", study_instance_uid=night.chest)} == {"it was withdrawn"}

    def test_what_is_in_doubt_may_be_there_and_is_taken_back(self, night, qure, ris):
        ris.actions = [receivers.drop]
        night.onward("ris")
        withdraw(qure, "--study", night.head)
        assert {line[11] for line in ris.messages[-1].all("OBX")} == {"W"}
        assert night.head in ris.messages[-1].raw.decode()

    def test_what_was_withdrawn_goes_nowhere_any_more(self, night, qure, ris):
        night.onward(night.to_folder)
        withdraw(qure, "--study", night.chest)
        night.onward(night.to_folder, "ris")
        (row,) = night.deliveries("ris", study_instance_uid=night.chest)
        assert (row.state.value, row.reason) == ("held", "a result in it was withdrawn; only a newer one can go out")
        assert not any(night.chest in message.raw.decode() for message in ris.messages)

    def test_nor_by_a_newer_revision_of_its_report(self, night, qure, ris):
        night.onward("ris")
        withdraw(qure, "--study", night.chest)
        row = night.rows()[night.lateral]
        night.edit_result(row.store_path, report=night.result(row)["report"] | {"impression": "SIMULATED, changed"})
        night.onward("ris")
        assert "SIMULATED, changed" not in ris.messages[-1].raw.decode()

    @pytest.mark.parametrize("receipt", ["the archive's", "lost"])
    def test_every_object_that_arrived_or_may_have_is_named(self, night, qure, tmp_path, receipt):
        night.onward(night.to_folder)
        (row,) = night.deliveries(subject=night.head_series)
        arrived = {tuple(uids) for uids in row.receipt["objects"]}
        if receipt == "lost":
            night.sql("UPDATE deliveries SET state = 'in doubt', receipt = '{}'")
        withdraw(qure, "--study", night.head)
        (withdrawal,) = night.deliveries(subject=night.head_series, kind=ParcelKind.WITHDRAWAL)
        objects = night.assembled(withdrawal, tmp_path).objects
        named = {(item.sop_class_uid, item.sop_instance_uid, item.series_instance_uid) for item in objects}
        assert named == arrived
        assert len(arrived) == 5

    def test_a_receiver_that_is_down_gets_it_later(self, night, qure, ris, monkeypatch):
        night.onward("ris")
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(None))
        assert withdraw(qure, "--study", night.chest)["still_owed_to"] == ["ris"]
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(ris))
        night.redeliver(even_if_not_due=True)
        assert {line[11] for line in ris.messages[-1].all("OBX")} == {"W"}

    def test_people_are_told_once_where_a_receiver_still_shows_what_was_taken_back(self, night, qure, ris, monkeypatch):
        night.onward("ris")
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(None))
        withdraw(qure, "--study", night.chest)
        for _ in range(2):
            night.redeliver(notifiers=[Pager.callback("{{ alert.problem }}")], even_if_not_due=True)
        ((_, told),) = Pager.told
        assert told.startswith("the withdrawal of this result is waiting for ris: ")

    def test_the_withdrawal_of_an_older_result_reaches_those_who_have_it_though_images_were_sent_again(
        self, night, qure, ris
    ):
        night.onward("ris")
        night.send_again(night.head_series)
        withdraw(qure, "--study", night.head)
        assert {line[11] for line in ris.messages[-1].all("OBX")} == {"W"}
        assert night.head in ris.messages[-1].raw.decode()


class TestTryingTheAlerts:
    """``airflow qure alert``: whether people would be told, before something urgent comes."""

    @pytest.fixture
    def alert(self, monkeypatch, capsys):
        Pager.reset()
        (group,) = cli.get_qure_cli_commands()
        (command,) = [command for command in group.subcommands if command.name == "alert"]

        def run(*notifiers):
            monkeypatch.setenv("AIRFLOW__QURE__NOTIFIERS", json.dumps(notifiers))
            capsys.readouterr()
            try:
                command.func(parser_of(command).parse_args([]))
            except SystemExit as exit_:
                return exit_.code, capsys.readouterr().out
            return 0, capsys.readouterr().out

        yield run
        Pager.reset()

    PAGER = {"path": "pipeline_kit.Pager", "kwargs": {"message": "{{ alert.study_ref }}: {{ alert.text }}"}}

    def test_each_notifier_sends_one_that_nobody_can_take_for_a_result(self, alert):
        code, printed = alert(self.PAGER, {**self.PAGER, "kwargs": {"message": "{{ alert.text }}"}})
        assert code == 0
        assert [each["sent"] for each in json.loads(printed)] == [True, True]
        (_, first), (_, second) = Pager.told
        assert first == f"TEST: {second}"
        assert second.startswith("TEST, of no patient and no study")

    def test_one_that_fails_says_why_and_keeps_no_other_from_being_tried(self, alert):
        mail = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"
        without_sender = {"path": mail, "kwargs": {"to": "duty@hospital.example", "smtp_conn_id": "nowhere"}}
        Pager.problems[:] = [ConnectionError("the pager's line is down")]
        code, printed = alert(without_sender, self.PAGER, self.PAGER)
        assert code == 1
        failed, broken, sent = json.loads(printed)
        assert (failed["sent"], failed["error"]) == (False, "AirflowException: SMTP connection is not found.")
        assert broken["error"] == "ConnectionError: the pager's line is down"
        assert sent == {"notifier": "pipeline_kit.Pager", "sent": True, "error": ""}
        assert len(Pager.told) == 1

    def test_nobody_or_nobody_that_can_be_made_is_said(self, alert):
        assert "names nobody" in alert()[0]
        assert "no notifier that can be imported" in alert({"path": "no.such.Notifier", "kwargs": {}})[0]
