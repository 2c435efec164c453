"""Where a container's names, ports and paths are on this machine.

Nothing of a service's command or environment is rewritten but these: ``name:port`` of a service, and the service's own
exposed ports, become an address and a port of the loopback interface; ``0.0.0.0`` becomes that address; the paths of
its volumes, configs and working folder become folders on this machine. It is done to whole words of the text, so the
file must write out each of them, and does.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from cluster.compose import Project, Service

LOOPBACK = "127.0.0.1"


class Places:
    """The places of one project; the ports were free a moment ago.

    Args:
        project: The project.
        root: Folder for everything that the services keep.
    """

    def __init__(self, project: Project, root: Path) -> None:
        self.root = root.resolve()
        services = project.services.values()
        self._ports = _free_ports([(service.name, port) for service in services for port in service.expose])
        self._paths = {service.name: dict(self._paths_of(project, service)) for service in services}

    def port(self, service: str, port: int) -> int:
        """The port of this machine that stands for a service's port."""
        return self._ports[service, port]

    def volume(self, name: str) -> Path:
        """The folder that stands for a volume."""
        return self.root / "volumes" / name

    def own(self, service: Service) -> Path:
        """The folder that stands for what else a service's container holds."""
        return self.root / "services" / service.name

    def path(self, service: Service, target: str) -> Path:
        """The path that stands for one of a service."""
        return Path(self.text(service, target))

    def text(self, service: Service, text: str) -> str:
        """Put this machine's places into a text of a service."""
        places = {
            **{rf"(?<![\w.-]){name}:{port}(?!\w)": f"{LOOPBACK}:{here}" for (name, port), here in self._ports.items()},
            **{rf"(?<![\w.]){port}(?![\w.])": str(self._ports[service.name, port]) for port in service.expose},
            r"(?<![\w.])0\.0\.0\.0(?![\w.])": LOOPBACK,
            **{
                rf"(?<![\w.-]){re.escape(target)}(?![\w.-])": str(here)
                for target, here in self._paths[service.name].items()
            },
        }
        replacements = list(places.values())
        pattern = re.compile("|".join(f"({place})" for place in places))
        return pattern.sub(lambda match: replacements[(match.lastindex or 1) - 1], text)

    def prepare(self, service: Service) -> None:
        """Make a service's folders and write the files that it is given."""
        for target, here in self._paths[service.name].items():
            if target in service.configs:
                here.parent.mkdir(parents=True, exist_ok=True)
                here.touch(mode=0o600)
                here.write_text(self.text(service, service.configs[target]), encoding="utf-8")
            else:
                here.mkdir(parents=True, exist_ok=True)

    def _paths_of(self, project: Project, service: Service) -> Iterable[tuple[str, Path]]:
        """What a service sees and what stands for it, the longest first: a volume may lie below another place."""
        found = {target: self.own(service) / target.lstrip("/") for target in service.configs}
        for mount in service.mounts:
            found[mount.target] = self.volume(mount.source) if mount.is_volume else project.folder / mount.source
        if service.working_dir:
            found.setdefault(service.working_dir, self.own(service) / service.working_dir.lstrip("/"))
        return sorted(found.items(), key=lambda item: -len(item[0]))


def _free_ports(wanted: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in wanted]
        return {place: int(server.getsockname()[1]) for place, server in zip(wanted, servers, strict=True)}
