"""The mixed listener chooses a door by the first byte."""

import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator

import pytest

from tests.integration.certificates import Authority
from tests.integration.programs import Proxy, mixed_door
from tests.wire import clients
from tests.wire.sockets import connect, read_exact, read_rest
from tests.wire.socks5 import GREETING, LOGIN_GREETING, login, to_ip
from tests.wire.targets import Listener
from tests.wire.waits import wait_until

USERS = {"alice": "wonderland"}
LOGIN = b"Proxy-Authorization: Basic " + b64encode(b"alice:wonderland")


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    secure = mixed_door(tls_cert="node.pem", tls_key="node.key")
    doors = {"open": mixed_door(auth="none"), "login": mixed_door(), "secure": secure}
    node = Proxy({"proxy": {"log_level": "debug"}, "listeners": doors, "auth_users": USERS})
    Authority(node.directory).self_signed("node", "localhost")
    with node as running:
        yield running
        assert "internal error" not in running.log


@pytest.fixture
def target() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener


def test_socks5_logs_in(proxy: Proxy, target: Listener) -> None:
    """Methods, login and request are those of a SOCKS5 listener."""
    credentials = ("alice", "wonderland")
    tunnel = clients.socks5(proxy.door("login"), "127.0.0.1", target.port, credentials=credentials)
    tunnel.sendall(b"up")
    assert read_exact(target.accept(), 2) == b"up"
    tunnel.close()


def get(port: int, *lines: bytes) -> bytes:
    """Write a request in absolute form."""
    return b"\r\n".join([b"GET http://127.0.0.1:%d/ HTTP/1.1" % port, b"Host: x", *lines, b"", b""])


def connect_to(port: int, *lines: bytes) -> bytes:
    """Write a CONNECT request."""
    return b"\r\n".join([b"CONNECT 127.0.0.1:%d HTTP/1.1" % port, b"Host: x", *lines, b"", b""])


def socks4(port: int) -> bytes:
    """Write a SOCKS4 request."""
    return b"\x04\x01" + port.to_bytes(2, "big") + b"\x7f\0\0\x01" + b"\0"


def socks5(port: int, greeting: bytes = GREETING) -> bytes:
    """Write all that a SOCKS5 client says."""
    return greeting + to_ip("127.0.0.1", port)


@pytest.mark.parametrize("write", [socks5, socks4, connect_to, get])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_each_protocol_reaches_its_target(
    proxy: Proxy, target: Listener, write: Callable[[int], bytes], *, in_pieces: bool
) -> None:
    data = write(target.port)
    with connect(proxy.door("open")) as client:
        for piece in [data[i : i + 1] for i in range(len(data))] if in_pieces else [data]:
            client.sendall(piece)
        far = target.accept()
        far.sendall(b"down")
        far.close()
        assert read_rest(client)[0].endswith(b"down")


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda port: connect_to(port, LOGIN), id="CONNECT"),
        pytest.param(lambda port: get(port, LOGIN), id="GET"),
        pytest.param(lambda port: socks5(port, LOGIN_GREETING + login(b"alice", b"wonderland")), id="SOCKS5"),
    ],
)
def test_over_tls_each_of_them_works(proxy: Proxy, target: Listener, write: Callable[[int], bytes]) -> None:
    """With tls_cert it is an HTTPS proxy."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(proxy.directory / "node.pem")
    with context.wrap_socket(connect(proxy.door("secure")), server_hostname="localhost") as client:
        client.sendall(write(target.port))
        far = target.accept()
        far.sendall(b"down")
        far.close()
        assert read_rest(client)[0].endswith(b"down")


@pytest.mark.parametrize("name", ["open", "secure"])
def test_an_empty_line_before_a_request_is_ignored(proxy: Proxy, target: Listener, name: str) -> None:
    """RFC 9112, section 2.2; what is behind it is a request, and no other protocol."""
    context = ssl.create_default_context(cafile=str(proxy.directory / "node.pem"))
    with connect(proxy.door(name)) as plain:
        client = context.wrap_socket(plain, server_hostname="localhost") if name == "secure" else plain
        with client:
            client.sendall(b"\r")
            client.sendall(b"\n" + connect_to(target.port, LOGIN))
            assert read_exact(client, 12) == b"HTTP/1.1 200"
    with connect(proxy.door("open")) as client:
        client.sendall(b"\r\n" + GREETING)
        assert read_rest(client)[0].startswith(b"HTTP/1.1 400 ")


def test_tls_on_a_plain_port_is_logged_as_such(proxy: Proxy) -> None:
    """DESIGN 1.9."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with connect(proxy.door("open")) as client, pytest.raises(ssl.SSLError):
        context.wrap_socket(client)
    proxy.wait_for_log("the client speaks TLS, and this listener does not: it has no tls_cert")


@pytest.mark.parametrize("first", [b"\0", b"\x01", b"\x06", b"\x80", b"\xff", b" GET", b"\n", b"0"])
def test_what_is_neither_is_closed_without_a_word(proxy: Proxy, first: bytes) -> None:
    with connect(proxy.door("open")) as client:
        client.sendall(first)
        assert read_rest(client)[0] == b""
    proxy.wait_for_log(f"neither SOCKS nor HTTP: the first byte is {first[0]:#04x}")


def test_who_leaves_before_the_first_byte_is_a_health_check(proxy: Proxy) -> None:
    """DESIGN 1.9: no failure is counted, and no line is written for it."""
    with connect(proxy.door("open")) as look:
        checked = f" client=127.0.0.1:{look.getsockname()[1]} "
    with connect(proxy.door("open")) as client:
        said = f" client=127.0.0.1:{client.getsockname()[1]} "
        client.sendall(b"\0")
        read_rest(client)
    wait_until(lambda: said in proxy.log, "the line of one who said something")
    proxy.wait_until_empty()
    assert checked not in proxy.log
