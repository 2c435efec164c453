import json
import multiprocessing
import time
import traceback

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from ledger_kit import begin, finish, identity, instance, plan, series
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from qure_provider.api.model import Meaning, Outcome, ResultAnswer, Route
from qure_provider.dicom.model import SelectedSeries, Series
from qure_provider.ledger.batch_ref import BatchRef
from qure_provider.ledger.database import (
    HEAD,
    MIGRATIONS,
    VERSION_TABLE,
    LedgerError,
    is_current,
    migrate,
    open_engine,
)
from qure_provider.ledger.ledger import LeaseLostError, Ledger, Why
from qure_provider.ledger.schema import metadata

OLD_PARCEL = """INSERT INTO parcels (id, kind, subject, revision, digest, study_instance_uid, product, resource_ids,
    urgent, created_at) VALUES (1, 'report', 'r', 1, 'd', '1.2.3', 'qxr', '[1]', false, 1)"""
OLD_DELIVERY = """INSERT INTO deliveries (parcel_id, destination, sends, state, reason, tries, due_at, lease_owner,
    lease_until, receipt, created_at) VALUES (1, 'ris', '[]', 'held', '', 1, 1, '', 0, '{}', 1)"""


class TestTheDatabase:
    def test_without_tables_it_says_what_to_run_first(self, url):
        with pytest.raises(LedgerError, match="run the plan task first"), Ledger.open(url):
            pass

    def test_its_migrations_make_what_the_code_expects(self, url):
        engine = open_engine(url)
        migrate(engine)
        assert is_current(engine)
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "version_table": VERSION_TABLE}
            )
            assert compare_metadata(context, metadata) == []
        engine.dispose()

    def test_migrating_again_changes_nothing(self, url):
        engine = open_engine(url)
        migrate(engine)
        migrate(engine)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT version_num FROM qure_alembic_version")) == HEAD
        engine.dispose()

    def test_one_of_the_first_version_is_brought_up_to_date_with_what_it_holds(self, url):
        engine = open_engine(url)
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0001")
            connection.execute(text(OLD_PARCEL))
            connection.execute(text(OLD_DELIVERY))
        engine.dispose()
        with pytest.raises(LedgerError, match="of this version"), Ledger.open(url):
            pass
        with Ledger.open(url, create=True) as ledger:
            (row,) = ledger.deliveries.of_study("1.2.3")
        assert (row.destination, row.state.value, row.was_in_doubt) == ("ris", "held", False)

    def test_a_database_of_another_kind_is_refused_with_the_setting_to_change(self):
        with pytest.raises(LedgerError, match=r"mysql: change \[qure\] ledger_conn_id"):
            open_engine("mysql://user@host/db")

    def test_its_errors_name_no_patient(self, ledger):
        with ledger._engine.begin() as connection:
            connection.execute(text("ALTER TABLE studies DROP COLUMN first_seen_at"))
        named = series(of=identity(1, patient_name="CANARY^NAME", patient_id="CANARY-ID"))
        with pytest.raises(SQLAlchemyError) as failure:
            ledger.assess([named])
        assert "CANARY" not in "".join(traceback.format_exception(failure.value))


class TestRuns:
    def test_a_retry_finds_the_run_with_its_deadline(self, ledger):
        first = begin(ledger, deadline=1000.0)
        assert begin(ledger, deadline=2000.0) == first
        assert ledger.find_run(dag_id="night", run_id="r1", group_id="g") == first

    def test_a_clear_sets_a_new_one_and_forgets_what_was_counted(self, ledger):
        first = begin(ledger)
        plan(ledger, first, series())
        again = begin(ledger, clear_number=1, deadline=2000.0)
        assert (again.id, again.deadline, again.counts) == (first.id, 2000.0, {})

    def test_another_group_of_the_same_dag_is_another_run(self, ledger):
        assert begin(ledger).id != begin(ledger, group_id="other").id

    def test_one_that_never_began_is_not_found(self, ledger):
        assert ledger.find_run(dag_id="night", run_id="r1", group_id="g") is None

    def test_what_is_usual_is_the_median_of_the_last_finished_nights(self, ledger):
        assert ledger.usual_found(dag_id="night", before=time.time() + 1) is None
        for number, count in enumerate([1, 50, 3, 4]):
            run = begin(ledger, f"r{number}")
            plan(ledger, run, *(series(100 * number + each) for each in range(count)))
            ledger.finish_run(run.id)
        begin(ledger, "not finished")
        later = time.time() + 1
        assert ledger.usual_found(dag_id="night", before=later) == 3.5
        assert ledger.usual_found(dag_id="night", before=later, nights=3) == 4
        assert ledger.usual_found(dag_id="night", before=0) is None
        assert ledger.usual_found(dag_id="other", before=later) is None


class TestAssessing:
    def whys(self, ledger, *selected, **arguments):
        return [[row.why for row in entry.rows] for entry in ledger.assess(list(selected), **arguments)]

    def test_what_nobody_knows_is_new(self, ledger):
        entries = ledger.assess([series(1), series(2, route=Route.XRAY, images=2)])
        assert [[row.why for row in entry.rows] for entry in entries] == [[Why.NEW], [Why.NEW, Why.NEW]]
        (ct,), xrays = entries[0].rows, entries[1].rows
        assert (ct.uid, ct.route, ct.revision) == ("1.2.1.1", Route.CT, 1)
        assert [row.uid for row in xrays] == ["1.2.2.1.0", "1.2.2.1.1"]
        assert ct.identity == identity(1)
        assert (ct.outcome, ct.meaning, ct.uploaded_at, ct.is_over) == (None, Meaning.UNKNOWN, None, False)

    def test_what_was_begun_and_not_finished_is_waiting(self, ledger):
        ledger.assess([series()])
        assert self.whys(ledger, series()) == [[Why.WAITING]]

    @pytest.mark.parametrize("outcome", [Outcome.READY, Outcome.INVALID, Outcome.UNSUPPORTED])
    def test_what_has_its_answer_is_done(self, ledger, outcome):
        (entry,) = ledger.assess([series()])
        finish(ledger, entry.rows[0].id, outcome)
        (again,) = ledger.assess([series()])
        assert {row.why for row in again.rows} == {Why.DONE}
        assert again.rows[0].is_resolved

    @pytest.mark.parametrize(
        "outcome",
        [
            Outcome.PENDING,
            Outcome.TIMED_OUT,
            Outcome.FAILED,
            Outcome.DENIED,
            Outcome.NOT_UPLOADED,
            Outcome.NOT_COMPUTED,
        ],
    )
    def test_what_has_none_is_waiting(self, ledger, outcome):
        (entry,) = ledger.assess([series()])
        ledger.record_failure([entry.rows[0].id], outcome, "why")
        assert self.whys(ledger, series()) == [[Why.WAITING]]

    def test_a_result_whose_files_may_still_grow_is_waiting(self, ledger):
        (entry,) = ledger.assess([series()])
        ledger.mark_uploaded([entry.rows[0].id])
        ledger.record_answer(entry.rows[0].id, ResultAnswer(Outcome.READY))
        assert self.whys(ledger, series()) == [[Why.WAITING]]

    @pytest.mark.parametrize(
        "changed",
        [
            pytest.param(series(images=4), id="one image more"),
            pytest.param(series(images=2), id="one image less"),
            pytest.param(series(size=101), id="another size"),
            pytest.param(series(of=identity(1, patient_id="SIM-2")), id="another patient ID"),
            pytest.param(series(of=identity(1, patient_name="SIMULATED^OTHER")), id="another name"),
            pytest.param(series(of=identity(1, accession_number="B1")), id="another accession number"),
        ],
    )
    def test_what_changed_is_a_new_revision(self, ledger, changed):
        (entry,) = ledger.assess([series()])
        finish(ledger, entry.rows[0].id)
        (again,) = ledger.assess([changed])
        (row,) = again.rows
        assert (row.why, row.revision, row.outcome) == (Why.REVISION, 2, None)
        assert row.identity == changed.series.identity
        assert self.whys(ledger, changed) == [[Why.WAITING]]

    def test_of_an_xray_series_only_the_image_that_changed_is_one(self, ledger):
        (entry,) = ledger.assess([series(route=Route.XRAY, images=2)])
        for row in entry.rows:
            finish(ledger, row.id)
        assert self.whys(ledger, series(route=Route.XRAY, images=3)) == [[Why.DONE, Why.DONE, Why.NEW]]

    def test_sending_again_on_request_is_a_new_revision(self, ledger):
        (entry,) = ledger.assess([series()])
        finish(ledger, entry.rows[0].id)
        assert self.whys(ledger, series(), recompute=True) == [[Why.REVISION]]

    def test_the_order_of_the_selection_is_kept(self, ledger):
        ledger.assess([series(2)])
        entries = ledger.assess([series(3), series(2), series(1)])
        assert [entry.selected.series.series_instance_uid for entry in entries] == ["1.2.3.1", "1.2.2.1", "1.2.1.1"]
        assert [entry.rows[0].uid for entry in entries] == ["1.2.3.1", "1.2.2.1", "1.2.1.1"]

    def test_a_night_of_a_thousand_is_planned_whole(self, ledger):
        many = [series(number, images=1) for number in range(1001)]
        run = begin(ledger)
        entries = ledger.assess(many)
        ledger.replace_plan(
            run,
            batches_of_rows=[(Route.CT, "m.json", [row for entry in entries for row in entry.rows])],
            done=[],
            counts={},
        )
        assert len({row.uid for row in ledger.rows_of_run(run.id)}) == 1001
        assert {row.why for entry in ledger.assess(many) for row in entry.rows} == {Why.WAITING}

    def test_a_header_of_unreasonable_values_stops_nothing(self, ledger):
        odd = Series(
            identity(1, patient_name="N\x00UL", patient_id="x" * 5000, accession_number="\U0001f480"),
            "1.2.1.1",
            "CT",
            (instance("1.2.1.1.0"),),
            study_date="x" * 100,
            acquired="x" * 100,
            station_name="S" * 300 + "\x00",
            body_part="B" * 300,
        )
        run = begin(ledger)
        plan(ledger, run, SelectedSeries(odd, Route.CT))
        (row,) = ledger.rows_of_run(run.id)
        assert row.identity.patient_id == "x" * 5000
        assert row.station_name.startswith("SSS")


class TestUploads:
    def test_each_acknowledgement_is_kept_once(self, ledger):
        (entry,) = ledger.assess([series()])
        (row,) = entry.rows
        ledger.acknowledge([(row.id, "1.1"), (row.id, "1.2")])
        ledger.acknowledge([(row.id, "1.2"), (row.id, "1.3")])
        ledger.acknowledge([])
        assert ledger.acknowledged([row.id, 999]) == {row.id: {"1.1", "1.2", "1.3"}, 999: set()}

    def test_what_turned_out_not_to_be_held_is_open_again(self, ledger):
        entries = ledger.assess([series(1), series(2)])
        first, second = (entry.rows[0].id for entry in entries)
        ledger.acknowledge([(first, "1.1"), (first, "1.2"), (second, "1.1")])
        run = begin(ledger)
        plan(ledger, run, series(1), series(2))
        ledger.mark_uploaded([first, second])
        ledger.retract([(first, "1.1")])
        assert ledger.acknowledged([first, second]) == {first: {"1.2"}, second: {"1.1"}}
        assert [row.uploaded_at is None for row in ledger.rows_of_run(run.id)] == [True, False]


class TestAnswers:
    @pytest.fixture
    def row(self, ledger):
        run = begin(ledger)
        plan(ledger, run, series())
        return lambda: ledger.rows_of_run(run.id)[0]

    def test_all_but_the_addresses_is_kept(self, ledger, row):
        answer = ResultAnswer(
            Outcome.READY,
            triage="Critical",
            meaning=Meaning.URGENT,
            usecase="qer",
            files={"sc": ("https://secret/1", "https://secret/2")},
        )
        ledger.record_answer(row().id, answer, store_path="studies/x", settled=True)
        kept = row()
        assert (kept.outcome, kept.triage, kept.meaning, kept.usecase) == ("ready", "Critical", "urgent", "qer")
        assert (kept.file_counts, kept.store_path, kept.is_resolved) == ({"sc": 2}, "studies/x", True)
        assert "secret" not in repr(kept)

    def test_when_it_was_ready_first_stays(self, ledger, row):
        ledger.record_answer(row().id, ResultAnswer(Outcome.READY), store_path="x")
        first = row().ready_at
        time.sleep(0.01)
        ledger.record_answer(row().id, ResultAnswer(Outcome.READY))
        assert (row().ready_at, row().store_path, row().is_over) == (first, "x", False)

    def test_a_word_that_is_longer_than_any_of_the_vendors_stops_nothing(self, ledger, row):
        ledger.record_answer(row().id, ResultAnswer(Outcome.READY, triage="x" * 500, usecase="y" * 500))
        assert row().triage.startswith("xxx")
        assert row().meaning == "unknown"

    @pytest.mark.parametrize("outcome", list(Outcome))
    def test_every_outcome_comes_back_as_it_was(self, ledger, row, outcome):
        ledger.record_answer(row().id, ResultAnswer(outcome, reason="why"))
        assert (row().outcome, row().reason) == (outcome, "why")


class TestLeases:
    def test_the_newest_try_has_it(self, ledger):
        (batch,) = plan(ledger, begin(ledger), series())
        ledger.take_lease(batch, "first")
        ledger.check_lease(batch, "first")
        ledger.take_lease(batch, "second")
        with pytest.raises(LeaseLostError, match="Another try"):
            ledger.check_lease(batch, "first")
        ledger.check_lease(batch, "second")

    def test_a_batch_of_an_old_plan_is_no_more_and_its_key_is_not_given_again(self, ledger):
        run = begin(ledger)
        (old,) = plan(ledger, run, series())
        (new,) = plan(ledger, run, series())
        assert new != old
        for ask in (
            lambda: ledger.take_lease(old, "x"),
            lambda: ledger.check_lease(old, "x"),
            lambda: ledger.manifest_of_batch(old),
            lambda: ledger.run_of_batch(old),
        ):
            with pytest.raises(LeaseLostError):
                ask()


class TestFailures:
    def test_what_another_run_brought_meanwhile_stands(self, ledger):
        run = begin(ledger)
        plan(ledger, run, series(1))
        (row,) = ledger.rows_of_run(run.id)
        finish(ledger, row.id)
        for outcome in (Outcome.PENDING, Outcome.FAILED, Outcome.TIMED_OUT):
            ledger.record_failure([row.id], outcome, "a question failed")
        assert [(each.outcome, each.reason) for each in ledger.rows_of_run(run.id)] == [(Outcome.READY, "")]

    def test_a_ready_result_gives_way_only_where_the_service_says_something_else(self, ledger):
        run = begin(ledger)
        plan(ledger, run, series(1))
        (row,) = ledger.rows_of_run(run.id)
        ledger.record_answer(row.id, ResultAnswer(Outcome.READY, triage="Routine", meaning=Meaning.NO_FINDING))
        ledger.record_failure([row.id], Outcome.PENDING, "a question failed")
        assert ledger.rows_of_run(run.id)[0].outcome is Outcome.READY
        ledger.record_failure([row.id], Outcome.PENDING, "its files failed", is_outdated=True)
        (row,) = ledger.rows_of_run(run.id)
        assert (row.outcome, row.meaning, row.triage) == (Outcome.PENDING, Meaning.UNKNOWN, None)


class TestAlerts:
    def test_each_is_sent_or_failed_and_once_sent_stays_so(self, ledger):
        run = begin(ledger)
        plan(ledger, run, series(1), series(2))
        first, second = (row.id for row in ledger.rows_of_run(run.id))
        ledger.record_alert(first, "pager", error="OSError")
        assert ledger.alert_counts(run.id, ["pager", "mail"]) == {"sent": 0, "failed": 1}
        ledger.record_alert(first, "pager")
        ledger.record_alert(first, "pager", error="OSError")
        ledger.record_alert(second, "mail", error="E" * 1000)
        assert ledger.sent_alerts([first, second]) == {(first, "pager")}
        assert ledger.alert_counts(run.id, ["pager", "mail"]) == {"sent": 1, "failed": 1}
        assert ledger.alert_counts(run.id, ["a pager with other arguments"]) == {"sent": 1, "failed": 0}
        assert ledger.sent_alerts([]) == set()
        many = range(100_000)  # more than one statement may name
        assert ledger.sent_alerts(many) == {(first, "pager")}
        assert ledger.unsent_alerts(many) == {(second, "mail")}

    def test_one_alone_tries_at_a_time_and_nobody_once_it_was_sent(self, ledger):
        run = begin(ledger)
        plan(ledger, run, series(1))
        (row,) = ledger.rows_of_run(run.id)
        begun = [ledger.begin_alert(row.id, "pager", seconds=60) for _ in range(2)]
        assert begun == [True, False]
        assert ledger.begin_alert(row.id, "mail", seconds=0)
        assert ledger.begin_alert(row.id, "mail", seconds=60)  # whoever tried before has died
        ledger.record_alert(row.id, "pager", error="OSError")
        assert ledger.begin_alert(row.id, "pager", seconds=0)
        ledger.record_alert(row.id, "pager")
        assert not ledger.begin_alert(row.id, "pager", seconds=60)
        assert ledger.sent_alerts([row.id]) == {(row.id, "pager")}


class TestBatchesInXCom:
    REF = BatchRef(1, "ct", 2, 3, 4, "ct-000")

    def test_come_back_as_they_were(self):
        assert BatchRef.from_xcom(json.loads(json.dumps(self.REF.to_xcom()))) == self.REF

    @pytest.mark.parametrize("wrong", [None, [], "x", 1, {}, {"batch_id": 1}, {**REF.to_xcom(), "more": 1}])
    def test_anything_else_is_said_so(self, wrong):
        with pytest.raises(ValueError, match="one of the batches that the plan task returned"):
            BatchRef.from_xcom(wrong)


@pytest.mark.system
def test_a_resource_that_another_run_records_meanwhile_is_the_same_one(postgresql, monkeypatch):
    """SQLite lets no two in; on PostgreSQL a night and a run by hand can plan the same study in one moment."""
    engine = create_engine(f"{postgresql}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE meanwhile"))
    engine.dispose()
    real = Ledger._latest
    with Ledger.open(f"{postgresql}/meanwhile", create=True) as ledger:

        def overtaken(self, *arguments):
            found = real(self, *arguments)
            monkeypatch.setattr(Ledger, "_latest", real)
            with Ledger.open(f"{postgresql}/meanwhile") as other:
                others.extend(other.assess([series(2)]))
            return found

        others = []
        ledger.assess([series(1, of=identity(2))])  # the study is known already: neither waits for its row
        monkeypatch.setattr(Ledger, "_latest", overtaken)
        (entry,) = ledger.assess([series(2)])
        assert entry.rows[0].id == others[0].rows[0].id


# Several processes at once, as tasks and triggerers are.

WORKERS = 3
ROUNDS = 10


def work(url, number, gate, failures):
    try:
        gate.wait(120)
        with Ledger.open(url, create=True) as ledger:
            run = begin(ledger, f"r{number}")
            shared, own = plan(ledger, run, series(1), series(100 + number))
            for batch in (shared, own):
                ledger.take_lease(batch, f"owner{number}")
            for _ in range(ROUNDS):
                for row in ledger.rows_of_run(run.id):
                    ledger.acknowledge([(row.id, f"1.{each}") for each in range(20)])
                    ledger.mark_uploaded([row.id])
                    ledger.record_answer(row.id, ResultAnswer(Outcome.PENDING))
                    ledger.record_alert(row.id, "pager", error="OSError")
                ledger.check_lease(own, f"owner{number}")
    except BaseException as failure:
        failures.put(f"{type(failure).__name__}: {failure}")
        raise


def test_processes_that_write_at_once_wait_for_each_other_and_lose_nothing(url):
    """They begin with no tables at all, plan the same series, and write to the same rows."""
    processes = multiprocessing.get_context("spawn")
    gate, failures = processes.Barrier(WORKERS), processes.Queue()
    workers = [processes.Process(target=work, args=(url, number, gate, failures)) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    problems = []
    while not failures.empty():
        problems.append(failures.get())
    assert problems == []
    assert [worker.exitcode for worker in workers] == [0] * WORKERS

    with Ledger.open(url) as ledger:
        rows = [
            ledger.rows_of_run(ledger.find_run(dag_id="night", run_id=f"r{number}", group_id="g").id)
            for number in range(WORKERS)
        ]
        assert len({row.id for group in rows for row in group if row.uid == "1.2.1.1"}) == 1
        assert len({row.id for group in rows for row in group}) == WORKERS + 1
        held = ledger.acknowledged(row.id for group in rows for row in group)
        assert all(len(uids) == 20 for uids in held.values())
        with ledger._engine.connect() as connection:
            tries = connection.scalars(text("SELECT tries FROM alerts ORDER BY tries")).all()
        assert tries == [ROUNDS] * WORKERS + [ROUNDS * WORKERS]
