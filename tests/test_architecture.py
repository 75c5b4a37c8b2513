"""The rules of imports between rooms; `--help` imports nothing slow."""

import ast
import json
import re
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
)
PACKAGE = Path(elta_tune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

NEVER = {
    "method": r"(?!method\b)",
    "data.cache": r"data\.(?!cache\b)",
    "studies": r"studies\.(optuna|nni)\b",
    "studies.optuna": r"studies\.nni\b",
    "studies.nni": r"studies\.optuna\b",
    "records": r"training\b",
    "studies and results": r"cli\b",
}
"""What a room never imports, as a pattern of module names."""


def name_of(path):
    """`data.cache.index` for its file."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): ast.parse(path.read_text()) for path in FILES}


def imported_modules(tree):
    """Modules of the package that a module imports anywhere in it, for types as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides the room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")[1:] if name.startswith("elta_tune.") else []
            known = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
            yield from [module for module in known if module in MODULES][:1]


IMPORTS = {name: set(imported_modules(tree)) - {name} for name, tree in MODULES.items()}


def room_of(module):
    return module.partition(".")[0]


def test_every_module_is_in_a_room():
    assert {room_of(name) for name in MODULES} - {"__init__", "__main__"} == set(ROOMS)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__", "__main__"}))
def test_module_imports_only_rooms_above_it(module):
    allowed = ROOMS[: ROOMS.index(room_of(module)) + 1]
    assert {room_of(name) for name in IMPORTS[module]} <= set(allowed)


def reachable(start):
    """Modules that a module imports, directly or not."""
    found, todo = set(), [start]
    while todo:
        for name in IMPORTS[todo.pop()] - found:
            found.add(name)
            todo.append(name)
    return found


def test_no_modules_import_each_other_in_a_circle():
    assert not {name for name in IMPORTS if name in reachable(name)}


@pytest.mark.parametrize("room", NEVER)
def test_room_never_imports(room):
    for name, imports in IMPORTS.items():
        inside = name == room or name.startswith(f"{room}.") or name.partition(".")[0] in room.split(" and ")
        is_back_end = room == "studies" and re.match(r"studies\.(optuna|nni)\b", name)
        if inside and not is_back_end:
            assert not {imported for imported in imports if re.match(NEVER[room], imported)}, name


OTHERS = {
    "studies.nni.node": "NNI's node",
    "provenance": "git",
}
"""Modules that give flags to another program."""


def test_only_the_command_line_names_flags():
    """Errors below it name fields and arguments, which it translates."""
    flag = re.compile(r"(?<![\w-])--(?!extra )[a-z][a-z-]+")  # `uv sync --extra onnx` is how one installs
    assert not {
        f"{name}:{number}: {line.strip()}"
        for name, path in ((name_of(path), path) for path in FILES)
        if room_of(name) != "cli" and name not in OTHERS
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if flag.search(line)
    }


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
