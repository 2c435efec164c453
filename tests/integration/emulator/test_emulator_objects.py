"""The DICOM objects, judged by programs that are not ours."""

import shutil
import subprocess

import pytest
from emulator_images import a_ct, an_xray

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dicom3tools"),
    pytest.mark.skipif(not shutil.which("dsrdump"), reason="needs dcmtk"),
]


@pytest.fixture(
    params=[
        lambda: an_xray(1),
        lambda: a_ct("HEAD"),
        lambda: a_ct("CHEST"),
        lambda: an_xray(1, BodyPartExamined="HAND"),
    ]
)
def objects(request, client, control, tmp_path):
    control.configure(abnormal_share=1)
    upload = request.param()
    client.upload(upload)
    client.get(f"/compute/{upload.series}")
    uid = upload.sop if upload.datasets[0].Modality == "CR" else upload.series
    paths = {}
    for kind, urls in client.get(f"/results/{uid}").json()["result"]["files"].items():
        for index, url in enumerate(urls):
            content = client.file(url).content
            if content[128:132] == b"DICM":
                paths[kind, index] = tmp_path / f"{kind}-{index}.dcm"
                paths[kind, index].write_bytes(content)
    upload.datasets[0].save_as(tmp_path / "source.dcm")
    return paths


def _errors(path):
    found = subprocess.run(
        ["dciodvfy", "-new", path], capture_output=True, text=True, encoding="latin-1", check=False, timeout=60
    )
    return {line for line in found.stderr.splitlines() if line.startswith("Error")}


def test_every_object_keeps_its_definition(objects):
    assert {kind for kind, _ in objects} >= {"sc"}
    for (kind, _), path in objects.items():
        # The copy of the original may have wrong what the original has.
        excused = _errors(path.with_name("source.dcm")) if kind == "original" else set()
        assert _errors(path) - excused == set(), kind


def test_the_study_is_of_one_patient(objects):
    paths = [path for (kind, _), path in objects.items() if kind != "original"]
    source = paths[0].with_name("source.dcm")
    found = subprocess.run(
        ["dcentvfy", source, *paths], capture_output=True, text=True, encoding="latin-1", check=False, timeout=60
    )
    assert [line for line in found.stderr.splitlines() if line.startswith("Error")] == []


def test_the_text_report_can_be_read(objects):
    for (kind, _), path in objects.items():
        if kind in {"sr", "report_sr"}:
            read = subprocess.run(
                ["dsrdump", path], capture_output=True, text=True, encoding="latin-1", check=True, timeout=60
            )
            assert "Basic Text SR Document" in read.stdout
            assert "SIMULATED, NOT FOR CLINICAL USE" in read.stdout


def test_dcmtk_reads_every_object(objects):
    for path in objects.values():
        subprocess.run(["dcmftest", path], check=True, timeout=60, stdout=subprocess.DEVNULL)
        read = subprocess.run(
            ["dcmdump", "-E", path], capture_output=True, text=True, encoding="latin-1", check=True, timeout=60
        )
        assert read.stderr == ""
