"""``airflow qure``: look at a study or a night, export, prune, withdraw, try alerts. Only definitions stand here."""

from __future__ import annotations

from typing import Any

from airflow.cli.cli_config import ActionCommand, Arg, CLICommand, GroupCommand, lazy_load_command

_STORE = Arg(("--store-root",), help="The store's root; [qure] store_root where not given.", default=None)
_FORMAT = Arg(("--format",), help="json or csv", choices=("json", "csv"), default="json")


def _command(name: str, help_text: str, *args: Any) -> ActionCommand:
    return ActionCommand(
        name=name, help=help_text, func=lazy_load_command(f"qure_provider.cli_commands.{name}"), args=args
    )


def _of_store(name: str, help_text: str, *args: Any) -> ActionCommand:
    return _command(name, help_text, *args, _STORE)


def get_qure_cli_commands() -> list[CLICommand]:
    """Return the provider's commands, for Airflow's command line."""
    return [
        GroupCommand(
            name="qure",
            help="What became of studies that were sent to Qure",
            subcommands=(
                _of_store(
                    "study",
                    "Everything that is known of a study; shows patient data",
                    Arg(("study",), help="StudyInstanceUID, or the study ref of an alert or a page"),
                ),
                _of_store("night", "What became of a night", Arg(("night",), help="YYYY-MM-DD, or the partition key")),
                _of_store("export", "All nights' resources, without names", _FORMAT),
                _of_store(
                    "prune",
                    "Forget finished nights of the ledger; results in the store stay",
                    Arg(("--older-than-days",), help="Days since the night finished", type=int, required=True),
                    Arg(("--yes",), help="Do it; without, only count what would be forgotten", action="store_true"),
                ),
                _of_store(
                    "withdraw",
                    "Take delivered results back from everyone who got them",
                    Arg(("--study",), help="Only of this StudyInstanceUID", default=""),
                    Arg(("--product",), help="Only by this product, such as qxr", default=""),
                    Arg(("--model",), help="Only by this model version", default=""),
                    Arg(("--since",), help="Only what was delivered since this date, YYYY-MM-DD", default=""),
                    Arg(("--by",), help="Who takes them back", required=True),
                    Arg(("--why",), help="Why", required=True),
                    Arg(("--yes",), help="Do it; without, only show what would be withdrawn", action="store_true"),
                ),
                _command("alert", "Send a test by every notifier of [qure] notifiers; say which failed, and why"),
            ),
        )
    ]
