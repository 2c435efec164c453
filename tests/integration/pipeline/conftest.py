import json

import pytest
from pipeline_kit import Hospital, Pager
from tenacity import wait_none

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


@pytest.fixture
def connected(emulator, monkeypatch):
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
    return emulator


@pytest.fixture
def hospital(tmp_path, connected):
    return Hospital(tmp_path, connected)
