"""A de-identified night, judged by programs that know the standard: what left, and what an archive has afterwards."""

import base64
import json
import re
import shutil
import subprocess
from collections import defaultdict
from io import BytesIO
from types import SimpleNamespace

import pydicom
import pytest
import requests
from delivery_kit import Onward
from pipeline_kit import NIGHT, connect
from support.orthanc import a_running_orthanc
from support.programs import needed

from demo.export import make_export
from qure_provider.dicom.model import Fate

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]

KEY = base64.b64encode(b"a key for tests that nobody uses").decode()


def errors(program, *paths):
    """What a program finds wrong, whatever the UIDs and file names are."""
    done = subprocess.run([needed(program), *map(str, paths)], capture_output=True, timeout=120, check=False)
    lines = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
    return {re.sub(r"[0-9]+(\.[0-9]+){3,}|/\S+", "-", line) for line in lines if line.startswith("Error")}


@pytest.fixture(scope="module")
def night(tmp_path_factory, running):
    """A night of the demo's real images, de-identified, and delivered to the archive that has the images."""
    for program in ("dciodvfy", "dcentvfy"):
        needed(program)
    folder = tmp_path_factory.mktemp("night")
    with a_running_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc, pytest.MonkeyPatch.context() as environment:
        connect(environment, running)
        running.control.forget_everything()
        environment.setenv("AIRFLOW__QURE__IDENTITY_POLICY", "deidentify")
        key = {"conn_type": "qure_deidentify", "password": KEY}
        environment.setenv("AIRFLOW_CONN_QURE_DEIDENTIFY_DEFAULT", json.dumps(key))
        pacs = {"conn_type": "dicom", "host": "127.0.0.1", "port": orthanc.dicom_port}
        environment.setenv("AIRFLOW_CONN_PACS", json.dumps({**pacs, "extra": {"called_ae_title": "ORTHANC"}}))
        hospital = Onward(folder, running)
        facts = make_export(hospital.export, night=NIGHT, studies=4, small=True)
        sources = {}
        for file in facts.files:
            if file.fate is Fate.SELECTED:
                path = facts.folder / file.path
                sources[str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)] = path
                requests.post(f"{orthanc.url}/instances", data=path.read_bytes(), timeout=10).raise_for_status()
        hospital.process(hospital.plan())
        assert hospital.onward("pacs") == []
        received = {}
        for number, file in enumerate(running.control.received()):  # which the emulator forgets before each test
            received[file.sop_instance_uid] = folder / f"received-{number}"
            shutil.copyfile(file.path, received[file.sop_instance_uid])
        yield SimpleNamespace(hospital=hospital, orthanc=orthanc, sources=sources, received=received, folder=folder)


def test_nothing_is_wrong_with_what_was_received_that_was_not_wrong_before(night):
    with night.hospital.ledger() as ledger:
        ways_back = [ledger.pseudonyms.way_back(row.id) for row in night.hospital.rows().values()]
    source_of = {sent: source for way_back in ways_back for sent, source in way_back.uids.items()}

    assert {source_of[uid] for uid in night.received} == set(night.sources)
    for uid, path in night.received.items():
        source = night.sources[source_of[uid]]
        assert errors("dciodvfy", path) <= errors("dciodvfy", source), source.name


def test_each_study_is_one_study_in_the_archive_afterwards(night):
    images, kept = defaultdict(list), defaultdict(list)
    for row in night.orthanc.get("instances?expand"):
        uid = row["MainDicomTags"]["SOPInstanceUID"]
        path = night.folder / f"{uid}.dcm"
        dataset = pydicom.dcmread(BytesIO(night.orthanc.file(uid)))
        dataset.decode()
        dataset.SpecificCharacterSet = "ISO_IR 192"  # the program compares names byte for byte
        dataset.save_as(path)
        kept[dataset.StudyInstanceUID].append(path)
        if uid in night.sources:
            images[dataset.StudyInstanceUID].append(path)

    assert set(kept) == set(images) == {row.identity.study_instance_uid for row in night.hospital.rows().values()}
    for study, paths in kept.items():
        assert len(paths) > len(images[study]), "no result came back"
        assert errors("dcentvfy", *paths) <= errors("dcentvfy", *images[study])
