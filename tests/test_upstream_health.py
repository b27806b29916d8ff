"""What becomes of an upstream that cannot be reached, in real time and with real sockets."""

import socket
import time

import gevent
import pytest

from proxy.address import Address
from proxy.config import UpstreamConfig, UpstreamType
from proxy.errors import UpstreamError
from proxy.net.deadline import Deadline
from proxy.upstream import Upstream

TARGET = Address("target.example", 443)


def test_the_rest_of_an_upstream_ends_when_it_can_be_reached_again() -> None:
    """CASES F175, where another way out would hide its return."""
    with gevent.Timeout(10), socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
        gone = Upstream(UpstreamConfig("gone", UpstreamType.SOCKS5, f"127.0.0.1:{port}", retry_count=0))
        for _ in range(3):
            with pytest.raises(UpstreamError):
                gone.dial(TARGET, Deadline(5), retry_timeouts=True)
        assert gone.rests_until > time.monotonic() + 2  # 4 s, after three failures
        place.listen()
        while gone.rests_until:
            gevent.sleep(0.01)
        assert gone.failures == 3  # it still has to prove itself


def test_failures_at_one_time_count_as_one() -> None:
    with gevent.Timeout(10), socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{place.getsockname()[1]}"
        gone = Upstream(UpstreamConfig("gone", UpstreamType.SOCKS5, address, retry_count=1))
        trying = [gevent.spawn(attempt_of, gone) for _ in range(20)]
        gevent.joinall(trying)
        assert gone.failures == 1


def attempt_of(upstream: Upstream) -> None:
    with pytest.raises(UpstreamError):
        upstream.dial(TARGET, Deadline(5), retry_timeouts=True)
