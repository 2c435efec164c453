"""The files that pydicom ships and downloads for its own tests, and mutations of them."""

import contextlib
import shutil
import time
import warnings
from io import BytesIO
from pathlib import Path

import data_store
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import data_manager, get_charset_files

from qure_provider.dicom import reader
from qure_provider.dicom.model import Fate
from qure_provider.dicom.reader import UnfitError, read_header
from qure_provider.dicom.reasons import Ignored, Quarantine
from qure_provider.dicom.record import WANTED, RecordMaker
from qure_provider.dicom.scan import scan
from qure_provider.dicom.select import Reason, select

SHIPPED = Path(data_manager.DATA_ROOT)
FOLDERS = {
    "shipped": SHIPPED / "test_files",
    "charset": SHIPPED / "charset_files",
    "downloaded": Path(data_store.__file__).parent / "data",
}
FILES = sorted(path for folder in FOLDERS.values() for path in folder.rglob("*") if path.is_file())
LIMIT = 16 * 1024 * 1024


class Memory:
    """Bytes as a source."""

    def __init__(self, content, page=16 * 1024):
        self.content, self.size, self.page = content, len(content), page

    def read(self, offset, length):
        return self.content[offset : offset + length]


def quick(source):
    """The header as our own reader sees it; None where it leaves the file to pydicom."""
    try:
        return reader._read(reader._Window(source, LIMIT), WANTED, LIMIT)
    except (reader._UnusualError, UnfitError):
        return None


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    root = tmp_path_factory.mktemp("everything")
    for name, folder in FOLDERS.items():
        shutil.copytree(folder, root / name)
    return root


def test_every_file_has_one_named_outcome(everything):
    result = scan(everything)
    selection = select(result)
    assert result.found == len(FILES)
    assert result.found == sum(len(series.instances) for series in result.series) + len(result.passed_over)
    rows = [*result.passed_over, *selection.passed_over]
    sent = [instance.path for each in selection.selected for instance in each.series.instances]
    assert sorted([*sent, *(row.path for row in rows)]) == sorted(
        path.relative_to(everything).as_posix() for path in everything.rglob("*") if path.is_file()
    )
    words = {str(word) for words in (Quarantine, Ignored, Reason) for word in words} | {
        "identical copy of another file"
    }
    assert {row.reason for row in rows} <= words
    assert all(row.fate is not Fate.SELECTED for row in rows)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("downloaded/OT-PAL-8-face.dcm", Quarantine.NO_FILE_HEADER),
        ("shipped/rtstruct.dcm", Quarantine.NO_FILE_HEADER),
        ("shipped/ExplVR_BigEndNoMeta.dcm", Quarantine.NO_FILE_HEADER),
        ("shipped/meta_missing_tsyntax.dcm", Quarantine.NO_FILE_HEADER),
        ("shipped/MR_truncated.dcm", Quarantine.TRUNCATED),
        ("shipped/rtplan_truncated.dcm", Quarantine.TRUNCATED),
        ("downloaded/emri_small_jpeg_2k_lossless_too_short.dcm", Quarantine.TRUNCATED),
        ("downloaded/bad_sequence.dcm", Quarantine.INVALID_UID),
        ("shipped/README.txt", Quarantine.NOT_DICOM),
        ("shipped/zipMR.gz", Quarantine.NOT_DICOM),
        ("shipped/dicomdirtests/DICOMDIR", Ignored.DIRECTORY),
    ],
)
def test_what_is_known_of_some(everything, name, reason):
    assert next(row.reason for row in scan(everything).passed_over if row.path == name) == reason


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_our_reader_sees_what_pydicom_sees(path):
    source = Memory(path.read_bytes())
    header = quick(source)
    if header is None or not header.values:
        return
    with warnings.catch_warnings(action="ignore"):
        try:
            expected = reader._read_with_pydicom(source, WANTED, LIMIT)
        except UnfitError:  # deflated, which is never left to pydicom
            assert header.transfer_syntax_uid == pydicom.uid.DeflatedExplicitVRLittleEndian
            return
    strip = {tag: value.rstrip(b" ") for tag, value in header.values.items()}
    assert strip == {tag: value.rstrip(b" ") for tag, value in expected.values.items()}
    assert (header.big_endian, header.has_pixels) == (expected.big_endian, expected.has_pixels)
    assert header.whole <= expected.whole
    small_pages = quick(Memory(source.content, page=64))
    assert small_pages == header


@pytest.mark.parametrize("path", [Path(path) for path in get_charset_files("*.dcm")], ids=lambda path: path.name)
def test_names_are_decoded_as_pydicom_decodes_them(path):
    content = path.read_bytes()
    with warnings.catch_warnings(action="ignore"):
        expected = str(pydicom.dcmread(BytesIO(content)).get("PatientName", ""))
        record = RecordMaker().make("x", 1, 0.0, read_header(Memory(content), WANTED, limit=LIMIT))
    assert record.identity.patient_name == expected


SEEDS = [path.read_bytes()[:20_000] for path in FILES if path.stat().st_size > 300][::7]
INTERESTING = [
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\xfe\xff\x00\xe0",
    b"\xfe\xff\xdd\xe0",
    b"SQ",
    b"UN",
    b"\xe0\x7f\x10\x00",
]


@st.composite
def mutations(draw):
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(content) - 1))
        match draw(st.sampled_from(["overwrite", "insert", "cut", "delete"])):
            case "overwrite":
                patch = draw(st.sampled_from(INTERESTING) | st.binary(min_size=1, max_size=4))
                content[place : place + len(patch)] = patch
            case "insert":
                content[place:place] = draw(st.sampled_from(INTERESTING) | st.binary(max_size=8))
            case "cut":
                del content[max(140, place) :]
            case "delete":
                del content[place : place + draw(st.integers(1, 16))]
        if not content:
            return b""
    return bytes(content)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutations())
def test_a_damaged_file_gets_a_header_or_a_reason_in_bounded_time(content):
    start = time.process_time()
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(UnfitError):
        header = read_header(Memory(content), WANTED, limit=LIMIT)
        record = RecordMaker().make("x", len(content), 0.0, header)
        assert record.problem is None or record.problem in Quarantine
    assert time.process_time() - start < 5
