"""A receiver of dcmtk's that refuses, breaks off, dawdles, and takes some transfer syntaxes only."""

import contextlib
import time

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid
from support.emulated_results import emulated
from support.programs import free_port, needed, running

from qure_provider.hooks.receiver import ReceiverSettingsError
from qure_provider.hooks.storing import StoreKind

pytestmark = pytest.mark.system


@pytest.fixture
def storescp(tmp_path, dicom_hook):
    """Starts a receiver with options; gives the hook to it and the folder of what it took."""
    folder = tmp_path / "received"
    folder.mkdir()

    @contextlib.contextmanager
    def start(*options, **settings):
        port = free_port()
        command = [needed("storescp"), "--output-directory", str(folder), *options, str(port)]
        with running(command, [port]):
            yield dicom_hook(port, called="STORESCP", **settings), folder

    return start


@pytest.fixture
def copies(qct, tmp_path):
    dataset, paths = pydicom.dcmread(qct.one("sr")), []
    for number in range(30):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        paths.append(tmp_path / f"copy-{number}")
        dataset.save_as(paths[-1])
    return paths


def received(folder):
    datasets = [pydicom.dcmread(path) for path in folder.iterdir()]
    return {dataset.SOPInstanceUID: dataset for dataset in datasets}


def values(dataset):
    """What it holds, whatever VR pixels and documents are written in."""
    return {element.tag: element.value for element in dataset}


def test_every_kind_of_object_arrives(storescp, qct, completed):
    done = completed(qct)
    with storescp("--fork") as (hook, folder):
        statuses = hook.store(list(done.paths.values()))

    assert all(each.is_stored for each in statuses)
    assert received(folder) == {each.sop_instance_uid: pydicom.dcmread(each.path) for each in done.objects.values()}


def test_many_objects_through_a_few_associations(storescp, copies):
    with storescp("--fork", parallel_associations=3) as (hook, folder):
        statuses = hook.store(copies)

    assert all(each.is_stored for each in statuses)
    assert len(received(folder)) == len(copies)


@pytest.mark.parametrize("size", [4096, 131072])
def test_pieces_are_as_large_as_the_receiver_takes(storescp, qct, size):
    with storescp("--max-pdu", str(size)) as (hook, folder):
        (status,) = hook.store([qct.one("sc")])

    assert status.is_stored
    (dataset,) = received(folder).values()
    assert dataset == pydicom.dcmread(qct.one("sc"))


def test_a_receiver_that_refuses_associations_is_a_matter_of_settings(storescp, qct):
    with storescp("--refuse") as (hook, folder):
        with pytest.raises(ReceiverSettingsError, match="no association from us"):
            hook.store(qct.objects)
        assert hook.test_connection()[0] is False
    assert received(folder) == {}


@pytest.mark.parametrize("when", ["--abort-after", "--abort-during"])
def test_a_receiver_that_breaks_off_leaves_a_few_in_doubt_and_the_rest_for_later(storescp, qct, when):
    with storescp(when, parallel_associations=1) as (hook, _):
        statuses = hook.store(qct.objects)

    kinds = [each.kind for each in statuses]
    assert kinds == [StoreKind.IN_DOUBT] * 3 + [StoreKind.UNAVAILABLE] * (len(kinds) - 3)
    assert not any(each.is_stored for each in statuses)


def test_a_receiver_that_dawdles_is_left_in_doubt_in_time(storescp, qct):
    with storescp("--sleep-during", "4", response_timeout=1, parallel_associations=1) as (hook, _):
        began = time.monotonic()
        (status,) = hook.store([qct.one("sr")])

    assert status.kind is StoreKind.IN_DOUBT
    assert time.monotonic() - began < 4


def test_a_receiver_of_implicit_vr_alone_gets_that(storescp, qct):
    with storescp("--implicit") as (hook, folder):
        statuses = hook.store(qct.objects)

    assert all(each.is_stored for each in statuses)
    arrived = received(folder)
    assert {dataset.file_meta.TransferSyntaxUID for dataset in arrived.values()} == {ImplicitVRLittleEndian}
    for path in qct.objects:
        sent = pydicom.dcmread(path)
        assert values(arrived[sent.SOPInstanceUID]) == values(sent)


def test_a_compressed_object_goes_as_it_is_or_not_at_all(storescp, tmp_path):
    result = emulated(tmp_path)
    jpeg = pydicom.dcmread(result.one("original"))
    jpeg.SOPInstanceUID = jpeg.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    jpeg.save_as(tmp_path / "jpeg")
    with storescp("--prefer-jpeg8") as (hook, folder):
        (taken,) = hook.store([tmp_path / "jpeg"])
    with storescp("--prefer-uncompr") as (hook, _):
        (refused,) = hook.store([tmp_path / "jpeg"])

    assert (taken.kind, refused.kind) == (StoreKind.STORED, StoreKind.REFUSED)
    (arrived,) = received(folder).values()
    assert arrived.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    assert arrived.PixelData == jpeg.PixelData
