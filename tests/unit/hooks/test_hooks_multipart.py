import email.policy
import io
import os
from concurrent.futures import ThreadPoolExecutor
from email.parser import BytesParser

import pytest
from airflow.sdk import ObjectStoragePath
from hypothesis import given, settings
from hypothesis import strategies as st

from qure_provider.api.errors import QureRejectedError, QureTransientError
from qure_provider.hooks.connection import UploadDialect
from qure_provider.hooks.multipart import BLOCK, CLOSING_SIZE, MultipartBody, OutgoingFileError, part_size
from qure_provider.hooks.outgoing import FileVersion, HeaderSpool, OutgoingFile


def outgoing(path, content, *, header=b"", offset=0, size=None):
    path.write_bytes(content)
    length = len(header) + len(content) - offset
    return OutgoingFile("1.2.3", "1.2", str(path), length if size is None else size, header, offset)


def whole(body):
    return b"".join(bytes(block) for block in body)


def parts(body):
    head = f"Content-Type: {body.content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + whole(body))
    assert not message.defects
    return message.get_content_type(), list(message.iter_parts())


@pytest.mark.parametrize(
    ("dialect", "media_type"),
    [(UploadDialect.FORM_DATA, "multipart/form-data"), (UploadDialect.RELATED, "multipart/related")],
)
def test_both_dialects_wrap_the_files_as_a_standard_parser_expects(tmp_path, dialect, media_type):
    contents = [b"first", b"", b"third" * 500_000]
    files = [outgoing(tmp_path / f"patient-{index}", content) for index, content in enumerate(contents)]

    found, wrapped = parts(MultipartBody(files, dialect))

    assert found == media_type
    assert [part.get_content_disposition() for part in wrapped] == ["form-data"] * 3
    assert [part.get_param("name", header="content-disposition") for part in wrapped] == ["file0", "file1", "file2"]
    assert [part.get_filename() for part in wrapped] == ["file0.dcm", "file1.dcm", "file2.dcm"]
    assert [part.get_content_type() for part in wrapped] == ["application/dicom"] * 3


def test_the_older_dialect_names_its_type():
    assert "; type=application/dicom; boundary=" in MultipartBody([], UploadDialect.RELATED).content_type


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.sampled_from([0, 1, 100, BLOCK - 200, BLOCK, BLOCK + 1, 2 * BLOCK]), max_size=5))
def test_the_length_is_exact_and_what_is_sent_is_what_the_files_hold(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp("files")
    contents = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    files = [outgoing(folder / str(index), content) for index, content in enumerate(contents)]
    body = MultipartBody(files, UploadDialect.FORM_DATA)

    sent = whole(body)

    assert len(sent) == len(body) == body.sent
    assert len(sent) <= sum(map(part_size, files)) + CLOSING_SIZE
    position = 0
    for content in contents:
        position = sent.index(b"\r\n\r\n" + content + b"\r\n--", position) + 4 + len(content)


def test_it_can_be_sent_again_from_the_start(tmp_path):
    body = MultipartBody([outgoing(tmp_path / "a", b"x" * 10)], UploadDialect.FORM_DATA)

    assert whole(body) == whole(body)


def test_a_replaced_header_goes_before_the_untouched_rest(tmp_path):
    file = outgoing(tmp_path / "a", b"OLD HEADERpixels", header=b"NEW", offset=10)
    body = MultipartBody([file], UploadDialect.FORM_DATA)

    assert b"\r\n\r\nNEWpixels\r\n--" in whole(body)
    assert b"OLD" not in whole(body)


def test_files_by_more_than_their_name_are_read_too(tmp_path):
    class Remote:
        def __init__(self, path):
            self.path = path

        def open(self, mode):
            return self.path.open(mode)

    (tmp_path / "a").write_bytes(b"content")
    for path in (tmp_path / "a", Remote(tmp_path / "a")):
        body = MultipartBody([OutgoingFile("1.2.3", "1.2", path, 7)], UploadDialect.FORM_DATA)
        assert b"\r\n\r\ncontent\r\n--" in whole(body)


def test_nothing_of_the_export_or_the_patient_is_sent_beside_the_file(tmp_path):
    file = outgoing(tmp_path / "DOE^JANE.dcm", b"pixels")

    sent = whole(MultipartBody([file], UploadDialect.FORM_DATA))

    for told in (b"DOE", b"JANE", b"1.2.3", str(tmp_path).encode()):
        assert told not in sent


@pytest.mark.parametrize("size", [3, 7])
def test_a_file_of_another_length_ends_the_body_short_of_its_length(tmp_path, size):
    files = [outgoing(tmp_path / "a", b"whole"), outgoing(tmp_path / "b", b"other", size=size)]
    body = MultipartBody(files, UploadDialect.FORM_DATA)

    with pytest.raises(OutgoingFileError) as caught:
        whole(body)

    assert caught.value.file is files[1]
    assert isinstance(caught.value.error, QureRejectedError)
    assert body.sent < len(body)


def test_a_file_that_vanished_is_named_to_the_caller_but_not_in_words(tmp_path):
    file = OutgoingFile("1.2.3", "1.2", str(tmp_path / "DOE^JANE.dcm"), 5)

    with pytest.raises(OutgoingFileError) as caught:
        whole(MultipartBody([file], UploadDialect.FORM_DATA))

    assert caught.value.file is file
    assert isinstance(caught.value.error, QureRejectedError)
    assert "gone" in str(caught.value)
    assert "DOE" not in str(caught.value)


def test_a_file_that_cannot_be_read_may_be_readable_later(tmp_path):
    file = OutgoingFile("1.2.3", "1.2", str(tmp_path), 5)

    with pytest.raises(OutgoingFileError) as caught:
        whole(MultipartBody([file], UploadDialect.FORM_DATA))

    assert isinstance(caught.value.error, QureTransientError)
    assert "EISDIR" in str(caught.value)


class Counted:
    """A file by more than its name, which counts how many of its kind are open."""

    open_now = 0
    most = 0

    def __init__(self, content):
        self._content = content

    def open(self, mode):
        assert mode == "rb"
        Counted.open_now += 1
        Counted.most = max(Counted.most, Counted.open_now)
        self.readinto = io.BytesIO(self._content).readinto
        return self

    def __enter__(self):
        return self

    def __exit__(self, *args):
        Counted.open_now -= 1


def test_no_more_than_one_file_is_open_at_a_time():
    files = [OutgoingFile(str(index), "2", Counted(b"12345"), 5) for index in range(5)]

    whole(MultipartBody(files, UploadDialect.FORM_DATA))

    assert (Counted.most, Counted.open_now) == (1, 0)


def test_a_body_can_be_broken_off_between_blocks(tmp_path):
    def stop():
        raise InterruptedError

    body = MultipartBody([outgoing(tmp_path / "a", b"x")], UploadDialect.FORM_DATA, stop)

    with pytest.raises(InterruptedError):
        whole(body)
    assert body.sent == 0


def test_repr_of_a_file_tells_nothing_of_the_patient(tmp_path):
    file = outgoing(tmp_path / "DOE^JANE", b"x", header=b"secret")

    assert repr(file) == "OutgoingFile(size=7, offset=0)"


@pytest.mark.parametrize("path_of", [str, lambda path: ObjectStoragePath(f"file://{path}")])
def test_a_file_that_is_not_the_one_that_was_looked_at_is_not_sent(tmp_path, path_of):
    path = tmp_path / "image"
    path.write_bytes(b"first")
    listed = FileVersion(path.stat().st_size, path.stat().st_mtime)
    file = OutgoingFile("1.2.3", "1.2", path_of(path), 5, version=listed)
    assert b"first" in whole(MultipartBody([file], UploadDialect.FORM_DATA))

    path.write_bytes(b"other")
    os.utime(path, (listed.modified + 1, listed.modified + 1))

    with pytest.raises(OutgoingFileError) as failure:
        whole(MultipartBody([file], UploadDialect.FORM_DATA))
    assert failure.value.file is file
    assert isinstance(failure.value.error, QureRejectedError)
    assert "changed since it was planned" in str(failure.value.error)


def test_a_file_that_changes_while_it_is_sent_ends_the_request_short(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(3 * BLOCK))
    listed = FileVersion(path.stat().st_size, path.stat().st_mtime)
    body = MultipartBody(
        [OutgoingFile("1.2.3", "1.2", str(path), listed.size, version=listed)], UploadDialect.FORM_DATA
    )
    blocks = iter(body)
    next(blocks)
    os.utime(path, (listed.modified + 1, listed.modified + 1))

    with pytest.raises(OutgoingFileError, match="changed since it was planned"):
        list(blocks)
    assert body.sent < len(body)


@pytest.mark.parametrize("kept_after", [0, 3], ids=["from memory", "from disk"])
def test_a_new_header_is_kept_and_what_follows_the_pixels_stays_here(tmp_path, kept_after):
    path = tmp_path / "image"
    path.write_bytes(b"old header" + b"pixels" * BLOCK + b"a signature that names somebody")
    version = FileVersion(path.stat().st_size, path.stat().st_mtime)
    with HeaderSpool() as spool:
        spool.keep(b"another's header")
        header = spool.keep(b"new header of other length")
        for _ in range(kept_after):
            spool.keep(bytes(BLOCK // 2))
        size = len(header) + 6 * BLOCK
        file = OutgoingFile("1.2.3", "1.2", str(path), size, header, len(b"old header"), version)
        body = MultipartBody([file, file], UploadDialect.FORM_DATA)

        _, wrapped = parts(body)

    assert [part.get_content() for part in wrapped] == [b"new header of other length" + b"pixels" * BLOCK] * 2
    assert body.sent == len(body)
    assert b"names somebody" not in repr(file).encode()


def test_each_of_many_headers_comes_back_while_more_are_kept():
    with HeaderSpool() as spool, ThreadPoolExecutor(1) as reader:
        headers = [str(number).encode() * (1 + 40 * number) for number in range(500)]
        kept = [spool.keep(header) for header in headers[:100]]
        reading = reader.submit(lambda: [bytes(kept[number % 100]) for number in range(20_000)])
        kept += [spool.keep(header) for header in headers[100:]]
        assert [bytes(each) for each in kept] == headers
        assert reading.result() == [headers[number % 100] for number in range(20_000)]
        assert [len(each) for each in kept] == [len(header) for header in headers]
    assert sum(map(len, headers)) > 3 * BLOCK


def test_no_room_for_headers_is_an_error(monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, start: len(data) - 1)
    with HeaderSpool() as spool:
        spool.keep(bytes(BLOCK))
        with pytest.raises(OSError, match="no room for de-identified headers"):
            spool.keep(b"header")
