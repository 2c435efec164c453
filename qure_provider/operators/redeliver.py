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
        notifiers: Who is told, once, of urgent results that are held, in doubt or given up.
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
        check_paging(notifiers, ())
        self.destinations = destinations
        self.states = states
        self.since = since
        self.even_if_not_due = even_if_not_due
        self.seconds = seconds
        self.store_root = store_root
        self.notifiers = [notifier.serialize() for notifier in notifiers]

    def execute(self, context: Context) -> dict[str, int]:
        """Send what is owed."""
        from qure_provider.delivery.courier import Courier
        from qure_provider.ledger.ledger import Ledger
        from qure_provider.store import Store, ledger_url

        root = self.store_root or settings.store_root()
        chosen = _words(self.destinations)
        states = _states(_words(self.states))
        with Ledger.open(ledger_url(root), create=True) as ledger:
            reopened = (
                ledger.deliveries.reopen(states=states, destinations=chosen, since=_midnight(self.since))
                if states
                else 0
            )
            courier = Courier(Store(root), ledger, str(context["ti"].id))
            troubles = courier.deliver(
                chosen or ledger.deliveries.destinations_owed(),
                seconds=self.seconds,
                even_if_not_due=str(self.even_if_not_due).lower() in {"true", "1"},
            )
            tell_of_troubles(ledger, self.notifiers, run_facts(context))
        return {"reopened": reopened, "troubles": len(troubles)}


def _midnight(day: str) -> float:
    return midnight(day, settings.timezone()) if day else 0.0


def _words(value: Sequence[str] | str) -> list[str]:
    return value.replace(",", " ").split() if isinstance(value, str) else list(value)


def _states(words: Sequence[str]) -> list[DeliveryState]:
    from qure_provider.ledger.deliveries import DeliveryState

    unknown = set(words) - set(REOPENABLE)
    if unknown:
        raise ValueError(f"states takes only {' and '.join(REOPENABLE)}")
    return [DeliveryState(word) for word in words]
