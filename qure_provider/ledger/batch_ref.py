"""What one task tells the next of a batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class BatchRef:
    """What XCom carries of a batch: where it is and how big, no patient data.

    Attributes:
        batch_id: Its key in the ledger.
        route: ``xray`` or ``ct``.
        series: How many series it carries.
        resources: How many results are expected.
        size: In bytes.
        label: What the Airflow UI shows.
    """

    batch_id: int
    route: str
    series: int
    resources: int
    size: int
    label: str

    def to_xcom(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_xcom(cls, value: Any) -> BatchRef:
        """Read what ``to_xcom`` returned.

        Raises:
            ValueError: If it is something else.
        """
        try:
            return cls(**value)
        except TypeError:
            raise ValueError("batch must be one of the batches that the plan task returned") from None
