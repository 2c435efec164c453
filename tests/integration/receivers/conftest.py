"""Programs of the system's packages that receive results: each on free ports of the loopback interface."""

import json
import os

import pytest
from support.emulated_results import emulated
from support.orthanc import a_running_orthanc

from qure_provider.dicom.complete import complete_objects
from qure_provider.hooks.dicom import DicomHook
from qure_provider.hooks.dicomweb import DicomWebHook


@pytest.fixture(scope="session")
def running_orthanc(tmp_path_factory):
    with a_running_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
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
