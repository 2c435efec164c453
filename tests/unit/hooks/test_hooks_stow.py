import json
from pathlib import Path

import pytest

from qure_provider.hooks.outgoing import OutgoingFile
from qure_provider.hooks.storing import OutgoingObject, StoreKind, meaning
from qure_provider.hooks.stow import part_size, read_answer, store_body

UIDS = ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
SENT = [OutgoingObject(Path(uid), "1.2.840.10008.5.1.4.1.1.7", uid, "1.2.840.10008.1.2.1") for uid in UIDS]


def item(uid, **reasons):
    tags = {"warning": "00081196", "failure": "00081197"}
    values = {"00081155": {"vr": "UI", "Value": [uid]}}
    return values | {tags[name]: {"vr": "US", "Value": [value]} for name, value in reasons.items()}


def answer(stored=(), failed=()):
    content = {}
    if stored:
        content["00081199"] = {"vr": "SQ", "Value": list(stored)}
    if failed:
        content["00081198"] = {"vr": "SQ", "Value": list(failed)}
    return content


def kinds(content):
    statuses = read_answer(json.dumps(content).encode(), SENT)
    assert [status.sop_instance_uid for status in statuses] == UIDS
    return [status.kind for status in statuses]


def test_each_object_is_read_one_by_one():
    content = answer(
        [item(UIDS[0]), item(UIDS[1], warning=0xB000)],
        [item(UIDS[2], failure=0x0122)],
    )

    statuses = read_answer(json.dumps(content).encode(), SENT)

    assert [(each.kind, each.status) for each in statuses] == [
        (StoreKind.STORED, 0),
        (StoreKind.WARNING, 0xB000),
        (StoreKind.REFUSED, 0x0122),
    ]


def test_an_object_that_is_not_mentioned_is_in_doubt():
    assert kinds(answer([item(UIDS[0]), item("1.2.3.99")])) == [
        StoreKind.STORED,
        StoreKind.IN_DOUBT,
        StoreKind.IN_DOUBT,
    ]


def test_an_object_that_is_stored_and_failed_at_once_is_in_doubt():
    assert kinds(answer([item(UIDS[0])], [item(UIDS[0], failure=0xA700)]))[0] is StoreKind.IN_DOUBT


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ({"failure": 0xA700}, StoreKind.UNAVAILABLE),
        ({"failure": 0x0110}, StoreKind.UNAVAILABLE),
        ({"failure": 0xA900}, StoreKind.REFUSED),
        ({"failure": 0xC000}, StoreKind.REFUSED),
        ({"failure": "49152"}, StoreKind.REFUSED),
        ({"failure": 0x0111}, StoreKind.WARNING),
        ({"failure": 0xB00E}, StoreKind.IN_DOUBT),
        ({"failure": 0}, StoreKind.IN_DOUBT),
        ({"failure": "words"}, StoreKind.UNAVAILABLE),
        ({}, StoreKind.UNAVAILABLE),
    ],
)
def test_a_failure_is_never_taken_for_stored_without_the_archive_having_it(failure, kind):
    assert kinds(answer(failed=[item(UIDS[0], **failure)]))[0] is kind


def test_a_warning_that_is_a_failure_s_code_is_in_doubt():
    assert kinds(answer([item(UIDS[0], warning=0xA700)]))[0] is StoreKind.IN_DOUBT


def test_an_answer_may_be_a_list():
    assert kinds([answer([item(UIDS[0])]), answer(failed=[item(UIDS[1], failure=0xC000)])]) == [
        StoreKind.STORED,
        StoreKind.REFUSED,
        StoreKind.IN_DOUBT,
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{}",
        b"[]",
        b"null",
        b"3",
        b'{"00081190": {"vr": "UR", "Value": ["http://SIMULATED"]}}',
        b"[" * 99,
    ],
)
def test_what_is_no_store_response_says_nothing(body):
    assert read_answer(body, SENT) is None


@pytest.mark.parametrize(
    "stored", [None, {}, {"Value": None}, {"Value": {}}, {"Value": [None, 3, {}, {"00081155": {"Value": [None]}}]}]
)
def test_a_store_response_of_odd_shape_leaves_everything_in_doubt(stored):
    assert kinds({"00081199": stored}) == [StoreKind.IN_DOUBT] * 3


def test_a_body_is_what_the_standard_says(tmp_path):
    files = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 5)
        files.append(OutgoingFile(name, "", tmp_path / name, 5))
    body = store_body(files)
    boundary = body.content_type.removeprefix('multipart/related; type="application/dicom"; boundary=')

    expected = (
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\naaaaa\r\n"
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\nbbbbb\r\n--{boundary}--\r\n"
    ).encode()
    for _ in range(2):
        assert b"".join(bytes(block) for block in body) == expected
    assert len(body) == len(expected)
    assert part_size(files[0]) * 2 + len(store_body([])) == len(body)


def test_every_status_has_one_meaning_and_only_success_says_nothing():
    for status in range(0x10000):
        kind, reason = meaning(status)
        assert kind in StoreKind
        assert bool(reason) is bool(status)
        assert (kind is StoreKind.STORED) is (status == 0)
        assert (kind is StoreKind.WARNING) is (status in {1, 0x0107, 0x0111, 0x0116} or status >> 12 == 0xB)
