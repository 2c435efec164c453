"""What is sent of a file: nothing that tells whose it is, and every pixel."""

import struct
from contextlib import suppress
from itertools import product
from random import Random

import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)
from support.deidentified import (
    KEY,
    REAL_FILES,
    Memory,
    a_deidentifier,
    as_sent,
    every,
    identifying_values,
    read,
    saved,
    told,
    uids_of,
)

from qure_provider.dicom.deidentify import IMPLEMENTATION_CLASS_UID
from qure_provider.dicom.export import LocalFile
from qure_provider.dicom.profile import DUMMY_DATE, DUMMY_TEXT, Action, Profile
from qure_provider.dicom.pseudonym import Patient, Pseudonymizer, shifted
from qure_provider.dicom.refusal import DeidentifyError, Refusal
from qure_provider.dicom.rewrite import Rewriter

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
STRICT = Profile(retain_patient_characteristics=False, shift_dates=False)
PSEUDONYMS = Pseudonymizer(KEY)
CANARY = "Kanarienvogel"
NO_NAMES = {"Anonymized", "PATIENT", "TOSHIBA", "OFFIS"}
"""Words that we write ourselves, and makers after whom an institution is called in some test files."""


@pytest.fixture
def image(export):
    """Makes an image's bytes."""

    def make(modality="CT", **values):
        return saved(export.dataset(modality, **values))

    return make


@pytest.fixture
def whatever_kind(monkeypatch):
    """Lets every kind of image through, so that its header is rewritten."""
    monkeypatch.setattr("qure_provider.dicom.deidentify.refusal_for", lambda _: None)


def refusal_of(content, profile=None):
    with pytest.raises(DeidentifyError) as error:
        a_deidentifier(profile).deidentify(Memory(content))
    return error.value.reason


def pixels_of(dataset):
    return next(dataset[tag].value for tag in (0x7FE00010, 0x7FE00008, 0x7FE00009) if tag in dataset)


# Real files.


@pytest.mark.parametrize("path", REAL_FILES, ids=lambda path: path.name)
@pytest.mark.usefixtures("whatever_kind")
def test_a_real_file_leaves_without_its_identity_or_stays(path):
    content = path.read_bytes()
    try:
        sent, done = as_sent(content)
    except DeidentifyError:
        return
    source, found = read(content), read(sent)
    assert found.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
    assert pixels_of(found) == pixels_of(source)
    assert sent[:128] == bytes(128)
    assert set(found.file_meta.keys()) == {0x00020000 + number for number in (0, 1, 2, 3, 0x10, 0x12, 0x13)}
    assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID == done.sop_instance_uid
    assert found.SeriesInstanceUID == done.series_instance_uid

    assert not any(element.tag.is_private for element in every(found))
    assert told(done.header, identifying_values(source) - NO_NAMES) == set()
    assert found.PatientIdentityRemoved == "YES"
    assert {done.identity_map.uids.get(uid) for uid in uids_of(found) - {IMPLEMENTATION_CLASS_UID}} <= uids_of(source)
    assert (found.Rows, found.Columns, found.SOPClassUID) == (source.Rows, source.Columns, source.SOPClassUID)

    again, repeated = as_sent(content)
    assert (again, repeated) == (sent, done)


@pytest.mark.usefixtures("whatever_kind")
def test_most_real_images_can_be_sent():
    reasons = {}
    for path in REAL_FILES:
        with LocalFile(str(path)) as file:
            try:
                a_deidentifier().deidentify(file)
            except DeidentifyError as error:
                reasons.setdefault(error.reason, set()).add(path.name)
    # Patients called Perfusion and Pancreas, whose image type and body part are just that.
    assert reasons.pop(Refusal.LEFT_OVER) == {"eCT_Supplemental.dcm", "explicit_VR-UN.dcm"}
    assert reasons.pop(Refusal.DEFLATED) == {"image_dfl.dcm"}
    assert len(reasons.pop(Refusal.BROKEN)) < 20
    assert set(reasons) <= {Refusal.NO_PIXELS, Refusal.NOT_DICOM, Refusal.NO_UID}


# What is written in place of an identity.


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_pseudonyms_age_and_sex_are_what_is_left_of_a_patient(image, syntax):
    content = image(
        syntax=syntax,
        PatientBirthDate="19700601",
        StudyDate="20240501",
        IssuerOfPatientID="SIM",
        OtherPatientIDs="SIM-2",
    )
    sent, done = as_sent(content)
    found = read(sent)
    patient = Patient("SIM-1", "SIM")
    assert found.PatientID == PSEUDONYMS.patient_id(patient)
    assert found.PatientName == PSEUDONYMS.patient_name(patient)
    assert found.AccessionNumber == PSEUDONYMS.accession("A1", patient)
    assert (found.PatientBirthDate, found.PatientAge, found.PatientSex) == ("", "053Y", "F")
    assert "IssuerOfPatientID" not in found
    assert "OtherPatientIDs" not in found
    assert found.StudyDate == shifted("20240501", PSEUDONYMS.date_shift(patient))
    assert found.StudyTime == "101500"
    assert found.LongitudinalTemporalInformationModified == "MODIFIED"
    assert [item.CodeValue for item in found.DeidentificationMethodCodeSequence] == ["113100", "113107", "113108"]
    sent_identity = done.identity_map.pseudonym
    assert (sent_identity.patient_id, sent_identity.sex) == (found.PatientID, "F")
    assert (sent_identity.birth_date, sent_identity.issuer_of_patient_id) == ("", "")
    assert done.identity_map.source.patient_name == "SIMULATED^PATIENT"
    assert done.identity_map.dates == {found.StudyDate: "20240501"}


def test_the_strict_profile_leaves_neither_age_nor_dates(image):
    found = read(
        as_sent(
            image(PatientAge="053Y", AcquisitionDateTime="20240501", SeriesDate="20240501"), a_deidentifier(STRICT)
        )[0]
    )
    assert "PatientAge" not in found
    assert (found.PatientSex, found.StudyDate, found.StudyTime) == ("", "", "")
    assert found.AcquisitionDateTime == found.SeriesDate == DUMMY_DATE
    assert found.LongitudinalTemporalInformationModified == "REMOVED"


@pytest.mark.parametrize(
    ("age", "born", "sent"),
    [
        ("089Y", None, "089Y"),
        ("090Y", None, "090Y"),
        ("104Y", None, "090Y"),
        ("099M", None, "099M"),
        ("old", None, ""),
        (None, "19341231", "089Y"),
        (None, "19340101", "090Y"),
        (None, "19140101", "090Y"),
        (None, "20230601", "011M"),
        (None, "20240420", "011D"),
        (None, "20250101", None),
        (None, "unknown", None),
        ("", "19700101", ""),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_ages(image, age, born, sent):
    found = read(as_sent(image(PatientAge=age, PatientBirthDate=born, StudyDate="20240501"))[0])
    assert found.get("PatientAge") == sent


def test_two_patients_of_one_name_stay_two_and_one_on_two_nights_stays_one(image):
    deidentifier = a_deidentifier()

    def patient(content):
        found = read(as_sent(content, deidentifier)[0])
        return found.PatientID, str(found.PatientName)

    first, namesake = image(PatientID="SIM-1"), image(PatientID="SIM-2")
    later = image(PatientID="SIM-1", PatientName="SIMULATED^MARRIED", StudyDate="20240601")
    assert patient(first) == patient(later)
    assert not set(patient(first)) & set(patient(namesake))
    days = {Patient(each): PSEUDONYMS.date_shift(Patient(each)) for each in ("SIM-1", "SIM-2")}
    assert days[Patient("SIM-1")] != days[Patient("SIM-2")]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.text(st.characters(codec="utf-8", categories=("Lu", "Ll", "Lo")), min_size=3, max_size=20),
    st.text(st.characters(codec="ascii", categories=("Lu", "Nd")), min_size=5, max_size=20),
)
def test_no_name_and_no_number_leaves(export, name, number):
    name, number = f"Qz{name}", f"7{number}"  # no word of our own, nor one that stands for nobody
    dataset = export.dataset("CT", PatientName=f"{name}^SIMULATED", PatientID=number)
    dataset.ManufacturerModelName = f"of {name}"
    dataset.SoftwareVersions = f"{number} 1.0"
    dataset.PatientComments = f"{name} {number}"
    content = saved(dataset)
    sent, done = as_sent(content)
    found = read(sent)
    assert told(done.header, {name, number}) == set()
    assert found.SoftwareVersions == DUMMY_TEXT
    assert done.identity_map.source.patient_id == number


# Character sets.

NAMES = {
    "": "Buc^Jerome",
    "ISO_IR 100": "Müller^Jörg",
    "ISO_IR 192": "山田^太郎=やまだ^たろう",
    "ISO_IR 144": "Ирина^Петрова",
    "GB18030": "Wang^XiaoDong=王^小东",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "\\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
    "ISO_IR 166": "สมชาย",
}


@pytest.mark.parametrize("charset", NAMES)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_names_of_the_world(image, charset, syntax):
    name = NAMES[charset]
    values = {
        "SpecificCharacterSet": charset.split("\\"),
        "PatientName": name,
        "OperatorsName": [name, "Second^Person"],
    }
    content = image(syntax=syntax, ManufacturerModelName=name.replace("^", " "), Manufacturer="SIMULATED", **values)
    sent, done = as_sent(content)
    assert told(done.header, identifying_values(read(content))) == set()
    assert done.identity_map.source.patient_name == name
    found = read(sent)
    assert found.ManufacturerModelName == DUMMY_TEXT
    assert found.get("SpecificCharacterSet", "") == read(content).get("SpecificCharacterSet", "")


def test_a_name_that_the_character_set_does_not_decode_stays(image):
    content = image(SpecificCharacterSet="ISO_IR 192", PatientName="SIMULATED")
    assert refusal_of(content.replace(b"SIMULATED", b"SIM\xff\xfeATED")) is Refusal.UNDECODABLE


def test_a_character_set_that_nobody_knows_stays(image):
    content = image(SpecificCharacterSet="ISO_IR 192")
    assert refusal_of(content.replace(b"ISO_IR 192", b"ISO_IR 999")) is Refusal.UNDECODABLE


def test_one_inside_an_item_counts_for_the_item(image):
    item = Dataset()
    item.SpecificCharacterSet = "ISO_IR 144"
    item.PersonName = "Ирина^Петрова"
    item.CodeMeaning = "Ирина^Петрова"
    content = image(SpecificCharacterSet="ISO_IR 100", ViewCodeSequence=[item])
    sent, done = as_sent(content)
    assert read(sent).ViewCodeSequence[0].CodeMeaning == DUMMY_TEXT
    assert "Ирина".encode("iso8859_5") not in done.header
    assert refusal_of(content.replace(b"ISO_IR 144", b"ISO_IR 999")) is Refusal.UNDECODABLE


def test_a_description_that_cannot_be_read_is_replaced(image):
    content = image(SpecificCharacterSet="ISO_IR 192", ManufacturerModelName="SIMULATED MODEL")
    sent, _ = as_sent(content.replace(b"SIMULATED MODEL", b"SIMUL\xffTED MODEL"))
    assert read(sent).ManufacturerModelName == DUMMY_TEXT


def test_utf_8_that_does_not_say_so_is_searched_as_what_it_is(image):
    content = image(SpecificCharacterSet="ISO_IR 192", PatientName="Žižkov^X", ManufacturerModelName="of ŽIŽKOV")
    content = content.replace(b"ISO_IR 192", b"ISO_IR 100")
    assert read(as_sent(content)[0]).ManufacturerModelName == DUMMY_TEXT


# Each row of the table.

VALUES = {
    **dict.fromkeys(("AE", "SH"), CANARY.upper()),
    "CS": "SECRET",
    **dict.fromkeys(("LO", "LT", "PN", "ST", "UC", "UT"), CANARY),
    "UR": f"urn:{CANARY}",
    "AS": "077Y",
    "DA": "20010203",
    "TM": "010203",
    "DT": "20010203010203",
    "DS": "77.125",
    "IS": "77125",
    "UI": "1.2.77125.3",
    "US": 0x7712,
    "SS": 0x7712,
    "UL": 0x77127712,
    "SL": 0x77127712,
    "FD": 77.125,
    "FL": 77.125,
    "OB": CANARY.encode() + b"!",
    "OW": CANARY.encode() + b"!",
    "UN": CANARY.encode() + b"!",
}
ROWS = sorted(
    group << 16 | element
    for name in ("X", "Z", "D", "U", "Z_D", "X_Z", "X_D", "X_Z_D", "X_Z_U_STAR")
    for group, element, *mask in getattr(table, f"{name}_TAGS")
    if not mask and 8 <= group < 0x7FE0
)
OWN_UIDS = {0x0020000D, 0x0020000E, 0x00080018}
WRITTEN = {0x00080050, 0x00100010, 0x00100020}


def fill(dataset, depth=0):
    """Puts something that tells in each attribute of the table; sequences hold a description that tells, too."""
    for tag in ROWS:
        vr = DicomDictionary.get(tag, ("LO",))[0].partition(" ")[0]
        if vr == "SQ":
            item = Dataset()
            item.CodeMeaning = "SIMULATED"
            item.PatientComments = CANARY
            item.ReferencedSOPInstanceUID = "1.2.77125.3"
            dataset.add(DataElement(tag, "SQ", [item]))
        elif depth or tag not in OWN_UIDS:
            dataset.add(DataElement(tag, vr, VALUES[vr]))
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("profile", [Profile(), STRICT], ids=["default", "strict"])
def test_nothing_of_any_row_of_the_table_leaves(export, syntax, profile):
    dataset = fill(export.dataset("CT", syntax=syntax))
    dataset.SharedFunctionalGroupsSequence = [fill(Dataset(), depth=1)]
    sent, done = as_sent(saved(dataset), a_deidentifier(profile))
    found = read(sent)
    lowered = done.header.lower()
    assert CANARY.encode().lower() not in lowered
    assert b"1.2.77125.3" not in lowered
    assert b"20010203" not in lowered
    for within in (found, found.SharedFunctionalGroupsSequence[0]):
        for tag in ROWS:
            action = profile.action(tag)
            if action is Action.REMOVE:
                assert tag not in within, hex(tag)
            elif within is found and tag in WRITTEN | OWN_UIDS:
                assert not within[tag].is_empty, hex(tag)
            elif action is Action.EMPTY:
                assert within[tag].is_empty, hex(tag)
            elif action is Action.DUMMY:
                assert not within[tag].is_empty, hex(tag)
                assert within[tag].value != VALUES[within[tag].VR], hex(tag)
            elif action is Action.UID:
                assert within[tag].value == PSEUDONYMS.uid("1.2.77125.3"), hex(tag)
                assert UID(within[tag].value).is_valid
            elif action is Action.SHIFT:
                assert str(within[tag].value) != VALUES[within[tag].VR], hex(tag)
            else:
                assert within[tag].VR == "SQ" or within[tag].value in (VALUES[within[tag].VR], DUMMY_TEXT), hex(tag)


def test_what_becomes_of_a_file_can_be_seen_before(image):
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"
    content = image(
        SourceImageSequence=[item],
        StudyDescription="SIMULATED",
        ManufacturerModelName="of SIMULATED",
        PatientAge="099Y",
    )
    changes = a_deidentifier().explain(Memory(content))
    by_keyword = {change.keyword: change.action for change in changes}
    assert by_keyword["PatientName"] is by_keyword["PatientID"] is by_keyword["AccessionNumber"] is Action.PSEUDONYM
    assert by_keyword["StudyDescription"] is Action.REMOVE
    assert by_keyword["StudyDate"] is Action.SHIFT
    assert by_keyword["Rows"] is by_keyword["SOPClassUID"] is Action.KEEP
    assert by_keyword["SOPInstanceUID"] is Action.UID
    assert by_keyword["PatientBirthDate"] is Action.EMPTY
    assert by_keyword["ManufacturerModelName"] is Action.CLEAN
    assert by_keyword["PatientAge"] is Action.CAP
    assert by_keyword["DeidentificationMethod"] is Action.ADD
    assert next(change for change in changes if change.keyword == "ReferencedSOPInstanceUID").tags == (
        0x00082112,
        0x00081155,
    )
    assert [change.tags[0] for change in changes] == sorted(change.tags[0] for change in changes)
    source = read(content)
    assert {element.keyword for element in every(source)} <= set(by_keyword)
    assert "SIMULATED" not in repr(changes)
    assert "SIM-1" not in repr(changes)


# Sequences, private attributes, overlays, and what else hides.


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_at_any_depth(export, syntax, undefined):
    deep = Dataset()
    deep.PatientName = CANARY
    deep.add_new(0x00191010, "LO", CANARY)
    deep.CodeMeaning = "chest"
    for _ in range(8):
        outer = Dataset()
        outer.PatientID = CANARY
        outer.ViewCodeSequence = [deep, Dataset()]
        outer.Manufacturer = "SIMULATED MAKER"
        outer["ViewCodeSequence"].is_undefined_length = undefined
        deep.is_undefined_length_sequence_item = undefined
        deep = outer
    dataset = export.dataset("CT", syntax=syntax)
    dataset.ViewCodeSequence = [deep]
    dataset["ViewCodeSequence"].is_undefined_length = undefined
    _, done = sent = as_sent(saved(dataset))
    found = read(sent[0])
    assert CANARY.encode() not in done.header
    for _ in range(8):
        found = found.ViewCodeSequence[0]
        assert found.PatientID == DUMMY_TEXT
    innermost = found.ViewCodeSequence[0]
    assert (innermost.PatientName, innermost.CodeMeaning) == ("", "chest")
    assert len(found.ViewCodeSequence[1]) == 0


def test_a_bottomless_sequence_stays(export):
    deep = Dataset()
    for _ in range(40):
        outer = Dataset()
        outer.ViewCodeSequence = [deep]
        outer["ViewCodeSequence"].is_undefined_length = True
        deep.is_undefined_length_sequence_item = True
        deep = outer
    dataset = export.dataset("CT")
    dataset.ViewCodeSequence = [deep]
    dataset["ViewCodeSequence"].is_undefined_length = True
    assert refusal_of(saved(dataset)) is Refusal.BROKEN


def test_private_attributes_go_unless_they_are_safe(export):
    dataset = export.dataset("CT")
    block = dataset.private_block(0x0019, "SIMULATED MAKER", create=True)
    block.add_new(0x23, "DS", "1.5")
    block.add_new(0x24, "LO", CANARY)
    block.add_new(0x25, "LO", "of SIMULATED")
    block.add_new(0x26, "UI", "1.2.3.4")
    block.add_new(0x27, "DA", "20240501")
    block.add_new(0x28, "PN", "Somebody")
    item = Dataset()
    item.PatientName = CANARY
    item.CodeMeaning = "kept"
    block.add_new(0x29, "SQ", [item])
    other = dataset.private_block(0x0019, "ANOTHER", create=True)
    other.add_new(0x23, "LO", CANARY)
    content = saved(dataset)
    assert not any(element.tag.is_private for element in read(as_sent(content)[0]))

    numbers = [f"0019xx{number}" for number in (23, 25, 26, 27, 28, 29)]
    profile = Profile.from_mapping({"safe_private": {"SIMULATED MAKER": numbers}})
    sent, done = as_sent(content, a_deidentifier(profile))
    kept = read(sent).private_block(0x0019, "SIMULATED MAKER")
    assert kept[0x23].value == 1.5
    assert 0x24 not in kept
    assert kept[0x25].value == DUMMY_TEXT
    assert kept[0x26].value == PSEUDONYMS.uid("1.2.3.4")
    assert (kept[0x27].value == done.identity_map.pseudonym and False) or kept[0x27].value in done.identity_map.dates
    assert kept[0x28].value == ""
    assert (kept[0x29].value[0].PatientName, kept[0x29].value[0].CodeMeaning) == ("", "kept")
    assert CANARY.encode() not in done.header
    with pytest.raises(KeyError):
        read(sent).private_block(0x0019, "ANOTHER")


def test_the_same_bytes_mean_something_else_under_another_creator(export):
    profile = Profile.from_mapping({"safe_private": {"SAFE": ["0019xx23"]}})
    deidentifier = a_deidentifier(profile)
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    for creator, is_kept in (("SAFE", True), ("OTHER", False), ("SAFE", True)):
        dataset = export.dataset("CT", **uids)
        dataset.private_block(0x0019, creator, create=True).add_new(0x23, "LO", "something")
        assert (b"something" in as_sent(saved(dataset), deidentifier)[1].header) is is_kept


def test_what_is_written_as_unknown_is_treated_as_what_it_is(export):
    dataset = export.dataset("CT", syntax=ImplicitVRLittleEndian)
    item = Dataset()
    item.PatientName = CANARY
    item.ReferencedSOPInstanceUID = "1.2.3.4"
    dataset.SourceImageSequence = [item]
    implicit = saved(dataset)
    start = implicit.index(struct.pack("<HH", 0x0008, 0x2112))
    (length,) = struct.unpack_from("<L", implicit, start + 4)
    unknown = struct.pack("<HH2sHL", 0x0008, 0x2112, b"UN", 0, length) + implicit[start + 8 : start + 8 + length]
    del dataset.SourceImageSequence
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    explicit = saved(dataset, implicit_vr=False, little_endian=True)
    at = explicit.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    name = struct.pack("<HH2sHL", 0x0008, 0x1070, b"UN", 0, 14) + b"Kanarienvogel "
    place = explicit.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    assert at == place
    sent, done = as_sent(explicit[:place] + name + unknown + explicit[place:])
    found = read(sent)
    assert CANARY.encode() not in done.header
    assert found.OperatorsName == DUMMY_TEXT
    assert found.SourceImageSequence[0].ReferencedSOPInstanceUID == PSEUDONYMS.uid("1.2.3.4")
    assert found.SourceImageSequence[0].PatientName == ""


def test_the_preamble_and_the_file_header_tell_nothing(export):
    dataset = export.dataset("CT")
    dataset.preamble = CANARY.encode().ljust(128)
    dataset.file_meta.SourceApplicationEntityTitle = CANARY.upper()
    dataset.file_meta.ImplementationVersionName = CANARY
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.77125"
    dataset.file_meta.PrivateInformation = CANARY.encode()
    sent, _ = as_sent(saved(dataset))
    assert CANARY.lower().encode() not in sent.lower()
    assert read(sent).file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID


@pytest.mark.parametrize("trailer", ["padding", "private", "signature", "zeros", "anything"])
def test_what_follows_the_pixels_does_not_go_with_them(export, trailer):
    content = saved(export.dataset("CT"))
    text = CANARY.encode() + b"!"
    after = {
        "padding": struct.pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, len(text)) + text,
        "private": struct.pack("<HH2sH", 0x7FE1, 0x1010, b"LO", len(text)) + text,
        "signature": struct.pack("<HH2sHL", 0xFFFA, 0xFFFA, b"SQ", 0, 0),
        "zeros": bytes(100),
        "anything": text,
    }[trailer]
    sent, done = as_sent(content + after)
    assert done.end == len(content)
    assert CANARY.encode() not in sent
    assert pixels_of(read(sent)) == pixels_of(read(content))


def test_compressed_pixels_end_where_their_fragments_do(export):
    dataset = export.dataset("CT", syntax=JPEG2000Lossless, NumberOfFrames=40)
    dataset.PixelData = encapsulate([bytes([number]) * 300 for number in range(40)])
    dataset["PixelData"].VR = "OB"
    content = saved(dataset)
    hidden = struct.pack("<HH2sHL", 0x7FE1, 0x1010, b"OB", 0, 22) + CANARY.encode() + b"!" + content[-8:]
    sent, done = as_sent(content + hidden)
    assert done.end == len(content)
    assert pixels_of(read(sent)) == pixels_of(read(content))
    assert refusal_of(content[:-8]) is Refusal.BROKEN
    assert refusal_of(content[:-500]) is Refusal.BROKEN


def test_overlays_and_curves_go(export):
    dataset = export.dataset("CT")
    dataset.add_new(0x60000010, "US", 16)
    dataset.add_new(0x60000022, "LO", CANARY)
    dataset.add_new(0x60003000, "OW", CANARY.encode() + b"!")
    dataset.add_new(0x50003000, "OW", CANARY.encode() + b"!")
    sent, done = as_sent(saved(dataset))
    assert CANARY.encode() not in done.header
    assert not any(tag >> 24 in (0x50, 0x60) for tag in read(sent).keys())  # noqa: SIM118


def test_an_overlay_in_the_pixels_stays(export):
    dataset = export.dataset("CT")
    dataset.add_new(0x60020010, "US", 16)
    dataset.add_new(0x60020102, "US", 12)
    assert refusal_of(saved(dataset)) is Refusal.OVERLAY


# What stays.


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, Refusal.BURNED_IN),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, Refusal.KIND),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, Refusal.KIND),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}, Refusal.KIND),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1"}, Refusal.KIND),
        ({"Modality": "US"}, Refusal.KIND),
        ({"SOPClassUID": "1.2.3.4"}, Refusal.UNKNOWN_KIND),
        ({"SOPClassUID": None}, Refusal.UNKNOWN_KIND),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, Refusal.SCREEN),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}, Refusal.SCREEN),
        ({"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}, Refusal.SCREEN),
        ({"ConversionType": "DF"}, Refusal.DIGITIZED),
        ({"ConversionType": "WSD"}, Refusal.DIGITIZED),
        ({"SOPInstanceUID": None}, Refusal.NO_UID),
        ({"SeriesInstanceUID": ""}, Refusal.NO_UID),
        ({"StudyInstanceUID": None}, Refusal.NO_UID),
        ({"SOPInstanceUID": "1.2.840.10008.5.1.4.1.1.2"}, Refusal.NO_UID),
        ({"SOPInstanceUID": "1.2.3\\4.5"}, Refusal.NO_UID),
        ({"BodyPartExamined": "SIMULATED"}, Refusal.LEFT_OVER),
        ({"ImageType": ["DERIVED", "PRIMARY", "SIM-1"], "PatientID": "SIM-1"}, Refusal.LEFT_OVER),
        ({"ReceiveCoilName": None, "ScanOptions": "SIMULATED"}, Refusal.LEFT_OVER),
    ],
)
def test_what_nobody_can_be_sure_of_stays(image, values, reason):
    assert refusal_of(image(**values)) is reason


def test_what_declares_no_burned_in_text_is_sent(image):
    as_sent(image(BurnedInAnnotation="NO", ConversionType="DI", ImageType=["DERIVED", "PRIMARY"]))


def test_text_where_a_number_belongs_is_searched(image):
    content = image(SeriesNumber=123456, KVP="120.25")
    assert refusal_of(content.replace(b"123456", b"SIM-1 ")) is Refusal.LEFT_OVER
    assert refusal_of(content.replace(b"120.25", b"SIM-1 ")) is Refusal.LEFT_OVER


def test_bytes_are_searched_too(export):
    for encoding in ("utf-8", "utf-16-le", "latin-1"):
        dataset = export.dataset("CT", PatientName="Müller^SIMULATED")
        dataset.ICCProfile = b"\0\1\2" + "of Müller".encode(encoding) + b"\0\1\2"
        assert refusal_of(saved(dataset)) is Refusal.LEFT_OVER


def test_a_short_number_is_not_found_in_every_other(image):
    values = {"PatientID": "5625", "PixelSpacing": [0.5625, 0.5625], "SoftwareVersions": "v15625.2"}
    found = read(as_sent(image(**values))[0])
    assert found.PixelSpacing == [0.5625, 0.5625]
    assert found.SoftwareVersions == "v15625.2"


def test_a_site_s_own_keeping_is_searched_all_the_same(image):
    keeping = a_deidentifier(Profile(keep=("StudyDescription", "SeriesDescription")))
    found = read(as_sent(image(StudyDescription="Chest of Simulated", SeriesDescription="Chest"), keeping)[0])
    assert (found.StudyDescription, found.SeriesDescription) == (DUMMY_TEXT, "Chest")


def test_what_a_site_keeps_is_not_looked_for_elsewhere(image):
    values = {
        "InstitutionName": "SIMULATED CLINIC",
        "PositionReferenceIndicator": "for SIMULATED CLINIC",
        "PatientName": "NOBODY",
    }
    assert read(as_sent(image(**values))[0]).PositionReferenceIndicator == DUMMY_TEXT
    keeping = a_deidentifier(Profile(keep=("InstitutionName",)))
    assert read(as_sent(image(**values), keeping)[0]).PositionReferenceIndicator == "for SIMULATED CLINIC"


def test_others_names_are_taken_from_free_text_and_keep_no_image_here(image):
    values = {
        "PatientName": "NOBODY",
        "ReferringPhysicianName": "Chest^OPD",
        "OperatorsName": "Sharp",
        "BodyPartExamined": "CHEST",
        "ConvolutionKernel": "SHARP",
        "PositionReferenceIndicator": "by Sharp",
    }
    found = read(as_sent(image(**values))[0])
    assert (found.BodyPartExamined, found.ConvolutionKernel) == ("CHEST", "SHARP")
    assert found.PositionReferenceIndicator == DUMMY_TEXT


def test_a_patient_whose_name_nobody_knows_is_not_kept_here(image):
    values = {"PatientName": "UNKNOWN^MALE", "ScanOptions": "NONE", "FieldOfViewShape": "UNKNOWN"}
    found = read(as_sent(image(OperatorsName="NONE", **values))[0])
    assert (found.ScanOptions, found.FieldOfViewShape) == ("NONE", "UNKNOWN")


def test_a_site_s_replacement_is_written(image):
    replacing = a_deidentifier(
        Profile(replace={"InstitutionName": "SIMULATED", "PatientSex": "O"}, remove=("Manufacturer",))
    )
    sent, done = as_sent(image(InstitutionName="Elsewhere", Manufacturer="SOMEBODY"), replacing)
    found = read(sent)
    assert (found.InstitutionName, found.PatientSex) == ("SIMULATED", "O")
    assert done.identity_map.pseudonym.sex == "O"
    assert "Manufacturer" not in found


# Damaged files.


def test_dates_that_are_none_are_emptied_or_replaced(image):
    content = image(StudyDate="20240501", SeriesDate="20240502", AcquisitionDateTime="20240503")
    for good, bad in ((b"20240501", b"20241301"), (b"20240502", b"PATIENT "), (b"20240503", b"2024    ")):
        content = content.replace(good, bad)
    found = read(as_sent(content)[0])
    assert (found.StudyDate, found.SeriesDate, found.AcquisitionDateTime) == ("", DUMMY_DATE, DUMMY_DATE)


@pytest.mark.parametrize(
    ("value", "rest"), [("20240501101500.123456+0530", "101500.123456+0530"), ("2024050110", "10"), ("20240501", "")]
)
def test_times_and_zones_stay_with_their_date(image, value, rest):
    found = read(as_sent(image(AcquisitionDateTime=value))[0])
    assert found.AcquisitionDateTime == shifted("20240501", PSEUDONYMS.date_shift(Patient("SIM-1"))) + rest


def test_a_date_before_every_other_is_no_reason_to_stop(image):
    assert read(as_sent(image(StudyDate="00010101"))[0]).StudyDate == ""


def test_what_is_deflated_or_has_no_pixels_stays(export):
    assert refusal_of(saved(export.dataset("CT", syntax=DeflatedExplicitVRLittleEndian))) is Refusal.DEFLATED
    assert refusal_of(saved(export.dataset("SR"))) is Refusal.NO_PIXELS
    assert refusal_of(b"") is Refusal.NOT_DICOM
    assert refusal_of(bytes(4000)) is Refusal.NOT_DICOM


def test_elements_out_of_order_or_twice_stay(image):
    content = image()
    start = content.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    end = content.index(struct.pack("<HH2s", 0x0010, 0x0020, b"LO"))
    name = content[start:end]
    assert refusal_of(content[:start] + name + content[start:]) is Refusal.BROKEN
    pixels = content.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OB"))
    assert refusal_of(content[:pixels] + name + content[pixels:]) is Refusal.BROKEN


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
def test_a_uid_that_is_written_as_a_sequence_stays(image, keyword):
    content = image(**{keyword: "1.2.3456"})
    start = content.rindex(b"UI\x08\x001.2.3456")
    an_item = b"\xfe\xff\x00\xe0" + bytes(4)
    damaged = content[:start] + b"SQ\0\0" + struct.pack("<L", len(an_item)) + an_item + content[start + 12 :]
    assert refusal_of(damaged) is Refusal.NO_UID


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_more_new_uids_than_the_vr_has_room_for_are_written_all_the_same(image, syntax):
    uids = [f"1.2.{number}" for number in range(3000)]
    sent, done = as_sent(image(syntax=syntax, FailedSOPInstanceUIDList=uids))
    found = read(sent)
    new = found["FailedSOPInstanceUIDList"]
    values = new.value if new.VR == "UI" else new.value.decode("ascii").rstrip("\0").split("\\")
    assert [done.identity_map.uids[uid] for uid in values] == uids
    assert found.PatientID == PSEUDONYMS.patient_id(Patient("SIM-1"))


@pytest.mark.parametrize("vr", [b"\0B", b"US", b"XX"])
def test_pixel_data_of_a_vr_that_cannot_hold_it_stays(image, vr):
    content = image()
    pixels = content.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OB"))
    assert refusal_of(content[: pixels + 4] + vr + content[pixels + 6 :]) is Refusal.BROKEN


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_a_file_cut_anywhere_stays(export, syntax, undefined):
    item, inner = Dataset(), Dataset()
    inner.CodeMeaning = "chest"
    inner.TextValue = "long"
    item.ViewCodeSequence = [inner]
    dataset = export.dataset("CT", rows=1, columns=2, syntax=syntax, ViewCodeSequence=[item])
    for owner in (dataset, item):
        owner["ViewCodeSequence"].is_undefined_length = undefined
        owner.ViewCodeSequence[0].is_undefined_length_sequence_item = undefined
    content = saved(dataset)
    as_sent(content)
    for end in range(len(content)):
        assert refusal_of(content[:end]) in (Refusal.BROKEN, Refusal.NO_PIXELS, Refusal.NOT_DICOM)


@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_that_do_not_end_as_they_should_stay(export, undefined):
    item = Dataset()
    item.CodeMeaning = "chest"
    dataset = export.dataset("CT", ViewCodeSequence=[item])
    dataset["ViewCodeSequence"].is_undefined_length = undefined
    item.is_undefined_length_sequence_item = undefined
    content = saved(dataset)
    start = content.index(struct.pack("<HH2s", 0x0054, 0x0220, b"SQ"))
    end = content.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OB"))
    as_sent(content)
    for place in range(start + 8, end):
        for damage in (b"\xff", b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\x00\xe0", b"\0\0\0\0", b"UN"):
            damaged = content[:place] + damage + content[place + len(damage) :]
            with suppress(DeidentifyError):
                assert pixels_of(read(as_sent(damaged)[0])) == pixels_of(read(content))


SEEDS = {
    path.name: path.read_bytes()
    for path in REAL_FILES
    if path.name in ("CT_small.dcm", "MR_small_implicit.dcm", "examples_overlay.dcm", "emri_small_RLE.dcm")
}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(SEEDS)),
    st.lists(st.tuples(st.integers(132, 6000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=5),
)
def test_a_damaged_file_stays_or_leaves_without_its_identity(seed, damages):
    content = bytearray(SEEDS[seed])
    for place, damage in damages:
        content[place : place + len(damage)] = damage
    content = bytes(content)
    try:
        done = a_deidentifier().deidentify(Memory(content))
    except DeidentifyError:
        return
    identifying = identifying_values(read(SEEDS[seed])) & identifying_values(read(content))
    assert told(done.header, identifying - NO_NAMES) == set()


def test_a_long_header_is_read_in_parts(export):
    dataset = export.dataset("CT")
    frames = []
    for number in range(200):
        frame = Dataset()
        frame.PatientName = CANARY
        frame.FrameComments = "x" * 200
        frame.InstanceNumber = number
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    content = saved(dataset)
    whole, _ = as_sent(content)
    done = a_deidentifier().deidentify(Memory(content, page=256))
    assert done.header + content[done.offset : done.end] == whole
    assert CANARY.encode() not in whole


def test_a_header_without_end_stays(export, monkeypatch):
    monkeypatch.setattr("qure_provider.dicom.header._HEADER_LIMIT", 1024)
    dataset = export.dataset("CT", RedPaletteColorLookupTableData=bytes(100_000))
    with pytest.raises(DeidentifyError) as error:
        a_deidentifier().deidentify(Memory(saved(dataset), page=512))
    assert error.value.reason is Refusal.TOO_LARGE


CHANGES = {
    "SpecificCharacterSet": ["ISO_IR 100", "ISO_IR 144", "ISO_IR 999"],
    "PatientID": ["SIM-2", ""],
    "PatientName": ["Quaxlinger^X", "Chest^X"],
    "PatientBirthDate": ["19340101", ""],
    "PatientAge": ["053Y", "104Y"],
    "PatientSex": ["M"],
    "IssuerOfPatientID": ["SIM"],
    "AccessionNumber": ["A2002", None],
    "OperatorsName": ["Chest^X", "SIMULATED"],
    "StudyInstanceUID": ["1.2.3"],
    "StudyTime": ["1016"],
    "ReferringPhysicianName": ["Chest", "SIMULATED"],
    "AcquisitionDate": ["20240501", "none"],
    "SeriesDescription": ["SIMULATED", "chest", None],
    "ManufacturerModelName": ["SIMULATED", "chest", "Quäxlinger"],
    "ImageComments": ["SIM-1", "SIM-2"],
    "FrameOfReferenceUID": ["1.2.3", "1.2.3.4"],
    "BurnedInAnnotation": ["NO", "YES"],
    "BodyPartExamined": ["CHEST", "SIM-2"],
    "syntax": SYNTAXES,
    "creator": ["OTHER", ""],
    "meaning": ["chest", "Quäxlinger"],
    "damage": [(place, patch) for place in (40, 150, 300) for patch in (b"\xff", b"QX")],
}
"""What some files of a series have otherwise than the rest; ``damage`` is counted back from the end of the header."""


def outcome(content, deidentifier):
    try:
        return as_sent(content, deidentifier)
    except DeidentifyError as error:
        return error.reason


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("profile", [None, STRICT, Profile.from_mapping({"safe_private": {"SAFE": ["0019xx23"]}})])
class TestWhateverCameBefore:
    """A file becomes the same as it does by itself."""

    @pytest.fixture
    def make(self, export):
        uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
        usual = {
            **uids,
            "SeriesDescription": "of Quäxlinger",
            "FrameOfReferenceUID": "1.2.3.5",
            "SeriesDate": "20240502",
        }

        def made(changes, number):
            values = {**usual, "InstanceNumber": number, **changes}
            creator, damage = values.pop("creator", "SAFE"), values.pop("damage", None)
            item = Dataset()
            item.CodeMeaning, item.PersonName = values.pop("meaning", "of the chest"), "SIMULATED"
            dataset = export.dataset("CT", ViewCodeSequence=[item], **values)
            block = dataset.private_block(0x0019, creator or "SAFE", create=True)
            block.add_new(0x23, "LO", "something")
            if not creator:
                del dataset[0x00190010]
            content = saved(dataset)
            if damage:
                place = len(content) - 256 - damage[0]
                content = content[:place] + damage[1] + content[place + len(damage[1]) :]
            return content

        return made

    def test_in_any_order(self, make, profile):
        rng = Random(0)
        for _ in range(80):
            deidentifier, common = a_deidentifier(profile), {}
            for number in range(rng.randint(4, 7)):
                some = {
                    name: rng.choice(CHANGES[name]) for name in rng.sample(sorted(CHANGES), rng.choice((0, 1, 1, 2)))
                }
                if number == 0 or rng.random() < 0.1:
                    common = {**common, **some}
                content = make({**common, **some}, number)
                if rng.random() < 0.05:
                    with suppress(DeidentifyError):
                        deidentifier.explain(Memory(content))
                assert outcome(content, deidentifier) == outcome(content, a_deidentifier(profile))

    @pytest.mark.parametrize("name", CHANGES)
    def test_where_an_attribute_differs_now_and_then(self, make, profile, name):
        for often, once in product(({name: value} for value in CHANGES[name]), repeat=2):
            deidentifier = a_deidentifier(profile)
            for number, changes in enumerate((often, {}, {}, {}, once, {}, once)):
                content = make(changes, number)
                assert outcome(content, deidentifier) == outcome(content, a_deidentifier(profile))

    def test_where_one_is_gone_that_told_whose_it_is(self, make, profile):
        deidentifier = a_deidentifier(profile)
        for number, accession in enumerate((*["A2002"] * 4, None, "A2002")):
            around = {"ContentTime": f"10160{number}", "InstanceAvailability": ("ONLINE", "OFFLINE")[number % 2]}
            content = make({**around, "AccessionNumber": accession}, number)
            assert outcome(content, deidentifier) == outcome(content, a_deidentifier(profile))


def test_what_a_series_has_alike_is_not_read_again(export, monkeypatch):
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    deidentifier, read_anew = a_deidentifier(), []
    rewrite = Rewriter.rewrite
    monkeypatch.setattr(
        Rewriter,
        "rewrite",
        lambda self, data, elements, *more, **options: (
            read_anew.append(len(elements)) or rewrite(self, data, elements, *more, **options)
        ),
    )
    for number in range(6):
        content = saved(export.dataset("CT", **uids, InstanceNumber=number, SliceLocation=1.5 * number))
        as_sent(content, deidentifier)
    assert read_anew[0] > 20
    assert read_anew[-1] == 3


def test_a_reason_names_no_value(image):
    with pytest.raises(DeidentifyError) as error:
        a_deidentifier().deidentify(Memory(image(BodyPartExamined="SIMULATED")))
    assert str(error.value) == str(Refusal.LEFT_OVER)
    assert error.value.__cause__ is None
