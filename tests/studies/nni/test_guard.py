"""NNI's node behind the guard: open only to its own user on this machine, with the secret."""

import http.client
import os
import re
import shutil
import socket
import subprocess
from contextlib import closing, contextmanager

import psutil
import pytest
from PIL import ImageFont

from elta_tune.errors import ConfigError, StudyError
from elta_tune.records import StudyFolder
from elta_tune.studies.nni import node as nni_node
from elta_tune.studies.nni.folder import NniFolder
from elta_tune.studies.nni.node import end, find_node, kill, members, start_node

pytest.importorskip("nni_node", reason="NNI is not installed")
NOBODY = 65534


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return NniFolder(StudyFolder(tmp_path_factory.mktemp("guard") / "study"))


@pytest.fixture(scope="module")
def node(folder):
    with folder.study.lock() as lock:
        node = start_node(folder, "create", None, lock)
    yield node
    kill(folder)


def ask(node, path, method="GET", host=None, body=None, **headers):
    """Status and text of a request; `{prefix}` in the path is the secret."""
    connection = http.client.HTTPConnection("127.0.0.1", node.rest.port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(connection):
        connection.putrequest(method, path.format(prefix=node.rest.prefix), skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{node.rest.port}")
        for name, value in named.items():
            connection.putheader(name, value.format(port=node.rest.port))
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")


API = "/{prefix}/api/v1/nni"


@pytest.mark.parametrize("path", ["/{prefix}/", "/{prefix}/oview", f"{API}/check-status", f"{API}/version"])
def test_its_own_user_is_served_with_the_secret(node, path):
    assert ask(node, path)[0] == 200
    assert ask(node, path, host=f"localhost:{node.rest.port}", Origin="http://localhost:{port}")[0] == 200


OUTSIDE = ["/", "/index.html", "/api/v1/nni/check-status", "/oview"]
OUTSIDE += ["/{prefix}x/", "//{prefix}/", "/%2f{prefix}/", "/x/../{prefix}/"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_is_served_without_the_secret(node, path):
    refusal = "forbidden: open the whole address that the command printed; elta-tune ui prints it again\n"
    assert ask(node, path) == (403, refusal)


def test_each_request_of_a_connection_needs_the_secret(node):
    connection = http.client.HTTPConnection("127.0.0.1", node.rest.port, timeout=20)
    with closing(connection):
        for path, status in ((f"/{node.rest.prefix}/api/v1/nni/version", 200), ("/api/v1/nni/version", 403)):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status


TRAVERSALS = [
    "/trial-file/x/..%2F..%2F..%2F..%2F..%2Fetc%2Fpasswd",
    "/trial-file/x/../../../../../etc/passwd",
    "/trial-file/x/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/trial-file/x/..%5C..%5Cetc%5Cpasswd",
    "/trial-file/..%2F..%2F/trial.log",
    "/TRIAL-FILE/x/..%2Fdb%2Fnni.sqlite",
    "/trial-file/x/parameter.cfg",
    "/trial-file/x/trial.log/",
    "/trial-file/x/%00trial.log",
    "/../../../logs/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/%",
]


@pytest.mark.parametrize("path", TRAVERSALS)
@pytest.mark.parametrize("prefix", [API, "/api/v1/nni"])
def test_path_traversal_is_refused(node, prefix, path):
    status, text = ask(node, prefix + path)
    assert (status, "root:" in text) == (403, False)


@pytest.mark.parametrize("path", ["/{prefix}/netron/", "/{prefix}/NETRON/index.html", "/{prefix}/%6eetron/"])
def test_nothing_is_fetched_from_elsewhere(node, path):
    assert ask(node, path)[0] == 403


HOSTS = ["example.org", "example.org:8080", "10.0.0.1", "127.0.0.1.example.org", "localhost.", "[::1]", "a@127.0.0.1"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_foreign_host_is_refused(node, host):
    assert ask(node, f"{API}/check-status", host=host) == (403, "forbidden: foreign host\n")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://example.org"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://localhost:{port}"},  # the Host is 127.0.0.1
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    ],
)
def test_a_foreign_page_is_refused(node, headers):
    status, text = ask(node, f"{API}/check-status", **headers)
    assert (status, text.startswith("forbidden: foreign")) == (403, True)


JSON = {"Content-Type": "application/json"}
CHANGES = [
    ("POST", "/experiment", {"Content-Type": "text/plain"}),
    ("POST", "/experiment", {}),
    ("POST", "/experiment", {**JSON, "Origin": "http://127.0.0.1:{port}"}),
    ("POST", "/trial-jobs", JSON),
    ("POST", "/experiment/import-data", JSON),
    ("PUT", "/experiment?update_type=SEARCH_SPACE", JSON),
    ("PUT", "/experiment?update_type=MAX_TRIAL_NUM&update_type=SEARCH_SPACE", JSON),
    ("PUT", "/experiment/cluster-metadata", JSON),
    ("POST", "/tensorboard", JSON),
    ("DELETE", "/experiment", {}),
    ("PATCH", "/experiment", {}),
]


@pytest.mark.parametrize(("method", "path", "headers"), CHANGES)
def test_writes_that_no_study_needs_are_refused(node, method, path, headers):
    assert ask(node, API + path, method, body=b"{}", **headers)[0] == 403
    assert node.is_alive


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/tuner", "Host: localhost\r\n"),
        ("/{prefix}/tuner", "Host: localhost\r\nOrigin: http://example.org\r\n"),
        ("/{prefix}/tuner", "Host: example.org\r\n"),
    ],
)
def test_the_tuners_connection_is_guarded_too(node, path, headers):
    with socket.create_connection(("127.0.0.1", node.rest.port), timeout=20) as line:
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        head = f"GET {path.format(prefix=node.rest.prefix)} HTTP/1.1\r\n{headers}"
        line.sendall(f"{head}Connection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n".encode())
        assert line.recv(1000) == b""


def test_pages_load_nothing_from_elsewhere_and_are_not_framed(node):
    connection = http.client.HTTPConnection("127.0.0.1", node.rest.port, timeout=20)
    with closing(connection):
        connection.request("GET", f"/{node.rest.prefix}/")
        headers = connection.getresponse().headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';") and "frame-ancestors 'none'" in policy and "http" not in policy
    assert headers["Referrer-Policy"] == "no-referrer"  # the address of the page is the secret


def test_each_icon_is_a_glyph_of_the_installed_font():
    (font,) = (nni_node.require_nni() / "static" / "static" / "media").glob("codicon.*.ttf")
    codes = re.findall(r"content: '\\([0-9a-f]{4})'", nni_node.GUARD.with_name("page.css").read_text())
    drawn = {code: bytes(ImageFont.truetype(font, 16).getmask(chr(int(code, 16)))) for code in {*codes, "e000"}}
    assert len(codes) > 30 and "e000" not in codes
    assert [code for code in codes if drawn[code] == drawn["e000"]] == []  # the font's sign for what it has not


def test_node_listens_on_loopback_and_hides_the_secret(node):
    listening = {s.laddr.ip for s in node.process.net_connections("inet") if s.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert node.rest.prefix not in " ".join(node.process.cmdline())


@contextmanager
def listening_everywhere():
    """What an unguarded server would be: the port of a socket on all interfaces."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        yield server.getsockname()[1]


IN_ENGLISH = {**os.environ, "LC_ALL": "C"}
CONNECT = "exec 3<>/dev/tcp/{}/{} && echo connected"


@pytest.fixture(scope="module")
def namespace():
    """A network namespace, and the address at which it reaches this machine."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    name, net = f"elta{os.getpid() % 100000}", f"10.213.{os.getpid() % 256}"

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)

    if (made := ip("netns", "add", name)).returncode != 0:
        pytest.skip(f"no network namespace can be made: {made.stderr.strip()}")
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "inside", "netns", name)
        ip("addr", "add", f"{net}.1/24", "dev", name)
        ip("link", "set", name, "up")
        ip("-n", name, "addr", "add", f"{net}.2/24", "dev", "inside")
        if (up := ip("-n", name, "link", "set", "inside", "up")).returncode != 0:
            pytest.skip(f"no link to a network namespace can be made: {up.stderr.strip()}")
        yield name, f"{net}.1"
    finally:
        ip("netns", "delete", name)


def test_another_host_is_refused_the_connection(node, namespace):
    name, address = namespace

    def connect(port):
        command = ["ip", "netns", "exec", name, "timeout", "20", "bash", "-c", CONNECT.format(address, port)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=IN_ENGLISH)

    with listening_everywhere() as port:
        assert connect(port).stdout == "connected\n"
    refused = connect(node.rest.port)
    assert refused.stdout == "" and "Connection refused" in refused.stderr


def test_this_machines_other_addresses_refuse_the_connection(node, namespace):
    with listening_everywhere() as port:
        socket.create_connection((namespace[1], port), timeout=20).close()
    for address in {a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET}:
        if address != "127.0.0.1":
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, node.rest.port), timeout=20)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])  # the same, of a socket of IPv6
def test_another_user_of_this_machine_is_refused(node, folder, address):
    path = f"/{node.rest.prefix}/api/v1/nni/version"
    request = f"GET {path} HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n"
    talk = f'exec 3<>/dev/tcp/{address}/{node.rest.port}; printf "{request}" >&3; cat <&3'

    def as_user(number, script):
        command = ["timeout", "20", "bash", "-c", script]
        who = {"user": number, "group": number, "cwd": "/", "env": IN_ENGLISH}
        return subprocess.run(command, capture_output=True, text=True, check=False, **who)

    assert "200 OK" in as_user(0, talk).stdout  # with the secret, this user is served
    assert as_user(NOBODY, talk).stdout == ""  # and that one is not, though he knows it
    for place in (folder.connection_file, folder.experiment / "log" / "nnimanager.log"):
        assert place.exists()
        assert "Permission denied" in as_user(NOBODY, f"cat {place}").stderr


def test_unguarded_node_is_ended_before_anything_starts(tmp_path, monkeypatch):
    unguarded = tmp_path / "no_guard.js"
    unguarded.write_text("process.argv.push(`--url-prefix=${process.env.ELTA_TUNE_NNI_PREFIX}`);")
    monkeypatch.setattr(nni_node, "GUARD", unguarded)
    folder = NniFolder(StudyFolder(tmp_path / "study"))
    with folder.study.lock() as lock, pytest.raises(StudyError) as caught:
        start_node(folder, "create", None, lock)
    assert "guard is not in force" in caught.value.message
    assert re.search(r"the addresses (::|0\.0\.0\.0)", caught.value.message)  # where there is no IPv6, the latter
    for what in ("a foreign Host", "a foreign Origin", "no secret", "a path outside"):
        assert what in caught.value.message
    assert members(folder) == []


def unused_port():
    """A port that no other test takes at the same time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def taken():
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_in_use_is_refused(tmp_path, taken):
    folder = NniFolder(StudyFolder(tmp_path / "study"))
    with folder.study.lock() as lock, pytest.raises(ConfigError, match=rf"`port={taken}`: is in use"):
        start_node(folder, "create", taken, lock)


def test_a_port_that_is_taken_meanwhile_is_replaced_unless_named(tmp_path, taken, monkeypatch):
    folder, free = NniFolder(StudyFolder(tmp_path / "study")), unused_port()
    with folder.study.lock() as lock:
        ports = iter([taken, taken, free])
        monkeypatch.setattr(nni_node, "free_port", lambda wanted: next(ports))
        with pytest.raises(StudyError, match=r"NNI did not start: .*EADDRINUSE"):
            start_node(folder, "create", taken, lock)
        assert members(folder) == []
        assert start_node(folder, "create", None, lock).rest.port == free
    end(folder)


def test_node_holds_the_study_until_it_ends(tmp_path):
    folder = NniFolder(StudyFolder(tmp_path / "study"))
    with folder.study.lock() as lock:
        node = start_node(folder, "create", unused_port(), lock)
    assert folder.study.is_running()
    assert find_node(folder).process == node.process
    end(folder)
    assert not folder.study.is_running() and find_node(folder) is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", node.rest.port), timeout=20)
