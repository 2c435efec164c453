import pytest
from pipeline_kit import Hospital, connect

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


@pytest.fixture
def connected(emulator, monkeypatch):
    """The connection ``qure_default`` leads to the emulator; nobody waits longer than a test can."""
    connect(monkeypatch, emulator)
    return emulator


@pytest.fixture
def hospital(tmp_path, connected):
    return Hospital(tmp_path, connected)
