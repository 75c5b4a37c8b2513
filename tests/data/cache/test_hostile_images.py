"""Imperfect images: each is read as documented here, or left out with a reason."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from elta_tune.config import DataConfig
from elta_tune.data.cache import decoding
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import prepare
from elta_tune.errors import DataError

SIZE = 16
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
RAMP = np.linspace(0, 255, 60).round().astype(np.uint8)[None].repeat(40, axis=0)
"""Grey from black at the left to white at the right."""
GREY = RAMP[..., None].repeat(3, axis=2)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(edge: int, colour_type: int = 2) -> bytes:
    """A PNG of `edge`² pixels, all 0, in a few hundred kB at most."""
    channels = {0: 1, 2: 3}[colour_type]
    packer = zlib.compressobj(1)
    row = b"\0" * (1 + edge * channels)
    data = b"".join(packer.compress(row) for _ in range(min(edge, 300))) + packer.flush()
    header = struct.pack(">IIBBBBB", edge, edge, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def rotated() -> bytes:
    """A JPEG that a camera took upright, held on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    return encoded(Image.fromarray(np.rot90(NOISE, 1).copy()), "PNG", exif=exif)


def transparent_palette() -> bytes:
    """The left half red, the right half transparent."""
    image = Image.new("P", (60, 40), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (30, 0, 60, 40))
    return encoded(image, "PNG", transparency=1)


def half(left: tuple[int, int, int], right: tuple[int, int, int]) -> NDArray[np.uint8]:
    """What such a picture looks like."""
    picture = np.empty((40, 60, 3), np.uint8)
    picture[:, :30], picture[:, 30:] = left, right
    return picture


def see_through() -> bytes:
    """Black, half transparent."""
    return encoded(Image.new("RGBA", (60, 40), (0, 0, 0, 128)), "PNG")


def cmyk() -> bytes:
    """Pure cyan and pure yellow as printers mix them."""
    image = Image.new("CMYK", (60, 40), (255, 0, 0, 0))
    image.paste((0, 0, 255, 0), (30, 0, 60, 40))
    return encoded(image, "TIFF")


def frames() -> bytes:
    """Three frames; the first is red."""
    colours = [Image.new("RGB", (60, 40), colour) for colour in ("red", "lime", "blue")]
    return encoded(colours[0], "GIF", save_all=True, append_images=colours[1:], duration=100)


def stereo() -> bytes:
    """What a camera with two eyes writes."""
    return encoded(Image.fromarray(GREY), "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40))], quality=98)


def deep(form: str) -> bytes:
    """Grey of 16 bits, from 0 to 65535."""
    return encoded(Image.fromarray((RAMP.astype(np.uint16)) * 257), form)


class Read(NamedTuple):
    """A file that is read, and the picture that it shows."""

    name: str
    content: Callable[[], bytes]
    picture: NDArray[np.uint8]
    tolerance: int = 0


READ = {
    "EXIF rotation: upright": Read("a.png", rotated, NOISE, 1),  # turned after it is resized
    "grey of 16 bits: scaled": Read("a.png", lambda: deep("PNG"), GREY),
    "grey of 16 bits, TIFF: scaled": Read("a.tif", lambda: deep("TIFF"), GREY),
    "grey of 8 bits": Read("a.png", lambda: encoded(Image.fromarray(RAMP), "PNG"), GREY),
    "black and white": Read("a.png", lambda: encoded(Image.new("1", (60, 40), 1), "PNG"), np.full_like(GREY, 255)),
    "palette with alpha: on white": Read("a.png", transparent_palette, half((255, 0, 0), (255, 255, 255))),
    "alpha: on white": Read("a.png", see_through, np.full_like(GREY, 127)),
    "CMYK: as Pillow converts it": Read("a.tif", cmyk, half((0, 255, 255), (255, 255, 0))),
    "CMYK JPEG": Read(
        "a.jpg",
        lambda: encoded(Image.new("CMYK", (60, 40), (0, 255, 255, 0)), "JPEG"),
        half((255, 0, 0), (255, 0, 0)),
        3,
    ),
    "animated GIF: the first frame": Read("a.gif", frames, half((255, 0, 0), (255, 0, 0))),
    "MPO: the first frame": Read("a.jpg", stereo, GREY, 3),
    "WebP": Read("a.png", lambda: encoded(Image.fromarray(NOISE), "WEBP", lossless=True), NOISE),
    "a PNG called .jpg: by its content": Read("a.jpg", lambda: encoded(Image.fromarray(NOISE), "PNG"), NOISE),
    "EXIF that is garbage: as it lies": Read(
        "a.jpg", lambda: encoded(Image.fromarray(GREY), "JPEG", quality=98, exif=b"Exif\0\0MM\0*garbage"), GREY, 3
    ),
    "trailing garbage": Read("a.png", lambda: encoded(Image.fromarray(NOISE), "PNG") + b"garbage" * 99, NOISE),
    "one pixel": Read("a.png", lambda: encoded(Image.new("RGB", (1, 1), "red"), "PNG"), half((255, 0, 0), (255, 0, 0))),
}
UNREADABLE = {
    "truncated JPEG": ("a.jpg", lambda: encoded(Image.fromarray(NOISE), "JPEG")[:-200], "truncated"),
    "truncated PNG": ("a.png", lambda: encoded(Image.fromarray(NOISE), "PNG")[:3000], ""),
    "zero bytes": ("a.jpg", lambda: b"", "it is not an image"),
    "a text": ("a.jpg", lambda: b"<html>404 Not Found</html>", "it is not an image"),
    "an EPS": ("a.jpg", lambda: encoded(Image.fromarray(NOISE), "EPS"), "it is not an image"),
    "a PNG bomb": ("a.png", lambda: png_bomb(30_000), "pixels"),
    "a PNG bomb that Pillow only warns of": ("a.png", lambda: png_bomb(10_000), "100000000 pixels"),
    "a PNG that claims to have no pixels": ("a.png", lambda: png_bomb(0), ""),
    "grey of 32 bits": (
        "a.tif",
        lambda: encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
        "its white level is undefined",
    ),
    "floats": (
        "a.tif",
        lambda: encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
        "its white level is undefined",
    ),
}


def write_root(root: Path, names: list[str]) -> DataConfig:
    """A data set that trains on these ids and a good image, and validates on another."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("good.png", "val.png")):
        Image.new("RGB", (30, 30), (number, 90, 90)).save(root / "images" / name)
    for split, ids in {"train": ["good.png", *names], "val": ["val.png"]}.items():
        rows = "".join(f'"{name}",1,1\n' for name in ids)
        (root / f"{split}.csv").write_text(f"image_id,count_1,count_2\n{rows}")
    return DataConfig.model_validate({"root": root, "resize": SIZE, "crop": SIZE, "max_missing": 0.5})


@pytest.mark.parametrize("name", READ)
def test_image_is_read_as_documented(tmp_path: Path, name: str) -> None:
    case = READ[name]
    config = write_root(tmp_path, [case.name])
    (tmp_path / "images" / case.name).write_bytes(case.content())
    train = prepare(config, ImageCache(tmp_path / "cache")).train
    assert train.left_out == ()
    got = train.images[SIZE].gather(np.array([1]))[0].astype(int)
    expected = np.asarray(Image.fromarray(case.picture).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(got, expected, atol=case.tolerance)


@pytest.mark.parametrize("name", UNREADABLE)
def test_bad_image_is_left_out_with_a_reason_and_others_kept(tmp_path: Path, name: str) -> None:
    file, content, reason = UNREADABLE[name]
    config = write_root(tmp_path, [file])
    (tmp_path / "images" / file).write_bytes(content())
    train = prepare(config, ImageCache(tmp_path / "cache")).train
    ((left_out, given_reason),) = train.left_out
    assert left_out == file
    assert given_reason
    assert reason in given_reason
    assert train.ids.tolist() == ["good.png"]
    assert train.images[SIZE].gather(np.array([0]))[0, 0, 0].tolist() == [0, 90, 90]
    with pytest.raises(DataError, match="1 of 2 images is missing or unreadable"):
        prepare(config.model_copy(update={"max_missing": 0.4}), ImageCache(tmp_path / "cache"))


def test_bombs_do_not_allocate(tmp_path: Path, watched: Callable[..., list[int]]) -> None:
    write_root(tmp_path, ["small.png", "large.png"])
    (tmp_path / "images" / "small.png").write_bytes(png_bomb(9_500))
    (tmp_path / "images" / "large.png").write_bytes(png_bomb(30_000))
    script = """
import sys
from pathlib import Path
from elta_tune.config import DataConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import prepare
before = peak()
root = Path(sys.argv[1])
train = prepare(DataConfig(root=root, resize=16, crop=16, max_missing=0.9), ImageCache(root / "cache")).train
print(len(train.left_out), peak() - before)
"""
    left_out, grown = watched(script, tmp_path)
    assert left_out == 2
    assert grown < 100e6  # the pixels of the small one would be 270 MB


def test_many_bombs_at_once_are_all_refused(tmp_path: Path) -> None:
    names = [f"bomb{number}.png" for number in range(12)]
    config = write_root(tmp_path, names)
    for name in names:
        (tmp_path / "images" / name).write_bytes(png_bomb(9_600, 0))
    dataset = prepare(config.model_copy(update={"max_missing": 0.95}), ImageCache(tmp_path / "cache"))
    assert {name for name, _ in dataset.train.left_out} == set(names)


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_BYTES", 10_000)
    config = write_root(tmp_path, ["large.png"])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)).save(
        tmp_path / "images" / "large.png"
    )
    ((name, reason),) = prepare(config, ImageCache(tmp_path / "cache")).train.left_out
    assert name == "large.png"
    assert "MiB" in reason


@pytest.mark.parametrize("name", ["../secret.png", "deep/../../secret.png", "../secret", "{root}/secret.png"])
def test_an_id_that_leads_out_of_the_images_is_left_out(tmp_path: Path, name: str) -> None:
    name = name.format(root=tmp_path)
    config = write_root(tmp_path, [name])
    (tmp_path / "images" / "deep").mkdir()
    Image.new("RGB", (30, 30)).save(tmp_path / "secret.png")
    ((left_out, reason),) = prepare(config, ImageCache(tmp_path / "cache")).train.left_out
    assert left_out == name
    assert "leads out of" in reason


def test_an_id_that_only_looks_like_it_leads_out_is_read(tmp_path: Path) -> None:
    names = ["deep/../a..b.png", "..c.png"]
    config = write_root(tmp_path, names)
    (tmp_path / "images" / "deep").mkdir()
    for grey, name in enumerate(("a..b.png", "..c.png")):
        Image.new("RGB", (30, 30), (50 + grey, 0, 0)).save(tmp_path / "images" / name)
    train = prepare(config, ImageCache(tmp_path / "cache")).train
    assert train.ids.tolist() == ["good.png", *names]
    assert train.images[SIZE].gather(np.array([1, 2]))[:, 0, 0, 0].tolist() == [50, 51]


def test_links_out_of_the_root_work_and_dead_links_are_missing(tmp_path: Path) -> None:
    config = write_root(tmp_path / "root", ["link.png", "dead.png", "device.png"])
    Image.new("RGB", (30, 30), (77, 0, 0)).save(tmp_path / "elsewhere.png")
    images = tmp_path / "root" / "images"
    (images / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (images / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (images / "device.png").symlink_to("/dev/zero")
    os.mkfifo(images / "pipe.png")
    train = prepare(config, ImageCache(tmp_path / "cache")).train
    assert train.ids.tolist() == ["good.png", "link.png"]
    assert train.images[SIZE].gather(np.array([1]))[0, 0, 0].tolist() == [77, 0, 0]
    assert train.left_out == (("dead.png", "there is no such file"), ("device.png", "there is no such file"))


@pytest.mark.parametrize("name", ["x" * 5000, "folder"])
def test_an_id_that_no_file_can_have_is_missing(tmp_path: Path, name: str) -> None:
    config = write_root(tmp_path, [name])
    (tmp_path / "images" / "folder").mkdir()
    ((_, reason),) = prepare(config, ImageCache(tmp_path / "cache")).train.left_out
    assert reason == "there is no such file"
