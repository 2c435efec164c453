"""Delivering a run's results beside the tasks that bring them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.context import Context

from qure_provider import settings
from qure_provider.delivery.rules import rules_from
from qure_provider.operators.base import QureOperator
from qure_provider.operators.dry_run import ShowOnly, show_only_of
from qure_provider.operators.troubles import tell_of_troubles
from qure_provider.triggers.alerts import check_paging
from qure_provider.triggers.deliver import QureOwedTrigger
from qure_provider.triggers.results import run_facts

LANES = 4
"""How many deliveries are under way to one destination."""
SECONDS = 1800.0
"""How long it delivers at most at each wake."""
STUCK_SECONDS = 600.0
"""How long what could not even be tried is left alone."""
AFTER_DEADLINE_SECONDS = 3600.0
"""How long after the run's deadline its collect tasks are waited for."""


class QureDeliverOperator(QureOperator):
    """Send what a run owes its receivers, while the run's collect tasks still bring results.

    It waits in the triggerer until something is owed, sends it, and waits again, until none of the run's collect tasks
    is left. Those then deliver only what is urgent themselves (``only_urgent``), so that neither thousands of routine
    deliveries nor a receiver that hangs ever stands in its way. What it cannot deliver the summary tries once more.

    Args:
        bringers: The ids of the run's collect tasks.
        run_group: The task group whose plan is delivered.
        store_root: The store's root; None for ``[qure] store_root``.
        deliver_to: Destinations that get everything: connection ids, or folders' URLs; a list, or separated by blanks.
        rules: What goes where, as ``delivery.rules.rules_from`` takes it.
        notifiers: Who is told, once, of urgent results that are held, in doubt or given up.
        show_only: With ``deliver`` or ``upload`` nothing is delivered.
        first_poll_seconds: Between deferring and the first look; None for ``[qure] first_poll_seconds``.
        kwargs: See ``QureOperator``.
    """

    template_fields = ("deliver_to", "show_only", "qure_conn_id")
    ui_color = "#e6e0f0"

    def __init__(
        self,
        *,
        bringers: Sequence[str],
        run_group: str = "",
        store_root: str | None = None,
        deliver_to: Sequence[str] | str = (),
        rules: Sequence[Mapping[str, Any]] = (),
        notifiers: Sequence[AsyncCallback] = (),
        show_only: str | None = None,
        first_poll_seconds: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_paging(notifiers, ())
        rules_from(deliver_to, rules)
        self.bringers = list(bringers)
        self.run_group = run_group
        self.store_root = store_root
        self.deliver_to = deliver_to
        self.rules = list(rules)
        self.notifiers = [notifier.serialize() for notifier in notifiers]
        self.show_only = show_only
        self.first_poll_seconds = first_poll_seconds

    def execute(self, context: Context) -> None:
        """Send what is owed, and wait for more."""
        self._send(context, is_over=False)

    def resume(self, context: Context, event: Any = None) -> None:
        """Go on after the trigger fired.

        Raises:
            ValueError: If the event is not understood; the retry begins anew.
        """
        if not isinstance(event, Mapping) or not isinstance(event.get("is_over"), bool):
            raise ValueError("The trigger's event was empty or not understood.")
        self._send(context, is_over=event["is_over"])

    def _send(self, context: Context, *, is_over: bool) -> None:
        rules = rules_from(self.deliver_to, self.rules)
        if not rules or show_only_of(self.show_only) is not ShowOnly.NO:
            return
        from qure_provider.delivery.courier import Courier
        from qure_provider.delivery.rules import destinations_of
        from qure_provider.ledger.ledger import Ledger
        from qure_provider.store import Store, ledger_url

        root = self.store_root or settings.store_root()
        dag_run = context["dag_run"]
        with Ledger.open(ledger_url(root), create=True) as ledger:
            run = ledger.find_run(dag_id=dag_run.dag_id, run_id=dag_run.run_id, group_id=self.run_group)
            if run is None:
                return
            courier = Courier(Store(root), ledger, str(context["ti"].id))
            tell = partial(tell_of_troubles, ledger, self.notifiers, run_facts(context), run_id=run.id)
            troubles = courier.deliver(destinations_of(rules), run_id=run.id, seconds=SECONDS, lanes=LANES, tell=tell)
            tell()
            is_stuck = ledger.deliveries.is_owed(run.id)
        self.log.info("Delivered what was owed: troubles=%d", len(troubles))
        if is_over:
            return
        first = settings.first_poll_seconds() if self.first_poll_seconds is None else self.first_poll_seconds
        deadline = run.deadline + AFTER_DEADLINE_SECONDS
        self.defer(
            trigger=QureOwedTrigger(
                dag_id=dag_run.dag_id,
                run_id=dag_run.run_id,
                ledger_run=run.id,
                store_root=root,
                bringers=self.bringers,
                pause=first,
                owed_from=time.time() + STUCK_SECONDS if is_stuck else 0.0,
                deadline=deadline,
            ),
            method_name="resume",
            timeout=timedelta(seconds=max(deadline - time.time(), 1.0) + STUCK_SECONDS),
        )
