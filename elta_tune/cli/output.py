"""Standard output and error: nothing that is printed can end the work, and nothing in it reaches the terminal raw."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, ParamSpec

Shown = ParamSpec("Shown")

ASCII = {"–": "-", "…": "...", "·": "|", "≤": "<=", "≥": ">=", "─": "-", "┈": "-", "█": "#", "•": "*"}
"""What is printed instead of our own symbols where the encoding of the output lacks them."""

FLAGS = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("trials", "timeout", "seed", "name", "runs", "workers", "devices", "device", "executor", "backend"),
            *("port", "detach", "cache", "recipe", "space", "out", "output", "force", "csv", "images", "split"),
            *("from_predictions", "predictions", "head", "batch_size", "sort", "holdout", "metric", "limit_gb"),
            *("labels_only", "dry_run", "list", "remove", "test"),
        )
    },
    "overrides": "--set",
    "source": "--from",
    "kind": "--export",
}
"""Arguments of the API, and the flags that give them."""


def as_typed(text: str) -> str:
    """A message of the rooms below, with the API's arguments and fields in backticks as the flags of this command.

    `trials=3` becomes ``--trials 3``, `force=True` ``--force``, `data.root=FOLDER` ``--set data.root=FOLDER``.
    """
    return re.sub(r"`([a-z]\w*)((?:\.\w+)*)(?:=([^`]*))?`", _flag, text)


def _flag(found: re.Match[str]) -> str:
    name, field, value = found.groups()
    if field and value is not None:
        return f"--set {_word(f'{name}{field}={value}')}"
    if field or name not in FLAGS:
        return found[0]
    return FLAGS[name] if value in (None, "True") else f"{FLAGS[name]} {_word(value)}"


def _word(text: str) -> str:
    return text if re.fullmatch(r"[\w@%+=:,./…-]+", text) else shlex.quote(text.replace("\n", "\\n"))


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    failed = error.object[error.start : error.end]
    return "".join(ASCII.get(sign) or ascii(sign)[1:-1] for sign in failed), error.end


codecs.register_error("elta-tune", _replaced)


class Output(io.TextIOBase):
    """A stream whose writes never raise. After one has failed, `fault` says why, and the rest goes nowhere.

    `needed` is false once it only reports on work that goes on without it.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self.needed = True
        self._stream = stream
        self.fault: Exception | None = None if stream is not None else OSError("is closed")
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="elta-tune")

    def write(self, text: str) -> int:
        """Writes a text, if that is possible."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Hands on what was written, if that is possible."""
        self._try("flush")

    def _try(self, method: str, *arguments: str) -> None:
        if self.fault is None and self._stream is not None:
            try:
                getattr(self._stream, method)(*arguments)
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self.fault = error
                self._drop()

    def _drop(self) -> None:
        """Leads what the stream still holds to nowhere: its flush at the end of the process would fail again."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass

    def isatty(self) -> bool:
        """Whether somebody watches."""
        return self.fault is None and self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """What becomes of a character that the encoding lacks."""
        return "elta-tune"

    @property
    def buffer(self) -> Any:
        """The bytes below, for libraries that ask for them."""
        return getattr(self._stream, "buffer", None)


@contextmanager
def lasting_outputs() -> Iterator[Output]:
    """Replaces standard output and error by streams whose writes never raise; yields standard output."""
    for descriptor in range(3):  # one that is closed would be given to the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    output, errors = Output(sys.stdout), Output(sys.stderr)
    sys.stdout, sys.stderr = output, errors
    try:
        yield output
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before


def work_goes_on() -> None:
    """From here on standard output only reports on work, which is done whether or not it can be reported."""
    if isinstance(sys.stdout, Output):
        sys.stdout.needed = False


def stop_without_output() -> None:
    """Ends a command whose output is all that it makes, once nobody can read it.

    Raises:
        SystemExit: standard output is gone.
    """
    if isinstance(sys.stdout, Output) and sys.stdout.fault is not None:
        raise SystemExit(1)


def unfailing(show: Callable[Shown, None]) -> Callable[Shown, None]:
    """A function that shows something. After an error of its own it shows nothing more, and the work goes on."""
    has_failed = False

    def show_if_possible(*args: Shown.args, **kwargs: Shown.kwargs) -> None:
        nonlocal has_failed
        if has_failed:
            return
        try:
            show(*args, **kwargs)
        except Exception:
            has_failed = True
            print(printable(traceback.format_exc()), file=sys.stderr)
            print("note: this can't be shown; the work goes on", file=sys.stderr)

    return show_if_possible


def printable(text: str) -> str:
    """A text with escapes for what a terminal would obey, or reorder."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in text)


def print_json(value: Any) -> None:
    """Prints a value as JSON; null is what is not a finite number."""
    from elta_tune.files import to_json

    print(encodable_json(to_json(value, indent=2)))


def encodable_json(text: str) -> str:
    """A JSON text, with JSON's own escapes for what the encoding of standard output lacks."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return re.sub(r"[^\x00-\x7f]", lambda sign: json.dumps(sign[0])[1:-1], text)
    return text
