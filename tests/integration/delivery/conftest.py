import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))

from delivery_kit import Onward, mllp_connection
from pipeline_kit import connect
from support.hl7_receiver import Hl7Receiver

from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings

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
