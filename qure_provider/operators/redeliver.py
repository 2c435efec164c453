"""Delivering what earlier runs still owe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.context import Context

from qure_provider import settings
from qure_provider.nights import midnight
from qure_provider.operators.troubles import tell_of_troubles
from qure_provider.triggers.alerts import check_paging
from qure_provider.triggers.results import run_facts

if TYPE_CHECKING:
    from qure_provider.ledger.deliveries import DeliveryState

REOPENABLE = ("held", "dead")


class QureRedeliverOperator(BaseOperator):
    """Send what is owed to any destination: what waits, what is in doubt, and, where asked, what is held or dead.

    What is held is checked again, never released: it goes out only if it has become right.

    Args:
        destinations: Only to these; empty for all that something is owed to.
        states: Besides what waits, ``held`` or ``dead`` deliveries, too.
        since: Of held or dead ones only those enqueued since this date (``YYYY-MM-DD``, in the hospital's zone).
        even_if_not_due: Whether to try what waits for its next try, too.
        seconds: How long it works at most.
        store_root: The store's root; None for ``[qure] store_root``.
        notifiers: Who is told, once, of urgent results that are held, in doubt or given up, and of withdrawals that
            could not be sent.
        kwargs: As for every operator.

    Returns:
        How many deliveries were opened again, and how many are held, dead or in doubt now.
    """

    template_fields: Sequence[str] = ("destinations", "states", "since", "even_if_not_due")
    ui_color = "#e6e0f0"

    def __init__(
        self,
        *,
        destinations: Sequence[str] | str = (),
        states: Sequence[str] | str = (),
        since: str = "",
        even_if_not_due: bool | str = False,
        seconds: float = 1800.0,
        store_root: str | None = None,
        notifiers: Sequence[AsyncCallback] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_paging(notifiers)
        self.destinations = destinations
        self.states = states
        self.since = since
        self.even_if_not_due = even_if_not_due
        self.seconds = seconds
        self.store_root = store_root
        self.notifiers = [notifier.serialize() for notifier in notifiers]

    def execute(self, context: Context) -> dict[str, int]:
        """Send what is owed.

        Raises:
            ValueError: If a destination is named that no delivery is recorded for, or a state or date is none.
        """
        from qure_provider.delivery.courier import Courier
        from qure_provider.ledger.ledger import Ledger
        from qure_provider.store import Store, ledger_url

        root = self.store_root or settings.store_root()
        chosen = _words(self.destinations)
        states = _states(_words(self.states))
        since = midnight(self.since, settings.timezone()) if self.since else 0.0
        with Ledger.open(ledger_url(root), create=True) as ledger:
            _check_known(chosen, ledger.deliveries.destinations())
            reopened = ledger.deliveries.reopen(states=states, destinations=chosen, since=since) if states else 0
            courier = Courier(Store(root), ledger, str(context["ti"].id))
            troubles = courier.deliver(
                chosen or ledger.deliveries.destinations_owed(),
                seconds=self.seconds,
                even_if_not_due=str(self.even_if_not_due).lower() in {"true", "1"},
            )
            tell_of_troubles(ledger, self.notifiers, run_facts(context))
        return {"reopened": reopened, "troubles": len(troubles)}


def _check_known(chosen: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(
            f"No delivery to {', '.join(map(repr, unknown))} is on record, so nothing was sent. Destinations on "
            f"record: {', '.join(known) or 'none yet'}."
        )


def _words(value: Sequence[str] | str) -> list[str]:
    return value.replace(",", " ").split() if isinstance(value, str) else list(value)


def _states(words: Sequence[str]) -> list[DeliveryState]:
    from qure_provider.ledger.deliveries import DeliveryState

    unknown = set(words) - set(REOPENABLE)
    if unknown:
        raise ValueError(f"states takes only {' and '.join(REOPENABLE)}")
    return [DeliveryState(word) for word in words]
