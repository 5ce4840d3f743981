"""The batched pixel operations against Pillow's own, to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fastgrow.substrate import raster

SIZES = [(32, 32), (32, 64), (32, 96), (64, 192), (13, 39)]


def random_images(n: int, height: int, width: int, seed: int) -> np.ndarray:
    """Half of them grey, half of them black and white."""
    images = np.random.default_rng(seed).integers(0, 256, (n, height, width), dtype=np.uint8)
    images[::2] = np.where(images[::2] < 128, 0, 255)
    return images


@pytest.mark.parametrize("degrees", [0.0, 1.1, -3.7, 4.0, -7.0, 45.0])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_rotation_is_pillows(height: int, width: int, degrees: float) -> None:
    images = random_images(2, height, width, seed=1)
    sources = raster.rotation_sources(height, width, degrees)
    rotated = raster.gather(images, sources, outside=255)
    for image, mine in zip(images, rotated, strict=True):
        expected = Image.fromarray(image).rotate(degrees, expand=False, fillcolor=255)
        np.testing.assert_array_equal(mine, np.array(expected))


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (2, -1), (-2, 1), (-3, -3), (3, 2)])
def test_shift_is_a_paste_onto_white(dx: int, dy: int) -> None:
    images = random_images(2, 32, 64, seed=2)
    sources = raster.shift_sources(np.arange(32 * 64).reshape(32, 64), dx, dy)
    for image, mine in zip(images, raster.gather(images, sources, outside=255), strict=True):
        expected = Image.new("L", (64, 32), color=255)
        expected.paste(Image.fromarray(image), (dx, dy))
        np.testing.assert_array_equal(mine, np.array(expected))


@pytest.mark.parametrize("radius", [0.3, 0.5, 0.8, 1.3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_blur_is_pillows(height: int, width: int, radius: float) -> None:
    images = random_images(4, height, width, seed=3)
    blurred = raster.blur(raster.blur(images, radius, axis=2), radius, axis=1)
    for image, mine in zip(images, blurred, strict=True):
        expected = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
        np.testing.assert_array_equal(mine, np.array(expected))


def test_blur_refuses_a_radius_that_needs_a_wider_box() -> None:
    with pytest.raises(ValueError, match="beyond one neighbour"):
        raster.blur(random_images(1, 8, 8, seed=0), 1.5, axis=1)


@pytest.mark.parametrize("size", [16, 31, 32, 64])
def test_polar_order_sorts_by_distance_then_angle(size: int) -> None:
    places = sorted(
        (math.hypot(x - size / 2, y - size / 2), math.atan2(y - size / 2, x - size / 2), x, y)
        for y in range(size)
        for x in range(size)
    )
    assert raster.polar_order(size).tolist() == [y * size + x for _, _, x, y in places]
