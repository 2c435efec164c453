"""What the tests of the hooks share: a connection, DICOM files, a service that can be scripted byte by byte."""

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from support.certificates import make_certificates
from tenacity import wait_none

from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings
from qure_provider.hooks import retry
from qure_provider.hooks.outgoing import OutgoingFile
from qure_provider.hooks.qure import QureHook

SETTINGS = EmulatorSettings(processing_seconds=0)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Tries follow each other at once, unless the service asks for a pause."""
    monkeypatch.setattr(retry, "BACKOFF", wait_none())


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def running():
    with running_emulator(SETTINGS) as emulator:
        yield emulator


@pytest.fixture
def emulator(running):
    running.control.forget_everything()
    running.control.clear_faults()
    running.control.configure(**SETTINGS.model_dump(mode="json", exclude={"host", "port", "storage"}))
    return running


@pytest.fixture
def connect(monkeypatch):
    """Define the connection ``qure_default``."""

    def define(base_url, *, token="t0ken", source="s0urce", **extra):
        fields = {"conn_type": "qure", "host": base_url, "password": token, "extra": {"source": source, **extra}}
        monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))

    return define


@pytest.fixture
def hook(connect, emulator):
    connect(emulator.base_url, token=emulator.token, source=emulator.source)
    with QureHook(operator="HookTest") as hook:
        yield hook


@pytest.fixture
def reconnect(connect, emulator):
    """Make a hook to the emulator with other settings of the connection."""
    hooks = []

    def make(**extra):
        connect(emulator.base_url, **{"token": emulator.token, "source": emulator.source, **extra})
        hooks.append(QureHook(operator="HookTest"))
        return hooks[-1]

    yield make
    for hook in hooks:
        hook.close()


class Exports:
    """Makes small, real CT and X-ray images with UIDs of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def series(self, count=1, modality="CT"):
        study, series = generate_uid(), generate_uid()
        return [self.file(study, series, modality) for _ in range(count)]

    def file(self, study, series, modality):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = study, series, modality
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.BodyPartExamined = "HEAD" if modality == "CT" else "CHEST"
        self.count += 1
        path = self.folder / f"DOE^JANE-{self.count}"
        dataset.save_as(path)
        return OutgoingFile(dataset.SOPInstanceUID, series, str(path), path.stat().st_size)


@pytest.fixture
def exports(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    return Exports(folder)


class Wire:
    """A server on loopback whose answers a test writes itself.

    ``answer(handler)`` gets the request handler, after the body was read into ``handler.body``.
    """

    def __init__(self, context=None, host="127.0.0.1"):
        self.requests = []
        self.answer = lambda handler: handler.reply(200)
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                length = int(self.headers.get("Content-Length", 0))
                self.body = self.rfile.read(length)
                wire.requests.append(SimpleNamespace(path=self.path, headers=self.headers, body=self.body))
                wire.answer(self)

            do_GET = do_POST = handle_one  # noqa: N815

            def reply(self, status, body=b"", content_type="application/json", **headers):
                body = json.dumps(body).encode() if not isinstance(body, bytes) else body
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer((host, 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = f"{'https' if context else 'http'}://{host}:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def wire():
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
def second_wire():
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Paths of an authority, and of a certificate and key for localhost that it signed."""
    return make_certificates(tmp_path_factory.mktemp("tls"))


def secure_wire(certificates, host):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates[1], certificates[2])
    return Wire(context, host)


@pytest.fixture
def tls_wire(certificates):
    wire = secure_wire(certificates, "127.0.0.1")
    yield wire
    wire.close()


@pytest.fixture
def misnamed_tls_wire(certificates):
    """Its certificate is for another address."""
    wire = secure_wire(certificates, "127.0.0.2")
    yield wire
    wire.close()
