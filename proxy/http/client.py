"""
The client side of HTTP proxies: CONNECT (RFC 9110, section 9.3.6).

Most of these proxies report a failure by a bare status, which may be the target's fault or their own:
a health check (sign of life) decides.
"""

import re

from proxy.address import UNKNOWN, Address
from proxy.client import TunnelClient
from proxy.errors import ProtocolError
from proxy.http.basic import encode_basic
from proxy.http.heads import ResponseHead
from proxy.http.speaker import Exchange, HttpSpeaker, host_header
from proxy.net.deadline import Deadline
from proxy.relaying.channel import Channel

_BASIC = "basic"
# They log in as whoever uses the machine, by ways that a small program on it knows.
_OF_THE_SYSTEM = {"negotiate", "ntlm", "kerberos"}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?')
# A member of the list that begins a challenge; one that goes on with an equals sign is a parameter.
_CHALLENGE = re.compile(r"[ \t]*([A-Za-z][A-Za-z0-9-]{0,30})[ \t]*(?:$|(?<=[ \t])[^ \t=])")
_NO_PROXY = (404, 405, 501)  # what web servers say to CONNECT
_MOST_SCHEMES = 5  # that are named


class HttpClient(HttpSpeaker, TunnelClient):
    """Reaches targets through an HTTP proxy, which also resolves their names."""

    def ask(self, channel: Channel, deadline: Deadline) -> int:
        """Ask what the proxy itself can do (RFC 9110, section 9.3.7): any status will do."""
        return self._exchange(channel, "OPTIONS *", host_header(self._endpoint), deadline).status

    def tunnel(self, target: Address, channel: Channel, deadline: Deadline) -> Address:
        """Ask for a tunnel to a target; where it is bound there, nobody tells."""
        answer = self._exchange(channel, f"CONNECT {target}", str(target), deadline)
        if not 200 <= answer.status < 300:
            raise self.refusal(answer, target)
        # What Content-Length and the like say means nothing here: all that follows is the target's.
        return UNKNOWN

    def _exchange(self, channel: Channel, what: str, host: str, deadline: Deadline) -> ResponseHead:
        lines = [f"{what} HTTP/1.1", f"Host: {host}", *self.more_headers]
        if self.credentials:
            lines.append(f"Proxy-Authorization: {encode_basic(*self.credentials)}")
        exchange = Exchange(channel)
        try:
            with deadline.limit("HTTP handshake"):
                exchange.send("\r\n".join([*lines, "", ""]).encode())
                answer = exchange.read_answer()
        except (ProtocolError, EOFError, OSError) as exc:
            raise self.broken(exc, waits=exchange.waits) from exc
        return self.check_plain(answer)

    def describe(self, status: int) -> str:
        """Say what an answer says that is not of our kind."""
        hint = self.tls_hint() if status == 400 else ": is it an HTTP proxy?" if status in _NO_PROXY else ""
        return f"answered CONNECT with {status}{hint}"

    def login_hint(self, answer: ResponseHead) -> str:
        """Name the ways to log in that the proxy offers, and what helps where ours is not among them."""
        # One field may hold several (RFC 9110, section 11.6.1), and commas in what is quoted divide nothing.
        offered = _QUOTED.sub('""', ",".join(answer.headers.get_all("Proxy-Authenticate"))).split(",")
        schemes = [match[1] for match in map(_CHALLENGE.match, offered) if match]
        lowered = {scheme.lower() for scheme in schemes}
        if not schemes or _BASIC in lowered:
            return ""
        cure = ": a local px or cntlm can do that part" if lowered & _OF_THE_SYSTEM else ""
        return f"; it takes {', '.join(schemes[:_MOST_SCHEMES])}, and what we have is Basic{cure}"
