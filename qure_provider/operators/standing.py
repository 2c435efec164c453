"""What receivers were delivered and the service's newest answer no longer bears out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qure_provider import settings
from qure_provider.api.model import Outcome

if TYPE_CHECKING:
    from qure_provider.ledger.deliveries import DeliveryRow
    from qure_provider.ledger.ledger import Ledger, ResourceRow


@dataclass(frozen=True, slots=True)
class Standing:
    """A result that a receiver has, and that has another answer since.

    Attributes:
        delivery: What it has.
        row: The resource, with its newest answer.
    """

    delivery: DeliveryRow
    row: ResourceRow

    @property
    def problem(self) -> str:
        """What is wrong, and what to do."""
        now = self.row.usecase if self.row.outcome is Outcome.READY else self.row.outcome
        return (
            f"the newest answer is {now or 'of no product'}, and {self.delivery.destination} still has the result of "
            f"{self.delivery.product or 'an unknown product'}: withdraw it with 'airflow qure withdraw', or recompute"
        )

    @property
    def line(self) -> str:
        """The same for a list, with pseudonyms of study and resource."""
        study = settings.short_ref(self.row.identity.study_instance_uid)
        return f"Study {study}, resource {settings.short_ref(self.row.uid)}: {self.problem}."


def find_standing(ledger: Ledger, rows: Sequence[ResourceRow]) -> list[Standing]:
    """Find what was delivered, is not withdrawn, and has no ready result of its product any more.

    What only waits for its newer answer is not meant.

    Args:
        ledger: What was delivered.
        rows: The run's resources.

    Returns:
        One for each resource, destination and product.
    """
    newest = {row.uid: row for row in rows if row.is_resolved}
    delivered = ledger.deliveries.standing({row.identity.study_instance_uid for row in newest.values()})
    uids = {row.id: row.uid for row in rows}
    older = {number for delivery in delivered for number in delivery.resource_ids} - uids.keys()
    uids |= {row.id: row.uid for row in ledger.rows_by_id(sorted(older))} if older else {}
    found: dict[tuple[int, str, str], Standing] = {}
    for delivery in delivered:
        for row in _answered(delivery, uids, newest):
            if row.outcome is not Outcome.READY or (row.usecase or "") != delivery.product:
                found.setdefault((row.id, delivery.destination, delivery.product), Standing(delivery, row))
    return list(found.values())


def _answered(
    delivery: DeliveryRow, uids: Mapping[int, str], newest: Mapping[str, ResourceRow]
) -> Iterator[ResourceRow]:
    for number in delivery.resource_ids:
        row = newest.get(uids.get(number, ""))
        if row is not None:
            yield row
