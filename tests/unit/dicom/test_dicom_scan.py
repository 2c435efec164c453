import logging
import os
import socket
import tracemalloc
import warnings
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.fileset import FileSet
from pydicom.uid import generate_uid

from qure_provider.dicom import reader
from qure_provider.dicom.export import TooManyFilesError
from qure_provider.dicom.model import Fate
from qure_provider.dicom.reasons import Duplicate, Ignored, Oddity, Quarantine
from qure_provider.dicom.scan import ScanLimits, scan, scan_files

HANGING_PROTOCOL = "1.2.840.10008.5.1.4.38.1"


def scanned(root, **options):
    """A scan whose sums hold."""
    return checked(scan(root, **options))


def checked(result):
    in_series = [instance.path for series in result.series for instance in series.instances]
    passed_over = [row.path for row in result.passed_over]
    assert result.found == len(in_series) + len(passed_over)
    assert len({*in_series, *passed_over}) == result.found
    return result


def only_row(result):
    (row,) = result.passed_over
    return row


def rows(result):
    return {row.path: (row.fate, row.reason) for row in result.passed_over}


class TestWhatIsRead:
    def test_a_series_carries_what_its_header_says(self, export):
        ds = export.add(
            "night/one.dcm",
            "DX",
            IssuerOfPatientID="SIM-HOSPITAL",
            PatientName="SIMULATED^PATIENT=模擬^患者",
            BodyPartExamined="Chest",
            StationName="ROOM1",
            StudyDescription="Thorax ü",
            SeriesDescription="pa",
            ProtocolName="chest pa",
            ImageType=["DERIVED", "PRIMARY"],
            PatientAge="054Y",
            InstanceNumber=3,
            AcquisitionDateTime="20240501101112.5+0530",
        )
        result = scanned(export.root)
        (series,) = result.series
        identity = series.identity
        assert identity.study_instance_uid == ds.StudyInstanceUID
        assert (identity.patient_id, identity.issuer_of_patient_id) == ("SIM-1", "SIM-HOSPITAL")
        assert (identity.accession_number, identity.birth_date, identity.sex) == ("A1", "19700101", "F")
        assert identity.patient_name == "SIMULATED^PATIENT=模擬^患者"
        assert series.series_instance_uid == ds.SeriesInstanceUID
        assert (series.modality, series.body_part, series.station_name) == ("DX", "CHEST", "ROOM1")
        assert (series.study_description, series.series_description) == ("Thorax ü", "pa")
        assert (series.image_type, series.protocol_name) == (("DERIVED", "PRIMARY"), "chest pa")
        assert (series.patient_age, series.study_date, series.acquired) == (54, "20240501", "20240501101112.5")
        (instance,) = series.instances
        path = export.root / "night/one.dcm"
        assert (instance.path, instance.size) == ("night/one.dcm", path.stat().st_size)
        assert instance.modified == path.stat().st_mtime
        assert instance.sop_instance_uid == ds.SOPInstanceUID
        assert instance.transfer_syntax_uid == uid.ExplicitVRLittleEndian
        assert (instance.instance_number, instance.frames) == (3, 1)
        assert (series.is_axial, series.extent, series.warnings) == (None, None, ())

    def test_geometry_of_a_ct(self, export):
        export.add_series("ct", count=4, spacing=2.5, start=100, ConvolutionKernel="H31s", ContrastBolusAgent="OMNI")
        (series,) = scanned(export.root).series
        assert (series.is_axial, series.extent, series.slice_thickness) == (True, (100.0, 107.5), 5.0)
        assert (series.convolution_kernel, series.contrast_agent) == ("H31s", "OMNI")
        assert series.frame_of_reference_uid

    def test_a_coronal_series_reaches_over_the_height_of_its_images(self, export):
        export.add_series("ct", count=2, ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=[0, 0, 50])
        (series,) = scanned(export.root).series
        assert series.is_axial is False
        assert series.extent == (50 - 15 * 0.5, 50)

    def test_instances_are_in_order_of_their_number(self, export):
        common = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}
        for name, number in (("a", 10), ("b", None), ("c", 9), ("d", 100)):
            export.add(name, InstanceNumber=number, **common)
        (series,) = scanned(export.root).series
        assert [instance.path for instance in series.instances] == ["c", "a", "d", "b"]

    @pytest.mark.parametrize(
        "syntax",
        [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian],
    )
    def test_every_encoding_says_the_same(self, export, syntax):
        export.add("one", "CT", syntax=syntax, PatientName="A^B", InstanceNumber=7, SliceThickness="2.5")
        (series,) = scanned(export.root).series
        assert (series.identity.patient_name, series.slice_thickness) == ("A^B", 2.5)
        assert series.instances[0].instance_number == 7

    def test_elements_inside_sequences_are_not_taken_for_the_objects_own(self, export):
        other = export.dataset(PatientID="SOMEBODY-ELSE")
        for undefined in (True, False):
            ds = export.dataset(PatientID="SIM-9")
            ds.RequestAttributesSequence = [other, other]
            ds["RequestAttributesSequence"].is_undefined_length = undefined
            for item in ds.RequestAttributesSequence:
                item.is_undefined_length_sequence_item = undefined
            export.save(f"{undefined}", ds)
        assert {series.identity.patient_id for series in scanned(export.root).series} == {"SIM-9"}

    def test_a_header_with_large_values_before_the_pixels(self, export):
        ds = export.dataset("CT")
        block = ds.private_block(0x0029, "SIMULATED", create=True)
        block.add_new(0x10, "OB", bytes(300_000))
        block.add_new(0x11, "LO", "after")
        export.save("one", ds)
        (series,) = scanned(export.root).series
        assert series.modality == "CT"

    def test_frames_are_counted(self, export):
        export.add("one", "CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=3, PixelData=bytes(768))
        (series,) = scanned(export.root).series
        assert (series.instances[0].frames, series.images) == (3, 3)

    def test_the_most_common_description_describes_a_series(self, export):
        common = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}
        export.add("0", "CT", InstanceNumber=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **common)
        for number in (2, 3):
            export.add(f"{number}", "CT", InstanceNumber=number, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], **common)
        (series,) = scanned(export.root).series
        assert series.image_type[2] == "AXIAL"
        assert series.warnings == (Oddity.MIXED_IMAGES,)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ({"AcquisitionDate": "20240502", "AcquisitionTime": "080000"}, "20240502080000"),
            ({"ContentDate": "20240503", "ContentTime": "090000.123"}, "20240503090000.123"),
            ({"AcquisitionDate": "20240502"}, "20240501101500"),
            ({"StudyTime": None}, "20240501"),
            ({"AcquisitionDateTime": "yesterday", "StudyTime": None, "StudyDate": "1997.04.24"}, ""),
        ],
    )
    def test_when_it_was_acquired(self, export, values, expected):
        with warnings.catch_warnings(action="ignore"):
            export.add("one", **values)
        assert scanned(export.root).series[0].acquired == expected

    @pytest.mark.parametrize(
        ("values", "years"),
        [
            ({"PatientAge": "006M"}, 0.5),
            ({"PatientAge": "054Y"}, 54),
            ({"PatientAge": "old"}, 54.33),
            ({}, 54.33),
            ({"PatientBirthDate": ""}, None),
            ({"PatientBirthDate": "20250101"}, None),
            ({"PatientBirthDate": "19700230"}, None),
        ],
    )
    def test_age(self, export, values, years):
        with warnings.catch_warnings(action="ignore"):
            export.add("one", **values)
        age = scanned(export.root).series[0].patient_age
        assert age == (years if years is None else pytest.approx(years, abs=0.01))

    def test_junk_is_absent(self, export):
        ds = export.dataset("CT")
        raw = {0x00180050: b"thick ", 0x00200013: b"one ", 0x00200037: b"1\\0\\zero", 0x00280008: b"many"}
        with warnings.catch_warnings(action="ignore"):
            for tag, value in raw.items():
                ds.add_new(tag, "LO", value.decode())
            export.save("one", ds)
        (series,) = scanned(export.root).series
        assert (series.slice_thickness, series.is_axial, series.images) == (None, None, 1)
        assert series.instances[0].instance_number is None

    def test_text_that_cannot_be_decoded_is_kept_and_warned_of(self, export):
        path = export.save("one", export.dataset(PatientName="SIMULATED^PATIENT"))
        path.write_bytes(path.read_bytes().replace(b"SIMULATED^PATIENT", b"SIM\xff\xfeATED^PATIENT"))
        (series,) = scanned(export.root).series
        assert series.identity.patient_name == "SIM\ufffd\ufffdATED^PATIENT"
        assert series.warnings == (Oddity.UNDECODABLE,)

    @pytest.mark.parametrize("charset", [b"ISO_IR 999", b"ISO_IR\x00100"])
    def test_a_character_set_that_is_none_is_warned_of(self, export, charset):
        path = export.save("one", export.dataset(SpecificCharacterSet="ISO_IR 100", PatientName="SIMULATED^JÖRG"))
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", charset))
        (series,) = scanned(export.root).series
        assert series.identity.patient_name.startswith("SIMULATED^J")
        assert series.warnings == (Oddity.UNDECODABLE,)

    def test_nothing_of_a_header_reaches_a_log_or_a_warning(self, export, caplog):
        path = export.save("one", export.dataset(SpecificCharacterSet="ISO_IR 100", PatientID="SECRET-ID"))
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"SECRET-SET"))
        export.write("two", b"\x08\x00\x16\x00UI\x0a\x00SECRET-UID" + bytes(10))
        with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scanned(export.root)
        assert "SECRET" not in caplog.text
        assert not caught


class TestNamesAndFolders:
    def test_any_name_nested_or_flat(self, export):
        names = ["IM 1", "größe/名前.dcm", "a/b/c/d/e", "new\nline", "UPPER.DCM", "no-extension", "日本 語/ö.img"]
        for name in names:
            export.add(name)
        undecodable = os.fsdecode(b"caf\xe9\xff.dcm")
        export.save(undecodable, export.dataset())
        result = scanned(export.root)
        assert {instance.path for series in result.series for instance in series.instances} == {*names, undecodable}

    def test_an_empty_folder(self, export):
        assert scanned(export.root).found == 0

    @pytest.mark.parametrize("name", ["absent", "file"])
    def test_a_folder_that_is_none(self, export, name):
        export.write("file", b"x")
        with pytest.raises(OSError, match=name):
            scan(export.root / name)

    @pytest.mark.parametrize("name", ["IM1.part", "IM1.dcm.tmp", "IM1.filepart", "IM1~", ".IM1.dcm.aX3f9Q"])
    def test_a_temporary_name_may_still_be_being_written(self, export, name):
        export.add(name)
        row = only_row(scanned(export.root))
        assert (row.fate, row.reason) == (Fate.QUARANTINED, Quarantine.UNFINISHED)
        assert row.size > 0

    def test_a_hidden_image(self, export):
        export.add(".IM1")
        assert only_row(scanned(export.root)).reason == Quarantine.UNFINISHED

    @pytest.mark.parametrize("name", [".DS_Store", "._IM1", "_SUCCESS", "night.done", "x/Thumbs.db", ".keep"])
    @pytest.mark.parametrize("content", [b"", b"finished at 02:00"])
    def test_markers_and_system_files(self, export, name, content):
        export.write(name, content)
        row = only_row(scanned(export.root))
        assert (row.fate, row.reason) == (Fate.NOT_SELECTED, Ignored.MARKER)

    def test_an_image_with_a_markers_name_is_an_image(self, export):
        export.add("image.ready")
        assert len(scanned(export.root).series) == 1

    def test_a_listing_larger_than_the_limit_is_refused_whole(self, export):
        for number in range(4):
            export.write(f"{number}/x", b"x")
        assert scanned(export.root, limits=ScanLimits(files=4)).found == 4
        with pytest.raises(TooManyFilesError, match="more than 3 files"):
            scan(export.root, limits=ScanLimits(files=3))


class TestWhatIsNoRegularFile:
    def test_links_are_not_followed_out(self, export, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        export.add("inside/one")
        (export.root / "inside/one").rename(outside / "one")
        (export.root / "file").symlink_to(outside / "one")
        (export.root / "folder").symlink_to(outside)
        (export.root / "relative").symlink_to("../outside/one")
        (export.root / "parent").symlink_to("..")
        (export.root / "nowhere").symlink_to("absent")
        (export.root / "itself").symlink_to("itself")
        result = scanned(export.root)
        out = (Fate.QUARANTINED, Quarantine.LINK_OUT)
        assert not result.series
        assert rows(result) == {
            **dict.fromkeys(("file", "folder", "relative", "parent"), out),
            **dict.fromkeys(("nowhere", "itself"), (Fate.QUARANTINED, Quarantine.LINK_BROKEN)),
        }

    def test_a_folder_beside_the_export_with_a_longer_name_is_outside(self, export, tmp_path):
        (tmp_path / "export-2").mkdir()
        (tmp_path / "export-2/x").write_bytes(b"x")
        (export.root / "link").symlink_to(tmp_path / "export-2/x")
        assert only_row(scanned(export.root)).reason == Quarantine.LINK_OUT

    def test_links_inside_are_duplicates_and_make_no_loop(self, export):
        export.add("a/one")
        (export.root / "again").symlink_to("a/one")
        (export.root / "a/loop").symlink_to(export.root)
        result = scanned(export.root)
        assert len(result.series) == 1
        assert set(rows(result).values()) == {(Fate.DUPLICATE, Duplicate.LINK)}

    def test_an_export_that_is_itself_a_link(self, export, tmp_path):
        export.add("one")
        (tmp_path / "tonight").symlink_to(export.root)
        assert len(scanned(tmp_path / "tonight").series) == 1

    def test_pipes_and_sockets_never_hang(self, export):
        os.mkfifo(export.root / "pipe")
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(export.root)
            try:
                server.bind("socket")
            finally:
                os.chdir(here)
            result = scanned(export.root)
            named = checked(scan_files(export.root, ["pipe", "socket"]))
        expected = dict.fromkeys(("pipe", "socket"), (Fate.QUARANTINED, Quarantine.NOT_A_FILE))
        assert rows(result) == expected
        assert rows(named) == expected

    def test_a_folder_that_cannot_be_listed_is_one_visible_row(self, export, monkeypatch):
        export.add("good/one")
        export.add("bad/two")
        scandir = os.scandir

        def refuse(path):
            if str(path).rstrip("/").endswith("bad"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        result = scanned(export.root)
        assert result.found == 2
        assert rows(result) == {"bad/": (Fate.QUARANTINED, Quarantine.FOLDER)}

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (PermissionError(13, "Permission denied"), Quarantine.PERMISSION),
            (FileNotFoundError(2, "No such file"), Quarantine.VANISHED),
            (OSError(5, "Input/output error"), Quarantine.UNREADABLE),
        ],
    )
    def test_a_file_that_cannot_be_read(self, export, monkeypatch, error, reason):
        export.add("good")
        export.add("bad")
        opened = os.open

        def refuse(path, *rest, **options):
            if str(path).endswith("/bad"):
                raise error
            return opened(path, *rest, **options)

        monkeypatch.setattr(os, "open", refuse)
        result = scanned(export.root)
        assert len(result.series) == 1
        assert rows(result) == {"bad": (Fate.QUARANTINED, reason)}

    def test_our_own_lack_of_file_handles_does_not_quarantine_a_night(self, export, monkeypatch):
        export.add("good")

        def refuse(*_, **__):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            scan(export.root)


class TestQuarantine:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", Quarantine.EMPTY),
            (b"x", Quarantine.NOT_DICOM),
            (b"dear colleague, " * 100, Quarantine.NOT_DICOM),
            (bytes(128) + b"DICM", Quarantine.NO_FILE_HEADER),
            (bytes(128) + b"DICM" + b"\xff" * 500, Quarantine.NO_FILE_HEADER),
            (bytes(128) + b"DIC", Quarantine.NOT_DICOM),
            (bytes(10_000), Quarantine.NOT_DICOM),
            (b"\x08\x00" + b"\xff" * 5000, Quarantine.NOT_DICOM),
        ],
    )
    def test_what_is_no_dicom_file(self, export, content, reason):
        export.write("one", content)
        row = only_row(scanned(export.root))
        assert (row.fate, row.reason, row.size) == (Fate.QUARANTINED, reason, len(content))

    @pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
    def test_a_dataset_without_file_header_is_not_sent(self, export, syntax):
        ds = export.dataset(syntax=syntax)
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, syntax.is_implicit_VR
        del ds.file_meta, ds.preamble
        ds.save_as(buffer, implicit_vr=syntax.is_implicit_VR, little_endian=True)
        export.write("one", buffer.getvalue())
        assert only_row(scanned(export.root)).reason == Quarantine.NO_FILE_HEADER

    @pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
    def test_missing_uids(self, export, keyword):
        ds = export.dataset()
        delattr(ds, keyword)
        ds.save_as(export.root / "one")
        assert only_row(scanned(export.root)).reason == Quarantine.MISSING_UID

    @pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
    @pytest.mark.parametrize("value", ["1.2.x", "1..2", ".1", "1.", "1.2 3", "../../etc", "1." + "2" * 64])
    def test_what_no_uid_is(self, export, keyword, value):
        ds = export.dataset()
        with warnings.catch_warnings(action="ignore"):
            setattr(ds, keyword, value)
            ds.save_as(export.root / "one")
        assert only_row(scanned(export.root)).reason == Quarantine.INVALID_UID

    def test_a_leading_zero_only_warns(self, export):
        with warnings.catch_warnings(action="ignore"):
            export.add("one", SOPInstanceUID="1.2.03.4")
        (series,) = scanned(export.root).series
        assert series.instances[0].sop_instance_uid == "1.2.03.4"
        assert series.warnings == (Oddity.LEADING_ZERO,)

    def test_a_patient_without_an_id_is_warned_of(self, export):
        export.add("one", PatientID="")
        assert scanned(export.root).series[0].warnings == (Oddity.NO_PATIENT_ID,)

    def test_a_file_header_that_names_another_object_warns(self, export):
        ds = export.dataset()
        ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        ds.save_as(export.root / "one")
        assert scanned(export.root).series[0].warnings == (Oddity.OTHER_FILE_UID,)

    @pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
    def test_truncated_anywhere(self, export, syntax):
        path = export.save("one", export.dataset("CT", syntax=syntax, SeriesInstanceUID="1.2.3.4"))
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        row = only_row(scanned(export.root))
        assert (row.reason, row.series_instance_uid) == (Quarantine.TRUNCATED, "1.2.3.4")
        start_of_pixels = len(content) - 256
        for length in range(140, start_of_pixels, 7):
            path.write_bytes(content[:length])
            reason = only_row(scanned(export.root)).reason
            assert reason in {Quarantine.TRUNCATED, Quarantine.NO_PIXELS, Quarantine.MISSING_UID} | (
                {Quarantine.NO_FILE_HEADER} if length < 400 else set()
            )

    def test_pixel_data_shorter_than_the_image(self, export):
        export.add("one", PixelData=bytes(200))
        assert only_row(scanned(export.root)).reason == Quarantine.TRUNCATED

    def test_an_image_without_pixels(self, export):
        export.add("absent", PixelData=None)
        export.add("empty", PixelData=b"")
        reasons = {row.reason for row in scanned(export.root).passed_over}
        assert reasons <= {Quarantine.NO_PIXELS, Quarantine.TRUNCATED}
        assert rows(scanned(export.root))["absent"] == (Fate.QUARANTINED, Quarantine.NO_PIXELS)

    def encapsulated(self, export, fragments=3, size=70_000):
        ds = export.dataset("CT", syntax=uid.JPEG2000Lossless, NumberOfFrames=fragments)
        ds.PixelData = encapsulate([bytes([number]) * size for number in range(fragments)])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        return export.save("one", ds)

    def test_encapsulated_pixel_data(self, export):
        self.encapsulated(export)
        assert len(scanned(export.root).series) == 1

    def test_encapsulated_pixel_data_with_something_after_it(self, export):
        path = self.encapsulated(export)
        padding = b"\xfc\xff\xfc\xffOB\x00\x00\x04\x00\x00\x00" + bytes(4)
        path.write_bytes(path.read_bytes() + padding)
        assert len(scanned(export.root).series) == 1

    @pytest.mark.parametrize("cut", [1, 8, 100, 70_000, 150_000, 210_000])
    def test_encapsulated_pixel_data_that_ends_too_early(self, export, cut):
        path = self.encapsulated(export)
        path.write_bytes(path.read_bytes()[:-cut])
        assert only_row(scanned(export.root)).reason == Quarantine.TRUNCATED

    def test_an_object_larger_than_one_request(self, export):
        export.add("image")
        size = (export.root / "image").stat().st_size
        assert not scanned(export.root, limits=ScanLimits(object_bytes=size)).passed_over
        assert only_row(scanned(export.root, limits=ScanLimits(object_bytes=size - 1))).reason == Quarantine.TOO_LARGE

    def test_what_is_never_sent_may_be_as_large_as_it_likes(self, export):
        export.add("video", "US")
        assert not scanned(export.root, limits=ScanLimits(object_bytes=10)).passed_over

    def test_a_header_larger_than_the_limit(self, export):
        ds = export.dataset("CT")
        ds.ReferencedImageSequence = [export.dataset() for _ in range(200)]
        ds["ReferencedImageSequence"].is_undefined_length = True
        for item in ds.ReferencedImageSequence:
            item.is_undefined_length_sequence_item = True
        export.save("one", ds)
        assert not scanned(export.root).passed_over
        row = only_row(scanned(export.root, limits=ScanLimits(header_bytes=40_000)))
        assert row.reason == Quarantine.HEADER_TOO_LARGE

    def test_a_deflated_file_is_inflated_within_bounds(self, export, monkeypatch):
        ds = export.dataset("SR", syntax=uid.DeflatedExplicitVRLittleEndian)
        ds.TextValue = "0" * 30_000_000
        path = export.save("one", ds)
        content = path.read_bytes()
        assert len(content) < 100_000
        tracemalloc.start()
        assert not scanned(export.root, limits=ScanLimits(header_bytes=1_000_000)).passed_over
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()
        path.write_bytes(content[:-100])
        assert only_row(scanned(export.root)).reason == Quarantine.TRUNCATED
        path.write_bytes(content)
        monkeypatch.setattr(reader, "_INFLATED_LIMIT", 20_000_000)
        assert only_row(scanned(export.root)).reason == Quarantine.TOO_LARGE

    def test_an_image_without_modality(self, export):
        export.add("one", Modality="")
        assert only_row(scanned(export.root)).reason == Quarantine.NO_MODALITY

    def test_an_element_that_says_two_things(self, export):
        path = export.save("one", export.dataset(PatientID="SIM-1"))
        element = b"\x10\x00\x20\x00LO\x06\x00SIM-1 "
        assert element in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(element, element + element.replace(b"1", b"2")))
        assert only_row(scanned(export.root)).reason == Quarantine.MALFORMED


class TestDuplicates:
    def test_identical_copies_are_sent_once_the_first_by_path(self, export):
        ds = export.dataset()
        for name in ("b/copy", "a/copy", "c"):
            export.save(name, ds)
        result = scanned(export.root)
        assert [instance.path for instance in result.series[0].instances] == ["a/copy"]
        assert rows(result) == dict.fromkeys(("b/copy", "c"), (Fate.DUPLICATE, Duplicate.COPY))

    @pytest.mark.parametrize("change", [{"PixelData": b"\x01" * 256}, {"ImageComments": "longer"}])
    def test_copies_that_differ_are_all_held(self, export, change):
        ds = export.dataset(InstanceNumber=1)
        export.save("a", ds)
        export.save("b", ds)
        for keyword, value in change.items():
            setattr(ds, keyword, value)
        export.save("c", ds)
        other = export.add("d", StudyInstanceUID=ds.StudyInstanceUID, SeriesInstanceUID=ds.SeriesInstanceUID)
        result = scanned(export.root)
        assert rows(result) == dict.fromkeys("abc", (Fate.QUARANTINED, Quarantine.DIFFERENT_COPIES))
        assert [each.sop_instance_uid for each in result.series[0].instances] == [other.SOPInstanceUID]

    def test_a_truncated_copy_does_not_hold_the_whole_one(self, export):
        ds = export.dataset()
        content = export.save("a", ds).read_bytes()
        export.write("b", content[:-5])
        result = scanned(export.root)
        assert len(result.series) == 1
        assert rows(result) == {"b": (Fate.QUARANTINED, Quarantine.TRUNCATED)}

    def test_a_copy_that_cannot_be_compared_is_held(self, export, monkeypatch):
        ds = export.dataset()
        export.save("a", ds)
        export.save("b", ds)
        opened, counts = os.open, {}

        def vanish(path, *rest, **options):
            counts[path] = counts.get(path, 0) + 1
            if str(path).endswith("/b") and counts[path] > 1:
                raise FileNotFoundError(2, "No such file")
            return opened(path, *rest, **options)

        monkeypatch.setattr(os, "open", vanish)
        result = scanned(export.root)
        assert rows(result) == dict.fromkeys("ab", (Fate.QUARANTINED, Quarantine.DIFFERENT_COPIES))

    def test_content_is_read_only_where_a_uid_recurs(self, export, monkeypatch):
        for number in range(5):
            export.add(f"{number}", PixelData=bytes(4_000_000), rows=2000, columns=2000)
        read, pread = [], os.pread

        def count(descriptor, length, offset):
            data = pread(descriptor, length, offset)
            read.append(len(data))
            return data

        monkeypatch.setattr(os, "pread", count)
        scanned(export.root)
        assert sum(read) <= 5 * 32_000


class TestOneStudyOnePatient:
    @pytest.mark.parametrize(
        ("keyword", "value"),
        [
            ("PatientID", "SIM-2"),
            ("PatientID", "sim-1"),
            ("PatientID", ""),
            ("IssuerOfPatientID", "ELSEWHERE"),
            ("PatientName", "SIMULATED^OTHER"),
            ("PatientBirthDate", "19700102"),
            ("PatientSex", "M"),
            ("AccessionNumber", "A2"),
        ],
    )
    def test_a_contradiction_holds_the_whole_study_and_no_other(self, export, keyword, value):
        study = generate_uid()
        export.add("a", StudyInstanceUID=study)
        export.add("b", StudyInstanceUID=study)
        export.add("c", StudyInstanceUID=study, **{keyword: value})
        other = export.add("d")
        result = scanned(export.root)
        assert rows(result) == dict.fromkeys("abc", (Fate.QUARANTINED, Quarantine.TWO_PATIENTS))
        assert [series.series_instance_uid for series in result.series] == [other.SeriesInstanceUID]

    def test_a_contradicting_report_holds_the_images(self, export):
        study = generate_uid()
        export.add("a", StudyInstanceUID=study)
        export.add("b", "SR", StudyInstanceUID=study, PatientID="SIM-2")
        assert {row.reason for row in scanned(export.root).passed_over} == {Quarantine.TWO_PATIENTS}

    def test_a_report_may_leave_out_what_the_images_say(self, export):
        study = generate_uid()
        export.add("a", StudyInstanceUID=study)
        export.add("b", "SR", StudyInstanceUID=study, PatientSex="", AccessionNumber=None)
        assert not scanned(export.root).passed_over

    def test_a_header_that_was_cut_off_is_no_contradiction(self, export):
        study = generate_uid()
        export.add("a", StudyInstanceUID=study)
        content = export.save("b", export.dataset(StudyInstanceUID=study)).read_bytes()
        export.write("b", content[: content.index(b"SIMULATED^PATIENT")])
        result = scanned(export.root)
        assert len(result.series) == 1
        assert rows(result) == {"b": (Fate.QUARANTINED, Quarantine.TRUNCATED)}

    def test_the_same_value_in_two_character_sets_is_no_contradiction(self, export):
        study = generate_uid()
        export.add("a", StudyInstanceUID=study, SpecificCharacterSet="ISO_IR 100", PatientName="MÜLLER^JÖRG")
        export.add("b", StudyInstanceUID=study, SpecificCharacterSet="ISO_IR 192", PatientName="MÜLLER^JÖRG")
        assert not scanned(export.root).passed_over

    def test_a_series_in_two_studies(self, export):
        export.add("a", SeriesInstanceUID="1.2.3")
        export.add("b", SeriesInstanceUID="1.2.3")
        assert {row.reason for row in scanned(export.root).passed_over} == {Quarantine.TWO_STUDIES}

    def test_a_series_of_two_modalities(self, export):
        common = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3"}
        export.add("a", "CR", **common)
        export.add("b", "DX", **common)
        assert {row.reason for row in scanned(export.root).passed_over} == {Quarantine.TWO_MODALITIES}

    def test_an_object_in_two_series(self, export):
        export.add("a", SOPInstanceUID="1.2.3")
        export.add("b", SOPInstanceUID="1.2.3")
        export.add("c")
        result = scanned(export.root)
        assert rows(result) == dict.fromkeys("ab", (Fate.QUARANTINED, Quarantine.TWO_SERIES))
        assert len(result.series) == 1


class TestWhatIsNoImageSeries:
    def test_a_report_is_a_series(self, export):
        export.add("one", "SR")
        (series,) = scanned(export.root).series
        assert series.modality == "SR"

    def test_a_dicomdir_whatever_its_name(self, export, tmp_path):
        source = export.dataset()
        source.PatientID, source.StudyID, source.SeriesNumber, source.InstanceNumber = "SIM-1", "1", 1, 1
        files = FileSet()
        files.add(source)
        files.write(tmp_path / "disc")
        export.write("index.bin", (tmp_path / "disc/DICOMDIR").read_bytes())
        row = only_row(scanned(export.root))
        assert (row.fate, row.reason) == (Fate.NOT_SELECTED, Ignored.DIRECTORY)

    def test_dicom_that_belongs_to_no_study(self, export):
        ds = export.dataset("SR")
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = HANGING_PROTOCOL
        del ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality
        export.save("one", ds)
        row = only_row(scanned(export.root))
        assert (row.fate, row.reason) == (Fate.NOT_SELECTED, Ignored.NO_STUDY)


class TestNamedFiles:
    def test_only_those_named(self, export):
        export.add("a")
        export.add("b")
        export.add("c/d")
        result = checked(scan_files(export.root, ["c/d", "./a", "a", str(export.root / "a")]))
        assert {instance.path for series in result.series for instance in series.instances} == {"a", "c/d"}

    def test_a_link_stands_for_the_file_it_leads_to(self, export):
        export.add("a")
        (export.root / "link").symlink_to("a")
        result = checked(scan_files(export.root, ["link"]))
        assert result.series[0].instances[0].path == "a"

    def test_what_is_not_there_or_not_below(self, export, tmp_path):
        (tmp_path / "secret").write_bytes(b"x")
        (export.root / "out").symlink_to(tmp_path / "secret")
        (export.root / "folder").mkdir()
        result = checked(scan_files(export.root, ["absent", "../secret", "/etc/passwd", "out", "folder", "a\0b"]))
        assert {path: reason for path, (_, reason) in rows(result).items()} == {
            "absent": Quarantine.VANISHED,
            "../secret": Quarantine.OUTSIDE,
            "/etc/passwd": Quarantine.OUTSIDE,
            "out": Quarantine.LINK_OUT,
            "folder": Quarantine.NOT_A_FILE,
            "a\0b": Quarantine.LINK_OUT,
        }


class TestObjectStores:
    @pytest.fixture
    def store(self, export):
        """A folder in fsspec's file system in memory, by Airflow's own path."""
        attach("memory", fs=MemoryFileSystem())
        root = ObjectStoragePath("memory://night")
        root.mkdir(exist_ok=True)
        yield root
        root.fs.rm(root.path, recursive=True)

    def copy(self, export, store):
        for path in export.root.rglob("*"):
            if path.is_file():
                target = store / path.relative_to(export.root).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    def test_the_same_as_on_a_disk(self, export, store):
        export.add_series("ct", count=3)
        export.add("ü b/one")
        ds = export.dataset()
        export.save("copy1", ds)
        export.save("copy2", ds)
        export.write("x.txt", b"no image")
        export.write("cut", (export.root / "copy1").read_bytes()[:-1].replace(b"SIM-1 ", b"SIM-1 "))
        self.copy(export, store)
        ours, theirs = scanned(export.root), scanned(store)
        assert rows(ours) == rows(theirs)
        assert len(rows(ours)) == 3
        assert [s.identity for s in ours.series] == [s.identity for s in theirs.series]
        assert [[i.path for i in s.instances] for s in ours.series] == [
            [i.path for i in s.instances] for s in theirs.series
        ]
        assert theirs.series[0].modified > 0

    def test_a_local_path_of_airflow(self, export):
        export.add("one")
        assert scanned(ObjectStoragePath(f"file://{export.root}")) == scanned(export.root)

    def test_named_files(self, export, store):
        export.add("a")
        export.add("b")
        self.copy(export, store)
        result = checked(scan_files(store, ["a", "absent", "../x", "/y"]))
        assert result.series[0].instances[0].path == "a"
        assert {row.reason for row in result.passed_over} == {Quarantine.VANISHED, Quarantine.OUTSIDE}

    def test_a_folder_that_is_none(self, store):
        with pytest.raises(FileNotFoundError):
            scan(store / "absent")

    def test_a_store_that_does_not_answer_is_not_quarantined(self, export, store, monkeypatch):
        export.add("a")
        self.copy(export, store)

        def refuse(*_, **__):
            raise ConnectionResetError(104, "Connection reset by peer")

        monkeypatch.setattr(type(store.fs), "cat_file", refuse)
        with pytest.raises(ConnectionResetError):
            scan(store)


def test_a_scan_is_the_same_however_many_read(export):
    for number in range(12):
        export.add_series(f"s{number}", "CT", count=12)
    export.write("x", b"x")
    assert scanned(export.root, workers=1) == scanned(export.root, workers=5)
