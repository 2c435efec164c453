"""Orthanc of the system's packages, with its DICOMweb plugin, as a SIMULATED hospital's archive."""

import contextlib
import json
from pathlib import Path

import pytest
import requests

from .programs import free_port, needed, running

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


@contextlib.contextmanager
def a_running_orthanc(folder):
    """Run one, which keeps what it gets in a folder, until the end of the block."""
    program = needed("Orthanc")
    plugin = next((path for path in DICOMWEB_PLUGIN if Path(path).exists()), None)
    if plugin is None:
        pytest.skip("Orthanc's DICOMweb plugin is not installed")
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
