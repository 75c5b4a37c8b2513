"""NNI's node process: starts it behind the guard, finds it again, ends it and all its child processes."""

from __future__ import annotations

import contextlib
import platform
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from elta_tune.errors import ConfigError, StudyError
from elta_tune.files import parse_json, read_regular, write_json
from elta_tune.processes import child_environment, end_with_parent
from elta_tune.records import StudyFolder
from elta_tune.studies.nni.folder import EXPERIMENT, NniFolder
from elta_tune.studies.nni.rest import HOST, NodeGone, Rest, request

GUARD = Path(__file__).with_name("guard.js")
PATCHES = Path(__file__).with_name("patches.js")
PATCHED = {"NNIManager", "NNIDataStore", "V3asV1", "TrialProcess"}
"""Classes of NNI that have to be patched before a trial may start."""
STUDY_VARIABLE, PREFIX_VARIABLE = "ELTA_TUNE_NNI_STUDY", "ELTA_TUNE_NNI_PREFIX"
"""Environment variables of node and of all that it starts: their study, and the secret of this start."""
FOREIGN = re.compile(r"NODE_.*|NNI_.*|SDK_PROCESS|BASH_ENV|ENV")
"""Environment variables that are not passed on: options of another node, experiment or shell."""
FIRST_PORT, LAST_PORT = 8080, 8179
START_SECONDS = 90.0
"""For node to answer: a second, and more on a busy machine."""
END_SECONDS = 75.0
"""Node gives its parts 60 s to end."""
PATIENCE = 5.0
"""Seconds from SIGTERM to SIGKILL for what node left."""
KILLS = 5
"""Rounds of killing: a process may start another one meanwhile."""


@dataclass(frozen=True)
class Node:
    """A node process that runs, or ran."""

    process: psutil.Process
    rest: Rest

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def require_nni() -> Path:
    """The folder of NNI's node.

    Raises:
        ConfigError: NNI is not installed, or does not support this machine.
    """
    try:
        import nni_node
    except ImportError:
        machine = f"{platform.system()} {platform.machine()}"
        if platform.machine() not in ("x86_64", "AMD64"):
            raise ConfigError(
                f"`backend=nni`: there is no wheel of NNI 3.0 for {machine}",
                "use the Optuna back end: `backend=optuna`",
            ) from None
        raise ConfigError("`backend=nni`: NNI is not installed", 'pip install "elta-tune[nni]"') from None
    return Path(next(iter(nni_node.__path__)))


def free_port(wanted: int | None) -> int:
    """The wanted port, or the first free one from 8080 on.

    Raises:
        ConfigError: it is in use.
    """
    for port in range(FIRST_PORT, LAST_PORT + 1) if wanted is None else [wanted]:
        if _is_free(port):
            return port
    if wanted is None:
        raise ConfigError(f"ports {FIRST_PORT} to {LAST_PORT} are in use", "name a free one: `port=PORT`")
    raise ConfigError(f"`port={wanted}`: is in use, or needs rights that you don't have", "name another port, or none")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


Action = Literal["create", "resume", "view"]


def start_node(folder: NniFolder, action: Action, port: int | None, lock: int | None) -> Node:
    """Starts node and checks that the guard is in force. Node then waits for the experiment.

    Args:
        port: of the web UI; None takes a free one.
        lock: descriptor of the study's lock, which node inherits and holds; None if it only shows the study.

    Raises:
        ConfigError: NNI is not installed, or the port is in use.
        StudyError: it does not start, or the guard is not in force; nothing is left running.
    """
    while True:
        chosen = free_port(port)
        try:
            return _start_node(folder, action, chosen, lock)
        except StudyError:
            if port is not None or _is_free(chosen):
                raise  # otherwise another study took the port meanwhile


def _start_node(folder: NniFolder, action: Action, port: int, lock: int | None) -> Node:
    node_folder = require_nni()
    folder.create()
    if action != "view":
        folder.ended_file.unlink(missing_ok=True)
    folder.patched_file.unlink(missing_ok=True)
    prefix = secrets.token_hex(16)
    options = {
        "port": str(port),
        "experiment-id": EXPERIMENT,
        "action": action,
        "experiments-directory": str(folder.path),
        "log-level": "info",
        "python-interpreter": f"exec {shlex.quote(sys.executable)} -P",  # a shell runs it
        "mode": "local",
    }
    command = [str(node_folder / "node"), "-r", str(GUARD), "-r", str(PATCHES), str(node_folder / "main.js")]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    with folder.node_log.open("w", encoding="utf-8") as log:
        started = subprocess.Popen(
            command,
            cwd=node_folder,
            env=_environment(folder.study, prefix),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C is for the command, which then ends node in order
            pass_fds=() if lock is None else (lock,),
        )
    started.returncode = 0  # node may outlive this process; from here on psutil follows it
    node = Node(psutil.Process(started.pid), Rest(port, prefix))
    _write_index(folder, node)
    write_json(folder.connection_file, {"process": started.pid, "port": port, "prefix": prefix})
    try:
        _wait_for(folder, node)
        verify(node)
    except NodeGone as error:
        kill(folder)
        raise StudyError(f"NNI did not start: {error}", f"look into {folder.node_log}") from error
    except BaseException:
        kill(folder)
        raise
    return node


def _identity(study: StudyFolder) -> str:
    return str(study.path.resolve())


def _environment(study: StudyFolder, prefix: str) -> dict[str, str]:
    """The environment of node and of all that it starts."""
    environment = {name: value for name, value in child_environment().items() if not FOREIGN.fullmatch(name)}
    environment |= {STUDY_VARIABLE: _identity(study), PREFIX_VARIABLE: prefix}
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, [environment.get(name), "localhost", HOST]))
    return environment


def _write_index(folder: NniFolder, node: Node) -> None:
    """NNI's list of experiments, which its node expects to name this one."""
    entry = {
        "id": EXPERIMENT,
        "port": node.rest.port,
        "startTime": int(time.time() * 1000),
        "endTime": "N/A",
        "status": "INITIALIZED",
        "platform": "local",
        "experimentName": folder.study.name,
        "tag": [],
        "pid": node.process.pid,
        "webuiUrl": [],
        "logDir": str(folder.path),
        "prefixUrl": node.rest.prefix,
    }
    write_json(folder.index_file, {EXPERIMENT: entry})


def _wait_for(folder: NniFolder, node: Node) -> None:
    until = time.monotonic() + START_SECONDS
    while node.is_alive and time.monotonic() < until:
        with contextlib.suppress(NodeGone):
            answer = request(node.rest.port, "GET", f"/{node.rest.prefix}/api/v1/nni/check-status", timeout=2.0)
            if answer.body != b"INITIALIZING":
                return
        time.sleep(0.1)
    lines = folder.node_log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reasons = [line for line in lines if "Error: " in line] or lines or ["its log is empty"]
    raise StudyError(f"NNI did not start: {reasons[-1]}", f"look into {folder.node_log}")


def verify(node: Node) -> None:
    """Checks that the guard is in force: node listens on loopback and serves nothing without the secret.

    Raises:
        StudyError: names what is open.
    """
    port, prefix = node.rest.port, node.rest.prefix
    sockets = [item for item in node.process.net_connections("inet") if item.status == psutil.CONN_LISTEN]
    addresses = sorted({item.laddr.ip for item in sockets})
    api = f"/{prefix}/api/v1/nni"
    doors = {
        "a foreign Host": (f"{api}/check-status", {"Host": f"example.org:{port}"}),
        "a foreign Origin": (f"{api}/check-status", {"Origin": "http://example.org"}),
        "no secret": ("/api/v1/nni/check-status", {}),
        "a path outside": (f"{api}/trial-file/x/..%2F..%2F..%2Fetc%2Fpasswd", {}),
    }
    is_open = [
        name for name, (path, headers) in doors.items() if request(port, "GET", path, None, headers).status != 403
    ]
    if addresses != [HOST]:
        is_open.insert(0, f"the addresses {', '.join(addresses)}")
    if request(port, "GET", f"{api}/check-status").status != 200:
        is_open.append("nobody, not even with the secret")
    if is_open:
        raise StudyError(f"NNI's guard is not in force, and nothing was started: open to {'; '.join(is_open)}")


def verify_patches(folder: NniFolder) -> None:
    """Checks that all of `PATCHED` is patched, once the experiment is set up and before a trial starts.

    Raises:
        StudyError: names what is not.
    """
    patched = parse_json(read_regular(folder.patched_file), "") if folder.patched_file.exists() else []
    if missing := PATCHED - set(patched):
        raise StudyError(
            f"NNI's patches are not in force, and nothing was started; not patched: {', '.join(sorted(missing))}"
        )


def end_with_node(folder: NniFolder) -> None:
    """Has this process end when node does, even if node is killed. It has to be a child of node."""
    node = find_node(folder)
    end_with_parent(0 if node is None else node.process.pid)


def find_node(folder: NniFolder) -> Node | None:
    """The node that the study was started with last, if it runs.

    Raises:
        DamagedError: `connection.json` can't be read.
    """
    if (connection := folder.connection()) is None:
        return None
    try:
        node = Node(psutil.Process(connection.process), Rest(connection.port, connection.prefix))
        environment = node.process.environ()
    except psutil.Error:
        return None
    # Process numbers are reused and folders are copied, but each start has its own secret and its own study.
    own = {STUDY_VARIABLE: _identity(folder.study), PREFIX_VARIABLE: connection.prefix}
    return node if own.items() <= environment.items() and node.is_alive else None


def status(node: Node) -> str | None:
    """NNI's status of the experiment, or None if node does not answer."""
    try:
        return str(node.rest.get("check-status")["status"])
    except (NodeGone, KeyError, TypeError):
        return None


def members(folder: NniFolder) -> list[psutil.Process]:
    """All processes of the study that are this user's: node, tuner, trials."""
    return list(_members(folder))


def _members(folder: NniFolder) -> Iterator[psutil.Process]:
    study = _identity(folder.study)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mine: Mapping[str, str] = process.environ()
            if mine.get(STUDY_VARIABLE) == study and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def end(folder: NniFolder) -> None:
    """Ends node in an orderly way, then all that is left of the study; returns when nothing is left."""
    node = find_node(folder)
    if node is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            node.process.terminate()
            psutil.wait_procs([node.process], timeout=END_SECONDS)
    left = members(folder)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(left, timeout=PATIENCE)
    kill(folder)


def kill(folder: NniFolder) -> None:
    """Ends all processes of the study at once.

    Raises:
        StudyError: a process can't be ended.
    """
    for _ in range(KILLS):
        left = members(folder)
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=PATIENCE)
    numbers = ", ".join(str(process.pid) for process in left)
    raise StudyError(
        f"study {folder.study.name}: processes {numbers} can't be ended",
        "they wait for the kernel, for a disk for example; try again later",
    )
