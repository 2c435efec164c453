import hashlib
import shutil
import subprocess
from collections import Counter, defaultdict
from itertools import pairwise

import pydicom
import pytest
from pydicom.data import get_testdata_file

from demo.export import make_export
from qure_provider.api.model import Route
from qure_provider.dicom.model import Fate
from qure_provider.dicom.scan import scan
from qure_provider.dicom.select import select

NIGHT = "2026-01-15"


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("exports") / NIGHT, night=NIGHT, studies=4, small=True)


@pytest.fixture(scope="module")
def selected(facts):
    """Headers of what should be selected, by path."""
    return {
        file.path: pydicom.dcmread(facts.folder / file.path, stop_before_pixels=True)
        for file in facts.files
        if file.fate is Fate.SELECTED
    }


def content(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_facts_name_every_file_once(facts):
    assert sorted(content(facts.folder)) == sorted(file.path for file in facts.files)
    assert facts.found == sum(facts.sums.values())
    assert min(facts.sums.values()) > 0


def test_a_night_made_again_is_the_same_and_another_night_is_another(facts, tmp_path):
    again = make_export(tmp_path / "again", night=NIGHT, studies=4, small=True)
    assert content(again.folder) == content(facts.folder)
    assert again.resources == facts.resources
    other = make_export(tmp_path / "other", night="2026-01-16", studies=4, small=True)
    assert not {each.uid for each in other.resources} & {each.uid for each in facts.resources}


def test_what_real_exports_contain_is_there(facts):
    what = " ".join(file.what for file in facts.files)
    for odd in (
        "DICOMDIR",
        "text file",
        "truncated",
        "duplicate",
        "MR",
        "SR",
        "empty",
        "without preamble",
        "localizer",
    ):
        assert odd in what
    names = [file.path for file in facts.files]
    assert any(" " in name and not name.isascii() for name in names)
    assert any("/" not in name for name in names)
    assert any(name.count("/") >= 3 for name in names)


def test_the_wanted_studies_are_there(facts, selected):
    images = Counter(each.series_instance_uid for each in facts.resources if each.route is Route.XRAY)
    assert sorted(images.values()) == [1, 1, 1, 1, 1, 2]
    assert Counter(each.product for each in facts.resources) == {"qxr": 6, "qmsk": 1, "qer": 2, "qct": 1}
    assert all(each.files >= 40 for each in facts.resources if each.route is Route.CT)
    assert [each.product for each in facts.urgent] == ["qer"]
    assert [each.triage for each in facts.resources if each.route is Route.XRAY].count("Critical") == 1


def test_each_resource_is_the_files_that_carry_its_uid(facts, selected):
    counted = defaultdict(Counter)
    for header in selected.values():
        uid = header.SeriesInstanceUID if header.Modality == "CT" else header.SOPInstanceUID
        counted[uid][header.StudyInstanceUID, header.SeriesInstanceUID] += 1
    expected = {e.uid: {(e.study_instance_uid, e.series_instance_uid): e.files} for e in facts.resources}
    assert counted == expected


def test_uids_are_unique_and_studies_consistent(facts, selected):
    assert len({header.SOPInstanceUID for header in selected.values()}) == len(selected)
    patients, series = defaultdict(set), defaultdict(set)
    for path in (file.path for file in facts.files if file.fate in (Fate.SELECTED, Fate.NOT_SELECTED)):
        header = pydicom.dcmread(facts.folder / path, stop_before_pixels=True)
        if "StudyInstanceUID" not in header:
            assert path == "CD/DICOMDIR"
            continue
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
        labels = (header.PatientID, str(header.PatientName), header.AccessionNumber, header.StudyDate, header.StudyTime)
        patients[header.StudyInstanceUID].add(labels)
        series[header.SeriesInstanceUID].add((header.StudyInstanceUID, header.Modality))
        assert str(header.PatientName).startswith("SIMULATED")
        assert header.PatientID.startswith("SIM-")
    assert all(len(each) == 1 for each in (*patients.values(), *series.values()))


def test_a_ct_series_has_a_true_geometry(facts, selected):
    for resource in facts.resources:
        if resource.route is not Route.CT:
            continue
        slices = [header for header in selected.values() if header.SeriesInstanceUID == resource.uid]
        slices.sort(key=lambda header: header.InstanceNumber)
        assert [header.InstanceNumber for header in slices] == list(range(1, len(slices) + 1))
        z = [float(header.ImagePositionPatient[2]) for header in slices]
        assert z == [float(header.SliceLocation) for header in slices]
        steps = {round(after - before, 3) for before, after in pairwise(z)}
        assert steps == {float(slices[0].SliceThickness)} == {float(slices[0].SpacingBetweenSlices)}
        assert len({header.FrameOfReferenceUID for header in slices}) == 1


def test_the_two_reconstructions_are_of_one_acquisition(facts):
    recon = {}
    for file in facts.files:
        if file.path.startswith("CD/PT"):
            header = pydicom.dcmread(facts.folder / file.path, stop_before_pixels=True)
            recon[header.SeriesInstanceUID] = (
                header.StudyInstanceUID,
                header.FrameOfReferenceUID,
                header.ConvolutionKernel,
                float(header.SliceThickness),
                file.fate,
            )
    (study, frame, *thin), (same_study, same_frame, *thick) = recon.values()
    assert (study, frame) == (same_study, same_frame)
    assert sorted([thin, thick], key=str) == [["BONE", 5.0, Fate.NOT_SELECTED], ["STANDARD", 1.25, Fate.SELECTED]]


def test_the_duplicate_and_the_damaged_are_what_they_are_said_to_be(facts):
    assert (facts.folder / "copies/CR000001 (2).dcm").read_bytes() == (facts.folder / "CR000001.dcm").read_bytes()
    header = pydicom.dcmread(facts.folder / "truncated.dcm", stop_before_pixels=True)
    assert (facts.folder / "truncated.dcm").stat().st_size < header.Rows * header.Columns * 2
    assert (facts.folder / "headless.dcm").read_bytes()[:2] == b"\x02\x00"
    assert (facts.folder / "empty.dcm").stat().st_size == 0


def test_the_pictures_are_the_samples(tmp_path):
    facts = make_export(tmp_path / NIGHT, night=NIGHT, studies=1)
    samples = {
        "XR CHEST/2.dcm": "RG1_UNCR",
        "IM_0001": "RG3_UNCR",
        "CR000001.dcm": "RG1_J2KR",
        "CT/HEAD/0040": "693_UNCR",
    }
    for path, name in samples.items():
        made, real = (
            pydicom.dcmread(facts.folder / path),
            pydicom.dcmread(get_testdata_file(f"{name}.dcm", download=False)),
        )
        assert made.PixelData == real.PixelData
        assert made.file_meta.TransferSyntaxUID == real.file_meta.TransferSyntaxUID


def test_all_values_fit_their_representation(facts, selected, monkeypatch):
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    for path in selected:
        str(pydicom.dcmread(facts.folder / path, stop_before_pixels=True))


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        make_export(tmp_path, night=NIGHT)


@pytest.mark.system
@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dicom3tools")
def test_what_is_selected_has_no_error_that_a_validator_finds(facts, selected):
    first_of_series = {header.SeriesInstanceUID: path for path, header in selected.items()}
    for path in first_of_series.values():
        said = subprocess.run(["dciodvfy", str(facts.folder / path)], capture_output=True, text=True).stderr
        assert "Error" not in said, path


def test_the_provider_reads_the_export_as_the_facts_have_it(facts):
    found = scan(facts.folder)
    selection = select(found)
    fates = {row.path: row.fate for row in (*found.passed_over, *selection.passed_over)}
    for chosen in selection.selected:
        fates |= {instance.path: Fate.SELECTED for instance in chosen.series.instances}
    assert found.found == facts.found
    assert fates == {file.path: file.fate for file in facts.files}
    resources = {(ref.uid, ref.route) for chosen in selection.selected for ref in chosen.resources}
    assert resources == {(each.uid, each.route) for each in facts.resources}
