"""Reads the part of the Compose specification that ``docker-compose.yaml`` uses, and refuses everything else.

Stricter than Docker Compose: a key that is not understood, a variable that is not set, a volume that is not declared or
a circle of dependencies is an error, never a warning.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml


class ComposeError(ValueError):
    """The file cannot be run as it is; the message says where and why."""


class Condition(StrEnum):
    """What of another service must have happened before a service is started."""

    STARTED = "service_started"
    HEALTHY = "service_healthy"
    COMPLETED = "service_completed_successfully"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How to tell that a service does its work.

    Attributes:
        command: The program and its arguments; it ends with 0 if all is well.
        interval: Seconds between two checks.
        timeout: Seconds that one may take.
        start_period: Seconds in which failures do not count.
        start_interval: Seconds between two checks in that time.
        retries: After how many failures in a row the service counts as ill.
    """

    command: tuple[str, ...]
    interval: float
    timeout: float
    start_period: float
    start_interval: float
    retries: int


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder that a service shares.

    Attributes:
        source: A declared volume's name, or a path as written.
        target: Where the service sees it.
        is_volume: Whether ``source`` is a volume.
    """

    source: str
    target: str
    is_volume: bool


@dataclass(frozen=True, slots=True)
class Service:
    """One service.

    Attributes:
        name: Its name, by which others reach it.
        image: What it runs in.
        command: The program and its arguments; empty for the image's own.
        environment: Its variables.
        hostname: What it takes its machine to be called.
        working_dir: Where it starts; None for the image's own.
        depends_on: What must have happened before it is started.
        health: How to tell that it does its work; None for not at all.
        mounts: What it shares.
        configs: Path to content of files that it is given.
        expose: Ports that it listens on.
        profiles: With which profiles it runs; empty for always.
    """

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    hostname: str
    working_dir: str | None
    depends_on: Mapping[str, Condition]
    health: HealthCheck | None
    mounts: tuple[Mount, ...]
    configs: Mapping[str, str]
    expose: tuple[int, ...]
    profiles: frozenset[str]


@dataclass(frozen=True, slots=True)
class Project:
    """A whole file.

    Attributes:
        folder: Where it lies; relative paths begin there.
        services: Each service by name, every one after those that it depends on.
        volumes: Names of the volumes.
    """

    folder: Path
    services: Mapping[str, Service]
    volumes: frozenset[str]


def load_project(path: Path, variables: Mapping[str, str], *, profiles: Iterable[str] = ()) -> Project:
    """Read a file.

    Args:
        path: The file.
        variables: What ``.env`` would hold.
        profiles: Which profiles are wanted.

    Returns:
        The services that run with these profiles.

    Raises:
        ComposeError: It is wrong, or has something in it that is not understood here.
    """
    content = _mapping("the file", yaml.safe_load(path.read_text(encoding="utf-8")))
    content = {key: value for key, value in content.items() if not key.startswith("x-")}
    content = _interpolate(content, variables)
    _only(content, "the file", {"name", "services", "configs", "volumes"})
    volumes = frozenset(_mapping("volumes", content.get("volumes")))
    configs = {}
    for name, config in _mapping("configs", content.get("configs")).items():
        _only(config, f"config {name}", {"content"})
        configs[name] = str(config["content"])
    wanted = frozenset(profiles)
    services = [
        _service(name, _mapping(f"service {name}", body), volumes, configs)
        for name, body in _mapping("services", content.get("services")).items()
    ]
    chosen = {service.name: service for service in services if not service.profiles or service.profiles & wanted}
    return Project(path.resolve().parent, _ordered(chosen), volumes)


_DOCKER_ONLY = {"build", "ports", "restart", "stop_grace_period"}
_SERVICE_KEYS = _DOCKER_ONLY | {
    "command",
    "configs",
    "depends_on",
    "environment",
    "expose",
    "healthcheck",
    "hostname",
    "image",
    "profiles",
    "volumes",
    "working_dir",
}
_HEALTH_KEYS = {"test", "interval", "timeout", "start_period", "start_interval", "retries"}


def _service(name: str, body: Mapping[str, Any], volumes: frozenset[str], configs: Mapping[str, str]) -> Service:
    where = f"service {name}"
    _only(body, where, _SERVICE_KEYS)
    if "image" not in body:
        raise ComposeError(f"{where}: has no image")
    return Service(
        name=name,
        image=str(body["image"]),
        command=_command(where, body.get("command")),
        environment={
            key: _text(f"{where}, {key}", value)
            for key, value in _mapping(f"{where}, environment", body.get("environment")).items()
        },
        hostname=str(body.get("hostname", name)),
        working_dir=body.get("working_dir"),
        depends_on=_dependencies(where, body.get("depends_on")),
        health=_health(where, body.get("healthcheck")),
        mounts=tuple(_mount(where, text, volumes) for text in body.get("volumes", ())),
        configs=_given_files(where, body.get("configs", ()), configs),
        expose=tuple(int(port) for port in body.get("expose", ())),
        profiles=frozenset(body.get("profiles", ())),
    )


def _command(where: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(shlex.split(value))
    return tuple(_text(f"{where}, command", part) for part in value)


def _dependencies(where: str, value: Any) -> dict[str, Condition]:
    found = {}
    for name, body in _mapping(f"{where}, depends_on", value).items():
        _only(body, f"{where}, depends_on {name}", {"condition"})
        try:
            found[name] = Condition(body["condition"])
        except (KeyError, ValueError):
            raise ComposeError(f"{where}, depends_on {name}: has no condition that is known") from None
    return found


def _health(where: str, value: Any) -> HealthCheck | None:
    if value is None:
        return None
    _only(value, f"{where}, healthcheck", _HEALTH_KEYS)
    kind, *rest = value["test"]
    if kind == "CMD":
        command = tuple(map(str, rest))
    elif kind == "CMD-SHELL" and len(rest) == 1:
        command = ("/bin/sh", "-c", str(rest[0]))
    else:
        raise ComposeError(f"{where}, healthcheck: the test is neither CMD with words nor CMD-SHELL with one text")
    return HealthCheck(
        command=command,
        interval=_seconds(where, value.get("interval", "30s")),
        timeout=_seconds(where, value.get("timeout", "30s")),
        start_period=_seconds(where, value.get("start_period", "0s")),
        start_interval=_seconds(where, value.get("start_interval", "5s")),
        retries=int(value.get("retries", 3)),
    )


def _mount(where: str, text: str, volumes: frozenset[str]) -> Mount:
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not target.startswith("/") or mode not in {"", "ro", "rw"}:
        raise ComposeError(f"{where}: {text!r} is no source:/target or source:/target:ro")
    is_path = source.startswith((".", "/", "~"))
    if not is_path and source not in volumes:
        raise ComposeError(f"{where}: the volume {source!r} is not declared")
    return Mount(source, target, is_volume=not is_path)


def _given_files(where: str, value: Iterable[Any], configs: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for item in value:
        _only(item, f"{where}, configs", {"source", "target"})
        if item["source"] not in configs:
            raise ComposeError(f"{where}: the config {item['source']!r} is not declared")
        found[str(item["target"])] = configs[item["source"]]
    return found


def _ordered(services: Mapping[str, Service]) -> dict[str, Service]:
    for service in services.values():
        for name, condition in service.depends_on.items():
            if name not in services:
                raise ComposeError(f"service {service.name}: depends on {name}, which is no service of these profiles")
            if condition is Condition.HEALTHY and services[name].health is None:
                raise ComposeError(f"service {service.name}: waits for the health of {name}, which has no check")
    try:
        order = TopologicalSorter({name: service.depends_on for name, service in services.items()}).static_order()
        return {name: services[name] for name in order}
    except CycleError as error:
        raise ComposeError(f"services depend on each other in a circle: {' -> '.join(error.args[1])}") from None


def _seconds(where: str, text: Any) -> float:
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", str(text))
    if not parts or not any(parts.groups()):
        raise ComposeError(f"{where}: {text} is no duration such as 1m30s")
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def _text(where: str, value: Any) -> str:
    """A scalar as the service gets it; Docker Compose takes no boolean there, since YAML has many ways to write one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ComposeError(f"{where}: must be a text or a number, put it in quotation marks")
    return str(value)


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ComposeError(f"{where}: must be a mapping")
    return value


def _only(body: Mapping[str, Any], where: str, known: set[str]) -> None:
    if unknown := sorted(set(_mapping(where, body)) - known):
        raise ComposeError(f"{where}: not understood here: {', '.join(unknown)}")


_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|\{(?P<name>[A-Za-z_]\w*)(?:(?P<how>:-|:\?)(?P<what>[^${}]*))?\}|(?P<wrong>))"
)


def _interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """Put variables into every text of a document, as Docker Compose does: into values, never into keys."""

    def put(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        if match["wrong"] is not None:
            raise ComposeError(f"a $ that is no ${{VARIABLE}}, ${{VARIABLE:-default}} or $$: {match.string[:80]!r}")
        found = variables.get(match["name"], "")
        if found:
            return found
        if match["how"] == ":-":
            return str(match["what"])
        raise ComposeError(f"{match['name']} is not set in .env: {match['what'] or 'it has no default'}")

    if isinstance(value, dict):
        return {key: _interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, variables) for item in value]
    return _VARIABLE.sub(put, value) if isinstance(value, str) else value
