"""A resource that is judged anew, sent again or taken back: what its receivers are left with."""

import shutil

from qure_provider import settings
from qure_provider.ledger.deliveries import NOT_READY


def compute_again(night, uid):
    """A newer revision of a resource whose result is the same to the byte."""
    row = night.rows()[uid]
    newer = f"{row.store_path.rpartition('/')[0]}/r2"
    shutil.copytree(night.root / row.store_path, night.root / newer)
    with night.ledger() as ledger, ledger._engine.begin() as connection:
        columns = [c for c in _columns(connection) if c not in {"id", "revision", "fingerprint", "store_path"}]
        names = ", ".join(columns)
        connection.exec_driver_sql(
            f"INSERT INTO resources (revision, fingerprint, store_path, {names}) "
            f"SELECT 2, 'changed', '{newer}', {names} FROM resources WHERE uid = '{uid}'"
        )
        connection.exec_driver_sql(
            f"UPDATE planned SET resource_id = (SELECT max(id) FROM resources) WHERE resource_id = {row.id}"
        )
    return newer


def _columns(connection):
    return [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(resources)")]


def withdraw(night, study):
    with night.ledger() as ledger:
        found = ledger.deliveries.not_withdrawn(study_instance_uid=study)
        ledger.deliveries.withdraw(found, by="somebody", why="wrong")


def objects_of(night, uid):
    return sorted(night.deliveries(subject=uid), key=lambda row: row.id)


class TestAnObjectsUid:
    def test_that_another_content_has_at_the_destination_already_is_held(self, night):
        night.onward(night.to_folder)
        (row,) = objects_of(night, night.head_series)
        night.sql("UPDATE deliveries SET receipt = replace(receipt, :old, :new)", old='"sha256": ["', new='"x": ["')
        night.add_file(night.rows()[night.head_series].store_path, "late", b"%PDF-1.4 SIMULATED", "application/pdf")
        night.onward(night.to_folder)
        newest = objects_of(night, night.head_series)[-1]
        assert newest.revision == row.revision + 1
        assert newest.state.value == "held"
        assert newest.reason.startswith("another object with the same UID was delivered there before")

    def test_that_the_same_content_has_there_is_none_the_worse(self, night):
        night.onward(night.to_folder)
        compute_again(night, night.head_series)
        night.onward(night.to_folder)
        assert [row.state.value for row in objects_of(night, night.head_series)] == ["delivered", "delivered"]


class TestARevision:
    def test_is_whole_in_its_folder_even_where_a_file_of_it_is_as_before(self, night):
        night.onward(night.to_folder)
        newer = compute_again(night, night.head_series)
        night.onward(night.to_folder)
        folder = newer.removeprefix("studies/")
        got = {name.rpartition("/")[2] for name in night.received() if name.startswith(f"{folder}/")}
        there = {path.name for path in (night.root / newer).iterdir() if path.suffix != ".json"}
        assert got == {name for name in there if not name.startswith("original")}

    def test_goes_out_after_a_withdrawal_though_its_files_are_the_same(self, night):
        night.onward(night.to_folder)
        (first,) = objects_of(night, night.head_series)
        with night.ledger() as ledger:
            assert ledger.deliveries.earlier_receipts(first) == []
        withdraw(night, night.head)
        night.deliver(night.to_folder)
        compute_again(night, night.head_series)
        night.onward(night.to_folder)
        newest = objects_of(night, night.head_series)[-1]
        assert newest.state.value == "delivered"
        assert newest.receipt["sha256"]
        with night.ledger() as ledger:
            assert ledger.deliveries.earlier_receipts(newest) == []


class TestAStoredResultThatIsLost:
    def test_stops_nothing_else_and_is_named(self, night, ris):
        (night.root / night.rows()[night.head_series].store_path / "result.json").unlink()
        problems = night.enqueue([night.to_folder, "ris"])
        night.deliver(night.to_folder, "ris")
        ref = settings.short_ref(night.head)
        assert len(problems) == 2
        assert all(f"Study {ref}" in problem for problem in problems)
        assert night.states() == {"delivered": 3}
        assert len(ris.messages) == 1


class TestWhatIsNotReadyNow:
    def test_waits_and_goes_out_when_its_result_is_there_again(self, night):
        night.enqueue([night.to_folder])
        night.sql("UPDATE resources SET outcome = :outcome WHERE uid = :uid", outcome="pending", uid=night.head_series)
        night.deliver(night.to_folder)
        (row,) = objects_of(night, night.head_series)
        assert (row.state.value, row.reason) == ("waiting", NOT_READY)
        night.sql("UPDATE resources SET outcome = :outcome WHERE uid = :uid", outcome="ready", uid=night.head_series)
        night.onward(night.to_folder)
        assert night.states() == {"delivered": 3}

    def test_what_was_in_doubt_goes_out_once_it_is_in_doubt_no_more(self, night):
        night.sql("UPDATE resources SET doubt = 'SIMULATED doubt' WHERE uid = :uid", uid=night.head_series)
        night.onward(night.to_folder)
        assert night.states() == {"delivered": 2, "held": 1}
        night.sql("UPDATE resources SET doubt = ''")
        night.onward(night.to_folder)
        assert night.states() == {"delivered": 3}

    def test_a_withdrawal_needs_no_newer_answer(self, night, ris):
        night.onward("ris")
        night.sql("UPDATE resources SET outcome = :outcome WHERE uid = :uid", outcome="invalid", uid=night.head_series)
        withdraw(night, night.head)
        night.deliver("ris")
        assert night.states("ris") == {"delivered": 3}
        assert "WITHDRAWN" in ris.messages[-1].raw.decode()
