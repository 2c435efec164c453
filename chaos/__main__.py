"""``python -m chaos``: things go wrong on purpose, and afterwards everything is counted. See ``--help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.__main__ import ROOT, make_empty
from demo.processes import signals_as_exit

DOCUMENT = ROOT / "docs" / "reliability.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line's; None takes those of the process.

    Returns:
        The exit code: 0 if every scenario passed, 1 if not, 2 if it could not begin.
    """
    options = _options(arguments)
    build = options.build.resolve()
    try:
        make_empty(build)
    except FileExistsError as error:
        print(error, file=sys.stderr)
        return 2
    _isolate(build)
    # Airflow reads where its home is when it is first imported.
    from chaos.run import choose, listed, run_all

    if options.list:
        print("\n".join(listed()))
        return 0
    try:
        chosen = choose(options.names, remaining_of=DOCUMENT if options.remaining else None)
    except KeyError as error:
        print(f"There is no scenario {error}; --list names them.", file=sys.stderr)
        return 2
    with signals_as_exit():
        return run_all(chosen, build, document=DOCUMENT)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Named scenarios in which the service, this software's own processes, the receivers or the export "
        "go wrong. After each, everything is counted at five places. The Qure service is an emulator, the hospital "
        "SIMULATED. What came of each is written into the table in docs/reliability.md.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these scenarios")
    parser.add_argument("--remaining", action="store_true", help="only what did not pass in the last run")
    parser.add_argument("--list", action="store_true", help="say which there are, and do nothing else")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "chaos", help="folder for all of it")
    return parser.parse_args(arguments)


def _isolate(build: Path) -> None:
    """Give this process an Airflow of its own, and nothing of the caller's."""
    for name in [name for name in os.environ if name.startswith("AIRFLOW_") or name.lower().endswith("_proxy")]:
        del os.environ[name]
    home = build / "steps-airflow"
    os.environ |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "AIRFLOW__QURE__PSEUDONYM_KEY": "chaos",
    }


if __name__ == "__main__":
    sys.exit(main())
