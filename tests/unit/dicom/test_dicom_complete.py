import logging
import warnings
from dataclasses import replace

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit
from support.emulated_results import emulated

from qure_provider.dicom.complete import Why, complete_object, complete_objects
from qure_provider.dicom.model import StudyFacts
from qure_provider.dicom.objects import UnreadableError
from qure_provider.dicom.verify import Verified, is_simulated, verify_object, verify_objects

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

PATIENT_AND_STUDY = {
    "PatientName": "Müller^Simulated",
    "PatientID": "SIM-1",
    "IssuerOfPatientID": "SIMULATED",
    "PatientBirthDate": "19700101",
    "PatientSex": "O",
    "AccessionNumber": "SIM-A-1",
    "StudyDate": "20260102",
    "StudyTime": "030405",
    "StudyID": "1",
    "StudyDescription": "Simulated study",
    "ReferringPhysicianName": "Nobody^Simulated",
}
KINDS = ["sc", "sr", "seg", "gsps", "encapsulated_pdf"]


@pytest.fixture(scope="module")
def qct(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("qct"), "qct")


@pytest.fixture
def completed(qct, tmp_path):
    """Alters an object of the result, completes it, and gives what was read and what was noted."""

    def complete(kind, identity=qct.identity, facts=qct.facts, *, change=None, **values):
        dataset = pydicom.dcmread(qct.one(kind))
        for keyword, value in values.items():
            if value is None:
                if keyword in dataset:
                    delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        if change:
            change(dataset)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        pydicom.dcmwrite(tmp_path / "as-fetched", dataset)
        done = complete_object(tmp_path / "as-fetched", tmp_path / "completed", identity, facts, qct.sent)
        return pydicom.dcmread(tmp_path / "completed"), {change.keyword: change.why for change in done.changes}

    return complete


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_absent_is_completed_from_the_source(completed, kind):
    made, noted = completed(kind, **dict.fromkeys(PATIENT_AND_STUDY))

    assert {keyword: str(made[keyword].value) for keyword in PATIENT_AND_STUDY} == PATIENT_AND_STUDY
    assert {keyword: noted[keyword] for keyword in PATIENT_AND_STUDY} == dict.fromkeys(PATIENT_AND_STUDY, Why.ABSENT)


def test_what_nobody_knows_is_added_empty_where_the_standard_wants_it(completed, qct):
    unknown = replace(
        qct.identity, patient_name="", birth_date="", sex="", accession_number="", issuer_of_patient_id=""
    )
    made, noted = completed("sr", unknown, StudyFacts(), **dict.fromkeys([*PATIENT_AND_STUDY, "SpecificCharacterSet"]))

    empty = {keyword for keyword in PATIENT_AND_STUDY if keyword in made and not made[keyword].value}
    assert empty == set(PATIENT_AND_STUDY) - {"PatientID", "IssuerOfPatientID", "StudyDescription"}
    assert {noted[keyword] for keyword in empty} == {Why.EMPTY}
    assert {"IssuerOfPatientID", "StudyDescription"}.isdisjoint(made.dir())


@pytest.mark.parametrize(
    "values",
    [
        {"PatientName": "Simulated^Müller"},
        {"PatientName": "MÜLLER^SIMULATED"},
        {"PatientSex": "o"},
        {"StudyDate": "20260103"},
        {"StudyTime": "030405.000"},
        {"StudyDescription": "AI study"},
        {"ReferringPhysicianName": "Simulated^Nobody"},
    ],
)
def test_what_is_written_otherwise_is_written_as_in_the_source(completed, values):
    made, noted = completed("sc", **values)

    (keyword,) = values
    assert str(made[keyword].value) == PATIENT_AND_STUDY[keyword]
    assert noted[keyword] is Why.WRITTEN_OTHERWISE


def test_what_only_the_service_says_of_the_study_stays(completed):
    made, noted = completed("sc", facts=StudyFacts(), StudyDescription="AI study")

    assert made.StudyDescription == "AI study"
    assert "StudyDescription" not in noted


@pytest.mark.parametrize(
    ("field", "keyword", "value"),
    [
        ("accession_number", "AccessionNumber", "SIMULATED-0123456789-0123456789"),
        ("patient_id", "PatientID", "SIMULATED-" * 7),
        ("issuer_of_patient_id", "IssuerOfPatientID", "SIMULATED-" * 7),
        ("patient_name", "PatientName", "SIMULATED^" * 6 + "PATIENT=SIMULATED"),
    ],
)
def test_what_is_too_long_in_the_source_is_kept_exactly_and_noted(completed, qct, tmp_path, field, keyword, value):
    identity = replace(qct.identity, **{field: value})
    made, noted = completed("sc", identity, **{keyword: None})

    assert str(made[keyword].value) == value
    assert noted[keyword] is Why.TOO_LONG
    again = complete_object(tmp_path / "completed", tmp_path / "again", identity, qct.facts, qct.sent)
    assert [(change.keyword, change.why) for change in again.changes] == [(keyword, Why.TOO_LONG)]


def test_a_name_of_several_groups_may_be_long_altogether(completed, qct):
    name = "=".join(["SIMULATED^PATIENT^OF^A^LENGTH"] * 3)
    _, noted = completed("sc", replace(qct.identity, patient_name=name), PatientName=None)

    assert noted["PatientName"] is Why.ABSENT


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_verified_before_as_after(completed, qct, tmp_path, kind):
    completed(kind, **dict.fromkeys(PATIENT_AND_STUDY))

    for path in (tmp_path / "as-fetched", tmp_path / "completed"):
        assert isinstance(verify_object(path, qct.identity, qct.sent), Verified)
        assert is_simulated(path)


@pytest.mark.parametrize("kind", KINDS)
def test_done_twice_it_changes_nothing_more(completed, qct, tmp_path, kind):
    completed(kind, **dict.fromkeys(PATIENT_AND_STUDY))
    again = complete_object(tmp_path / "completed", tmp_path / "again", qct.identity, qct.facts, qct.sent)

    assert again.changes == ()
    assert (tmp_path / "again").read_bytes() == (tmp_path / "completed").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_done_anew_it_gives_the_same_bytes(completed, qct, tmp_path, kind):
    completed(kind, PatientName=None, SOPInstanceUID="1.2.003", SeriesInstanceUID="1.2.03")
    complete_object(tmp_path / "as-fetched", tmp_path / "anew", qct.identity, qct.facts, qct.sent)

    assert (tmp_path / "anew").read_bytes() == (tmp_path / "completed").read_bytes()


class TestPixels:
    def test_they_stay_byte_for_byte(self, completed, qct):
        for kind, element in {
            "sc": "PixelData",
            "seg": "PixelData",
            "encapsulated_pdf": "EncapsulatedDocument",
        }.items():
            made, _ = completed(kind, PatientName=None)

            assert made[element].value == pydicom.dcmread(qct.one(kind))[element].value

    def test_large_ones_too(self, completed):
        def enlarge(dataset):
            dataset.Rows, dataset.Columns = 1024, 1024
            dataset.PixelData = bytes(range(256)) * (1024 * 1024 * 3 // 256)

        made, _ = completed("sc", change=enlarge, PatientName=None)

        assert made.PixelData == bytes(range(256)) * (1024 * 1024 * 3 // 256)

    def test_compressed_ones_too(self, tmp_path):
        result = emulated(tmp_path)
        image = pydicom.dcmread(result.one("original"))
        assert image.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        pydicom.dcmwrite(tmp_path / "jpeg", image)

        complete_object(tmp_path / "jpeg", tmp_path / "completed", result.identity, result.facts, result.sent)

        made = pydicom.dcmread(tmp_path / "completed")
        assert made.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
        assert list(generate_frames(made.PixelData)) == list(generate_frames(image.PixelData))
        assert made.SeriesDescription.startswith("AI unverified")

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
    def test_the_transfer_syntax_stays(self, qct, tmp_path, syntax):
        image = pydicom.dcmread(qct.one("seg"))
        image.file_meta.TransferSyntaxUID = syntax
        implicit = syntax == ImplicitVRLittleEndian
        pydicom.dcmwrite(tmp_path / "seg", image, implicit_vr=implicit, little_endian=True, enforce_file_format=True)

        done = complete_object(tmp_path / "seg", tmp_path / "completed", qct.identity, qct.facts, qct.sent)

        made = pydicom.dcmread(tmp_path / "completed")
        assert [change.keyword for change in done.changes] == ["SeriesDescription"]
        assert made.file_meta.TransferSyntaxUID == syntax
        assert made.PixelData == image.PixelData

    def test_what_is_not_altered_is_copied(self, completed, qct, tmp_path):
        completed("gsps", SeriesDescription="AI, unverified")

        assert (tmp_path / "completed").read_bytes() == (tmp_path / "as-fetched").read_bytes()


class TestUnverified:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_series_says_so(self, completed, kind):
        made, noted = completed(kind)

        assert made.SeriesDescription.startswith("AI unverified: SIMULATED, NOT FOR CLINICAL USE")
        assert noted["SeriesDescription"] is Why.UNVERIFIED

    def test_a_long_description_is_shortened(self, completed):
        made, _ = completed("sc", SeriesDescription="x" * 64)

        assert made.SeriesDescription == "AI unverified: " + "x" * 49

    def test_one_that_says_it_already_stays(self, completed):
        made, noted = completed("sc", SeriesDescription="Unverified AI capture")

        assert made.SeriesDescription == "Unverified AI capture"
        assert noted == {}

    @pytest.mark.parametrize("flag", [None, ""])
    def test_a_report_says_so_in_its_flag(self, completed, flag):
        for kind in ("sr", "encapsulated_pdf"):
            made, noted = completed(kind, VerificationFlag=flag)

            assert made.VerificationFlag == "UNVERIFIED"
            assert noted["VerificationFlag"] is Why.UNVERIFIED

    @pytest.mark.parametrize("flag", [None, "FINAL"])
    def test_a_report_is_never_final(self, completed, flag):
        made, noted = completed("sr", PreliminaryFlag=flag)

        assert made.PreliminaryFlag == "PRELIMINARY"
        assert noted["PreliminaryFlag"] is Why.UNVERIFIED


class TestUids:
    BAD = ["1.2.003", "1.2." + "9" * 62, "2.25.0123456789"]

    @pytest.mark.parametrize("bad", BAD)
    def test_an_invalid_one_of_the_result_is_made_anew(self, completed, tmp_path, bad):
        made, noted = completed("sc", SOPInstanceUID=bad, SeriesInstanceUID=f"{bad[:60]}.05")

        for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
            assert made[keyword].value.is_valid
            assert made[keyword].value.startswith("2.25.")
            assert noted[keyword] is Why.INVALID_UID
        assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
        assert made.SOPInstanceUID != made.SeriesInstanceUID

    @pytest.mark.parametrize("bad", BAD)
    def test_all_references_follow_across_the_objects(self, qct, tmp_path, bad):
        segmentation = pydicom.dcmread(qct.one("seg"))
        segmentation.SOPInstanceUID = segmentation.file_meta.MediaStorageSOPInstanceUID = bad
        segmentation.SeriesInstanceUID = f"{bad[:60]}.05"
        pydicom.dcmwrite(tmp_path / "seg", segmentation)
        report = pydicom.dcmread(qct.one("sr"))
        series, reference = Dataset(), Dataset()
        reference.ReferencedSOPClassUID = segmentation.SOPClassUID
        reference.ReferencedSOPInstanceUID = bad
        series.SeriesInstanceUID = f"{bad[:60]}.05"
        series.ReferencedSOPSequence = [reference]
        report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence.append(series)
        pydicom.dcmwrite(tmp_path / "sr", report)
        folder = tmp_path / "out"
        folder.mkdir()
        paths = [tmp_path / "sr", tmp_path / "seg"]
        assert verify_objects(paths, qct.identity, qct.sent) is None

        done = complete_objects(paths, folder, qct.identity, qct.facts, qct.sent)

        made = {path.name: pydicom.dcmread(done.paths[path]) for path in paths}
        evidence = made["sr"].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        assert evidence[1].SeriesInstanceUID == made["seg"].SeriesInstanceUID
        assert evidence[1].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == made["seg"].SOPInstanceUID
        assert evidence[0] == report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
        assert done.sop_instance_uids == {made["sr"].SOPInstanceUID, made["seg"].SOPInstanceUID}
        assert verify_objects(list(done.paths.values()), qct.identity, qct.sent) is None

    def test_one_by_one_they_become_the_same_as_together(self, completed, qct, tmp_path):
        made, _ = completed("sc", SOPInstanceUID="1.2.003")
        again, _ = completed("sr", SOPInstanceUID="1.2.003")

        assert made.SOPInstanceUID == again.SOPInstanceUID

    def test_those_of_the_source_are_kept_valid_or_not(self, tmp_path):
        result = emulated(
            tmp_path,
            "qct",
            images=1,
            StudyInstanceUID="1.2.840.01.5",
            SeriesInstanceUID="1.2.840.01.6",
            FrameOfReferenceUID="1.2.840.01.7",
            SOPInstanceUID="1.2.840.01.8",
        )
        assert verify_objects(result.objects, result.identity, result.sent) is None
        folder = tmp_path / "out"
        folder.mkdir()

        done = complete_objects(result.objects, folder, result.identity, result.facts, result.sent)

        for path, completed in done.objects.items():
            before, after = pydicom.dcmread(path), pydicom.dcmread(completed.path)
            assert after.StudyInstanceUID == "1.2.840.01.5"
            assert not any(change.why is Why.INVALID_UID for change in completed.changes)
            for dataset in (before, after):
                for keyword in ("SeriesDescription", "VerificationFlag"):
                    if keyword in dataset:
                        delattr(dataset, keyword)
            assert before == after
        assert verify_objects(list(done.paths.values()), result.identity, result.sent) is None


class TestCharacterSets:
    def test_text_that_does_not_fit_makes_it_a_utf_8_object(self, completed, qct):
        identity = replace(qct.identity, patient_name="Иванов^Иван")
        made, noted = completed("sr", identity, PatientName=None)

        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert made.PatientName == "Иванов^Иван"
        assert noted["SpecificCharacterSet"] is Why.CHARACTER_SET

    def test_what_was_there_before_is_written_anew_at_any_depth(self, completed, qct):
        def change(dataset):
            dataset.ContentSequence[3].TextValue = "Größe"
            dataset.ContentSequence[4].SpecificCharacterSet = "ISO_IR 144"
            dataset.ContentSequence[4].TextValue = "Размер"

        identity = replace(qct.identity, patient_name="Иванов^Иван")
        made, _ = completed("sr", identity, change=change, PatientName=None)

        assert [item.TextValue for item in made.ContentSequence[3:5]] == ["Größe", "Размер"]
        assert made.StudyDescription == "Simulated study"

    def test_none_is_declared_where_ascii_will_do(self, completed, qct):
        identity = replace(qct.identity, patient_name="Mueller^Simulated")
        made, noted = completed("sr", identity, PatientName=None, SpecificCharacterSet=None)

        assert "SpecificCharacterSet" not in made
        assert "SpecificCharacterSet" not in noted

    def test_one_is_declared_where_it_was_missing(self, completed):
        made, noted = completed("sr", PatientName=None, SpecificCharacterSet=None)

        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert made.PatientName == "Müller^Simulated"
        assert noted["SpecificCharacterSet"] is Why.CHARACTER_SET

    def test_silent_utf_8_says_so_from_then_on(self, completed, qct, tmp_path):
        def change(dataset):
            dataset.ContentSequence[3].TextValue = "Größe"

        completed("sr", change=change, SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Simulated")
        path = tmp_path / "as-fetched"
        path.write_bytes(path.read_bytes().replace(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 192", b""))

        done = complete_object(path, tmp_path / "completed", qct.identity, qct.facts, qct.sent)

        made = pydicom.dcmread(tmp_path / "completed")
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert (made.PatientName, made.ContentSequence[3].TextValue) == ("Müller^Simulated", "Größe")
        assert ("SpecificCharacterSet", Why.CHARACTER_SET) in [(each.keyword, each.why) for each in done.changes]

    def test_a_japanese_name_stays_in_its_own_character_set(self, completed, qct):
        name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
        made, noted = completed(
            "sr",
            replace(qct.identity, patient_name=name),
            SpecificCharacterSet=["", "ISO 2022 IR 87"],
            PatientName=None,
        )

        assert list(made.SpecificCharacterSet) == ["", "ISO 2022 IR 87"]
        assert str(made.PatientName) == name
        assert noted["PatientName"] is Why.ABSENT

    def test_a_source_s_name_that_could_not_be_read_is_not_made_up(self, completed, qct):
        made, _ = completed("sr", replace(qct.identity, patient_name="M\ufffdller^A"), PatientName=None)

        assert made.PatientName == ""

    def test_a_source_s_silent_utf_8_is_written_as_it_was_meant(self, completed, qct):
        made, _ = completed("sr", replace(qct.identity, patient_name="MÃ¼ller^Simulated"), PatientName=None)

        assert made.PatientName == "Müller^Simulated"


def test_a_wrong_file_header_is_mended(qct, tmp_path):
    dataset = pydicom.dcmread(qct.one("sc"))
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    pydicom.dcmwrite(tmp_path / "sc", dataset)

    done = complete_object(tmp_path / "sc", tmp_path / "completed", qct.identity, qct.facts, qct.sent)

    assert pydicom.dcmread(tmp_path / "completed").file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert ("MediaStorageSOPInstanceUID", Why.FILE_HEADER) in [(change.keyword, change.why) for change in done.changes]
    assert done.sop_instance_uid == dataset.SOPInstanceUID


def test_a_cut_object_is_not_completed(qct, tmp_path):
    (tmp_path / "cut").write_bytes(qct.one("sc").read_bytes()[:-1])

    with pytest.raises(UnreadableError):
        complete_object(tmp_path / "cut", tmp_path / "completed", qct.identity, qct.facts, qct.sent)

    assert not (tmp_path / "completed").exists()


PATIENT_ID, SOP_CLASS, STUDY_ID = b"\x10\x00\x20\x00LO", b"\x08\x00\x16\x00UI", b"\x20\x00\x10\x00SH"


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        (PATIENT_ID, PATIENT_ID[:4] + b"L9"),
        (STUDY_ID, STUDY_ID[:4] + b"SL"),
        (SOP_CLASS, b"\x02\x00\x02\x00UI\x04\x001.2\0" + SOP_CLASS),
        (SOP_CLASS, b"\x00\x00\x02\x00UI\x04\x001.2\0" + SOP_CLASS),
    ],
    ids=[
        "of a VR that does not exist",
        "of another VR than its own",
        "with a file header inside",
        "with a command inside",
    ],
)
def test_an_object_that_cannot_be_written_again_is_not_completed(qct, tmp_path, found, instead):
    content = qct.one("sr").read_bytes()
    assert content.count(found) == 1
    (tmp_path / "sr").write_bytes(content.replace(found, instead))

    with pytest.raises(UnreadableError):
        complete_object(tmp_path / "sr", tmp_path / "completed", qct.identity, qct.facts, qct.sent)


def test_nothing_of_the_patient_is_noted_or_logged(completed, qct, caplog):
    secret = replace(qct.identity, patient_id="SECRET" * 12, patient_name="SECRET^" * 12, accession_number="SECRET" * 4)
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, noted = completed("sr", secret, **dict.fromkeys(PATIENT_AND_STUDY))

    said = " ".join([str(noted), caplog.text, *(str(warning.message) for warning in caught)])
    assert noted["AccessionNumber"] is Why.TOO_LONG
    assert "SECRET" not in said
