"""Programs that are measured or measured against, each a process of its own that is told line by line what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from benchmarks.figures import WrongResultError

NO_PROXY = "127.0.0.1,localhost"


_to_parent = sys.stdout


def keep_quiet() -> None:
    """Keep standard output for what is said, as a child; what libraries log there is dropped."""
    global _to_parent
    _to_parent = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def say(said: Mapping[str, Any]) -> None:
    """Say something, as a child, to whoever started it."""
    print(json.dumps(said), file=_to_parent, flush=True)


def orders() -> Iterator[str]:
    """Go through what a child is told, for as long as it is told anything."""
    for line in sys.stdin:
        yield line.strip()


def timed(action: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Do something and add how many seconds it took to what it returns."""
    begun = time.perf_counter()
    done = action()
    return {**done, "seconds": time.perf_counter() - begun}


class Child:
    """A module of this package as a process; it is ended when the ``with`` block is left.

    Args:
        module: Its name within ``benchmarks``.
        arguments: Its arguments.
        env: Environment variables besides ours.
    """

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.name = " ".join([module, *arguments[:1]])
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "no_proxy": NO_PROXY, "NO_PROXY": NO_PROXY, **(env or {})},
        )

    def hear(self) -> Any:
        """Wait for the next line that it says.

        Returns:
            The line, decoded from JSON.

        Raises:
            WrongResultError: If it ended instead.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise WrongResultError(f"{self.name} ended by itself with {self._process.wait()}; see above")
        return json.loads(line)

    def ask(self, question: str) -> Any:
        """Tell it something and wait for what it says."""
        assert self._process.stdin
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self.hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
