"""The files of a result: real ones, of the right study, and marked so that nobody takes them for findings."""

import io
import json
import time

import pydicom
import pytest
import requests
from emulator_images import Uploaded, a_ct, an_xray, read
from PIL import Image

from qure_provider.emulator.model import OtherPatient

MARK = "SIMULATED, NOT FOR CLINICAL USE"
SAME = (
    "StudyInstanceUID",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyDate",
    "StudyID",
    "SpecificCharacterSet",
)
SOP_CLASSES = {
    "sc": "1.2.840.10008.5.1.4.1.1.7",
    "sc_key_slices": "1.2.840.10008.5.1.4.1.1.7",
    "report_dcm": "1.2.840.10008.5.1.4.1.1.104.1",
    "encapsulated_pdf": "1.2.840.10008.5.1.4.1.1.104.1",
    "report_sr": "1.2.840.10008.5.1.4.1.1.88.11",
    "sr": "1.2.840.10008.5.1.4.1.1.88.11",
    "gsps": "1.2.840.10008.5.1.4.1.1.11.1",
    "seg": "1.2.840.10008.5.1.4.1.1.66.4",
}


def _files(client, upload, path="/results/{}"):
    if client.get(f"/results/v2/{upload.sop}").status_code == 404:
        client.upload(upload)
        client.get(f"/compute/{upload.series}")
    uid = upload.sop if upload.datasets[0].Modality == "CR" else upload.series
    return client.get(path.format(uid)).json()["result"]["files"]


def _contents(client, files):
    return {(kind, index): client.file(url).content for kind, urls in files.items() for index, url in enumerate(urls)}


def _dicom(contents):
    return {
        name: pydicom.dcmread(io.BytesIO(content)) for name, content in contents.items() if content[128:132] == b"DICM"
    }


@pytest.fixture(params=["chest X-ray", "hand X-ray", "head CT", "chest CT"])
def upload(request):
    return {
        "chest X-ray": lambda: an_xray(BodyPartExamined="CHEST"),
        "hand X-ray": lambda: an_xray(BodyPartExamined="HAND"),
        "head CT": lambda: a_ct("HEAD", 4),
        "chest CT": lambda: a_ct("CHEST", 4),
    }[request.param]()


def test_dicom_objects_belong_to_the_study_and_are_not_its_images(client, upload):
    objects = _dicom(_contents(client, _files(client, upload)))
    assert {SOP_CLASSES[kind] for kind, _ in objects if kind != "original"} == {
        made.SOPClassUID for (kind, _), made in objects.items() if kind != "original"
    }
    source = upload.datasets[0]
    uids = []
    for (kind, _), made in objects.items():
        assert {keyword: made.get(keyword) for keyword in SAME} == {keyword: source.get(keyword) for keyword in SAME}
        assert MARK in made.SeriesDescription
        assert "SIMULATED" in made.Manufacturer
        assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
        if kind == "original":
            assert made.SOPInstanceUID in upload.sops
            continue
        assert made.SOPInstanceUID not in upload.sops
        assert made.SeriesInstanceUID != upload.series
        uids.append(made.SOPInstanceUID)
    assert len(uids) == len(set(uids))


def test_references_point_at_what_was_sent(client, upload):
    for (kind, _), made in _dicom(_contents(client, _files(client, upload))).items():
        if kind == "original":
            continue
        referenced = {element.value for element in made.iterall() if element.keyword == "ReferencedSOPInstanceUID"}
        assert referenced
        assert referenced <= set(upload.sops)


def test_every_file_is_of_its_type_and_marked(client, upload, control):
    control.configure(abnormal_share=1)
    for (kind, _), content in _contents(client, _files(client, upload)).items():
        if content[128:132] == b"DICM":
            assert MARK.encode() in content
        elif kind in {"report_pdf", "pdf"}:
            assert content.startswith(b"%PDF-")
        elif kind == "json":
            body = json.loads(content)
            assert (body["simulated"], body["SeriesInstanceUID"]) == (MARK, upload.series)
        elif kind == "hl7":
            segments = content.decode().split("\r")
            assert segments[0].startswith("MSH|^~\\&|")
            assert segments[0].split("|")[8] == "ORU^R01^ORU_R01"
            assert f"NTE|1||{MARK}" in segments
            (pid,) = (segment for segment in segments if segment.startswith("PID"))
            assert pid.split("|")[3:6] == ["SIM-1", "", "Müller^Simulated"]
            (obr,) = (segment for segment in segments if segment.startswith("OBR"))
            assert obr.split("|")[18] == "SIM-A-1"
        else:
            picture = Image.open(io.BytesIO(content))
            assert picture.format == "PNG"
            assert picture.text["Comment"] == MARK


def test_a_capture_shows_the_image_and_its_mark(client):
    xray = an_xray()
    objects = _dicom(_contents(client, _files(client, xray)))
    with_report, without = (objects["sc", index] for index in (0, 1))
    assert with_report.Columns > without.Columns
    pixels = without.pixel_array
    assert max(pixels.shape) <= 512
    banner, middle = pixels[:20], pixels[without.Rows // 2 - 20 : without.Rows // 2 + 20]
    assert (banner == (255, 208, 0)).all(axis=-1).any()
    assert middle.std() > 10


def test_the_text_report_says_what_the_result_says(client, control):
    xray = an_xray()
    control.plan(xray.sop, findings=["nodule"])
    files = _files(client, xray)
    report = pydicom.dcmread(io.BytesIO(client.file(files["report_sr"][0]).content))
    texts = [item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT"]
    answer = client.get(f"/results/v2/{xray.sop}").json()["result"]["report"]
    assert answer["impression"] in texts
    assert all(line in texts for line in answer["findings"].split("\n\n"))
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")


def test_the_original_is_a_lossy_copy_under_its_own_uid(client):
    xray = an_xray()
    original = pydicom.dcmread(io.BytesIO(client.file(_files(client, xray)["original"][0]).content))
    assert original.SOPInstanceUID == xray.sop
    assert original.LossyImageCompression == "01"
    assert MARK in original.DerivationDescription
    assert original.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.50"
    assert original.pixel_array.shape == xray.datasets[0].pixel_array.shape


def test_the_same_result_has_the_same_objects_and_a_new_one_new_objects(client):
    ct = a_ct("HEAD")
    first = {name: made.SOPInstanceUID for name, made in _dicom(_contents(client, _files(client, ct))).items()}
    again = {name: made.SOPInstanceUID for name, made in _dicom(_contents(client, _files(client, ct))).items()}
    assert again == first
    client.get(f"/compute/{ct.series}", json={"recompute": True})
    new = {name: made.SOPInstanceUID for name, made in _dicom(_contents(client, _files(client, ct))).items()}
    assert all((new[name] == first[name]) is (name[0] == "original") for name in first)


def test_an_earlier_revision_stays_as_it_was(client):
    ct = a_ct("HEAD", 2)
    client.upload(Uploaded(ct.datasets[:1]))
    client.get(f"/compute/{ct.series}")
    url = client.get(f"/results/{ct.series}").json()["result"]["files"]["sc"][0]
    before = client.file(url).content
    client.upload(Uploaded(ct.datasets[1:]))
    client.get(f"/compute/{ct.series}", json={"recompute": True})
    assert client.file(url).content == before


def test_slices_without_a_place_have_no_segmentation(client):
    ct = a_ct("CHEST", 2)
    for dataset in ct.datasets:
        del dataset.ImagePositionPatient
    assert "seg" not in _files(client, ct)


@pytest.mark.parametrize("name", ["RG1_J2KR.dcm", "JPEG-LL.dcm", "SC_rgb.dcm", "color3d_jpeg_baseline.dcm"])
def test_a_picture_that_cannot_be_read_or_is_colour_has_its_files_too(client, name):
    dataset = read(name)
    dataset.Modality = "CR"
    files = _files(client, Uploaded([dataset]), "/results/v2/{}")
    for urls in files.values():
        assert client.file(urls[0]).status_code == 200


def test_what_the_source_lacks_is_no_obstacle(client):
    ct = a_ct("CHEST", 2)
    for dataset in ct.datasets:
        for keyword in ("PatientName", "PatientSex", "StudyDate", "StudyID", "SpecificCharacterSet", "AccessionNumber"):
            delattr(dataset, keyword)
        dataset.PatientSex = "X"
        dataset.PatientBirthDate = ""
        dataset.StudyInstanceUID = "1.2.840.0099.1"
    for name, made in _dicom(_contents(client, _files(client, ct))).items():
        assert made.StudyInstanceUID == "1.2.840.0099.1", name
        assert made.PatientSex == "X"


def test_a_file_url_refuses_our_token(client):
    url = _files(client, an_xray())["sc"][0]
    refused = client.session.get(url, timeout=10)
    assert refused.status_code == 400
    assert "<Code>InvalidArgument</Code>" in refused.text
    assert client.file(url).status_code == 200


def test_a_file_url_expires(client, control):
    control.configure(url_seconds=1)
    url = _files(client, an_xray())["sc_thumbnail"][0]
    time.sleep(1.1)
    refused = client.file(url)
    assert (refused.status_code, "AccessDenied" in refused.text) == (403, True)


def test_a_file_url_cannot_be_altered(client):
    url = _files(client, an_xray())["sc"][0]
    opaque, expires = url.rsplit("/", 1)[1].split("?expires=")
    for other in (
        url.replace(expires, str(int(expires) + 1000)),
        url.replace(opaque, opaque[:-4] + "AAAA"),
        url.replace(opaque, "short"),
        url.replace(opaque, "%C3%BC"),
        url.partition("?")[0],
    ):
        assert client.file(other).status_code == 403


def test_a_file_of_a_result_that_is_gone_is_404(client, control):
    url = _files(client, an_xray())["sc"][0]
    control.forget_everything()
    assert client.file(url).status_code == 404


def test_a_file_url_says_nothing_of_what_it_gives(client):
    url = _files(client, an_xray())["report_pdf"][0]
    answer = client.file(url)
    assert answer.headers["content-type"] == "binary/octet-stream"
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_file_urls_may_be_plain_and_need_the_token(client, control):
    control.configure(presigned=False)
    url = _files(client, an_xray())["sc"][0]
    assert client.file(url).status_code == 401
    assert client.session.get(url, timeout=10).status_code == 200


def test_file_urls_may_be_of_another_host(client, control):
    control.configure(url_host="localhost")
    url = _files(client, an_xray())["sc"][0]
    assert url.startswith("http://localhost:")
    assert requests.get(url, timeout=10).status_code == 200


def test_a_missing_file_is_offered_and_404(client, control):
    xray = an_xray()
    control.plan(xray.sop, missing=["report_sr"])
    files = _files(client, xray)
    assert client.file(files["report_sr"][0]).status_code == 404
    assert client.file(files["sc"][0]).status_code == 200


def test_planned_attributes_go_into_the_objects(client, control):
    xray = an_xray()
    control.plan(
        xray.sop,
        attributes={"*": {"PatientID": "SIM-OTHER"}, "report_dcm": {"PatientName": None, "SOPInstanceUID": xray.sop}},
    )
    objects = _dicom(_contents(client, _files(client, xray)))
    assert {made.PatientID for made in objects.values()} == {"SIM-OTHER"}
    assert "PatientName" not in objects["report_dcm", 0]
    assert objects["report_dcm", 0].SOPInstanceUID == xray.sop
    assert objects["report_dcm", 0].file_meta.MediaStorageSOPInstanceUID == xray.sop
    assert objects["sc", 0].PatientName == "Müller^Simulated"


def test_another_patients_object_comes_once(client, control):
    url = _files(client, an_xray())["sc"][0]
    control.inject(OtherPatient())
    ids = [pydicom.dcmread(io.BytesIO(client.file(url).content)).PatientID for _ in range(2)]
    assert ids == ["SIMULATED-OTHER", "SIM-1"]
