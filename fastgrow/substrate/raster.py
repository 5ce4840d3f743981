"""Pixel operations of the reference recipe, for batches of small greyscale images.

The reference draws with Pillow. These functions apply Pillow's integer formulas to whole batches.
Their results are bit-identical to Pillow's and depend neither on Pillow's version nor on a BLAS.
"""

from __future__ import annotations

import math

import numpy as np

OUTSIDE = -1
_HALF = 1 << 15


def rotation_sources(height: int, width: int, degrees: float) -> np.ndarray:
    """Return the source of each pixel of an image rotated about its centre (nearest neighbour).

    Returns:
        int64 `[height, width]`: index of the source pixel in the flattened image, or `OUTSIDE`.
    """
    angle = -math.radians(degrees % 360.0)
    # Pillow rounds the matrix to 15 digits and then works in 16.16 fixed point.
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    middle_x, middle_y = width / 2, height / 2
    offset_x = cos * -middle_x + sin * -middle_y + middle_x
    offset_y = -sin * -middle_x + cos * -middle_y + middle_y
    x, y = np.arange(width), np.arange(height)[:, None]
    source_x = (_fixed(offset_x + cos * 0.5 + sin * 0.5) + _fixed(sin) * y + _fixed(cos) * x) >> 16
    source_y = (_fixed(offset_y - sin * 0.5 + cos * 0.5) + _fixed(cos) * y + _fixed(-sin) * x) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    return np.where(inside, source_y * width + source_x, OUTSIDE)


def shift_sources(sources: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Return `sources` for an image that is shifted right by `dx` and down by `dy` pixels."""
    height, width = sources.shape
    moved = np.full_like(sources, OUTSIDE)
    to_x, to_y = slice(max(0, dx), width + min(0, dx)), slice(max(0, dy), height + min(0, dy))
    from_x, from_y = slice(max(0, -dx), width - max(0, dx)), slice(max(0, -dy), height - max(0, dy))
    moved[to_y, to_x] = sources[from_y, from_x]
    return moved


def gather(images: np.ndarray, sources: np.ndarray, outside: int) -> np.ndarray:
    """Gather the pixels of images from the indices in `sources`.

    Args:
        images: uint8 `[n, height, width]`.
        sources: int64 `[height, width]`, indices into a flattened image, or `OUTSIDE`.
        outside: value of pixels whose source is `OUTSIDE`.
    """
    flat = np.full((len(images), sources.size + 1), outside, np.uint8)
    flat[:, :-1] = images.reshape(len(images), -1)
    # OUTSIDE is -1, the index of the pixel just appended.
    return flat[:, sources]


def _fixed(value: float) -> int:
    return math.floor(value * 65536.0 + 0.5)


def blur(images: np.ndarray, radius: float, axis: int) -> np.ndarray:
    """Apply one direction of Pillow's Gaussian blur, which is three successive box blurs.

    Pillow blurs along the rows (axis 2) first and then along the columns (axis 1).

    Args:
        images: uint8 `[n, height, width]`.
        radius: standard deviation in pixels, below 1.4 (so that a box includes one neighbour only).
        axis: axis to blur along, 1 or 2.
    """
    centre, side = _box_weights(radius)
    for _ in range(3):
        images = _box_blur(images, centre, side, axis)
    return images


def _box_weights(radius: float) -> tuple[np.uint32, np.uint32]:
    """Return the weights of a pixel and of each neighbour in a box blur, in units of 2^-24."""
    # Single precision, as in Pillow: the last bits of the weights affect the rounding.
    one, three, six = np.float32(1), np.float32(3), np.float32(6)
    variance = np.float32(radius) * np.float32(radius) / three
    if math.sqrt(12 * variance + 1) >= 3:
        raise ValueError(f"a blur of radius {radius} extends beyond one neighbour")
    box = three * variance / (six * (one - variance))
    centre = int(np.float32(1 << 24) / (box + box + one))
    return np.uint32(centre), np.uint32(((1 << 24) - centre) // 2)


def _box_blur(images: np.ndarray, centre: np.uint32, side: np.uint32, axis: int) -> np.ndarray:
    padding = [(0, 0)] * images.ndim
    padding[axis] = (1, 1)
    padded = np.pad(images, padding, mode="edge").astype(np.uint32)
    length = images.shape[axis]
    before, here, after = (
        padded[(slice(None),) * axis + (slice(start, start + length),)] for start in range(3)
    )
    total = (before + after) * side
    total += here * centre
    total += np.uint32(1 << 23)
    total >>= np.uint32(24)
    return total.astype(np.uint8)


def polar_order(size: int) -> np.ndarray:
    """Order the pixels of a square image by distance from (size / 2, size / 2), then by angle.

    Returns:
        int64 `[size * size]`: row-major indices in polar order.
    """
    y, x = np.divmod(np.arange(size * size), size)
    from_x, from_y = 2 * x - size, 2 * y - size
    # Squared integer distances: rounded square roots could separate pixels of equal distance.
    return np.lexsort((y, x, np.arctan2(from_y, from_x), from_x**2 + from_y**2))
