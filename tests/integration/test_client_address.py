"""
Who the client is, where other servers are in between: in the access log, in the line for fail2ban, in ctl.

DESIGN 1.9, told in raw bytes and by the real nginx and HAProxy.
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.integration import peers
from tests.integration.certificates import Authority
from tests.integration.programs import Proxy, mixed_door, socks_door, web_door
from tests.wire.sockets import Door, connect, read_exact, read_rest
from tests.wire.socks5 import GREETING, LOGIN_GREETING, login, to_ip
from tests.wire.targets import Target
from tests.wire.waits import wait_until
from tests.wire.websocket import Peer, upgrade

LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
PACKED = ip_address("192.0.2.7").packed + ip_address("198.51.100.1").packed
ADDRESSES = PACKED + struct.pack("!HH", 56324, 443)
BINARY = b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH", 0x21, 0x11, 12) + ADDRESSES
LOCAL = b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH", 0x20, 0x00, 0)
HERE = {"trusted": "127.0.0.0/8"}


@pytest.fixture(scope="module")
def node() -> Iterator[Proxy]:
    told = {"client_address": "proxy_protocol", **HERE}
    forwarded = {"client_address": "x_forwarded_for", **HERE}
    elsewhere = {"trusted": "192.0.2.0/24"}
    tls = {"tls_cert": "node.pem", "tls_key": "node.key"}
    doors = {
        "socks": socks_door(auth="none", **told),
        "login": socks_door(**told),
        "mixed": mixed_door(auth="none", **told),
        "secure": mixed_door(auth="none", **told, **tls),
        "web": web_door(auth="none", **forwarded),
        "http": mixed_door(**forwarded),
        "strange-socks": socks_door(auth="none", client_address="proxy_protocol", **elsewhere),
        "strange-web": web_door(auth="none", client_address="x_forwarded_for", **elsewhere),
        "few": socks_door(auth="none", clients="198.51.100.0/24, 127.0.0.2"),
        "few-told": socks_door(auth="none", clients="192.0.2.0/24", **told),
        "few-web": web_door(auth="none", clients="192.0.2.0/24", **forwarded),
        "few-http": mixed_door(auth="none", clients="192.0.2.0/24", **forwarded),
    }
    users = {"alice": "wonderland"}
    # The targets are on this machine.
    proxy = {"log_level": "debug", "guard": "off"}
    node = Proxy({"proxy": proxy, "listeners": doors, "auth_users": users})
    Authority(node.directory).self_signed("node", "localhost")
    with node:
        yield node
        assert "internal error" not in node.log


def last_access(node: Proxy, port: int) -> str:
    """Wait for the line of a connection to a target, and give its client."""
    line = next(each for each in reversed(node.wait_for_log(f":{port} ").splitlines()))
    return line.partition(" client=")[2].split(" ")[0]


def say_all(client: socket.socket, data: bytes) -> None:
    """Send all that there is to say, and end, to a server that may have closed before."""
    with contextlib.suppress(OSError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)


# -- the PROXY protocol


@pytest.mark.parametrize("header", [LINE, BINARY], ids=["v1", "v2"])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_header_tells_who_the_client_is(
    node: Proxy, echo: Target, header: bytes, *, in_pieces: bool
) -> None:
    data = header + GREETING + to_ip("127.0.0.1", echo.port) + b"hello"
    with connect(node.door("socks")) as client:
        for piece in [data[i : i + 1] for i in range(len(data))] if in_pieces else [data]:
            client.sendall(piece)
        assert read_exact(client, 12)[:4] == b"\x05\x00\x05\x00"
        assert read_exact(client, 5) == b"hello"
    assert last_access(node, echo.port) == "192.0.2.7:56324"


def test_it_comes_before_tls(node: Proxy, echo: Target) -> None:
    """Also with the TLS handshake glued to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(node.directory / "node.pem")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with connect(node.door("secure")) as client:
        client.sendall(BINARY + outgoing.read())
        while True:
            incoming.write(client.recv(4096))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        tls.write(b"CONNECT 127.0.0.1:%d HTTP/1.0\r\n\r\n" % echo.port)
        client.sendall(outgoing.read())
        assert client.recv(4096)
    assert last_access(node, echo.port) == "192.0.2.7:56324"


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"], ids=["LOCAL", "UNKNOWN"])
def test_a_connection_of_the_proxys_own_keeps_its_address(node: Proxy, echo: Target, header: bytes) -> None:
    with connect(node.door("socks")) as client:
        client.sendall(header + GREETING + to_ip("127.0.0.1", echo.port))
        read_exact(client, 12)
        port = client.getsockname()[1]
    assert last_access(node, echo.port) == f"127.0.0.1:{port}"


@pytest.mark.parametrize("header", [LINE, LOCAL, b""], ids=["v1", "LOCAL", "nothing"])
def test_who_says_no_more_is_a_health_check(node: Proxy, header: bytes) -> None:
    with connect(node.door("socks")) as client:
        client.sendall(header)
        client.shutdown(socket.SHUT_WR)
        assert read_rest(client)[0] == b""
    node.wait_until_empty()
    # All others at that listener have asked for a target.
    lines = [line for line in node.log.splitlines() if " access " in line and " listener=socks " in line]
    assert [line for line in lines if " target=" not in line] == []


@pytest.mark.parametrize("said", [GREETING + b"\0" * 20, b"PROXY TCP4 x\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_without_a_header_a_trusted_sender_is_closed(node: Proxy, said: bytes) -> None:
    """DESIGN 1.9: there it is mandatory."""
    with connect(node.door("mixed")) as client:
        client.sendall(said)
        assert read_rest(client)[0] == b""
    node.wait_for_log("PROXY protocol header")


def test_from_others_it_is_not_even_read(node: Proxy, echo: Target) -> None:
    with connect(node.door("strange-socks")) as client:
        say_all(client, LINE + GREETING + to_ip("127.0.0.1", echo.port))
        assert read_rest(client)[0] == b""
    assert echo.accepted == 0
    node.wait_for_log("is not among the trusted proxies of this listener")


def test_a_failed_login_names_the_client_for_fail2ban(node: Proxy) -> None:
    with connect(node.door("login")) as client:
        client.sendall(LINE + LOGIN_GREETING + login(b"alice", b"guess"))
        assert read_exact(client, 4) == b"\x05\x02\x01\x01"
    node.wait_for_log("authentication failed: client=192.0.2.7 user=alice listener=login")


# -- X-Forwarded-For


def test_a_forwarded_address_is_the_client(node: Proxy, echo: Target) -> None:
    with Peer.connect(node.door("web")) as client:
        client.write(upgrade(echo.port, X_Forwarded_For="203.0.113.9, 192.0.2.8, 127.0.0.9"))
        assert client.read_head()[0].endswith("101 Switching Protocols")
    assert last_access(node, echo.port) == "192.0.2.8:0"


def test_what_is_no_address_leaves_the_sockets_own(node: Proxy, echo: Target) -> None:
    with Peer.connect(node.door("web")) as client:
        client.write(upgrade(echo.port, X_Forwarded_For="192.0.2.8, unknown"))
        client.read_head()
    assert last_access(node, echo.port).startswith("127.0.0.1:")


def test_from_others_the_header_is_ignored(node: Proxy, echo: Target) -> None:
    with Peer.connect(node.door("strange-web")) as client:
        client.write(upgrade(echo.port, X_Forwarded_For="192.0.2.8"))
        client.read_head()
    assert last_access(node, echo.port).startswith("127.0.0.1:")


def test_a_failed_login_names_the_forwarded_address(node: Proxy) -> None:
    request = b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.9\r\n"
    with connect(node.door("http")) as client:
        client.sendall(request + b"Proxy-Authorization: Basic YWxpY2U6Z3Vlc3M=\r\n\r\n")  # alice:guess
        assert client.recv(4096).startswith(b"HTTP/1.1 407 ")
    node.wait_for_log("authentication failed: client=192.0.2.9 user=alice listener=http")


# -- who may come in


def ask(door: Door, port: int, source: str = "127.0.0.1") -> bytes:
    """Say all that a SOCKS5 client says, and give what comes back."""
    with connect(door, source=source) as client:
        say_all(client, GREETING + to_ip("127.0.0.1", port))
        return read_rest(client)[0]


def test_who_is_none_of_the_clients_is_closed_without_a_word(node: Proxy, echo: Target) -> None:
    assert ask(node.door("few"), echo.port) == b""
    assert echo.accepted == 0
    node.wait_for_log("is not among the clients of this listener")


def test_who_is_one_of_the_clients_comes_in(node: Proxy, echo: Target) -> None:
    assert ask(node.door("few"), echo.port, "127.0.0.2").startswith(b"\x05\x00\x05\x00")


def test_the_address_that_was_told_is_the_one_that_is_judged(node: Proxy, echo: Target) -> None:
    """A proxy in between is no client, and need not be named among them."""
    for source, is_let_in in ((b"192.0.2.7", True), (b"203.0.113.9", False)):
        with connect(node.door("few-told")) as client:
            say_all(client, LINE.replace(b"192.0.2.7", source) + GREETING + to_ip("127.0.0.1", echo.port))
            assert read_rest(client)[0].startswith(b"\x05\x00\x05\x00") is is_let_in


def test_a_forwarded_address_that_may_not_come_in_gets_403(node: Proxy, echo: Target) -> None:
    for source, status in (("192.0.2.7", "101"), ("203.0.113.9", "403")):
        with Peer.connect(node.door("few-web")) as client:
            client.write(upgrade(echo.port, X_Forwarded_For=source))
            assert client.read_head()[0].split()[1] == status


def test_such_a_403_has_no_body_where_the_request_is_head(node: Proxy, echo: Target) -> None:
    """RFC 9110, section 9.3.2."""
    url = b"http://127.0.0.1:%d/" % echo.port
    with connect(node.door("few-http")) as client:
        client.sendall(b"HEAD " + url + b" HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n")
        head, _, body = read_rest(client)[0].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ")
    assert body == b""


# -- real servers in between


def test_through_nginx_the_client_is_who_came_to_nginx(node: Proxy, echo: Target) -> None:
    with peers.nginx(node.door("web")) as front:
        sock = connect(front, source="127.0.0.77")
        with Peer(sock) as client:
            client.write(upgrade(echo.port, X_Forwarded_For="192.0.2.66"))
            assert client.read_head()[0].endswith("101 Switching Protocols")
    # 127.0.0.77 is trusted here, as all of 127.0.0.0/8 is; so what it said is believed.
    assert last_access(node, echo.port) == "192.0.2.66:0"


@pytest.mark.parametrize(
    "options",
    [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
        "check inter 100ms send-proxy-v2",
    ],
)
def test_through_haproxy_the_client_is_who_came_to_haproxy(node: Proxy, echo: Target, options: str) -> None:
    haproxy = peers.haproxy(node.door("socks"), "tcp", options)
    with haproxy as front, connect(front, source="127.0.0.88") as client:
        client.sendall(GREETING + to_ip("127.0.0.1", echo.port) + b"hello")
        read_exact(client, 12)
        assert read_exact(client, 5) == b"hello"
        port = client.getsockname()[1]
    assert last_access(node, echo.port) == f"127.0.0.88:{port}"


def test_the_health_checks_of_haproxy_leave_no_line() -> None:
    told = {"client_address": "proxy_protocol", **HERE}
    node = Proxy({"proxy": {"log_level": "debug"}, "listeners": {"socks": socks_door(**told)}})
    with node, peers.haproxy(node.door("socks"), "tcp", "check inter 50ms send-proxy-v2"):
        wait_until(lambda: node.log.count(" debug socks 127.0.0.1:") > 3, "some checks")
        assert " access " not in node.log
