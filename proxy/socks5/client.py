"""
The client side of SOCKS5: PySocks leads the handshake, our codec writes the messages.

PySocks cannot use a connection that is already there, and writes a length from 128 on as two bytes.
So it speaks through a ``_Mouthpiece``, which lends it our channel and replaces its login by ours.

It cannot stop in the middle either. So it leads the conversation twice: up to the request, where it is
interrupted, and then again, when its greeting goes nowhere and the answer to that is made up.
"""

from functools import lru_cache
from typing import Any

import socks

from proxy.address import UNKNOWN, Address
from proxy.client import TunnelClient, speaker_of
from proxy.errors import DialError, Failure, ProtocolError, reason_of
from proxy.net.deadline import Deadline
from proxy.net.limits import from_reserve
from proxy.parsers import run
from proxy.relaying.channel import Channel
from proxy.settings.client import ClientConfig
from proxy.socks5 import codec
from proxy.socks5.codec import Command, Login, Method


class Socks5Client(TunnelClient):
    """Reaches targets through a SOCKS5 proxy, which also resolves their names."""

    def __init__(self, config: ClientConfig, name: str = "", via: TunnelClient | None = None) -> None:
        super().__init__(config, name or str(config.endpoint.address), via)

    def prepare(self, channel: Channel, deadline: Deadline) -> None:
        """Negotiate a method, and log in where that is wanted."""
        login = Login(*self.credentials) if self.credentials else None
        self._converse(_Mouthpiece(channel, login), None, deadline)

    def ask(self, channel: Channel, deadline: Deadline) -> int:
        """Need no more: the proxy has answered already."""
        return 200

    def tunnel(self, target: Address, channel: Channel, deadline: Deadline) -> Address:
        """Make the request, and read the reply to it."""
        bound = self._converse(_PreparedMouthpiece(channel), target, deadline)
        assert bound is not None
        return bound

    def _converse(
        self, mouthpiece: "_Mouthpiece", target: Address | None, deadline: Deadline
    ) -> Address | None:
        """Ask for a target, or go no further than that one could."""
        try:
            with deadline.limit("SOCKS5 handshake"):
                return _conversation(mouthpiece.login is not None).request(mouthpiece, target)
        except _NoTargetError:
            return None
        except socks.SOCKS5AuthError as exc:
            no_method = mouthpiece.last == bytes([codec.VERSION, Method.NONE_ACCEPTABLE])
            raise self.login_refused(" (it takes no method that we offer)" if no_method else "") from exc
        except socks.SOCKS5Error as exc:
            assert target is not None
            raise self._refusal(mouthpiece.last[1], target) from exc
        except (socks.ProxyError, ProtocolError) as exc:
            raise self.as_upstream_error(mouthpiece.nonsense(exc), transient=False) from exc
        except EOFError as exc:
            reason = "it closed the connection during the SOCKS5 handshake"
            raise self.as_upstream_error(reason, unclear=mouthpiece.waits_for_reply) from exc
        except OSError as exc:
            reason = (
                reason_of(exc) if mouthpiece.first else f"it answers no SOCKS5 greeting: {reason_of(exc)}"
            )
            raise self.as_upstream_error(reason, exc, unclear=mouthpiece.waits_for_reply) from exc

    def _refusal(self, code: int, target: Address) -> DialError:
        # Also a general failure is an answer about the target, by a proxy that lives and knows its
        # protocol: no other target is worse off, and no other way any better.
        failure = codec.failure_of(code)
        what = f"reply {code:#04x}" if failure is Failure.GENERAL else failure.value
        return DialError(f"{target} through upstream {self.name}: {what}", failure)


class _NoTargetError(Exception):
    """The proxy would take a request now."""


class _Conversation(socks.socksocket):  # type: ignore[misc]
    """What PySocks knows of the protocol; its own socket stays unused."""

    def __init__(self, has_login: bool) -> None:
        super().__init__()
        placeholder = "-" if has_login else None
        self.set_proxy(socks.SOCKS5, rdns=True, username=placeholder, password=placeholder)

    def request(self, mouthpiece: "_Mouthpiece", target: Address | None) -> Address:
        """Hold the conversation up to the reply, and return the bound address; without a target, up to it."""
        _, bound = self._SOCKS5_request(mouthpiece, bytes([Command.CONNECT]), target)
        assert isinstance(bound, Address)
        return bound

    def _write_SOCKS5_address(self, target: Address | None, writer: "_Mouthpiece") -> Address:
        if target is None:
            raise _NoTargetError
        writer.waits_for_reply = True
        writer.write(codec.encode_address(target))
        return target

    def _read_SOCKS5_address(self, reader: "_Mouthpiece") -> Address:
        try:
            return run(codec.parse_address(), reader.read_exact)
        except ProtocolError as exc:
            if exc.failure is Failure.UNSUPPORTED_ADDRESS:
                raise
            return UNKNOWN  # an odd name, read to its end: it says nothing that we need


@lru_cache
def _conversation(has_login: bool) -> _Conversation:
    # It keeps nothing of a conversation, so all can share it; one for each would cost a descriptor each.
    return from_reserve(lambda: _Conversation(has_login))


class _Mouthpiece:
    """The files that PySocks reads and writes, over our channel."""

    def __init__(self, channel: Channel, login: Login | None = None) -> None:
        self._channel = channel
        self.login = login
        self._written = b""
        self.read_exact = channel.read_exact
        self.last = b""  # what was read last
        self.waits_for_reply = False  # the request is sent, and nothing of the reply is there
        self.first = b""  # what was read first

    def makefile(self, *_: Any) -> "_Mouthpiece":
        """Be both the reader and the writer."""
        return self

    def read(self, count: int) -> bytes:
        """Read ``count`` bytes: a whole part of a message, in whatever pieces it comes."""
        self.last = self.read_exact(count)
        self.waits_for_reply = False
        if not self.first:
            self.first = self.last
        return self.last

    def nonsense(self, exc: Exception) -> str:
        """Say what is wrong with what was read."""
        if self.first[:1] != bytes([codec.VERSION]):
            return f"this is not a SOCKS5 proxy: {speaker_of(self.first)} answered"
        return f"SOCKS5 handshake: {exc}"

    def write(self, data: bytes) -> None:
        """Collect a message; a login is replaced by ours."""
        is_login = data[:1] == bytes([codec.LOGIN_VERSION]) and not self._written
        self._written += self.login.encode() if is_login and self.login else data

    def flush(self) -> None:
        """Send the message."""
        self._channel.send(self._written)
        self._written = b""

    def close(self) -> None:
        """Leave the channel open: it is not PySocks's."""


_CHOSEN = bytes([codec.VERSION, Method.NO_AUTHENTICATION])


class _PreparedMouthpiece(_Mouthpiece):
    """The same where the method is negotiated, and we are logged in."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._is_greeted = False

    def flush(self) -> None:
        """Send the message, unless it is the greeting."""
        if self._is_greeted:
            super().flush()
        self._written = b""

    def read(self, count: int) -> bytes:
        """Read of the reply, once the greeting is answered."""
        if self._is_greeted:
            return super().read(count)
        self._is_greeted = True
        self.first = self.last = _CHOSEN
        return _CHOSEN
