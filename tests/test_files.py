"""Files stay whole through kills and full disks; reading one can neither block nor fill the memory."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from elta_tune.errors import DamagedError
from elta_tune.files import (
    atomic_path,
    damage_errors,
    make_once,
    parse_json,
    read_regular,
    remove_leftovers,
    to_json,
    write_atomic,
    write_json,
)


class Killed(BaseException):
    """Replaces a kill, so that the test can continue in the same process."""


class TestWriting:
    def test_a_write_that_fails_keeps_the_old_file(self, tmp_path: Path) -> None:
        file = tmp_path / "result.json"
        write_json(file, {"old": 1})

        def torn(temporary: Path) -> None:
            temporary.write_text('{"new"')
            raise Killed

        with pytest.raises(Killed):
            write_atomic(file, torn)
        assert json.loads(file.read_text()) == {"old": 1}
        assert list(tmp_path.iterdir()) == [file]

    def test_files_have_the_user_s_permissions(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_text("")
        file = tmp_path / "best.safetensors"
        write_atomic(file, lambda temporary: save_file({"a": torch.zeros(1)}, temporary))  # writes for the owner alone
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_a_folder_replaces_a_folder_with_files(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        for name in ("old", "new"):
            with atomic_path(folder) as temporary:
                (temporary / "deep").mkdir(parents=True)
                (temporary / "deep" / name).touch()
        assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
            "model",
            "model/deep",
            "model/deep/new",
        ]

    WRITERS: tuple[Callable[[Path], object], ...] = (
        lambda temporary: torch.save({"a": torch.zeros(10_000)}, temporary),
        lambda temporary: save_file({"a": torch.zeros(10_000)}, temporary),
        lambda temporary: temporary.write_bytes(bytes(40_000)),
    )

    @pytest.mark.parametrize("write", WRITERS, ids=["torch", "safetensors", "plain"])
    def test_a_full_disk_is_an_os_error_that_names_the_file(
        self, write: Callable[[Path], object], tmp_path: Path, full_disk: Callable[[], None]
    ) -> None:
        file = tmp_path / "last.ckpt"
        file.write_text("old")
        full_disk()
        with pytest.raises(OSError, match=r"last\.ckpt: can't be written, with \d+ MiB free there: .+|File too large"):
            write_atomic(file, write)
        assert file.read_text() == "old"
        assert list(tmp_path.iterdir()) == [file]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from elta_tune.files import write_atomic
def write(temporary):
    temporary.write_bytes(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), write)
"""


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "pseudo_labels").mkdir()
    kept = [tmp_path / ".mine", tmp_path / "config.yaml", tmp_path / "pseudo_labels" / "round_1.csv"]
    for file in kept:
        file.write_text("kept")
    for file in (tmp_path / "last.ckpt", tmp_path / "pseudo_labels" / "round_2.csv"):
        done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(file)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not file.exists()
    assert sum(path.stat().st_size == 1000 for path in tmp_path.rglob("*")) == 2
    exported = tmp_path / ".best.hf.123.aside"  # a folder of files
    exported.mkdir()
    (exported / "model.safetensors").write_bytes(b"x" * 1000)
    remove_leftovers(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    assert not exported.exists()


MAKE = """
import sys
from pathlib import Path
from elta_tune.files import make_once
def write(folder):
    (folder / sys.argv[2]).touch()
    print("writes", flush=True)
    sys.stdin.readline()
make_once(Path(sys.argv[1]), write)
"""


def test_a_folder_is_made_once_also_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "made"

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", MAKE, str(folder), name]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def fail(temporary: Path) -> None:
        (temporary / "part").touch()
        raise OSError("the disk is full")

    with start("killed") as first:
        assert first.stdout is not None and first.stdout.readline() == "writes\n"
        first.kill()
    assert not folder.exists()
    with start("second") as second:
        assert second.stdout is not None and second.stdout.readline() == "writes\n"
        with start("third") as third:
            second.communicate("\n")
            assert third.communicate()[0] == ""  # it waited, and had nothing to write
    assert (second.returncode, third.returncode) == (0, 0)
    assert [path.name for path in folder.iterdir()] == ["second"]
    with pytest.raises(OSError, match="full"):
        make_once(tmp_path / "deep" / "failed", fail)
    assert {path.name for path in folder.parent.iterdir()} == {"made", ".made.lock", ".failed.lock"}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


OTHERS = {
    "pipe": (pipe, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "socket": (unix_socket, "No such device or address"),
    "folder": (Path.mkdir, "Is a directory"),
    "loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "huge": (huge, "larger than 64 MiB"),
    "missing": (lambda path: None, "No such file or directory"),
}
"""What may be in the place of a file, and how it is refused."""


@pytest.mark.parametrize(("make", "reason"), OTHERS.values(), ids=OTHERS)
def test_only_regular_files_are_read(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    file = tmp_path / "f"
    make(file)
    with pytest.raises(DamagedError) as caught, damage_errors(file):
        read_regular(file)
    assert caught.value.message == f"{file}: {reason}"


class TestJson:
    def test_non_finite_values_are_null(self) -> None:
        value = {"a": math.nan, "b": [1.5, -math.inf, (math.inf, 2)], "c": {"d": np.float64("nan")}, "e": Path("x/ü")}
        assert parse_json(to_json(value).encode(), "x") == {
            "a": None,
            "b": [1.5, None, [None, 2]],
            "c": {"d": None},
            "e": "x/ü",
        }

    def test_names_that_are_not_utf_8_survive(self) -> None:
        name = os.fsdecode(b"fot\xf6.jpg")
        text = to_json({"image_id": name, "city": "Köln"})
        assert json.loads(text.encode("utf-8")) == {"image_id": name, "city": "Köln"}

    @pytest.mark.parametrize(
        "text", ["", "{", "[" * 10**5, "\0", "NaN", '{"a": -Infinity}', '[{"a": 1, "b": 2, "a": 1}]', "1" + "0" * 9999]
    )
    def test_damage_is_named(self, text: str) -> None:
        with pytest.raises(DamagedError, match=r"^file:3: is damaged: [^\n]+$"):
            parse_json(text.encode(), "file:3")
