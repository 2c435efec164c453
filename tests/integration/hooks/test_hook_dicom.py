import contextlib
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pynetdicom import _config, fsm
from support.dicom_archive import ECHO, DicomArchive, Rejecter, Relay, abort, match
from support.emulated_results import emulated

from qure_provider.hooks.dicom import DicomHook
from qure_provider.hooks.receiver import ReceiverRefusedError, ReceiverSettingsError, ReceiverUnavailableError
from qure_provider.hooks.storing import StoreKind


@pytest.fixture(scope="module")
def qct(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("qct"), "qct")


@pytest.fixture(scope="module")
def shared_archive():
    with DicomArchive() as archive:
        yield archive


@pytest.fixture
def archive(shared_archive):
    shared_archive.forget()
    return shared_archive


@pytest.fixture
def hook_to(monkeypatch):
    def make(port, host="127.0.0.1", password=None, **extra):
        extra = {
            "called_ae_title": "ARCHIVE",
            **dict.fromkeys(("connect_timeout", "association_timeout", "response_timeout"), 10),
            **extra,
        }
        fields = {"conn_type": "dicom", "host": host, "port": port, "password": password, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_DICOM_DEFAULT", json.dumps(fields))
        return DicomHook()

    return make


@pytest.fixture
def hook(hook_to, archive):
    return hook_to(archive.port)


@pytest.fixture
def copies(qct, tmp_path):
    """Makes objects of the same kind with UIDs of their own."""

    def make(count, kind="sr", syntax=None):
        dataset, paths = pydicom.dcmread(qct.one(kind)), []
        for number in range(count):
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            if syntax:
                dataset.file_meta.TransferSyntaxUID = syntax
            paths.append(tmp_path / f"DOE^JANE-{kind}-{number}")
            dataset.save_as(paths[-1])
        return paths

    return make


def uid_of(path):
    return pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID


def nothing_left_behind():
    """Whether the threads of all associations that we asked for have ended."""
    until = time.monotonic() + 3
    while any(getattr(getattr(thread, "assoc", thread), "is_requestor", False) for thread in threading.enumerate()):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_every_object_of_a_result_arrives_as_it_was_sent(hook, archive, qct):
    statuses = hook.store(qct.objects)

    assert [(each.sop_instance_uid, each.kind, each.status) for each in statuses] == [
        (uid_of(path), StoreKind.STORED, 0) for path in qct.objects
    ]
    sent = {uid_of(path): pydicom.dcmread(path) for path in qct.objects}
    assert {dataset.SOPInstanceUID: dataset for dataset in archive.received} == sent
    assert {dataset.file_meta.TransferSyntaxUID for dataset in archive.received} == {ExplicitVRLittleEndian}
    assert set(archive.peers) == {("QURE_AIRFLOW", "ARCHIVE")}


def test_one_association_takes_many_and_a_few_run_at_once(hook_to, archive, copies):
    barrier = threading.Barrier(2)

    def answer(event):
        if len(archive.received) < 1:
            barrier.wait(5)
        return 0

    archive.answer = answer
    paths = copies(20)

    statuses = hook_to(archive.port, parallel_associations=2).store(paths)

    assert all(each.is_stored for each in statuses)
    assert sorted(archive.uids) == sorted(map(uid_of, paths))
    assert (archive.peak, len(archive.peers)) == (2, 2)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0x0000, StoreKind.STORED),
        (0xB000, StoreKind.WARNING),
        (0xB006, StoreKind.WARNING),
        (0xB007, StoreKind.WARNING),
        (0x0111, StoreKind.WARNING),
        (0xA700, StoreKind.UNAVAILABLE),
        (0xA7FF, StoreKind.UNAVAILABLE),
        (0x0110, StoreKind.UNAVAILABLE),
        (0xA900, StoreKind.REFUSED),
        (0xC000, StoreKind.REFUSED),
        (0xCFFF, StoreKind.REFUSED),
        (0x0117, StoreKind.REFUSED),
        (0x0122, StoreKind.REFUSED),
        (0x0124, StoreKind.REFUSED),
        (0x0211, StoreKind.REFUSED),
        (0x7777, StoreKind.IN_DOUBT),
    ],
)
def test_each_status_is_kept_and_has_its_meaning(hook, archive, copies, status, kind):
    first, second = copies(2)
    archive.answer = lambda event: status if event.request.AffectedSOPInstanceUID == uid_of(first) else 0

    answered, stored = hook.store([first, second])

    assert (answered.status, answered.kind, stored.kind) == (status, kind, StoreKind.STORED)
    assert answered.is_stored is (kind in (StoreKind.STORED, StoreKind.WARNING))
    assert bool(answered.reason) is bool(status)


class TestPresentationContexts:
    @pytest.fixture
    def mixed(self, qct, tmp_path):
        """Secondary captures in three transfer syntaxes."""

        def capture(name, source, syntax, **options):
            dataset = pydicom.dcmread(source)
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(tmp_path / name, dataset, **options)
            return tmp_path / name

        little = {"little_endian": True}
        jpeg = emulated(tmp_path).one("original")
        return {
            ExplicitVRLittleEndian: capture("explicit", qct.one("sc"), ExplicitVRLittleEndian),
            ImplicitVRLittleEndian: capture(
                "implicit", qct.one("sc"), ImplicitVRLittleEndian, implicit_vr=True, **little
            ),
            JPEGBaseline8Bit: capture("jpeg", jpeg, JPEGBaseline8Bit),
        }

    def test_each_transfer_syntax_has_its_own(self, hook, archive, mixed):
        statuses = hook.store(list(mixed.values()))

        assert [each.kind for each in statuses] == [StoreKind.STORED] * 3
        syntaxes = {dataset.SOPInstanceUID: dataset.file_meta.TransferSyntaxUID for dataset in archive.received}
        assert syntaxes == {uid_of(path): syntax for syntax, path in mixed.items()}

    def test_an_archive_of_implicit_vr_alone_is_given_that_but_no_decompressed_pixels(self, hook_to, mixed):
        with DicomArchive(contexts=[(SecondaryCaptureImageStorage, ImplicitVRLittleEndian)]) as archive:
            statuses = hook_to(archive.port).store(list(mixed.values()))

        assert [each.kind for each in statuses] == [StoreKind.STORED, StoreKind.STORED, StoreKind.REFUSED]
        assert "transfer syntax" in statuses[2].reason
        explicit = pydicom.dcmread(mixed[ExplicitVRLittleEndian])
        arrived = next(each for each in archive.received if each.SOPInstanceUID == explicit.SOPInstanceUID)
        assert arrived.PixelData == explicit.PixelData
        assert arrived.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian

    def test_big_endian_is_not_turned_round(self, hook_to, qct, tmp_path):
        dataset = pydicom.dcmread(qct.one("sr"))
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(tmp_path / "big", dataset, implicit_vr=False, little_endian=False)
        with DicomArchive(contexts=[(dataset.SOPClassUID, ImplicitVRLittleEndian)]) as archive:
            (status,) = hook_to(archive.port).store([tmp_path / "big"])

        assert status.kind is StoreKind.REFUSED

    def test_a_kind_that_is_not_taken_is_refused_and_the_others_arrive(self, hook_to, qct):
        with DicomArchive(contexts=[(EncapsulatedPDFStorage,)]) as archive:
            statuses = hook_to(archive.port).store([qct.one("sr"), qct.one("encapsulated_pdf"), qct.one("seg")])

        assert [each.kind for each in statuses] == [StoreKind.REFUSED, StoreKind.STORED, StoreKind.REFUSED]
        assert archive.uids == [uid_of(qct.one("encapsulated_pdf"))]

    def test_an_archive_that_takes_nothing_refuses_everything(self, hook_to, qct):
        with DicomArchive(contexts=[(ECHO,)]) as archive:
            statuses = hook_to(archive.port).store(qct.objects)

        assert {each.kind for each in statuses} == {StoreKind.REFUSED}

    def test_more_than_an_association_can_propose_go_through_several(self, hook, archive, copies, monkeypatch):
        monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", True)
        paths, classes = copies(70), [f"1.2.826.0.1.3680043.9.9999.{number}" for number in range(70)]
        for path, sop_class in zip(paths, classes, strict=True):
            dataset = pydicom.dcmread(path)
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
            dataset.save_as(path)

        statuses = hook.store(paths)

        assert all(each.is_stored for each in statuses)
        assert sorted(archive.uids) == sorted(map(uid_of, paths))
        assert len(archive.peers) == 4


class TestLostAssociations:
    def test_none_is_lost_where_its_thread_is_slow_to_say_that_it_is_there(self, hook, archive, copies, monkeypatch):
        description, confirm, state = fsm.ACTIONS["AE-3"]

        def slowly(provider):
            following = confirm(provider)
            time.sleep(0.3)
            return following

        monkeypatch.setitem(fsm.ACTIONS, "AE-3", (description, slowly, state))
        statuses = hook.store(copies(3))
        assert {status.kind for status in statuses} == {StoreKind.STORED}

    def test_an_abort_before_the_answer_leaves_that_object_in_doubt_and_the_others_go_on(
        self, hook_to, archive, copies
    ):
        paths = copies(6)
        archive.answer = lambda event: abort(event) if event.request.AffectedSOPInstanceUID == uid_of(paths[2]) else 0

        statuses = hook_to(archive.port, parallel_associations=1).store(paths)

        kinds = [StoreKind.STORED] * 6
        kinds[2] = StoreKind.IN_DOUBT
        assert [each.kind for each in statuses] == kinds
        assert statuses[2].status is None
        assert sorted(archive.uids) == sorted(uid_of(path) for path in paths if path != paths[2])
        assert nothing_left_behind()

    def test_an_archive_that_breaks_off_again_and_again_is_left_alone(self, hook_to, archive, copies):
        archive.answer = abort

        statuses = hook_to(archive.port, parallel_associations=1).store(copies(10))

        assert [each.kind for each in statuses] == [StoreKind.IN_DOUBT] * 3 + [StoreKind.UNAVAILABLE] * 7
        assert "again and again" in statuses[-1].reason
        assert len(archive.peers) == 3

    def test_an_answer_that_does_not_come_leaves_it_in_doubt(self, hook_to, archive, copies):
        paths = copies(2)
        archive.answer = lambda event: time.sleep(1.5) or 0
        began = time.monotonic()

        statuses = hook_to(archive.port, response_timeout=0.3, parallel_associations=1).store(paths[:1])

        assert [each.kind for each in statuses] == [StoreKind.IN_DOUBT]
        assert time.monotonic() - began < 1.4

    def test_a_line_that_takes_nothing_more_is_given_up(self, hook_to, archive, tmp_path, qct):
        dataset = pydicom.dcmread(qct.one("sc"))
        dataset.Rows = dataset.Columns = 4096
        dataset.PixelData = bytes(4096 * 4096 * 3)
        dataset.save_as(tmp_path / "large")
        with Relay(archive.port, 100_000) as relay:
            began = time.monotonic()
            (status,) = hook_to(relay.port, response_timeout=1, association_timeout=2).store([tmp_path / "large"])

        assert status.kind is StoreKind.IN_DOUBT
        assert time.monotonic() - began < 4
        assert nothing_left_behind()

    def test_a_slow_line_has_the_time_that_it_needs(self, hook_to, archive, tmp_path, qct):
        dataset = pydicom.dcmread(qct.one("sc"))
        dataset.Rows = dataset.Columns = 1024
        dataset.PixelData = bytes(1024 * 1024 * 3)
        dataset.save_as(tmp_path / "large")
        with Relay(archive.port, pause=0.02) as relay:
            began = time.monotonic()
            (status,) = hook_to(relay.port, response_timeout=2).store([tmp_path / "large"])

        assert status.is_stored
        assert time.monotonic() - began > 3

    def test_an_archive_that_goes_away_gets_the_rest_later(self, hook_to, copies):
        paths = copies(4)
        with DicomArchive() as archive:

            def answer(event):
                if len(archive.received) == 1:
                    archive.close()
                    abort(event)
                return 0

            archive.answer = answer
            statuses = hook_to(archive.port, parallel_associations=1).store(paths)

        assert [each.kind for each in statuses] == [
            StoreKind.STORED,
            StoreKind.IN_DOUBT,
            StoreKind.UNAVAILABLE,
            StoreKind.UNAVAILABLE,
        ]
        assert "Nothing listens" in statuses[-1].reason

    def test_a_file_that_vanishes_on_the_way_is_named(self, hook_to, archive, copies):
        paths = copies(3)

        def answer(event):
            paths[1].unlink(missing_ok=True)
            return 0

        archive.answer = answer

        statuses = hook_to(archive.port, parallel_associations=1).store(paths)

        assert [each.kind for each in statuses] == [StoreKind.STORED, StoreKind.UNAVAILABLE, StoreKind.STORED]
        assert "ENOENT" in statuses[1].reason


class TestNothingSent:
    @pytest.mark.parametrize(
        ("terms", "settings", "says"),
        [
            ({"know_calling": ["OTHER"]}, {}, "calling_ae_title"),
            ({"require_called": "OTHER"}, {}, "called_ae_title"),
        ],
    )
    def test_an_ae_title_that_is_not_known_is_a_matter_of_settings(self, hook_to, qct, terms, settings, says):
        with DicomArchive(**terms) as archive, pytest.raises(ReceiverSettingsError, match=says):
            hook_to(archive.port, **settings).store(qct.objects)

        assert archive.received == []

    def test_ae_titles_are_those_of_the_connection(self, hook_to, qct):
        with DicomArchive(know_calling=["US"], require_called="PACS 1") as archive:
            hook_to(archive.port, calling_ae_title="US", called_ae_title="PACS 1").store([qct.one("sr")])

        assert archive.peers == [("US", "PACS 1")]

    @pytest.mark.parametrize(
        ("rejection", "error", "says"),
        [
            ((1, 1, 1), ReceiverSettingsError, "no reason"),
            ((1, 1, 2), ReceiverSettingsError, "application context"),
            ((1, 1, 3), ReceiverSettingsError, "calling_ae_title"),
            ((1, 1, 7), ReceiverSettingsError, "called_ae_title"),
            ((1, 2, 2), ReceiverSettingsError, "version"),
            ((1, 3, 2), ReceiverUnavailableError, "now"),
            ((2, 1, 1), ReceiverUnavailableError, "now"),
            ((2, 3, 1), ReceiverUnavailableError, "now"),
            ((2, 3, 2), ReceiverUnavailableError, "now"),
        ],
    )
    def test_each_rejection_is_for_settings_or_for_later(self, hook_to, qct, rejection, error, says):
        with Rejecter(*rejection) as rejecter, pytest.raises(error, match=says):
            hook_to(rejecter.port).store(qct.objects)

    def test_a_port_where_nothing_listens_is_for_later(self, hook_to, qct):
        with DicomArchive() as archive:
            port = archive.port
        with pytest.raises(ReceiverUnavailableError, match="Nothing listens"):
            hook_to(port).store(qct.objects)

    def test_a_name_that_is_not_known_is_for_later(self, hook_to, qct):
        with pytest.raises(ReceiverUnavailableError, match="resolved"):
            hook_to(104, host="archive.invalid").store(qct.objects)

    def test_a_port_that_says_nothing_is_for_later_and_soon(self, hook_to, qct):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            began = time.monotonic()
            with pytest.raises(ReceiverUnavailableError, match="speak DICOM"):
                hook_to(silent.getsockname()[1], association_timeout=0.3).store(qct.objects)
            assert time.monotonic() - began < 3

    @pytest.mark.parametrize(
        "says", [b"\x02\x00\x00\x00\x10\x00half an acceptance", b"SSH-2.0-", b"HTTP/1.1 400 Bad\r\n\r\n"]
    )
    def test_nor_does_half_an_answer_hold_us_up(self, hook_to, qct, says):
        def answer():
            with contextlib.suppress(OSError):
                while True:
                    near, _ = server.accept()
                    near.sendall(says)
                    kept.append(near)

        kept = []
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=answer, daemon=True).start()
            began = time.monotonic()
            with pytest.raises(ReceiverUnavailableError, match="speak DICOM"):
                hook_to(server.getsockname()[1], association_timeout=1, response_timeout=1).store(qct.objects)
            assert time.monotonic() - began < 8
        assert nothing_left_behind()

    @pytest.mark.parametrize("content", [b"", b"%PDF-1.7", b"\0" * 128 + b"DICM"])
    def test_a_file_that_is_no_object_is_refused(self, hook, archive, qct, tmp_path, content):
        (tmp_path / "none").write_bytes(content)
        with pytest.raises(ReceiverRefusedError, match="no DICOM object"):
            hook.store([qct.one("sr"), tmp_path / "none"])
        assert archive.peers == []

    def test_a_file_that_is_not_there_is_said_without_its_name(self, hook, archive, tmp_path):
        with pytest.raises(ReceiverUnavailableError, match="ENOENT") as raised:
            hook.store([tmp_path / "DOE^JANE"])
        assert "DOE" not in str(raised.value)

    def test_nothing_to_send_asks_nobody(self, hook, archive):
        assert hook.store([]) == ()
        assert archive.peers == []


def test_memory_does_not_grow_with_the_object(hook_to, qct, tmp_path):
    """A large object, to an archive in a process of its own; the time to answer counts from when all is sent."""
    size = 8192
    dataset = pydicom.dcmread(qct.one("sc"))
    dataset.Rows = dataset.Columns = size
    del dataset.PixelData
    dataset.add_new("PixelData", "OW", b"")
    dataset.save_as(tmp_path / "head")
    head = (tmp_path / "head").read_bytes()
    with (tmp_path / "large").open("wb") as file:
        file.write(head[:-4] + (size * size * 3).to_bytes(4, "little"))
        file.truncate(len(head) + size * size * 3)
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pynetdicom import evt, _config
from support.dicom_archive import DicomArchive
_config.STORE_RECV_CHUNKED_DATASET = True
with DicomArchive() as archive:
    archive.answer = lambda event: 0xA900
    print(archive.port, flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        hook = hook_to(int(process.stdout.readline()), response_timeout=20)
        tracemalloc.start()
        (status,) = hook.store([tmp_path / "large"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        process.stdin.close()
        process.wait(10)

    assert status.status == 0xA900
    assert peak < 20_000_000


class TestTls:
    @pytest.fixture
    def context(self, certificates):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates[0])
        context.load_cert_chain(certificates[1], certificates[2])
        return context

    def test_objects_go_through_it(self, hook_to, qct, context, certificates):
        with DicomArchive(tls=context) as archive:
            statuses = hook_to(archive.port, tls=True, ca_bundle=str(certificates[0])).store(qct.objects)

        assert all(each.is_stored for each in statuses)

    def test_a_certificate_of_nobody_we_trust_is_a_matter_of_settings(self, hook_to, qct, context):
        with DicomArchive(tls=context) as archive, pytest.raises(ReceiverSettingsError, match="ca_bundle"):
            hook_to(archive.port, tls=True).store(qct.objects)

    def test_the_name_in_it_may_be_left_unchecked(self, hook_to, qct, context, certificates):
        settings = {"host": "127.0.0.2", "tls": True, "ca_bundle": str(certificates[0])}
        with DicomArchive(tls=context, host="127.0.0.2") as archive:
            with pytest.raises(ReceiverSettingsError, match="not trusted"):
                hook_to(archive.port, **settings).store([qct.one("sr")])
            (status,) = hook_to(archive.port, **settings, check_hostname=False).store([qct.one("sr")])

        assert status.is_stored

    def test_our_certificate_is_shown_where_it_is_wanted(self, hook_to, qct, context, certificates):
        context.verify_mode = ssl.CERT_REQUIRED
        authority, certificate, key = map(str, certificates)
        with DicomArchive(tls=context) as archive:
            ours = {"client_certificate": certificate, "client_key": key}
            (status,) = hook_to(archive.port, tls=True, ca_bundle=authority, **ours).store([qct.one("sr")])
            assert status.is_stored
            with pytest.raises(ReceiverSettingsError, match="client_certificate"):
                hook_to(archive.port, tls=True, ca_bundle=authority).store([qct.one("sr")])

    def test_a_port_without_it_is_told(self, hook_to, qct, archive):
        with pytest.raises((ReceiverSettingsError, ReceiverUnavailableError), match="TLS"):
            hook_to(archive.port, tls=True, verify=False, connect_timeout=0.5).store(qct.objects)


class TestQuestions:
    def test_a_study_is_found_with_whose_it_is_now(self, hook, archive, qct):
        archive.answers = match(qct.source)

        found = hook.find_study(qct.identity.study_instance_uid)

        assert found == qct.identity
        assert found.patient_name == "Müller^Simulated"

    def test_a_study_that_is_not_there_is_none(self, hook, archive, qct):
        archive.answers = match()

        assert hook.find_study(qct.identity.study_instance_uid) is None
        assert hook.find_instances(qct.identity.study_instance_uid) == frozenset()

    def test_answers_about_other_studies_are_none(self, hook, archive, qct):
        def answers(identifier):
            yield 0xFF00, qct.source
            yield 0x0000, None

        archive.answers = answers

        assert hook.find_study("1.2.3") is None
        assert hook.find_instances("1.2.3", ["1.2.4"]) == frozenset()

    def test_a_study_of_two_patients_is_refused(self, hook, archive, qct):
        other = Dataset()
        other.StudyInstanceUID, other.PatientID = qct.identity.study_instance_uid, "SIM-2"

        def answers(identifier):
            yield 0xFF00, qct.source
            yield 0xFF00, other
            yield 0x0000, None

        archive.answers = answers

        with pytest.raises(ReceiverRefusedError, match="more than one patient"):
            hook.find_study(qct.identity.study_instance_uid)

    def test_instances_that_arrived_are_found(self, hook, archive, qct):
        hook.store(qct.objects)
        archive.answers = match(*archive.received)
        study = qct.identity.study_instance_uid
        series = pydicom.dcmread(qct.one("sr")).SeriesInstanceUID

        assert hook.find_instances(study) == {uid_of(path) for path in qct.objects}
        assert hook.find_instances(study, [series]) == {uid_of(qct.one("sr"))}
        assert hook.find_instances(study, ["1.2.3"]) == frozenset()

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (0xA700, ReceiverUnavailableError),
            (0xC001, ReceiverUnavailableError),
            (0xFE00, ReceiverUnavailableError),
            (0xA900, ReceiverSettingsError),
            (0x0122, ReceiverSettingsError),
        ],
    )
    def test_a_question_that_fails_is_never_taken_for_no(self, hook, archive, status, error):
        archive.answers = lambda identifier: [(status, None)]

        with pytest.raises(error, match=f"{status:04X}"):
            hook.find_study("1.2.3")

    def test_nor_is_one_that_is_not_answered(self, hook_to, archive):
        def answers(identifier):
            time.sleep(1)
            yield 0x0000, None

        archive.answers = answers

        with pytest.raises(ReceiverUnavailableError, match="did not answer"):
            hook_to(archive.port, response_timeout=0.3).find_study("1.2.3")

    def test_nor_is_an_archive_that_answers_none(self, hook_to):
        with DicomArchive(contexts=[(ECHO,)]) as archive, pytest.raises(ReceiverSettingsError, match="C-FIND"):
            hook_to(archive.port).find_instances("1.2.3")


class TestTestButton:
    def test_it_says_that_all_is_well(self, hook):
        assert hook.test_connection() == (
            True,
            "The archive answers C-ECHO, and takes every kind of object that results are made of.",
        )
        assert hook.echo() == ()

    def test_it_says_what_would_be_refused(self, hook_to):
        with DicomArchive(contexts=[(ECHO,), (SecondaryCaptureImageStorage,)]) as archive:
            is_well, says = hook_to(archive.port).test_connection()

        assert is_well
        assert "PDFs" in says
        assert "secondary captures" not in says

    def test_an_archive_that_takes_nothing_is_not_well(self, hook_to):
        with DicomArchive(contexts=[(ECHO,)]) as archive:
            is_well, says = hook_to(archive.port).test_connection()

        assert not is_well
        assert "takes no objects" in says

    def test_nor_is_one_that_does_not_answer_within_its_time(self, hook_to):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            began = time.monotonic()
            is_well, says = hook_to(silent.getsockname()[1], association_timeout=60).test_connection()

        assert not is_well
        assert "speak DICOM" in says
        assert time.monotonic() - began < 10

    @pytest.mark.parametrize(
        ("settings", "field"),
        [
            ({"host": ""}, "host"),
            ({"host": "dicom://archive"}, "host"),
            ({"port": 70000}, "port"),
            ({"called_ae_title": None}, "called_ae_title"),
            ({"called_ae_title": "SEVENTEEN_LETTERS"}, "called_ae_title"),
            ({"calling_ae_title": "A\\B"}, "calling_ae_title"),
            ({"parallel_associations": 100}, "parallel_associations"),
            ({"tls": "perhaps"}, "tls"),
            ({"ca_bundle": "/nowhere"}, "ca_bundle"),
            ({"tls": True, "ca_bundle": "/nowhere"}, "ca_bundle"),
            ({"tls": True, "client_key": "/nowhere"}, "client_key"),
        ],
    )
    def test_it_names_the_field_that_is_wrong(self, hook_to, settings, field):
        is_well, says = hook_to(**{"port": 104, **settings}).test_connection()

        assert not is_well
        assert says.startswith(f"Field {field}:")


def test_nothing_of_the_patient_is_logged(hook, archive, qct, caplog):
    archive.answers = match(qct.source)
    with caplog.at_level(logging.DEBUG):
        hook.store(qct.objects)
        hook.find_study(qct.identity.study_instance_uid)
        hook.find_instances(qct.identity.study_instance_uid)

    for secret in ("Müller", "SIM-1", "SIM-A-1", qct.identity.study_instance_uid, uid_of(qct.one("sr"))):
        assert secret not in caplog.text


def test_what_is_shown_of_a_status_or_a_connection_holds_no_secret(hook_to, archive, qct):
    hook = hook_to(archive.port, password="0pen")
    (status,) = hook.store([qct.one("sr")])

    assert status.sop_instance_uid not in repr(status)
    assert "0pen" not in repr(hook.connection)
