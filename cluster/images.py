"""What stands for the container images: programs of this machine, and what the images' entry points would do first.

The image that ``docker-compose.yaml`` builds is stood for by the Python environment that this runs in: the same
packages, by the same ``constraints.txt``. The others are Debian's packages of the same programs.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.compose import Service
from cluster.places import Places

ROOT = Path(__file__).resolve().parent.parent
PATH = os.pathsep.join(
    [
        str(Path(sys.executable).parent),
        *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True),
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
)
PROGRAMS = {
    "postgres": ("postgresql", ("initdb", "pg_ctl", "postgres", "psql", "pg_isready")),
    "redis": ("redis-server", ("redis-server", "redis-cli")),
    "jodogne/orthanc-plugins": ("orthanc", ("Orthanc",)),
}
"""Image to Debian's package and the programs of it that are needed."""


class ImageError(RuntimeError):
    """An image has nothing on this machine that stands for it; the message says what to install."""


def check_programs(images: Sequence[str]) -> None:
    """Look whether everything is there.

    Args:
        images: The images of the services that are to run.

    Raises:
        ImageError: Something is missing.
    """
    for image in images:
        package, programs = PROGRAMS.get(_name(image), ("", ()))
        if missing := [program for program in programs if not shutil.which(program, path=PATH)]:
            raise ImageError(f"{', '.join(missing)} not found: install the package {package}")


def environment_of(service: Service, places: Places) -> dict[str, str]:
    """Everything that a service finds in its environment: nothing of the caller's.

    Args:
        service: The service.
        places: Where its names, ports and paths are.

    Returns:
        The variables.
    """
    scratch = places.own(service) / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    base = {
        "PATH": PATH,
        "HOME": str(places.own(service)),
        "HOSTNAME": service.hostname,
        "LANG": "C.UTF-8",
        "TMPDIR": str(scratch),
    }
    if _name(service.image) not in PROGRAMS:
        # A container's own host name is its HOSTNAME; processes of one machine share the machine's.
        base |= {"AIRFLOW__CORE__HOSTNAME_CALLABLE": "cluster.hostname.hostname", "PYTHONPATH": str(ROOT)}
        base |= {"PYTHONUNBUFFERED": "1"}
    return base | {name: places.text(service, value) for name, value in service.environment.items()}


def command_of(service: Service, places: Places) -> list[str]:
    """What to run for a service, after what its image's entry point would have done.

    Args:
        service: The service.
        places: Where its names, ports and paths are.

    Returns:
        The program and its arguments.

    Raises:
        ImageError: The image is not known.
    """
    command = [places.text(service, part) for part in service.command]
    entry_point = _ENTRY_POINTS.get(_name(service.image))
    if entry_point is None:
        raise ImageError(f"service {service.name}: nothing is known that stands for the image {service.image}")
    return entry_point(service, places, command)


def take_away(places: Places) -> None:
    """Remove what had to be kept outside the cluster's folder; its services must have ended."""
    for link in (places.root / "volumes").glob("*/*"):
        if link.is_symlink():
            shutil.rmtree(link.resolve())
            link.unlink()


def _name(image: str) -> str:
    return image.partition(":")[0]


def _as_it_is(_service: Service, _places: Places, command: list[str]) -> list[str]:
    return command


def _orthanc(_service: Service, _places: Places, command: list[str]) -> list[str]:
    return ["Orthanc", *command]


def _postgres(service: Service, places: Places, command: list[str]) -> list[str]:
    """As the image does: make the database once, with its user and the SQL files that it is given; root may not."""
    environment = environment_of(service, places)
    user = _Unprivileged()
    data = user.folder(Path(environment["PGDATA"]))
    if not (data / "PG_VERSION").exists():
        scripts = [places.path(service, target) for target in service.configs if target.endswith(".sql")]
        _make_database(user, data, environment, scripts)
    # Debian's socket folder is not everybody's to write; nobody asks there.
    return [*user.prefix, "env", f"PGDATA={data}", *command, "-c", "unix_socket_directories="]


def _make_database(user: _Unprivileged, data: Path, environment: Mapping[str, str], scripts: Sequence[Path]) -> None:
    name, database = environment["POSTGRES_USER"], environment["POSTGRES_DB"]

    def run(*command: str, text: str = "") -> None:
        done = subprocess.run(
            [*user.prefix, *command],
            env={**environment, "PGDATA": str(data)},
            cwd=data,
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise ImageError(f"The database could not be made, {command[0]} says: {done.stderr.strip()}")

    run("initdb", f"--username={name}", "--auth-host=scram-sha-256", "--auth-local=trust", "--encoding=UTF8")
    run("pg_ctl", "start", "--wait", "--silent", "--log=making.log", f"--options=-c listen_addresses= -k {data}")
    try:
        psql = ("psql", f"--host={data}", f"--username={name}", "--no-psqlrc", "--set=ON_ERROR_STOP=1")
        password = environment["POSTGRES_PASSWORD"].replace("'", "''")
        run(*psql, "--dbname=postgres", text=f"ALTER ROLE {name} PASSWORD '{password}'; CREATE DATABASE {database};")
        for script in scripts:
            run(*psql, f"--dbname={database}", text=script.read_text(encoding="utf-8"))
    finally:
        run("pg_ctl", "stop", "--wait", "--silent", "--mode=fast")


class _Unprivileged:
    """Whoever runs what root may not: the caller, or where that is root, ``postgres``."""

    def __init__(self) -> None:
        self._account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self.prefix: list[str] = []
        if self._account:
            ids = [f"--reuid={self._account.pw_uid}", f"--regid={self._account.pw_gid}"]
            self.prefix = ["setpriv", *ids, "--clear-groups", "--"]

    def folder(self, wanted: Path) -> Path:
        """Make a folder of theirs. Root's may be closed to them: then ``wanted`` becomes a link to another."""
        if wanted.exists():
            return wanted.resolve()
        if not self._account:
            wanted.mkdir(parents=True)
            return wanted
        folder = Path(tempfile.mkdtemp(prefix="qure-cluster-"))
        os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.symlink_to(folder, target_is_directory=True)
        return folder


_ENTRY_POINTS: Mapping[str, Callable[[Service, Places, list[str]], list[str]]] = {
    "airflow-provider-qure": _as_it_is,
    "jodogne/orthanc-plugins": _orthanc,
    "postgres": _postgres,
    "redis": _as_it_is,
}
