"""The house: each room imports the rooms above it alone, and `--help` wakes nothing that is slow."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import elta_tune

ROOMS = (
    "errors",
    "suggestions",
    "cores",
    "locks",
    "processes",
    "files",
    "documents",
    "method",
    "config",
    "space",
    "data",
    "weights",
    "records",
    "training",
    "provenance",
    "trial",
    "executors",
    "studies",
    "models",
    "results",
    "api",
    "cli",
    "__main__",
)
PACKAGE = Path(elta_tune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree):
    """Rooms that a module imports, anywhere in it, except for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        yield from (name.split(".")[1] for name in names if name.startswith("elta_tune."))
        yield from imported_rooms(node)


def test_every_module_is_in_a_room():
    assert {room(path) for path in FILES} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down_the_list_to_up(path):
    allowed = ROOMS[: ROOMS.index(room(path)) + 1] if path != PACKAGE / "__init__.py" else ("api",)
    assert set(imported_rooms(ast.parse(path.read_text()))) <= set(allowed)


def loaded_after(arguments):
    """Modules that the command has loaded when it is done."""
    code = (
        "import json, sys\n"
        "from elta_tune.cli import main\n"
        f"sys.argv = ['elta-tune', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "Usage" in done.stdout or "sampler" in done.stdout
    return set(json.loads(done.stderr.splitlines()[-1]))


SLOW = {"torch", "timm", "optuna", "pandas", "scipy", "numpy.random", "sqlalchemy", "PIL"}


def test_help_imports_nothing_slow():
    loaded = loaded_after(["--help"])
    assert not loaded & {*SLOW, "numpy", "pydantic", "yaml"}
    assert not {name for name in loaded if name.startswith("elta_tune.") and ".cli" not in name} - {
        "elta_tune.errors",
        "elta_tune.api",
        *("elta_tune.data", "elta_tune.data.cache", "elta_tune.data.cache.progress"),
    }


def test_a_space_is_checked_without_torch():
    assert not loaded_after(["space", "check", "default.yaml"]) & {"torch", "timm", "optuna", "pandas"}
