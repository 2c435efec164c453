"""The SIMULATED hospital that the demo delivers to: an archive, a RIS, an EHR and people's mail on this machine."""

from __future__ import annotations

import email
import email.policy
import json
import os
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.processes import Processes

ROOT = Path(__file__).resolve().parent.parent
PATIENT_SYSTEM = "urn:simulated:patients"
AE_TITLE = "ARCHIVE"
NOTIFIERS = [
    {
        "path": "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
        "kwargs": {
            "smtp_conn_id": "mail",
            "to": "duty@hospital.example",
            "subject": "AI result: {{ alert.meaning }}, study {{ alert.study_ref }}",
            "html_content": "{{ alert.text }}",
        },
    }
]
"""What ``[qure] notifiers`` says, so that the people on duty get a mail."""


@dataclass(frozen=True, slots=True)
class Hospital:
    """Running receivers.

    Attributes:
        folder: Where the archive's objects and the RIS's messages lie; Orthanc keeps its own.
        archive_port: The archive's DICOM port.
        orthanc_url: Orthanc's web address, where it is installed; empty where our own archive stands in.
        ris_port: The RIS's MLLP port.
        mail_port: The mail server's SMTP port.
        ehr_url: The EHR's FHIR base URL.
    """

    folder: Path
    archive_port: int
    orthanc_url: str
    ris_port: int
    mail_port: int
    ehr_url: str

    @property
    def connections(self) -> dict[str, dict[str, Any]]:
        """Airflow connections by id."""
        local = "127.0.0.1"
        return {
            "pacs": {
                "conn_type": "dicom",
                "host": local,
                "port": self.archive_port,
                "extra": {"called_ae_title": AE_TITLE, "prove": bool(self.orthanc_url)},
            },
            "ris": {"conn_type": "mllp", "host": local, "port": self.ris_port, "extra": {"processing_id": "T"}},
            "ehr": {
                "conn_type": "fhir",
                "host": self.ehr_url,
                "extra": {"patient_identifier_system": PATIENT_SYSTEM},
            },
            "mail": {
                "conn_type": "smtp",
                "host": local,
                "port": self.mail_port,
                "extra": {"disable_ssl": True, "disable_tls": True, "from_email": "airflow@hospital.example"},
            },
        }

    def arrived(self) -> dict[str, int]:
        """Count what each receiver has: DICOM objects, HL7 messages, FHIR reports."""
        if self.orthanc_url:
            objects = _get(f"{self.orthanc_url}/statistics")["CountInstances"]
        else:
            objects = len(list((self.folder / "archive").glob("*.dcm")))
        return {
            "pacs": objects,
            "ris": len(list((self.folder / "ris").glob("*.hl7"))),
            "ehr": len(_get(f"{self.ehr_url}DiagnosticReport").get("entry", [])),
        }

    def mails(self) -> list[Mail]:
        """Every mail that came, in order."""
        return [Mail(float(path.stem), _text(path)) for path in sorted((self.folder / "mail").glob("*.eml"))]


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail that came.

    Attributes:
        at: When, in seconds since the epoch.
        text: What it says.
    """

    at: float
    text: str


def start_hospital(processes: Processes, folder: Path, patients: Iterable[str], *, timeout: float = 60) -> Hospital:
    """Start the receivers on free ports of the loopback interface: Orthanc where it is installed, else our stand-in.

    Args:
        processes: What starts them and will end them.
        folder: New folder for what they get.
        patients: Patient IDs that the EHR knows.
        timeout: How long to wait for them, in seconds.

    Returns:
        The hospital, listening.

    Raises:
        RuntimeError: One of them did not start.
    """
    folder.mkdir(parents=True)
    port_file = folder / "ports.json"
    command = [sys.executable, "-m", "demo.receivers", "--folder", str(folder), "--port-file", str(port_file)]
    processes.start("receivers", command, env=os.environ, cwd=ROOT)
    known = [part for patient in sorted(patients) for part in ("--patient", f"{PATIENT_SYSTEM}|{patient}")]
    ehr_port = _free_port()
    ehr = [sys.executable, str(ROOT / "tests" / "support" / "fhir_server.py"), "--port", str(ehr_port), *known]
    processes.start("ehr", ehr, env=os.environ, cwd=ROOT)
    deadline = time.monotonic() + timeout
    _wait(port_file.exists, deadline, "The archive and the RIS")
    ports = json.loads(port_file.read_text(encoding="utf-8"))
    _wait(lambda: _listens(ehr_port), deadline, "The EHR")
    archive_port, orthanc_url = ports["archive"], ""
    if program := shutil.which("Orthanc"):
        archive_port, web_port = _free_port(), _free_port()
        orthanc_url = f"http://127.0.0.1:{web_port}"
        settings = folder / "orthanc.json"
        settings.write_text(json.dumps(_orthanc(folder / "orthanc", archive_port, web_port)), encoding="utf-8")
        processes.start("orthanc", [program, str(settings)], env=os.environ, cwd=folder)
        _wait(lambda: _listens(web_port) and _listens(archive_port), deadline, "Orthanc")
    return Hospital(
        folder, archive_port, orthanc_url, ports["ris"], ports["mail"], f"http://127.0.0.1:{ehr_port}/fhir/"
    )


def _orthanc(folder: Path, archive_port: int, web_port: int) -> dict[str, Any]:
    return {
        "Name": "SIMULATED",
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomAet": AE_TITLE,
        "DicomPort": archive_port,
        "HttpPort": web_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowEcho": True,
    }


def _text(path: Path) -> str:
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    body = message.get_body(("html", "plain"))
    return f"{message['Subject']}\n{body.get_content() if body else ''}".strip()


def _wait(condition: Any, deadline: float, who: str) -> None:
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{who} did not start; see the logs.")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        return json.load(answer)
