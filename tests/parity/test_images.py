"""Golden I: the ADM centre crop and the scaling of bytes to [-1, 1], exactly."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from pmf.data.codec import to_unit_range
from pmf.data.transforms import center_crop, decode
from tests.parity.golden import Golden


def synthetic_image(width: int, height: int, k: int) -> np.ndarray:
    """The formula of the vectors' description; (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    red = (x * (3 + k) + y * 5 + (x * y) // 7) % 256
    green = (x * x // 11 + y * (7 + k)) % 256
    blue = ((x // 8 + y // 8) % 2) * 180 + (x * 13 + y * 29 * (k + 1)) % 76
    return np.stack([red, green, blue], -1).astype(np.uint8)


@pytest.mark.parametrize("name", Golden("I_center_crop").meta["cases"])
def test_center_crop_equals_the_official_bytes(name):
    golden = Golden("I_center_crop")
    case = golden.meta["cases"][name]
    pixels = synthetic_image(case["width"], case["height"], case["k"])
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == case["sha256_in"]
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(np.asarray(center_crop(image, case["target"])), golden.arrays[name])
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    decoded = decode(encoded.getvalue(), 3, case["target"])
    np.testing.assert_array_equal(decoded, golden.arrays[name].transpose(2, 0, 1))


def test_scaling_to_unit_range_equals_the_official_bits():
    golden = Golden("I_center_crop")
    pixels = golden["process/in"]
    assert np.array_equal(to_unit_range(pixels).numpy(), golden.arrays["process/noflip"])
    assert np.array_equal(to_unit_range(pixels.flip(1)).numpy(), golden.arrays["process/flip"])
