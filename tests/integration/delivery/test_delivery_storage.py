"""Folders and object storage, as the store that results come from and as destinations."""

import shutil

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from qure_provider.delivery.courier import Courier
from qure_provider.delivery.destination import Arrival, open_destination
from qure_provider.delivery.rules import rules_from
from qure_provider.hooks.receiver import ReceiverSettingsError
from qure_provider.store import Store


@pytest.fixture
def bucket(tmp_path):
    """Object storage in this process's memory, and nothing in it."""
    attach("memory", fs=MemoryFileSystem())
    return f"memory://{tmp_path.name}"


@pytest.fixture
def in_bucket(night, bucket):
    """The night with its results on object storage; the ledger stays where it is."""
    for path in (night.root / "studies").rglob("*"):
        if path.is_file():
            target = ObjectStoragePath(bucket) / "store" / str(path.relative_to(night.root))
            with path.open("rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    shutil.rmtree(night.root / "studies")
    return Store(f"{bucket}/store")


class TestResultsOnObjectStorage:
    def test_are_delivered_to_a_folder_and_to_a_ris(self, night, in_bucket, ris):
        with night.ledger() as ledger:
            run = night.run_row(ledger)
            courier = Courier(in_bucket, ledger, "test")
            rules = rules_from([night.to_folder, "ris"], [])
            courier.enqueue(run.id, ledger.rows_of_run(run.id), rules, is_final=True)
            for destination in (
                night.to_folder,
                "ris",
            ):  # one after the other: memory:// has one place in a file for all
                assert courier.deliver([destination], seconds=20) == []
        assert night.states() == {"delivered": 5}
        assert len(night.received()) == 25
        assert len(ris.messages) == 2


class TestObjectStorageAsADestination:
    def test_gets_whole_files_and_is_asked_about_them(self, night, bucket, tmp_path):
        to = f"{bucket}/out"
        night.enqueue([to])
        destination = open_destination(to)
        (row,) = night.deliveries(subject=night.head_series)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        parcel = night.assembled(row, scratch)
        assert destination.arrived(parcel) is Arrival.ABSENT
        receipt = destination.send(parcel)
        assert destination.arrived(parcel) is Arrival.ARRIVED
        there = ObjectStoragePath(to) / receipt["folder"]
        assert len(list(there.iterdir())) == 9

    def test_is_elsewhere_and_refused_what_the_emulator_made(self, night, bucket):
        night.onward(f"{bucket}/out")
        assert night.states() == {"held": 3}


@pytest.mark.parametrize("name", ["file://results", "bogus://bucket/results"])
def test_what_is_no_usable_folder_is_named(night, name):
    with pytest.raises(ReceiverSettingsError, match="file:// takes an absolute path"):
        open_destination(name)
    (problem,) = night.enqueue([name])
    assert problem.startswith(f"Nothing is delivered to '{name}': It is no folder that can be used here")


def test_a_folder_is_the_same_for_all_nights(night):
    (problem,) = night.enqueue([f"{night.to_folder}/{{night}}"])
    assert "is the same for all nights" in problem
    assert not night.out.exists()


def test_a_path_in_the_place_of_a_url_is_told_how_to_be_written(night):
    (problem,) = night.enqueue([str(night.out)])
    assert problem.endswith("create it in Airflow. A folder is written as a URL, such as file:///mnt/results.")
