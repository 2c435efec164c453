import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tenacity import wait_none

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))

from delivery_kit import Onward, mllp_connection
from pipeline_kit import Pager
from support.hl7_receiver import Hl7Receiver

from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings
from qure_provider.hooks import retry
from qure_provider.triggers import alerts
from qure_provider.triggers import results as results_trigger

SETTINGS = EmulatorSettings(processing_seconds=0, abnormal_share=0)


@pytest.fixture(scope="session")
def running():
    with running_emulator(SETTINGS) as emulator:
        yield emulator


@pytest.fixture
def emulator(running):
    running.control.forget_everything()
    running.control.configure(**SETTINGS.model_dump(mode="json", exclude={"host", "port", "storage"}))
    return running


def connect(monkeypatch, emulator):
    """The connection ``qure_default`` leads to the emulator; nobody waits longer than a test can."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    fields = {"conn_type": "qure", "host": emulator.base_url, "password": emulator.token}
    extra = {"source": emulator.source, "requests_per_second": 1000}
    monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps({**fields, "extra": extra}))
    monkeypatch.setenv("AIRFLOW__QURE__IDENTITY_POLICY", "identified")
    monkeypatch.setattr(retry, "BACKOFF", wait_none())
    monkeypatch.setattr(alerts, "PAUSES_SECONDS", (0.0, 0.01, 0.01))
    Pager.reset()
    monkeypatch.setattr(results_trigger.random, "uniform", lambda low, high: low)


@pytest.fixture(autouse=True)
def connected(emulator, monkeypatch):
    connect(monkeypatch, emulator)


@pytest.fixture
def hospital(tmp_path, emulator):
    """A hospital before its night."""
    return Onward(tmp_path, emulator)


@pytest.fixture(scope="session")
def collected(tmp_path_factory, running):
    """A night that was collected: a chest film pair (the frontal one abnormal) and an urgent head CT."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        connect(monkeypatch, running)
        running.control.forget_everything()
        hospital = Onward(tmp_path_factory.mktemp("collected"), running)
        frontal, lateral = hospital.xray("chest", 2)
        head = hospital.ct("head", PatientID="SIM-2", PatientName="SIMULATED^OTHER", AccessionNumber="SIM-A2")
        running.control.plan(frontal.SOPInstanceUID, findings=("pneumothorax",))
        running.control.plan(head[0].SeriesInstanceUID, findings=("intracranial_hemorrhage",))
        hospital.process(hospital.plan())
        return SimpleNamespace(
            hospital=hospital,
            frontal=frontal.SOPInstanceUID,
            lateral=lateral.SOPInstanceUID,
            chest=frontal.StudyInstanceUID,
            head=head[0].StudyInstanceUID,
            head_series=head[0].SeriesInstanceUID,
        )


@pytest.fixture
def night(collected, tmp_path, emulator):
    """A copy of the collected night, whose results only wait to be delivered."""
    hospital = Onward.like(collected.hospital, tmp_path, emulator)
    for name in ("frontal", "lateral", "chest", "head", "head_series"):
        setattr(hospital, name, getattr(collected, name))
    return hospital


@pytest.fixture
def ris(monkeypatch):
    """A RIS that listens, under the connection id ``ris``."""
    with Hl7Receiver() as receiver:
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(receiver))
        yield receiver
