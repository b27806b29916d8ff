"""
Join standard input and output to a target, as netcat does: client mode without ``-listen``.

It ends as ssh ends its ProxyCommand: a signal is no failure, so the far end is told that all is said. A
second one, or one that comes before there is a connection, ends it at once.
"""

import os
import signal

import gevent

from proxy.address import Address
from proxy.console import FAILED, KILLED, OK, OutputError
from proxy.errors import reason_of
from proxy.lines import say
from proxy.net.deadline import Deadline
from proxy.relaying.relay import DataForwarder, Relay
from proxy.relaying.stream import Ending
from proxy.settings.upstream import UpstreamConfig
from proxy.stdio import StdioStream
from proxy.upstream import make_client

_LAST_WORD = 2.0  # seconds in which a client that is told to end says so to the far end


def join(target: Address, proxy: UpstreamConfig) -> int:
    """Connect through a proxy, relay until it is over, and return the exit code; raises ``ProxyError``."""
    relay: Relay | None = None
    signals_seen = 0
    ended_by = 0

    def end(number: int) -> None:
        nonlocal signals_seen, ended_by
        signals_seen += 1
        if relay is None or signals_seen > 1:
            os._exit(KILLED + number)
        if not relay.is_over:
            ended_by = number
            relay.stop(Ending.FINISHED)
        # Nobody may take what is still to be written.
        gevent.spawn_later(_LAST_WORD, os._exit, KILLED + number)

    watchers = [
        gevent.signal_handler(number, end, number)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup wants it
    ]
    connected = make_client(proxy).dial(target, Deadline(proxy.timeout))
    if not connected.confirmed:
        say(f"proxy-server: warning: {proxy.name} did not confirm that {target} is connected: is it a proxy?")
    forwarder = DataForwarder()
    stdio = StdioStream()
    relay = forwarder.relay(stdio, connected.stream)
    transfer = forwarder.run(relay)
    watchers.clear()  # until here they had to be kept: a watcher that nobody has watches no more
    if ended_by:
        return KILLED + ended_by
    if stdio.not_written:
        raise OutputError(stdio.not_written)
    if stdio.not_read:
        say(f"proxy-server: standard input: {reason_of(stdio.not_read)}")
        return FAILED
    if transfer.ending is Ending.FINISHED:
        return OK
    say(f"proxy-server: {target}: {transfer.detail or transfer.ending.value}")
    return FAILED
