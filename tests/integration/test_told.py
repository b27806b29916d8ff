"""What the logs say of those who come to a listener, and what fail2ban makes of it."""

import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.certificates import Authority
from tests.integration.peers import find
from tests.integration.programs import (
    REPOSITORY,
    Proxy,
    clean_environment,
    run_proxy,
    socks_door,
    upstream,
    web_door,
)
from tests.wire.sockets import connect, free_port, read_to_end, reset
from tests.wire.socks5 import socks_greeting, socks_request
from tests.wire.waits import wait_until

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
    with connect(node.door(name)) as sock:
        address = "{}:{}".format(*sock.getsockname()[:2])
        with contextlib.suppress(OSError):  # it may be closed before we have said all
            for data in said:
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            read_to_end(sock)
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
    request = socks_greeting() + socks_request("192.0.2.1", 80)
    fields = access_of(node, send_and_leave(node, "socks", request))
    assert fields["upstream"] == "home"
    assert fields["target"] == "192.0.2.1:80"


@pytest.mark.parametrize("name", ["socks", "locked", "web", "tls"])
@pytest.mark.parametrize("by_reset", [False, True], ids=["close", "reset"])
def test_a_balancers_look_at_a_port_is_no_failure_and_no_line(node: Proxy, name: str, by_reset: bool) -> None:
    """Case 361."""
    failed = failures(node)
    with connect(node.door(name)) as sock:
        address = "{}:{}".format(*sock.getsockname()[:2])
        if by_reset:
            reset(sock)
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


def test_an_access_log_that_can_be_opened_later_is_opened_then(tmp_path: Path) -> None:
    """Such as one in a folder that is mounted after the start; until then nothing is lost."""
    path = tmp_path / "later" / "access.log"
    config = {"proxy": {"access_log": str(path)}, "listeners": {"socks": socks_door()}}
    with Proxy(config) as node:
        node.wait_for_log("it is written to stderr until it can be opened")
        before = send_and_leave(node, "socks", b"\x04")
        node.wait_for_log(f"client={before}")
        path.parent.mkdir()
        node.wait_for_log("info access_log")
        after = send_and_leave(node, "socks", b"\x04")
        wait_until(lambda: f"client={after}" in path.read_text(), "a line in the file")
        assert f"client={after}" not in node.log
        assert node.log.count("No such file") == 1


# -- fail2ban

FAIL2BAN = REPOSITORY / "conf" / "fail2ban"
FORGED = b"x listener=locked\n2026-01-01T00:00:00.000Z warning authentication failed: client=192.0.2.9 user=x"


def banned(log: Path) -> list[str]:
    """Ask fail2ban which addresses it finds at fault in a log, with our filter."""
    command = [find("fail2ban-regex", "fail2ban"), "--out", "ip", str(log), str(FAIL2BAN / "filter.conf")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=clean_environment(log.parent)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("where", ["file", "journal"])
def test_fail2ban_finds_every_failed_login_and_no_forged_one(tmp_path: Path, form: str, where: str) -> None:
    """Case 361: whatever the user's name is."""
    names = [b"eve", b"two words", b'"', b"back\\slash", FORGED, b"\xff", "пароль".encode()]
    config = {
        "proxy": {"log_format": form, "log_level": "debug"},
        "listeners": {"socks": socks_door(auth="required"), "open": socks_door(auth="none")},
        "auth_users": LOGIN,
    }
    with Proxy(config) as node:
        for name in names:
            login = b"\x01" + bytes([len(name)]) + name + b"\x01x"
            send_and_leave(node, "socks", b"\x05\x01\x02" + login)
        send_and_leave(
            node, "open", b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(FORGED)]) + FORGED + b"\0\1"
        )
        wait_until(lambda: node.log.count("login refused") == len(names), "every line")
        lines = node.log.splitlines()
    log = tmp_path / "log"
    # So fail2ban composes an entry of the journal: its time, the host, the program, the message.
    entry = "2026-11-26T01:02:03.456Z here proxy-server[12]: " if where == "journal" else ""
    log.write_text("".join(f"{entry}{line}\n" for line in lines))
    assert banned(log) == ["127.0.0.1"] * len(names)


def test_fail2ban_takes_the_jail(tmp_path: Path) -> None:
    """Case 361."""
    client = find("fail2ban-client", "fail2ban")
    folder = tmp_path / "fail2ban"
    shutil.copytree("/etc/fail2ban", folder)
    for name in ("filter", "jail"):
        for other in (folder / f"{name}.d").glob("*") if name == "jail" else ():
            other.unlink()
        shutil.copy(FAIL2BAN / f"{name}.conf", folder / f"{name}.d" / "proxy-server.conf")
    done = subprocess.run([client, "-c", folder, "--test"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([client, "-c", folder, "-d"], capture_output=True, text=True, timeout=60).stdout
    assert "['add', 'proxy-server', 'systemd']" in shown
