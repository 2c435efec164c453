import json
import os
import threading

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem
from sqlalchemy import make_url

from qure_provider.api.model import Route
from qure_provider.ledger.database import LedgerError
from qure_provider.store import Store, ledger_url, open_path, result_folder


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def bucket():
    MemoryFileSystem.store.clear()
    attach("memory", fs=MemoryFileSystem())
    yield "memory://bucket/store"
    MemoryFileSystem.store.clear()


class TestWholeOrNotAtAll:
    def test_what_is_written_is_read_again(self, store):
        store.write_json("a/b.json", {"name": "模擬 ü", "strange": os.fsdecode(b"R\xf6ntgen")})
        store.write_text("a/c.txt", "模擬 ü")
        assert store.read_json("a/b.json") == {"name": "模擬 ü", "strange": os.fsdecode(b"R\xf6ntgen")}
        assert (store.root / "a/c.txt").read_text(encoding="utf-8") == "模擬 ü"

    def test_a_reader_never_sees_a_part(self, store):
        long = {"x": "y" * 2_000_000}
        store.write_json("one.json", long)
        stop = threading.Event()

        def write():
            while not stop.is_set():
                store.write_json("one.json", long)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(30):
                assert store.read_json("one.json") == long
        finally:
            stop.set()
            writer.join()

    def test_a_crash_leaves_what_was_there_and_nothing_else(self, store, monkeypatch):
        store.write_json("one.json", {"is": "old"})
        with monkeypatch.context() as crash:
            crash.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                store.write_json("one.json", {"is": "new"})
        assert store.read_json("one.json") == {"is": "old"}
        assert list((store.root / ".scratch").iterdir()) == []

    def test_what_a_killed_process_left_is_swept_a_day_later_and_not_before(self, store):
        with store.scratch() as in_use:
            left = in_use.with_name("left")
            left.mkdir()
            (left / "asset.dcm").write_bytes(b"SIMULATED")
            os.utime(left, (0, 0))
            assert store.sweep() == 1
            assert (left.exists(), in_use.exists()) == (False, True)
            assert store.sweep() == 0

    def test_a_file_that_is_put_is_moved(self, store):
        with store.scratch() as folder:
            local = folder / "x"
            local.write_bytes(b"content")
            store.put(local, "deep/er/x.pdf")
            assert not local.exists()
        assert (store.root / "deep/er/x.pdf").read_bytes() == b"content"

    def test_what_is_not_there_is_said_so(self, store):
        assert not store.exists("no.json")
        with pytest.raises(FileNotFoundError):
            store.read_json("no.json")


class TestObjectStorage:
    def test_keeps_the_same(self, bucket, tmp_path):
        store = Store(bucket)
        assert isinstance(store.root, ObjectStoragePath)
        store.write_json("a/b.json", {"one": 1})
        local = tmp_path / "x"
        local.write_bytes(b"content")
        store.put(local, "a/x.pdf")
        assert store.read_json("a/b.json") == {"one": 1}
        assert store.path("a/x.pdf").read_bytes() == b"content"
        assert not local.exists()
        assert store.exists("a/x.pdf")
        assert not store.exists("a/y.pdf")

    def test_has_nothing_to_sweep_there(self, bucket):
        assert Store(bucket).sweep() == 0

    def test_needs_no_scratch_folder_there(self, bucket):
        with Store(bucket).scratch() as folder:
            assert folder.is_dir()
        assert not folder.exists()


class TestWhereTheLedgerIs:
    def test_beside_a_local_store(self, tmp_path):
        url = ledger_url(str(tmp_path / "new" / "store"))
        assert url == f"sqlite:///{tmp_path}/new/store/ledger.sqlite3"
        assert (tmp_path / "new/store").is_dir()

    @pytest.mark.parametrize("left", [None, b""], ids=["gone", "empty"])
    def test_no_new_one_is_begun_beside_results(self, store, left):
        ledger_url(str(store.root))
        store.write_json("studies/1.2/3.4/r1/result.json", {})
        if left is not None:
            (store.root / "ledger.sqlite3").write_bytes(left)
        with pytest.raises(LedgerError, match=r"put ledger\.sqlite3 back"):
            ledger_url(str(store.root))
        (store.root / "ledger.sqlite3").write_bytes(b"a ledger")
        assert ledger_url(str(store.root)).endswith("/ledger.sqlite3")

    def test_a_store_on_object_storage_needs_to_be_told(self, bucket):
        with pytest.raises(LedgerError, match=r"set \[qure\] ledger_conn_id"):
            ledger_url(bucket)

    @pytest.mark.parametrize("kind", ["postgres", "postgresql"])
    def test_or_in_postgresql_by_a_connection(self, monkeypatch, kind):
        connection = {
            "conn_type": kind,
            "host": "db.example",
            "port": 5433,
            "login": "ledger",
            "password": "p@ss/w:rd%",
            "schema": "qure",
            "extra": {"sslmode": "require"},
        }
        monkeypatch.setenv("AIRFLOW__QURE__LEDGER_CONN_ID", "qure_ledger")
        monkeypatch.setenv("AIRFLOW_CONN_QURE_LEDGER", json.dumps(connection))
        url = make_url(ledger_url("memory://anywhere"))
        assert url.get_backend_name() == "postgresql"
        assert (url.host, url.port, url.username, url.database) == ("db.example", 5433, "ledger", "qure")
        assert url.password == "p@ss/w:rd%"
        assert url.query == {"sslmode": "require"}


def test_a_path_or_a_url_of_a_local_folder_is_local(tmp_path):
    assert open_path(str(tmp_path)) == open_path(f"file://{tmp_path}") == tmp_path


def test_results_are_laid_out_by_study_series_image_and_revision():
    assert result_folder("1.1", "1.2", "1.3", Route.XRAY, 2) == "studies/1.1/1.2/1.3/r2"
    assert result_folder("1.1", "1.2", "1.2", Route.CT, 1) == "studies/1.1/1.2/r1"
