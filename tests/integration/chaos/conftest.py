import pytest

from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings


@pytest.fixture(scope="session")
def emulator():
    with running_emulator(EmulatorSettings()) as running:
        yield running
