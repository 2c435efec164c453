"""Where a browser finds our pages in the Airflow UI."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

PREFIX = "/qure"


def base_path() -> str:
    """Return the path below which Airflow's UI lies, without a slash at its end: that of ``[api] base_url``."""
    return urlsplit(str(conf.get("api", "base_url", fallback=""))).path.rstrip("/")


def page_address(folder: str = "") -> str:
    """Return the address of a run's page, or of the list of nights.

    It names no host: whichever name the browser knows the UI by is the one that holds its session.

    Args:
        folder: The run's folder in the store; empty for the list.
    """
    return f"{base_path()}{PREFIX}/{quote(folder)}/" if folder else f"{base_path()}{PREFIX}/"


class NightSummaryLink(BaseOperatorLink):
    """From the task that summarized a night to the page that it wrote."""

    name = "Night's summary"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the page's address; empty where the task wrote none into the store that the UI shows.

        Args:
            operator: A ``QureSummarizeOperator`` that was executed.
            ti_key: Not needed.
        """
        folder: str = getattr(operator, "page_folder", "")
        return page_address(folder) if folder else ""
