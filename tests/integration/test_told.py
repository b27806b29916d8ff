"""What the logs say of those who come to a listener, by the wire and by TLS."""

import contextlib
import json
import re
import shlex
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import clients
from tests.integration.certificates import Authority
from tests.integration.programs import Proxy, free_port, run_proxy, socks_door, upstream, wait_until, web_door

LOGIN = {"alice": "wonderland"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Run a node that tells everything."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    doors = {
        "socks": socks_door(auth="none", upstream="home"),
        "locked": socks_door(auth="required"),
        "web": web_door(auth="required"),
        "tls": web_door(auth="none", **authority.issue("here", "localhost").settings),
    }
    home = {"home": upstream("socks5", f"127.0.0.1:{free_port()}")}
    proxy = {"log_level": "debug"}
    with Proxy({"proxy": proxy, "listeners": doors, "upstreams": home, "auth_users": LOGIN}) as node:
        yield node


def send_and_leave(node: Proxy, name: str, *said: bytes) -> str:
    """Say something, hear the answer to the end, and give the client's address."""
    with clients.connect(node.door(name)) as sock:
        address = "{}:{}".format(*sock.getsockname()[:2])
        for data in said:
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            clients.read_to_end(sock.recv)
    return address


def access_of(node: Proxy, address: str) -> dict[str, str]:
    """Wait for the access line of a client, and give its fields."""
    line = node.wait_for_log(f"client={address} ")
    return dict(word.split("=", 1) for word in shlex.split(line)[2:])


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX-Proxy-Target-Host: h\r\nX-Proxy-Target-Port: 1\r\n"
)


@pytest.mark.parametrize(
    ("name", "said", "end"),
    [
        ("socks", b"\x04\x01", "malformed: .*SOCKS4.*"),
        ("socks", b"GET / HTTP/1.1\r\n\r\n", "malformed: .*"),
        ("socks", b"\x05", "client left"),
        ("socks", b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", "refused: .*"),
        ("locked", b"\x05\x01\x02\x01\x03eve\x01x", "login refused"),
        ("web", GET + b"\r\n", "malformed: .*"),
        ("web", GET + UPGRADE + b"\r\n", "login refused"),
        ("tls", b"GET / HTTP/1.1\r\n\r\n", "malformed: TLS handshake: .*"),
        ("tls", b"\x16\x03\x01\x02\x00\x01", "malformed: TLS handshake: .*"),
    ],
)
def test_whoever_says_anything_has_an_access_line(node: Proxy, name: str, said: bytes, end: str) -> None:
    """Case 358."""
    fields = access_of(node, send_and_leave(node, name, said))
    assert re.fullmatch(end, fields["end"])
    assert fields["listener"] == name
    assert not fields.keys() & {"user", "target", "upstream"}
    assert fields["sent"] == fields["received"] == "0"


def test_a_failed_connection_names_the_upstream_that_was_tried(node: Proxy) -> None:
    """Case 358."""
    request = clients.socks_greeting() + clients.socks_request("192.0.2.1", 80)
    fields = access_of(node, send_and_leave(node, "socks", request))
    assert fields["upstream"] == "home"
    assert fields["target"] == "192.0.2.1:80"


@pytest.mark.parametrize("name", ["socks", "locked", "web", "tls"])
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
def test_a_balancers_look_at_a_port_is_no_failure_and_no_line(node: Proxy, name: str, reset: bool) -> None:
    """Case 361."""
    failed = failures(node)
    with clients.connect(node.door(name)) as sock:
        address = "{}:{}".format(*sock.getsockname()[:2])
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert " debug " in node.wait_for_log(address)
    assert f"client={address}" not in node.log
    assert failures(node) == failed


def failures(node: Proxy) -> int:
    """Tell how many clients got no connection."""
    told = run_proxy("ctl", "-c", str(node.config_path), "--json", "status").stdout
    return sum(each["failed"] for each in json.loads(told)["listeners"])


def test_a_forged_line_stays_in_its_field(node: Proxy) -> None:
    """Case 358: a header that does not exist, with a line and a field of the log in it."""
    forged = b'X-Y: "\x85\xe2\x80\xa8 end=finished client=192.0.2.9\r\n'
    address = send_and_leave(node, "web", GET + UPGRADE + forged + b"X Z end=finished: 1\r\n\r\n")
    fields = access_of(node, address)
    assert fields["end"].startswith("malformed: ")
    assert "client=192.0.2.9 " not in node.log


def test_an_access_log_on_a_full_disk_says_so_once(tmp_path: Path) -> None:
    config = {"proxy": {"access_log": "/dev/full"}, "listeners": {"socks": socks_door()}}
    with Proxy(config) as node:
        for _ in range(3):
            send_and_leave(node, "socks", b"\x04")
        node.wait_for_log("error access_log /dev/full: No space left on device")
        wait_until(lambda: node.log.count("info socks 127.0.0.1") >= 1, "a line of the program's own log")
        assert node.log.count("No space left") == 1
