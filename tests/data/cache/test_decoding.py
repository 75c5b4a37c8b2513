"""Images are decoded in part where that is quicker, and are those of a full decode to within a grey level."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from elta_tune.data.cache.decoding import decode, shrink, strict_decoding
from elta_tune.data.demo import Grades, photograph
from elta_tune.data.overlap import NEAR

Picture = NDArray[np.uint8]
WIDTH, HEIGHT = 1203, 905  # no multiples of what JPEG makes its blocks of
DOWN, RIGHT = np.mgrid[:HEIGHT, :WIDTH]
RANDOM = np.random.default_rng(0)


def scene(seed: int) -> Picture:
    """A photograph of the demo, with the grain of a camera."""
    picture = photograph(Grades(*[1.0] * 5), 256, np.random.default_rng(seed))
    large = Image.fromarray(picture).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, 6, (HEIGHT, WIDTH, 1))
    return (np.asarray(large) + grain).clip(0, 255).astype(np.uint8)


def grey(levels: NDArray[np.float64] | NDArray[np.int64]) -> Picture:
    """The same in all channels."""
    return np.repeat(levels[..., None], 3, axis=2).astype(np.uint8)


def shapes() -> Picture:
    """Overlapping rectangles and discs of hard colours."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for number in range(60):
        y, x, radius = RANDOM.integers(0, HEIGHT), RANDOM.integers(0, WIDTH), RANDOM.integers(20, 200)
        inside = (abs(DOWN - y) < radius) & (abs(RIGHT - x) < radius)
        if number % 2:
            inside = (DOWN - y) ** 2 + (RIGHT - x) ** 2 < radius**2
        picture[inside] = RANDOM.integers(0, 2, 3) * 255
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    **{f"photograph {seed}": lambda seed=seed: scene(seed) for seed in range(3)},
    "noise": lambda: RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8),
    "black and white noise": lambda: grey(RANDOM.integers(0, 2, (HEIGHT, WIDTH)) * 255),
    "coarse noise": lambda: RANDOM.integers(0, 256, (40, 50, 3)).repeat(24, 0).repeat(25, 1)[:HEIGHT, :WIDTH],
    "shapes": shapes,
    "stripes": lambda: grey((RIGHT // 20 % 2) * 255),
    "checks": lambda: grey(((RIGHT // 29 + DOWN // 29) % 2) * 255),
    "fine checks": lambda: grey(((RIGHT // 7 + DOWN // 7) % 2) * 255),
    "rings": lambda: grey(127.5 + 127.5 * np.cos(((RIGHT - 600) ** 2 + (DOWN - 450) ** 2) / 400)),
}


def jpeg(picture: Picture, **options: object) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.fixture
def strictly() -> Iterator[None]:
    """Tests decode as the cache does."""
    with strict_decoding():
        yield


def full(content: bytes, size: int) -> NDArray[np.int64]:
    """Pillow's own resize of everything."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.usefixtures("strictly")
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("name", PICTURES)
def test_each_image_is_within_a_grey_level_of_a_full_decode(name: str, subsampling: int) -> None:
    content = jpeg(PICTURES[name](), subsampling=subsampling)
    sizes = [176, 120, 90, 64, 42, 30, 20]  # from ½ with 2.5 times the pixels wanted to ⅛ with much more
    together = shrink(content, [90, 64])
    for size in sizes:
        shrunk = shrink(content, [size])
        assert shrunk.size == (WIDTH, HEIGHT)
        assert abs(shrunk.pixels[size] - full(content, size)).mean() <= 1
        assert abs(shrunk.thumbnail - full(content, 8)).mean() <= NEAR  # or copies in other formats are not found
    for size, pixels in together.pixels.items():
        assert abs(pixels - full(content, size)).mean() <= 1


@pytest.mark.usefixtures("strictly")
@pytest.mark.parametrize(("size", "divisor"), [(300, 1), (180, 2), (176, 2), (90, 4), (64, 4), (45, 8), (20, 8)])
def test_jpeg_is_decoded_at_the_smallest_sufficient_size(
    size: int, divisor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[int, int]] = []
    original = JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda image: loaded.append(image.size) or original(image))
    shrink(jpeg(scene(0)), [size])
    assert set(loaded) == {(-(-WIDTH // divisor), -(-HEIGHT // divisor))}


@pytest.mark.usefixtures("strictly")
def test_other_images_match_pillow_bit_exactly() -> None:
    picture = scene(1)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    for content, size in ((buffer.getvalue(), 40), (jpeg(picture), 200)):
        np.testing.assert_array_equal(shrink(content, [size]).pixels[size], full(content, size))


@pytest.mark.usefixtures("strictly")
@pytest.mark.parametrize("size", [20, 100])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_by_their_exif(orientation: int, size: int) -> None:
    upright = np.zeros((300, 500, 3), np.uint8)
    upright[:100, :100] = 255, 0, 0  # a red corner at the top left, a green one at the top right
    upright[:100, -100:] = 0, 255, 0
    turned = {  # what a camera held that way stores
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(np.ascontiguousarray(turned), exif=exif, subsampling=0)
    assert abs(np.asarray(decode(content)).astype(int) - upright).mean() < 1
    straight = Image.fromarray(upright).resize((size, size), Image.Resampling.BILINEAR)
    shrunk = shrink(content, [size])
    assert shrunk.size == (500, 300)
    assert abs(shrunk.pixels[size].astype(int) - np.asarray(straight)).mean() < 1


@pytest.mark.usefixtures("strictly")
def test_grey_of_16_bits_is_scaled_in_little_memory() -> None:
    levels = np.random.default_rng(2).integers(0, 65536, (1500, 1000)).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG", compress_level=1)
    tracemalloc.start()
    grey = decode(buffer.getvalue())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    expected = np.floor(levels / 257 + 0.5)
    assert (np.asarray(grey) == expected[..., None]).all()
    assert peak < 2 * levels.nbytes  # what NumPy and the file take; Pillow's own is not counted
