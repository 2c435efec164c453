"""The emulator as a program, and beside a test."""

import datetime
import ipaddress
import itertools
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from emulator_images import an_xray

from qure_provider.emulator.model import Reset, Stall
from qure_provider.emulator.server import Tls, is_loopback, running_emulator
from qure_provider.emulator.settings import EmulatorSettings

PROGRAM = [sys.executable, "-m", "qure_provider.emulator"]


@pytest.fixture
def tls(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "simulated")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = Tls(tmp_path / "certificate.pem", tmp_path / "key.pem")
    paths.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def _wait(path, process):
    until = time.monotonic() + 30
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    return int(path.read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_leaves_nothing(tmp_path, number):
    port_file = tmp_path / "port"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [*PROGRAM, "--token", "T", "--source", "S", "--port-file", str(port_file), "--processing-seconds", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(temporary)},
    )
    try:
        port = _wait(port_file, process)
        headers = {"Authorization": "Token T", "Source": "S"}
        assert requests.get(f"http://127.0.0.1:{port}/results/1.2", headers=headers, timeout=10).status_code == 404
        assert len(list(temporary.iterdir())) == 1
    finally:
        process.send_signal(number)
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert said == f"Qure emulator (SIMULATED, NOT FOR CLINICAL USE) listening on http://127.0.0.1:{port}\n"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "0.0.0.0"], "--expose"),
        (["--host", "example.org"], "--expose"),
        (["--tls-cert", "x.pem"], "go together"),
        (["--processing-seconds", "-1"], "processing_seconds"),
    ],
)
def test_it_refuses_what_makes_no_sense(arguments, reason):
    ran = subprocess.run(
        [*PROGRAM, "--token", "T", "--source", "S", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ran.returncode == 2
    assert reason in ran.stderr


def test_exposing_it_warns(tmp_path):
    port_file = tmp_path / "port"
    command = [
        *PROGRAM,
        "--token",
        "T",
        "--source",
        "S",
        "--port-file",
        str(port_file),
        "--host",
        "0.0.0.0",
        "--expose",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _wait(port_file, process)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert "Warning" in said


def test_the_control_api_answers_this_machine_only(tmp_path):
    address = next((a for a in _own_addresses() if not is_loopback(a)), None)
    if address is None:
        pytest.skip("this machine has the loopback address only")
    with running_emulator(EmulatorSettings(host="0.0.0.0")) as emulator:
        port = emulator.base_url.rpartition(":")[2]
        assert requests.get(f"http://{address}:{port}/results/1.2", timeout=10).status_code == 401
        assert requests.get(f"http://{address}:{port}/_emulator/received", timeout=10).status_code == 403


def _own_addresses():
    listed = Path("/proc/net/fib_trie").read_text() if Path("/proc/net/fib_trie").exists() else ""
    lines = listed.splitlines()
    return [before.split("-- ")[1] for before, line in itertools.pairwise(lines) if line.strip() == "/32 host LOCAL"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("a.b", False)],
)
def test_loopback_is_told_from_the_rest(host, expected):
    assert is_loopback(host) is expected


def test_it_speaks_https(tls):
    with running_emulator(EmulatorSettings(processing_seconds=0), tls=tls) as emulator:
        assert emulator.base_url.startswith("https://127.0.0.1:")
        xray = an_xray()
        arguments = {"headers": emulator.headers, "verify": str(tls.certificate), "timeout": 10}
        requests.post(f"{emulator.base_url}/studies", files=xray.files, **arguments)
        body = requests.get(f"{emulator.base_url}/results/v2/{xray.sop}", **arguments).json()
        assert body["result"]["files"]["sc"][0].startswith(emulator.base_url)
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(emulator.base_url, timeout=10)
        emulator.control.inject(Reset(kind="results"))
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{emulator.base_url}/results/v2/{xray.sop}", **arguments)


def test_storage_given_is_kept(tmp_path):
    settings = EmulatorSettings(storage=tmp_path / "storage", processing_seconds=0)
    for _ in range(2):
        with running_emulator(settings) as emulator:
            requests.post(f"{emulator.base_url}/studies", files=an_xray().files, headers=emulator.headers, timeout=10)
            (received,) = emulator.control.received()
        assert Path(received.path).is_relative_to(settings.storage)
        assert Path(received.path).exists()


def test_it_ends_at_once_whatever_is_under_way():
    with ThreadPoolExecutor() as pool:
        with running_emulator() as emulator:
            emulator.control.inject(Stall(kind="results"))
            stalled = pool.submit(requests.get, f"{emulator.base_url}/results/1.2", timeout=30)
            while not emulator.control.peaks():
                time.sleep(0.02)
            ending = time.monotonic()
        assert time.monotonic() - ending < 5
        assert wait([stalled], timeout=10).not_done == set()
    with pytest.raises(requests.ConnectionError):
        requests.get(emulator.base_url, timeout=5)


def test_a_client_of_the_control_api_needs_none_of_the_heavy_libraries():
    code = "import sys, qure_provider.emulator.control; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert not {"numpy", "pydicom", "highdicom", "PIL", "fpdf", "fastapi", "uvicorn"} & set(ran.stdout.split())


def test_starting_loads_no_imaging_library():
    code = "import sys, qure_provider.emulator.server; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert not {"highdicom", "fpdf"} & set(ran.stdout.split())
