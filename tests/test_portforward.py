"""A listener without a protocol is called what it is."""

from proxy.address import Address
from proxy.portforward import PortForwarder
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from proxy.socks5.server import Socks5Server

CONFIG = ServerConfig("127.0.0.1:0", Protocol.SOCKS5, "listen")
EXPOSED = Address("192.0.2.1", 1080)


def test_it_is_no_socks5_listener_and_no_open_proxy() -> None:
    server = PortForwarder(CONFIG, Address("db.example", 5432))
    assert server.offers == "forwarding to db.example:5432"
    assert server.exposure(EXPOSED) == (
        "is open: anyone who reaches 192.0.2.1:1080 is carried to db.example:5432"
    )


def test_a_socks5_listener_is_one() -> None:
    server = Socks5Server(CONFIG)
    assert server.offers == "socks5"
    assert server.exposure(EXPOSED).startswith("is an open proxy: anyone who reaches 192.0.2.1:1080")
