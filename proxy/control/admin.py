"""
Where the control interface listens, and who may use it: on a Unix socket, or on TCP with a token.

Whoever may open the socket may do everything. On TCP a request must carry the token. One without it
that names another host may come from a browser that was led here by DNS rebinding.

A browser may reach the socket, too, by a port that ssh forwards, which every page in it can use. There
is no token there, so the names in the browser's Host and Origin have to be ours.
"""

import hmac
import logging
import os
import re
from ipaddress import ip_address
from pathlib import Path

from proxy.address import Address, Endpoint
from proxy.control.api import TOLD_TO_ANYBODY, Api
from proxy.control.http import HttpServer
from proxy.control.program import Program
from proxy.ctl.ask import SOCKET_NAME, is_taken, why_not_ours
from proxy.errors import reason_of
from proxy.http.heads import HttpError, RequestHead
from proxy.keeping.keeper import Keeper
from proxy.listening.opening import PATIENCE, Latecomers, Opening
from proxy.listening.unixsocket import UnixSocket
from proxy.net.sock import GeventSocket
from proxy.trust import Trust

log = logging.getLogger(__name__)

_BACKLOG = 16


class Admin:
    """Serves the control interface of a running program."""

    def __init__(
        self,
        program: Program,
        keeper: Keeper,
        config: str,
        state_dir: Path,
        trust: Trust,
        *,
        why_not_ours: str = "",
    ) -> None:
        """Take the path of the file that is served, and a folder for the socket, or why it is not ours."""
        self._keeper = keeper
        self._config = os.path.abspath(config)
        self._api = Api(program, keeper, self._config)
        self._api_on_tcp = Api(program, keeper, self._config, needs_token=True)
        self._path = state_dir / SOCKET_NAME
        self._trust = trust
        self._why_not_ours = why_not_ours
        self._tcp: list[HttpServer] = []
        self._unix: UnixSocket | None = None
        self._local: HttpServer | None = None
        self._latecomers = Latecomers()
        self._hosts = {"localhost"}

    @property
    def addresses(self) -> list[Address]:
        """Where it is on TCP."""
        return [server.address for server in self._tcp]

    def start(self) -> None:
        """Open it; raises ``ProxyError`` when the TCP address cannot be had."""
        # Once more, as another one may have come since; and before anything is written there.
        self._why_not_ours = self._why_not_ours or why_not_ours(self._path.parent, self._trust)
        if self._why_not_ours:
            self._keeper.leave_folder()
            log.warning(
                "%s: this server has no control socket, and keeps its versions in memory only; set another "
                "state_dir in %s, and start it again",
                self._why_not_ours,
                self._config,
            )
        if self._keeper.config.control_listen_addr:
            self._open_tcp(Endpoint.parse(self._keeper.config.control_listen_addr))
        if not self._why_not_ours:
            self._open_unix()

    def stop(self) -> None:
        """Close it."""
        self._latecomers.stop()
        for server in [*self._tcp, self._local]:
            if server:
                server.stop()

    def reopen(self) -> None:
        """Open the control socket anew if it is gone, or could not be had before."""
        is_open = self._unix is not None and self._unix.has_file
        if self._why_not_ours or is_open or is_taken(self._path.parent):
            return
        if self._local:
            self._local.stop()
        self._open_unix()

    def _open_tcp(self, endpoint: Endpoint) -> None:
        self._hosts.add(endpoint.host or "localhost")
        opening = Opening(endpoint)
        opening.look_up(PATIENCE)
        self._serve_on(opening.open())
        if opening.missing:
            where = ", ".join(opening.missing)
            log.warning("the control interface waits for %s: %s", where, opening.problem)
            self._latecomers.expect(opening, self._serve_on)

    def _serve_on(self, sockets: list[GeventSocket]) -> None:
        for sock in sockets:
            self._tcp.append(HttpServer(sock, self._api_on_tcp.answer, self._guard))
            self._tcp[-1].start()
        if self._tcp:
            log.info("control interface on %s", ", ".join(map(str, self.addresses)))

    def _open_unix(self) -> None:
        try:
            self._unix = self._bind_unix()
            self._local = HttpServer(self._unix, self._api.answer, _guard_socket)
            self._local.start()
        except OSError as exc:
            # A proxy that cannot be controlled is still a proxy.
            log.warning(
                "no control socket: %s: %s; proxy-server ctl will not work", self._path, reason_of(exc)
            )

    def _bind_unix(self) -> UnixSocket:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sock = UnixSocket()
        try:
            with self._trust.folder(self._path.parent):
                # Who still listens there is a predecessor that drains, as the folder is not taken.
                sock.listen_at(str(self._path), 0o600, _BACKLOG, replace_living=True)
        except BaseException:
            sock.close()
            raise
        return sock

    # -- who may ask

    def _guard(self, head: RequestHead, client: Address) -> None:
        host = head.headers.get("Host")
        is_told_to_anybody = head.method in ("GET", "HEAD") and head.target in TOLD_TO_ANYBODY
        # HTTP/1.0 knows no Host, and is what HAProxy looks after servers in unless it is told otherwise.
        if is_told_to_anybody and (host is not None or head.version == "HTTP/1.0"):
            return
        if host is None:
            raise HttpError(400, "the Host header is missing")
        # A page whose name was made to lead here does not know the token: with it any name will do.
        if self._is_token(head.headers.get("Authorization") or ""):
            return
        if not _is_ours(host, self._hosts):
            raise HttpError(
                421,
                "the token is missing or wrong, and the Host header is not an address of this server: "
                "send the token, as Authorization: Bearer TOKEN",
            )
        # The same form as at the other listeners, for fail2ban.
        log.warning("authentication failed: client=%s user=- listener=control", client.host)
        raise HttpError(401, "the token is missing or wrong", headers=(("WWW-Authenticate", "Bearer"),))

    def _is_token(self, authorization: str) -> bool:
        # The present one: it may have been changed by a reload.
        token = self._keeper.config.control_token
        kind, _, given = authorization.partition(" ")
        is_right = hmac.compare_digest(given.encode("latin-1"), token.encode())
        return kind.lower() == "bearer" and bool(token) and is_right


def _guard_socket(head: RequestHead, client: Address) -> None:
    """Let a page of ours ask, and whatever is no browser; raises ``HttpError`` for pages of others."""
    host, origin = head.headers.get("Host"), head.headers.get("Origin")
    if host is None and head.version != "HTTP/1.0":  # RFC 9112, section 3.2
        raise HttpError(400, "the Host header is missing")
    # A page whose name was made to lead here has the same origin as we, but not our name.
    if host is not None and not _is_ours(host, {"localhost"}):
        raise HttpError(421, "the Host header is neither localhost nor an address")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise HttpError(403, "a page of another origin may ask nothing here")


def _is_ours(host: str, names: set[str]) -> bool:
    """Tell whether a Host header is a name that nobody else can have."""
    name = re.sub(r":[0-9]*$", "", host).strip("[]").lower()
    return name in names or _is_ip(name)


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
