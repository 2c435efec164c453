"""The stand-in for the Qure service, as a program of its own."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from demo.export import ExpectedResource
from demo.processes import Processes
from qure_provider.emulator.control import EmulatorControl


@dataclass(frozen=True, slots=True)
class Service:
    """A running emulator.

    Attributes:
        url: Its base URL.
        token: The token that it takes.
        source: The Source that it takes.
        control: Plans results and counts requests.
    """

    url: str
    token: str = field(repr=False)
    source: str
    control: EmulatorControl


def start_service(processes: Processes, folder: Path, *, processing_seconds: float, timeout: float = 60) -> Service:
    """Start an emulator on a free port of the loopback interface.

    Args:
        processes: What starts it and will end it.
        folder: New folder for what it receives and makes.
        processing_seconds: How long a result takes.
        timeout: How long to wait for it, in seconds.

    Returns:
        The emulator, listening.

    Raises:
        RuntimeError: It did not start.
    """
    folder.mkdir(parents=True)
    port_file = folder / "port"
    token, source = secrets.token_hex(20), f"personal-user-{secrets.token_hex(6)}"
    command = [sys.executable, "-m", "qure_provider.emulator", "--token", token, "--source", source]
    command += ["--port", "0", "--port-file", str(port_file), "--storage", str(folder / "storage")]
    command += ["--processing-seconds", str(processing_seconds)]
    processes.start("emulator", command, env=os.environ, cwd=folder)
    deadline = time.monotonic() + timeout
    while not port_file.exists():
        if "emulator" in processes.ended() or time.monotonic() > deadline:
            raise RuntimeError(f"The emulator did not start; see {processes.logs / 'emulator.log'}")
        time.sleep(0.05)
    url = f"http://127.0.0.1:{port_file.read_text().strip()}"
    return Service(url, token, source, EmulatorControl(url))


def plan_findings(
    service: Service, resources: Iterable[ExpectedResource], known_as: Callable[[str], str] = str
) -> None:
    """Tell the emulator what to find in the resources for which something is planned.

    Args:
        service: The emulator.
        resources: What is exported.
        known_as: From a UID of the export to what the service will know it by.
    """
    for resource in resources:
        if resource.findings is not None:
            service.control.plan(known_as(resource.uid), findings=resource.findings)
