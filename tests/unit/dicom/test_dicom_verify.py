import logging
import shutil
import warnings
from dataclasses import replace

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from support.emulated_results import emulated

from qure_provider.dicom.model import Identity
from qure_provider.dicom.verify import (
    Contradiction,
    Verified,
    compare,
    is_simulated,
    verify_object,
    verify_objects,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


@pytest.fixture(scope="module", params=["qxr", "qct", "qer"])
def any_result(request, tmp_path_factory):
    return emulated(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def qct(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("qct"), "qct")


def altered(path, target, change):
    """A copy of an object in which something was changed."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
    dataset.save_as(target)
    return target


def setting(**values):
    def change(dataset):
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return change


def test_what_the_service_makes_of_a_study_agrees_with_it(any_result):
    assert len(any_result.objects) >= 4
    assert (
        verify_objects(
            any_result.objects,
            any_result.identity,
            any_result.sent,
            copies=any_result.files.get("original", ()),
        )
        is None
    )
    for path in any_result.objects:
        found = verify_object(path, any_result.identity, any_result.sent)
        assert isinstance(found, Verified)
        assert found.path == path


def test_any_other_study_s_result_contradicts(any_result, tmp_path):
    other = emulated(tmp_path, "qxr")

    assert verify_objects(any_result.objects, other.identity, other.sent) is Contradiction.STUDY


@pytest.mark.parametrize("kind", ["sc", "sr", "seg", "gsps", "encapsulated_pdf"])
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"StudyInstanceUID": generate_uid()}, Contradiction.STUDY),
        ({"StudyInstanceUID": None}, Contradiction.STUDY),
        ({"StudyInstanceUID": ""}, Contradiction.STUDY),
        ({"PatientID": "SIM-2"}, Contradiction.PATIENT_ID),
        ({"PatientID": "sim-1"}, Contradiction.PATIENT_ID),
        ({"IssuerOfPatientID": "OTHER"}, Contradiction.ISSUER),
        ({"AccessionNumber": "SIM-A-2"}, Contradiction.ACCESSION_NUMBER),
        ({"PatientBirthDate": "19700102"}, Contradiction.BIRTH_DATE),
        ({"PatientSex": "F"}, Contradiction.SEX),
        ({"PatientName": "Mueller^Simulated"}, Contradiction.NAME),
        ({"PatientName": "Müller^Simulated^Second"}, Contradiction.NAME),
        ({"SOPInstanceUID": None}, Contradiction.NO_UID),
        ({"SeriesInstanceUID": ""}, Contradiction.NO_UID),
        ({"VerificationFlag": "VERIFIED"}, Contradiction.VERIFIED),
        ({"VerifyingObserverSequence": [Dataset()]}, Contradiction.VERIFIED),
    ],
)
def test_one_planted_contradiction_holds_the_whole_result(qct, tmp_path, kind, values, reason):
    planted = altered(qct.one(kind), tmp_path / "planted", setting(**values))
    others = [path for path in qct.objects if path != qct.one(kind)]

    assert verify_object(planted, qct.identity, qct.sent) is reason
    assert verify_objects([*others, planted], qct.identity, qct.sent) is reason


@pytest.mark.parametrize(
    "values",
    [
        {"PatientName": None, "PatientID": None, "IssuerOfPatientID": None, "PatientBirthDate": None},
        {"PatientName": "", "PatientID": "", "AccessionNumber": "", "PatientSex": "", "PatientBirthDate": ""},
        {"PatientName": "^^^^"},
        {"PatientID": " SIM-1 ", "AccessionNumber": "SIM-A-1 "},
        {"PatientSex": "o"},
        {"PatientName": "MÜLLER^SIMULATED"},
        {"PatientName": "Müller^Simulated^^^"},
        {"PatientName": " Müller ^Simulated="},
        {"PatientName": "Simulated^Müller"},
        {"PatientName": "Simulated Müller"},
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Simulated"},
    ],
)
def test_what_is_absent_or_only_written_otherwise_is_no_contradiction(qct, tmp_path, values):
    path = altered(qct.one("sc"), tmp_path / "altered", setting(**values))

    assert isinstance(verify_object(path, qct.identity, qct.sent), Verified)


def test_what_the_source_does_not_say_cannot_be_said_by_a_result(qct):
    for name, reason in {
        "patient_id": Contradiction.PATIENT_ID,
        "sex": Contradiction.SEX,
        "birth_date": Contradiction.BIRTH_DATE,
        "accession_number": Contradiction.ACCESSION_NUMBER,
        "patient_name": Contradiction.NAME,
    }.items():
        assert verify_object(qct.one("sr"), replace(qct.identity, **{name: ""}), qct.sent) is reason


def test_an_identity_without_a_study_agrees_with_nothing():
    assert compare(Identity(""), Identity("")) is Contradiction.STUDY


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("Yamada^Tarou=山田^太郎", "Yamada^Tarou=山田^太郎=やまだ^たろう", True),
        ("Yamada^Tarou", "Yamada^Tarou=山田^太郎", True),
        ("Yamada^Tarou=山田^次郎", "Yamada^Tarou=山田^太郎", False),
        ("山田^太郎", "Yamada^Tarou=山田^太郎", False),
        ("DOE^JANE", "DOE^JOHN", False),
        ("DOE^JOHN^A", "DOE^JOHN", False),
        ("DOE", "DOE^JOHN", False),
        ("JOHN^DOE", "DOE^JOHN", True),
        ("Mu\u0308ller^A", "Müller^A", True),
        ("MÃ¼ller^A", "Müller^A", True),
    ],
)
def test_names_agree_where_their_words_do(found, expected, same):
    uid = "1.2.3"
    verdict = compare(Identity(uid, patient_name=found), Identity(uid, patient_name=expected))

    assert verdict is (None if same else Contradiction.NAME)


def test_utf_8_that_says_nothing_of_itself_is_read_as_utf_8(qct, tmp_path):
    path = altered(
        qct.one("sr"), tmp_path / "silent", setting(SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Simulated")
    )
    silent = tmp_path / "silent-utf-8"
    element = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 192"
    content = path.read_bytes()
    assert content.count(element) == 1
    silent.write_bytes(content.replace(element, b""))

    assert pydicom.dcmread(silent).PatientName != "Müller^Simulated"
    assert isinstance(verify_object(silent, qct.identity, qct.sent), Verified)


class TestReferences:
    @pytest.mark.parametrize("kind", ["sc", "sr", "seg", "gsps", "encapsulated_pdf"])
    def test_every_format_refers_to_images_that_were_sent(self, qct, kind):
        nothing_sent = verify_object(qct.one(kind), qct.identity, frozenset())

        assert nothing_sent is Contradiction.REFERENCE

    def test_one_reference_among_many_is_enough(self, qct, tmp_path):
        def change(dataset):
            item = dataset.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0].SourceImageSequence[0]
            item.ReferencedSOPInstanceUID = generate_uid()

        path = altered(qct.one("seg"), tmp_path / "seg", change)

        assert verify_object(path, qct.identity, qct.sent) is Contradiction.REFERENCE

    def test_a_reference_to_an_object_of_the_same_result_is_good(self, qct, tmp_path):
        segmentation = pydicom.dcmread(qct.one("seg"))

        def change(dataset):
            item = Dataset()
            item.ReferencedSOPClassUID = segmentation.SOPClassUID
            item.ReferencedSOPInstanceUID = segmentation.SOPInstanceUID
            dataset.ReferencedInstanceSequence = [item]

        path = altered(qct.one("sc"), tmp_path / "sc", change)

        assert verify_object(path, qct.identity, qct.sent) is Contradiction.REFERENCE
        assert verify_objects([path, qct.one("seg")], qct.identity, qct.sent) is None

    def test_a_private_sequence_is_looked_into(self, qct, tmp_path):
        def change(dataset):
            item = Dataset()
            item.ReferencedSOPInstanceUID = generate_uid()
            dataset.private_block(0x7FE1, "SIMULATED", create=True).add_new(0x01, "SQ", [item])

        path = altered(qct.one("sc"), tmp_path / "sc", change)

        assert verify_object(path, qct.identity, qct.sent) is Contradiction.REFERENCE

    def test_procedure_steps_and_studies_are_no_images(self, qct, tmp_path):
        def change(dataset):
            item = Dataset()
            item.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.3"
            item.ReferencedSOPInstanceUID = generate_uid()
            dataset.ReferencedPerformedProcedureStepSequence = [item]

        path = altered(qct.one("sc"), tmp_path / "sc", change)

        assert isinstance(verify_object(path, qct.identity, qct.sent), Verified)

    @pytest.mark.parametrize(
        "values", [{"StudyInstanceUID": generate_uid()}, {"AccessionNumber": "SIM-A-2"}, {"PatientID": "SIM-2"}]
    )
    def test_a_sequence_that_names_another_study_or_order_contradicts(self, qct, tmp_path, values):
        def change(dataset):
            item = Dataset()
            setting(**values)(item)
            dataset.ReferencedRequestSequence = [item]

        path = altered(qct.one("sr"), tmp_path / "sr", change)

        assert verify_object(path, qct.identity, qct.sent) is Contradiction.OTHER_STUDY

    def test_other_ids_of_the_patient_are_other_by_intent(self, qct, tmp_path):
        def change(dataset):
            item = Dataset()
            item.PatientID = "SIM-2"
            dataset.OtherPatientIDsSequence = [item]

        path = altered(qct.one("sr"), tmp_path / "sr", change)

        assert isinstance(verify_object(path, qct.identity, qct.sent), Verified)


class TestUids:
    def test_an_object_must_not_bear_the_uid_of_an_image(self, qct, tmp_path):
        path = altered(qct.one("sc"), tmp_path / "sc", setting(SOPInstanceUID=qct.source.SOPInstanceUID))

        assert verify_object(path, qct.identity, qct.sent) is Contradiction.SOURCE_UID

    def test_nor_may_its_file_header(self, qct, tmp_path):
        dataset = pydicom.dcmread(qct.one("sc"))
        dataset.file_meta.MediaStorageSOPInstanceUID = qct.source.SOPInstanceUID
        pydicom.dcmwrite(tmp_path / "sc", dataset)

        assert verify_object(tmp_path / "sc", qct.identity, qct.sent) is Contradiction.SOURCE_UID

    def test_nor_may_it_stand_in_a_series_of_images(self, qct, tmp_path):
        path = altered(qct.one("sc"), tmp_path / "sc", setting(SeriesInstanceUID=qct.source.SeriesInstanceUID))

        assert verify_object(path, qct.identity, qct.sent) is Contradiction.SOURCE_SERIES

    def test_two_objects_of_one_uid_must_be_the_same(self, qct, tmp_path):
        uid = pydicom.dcmread(qct.one("sc")).SOPInstanceUID
        copy = tmp_path / "copy"
        shutil.copy(qct.one("sc"), copy)
        other = altered(qct.one("sc_key_slices"), tmp_path / "other", setting(SOPInstanceUID=uid))

        assert verify_objects([qct.one("sc"), copy], qct.identity, qct.sent) is None
        assert verify_objects([qct.one("sc"), other], qct.identity, qct.sent) is Contradiction.SAME_UID


class TestCopiesOfTheOriginal:
    def test_they_bear_the_image_s_uid_and_so_never_go_onward(self, tmp_path):
        result = emulated(tmp_path)

        assert verify_object(result.one("original"), result.identity, result.sent) is Contradiction.SOURCE_UID

    def test_of_another_patient_they_hold_the_result(self, tmp_path):
        result = emulated(tmp_path)
        copy = altered(result.one("original"), tmp_path / "copy", setting(PatientID="SIM-2"))

        assert verify_objects(result.objects, result.identity, result.sent, copies=[copy]) is Contradiction.PATIENT_ID

    def test_unreadable_they_hold_it_too(self, tmp_path):
        result = emulated(tmp_path)
        copy = tmp_path / "copy"
        copy.write_bytes(result.one("original").read_bytes()[:-500])

        assert verify_objects(result.objects, result.identity, result.sent, copies=[copy]) is Contradiction.UNREADABLE


class TestUnreadable:
    @pytest.mark.parametrize("kind", ["sc", "sr", "seg", "gsps", "encapsulated_pdf"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 1])
    def test_a_cut_object_contradicts(self, qct, tmp_path, kind, share):
        content = qct.one(kind).read_bytes()
        path = tmp_path / "cut"
        path.write_bytes(content[: int(len(content) * share) - 1])

        assert isinstance(verify_object(path, qct.identity, qct.sent), Contradiction)

    @pytest.mark.parametrize("content", [b"", b"%PDF-1.7", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 99])
    def test_so_does_what_is_no_object_at_all(self, qct, tmp_path, content):
        path = tmp_path / "none"
        path.write_bytes(content)

        assert verify_object(path, qct.identity, qct.sent) is Contradiction.UNREADABLE
        assert verify_objects([path], qct.identity, qct.sent) is Contradiction.UNREADABLE

    def test_so_does_what_is_not_there(self, qct, tmp_path):
        assert verify_object(tmp_path / "gone", qct.identity, qct.sent) is Contradiction.UNREADABLE


def test_the_emulator_s_objects_are_known_for_what_they_are(any_result):
    assert all(is_simulated(path) for path in any_result.objects)
    assert not any(is_simulated(path) for path in any_result.sources)


def test_reasons_and_warnings_say_nothing_of_the_patient(qct, tmp_path, caplog):
    path = altered(qct.one("sr"), tmp_path / "sr", setting(PatientID="SECRET\\ID", PatientBirthDate="SECRET"))
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reason = verify_object(path, qct.identity, qct.sent)

    said = " ".join([str(reason), caplog.text, *(str(warning.message) for warning in caught)])
    assert reason is Contradiction.PATIENT_ID
    assert "SECRET" not in said
