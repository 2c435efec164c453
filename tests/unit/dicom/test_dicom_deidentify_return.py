"""The way back of a result: about the patient again, with nothing left of what was sent."""

import json
import tempfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fpdf import FPDF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid
from pypdf import PdfReader, PdfWriter
from support.deidentified import KEY, Memory, a_deidentifier, identifying_values, read, result_of, told, uids_of
from support.emulated_results import emulated

from qure_provider.dicom.complete import complete_objects
from qure_provider.dicom.documents import HL7, HTML, JPEG, JSON, PDF, PNG
from qure_provider.dicom.model import Identity
from qure_provider.dicom.profile import Action, Profile
from qure_provider.dicom.pseudonym import IdentityMap, Patient, Pseudonymizer, shifted
from qure_provider.dicom.reidentify import (
    DICOM,
    check_reidentified,
    find_pseudonyms,
    reidentify_file,
    reidentify_object,
)
from qure_provider.dicom.traces import Held, HeldError, Trace
from qure_provider.dicom.verify import verify_object, verify_objects
from qure_provider.hooks.media import Media, sniff

PSEUDONYMS = Pseudonymizer(KEY)
TEXT = "text/plain"


def codes_of(identity):
    return {identity.patient_id, identity.patient_name, identity.accession_number}


class Trip:
    """A study that was sent de-identified, and what came back."""

    def __init__(self, folder, product, **values):
        self.product = product
        self.study = emulated(folder / "identified", product, **values)
        deidentifier = a_deidentifier()
        self.sent, maps = [], []
        (folder / "result").mkdir()
        for number, path in enumerate(self.study.sources):
            content = path.read_bytes()
            done = deidentifier.deidentify(Memory(content))
            self.sent.append(folder / f"sent-{number}.dcm")
            self.sent[-1].write_bytes(done.header + content[done.offset : done.end])
            maps.append(done.identity_map)
        self.map = maps[0].joined(maps[1:])
        self.files = result_of(folder / "result", self.sent, product)

    @property
    def objects(self):
        paths = [path for kind, paths in self.files.items() if kind != "original" for path in paths]
        return [path for path in paths if sniff(path.read_bytes()) is Media.DICOM]


@pytest.fixture(scope="module", params=["qxr", "qct", "qer"])
def trip(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "identified").mkdir()
    return Trip(folder, request.param)


def test_what_came_back_names_nobody(trip):
    identifying = identifying_values(trip.study.source) - {"Simulated", "SIMULATED"}  # as the emulator calls itself
    for paths in trip.files.values():
        for path in paths:
            assert told(path.read_bytes(), identifying) == set()


def test_every_object_comes_back_whole_or_is_held(trip, tmp_path):
    held, back = {}, []
    sent_uids = set(trip.map.uids)
    assert verify_objects(trip.objects, trip.map.pseudonym, sent_uids) is None
    for number, path in enumerate(trip.objects):
        target = tmp_path / f"{number}.dcm"
        try:
            found = reidentify_object(path, target, trip.map).found
        except HeldError as error:
            held[path.name.partition("-")[0]] = error.reason
            continue
        assert {Trace.PATIENT_ID, Trace.PATIENT_NAME, Trace.ACCESSION_NUMBER, Trace.UID} <= found
        back.append(target)
    # The PDF inside prints the pseudonym.
    assert set(held) <= {"report_dcm", "encapsulated_pdf"}
    assert set(held.values()) <= {Held.IN_DOCUMENT}

    own = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in trip.objects}
    for path in back:
        assert check_reidentified(path, DICOM, trip.map, own) is None
        verified = verify_object(path, trip.study.identity, trip.study.sent, own)
        assert verified.path == path, verified
        content = path.read_bytes()
        assert told(content, codes_of(trip.map.pseudonym) | set(trip.map.uids) | set(trip.map.dates)) == set()
        dataset = read(content)
        assert str(dataset.PatientName) == "Müller^Simulated"
        assert dataset.StudyDate == trip.study.facts.study_date
        assert "PatientIdentityRemoved" not in dataset
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_what_goes_on_is_what_the_identified_path_would_have_sent(trip, tmp_path):
    """But for what a result says of itself, and what only the source's optional attributes said."""
    made = {"SOPInstanceUID", "SeriesInstanceUID", "SpecificCharacterSet"}
    made |= {
        f"{what}{when}" for what in ("Content", "InstanceCreation", "PresentationCreation") for when in ("Date", "Time")
    }
    whose = trip.study.identity, trip.study.facts, trip.study.sent
    for path in trip.objects:
        if path.name.startswith(("report_dcm", "encapsulated_pdf")):
            continue
        back = reidentify_object(path, tmp_path / path.name, trip.map).path
        identified = next(each for each in trip.study.objects if each.name == path.name)
        ours, theirs = (
            read(complete_objects([each], _folder(tmp_path), *whose).paths[each].read_bytes())
            for each in (back, identified)
        )
        lacking = {keyword for keyword in theirs.dir() if keyword not in ours and not theirs[keyword].is_empty}
        assert {Profile(shift_dates=False).action(theirs[keyword].tag) for keyword in lacking} <= {Action.REMOVE}
        assert not lacking & {"PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyDate", "StudyID"}
        same = {each.keyword for each in theirs if each.VR != "SQ" and each.keyword in ours} - made
        assert {keyword for keyword in same if ours[keyword].value != theirs[keyword].value} == set()
        assert uids_of(ours) & trip.study.sent == uids_of(theirs) & trip.study.sent


def _folder(parent):
    return Path(tempfile.mkdtemp(dir=parent))


def test_every_file_is_put_back_or_held(trip, tmp_path):
    outcomes = {}
    for kind, paths in trip.files.items():
        for path in paths:
            media = sniff(path.read_bytes())
            try:
                back = reidentify_file(path, tmp_path / path.name, media, trip.map)
                outcomes[kind] = check_reidentified(back.path, media, trip.map)
            except HeldError as error:
                outcomes[kind] = error.reason
    documents = {"report_pdf", "report_dcm", "pdf", "encapsulated_pdf"}
    assert {kind for kind, outcome in outcomes.items() if outcome is Held.IN_DOCUMENT} == documents & set(outcomes)
    assert {outcome for kind, outcome in outcomes.items() if kind not in documents} == {None}


SOURCE = Identity("1.2.3", "SIM-1", "SIM", "A/1|2", "19700101", "F", "Müller^Jörg^^Dr^Jr")
DAY, SENT_DAY = "20240517", shifted("20240517", PSEUDONYMS.date_shift(Patient.of(SOURCE)))
MAP = IdentityMap(
    SOURCE,
    PSEUDONYMS.identity(SOURCE, sex="F"),
    {PSEUDONYMS.uid(uid): uid for uid in ("1.2.3", "1.2.3.4", "1.2.3.4.5")},
    {SENT_DAY: DAY},
    PSEUDONYMS.key_id,
)
ID, NAME, ACCESSION = MAP.pseudonym.patient_id, MAP.pseudonym.patient_name, MAP.pseudonym.accession_number
STUDY, IMAGE = PSEUDONYMS.uid("1.2.3"), PSEUDONYMS.uid("1.2.3.4.5")


def a_result(export, **values):
    """A result's object, as the service might make it of what was sent."""
    sent = {
        "StudyInstanceUID": STUDY,
        "PatientID": ID,
        "PatientName": NAME,
        "AccessionNumber": ACCESSION,
        "PatientBirthDate": "",
        "StudyDate": SENT_DAY,
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "DICOM PS3.15",
        "SpecificCharacterSet": None,
    }
    return export.dataset("OT", **sent | values)


@pytest.fixture
def back(export, tmp_path):
    """Sends an object back; gives what goes on, or why it does not."""

    def send(dataset, identity_map=MAP):
        path = export.save("result.dcm", dataset)
        target = tmp_path / "back.dcm"
        try:
            reidentify_object(path, target, identity_map)
        except HeldError as error:
            return error.reason
        assert check_reidentified(target, DICOM, identity_map) is None
        return read(target.read_bytes())

    return send


def test_identity_dates_and_marks(export, back):
    found = back(
        a_result(export, PatientAge="090Y", StationName="ANONYMIZED", AcquisitionDateTime=SENT_DAY + "101500.5+0100")
    )
    assert (found.StudyInstanceUID, found.PatientID, found.AccessionNumber) == ("1.2.3", "SIM-1", "A/1|2")
    assert str(found.PatientName) == "Müller^Jörg^^Dr^Jr"
    assert found.SpecificCharacterSet == "ISO_IR 192"
    assert found.StudyDate == DAY
    assert found.AcquisitionDateTime == DAY + "101500.5+0100"
    assert (found.StationName, found.get("PatientAge")) == ("", None)
    assert not {"PatientIdentityRemoved", "DeidentificationMethod"} & set(found.dir())


def test_dates_that_were_not_sent_stay(export, back):
    found = back(
        a_result(export, ContentDate="20260102", AcquisitionDateTime="20260102101500", DateOfSecondaryCapture=DAY)
    )
    assert (found.ContentDate, found.AcquisitionDateTime) == ("20260102", "20260102101500")
    assert found.DateOfSecondaryCapture == DAY


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_references_and_texts_at_any_depth(export, back, syntax):
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = IMAGE
    content = Dataset()
    content.TextValue = (
        f"Image {IMAGE} of {NAME.title()} ({ID.lower()}), {SENT_DAY[:4]}-{SENT_DAY[4:6]}-{SENT_DAY[6:]}."
    )
    content.PersonName = NAME + "^^"
    content.DateTime = SENT_DAY + "1015"
    content.ReferencedSOPSequence = [reference]
    content.UID = STUDY
    outer = Dataset()
    outer.SpecificCharacterSet = "ISO_IR 144"
    outer.ContentSequence = [content, Dataset()]
    dataset = a_result(export, syntax=syntax)
    dataset.ContentSequence = [outer]
    dataset.add_new(0x00191010, "LO", "SERVICE")
    dataset.add_new(0x00191011, "LO", [f"for {ID}", "x"])
    found = back(dataset)
    if syntax == ImplicitVRLittleEndian:
        assert found is Held.IN_BINARY  # a private text that does not say that it is one
        return
    item = found.ContentSequence[0].ContentSequence[0]
    assert item.TextValue == "Image 1.2.3.4.5 of Müller Jörg Dr Jr (SIM-1), 2024-05-17."
    assert str(item.PersonName) == "Müller^Jörg^^Dr^Jr"
    assert (item.DateTime, item.UID) == (DAY + "1015", "1.2.3")
    assert item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.5"
    assert list(found[0x00191011].value) == ["for SIM-1", "x"]


def test_other_uids_stay(export, back):
    own, others = generate_uid(), "2.25.123456789"
    dataset = a_result(export, SOPInstanceUID=own, SeriesInstanceUID=others)
    dataset.IrradiationEventUID = [IMAGE, others]
    found = back(dataset)
    assert (found.SOPInstanceUID, found.SeriesInstanceUID) == (own, others)
    assert list(found.IrradiationEventUID) == ["1.2.3.4.5", others]


def test_bytes_with_a_pseudonym_are_held(export, back):
    assert back(a_result(export, ICCProfile=b"for " + ID.encode())) is Held.IN_BINARY
    dataset = a_result(export)
    dataset.add_new(0x00191010, "LO", "SERVICE")
    dataset.add_new(0x00191011, "UN", b"study " + STUDY.encode())
    assert back(dataset) is Held.IN_BINARY


def a_pdf(*lines, change=lambda page: None):
    page = FPDF()
    page.add_page()
    page.set_font("helvetica", size=12)
    for line in lines:
        page.cell(0, 8, line, new_x="LMARGIN", new_y="NEXT")
    change(page)
    return bytes(page.output())


def test_a_document_inside_is_searched_and_not_edited(export, back):
    clean = a_pdf("SIMULATED")
    found = back(a_result(export, EncapsulatedDocument=clean, MIMETypeOfEncapsulatedDocument="application/pdf"))
    assert found.EncapsulatedDocument.rstrip(b"\0") == clean.rstrip(b"\0")
    held = a_result(export, EncapsulatedDocument=a_pdf(f"of {NAME}"), MIMETypeOfEncapsulatedDocument="application/pdf")
    assert back(held) is Held.IN_DOCUMENT
    assert back(a_result(export, EncapsulatedDocument=b"%PDF-1.4 broken")) is Held.UNREADABLE
    assert back(a_result(export, EncapsulatedDocument=f"<p>{ID}</p>".encode())) is Held.IN_DOCUMENT
    assert back(a_result(export, EncapsulatedDocument=bytes(range(256)))) is Held.UNKNOWN


def test_an_object_without_any_trace_is_copied_byte_for_byte(export, tmp_path):
    dataset = export.dataset("OT", StudyInstanceUID="1.2.3", PatientName="Nobody")
    path = export.save("result.dcm", dataset)
    assert reidentify_object(path, tmp_path / "copy", MAP).found == frozenset()
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


def test_an_object_that_cannot_be_read_is_held(tmp_path):
    path = tmp_path / "broken.dcm"
    path.write_bytes(bytes(128) + b"DICM" + b"broken")
    with pytest.raises(HeldError, match="cannot be read"):
        reidentify_object(path, tmp_path / "copy", MAP)
    assert check_reidentified(path, DICOM, MAP) is Held.UNREADABLE
    assert not (tmp_path / "copy").exists()


def test_a_map_that_was_made_with_an_old_key_still_leads_back(export, back):
    stored = json.dumps(MAP.to_mapping())
    assert back(a_result(export), IdentityMap.from_mapping(json.loads(stored))).PatientID == "SIM-1"


def test_a_name_beyond_latin_comes_back_in_every_group(export, back):
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    found = back(a_result(export), replace(MAP, source=replace(SOURCE, patient_name=name)))
    assert str(found.PatientName) == name


# The check before anything goes on.


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"PatientID": ID}, Held.LEFT),
        ({"PatientComments": f"was {NAME[:12].lower()}"}, Held.LEFT),
        ({"StudyInstanceUID": STUDY}, Held.LEFT),
        ({"StudyDate": SENT_DAY}, Held.LEFT),
        ({"ICCProfile": b"was " + ACCESSION.encode() + b" "}, Held.LEFT),
        ({"PatientID": "SIM-2"}, Held.IDENTITY),
        ({"StudyInstanceUID": "1.2.4"}, Held.IDENTITY),
        ({"PatientName": "Somebody^Else"}, Held.IDENTITY),
        ({"PatientBirthDate": "19700102"}, Held.IDENTITY),
    ],
)
def test_what_is_not_the_patient_s_again_is_noticed(export, values, reason):
    whole = {
        "SpecificCharacterSet": "ISO_IR 192",
        "StudyInstanceUID": "1.2.3",
        "PatientID": "SIM-1",
        "PatientName": "Müller^Jörg^^Dr^Jr",
        "AccessionNumber": "A/1|2",
    }
    assert check_reidentified(export.save("good", export.dataset("OT", **whole)), DICOM, MAP) is None
    assert check_reidentified(export.save("bad", export.dataset("OT", **whole | values)), DICOM, MAP) is reason


def test_what_lies_outside_of_every_element_is_looked_at(export):
    values = {"StudyInstanceUID": "1.2.3", "PatientName": "", "AccessionNumber": "", "PatientID": "SIM-1"}
    dataset = export.dataset("OT", **values)
    dataset.preamble = ID.encode().ljust(128)
    assert check_reidentified(export.save("object", dataset), DICOM, MAP) is Held.LEFT


def test_a_reference_that_leads_nowhere_is_noticed(export):
    def check(referenced, sop_class="1.2.840.10008.5.1.4.1.1.2", own=()):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, referenced
        values = {"StudyInstanceUID": "1.2.3", "PatientID": "", "PatientName": "", "AccessionNumber": ""}
        dataset = export.dataset("OT", PatientBirthDate="", SourceImageSequence=[item], **values)
        return check_reidentified(export.save("object", dataset), DICOM, MAP, own)

    assert check("1.2.3.4.5") is None
    assert check("1.2.9", own=["1.2.9"]) is None
    assert check("1.2.9", "1.2.840.10008.3.1.2.3.1") is None  # a study, which is no stored instance
    assert check("1.2.9") is Held.DANGLING
    assert check("2.25.99") is Held.DANGLING


# Documents, pictures and text.


@pytest.fixture
def document(tmp_path):
    """Sends a file back; gives its new content, or why it does not go on."""

    def send(content, media):
        path, target = tmp_path / "file", tmp_path / "back"
        path.write_bytes(content)
        try:
            found = reidentify_file(path, target, media, MAP).found
        except HeldError as error:
            return error.reason
        assert bool(found) == (target.read_bytes() != content)
        assert check_reidentified(target, media, MAP) is None
        return target.read_bytes()

    return send


@pytest.mark.parametrize(
    "line",
    [
        ID,
        NAME.title(),
        f"accession{ACCESSION}x",
        f"{ID[:8]} {ID[8:]}",
        ID[:12],
        IMAGE,
        f"{SENT_DAY[6:]}.{SENT_DAY[4:6]}.{SENT_DAY[:4]}",
    ],
)
def test_a_pdf_with_a_pseudonym_is_held(document, line):
    assert document(a_pdf("SIMULATED", line), PDF) is Held.IN_DOCUMENT


@pytest.mark.parametrize(
    "change",
    [
        lambda page: page.set_title(f"Report of {ID}"),
        lambda page: page.set_keywords(NAME),
        lambda page: page.text_annotation(10, 10, f"see {ID}"),
        lambda page: page.embed_file(bytes=ID.encode() * 9, basename="x.txt", compress=True),
        lambda page: page.set_xmp_metadata(f"<x>{STUDY}</x>"),
        lambda page: page.start_section(ID),
    ],
    ids=["title", "keywords", "annotation", "attachment", "metadata", "outline"],
)
def test_a_pseudonym_beside_a_pdf_s_pages_is_found(document, change):
    assert document(a_pdf("SIMULATED", change=change), PDF) is Held.IN_DOCUMENT


def test_a_pdf_without_one_goes_on_as_it_is(document):
    content = a_pdf("SIMULATED, of 17 May 2024")
    assert document(content, PDF) == content


def test_a_pdf_that_cannot_be_searched_is_held(document):
    writer = PdfWriter(clone_from=PdfReader(BytesIO(a_pdf("SIMULATED"))))
    writer.encrypt("secret")
    stream = BytesIO()
    writer.write(stream)
    assert document(stream.getvalue(), PDF) is Held.UNREADABLE
    assert document(b"%PDF-1.4 and no more", PDF) is Held.UNREADABLE
    picture = Image.fromarray(np.zeros((9, 9), np.uint8))
    assert document(a_pdf(change=lambda page: page.image(picture)), PDF) is Held.NO_TEXT


def a_png(**texts):
    stream, info = BytesIO(), PngImagePlugin.PngInfo()
    for name, text in texts.items():
        if name == "plain":
            info.add_text("Title", text)
        elif name == "compressed":
            info.add_text("Title", text, zip=True)
        else:
            info.add_itxt("Title", text, zip=name == "international_compressed")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["plain", "compressed", "international", "international_compressed"])
def test_what_is_written_beside_a_picture_is_searched(document, kind):
    assert document(a_png(**{kind: f"of {ID}, " * 20}), PNG) is Held.IN_PICTURE
    content = a_png(**{kind: "SIMULATED " * 20})
    assert document(content, PNG) == content


def test_a_jpeg_s_comment_is_searched(document):
    stream = BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(stream, "JPEG", comment=f"of {ID}".encode())
    assert document(stream.getvalue(), JPEG) is Held.IN_PICTURE
    stream = BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(stream, "JPEG")
    assert document(stream.getvalue(), JPEG) == stream.getvalue()


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("codec", ["utf-8", "utf-16"])
def test_json_stays_json(document, ensure_ascii, codec):
    sent = {
        "id": ID,
        "name": NAME,
        ID: {"study": STUDY, "dates": [SENT_DAY, int("7" * 8)], "text": f'«{NAME}» \\ "{ACCESSION}"'},
        "score": 0.123456789012345678,
        "escaped": "\u00e9\n",
    }
    content = json.dumps(sent, ensure_ascii=ensure_ascii, indent=1).encode(codec)
    found = json.loads(document(content, JSON))
    assert found == {
        "id": "SIM-1",
        "name": "Müller^Jörg^^Dr^Jr",
        "SIM-1": {"study": "1.2.3", "dates": [DAY, int("7" * 8)], "text": '«Müller Jörg Dr Jr» \\ "A/1|2"'},
        "score": 0.123456789012345678,
        "escaped": "\u00e9\n",
    }


def test_json_that_hides_a_pseudonym_or_is_none(document):
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in ID)
    assert json.loads(document(f'{{"id": "{escaped}"}}'.encode(), JSON)) == {"id": "SIM-1"}
    assert document(f'{{"id": "{ID}"'.encode(), JSON) is Held.UNREADABLE
    assert document(f'{{"day": {SENT_DAY}}}'.encode(), JSON) is Held.LEFT  # a number is not replaced


def test_a_date_that_is_another_one_s_pseudonym_is_put_back_and_no_reason_to_hold(document, tmp_path):
    chained = replace(MAP, dates={"20200101": "20220202", "20220202": "20240303"})
    (tmp_path / "file").write_text("20200101 and 20220202")
    back = reidentify_file(tmp_path / "file", tmp_path / "back", TEXT, chained).path
    assert back.read_text() == "20220202 and 20240303"
    assert check_reidentified(back, TEXT, chained) is None


def an_hl7(name=NAME, charset="UNICODE UTF-8", separators="|^~\\&", text="Nothing suspected."):
    field = separators[0]
    header = field.join(["MSH" + separators, *["X"] * 6, "ORU^R01", "1", "T", "2.5", "", "", "", "", "", charset])
    return "\r".join(
        [
            header,
            field.join(["PID", "1", "", f"{ID}^^^SIM", "", name, "", "", "F"]),
            field.join(["OBR", "1", "", ACCESSION, "", "", "", SENT_DAY + "101500"]),
            field.join(["OBX", "1", "TX", "", "", text]),
            "",
        ]
    ).encode()


def test_hl7_stays_hl7(document):
    found = document(an_hl7(text=f"Patient {NAME}, {STUDY}"), HL7).decode()
    pid, obr, obx = (line.split("|") for line in found.split("\r")[1:4])
    assert pid[3] == "SIM-1^^^SIM"
    assert pid[5] == "Müller^Jörg^^Jr^Dr"  # in HL7, the suffix comes before the prefix
    assert obr[3] == "A/1\\F\\2"
    assert obr[7] == DAY + "101500"
    assert obx[5] == "Patient Müller Jörg Dr Jr, 1.2.3"


@pytest.mark.parametrize("charset", ["8859/1", "8859/1~UNICODE UTF-8"])
def test_hl7_in_its_own_character_set(document, charset):
    assert "Müller".encode("latin-1") in document(an_hl7(charset=charset), HL7)


@pytest.mark.parametrize("charset", ["", "ASCII", "JAS2020", "8859/5"])
def test_a_name_that_hl7_cannot_be_relied_on_to_hold_is_held(document, charset):
    assert document(an_hl7(charset=charset), HL7) is Held.CHARACTER_SET


def test_hl7_that_is_none_is_held(document):
    assert document(f"MSH {ID}".encode(), HL7) is Held.UNREADABLE
    assert document(f"\x0bPID|1||{ID}".encode(), HL7) is Held.UNREADABLE


@pytest.mark.parametrize(
    ("name", "written"),
    [("=山田^太郎", "山田^太郎"), ("Yamada^Tarou=山田^太郎", "Yamada^Tarou"), ("Ä|B^C&D", "Ä\\F\\B^C\\T\\D"), ("", "")],
)
def test_names_of_every_form_in_hl7(tmp_path, name, written):
    (tmp_path / "file").write_bytes(an_hl7())
    named = replace(MAP, source=replace(SOURCE, patient_name=name))
    reidentify_file(tmp_path / "file", tmp_path / "back", HL7, named)
    assert (tmp_path / "back").read_bytes().decode().split("\r")[1].split("|")[5] == written


def test_utf_8_that_was_read_as_latin_1_goes_back_as_what_it_is(tmp_path):
    misread = replace(MAP, source=replace(SOURCE, patient_name="Žižka".encode().decode("latin-1")))
    (tmp_path / "file").write_text(NAME)
    reidentify_file(tmp_path / "file", tmp_path / "back", TEXT, misread)
    assert (tmp_path / "back").read_text() == "Žižka"


def test_html_stays_html(document):
    name = "".join(f"&#{ord(letter)};" for letter in NAME)
    found = document(f"<p title='{ACCESSION}'>{NAME} {IMAGE}</p>".encode(), HTML)
    assert found == b"<p title='A/1|2'>M&#252;ller J&#246;rg Dr Jr 1.2.3.4.5</p>"
    assert document(f"<p>{name}</p>".encode(), HTML) is Held.LEFT


def test_plain_text_and_what_is_of_no_known_kind(document):
    assert document(f"{ID}: {NAME}".encode(), "application/octet-stream") == "SIM-1: Müller Jörg Dr Jr".encode()
    assert document(b"nothing here", TEXT) == b"nothing here"
    assert document(b"PK\x03\x04\0\0" + bytes(9), "application/octet-stream") is Held.UNKNOWN
    assert document(b"anything", "application/zip") is Held.UNKNOWN
    assert document(f"on {SENT_DAY}101500".encode(), TEXT) == f"on {DAY}101500".encode()


@pytest.mark.parametrize(
    "form",
    ["%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d %B %Y", "%d-%b-%Y", "%b %d, %Y", "%Y-%m-%dT10:15"],
)
def test_dates_in_every_usual_form(document, form):
    sent, meant = (pydicom.valuerep.DA(day).strftime(form) for day in (SENT_DAY, DAY))
    assert document(f"({sent})".encode(), TEXT) == f"({meant})".encode()


def test_a_date_that_can_be_read_in_two_ways_is_held(tmp_path):
    twofold = replace(MAP, dates={"20200304": "20210507"})
    path = tmp_path / "file"
    for text, result in (("03/04/2020", b"05/07/2021"), ("04/03/2020", b"07/05/2021")):
        path.write_text(text)
        reidentify_file(path, tmp_path / "back", TEXT, twofold)
        assert (tmp_path / "back").read_bytes() == result
    for dates in ({"20200303": "20210507"}, {"20200304": "20210507", "20200403": "20210606"}):
        path.write_text("03/03/2020" if "20200303" in dates else "03/04/2020")
        with pytest.raises(HeldError, match="two ways"):
            reidentify_file(path, tmp_path / "back", TEXT, replace(MAP, dates=dates))


def test_numbers_that_only_contain_a_date_or_a_uid_stay(document):
    for text in (f"1{SENT_DAY}", f"{SENT_DAY}7", f"A{SENT_DAY}", f"{IMAGE}7", f"{IMAGE}.7", f"7{IMAGE}", "2.25.7"):
        assert document(text.encode(), TEXT) == text.encode()
    assert document(f"see {IMAGE}.".encode(), TEXT) == b"see 1.2.3.4.5."


WORDS = st.text(st.characters(codec="ascii", exclude_characters="0123456789\0"), max_size=30)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(WORDS, st.sampled_from([ID, ACCESSION, STUDY, IMAGE])), min_size=1, max_size=6), WORDS)
def test_every_text_comes_back_as_it_would_have_been(tmp_path, parts, end):
    meant = {ID: SOURCE.patient_id, ACCESSION: SOURCE.accession_number, **MAP.uids}
    sent = " ".join(f"{before} {pseudonym}" for before, pseudonym in parts) + f" {end}"
    source = " ".join(f"{before} {meant[pseudonym]}" for before, pseudonym in parts) + f" {end}"
    (tmp_path / "file").write_bytes(sent.encode())
    reidentify_file(tmp_path / "file", tmp_path / "back", TEXT, MAP)
    assert (tmp_path / "back").read_bytes() == source.encode()


def test_what_a_file_has_can_be_asked_without_changing_it(export, tmp_path):
    path = export.save("result.dcm", a_result(export))
    assert find_pseudonyms(path, DICOM, MAP) == set(Trace)
    (tmp_path / "text").write_text(f"of {ID}")
    assert find_pseudonyms(tmp_path / "text", TEXT, MAP) == {Trace.PATIENT_ID}
    with pytest.raises(HeldError):
        find_pseudonyms(tmp_path / "text", "video/mp4", MAP)


def test_a_reason_names_no_value(document):
    for reason in Held:
        assert str(reason).startswith("held: ")
    error = HeldError(Held.LEFT)
    assert (str(error), error.reason) == (str(Held.LEFT), Held.LEFT)
