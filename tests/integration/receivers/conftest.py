"""Programs of the system's packages that receive results: each on free ports of the loopback interface."""

import json
import os
from pathlib import Path

import pytest
import requests
from support.emulated_results import emulated
from support.programs import free_port, needed, running

from qure_provider.dicom.complete import complete_objects
from qure_provider.hooks.dicom import DicomHook
from qure_provider.hooks.dicomweb import DicomWebHook

DICOMWEB_PLUGIN = ("/usr/share/orthanc/plugins/libOrthancDicomWeb.so", "/usr/lib/orthanc/libOrthancDicomWeb.so")


class Orthanc:
    """A running Orthanc."""

    def __init__(self, dicom_port, http_port):
        self.dicom_port, self.http_port = dicom_port, http_port
        self.url = f"http://127.0.0.1:{http_port}"
        self.dicomweb_url = f"{self.url}/dicom-web"

    def get(self, path):
        return requests.get(f"{self.url}/{path}", timeout=10).json()

    @property
    def uids(self):
        return {row["MainDicomTags"]["SOPInstanceUID"] for row in self.get("instances?expand")}

    def tags(self, uid):
        (row,) = [row for row in self.get("instances?expand") if row["MainDicomTags"]["SOPInstanceUID"] == uid]
        return self.get(f"instances/{row['ID']}/simplified-tags")

    def file(self, uid):
        (row,) = [row for row in self.get("instances?expand") if row["MainDicomTags"]["SOPInstanceUID"] == uid]
        return requests.get(f"{self.url}/instances/{row['ID']}/file", timeout=10).content

    def forget(self):
        for patient in self.get("patients"):
            requests.delete(f"{self.url}/patients/{patient}", timeout=10).raise_for_status()


@pytest.fixture(scope="session")
def running_orthanc(tmp_path_factory):
    program = needed("Orthanc")
    plugin = next((path for path in DICOMWEB_PLUGIN if Path(path).exists()), None)
    if plugin is None:
        pytest.skip("Orthanc's DICOMweb plugin is not installed")
    folder = tmp_path_factory.mktemp("orthanc")
    orthanc = Orthanc(free_port(), free_port())
    settings = {
        "Name": "SIMULATED",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [plugin],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DicomPort": orthanc.dicom_port,
        "HttpPort": orthanc.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowEcho": True,
        "OverwriteInstances": True,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with running([program, str(folder / "orthanc.json")], [orthanc.dicom_port, orthanc.http_port], cwd=folder):
        yield orthanc


@pytest.fixture
def orthanc(running_orthanc):
    running_orthanc.forget()
    return running_orthanc


@pytest.fixture
def dicom_hook(monkeypatch):
    def make(port, called="ORTHANC", **extra):
        extra = {"called_ae_title": called, "response_timeout": 20, **extra}
        fields = {"conn_type": "dicom", "host": "127.0.0.1", "port": port, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_DICOM_DEFAULT", json.dumps(fields))
        return DicomHook()

    return make


@pytest.fixture
def dicomweb_hook(monkeypatch):
    hooks = []

    def make(url, **extra):
        fields = {"conn_type": "dicomweb", "host": url, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_DICOMWEB_DEFAULT", json.dumps(fields))
        hooks.append(DicomWebHook())
        return hooks[-1]

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    yield make
    for hook in hooks:
        hook.close()


@pytest.fixture(scope="session", params=["qxr", "qct", "qer"])
def result(request, tmp_path_factory):
    return emulated(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def qct(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("qct"), "qct")


@pytest.fixture
def completed(tmp_path):
    """Completes a result's objects."""

    def complete(result):
        folder = tmp_path / "completed"
        folder.mkdir(exist_ok=True)
        return complete_objects(result.objects, folder, result.identity, result.facts, result.sent)

    return complete
