"""``python -m qure_provider.emulator``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qure_provider.emulator.findings import SIMULATED
from qure_provider.emulator.server import Tls, is_loopback, serve
from qure_provider.emulator.settings import Answers, Counting, EmulatorSettings, MessageKeys, Recompute

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOT_SETTINGS = ("port_file", "tls_cert", "tls_key", "expose")


def _parser() -> argparse.ArgumentParser:
    # Options left out are left to EmulatorSettings, which has the defaults.
    parser = argparse.ArgumentParser(
        prog="python -m qure_provider.emulator",
        description=f"A stand-in for the Qure.ai Platform API. {SIMULATED}.",
        argument_default=argparse.SUPPRESS,
    )
    listening = parser.add_argument_group("listening")
    listening.add_argument("--host", help="address to listen on (127.0.0.1)")
    listening.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (0)")
    listening.add_argument(
        "--port-file", type=Path, default=None, help="where the port is written once it is listening"
    )
    listening.add_argument("--expose", action="store_true", default=False, help="allow an address others can reach")
    listening.add_argument("--tls-cert", type=Path, default=None, help="certificate chain, PEM: answer HTTPS")
    listening.add_argument("--tls-key", type=Path, default=None, help="its key, PEM")
    listening.add_argument("--storage", type=Path, help="folder for what is received and made (a temporary one)")

    account = parser.add_argument_group("the account")
    account.add_argument("--token", required=True, help="what must follow 'Token ' in the Authorization header")
    account.add_argument("--source", required=True, help="what the Source header must say")
    account.add_argument(
        "--no-user-agent",
        dest="require_user_agent",
        action="store_false",
        help="answer requests without User-Agent too",
    )
    account.add_argument("--answers", choices=[*Answers], help="generation of answers (current)")
    account.add_argument("--stability", action="store_true", help="compute CT series without being asked")
    account.add_argument("--stability-seconds", type=float, help="after so much quiet (20)")
    account.add_argument("--max-request-bytes", type=int, help="largest request body (100000000)")
    account.add_argument("--url-seconds", type=float, help="how long a file URL is good for (300)")
    account.add_argument("--url-host", help="host name in file URLs (that of the request)")
    account.add_argument(
        "--plain-urls", dest="presigned", action="store_false", help="file URLs that require the token instead"
    )

    results = parser.add_argument_group("results")
    results.add_argument("--processing-seconds", type=float, help="from upload or compute to the result (5)")
    results.add_argument("--abnormal-share", type=float, help="share of resources with findings, 0 to 1 (0.3)")
    results.add_argument("--seed", help="varies which resources those are")

    unstated = parser.add_argument_group("what the service's documentation does not say")
    unstated.add_argument("--recompute", choices=[*Recompute], help="what asking for a recompute does (new)")
    unstated.add_argument("--counts", choices=[*Counting], help="what upload answers count (held)")
    unstated.add_argument("--message-keys", choices=[*MessageKeys], help="how upload answers name files (form)")
    unstated.add_argument(
        "--reject-unsupported-uploads", action="store_true", help="answer 400 to uploads of only unsupported images"
    )
    parser.add_argument(
        "--headers-only", dest="keep_received", action="store_false", help="keep only the headers of what is received"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the emulator in the foreground.

    Args:
        arguments: The command line's arguments; None takes those of the process.
    """
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    port_file, tls_cert, tls_key, expose = (given.pop(name) for name in _NOT_SETTINGS)
    if bool(tls_cert) != bool(tls_key):
        parser.error("--tls-cert and --tls-key go together")
    try:
        settings = EmulatorSettings(**given)
    except ValueError as error:
        parser.error(str(error))
    if not is_loopback(settings.host):
        if not expose:
            parser.error(
                f"{settings.host} can be reached from other machines, and what this makes is simulated: "
                "give --expose if that is meant"
            )
        sys.stderr.write(f"Warning: other machines can reach this emulator. {SIMULATED}.\n")

    def announce(base_url: str) -> None:
        sys.stdout.write(f"Qure emulator ({SIMULATED}) listening on {base_url}\n")
        sys.stdout.flush()

    serve(settings, tls=Tls(tls_cert, tls_key) if tls_cert else None, port_file=port_file, announce=announce)


if __name__ == "__main__":
    main()
