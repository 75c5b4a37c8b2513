"""Child processes import what this one does, whatever the working directory contains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elta_tune.processes import PACKAGE_FOLDER, child_environment, python_command

LIBRARY = [f"/usr/lib/python{sys.version_info.major}{sys.version_info.minor}.zip", "/usr/lib/site-packages"]


@pytest.mark.parametrize(
    ("before", "behind", "expected"),
    [
        ([""], [PACKAGE_FOLDER], []),
        (["CWD"], [PACKAGE_FOLDER], []),
        (["CWD", "/named"], [PACKAGE_FOLDER], ["/named"]),
        (["CWD"], [], [PACKAGE_FOLDER]),
        (["/first", "/second"], [], ["/first", "/second", PACKAGE_FOLDER]),
    ],
)
def test_child_path_leaves_out_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: list[str], behind: list[str], expected: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    path = [str(tmp_path) if entry == "CWD" else entry for entry in before]
    monkeypatch.setattr(sys, "path", [*path, *LIBRARY, *behind])
    assert child_environment()["PYTHONPATH"] == os.pathsep.join(expected)


def test_checkout_as_working_directory_shadows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PACKAGE_FOLDER)
    monkeypatch.setattr(sys, "path", [PACKAGE_FOLDER, *LIBRARY, PACKAGE_FOLDER])
    assert PACKAGE_FOLDER not in child_environment()["PYTHONPATH"].split(os.pathsep)


def test_named_folder_stays_and_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}named")
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "named"), *LIBRARY, PACKAGE_FOLDER])
    assert child_environment()["PYTHONPATH"] == str(tmp_path / "named")


def test_removed_working_directory_harms_no_child(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, subprocess\nfrom elta_tune.processes import child_environment, python_command\n"
        f"os.rmdir({str(gone)!r})\n"
        "print(subprocess.run(python_command('json.tool', '--help'), env=child_environment(), stdout=-3).returncode)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=gone, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_module_of_the_working_directory_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    command = python_command("json.tool", "--help")
    subprocess.run(command, cwd=tmp_path, env=child_environment(), stdout=subprocess.DEVNULL, check=True)
