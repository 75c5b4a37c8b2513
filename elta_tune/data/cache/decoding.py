"""Files into pixels: decoded, upright, RGB, resized. What changes pixels here needs another `RULE`.

16-bit greyscale           scaled to 8 bits, 65535 being white (Pillow alone would clip it at 255)
32-bit greyscale, floats   refused: the white level is undefined
transparency of any kind   composited on white
CMYK, YCbCr, Lab, palette  as Pillow converts them; colour profiles are not applied
several frames             the first
over 89 million pixels     refused before any is decoded, as Pillow warns of such
over MAX_BYTES             refused before it is read
any other kind of file     refused, whatever its name: Pillow would start Ghostscript for an EPS

Pillow decodes, at a fraction of the size where a JPEG is far larger than wanted (its draft mode, which leaves libjpeg
out most of the work). Measured next to it at the same pixels, in ms per image on one core: at 640×480, whole, Pillow
1.44, simplejpeg 1.24, torchvision 0.88; at 12 megapixels, as drafts, Pillow 30.2 and the quickest of the others 29.8.
Reading and resizing take the rest, a cache is built once, and another decoder would be one more thing to install.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageOps, ImageStat

RULE = "3: first frame, EXIF rotation, RGB on white, Pillow bilinear squash"
"""What turns a file into pixels; another rule is another cache."""
KINDS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000")
"""Kinds of files that are decoded; an MPO is a JPEG with more behind it."""
MAX_BYTES = 2**29
"""Largest file: no image of 89 million pixels needs more."""
STRIP = 64
"""Rows of an image that are converted at once."""
THUMBNAIL = 8
ROOM = 2.5
"""A JPEG is decoded at ½, ¼ or ⅛ of its size as long as this many times the wanted size remains of it."""
DOUBT = 1.75
"""Grey levels by which halving such an image once more may change the resized one, on average. It shows without a full
decode how far the resized image is from a full decode's: at most half as far, on photographs, noise and hard edges."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the orientation in its EXIF."""
SIDEWAYS = [TURNS[orientation] for orientation in range(5, 9)]


@dataclass(frozen=True)
class Shrunk:
    """An image as squares: `pixels` (S, S, 3) by their edge, the `thumbnail` (8, 8, 3); `size` is its own, upright."""

    pixels: dict[int, NDArray[np.uint8]]
    thumbnail: NDArray[np.uint8]
    size: tuple[int, int]


@dataclass(frozen=True)
class Decoded:
    """An RGB image at `whole` size or less, to be turned; `width` and `height` are what of it is image, not padding."""

    image: Image.Image
    width: float
    height: float
    whole: tuple[int, int]
    turn: Image.Transpose | None

    @property
    def is_reduced(self) -> bool:
        """Whether pixels were left out."""
        return self.image.size != self.whole

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole image, upright."""
        width, height = self.whole
        return (height, width) if self.turn in SIDEWAYS else (width, height)

    def squashed(self, size: int) -> Image.Image:
        """The image as a square, not yet turned."""
        return self.image.resize((size, size), Image.Resampling.BILINEAR, (0, 0, self.width, self.height))

    def upright(self, square: Image.Image) -> NDArray[np.uint8]:
        """A square of the image, turned: (S, S, 3)."""
        return np.asarray(square if self.turn is None else square.transpose(self.turn))

    def reduced(self, factor: int) -> Decoded:
        """The mean of each `factor`² pixels."""
        return replace(self, image=self.image.reduce(factor), width=self.width / factor, height=self.height / factor)


@contextlib.contextmanager
def strict_decoding() -> Iterator[None]:
    """Refuses decompression bombs in all decoding of the block. Threads can't have their own filters of warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning)  # odd EXIF and palettes: only the pixels matter
        yield


def read_content(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: it can't be read.
        ValueError: it is larger than MAX_BYTES.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"the file has {size / 2**20:.0f} MiB, more than the {MAX_BYTES / 2**20:.0f} of any image")
    return path.read_bytes()


def decode(content: bytes) -> Image.Image:
    """The whole image as one sees it: first frame, rotated as its EXIF says, RGB. Call it in `strict_decoding`.

    Raises:
        Exception: unreadable; a hostile file may raise anything.
    """
    with Image.open(io.BytesIO(content), formats=KINDS) as image:
        return _rgb(ImageOps.exif_transpose(image))


def shrink(content: bytes, sizes: Sequence[int]) -> Shrunk:
    """The image squashed to squares, on average within a grey level of resizing it whole. Call it in `strict_decoding`.

    Raises:
        Exception: unreadable; a hostile file may raise anything.
    """
    largest = max(sizes)
    decoded = _decode(content, math.ceil(ROOM * largest))
    square = decoded.squashed(largest)
    if decoded.is_reduced and _difference(square, decoded.reduced(2).squashed(largest)) > DOUBT:
        decoded = _decode(content, None)
        square = decoded.squashed(largest)
    squares = {size: square if size == largest else decoded.squashed(size) for size in sizes}
    # Fast means first, to at least eight times the wanted size: as good as one exact pass, and four times as fast.
    thumbnail = decoded.reduced(max(1, min(decoded.image.size) // (8 * THUMBNAIL))).squashed(THUMBNAIL)
    pixels = {size: decoded.upright(square) for size, square in squares.items()}
    return Shrunk(pixels, decoded.upright(thumbnail), decoded.size)


def _decode(content: bytes, enough: int | None) -> Decoded:
    """Decodes so that at least `enough` pixels remain in both directions; None is all of them."""
    with Image.open(io.BytesIO(content), formats=KINDS) as image:
        whole = image.size
        drafted = None if enough is None else image.draft(None, (enough, enough))
        width, height = image.size if drafted is None else drafted[1][2:]
        image.load()
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        return Decoded(_rgb(image), width, height, whole, turn)


def _rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, on white where it is transparent."""
    if image.mode in ("I", "F"):
        raise ValueError("32-bit greyscale is not supported: its white level is undefined")
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale in 8 bits, a strip after the other: all of it in 32 bits would take ten times its size."""
    grey = Image.new("L", image.size)
    for top in range(0, image.height, STRIP):
        levels = np.asarray(image.crop((0, top, image.width, min(top + STRIP, image.height)))).astype(np.uint32)
        grey.paste(Image.fromarray(((levels + 128) // 257).astype(np.uint8)), (0, top))
    return grey


def _difference(one: Image.Image, other: Image.Image) -> float:
    """Mean over pixels and channels, in grey levels."""
    means = ImageStat.Stat(ImageChops.difference(one, other)).mean
    return sum(means) / len(means)


def is_image_start(start: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of an image of a kind that is decoded."""
    Image.init()
    accepts = (accept for _, accept in (Image.OPEN[kind] for kind in KINDS) if accept is not None)
    return any(accept(start) for accept in accepts)
