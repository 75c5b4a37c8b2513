"""Folders of images are listed whole: every file is used, or named; ids find their files whatever their spelling."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from elta_tune.data.cache.decoding import KINDS
from elta_tune.data.folders import IMAGE_SUFFIXES, OTHER_SUFFIXES, ImageFolder, list_folder


def write(folder: Path, *names: str) -> Path:
    """A folder with an image of each name, whatever its suffix."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(file, "JPEG")
    return folder


def test_suffixes_are_those_of_the_decoded_kinds() -> None:
    registered = Image.registered_extensions()
    assert {suffix for suffix, kind in registered.items() if kind in (*KINDS, "MPO")} == {*IMAGE_SUFFIXES}
    assert not {*IMAGE_SUFFIXES} & {*OTHER_SUFFIXES}


class TestListing:
    def test_uses_images_of_every_suffix(self, tmp_path: Path) -> None:
        names = ["A.JPG", "b.jfif", "c.jpe", "d.mpo", "deep/er/e.webp", "f.tif", "g.avif", "h.jp2", "no_suffix"]
        listing = list_folder(write(tmp_path, *names))
        assert listing.images == sorted(names)
        assert listing.notes == ()

    def test_unused_files_are_named(self, tmp_path: Path) -> None:
        write(tmp_path, "a.jpg", "b.heic", ".c.jpg", "__MACOSX/d.jpg", ".trash/e.jpg")
        for name in ("notes.txt", "Makefile", "1.json", "2.json"):
            (tmp_path / name).write_text("no image")
        (tmp_path / "dead.jpg").symlink_to("nowhere")
        os.mkfifo(tmp_path / "pipe.jpg")
        listing = list_folder(tmp_path)
        assert listing.images == ["a.jpg"]
        (note,) = listing.notes
        assert note.startswith(f"{tmp_path}: not used: ")
        for part in (
            "1 dead links (dead.jpg)",
            "3 hidden (.c.jpg, .trash, __MACOSX)",
            "1 images of kinds that are not supported (b.heic)",
            "4 not images (1.json, 2.json, Makefile, …)",
            "1 not regular files (pipe.jpg)",
        ):
            assert part in note

    def test_names_a_folder_that_it_may_not_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path, "a.jpg", "locked/b.jpg")
        scandir = os.scandir

        def refuse(path: Path) -> object:  # root may read everywhere
            if str(path).rstrip("/").endswith("locked"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        assert list_folder(tmp_path).notes == (f"{tmp_path}: not used: 1 can't be listed (locked/)",)

    def test_follows_a_linked_folder_once(self, tmp_path: Path) -> None:
        write(tmp_path / "elsewhere", *(f"{number}.jpg" for number in range(12)))
        pool = write(tmp_path / "pool", "a.jpg", "z/b.jpg")
        (pool / "c").symlink_to(tmp_path / "elsewhere")
        (pool / "d").symlink_to(tmp_path / "elsewhere")
        (pool / "e").symlink_to(pool / "z")  # which is there under its own name
        (pool / "z" / "up").symlink_to(pool)
        (pool / "loop").symlink_to(pool / "loop")
        listing = list_folder(pool)
        assert [name for name in listing.images if "/" not in name or name.startswith("z/")] == ["a.jpg", "z/b.jpg"]
        linked = [name for name in listing.images if name.startswith(("c/", "d/"))]
        assert len(listing.images) == 14
        assert len(linked) == 12
        assert listing.unused == {"dead links": ["loop"]}


SPELLINGS = {
    "no suffix, .webp": ("train000", "train000.webp"),
    "no suffix, .bmp": ("train000", "train000.bmp"),
    "no suffix, .tif": ("train000", "train000.tif"),
    "no suffix, .Jpg": ("train000", "train000.Jpg"),
    "backslash": ("sub\\a.jpg", "sub/a.jpg"),
    "case of the suffix": ("a.jpg", "a.JPG"),
    "case of the name": ("IMG_1.jpg", "img_1.jpg"),
    "another suffix of JPEG": ("a.jpg", "a.jpeg"),
    "blanks": (" a.jpg ", "a.jpg"),
    "a dot": ("./a.jpg", "a.jpg"),
    "two slashes": ("sub//a.jpg", "sub/a.jpg"),
    "composed": (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg")),
    "decomposed": (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café.JPG")),
    "not UTF-8": (os.fsdecode(b"tom\xe9"), os.fsdecode(b"tom\xe9.webp")),
}


class TestFinding:
    @pytest.mark.parametrize("case", SPELLINGS)
    def test_finds_an_id_that_is_spelled_otherwise(self, tmp_path: Path, case: str) -> None:
        name, file = SPELLINGS[case]
        found = ImageFolder(str(write(tmp_path, "other.jpg", file))).find(name)
        assert found is not None
        assert os.path.samefile(found, tmp_path / file)

    def test_prefers_the_exact_name(self, tmp_path: Path) -> None:
        folder = ImageFolder(str(write(tmp_path, "a.jpg", "A.JPG", "a.webp", "b.webp", "B.webp", "c", "c.jpg")))
        assert folder.find("a.jpg") == str(tmp_path / "a.jpg")
        assert folder.find("A.JPG") == str(tmp_path / "A.JPG")
        assert folder.find("a") == str(tmp_path / "a.jpg")
        assert folder.find("B") == str(tmp_path / "B.webp")
        assert folder.find("c") == str(tmp_path / "c")

    def test_names_the_candidates_of_an_ambiguous_id(self, tmp_path: Path) -> None:
        folder = ImageFolder(str(write(tmp_path, "a.webp", "a.tif", "B.jpeg", "b.JPG")))
        for name, candidates in {"a": "'a.tif', 'a.webp'", "b.Jpg": "'B.jpeg', 'b.JPG'"}.items():
            assert folder.find(name) is None
            assert folder.why_missing(name) == f"it may be any of {candidates}"

    @pytest.mark.parametrize(
        ("name", "similar"),
        [
            ("1.jpg", "00001.jpg"),
            ("a.png", "a.jpg"),
            ("a.heic", "a.jpg"),
            ("images/a.jpg", "a.jpg"),
            ("b-1", "sub/b_01.jpg"),
            ("zebra.jpg", None),
        ],
    )
    def test_names_the_file_that_an_id_may_mean(self, tmp_path: Path, name: str, similar: str | None) -> None:
        folder = ImageFolder(str(write(tmp_path, "00001.jpg", "a.jpg", "sub/b_01.jpg")))
        assert folder.find(name) is None
        assert folder.why_missing(name) == "there is no such file" + (f"; did you mean {similar!r}?" if similar else "")

    @pytest.mark.parametrize("name", ["..\\secret.jpg", "../secret", "../SECRET.JPG", "sub\\..\\..\\secret.jpg"])
    def test_never_leaves_the_folder(self, tmp_path: Path, name: str) -> None:
        write(tmp_path, "secret.jpg", "images/sub/a.jpg")
        assert ImageFolder(str(tmp_path / "images")).find(name) is None

    def test_lists_the_folder_only_if_an_id_needs_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = ImageFolder(str(write(tmp_path, "a.jpg", "b.webp", "c.tif")))
        listed: list[object] = []
        scandir = os.scandir
        monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
        assert folder.find("a")
        assert listed == []
        assert folder.find("b")
        assert folder.find("c")
        assert len(listed) == 1
