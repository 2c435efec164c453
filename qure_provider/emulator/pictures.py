"""Small pictures drawn from what was uploaded, each with the mark in plain sight."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from PIL import Image, ImageDraw, ImageFont
from pydicom.pixels.processing import apply_rescale
from pydicom.pixels.utils import pixel_array

from qure_provider.emulator.findings import SIMULATED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

EDGE = 512
"""Longest edge of a picture, in pixels."""

_SIDEBAR = 200
_LINE = 16
_MARK = (255, 208, 0)
_FINDING = (255, 80, 64)
_TEXT = (235, 235, 235)


def grey(dataset: pydicom.Dataset, edge: int | None) -> Image.Image | None:
    """Turn an image's first frame into a grey picture, as a viewer would first show it.

    Args:
        dataset: The image, pixels included.
        edge: Longest edge; None keeps the size.

    Returns:
        The picture; None where there are no pixels or their encoding cannot be read here.
    """
    try:
        pixels = pixel_array(dataset, index=0)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError, KeyError):
        return None
    if edge is not None:
        step = max(1, max(pixels.shape[:2]) // edge)
        pixels = pixels[::step, ::step]
    if pixels.ndim == 3:
        return _fitted(Image.fromarray(_stretched(pixels, None)).convert("L"), edge)
    values = apply_rescale(pixels, dataset) if dataset.get("Modality") == "CT" else pixels
    shown = _stretched(values, _window(dataset))
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        shown = 255 - shown
    return _fitted(Image.fromarray(shown), edge)


def _window(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    if dataset.get("Modality") != "CT":
        return None
    center, width = (
        value[0] if isinstance(value, pydicom.multival.MultiValue) else value
        for value in (dataset.get("WindowCenter"), dataset.get("WindowWidth"))
    )
    if center is None or not width:
        return -160.0, 240.0
    return float(center) - float(width) / 2, float(center) + float(width) / 2


def _stretched(values: NDArray[Any], limits: tuple[float, float] | None) -> NDArray[np.uint8]:
    low, high = limits or np.percentile(values[::8, ::8], (1, 99))
    result: NDArray[np.uint8] = np.interp(values, (low, max(high, low + 1e-6)), (0, 255)).astype(np.uint8)
    return result


def _fitted(picture: Image.Image, edge: int | None) -> Image.Image:
    if edge is not None:
        picture.thumbnail((edge, edge), Image.Resampling.BILINEAR)
    return picture


@lru_cache(maxsize=32)
def preview(path: Path) -> Image.Image:
    """Show a received file small.

    Args:
        path: The file.

    Returns:
        A grey picture, not to be drawn on; a blank one where there is nothing that can be shown.
    """
    return grey(pydicom.dcmread(path), EDGE) or Image.new("L", (EDGE, EDGE), 32)


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def capture(path: Path, findings: Sequence[tuple[str, str]], lines: Sequence[str] | None) -> Image.Image:
    """Draw what a secondary capture shows: the image, a ring for each finding, and the mark.

    Args:
        path: The received file.
        findings: Key and sentence of each finding.
        lines: Report for a bar beside the image; None leaves the bar out.

    Returns:
        A colour picture.
    """
    picture = preview(path).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for key, _ in findings:
        _ring(draw, picture.size, key)
    if lines is not None:
        whole = Image.new("RGB", (picture.width + _SIDEBAR, picture.height))
        whole.paste(picture, (0, 0))
        picture, edge = whole, picture.width
        draw = ImageDraw.Draw(picture)
        text = "\n".join(_wrapped(line, _SIDEBAR - 16) for line in lines)
        draw.multiline_text((edge + 8, 2 * _LINE), text, fill=_TEXT, font=_font(12), spacing=4)
    _banner(draw, picture.size)
    return picture


def thumbnail(picture: Image.Image, edge: int = 128) -> Image.Image:
    """Shrink a picture and mark it again, since its mark is no longer legible.

    Args:
        picture: The picture; it is left as it is.
        edge: Longest edge.

    Returns:
        A small colour picture.
    """
    small = picture.convert("RGB")
    small.thumbnail((edge, edge), Image.Resampling.BILINEAR)
    _banner(ImageDraw.Draw(small), small.size)
    return small


def png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG, with the mark among its texts."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("Comment", SIMULATED)
    encoded = io.BytesIO()
    picture.save(encoded, "PNG", compress_level=1, pnginfo=texts)
    return encoded.getvalue()


def ring(size: tuple[int, int], key: str) -> tuple[float, float, float]:
    """Say where a finding is drawn; it means nothing.

    Args:
        size: Width and height of the image.
        key: The finding's key.

    Returns:
        Column and row of the centre, and radius, in pixels.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return (
        size[0] * (0.3 + 0.4 * digest[0] / 255),
        size[1] * (0.3 + 0.4 * digest[1] / 255),
        min(size) * (0.06 + 0.06 * digest[2] / 255),
    )


def _ring(draw: ImageDraw.ImageDraw, size: tuple[int, int], key: str) -> None:
    column, row, radius = ring(size, key)
    draw.ellipse((column - radius, row - radius, column + radius, row + radius), outline=_FINDING, width=3)
    draw.text((column, row + radius + 2), key, fill=_FINDING, font=_font(12), anchor="ma")


def _banner(draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    """Write the mark across the top and the bottom, as large as fits."""
    width, height = size
    points = _points(width)
    for top in (0, height - points - 4):
        draw.rectangle((0, top, width, top + points + 4), fill=(0, 0, 0))
        draw.text((width / 2, top + 2), SIMULATED, fill=_MARK, font=_font(points), anchor="ma")


@lru_cache(maxsize=64)
def _points(width: int) -> int:
    return next((points for points in range(20, 5, -1) if _font(points).getlength(SIMULATED) <= width - 4), 5)


def _wrapped(line: str, width: int) -> str:
    rows = [""]
    for word in line.split():
        longer = f"{rows[-1]} {word}".strip()
        if _font(12).getlength(longer) <= width or not rows[-1]:
            rows[-1] = longer
        else:
            rows.append(word)
    return "\n".join(rows)
