"""Printing never ends the work, even if a stream fails; messages show flags of the command."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from elta_tune.cli.output import Output, as_typed, encodable_json
from elta_tune.cli.progress import preparing
from elta_tune.cli.text import SafeConsole

ENTRY = (sys.executable, "-m", "elta_tune")


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("`trials=0`: should be 1 or more", "--trials 0: should be 1 or more"),
        ("name a file: `data.val=FILE`", "name a file: --set data.val=FILE"),
        ("`data.scale=[1,10]`", "--set 'data.scale=[1,10]'"),
        ("replace it: `force=True`, or choose another `out`", "replace it: --force, or choose another --out"),
        ("`overrides`: data.roto", "--set: data.roto"),
        ("`batch_size=0`", "--batch-size 0"),
        ("see column `reason`; `elta-tune run` continues", "see column `reason`; `elta-tune run` continues"),
    ],
)
def test_messages_show_flags(message, typed):
    assert as_typed(message) == typed


class Refusing(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_output_survives_failed_writes():
    output = Output(Refusing())
    print("first", file=output, flush=True)
    print("second", file=output, flush=True)
    assert isinstance(output.fault, OSError)


def test_output_replaces_characters_the_encoding_lacks():
    raw = io.BytesIO()
    output = Output(io.TextIOWrapper(raw, encoding="ascii"))
    print("srcc – …  é", file=output, flush=True)
    assert raw.getvalue() == b"srcc - ...  \\xe9\n"


def test_json_stays_json_in_any_encoding(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    text = encodable_json('{"é": "–😀"}')
    text.encode("latin-1")
    assert json.loads(text) == {"é": "–😀"}


def test_console_shows_escapes_as_text(capsys):
    console, table = SafeConsole(), Table("name")
    table.add_row("[red]x\x1b[2J")
    console.print("a\x1b]0;title\x07b [bold]c", table)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown
    assert "[red]x" in shown and "[bold]c" in shown


@pytest.mark.parametrize("arguments", [("--version",), ("-P", "--version")])
def test_python_m_shows_the_version(arguments, tmp_path):
    *options, flag = arguments
    command = [sys.executable, *options, "-m", "elta_tune", flag]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("elta-tune ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("list", "--json"), ("list",)])
def test_a_view_that_could_not_be_written_fails(arguments, tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*ENTRY, *arguments], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"elta-tune: standard output: [Errno 28] No space left on device\n"


def test_a_closed_output_is_not_reused_by_files(tmp_path):
    command = f"{sys.executable} -m elta_tune list >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, check=False).returncode == 1


def test_a_progress_bar_that_fails_ends_no_work(monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such style")

    monkeypatch.setattr(Progress, "update", fail)
    with preparing(Console(file=io.StringIO())) as progress:
        progress(0, 2, "images")
        progress(1, 2, "images")
    assert capsys.readouterr().err.count("no such style") == 2  # the line that raises, and what it says: once
