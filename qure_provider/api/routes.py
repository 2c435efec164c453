"""Where each request of the contract goes, relative to the connection's base URL."""

from __future__ import annotations

import re

from qure_provider.api.model import ResourceRef, ResultsVersion, Route

UPLOAD_PATH = "studies/"
"""With its trailing slash, as the vendor's samples write it (docs.qure.ai, Make your first API request)."""

_MAX_UID_LENGTH = 64
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def is_uid(text: str) -> bool:
    """Tell whether a text may stand as a UID in a path.

    A component with leading zeros breaks DICOM PS3.5, yet real exports have it, so it passes.

    Args:
        text: What a header or a user gave.

    Returns:
        True for 1 to 64 characters of digits and dots with no empty component.
    """
    return len(text) <= _MAX_UID_LENGTH and _UID.fullmatch(text) is not None


def compute_path(series_instance_uid: str) -> str:
    """Give the path that asks for a series to be computed (docs.qure.ai, Initiate Computation).

    Args:
        series_instance_uid: SeriesInstanceUID of a CT series.

    Returns:
        The path, relative to the base URL.

    Raises:
        ValueError: If it is not a UID.
    """
    return f"compute/{_checked(series_instance_uid)}"


def results_path(ref: ResourceRef, version: ResultsVersion) -> str:
    """Give the path that a resource's result is asked at (OpenAPI, results and results v2).

    Args:
        ref: The image or series.
        version: Which results endpoint answers for X-rays; a CT series is always asked at the unversioned one, the
            only one stated for it.

    Returns:
        The path, relative to the base URL.

    Raises:
        ValueError: If its UID is not one.
    """
    uid = _checked(ref.uid)
    if ref.route is Route.XRAY and version is ResultsVersion.V2:
        return f"results/v2/{uid}"
    return f"results/{uid}"


def recompute_body(recompute: bool) -> dict[str, bool] | None:
    """Give the JSON body of a compute request.

    The OpenAPI declares a body on this GET, while no sample of the vendor sends one, and its effect is not stated
    anywhere. It is therefore sent only where a new computation is wanted.

    Args:
        recompute: Whether a series that was computed before should be computed again.

    Returns:
        The body, or None where none is to be sent.
    """
    return {"recompute": True} if recompute else None


def _checked(uid: str) -> str:
    if not is_uid(uid):
        raise ValueError(
            f"Not a UID: digits and dots only, 1 to {_MAX_UID_LENGTH} characters, no empty component. "
            "Check the series' header."
        )
    return uid
