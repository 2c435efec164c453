"""What Airflow loads in every component; the pages themselves are imported when the first is asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.sdk.plugins_manager import AirflowPlugin

from qure_provider.links import PREFIX, page_address


async def serve(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Answer one request: the ASGI application that Airflow's API server mounts."""
    from qure_provider.plugin.pages import app

    await app(scope, receive, send)


class QurePlugin(AirflowPlugin):
    """The nights' pages, and the way to them in the menu."""

    name = "qure"
    fastapi_apps = [{"name": "Qure nights", "app": serve, "url_prefix": PREFIX}]
    # In a menu: of Airflow 3.3's main bar, an item that leads to an address of ours does nothing.
    external_views = [{"name": "Qure nights", "href": page_address(), "destination": "nav", "category": "browse"}]
