"""A SIMULATED hospital's DICOMweb archive on loopback: it takes STOW-RS and answers QIDO-RS by what it has.

It reads requests with Python's own parser of multipart messages and shares no code with the provider.
"""

import email
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pydicom

_KEYS = {
    "studies": ("StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber", "PatientBirthDate", "PatientSex"),
    "instances": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
}
_UNIQUE = {"studies": "StudyInstanceUID", "instances": "SOPInstanceUID"}


class DicomWebArchive:
    """Listens on loopback for as long as a ``with`` block lasts.

    Attributes:
        url: The root of its services.
        received: The objects that it took, in order.
        refuses: Called with an object; gives a failure code, or 0 where it is taken.
    """

    def __init__(self):
        self.received = []
        self.refuses = lambda dataset: 0
        archive = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.reply(*archive._store(self.headers["Content-Type"], body))

            def do_GET(self):
                parts = urlsplit(self.path)
                self.reply(200, archive._search(parts.path, parse_qs(parts.query)))

            def reply(self, status, content):
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):
                """Say nothing of clients that went away."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/dicom-web"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def uids(self):
        return [dataset.SOPInstanceUID for dataset in self.received]

    def _store(self, content_type, body):
        message = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
        taken, failed = [], []
        for part in message.get_payload():
            dataset = pydicom.dcmread(io.BytesIO(part.get_payload(decode=True)))
            code = self.refuses(dataset)
            (failed if code else taken).append(_item(dataset, code))
            if not code:
                self.received.append(dataset)
        found = {"00081199": {"vr": "SQ", "Value": taken}, "00081198": {"vr": "SQ", "Value": failed}}
        status = 200 if not failed else 202 if taken else 409
        return status, {tag: value for tag, value in found.items() if value["Value"]}

    def _search(self, path, query):
        steps = path.removeprefix("/dicom-web/").split("/")
        what = steps[-1] if steps[-1] in _KEYS else "studies"
        asked = {name: values[0] for name, values in query.items() if name not in ("limit", "offset")}
        asked |= dict(zip(("StudyInstanceUID", "SeriesInstanceUID"), steps[1:-1:2], strict=False))
        found = {}
        for dataset in self.received:
            if all(str(dataset.get(key)) == value for key, value in asked.items()):
                answer = pydicom.Dataset()
                for key in (*_KEYS[what], "SpecificCharacterSet"):
                    if key in dataset:
                        answer[key] = dataset[key]
                found[dataset[_UNIQUE[what]].value] = answer.to_json_dict()
        return list(found.values())[int(query.get("offset", ["0"])[0]) :]


def _item(dataset, code):
    item = {
        "00081150": {"vr": "UI", "Value": [dataset.SOPClassUID]},
        "00081155": {"vr": "UI", "Value": [dataset.SOPInstanceUID]},
    }
    return item | ({"00081197": {"vr": "US", "Value": [code]}} if code else {})
