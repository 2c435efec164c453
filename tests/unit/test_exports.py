import os
import threading
import time
from unittest import mock

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from qure_provider.exports import Completeness, judge

LATER = time.time() + 3600
EARLIER = time.time() - 1


def look(folder, *, after=0.0, quiet=60.0, marker="", expected=0, limit=LATER):
    """Judge the folder as if so many seconds had passed."""
    with mock.patch("qure_provider.exports.time.time", lambda now=time.time: now() + after):
        return judge(str(folder), quiet_seconds=quiet, marker=marker, expected_files=expected, limit=limit + after)


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


class TestByQuiet:
    def test_it_is_complete_when_nothing_was_added_for_the_quiet_time(self, tmp_path):
        write(tmp_path / "a/b/1.dcm")
        assert look(tmp_path, after=61) is Completeness.QUIET

    def test_one_file_that_is_newer_says_not_yet_however_deep_it_lies(self, tmp_path):
        write(tmp_path / "1.dcm")
        time.sleep(0.5)
        write(tmp_path / "a/b/2.dcm")
        assert look(tmp_path, quiet=60.0, after=59.7) is Completeness.NOT_YET

    def test_a_file_that_was_copied_with_its_old_time_came_when_it_was_copied(self, tmp_path):
        write(tmp_path / "1.dcm")
        os.utime(tmp_path / "1.dcm", (1000, 1000))
        assert look(tmp_path) is Completeness.NOT_YET
        assert look(tmp_path, after=61) is Completeness.QUIET

    def test_an_empty_folder_is_not_quiet_but_not_begun(self, tmp_path):
        assert look(tmp_path, quiet=0) is Completeness.NOT_YET


class TestByASign:
    def test_the_marker_decides_and_the_quiet_time_does_not(self, tmp_path):
        write(tmp_path / "1.dcm")
        assert look(tmp_path, after=600, marker="DONE") is Completeness.NOT_YET
        write(tmp_path / "DONE")
        assert look(tmp_path, marker="DONE") is Completeness.MARKER

    def test_the_expected_number_of_files_decides(self, tmp_path):
        write(tmp_path / "1.dcm")
        assert look(tmp_path, after=600, expected=2) is Completeness.NOT_YET
        write(tmp_path / "deep/2.dcm")
        assert look(tmp_path, expected=2) is Completeness.COUNT


class TestAtTheLimit:
    def test_it_is_taken_as_it_is(self, tmp_path):
        write(tmp_path / "1.dcm")
        assert look(tmp_path, limit=EARLIER) is Completeness.LIMIT
        assert look(tmp_path, marker="DONE", limit=EARLIER) is Completeness.LIMIT

    def test_a_folder_that_never_came_is_missing_which_is_not_the_same_as_complete(self, tmp_path):
        assert look(tmp_path / "no") is Completeness.NOT_YET
        assert look(tmp_path / "no", limit=EARLIER) is Completeness.MISSING

    def test_what_is_complete_is_called_so_even_then(self, tmp_path):
        write(tmp_path / "1.dcm")
        assert look(tmp_path, after=600, limit=EARLIER) is Completeness.QUIET


def test_a_dangling_link_is_a_file_like_any_other(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert look(tmp_path, quiet=0) is Completeness.QUIET


def test_files_that_the_pacs_renames_meanwhile_are_no_error(tmp_path):
    """A PACS writes under temporary names and renames: a file can be gone between listing it and looking at it."""
    for number in range(300):
        write(tmp_path / f"study{number % 20}" / f"{number}.part")
    stop = threading.Event()

    def rename():
        while not stop.is_set():
            for folder in list(tmp_path.iterdir()):
                for path in list(folder.iterdir()):
                    path.rename(path.with_suffix(".dcm" if path.suffix == ".part" else ".part"))
                folder.rename(tmp_path / folder.name.swapcase())

    pacs = threading.Thread(target=rename)
    pacs.start()
    try:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert look(tmp_path, after=600) in {Completeness.QUIET, Completeness.NOT_YET}
    finally:
        stop.set()
        pacs.join()


def test_a_file_that_vanished_means_that_somebody_is_still_at_work(tmp_path, monkeypatch):
    write(tmp_path / "1.dcm")
    real = os.scandir

    class Vanishing:
        def __init__(self, path):
            self.entries = list(real(path))

        def __enter__(self):
            (tmp_path / "1.dcm").unlink()
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("qure_provider.exports.os.scandir", Vanishing)
    assert look(tmp_path, after=600) is Completeness.NOT_YET


@pytest.fixture
def bucket():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    attach("memory", fs=MemoryFileSystem())
    yield ObjectStoragePath("memory://bucket/night")
    MemoryFileSystem.store.clear()


def test_object_storage_is_judged_by_the_same_rules(bucket, monkeypatch):
    assert look(bucket) is Completeness.NOT_YET
    with (bucket / "1.dcm").open("wb") as file:
        file.write(b"x")
    assert look(bucket, expected=1) is Completeness.COUNT
    assert look(bucket, expected=2) is Completeness.NOT_YET
    with (bucket / "DONE").open("wb") as file:
        file.write(b"x")
    assert look(bucket, marker="DONE") is Completeness.MARKER
