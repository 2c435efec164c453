"""A profile as data: what it says of each attribute, and what a site may ask for."""

import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.datadict import DicomDictionary, keyword_dict
from pydicom.sr.codedict import codes

from qure_provider.dicom.profile import Action, Profile, ProfileError, vr_of

ROWS = {
    group << 16 | element: category
    for category in ("X", "Z", "D", "U", "Z_D", "X_Z", "X_D", "X_Z_D", "X_Z_U_STAR")
    for group, element, *mask in getattr(table, f"{category}_TAGS")
    if not mask
}
ALLOWED = {
    "X": {Action.REMOVE},
    "Z": {Action.EMPTY, Action.DUMMY},
    "D": {Action.DUMMY, Action.REMOVE, Action.UID},
    "U": {Action.UID},
    "Z_D": {Action.DUMMY},
    "X_Z": {Action.EMPTY},
    "X_D": {Action.DUMMY, Action.REMOVE},
    "X_Z_D": {Action.DUMMY, Action.REMOVE},
    "X_Z_U_STAR": {Action.WITHIN},
}
STRICT = Profile(retain_patient_characteristics=False, shift_dates=False)
TEMPORAL = {"DA", "DT", "TM"}


def tag(keyword):
    return keyword_dict[keyword]


def test_the_whole_table_is_there():
    assert len(ROWS) > 640


def test_the_basic_profile_does_what_the_table_has():
    done = {row: STRICT.action(row) for row in ROWS}
    assert {f"{row:08X}": action for row, action in done.items() if action not in ALLOWED[ROWS[row]]} == {}
    removed = {row for row, action in done.items() if action is Action.REMOVE and ROWS[row] != "X"}
    assert {vr_of(row) for row in removed} == {"SQ"}  # nothing can stand for a sequence


def test_options_loosen_what_they_name_and_nothing_else():
    loosened = {row for row in ROWS if Profile().action(row) is not STRICT.action(row)}
    dates = {row for row in ROWS if vr_of(row) in TEMPORAL} - {tag("PatientBirthDate"), tag("PatientBirthTime")}
    assert {DicomDictionary[row][4] for row in loosened - dates} == {
        *("PatientAge", "PatientSex", "PatientSexNeutered", "PatientSize", "PatientWeight"),
        *("EthnicGroup", "PregnancyStatus", "SmokingStatus", "SelectorASValue"),
    }
    assert {Profile().action(row) for row in loosened - dates} == {Action.KEEP}
    assert {Profile().action(row) for row in dates if vr_of(row) == "TM"} == {Action.KEEP}
    assert {Profile().action(row) for row in dates if vr_of(row) != "TM"} == {Action.SHIFT}


def test_every_named_attribute_of_an_option_is_in_the_table():
    retaining = Profile(retain_device_identity=True)
    loosened = {row for row in ROWS if retaining.action(row) in (Action.KEEP, Action.WITHIN)} - {
        row for row in ROWS if STRICT.action(row) is Action.WITHIN
    }
    for keyword in ("DeviceSerialNumber", "StationName", "DetectorID", "PatientAge", "PatientSex", "GantryID"):
        assert tag(keyword) in loosened
    for keyword in ("StationAETitle", "InstitutionName", "PatientName", "OperatorsName", "Allergies"):
        assert tag(keyword) not in loosened


@pytest.mark.parametrize(
    ("keyword", "action"),
    [
        ("PatientBirthDate", Action.EMPTY),
        ("StudyDate", Action.SHIFT),
        ("StudyTime", Action.KEEP),
        ("PatientAge", Action.KEEP),
        ("Rows", Action.KEEP),
        ("ConvolutionKernel", Action.KEEP),
        ("SOPClassUID", Action.UID),  # where it is the standard's own it stays
        ("StudyInstanceUID", Action.UID),
        ("StudyDescription", Action.REMOVE),
        ("SharedFunctionalGroupsSequence", Action.WITHIN),
        ("DocumentAuthorTrial", Action.EMPTY),  # a name that the table does not list
        ("ProcedureCreationDate", Action.SHIFT),  # a date that it does not list
    ],
)
def test_what_the_default_profile_does(keyword, action):
    assert Profile().action(tag(keyword)) is action


@pytest.mark.parametrize("unknown", [0x00080000, 0x00081234, 0x50000010, 0x60003000, 0x60000010, 0x60020022])
def test_what_nobody_knows_and_what_is_drawn_is_removed(unknown):
    assert Profile().action(unknown) is Action.REMOVE


def test_a_site_s_choices_come_first():
    profile = Profile.from_mapping(
        {
            "keep": ["StudyDescription", "(0008,103E)", "RequestAttributesSequence"],
            "remove": ["Manufacturer", "00180015"],
            "replace": {"InstitutionName": "SIMULATED"},
            "retain_device_identity": True,
        }
    )
    assert profile.action(tag("StudyDescription")) is profile.action(tag("SeriesDescription")) is Action.KEEP
    assert profile.action(tag("RequestAttributesSequence")) is Action.WITHIN
    assert profile.action(tag("Manufacturer")) is profile.action(tag("BodyPartExamined")) is Action.REMOVE
    assert profile.action(tag("InstitutionName")) is Action.REPLACE
    assert profile.replacement(tag("InstitutionName")) == "SIMULATED"


def test_private_attributes_are_safe_by_creator_and_place():
    profile = Profile.from_mapping({"safe_private": {"SIMULATED MAKER": ["(0019,xx23)", "0021xx01"]}})
    assert profile.is_safe("SIMULATED MAKER", 0x00191023)
    assert profile.is_safe("SIMULATED MAKER", 0x0019E023)
    assert profile.is_safe("SIMULATED MAKER", 0x00211101)
    assert not profile.is_safe("ANOTHER", 0x00191023)
    assert not profile.is_safe("SIMULATED MAKER", 0x00191024)
    assert not profile.is_safe("", 0x00191023)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"retain": True}, "unknown setting retain; there are retain_patient_characteristics"),
        ({"shift_dates": "yes"}, "shift_dates: true or false"),
        ({"keep": "StudyDescription"}, "keep: a list of strings"),
        ({"keep": [1]}, "keep: a list of strings"),
        ({"keep": ["StudyDescripton"]}, "no attribute; give a keyword like StudyDescription"),
        ({"keep": ["(0008,1234)"]}, "no attribute"),
        ({"keep": ["(0002,0016)"]}, "no attribute"),
        ({"keep": ["PatientName"]}, "never leaves as it is"),
        ({"keep": ["OperatorsName"]}, "never leaves as it is"),
        ({"keep": ["PatientID"]}, "never leaves as it is"),
        ({"keep": ["PatientBirthDate"]}, "never leaves as it is"),
        ({"keep": ["StudyInstanceUID"]}, "never leaves as it is"),
        ({"keep": ["(6000,3000)"]}, "never leaves as it is"),
        ({"keep": ["(0019,1023)"]}, "private; name it in safe_private"),
        ({"remove": ["SOPInstanceUID"]}, "needed"),
        ({"remove": ["Rows"]}, "needed"),
        ({"remove": ["SpecificCharacterSet"]}, "needed"),
        ({"remove": ["Manufacturer"], "keep": ["Manufacturer"]}, "named twice"),
        ({"replace": {"PatientID": "1"}}, "needed"),
        ({"replace": ["InstitutionName"]}, "a mapping of attributes to texts"),
        ({"replace": {"InstitutionName": 1}}, "a mapping of attributes to texts"),
        ({"replace": {"InstitutionName": "Zürich"}}, "one line of ASCII"),
        ({"replace": {"InstitutionName": "A\\B"}}, "one line of ASCII"),
        ({"replace": {"StudyDate": "yesterday"}}, "none that its VR DA allows"),
        ({"replace": {"StationName": "longer than sixteen"}}, "none that its VR SH allows"),
        ({"replace": {"RequestAttributesSequence": "x"}}, "holds no text"),
        ({"safe_private": ["0019xx23"]}, "a mapping of private creators"),
        ({"safe_private": {"MAKER": "0019xx23"}}, "safe_private: a list of strings"),
        ({"safe_private": {"MAKER": ["(0019,1023)"]}}, "like \\(0019,xx23\\)"),
        ({"safe_private": {"MAKER": ["(0018,xx23)"]}}, "like \\(0019,xx23\\)"),
        ({"safe_private": {" ": ["(0019,xx23)"]}}, "like \\(0019,xx23\\)"),
    ],
)
def test_what_cannot_be_followed_is_said(values, message):
    with pytest.raises(ProfileError, match=message):
        Profile.from_mapping(values)


def test_what_is_recorded_of_the_method_is_what_was_done():
    methods = [getattr(codes.cid7050, name) for name in codes.cid7050.dir()]
    by_value = {code.value: code.meaning for code in methods}
    every = Profile(retain_device_identity=True, safe_private={"MAKER": ("0019xx23",)})
    assert [value for value, _ in every.codes] == ["113100", "113107", "113108", "113109", "113111"]
    assert all(by_value[value] == meaning for value, meaning in every.codes)
    assert STRICT.codes == (("113100", "Basic Application Confidentiality Profile"),)
    assert "113100" not in dict(Profile(keep=("StudyDescription",)).codes)
    assert "113100" in dict(Profile(keep=("Manufacturer",)).codes)  # the table would keep it, too
    for profile in (every, STRICT, Profile(keep=("StudyDescription",)), Profile(remove=("Manufacturer",))):
        assert all(0 < len(line) <= 64 for line in profile.method)
    assert Profile().method != Profile(remove=("Manufacturer",)).method != Profile(remove=("BodyPartExamined",)).method
