"""Dividing work: series into the batches that tasks carry, files into the requests that carry them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TypeVar

from qure_provider.api.model import Route
from qure_provider.dicom.model import Batch, SelectedSeries

T = TypeVar("T")


def pack_batches(selected: Sequence[SelectedSeries], max_batches: int) -> tuple[Batch, ...]:
    """Divides the series of a night into batches of about equal bytes, X-ray and CT apart.

    Up to ``max_batches`` series travel alone, for the shortest wait; beyond that each series joins the lightest batch,
    the largest first, which keeps the heaviest batch within 4/3 of the best division there is. The same selection
    always gives the same batches.

    Args:
        selected: What is sent, in the order of the selection.
        max_batches: How many batches at most, at least 2 (one for each route).

    Returns:
        Batches without an empty one; each holds its series in the order of the selection, and they are ordered by
        their first series.

    Raises:
        ValueError: If ``max_batches`` is less than 2.
    """
    if max_batches < len(Route):
        msg = f"max_batches must be at least {len(Route)}, since X-ray and CT never share a batch; it is {max_batches}"
        raise ValueError(msg)
    places = {route: [i for i, each in enumerate(selected) if each.route is route] for route in Route}
    sizes = [each.series.size for each in selected]
    shares = _shares({route: [sizes[i] for i in indexes] for route, indexes in places.items()}, max_batches)
    groups = [group for route, indexes in places.items() for group in _balance(indexes, sizes, shares[route])]
    return tuple(Batch(selected[group[0]].route, tuple(selected[i] for i in group)) for group in sorted(groups))


def pack_requests(
    items: Sequence[T], size_of: Callable[[T], int], limit: int, overhead: int = 0
) -> list[tuple[T, ...]]:
    """Divides items, in their order, into as few requests as hold them.

    Args:
        items: What is to be sent, files as a rule.
        size_of: An item's bytes on the wire, the headers of its part included.
        limit: Bytes that one request may have.
        overhead: Bytes of each request that belong to no item (the closing boundary).

    Returns:
        The items of each request, in order; no request is empty.

    Raises:
        ValueError: If an item alone is larger than a request may be; nothing is named, for its name may be a patient's.
    """
    requests: list[tuple[T, ...]] = []
    current: list[T] = []
    room = limit - overhead
    for item in items:
        size = size_of(item)
        if size > limit - overhead:
            msg = f"a file of {size} bytes on the wire is larger than one request may be ({limit} bytes)"
            raise ValueError(msg)
        if size > room:
            requests.append(tuple(current))
            current, room = [], limit - overhead
        current.append(item)
        room -= size
    if current:
        requests.append(tuple(current))
    return requests


def _shares(sizes: dict[Route, list[int]], max_batches: int) -> dict[Route, int]:
    """How many batches each route gets: the next one always goes where batches are fullest."""
    shares = {route: min(1, len(each)) for route, each in sizes.items()}
    loads = {route: sum(each) for route, each in sizes.items()}
    for _ in range(max_batches - sum(shares.values())):
        wanting = [route for route in shares if shares[route] < len(sizes[route])]
        if not wanting:
            break
        fullest = max(wanting, key=lambda route: loads[route] / shares[route])
        shares[fullest] += 1
    return shares


def _balance(indexes: list[int], sizes: list[int], count: int) -> list[list[int]]:
    """Longest processing time first: the largest that is left goes to the lightest batch."""
    groups: list[list[int]] = [[] for _ in range(count)]
    lightest = [(0, 0, number) for number in range(count)]
    for i in sorted(indexes, key=lambda i: (-sizes[i], i)):
        load, members, number = heapq.heappop(lightest)
        groups[number].append(i)
        heapq.heappush(lightest, (load + sizes[i], members + 1, number))
    return [sorted(group) for group in groups]
