import time

import pytest
import requests

from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings


class Client:
    """A client that sends what the documentation says, and nothing clever."""

    def __init__(self, emulator):
        self.emulator = emulator
        self.session = requests.Session()
        self.session.headers.update(emulator.headers)

    def upload(self, *uploads, path="/studies/", **arguments):
        files = {}
        for number, upload in enumerate(uploads):
            files |= {f"{number}_{key}": (f"{key}.dcm", content) for key, content in upload.files.items()}
        return self.session.post(self.emulator.base_url + path, files=files, timeout=30, **arguments)

    def get(self, path, **arguments):
        return self.session.get(self.emulator.base_url + path, timeout=30, **arguments)

    def file(self, url, **arguments):
        return requests.get(url, timeout=30, **arguments)

    def ready(self, path):
        """Ask for a result until it is there."""
        until = time.monotonic() + 10
        while (answer := self.get(path)).status_code == 202:
            assert time.monotonic() < until
            time.sleep(0.02)
        return answer


@pytest.fixture(scope="session")
def shared_emulator():
    with running_emulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(shared_emulator):
    control = shared_emulator.control
    control.forget_everything()
    fresh = EmulatorSettings(processing_seconds=0).model_dump(mode="json", exclude={"host", "port", "storage"})
    control.configure(**fresh | {"token": shared_emulator.token, "source": shared_emulator.source})
    return shared_emulator


@pytest.fixture
def control(emulator):
    return emulator.control


@pytest.fixture
def client(emulator):
    client = Client(emulator)
    yield client
    client.session.close()
