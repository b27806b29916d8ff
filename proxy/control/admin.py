"""
The control interface: JSON over HTTP, on a Unix socket, and on TCP for who knows the token.

Who may open the socket's file may do everything. On TCP a request must bring the token. One without it
that calls the host by a foreign name is a browser's, perhaps, which that name has led here (DNS
rebinding). No header allows another origin's page anything, and GET changes nothing.
"""

import hmac
import json
import logging
import math
import os
import re
import socket as std_socket
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from gevent import socket

from proxy.address import Address, Endpoint
from proxy.control import status
from proxy.control.candidate import Conflict, Outcome
from proxy.control.http import Answer, HttpServer, Request
from proxy.control.keeper import Keeper
from proxy.ctl.ask import CONFIG_HEADER, SOCKET_NAME, is_taken, why_not_ours
from proxy.errors import reason_of
from proxy.http.heads import HttpError, RequestHead
from proxy.listening.opening import PATIENCE, Latecomers, Opening
from proxy.metrics import render
from proxy.net.sock import GeventSocket
from proxy.relaying.stream import Ending
from proxy.trust import Trust

log = logging.getLogger(__name__)

_BACKLOG = 16

Edit = tuple[str, str | None]


class Admin:
    """Serves the control interface of a running program."""

    def __init__(
        self,
        app: status.Running,
        keeper: Keeper,
        config: str,
        state_dir: Path,
        trust: Trust,
        *,
        why_not_ours: str = "",
    ) -> None:
        """Take the path of the file that is served, and a folder for the socket, or why it is not ours."""
        self._app = app
        self._keeper = keeper
        self._config = os.path.abspath(config)
        self._path = state_dir / SOCKET_NAME
        self._trust = trust
        self._why_not_ours = why_not_ours
        self._tcp: list[HttpServer] = []
        self._unix: list[HttpServer] = []
        self._latecomers = Latecomers()
        self._inode = 0
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
            self._leave_folder()
        if self._keeper.config.control_listen_addr:
            self._open_tcp(Endpoint.parse(self._keeper.config.control_listen_addr))
        if not self._why_not_ours:
            self._open_unix()

    def stop(self) -> None:
        """Close it."""
        self._latecomers.stop()
        for server in self._tcp + self._unix:
            server.stop()
        if self._is_open():  # not that of a successor, who has put its own in the same place
            with suppress(OSError):
                self._path.unlink()

    def reopen(self) -> None:
        """Open the control socket anew if it is gone, or could not be had before."""
        if self._why_not_ours or self._is_open() or is_taken(self._path.parent):
            return
        for server in self._unix:
            server.stop()
        self._open_unix()

    def _is_open(self) -> bool:
        with suppress(OSError):
            return self._path.stat().st_ino == self._inode
        return False

    def _leave_folder(self) -> None:
        self._keeper.leave_folder()
        log.warning(
            "%s: this server has no control socket, and keeps its versions in memory only; set another "
            "state_dir in %s, and start it again",
            self._why_not_ours,
            self._config,
        )

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
            self._tcp.append(HttpServer(sock, self.answer, self._guard))
            self._tcp[-1].start()
        if self._tcp:
            log.info("control interface on %s", ", ".join(map(str, self.addresses)))

    def _open_unix(self) -> None:
        try:
            self._unix = [HttpServer(self._bind_unix(), self.answer)]
            self._unix[0].start()
        except OSError as exc:
            # A proxy that cannot be controlled is still a proxy.
            log.warning(
                "no control socket: %s: %s; proxy-server ctl will not work", self._path, reason_of(exc)
            )

    def _bind_unix(self) -> GeventSocket:
        """Bind beside the place, and move it there: whatever is left of a predecessor gives way."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._trust.folder(self._path.parent):
            return self._bind_in_folder()

    def _bind_in_folder(self) -> GeventSocket:
        # As long as the real name, so that there is room for that one if there is for this.
        own = self._path.with_name(f".{os.getpid():07}.new")
        sock = socket.socket(std_socket.AF_UNIX, std_socket.SOCK_STREAM)
        try:
            own.unlink(missing_ok=True)
            os.fchmod(sock.fileno(), 0o600)  # before it has a name that others could open
            sock.bind(str(own))
            own.chmod(0o600)
            sock.listen(_BACKLOG)
            self._inode = own.stat().st_ino
            own.rename(self._path)
        except BaseException:
            sock.close()
            with suppress(OSError):
                own.unlink(missing_ok=True)
            raise
        return sock

    # -- who may ask

    def _guard(self, head: RequestHead, client: Address) -> None:
        host = head.headers.get("Host")
        if host is None:
            raise HttpError(400, "the Host header is missing")
        # A page whose name was made to lead here does not know the token: with it any name will do.
        if self._is_token(head.headers.get("Authorization") or ""):
            return
        self._check_host(host)
        # The same form as at the other listeners, for fail2ban.
        log.warning("authentication failed: client=%s user=- listener=control", client.host)
        raise HttpError(401, "the token is missing or wrong", headers=(("WWW-Authenticate", "Bearer"),))

    def _is_token(self, authorization: str) -> bool:
        # The present one: it may have been changed by a reload.
        token = self._keeper.config.control_token
        kind, _, given = authorization.partition(" ")
        is_right = hmac.compare_digest(given.encode("latin-1"), token.encode())
        return kind.lower() == "bearer" and bool(token) and is_right

    def _check_config(self, given: str | None) -> None:
        """Answer 421 if the caller meant another server, which shares our state_dir."""
        if given is not None and not _is_same_file(os.fsdecode(unquote_to_bytes(given)), self._config):
            raise HttpError(
                421,
                f"the server that listens here runs with {self._config}: "
                "give each server a state_dir of its own",
            )

    def _check_host(self, host: str) -> None:
        name = re.sub(r":[0-9]*$", "", host).strip("[]").lower()
        if name not in self._hosts and not _is_ip(name):
            raise HttpError(
                421,
                "the token is missing or wrong, and the Host header is no address of this server: "
                "send the token, as Authorization: Bearer TOKEN",
            )

    # -- what can be asked

    def answer(self, request: Request) -> Answer:
        """Answer a request; raises ``HttpError``."""
        self._check_config(request.headers.get(CONFIG_HEADER))
        method = "GET" if request.method == "HEAD" else request.method
        routes = [
            (verb, action, found) for verb, path, action in _ROUTES if (found := path.fullmatch(request.path))
        ]
        if not routes:
            raise HttpError(404, "there is nothing here")
        for verb, action, found in routes:
            if verb == method:
                return action(self, request, *found.groups())
        allowed = ", ".join(verb for verb, _, _ in routes)
        raise HttpError(405, f"only {allowed} will do", headers=(("Allow", allowed),))

    def _status(self, request: Request) -> Answer:
        return Answer(status.describe(self._app, self._keeper))

    def _connections(self, request: Request) -> Answer:
        return Answer({"connections": status.connections(self._app)})

    def _kill(self, request: Request, number: str) -> Answer:
        session = status.find_session(self._app, int(number))
        if session is None:
            raise HttpError(404, "there is no such connection")
        log.info("%s: connection %d is ended by an operator", session, session.id)
        session.stop(Ending.EVICTED)
        return Answer({"status": "ended", "id": session.id})

    def _versions_list(self, request: Request) -> Answer:
        versions = [status.describe_version(each) for each in self._keeper.versions()]
        return Answer({"current": self._keeper.current.number, "versions": versions})

    def _version(self, request: Request, number: str) -> Answer:
        """Show a version, and with ``?to=M`` or ``?to=current`` what differs from it to another one."""
        try:
            version = self._keeper.get(int(number))
            content = status.describe_version(version) | {"text": self._keeper.redacted(version.number)}
            other = request.query.get("to")
            if other is not None:
                current = self._keeper.current.number
                content["diff"] = self._keeper.diff(
                    version.number, current if other == "current" else _number(other)
                )
        except KeyError:
            raise HttpError(404, "there is no such version") from None
        return Answer(content)

    def _show(self, request: Request) -> Answer:
        return Answer({"version": self._keeper.current.number, "text": self._keeper.shown()})

    def _reload(self, request: Request) -> Answer:
        for note in self._app.reopen_logs():  # whatever becomes of the file
            log.warning("%s", note)
        self._refuse_while_draining()
        return _told(self._keeper.reload("ctl"))

    def _rollback(self, request: Request) -> Answer:
        self._refuse_while_draining()
        wanted = _object(request.body, {"version"}).get("version")
        if wanted is not None and (not isinstance(wanted, int) or isinstance(wanted, bool)):
            raise HttpError(400, "version is a number")
        try:
            return _told(self._keeper.rollback(wanted))
        except KeyError:
            raise HttpError(404, "there is no such version") from None

    def _change(self, request: Request) -> Answer:
        self._refuse_while_draining()
        edits, volatile = _read_change(request.body)
        try:
            outcome = self._keeper.change(edits, volatile=volatile, if_match=_if_match(request))
        except Conflict as exc:
            number = exc.current.number
            message = f"the configuration has changed meanwhile: it is at version {number}"
            return Answer({"status": "conflict", "version": number, "error": message}, 412)
        return _told(outcome)

    def _metrics(self, request: Request) -> Answer:
        return Answer(render(status.families(self._app, self._keeper)))

    def _health(self, request: Request) -> Answer:
        waiting = status.waiting(self._app)
        # As long as one listener serves, it is not out of service because of another.
        nothing_serves = waiting and not any(server.acceptors for server in self._app.servers)
        state = "draining" if self._app.draining else "waiting" if nothing_serves else "ok"
        told = {"status": state} | ({"waiting": waiting} if waiting else {})
        return Answer(told, 200 if state == "ok" else 503)

    def _refuse_while_draining(self) -> None:
        if self._app.draining:
            raise HttpError(409, "the server is stopping, so its configuration stays as it is")


_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
    (method, re.compile(path), action)
    for method, path, action in (
        ("GET", "/status", Admin._status),
        ("GET", "/connections", Admin._connections),
        ("DELETE", r"/connections/([0-9]{1,15})", Admin._kill),
        ("GET", "/versions", Admin._versions_list),
        ("GET", r"/versions/([0-9]{1,15})", Admin._version),
        ("POST", "/reload", Admin._reload),
        ("POST", "/rollback", Admin._rollback),
        ("GET", "/config", Admin._show),
        ("PATCH", "/config", Admin._change),
        ("GET", "/metrics", Admin._metrics),
        ("GET", "/healthz", Admin._health),
    )
]


def _told(outcome: Outcome) -> Answer:
    """Say what came of a reload, a rollback or a change."""
    content = {
        "status": outcome.status,
        "version": outcome.version,
        "problems": list(outcome.problems),
        "notes": list(outcome.notes),
    }
    return Answer(content, HTTPStatus.UNPROCESSABLE_ENTITY if outcome.status == "rejected" else 200)


def _is_same_file(one: str, other: str) -> bool:
    """Compare what the paths lead to now, or where they are if that cannot be had."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return os.path.abspath(one) == os.path.abspath(other)


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise HttpError(400, "a version is a number")
    return int(text)


def _object(body: bytes, known: set[str]) -> dict[str, Any]:
    """Read a body: a JSON object with nothing in it but what is known, or nothing at all."""
    try:
        value = json.loads(body.decode() or "{}", parse_constant=_no_json)
    except (ValueError, RecursionError):
        raise HttpError(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise HttpError(400, "the body is not a JSON object")
    if value.keys() - known:
        raise HttpError(400, f"the body may have only {', '.join(sorted(known))}")
    return value


def _read_change(body: bytes) -> tuple[list[Edit], bool]:
    content = _object(body, {"set", "unset", "volatile"})
    wanted, unwanted, volatile = (
        content.get("set", {}),
        content.get("unset", []),
        content.get("volatile", False),
    )
    if not isinstance(wanted, dict) or not isinstance(unwanted, list) or not isinstance(volatile, bool):
        raise HttpError(400, "set is an object, unset is a list, volatile is true or false")
    if not all(isinstance(key, str) for key in unwanted):
        raise HttpError(400, "unset is a list of keys")
    if not wanted and not unwanted:
        raise HttpError(400, "there is nothing to set or unset")
    if wanted.keys() & set(unwanted):
        raise HttpError(400, "a key cannot be both set and unset")
    edits: list[Edit] = [(key, _value(value)) for key, value in wanted.items()]
    return edits + [(key, None) for key in unwanted], volatile


def _no_json(constant: str) -> NoReturn:
    """Refuse what Python takes for a number beyond RFC 8259: NaN and Infinity."""
    raise ValueError(constant)


def _value(value: object) -> str:
    """Write a JSON value as it stands in the file."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | str):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(repr(value)):f}"  # the file knows no exponents
    raise HttpError(400, "a value is a string, a number or a boolean")


def _if_match(request: Request) -> int | None:
    given = request.headers.get("If-Match")
    if given is None or given == "*":
        return None
    match = re.fullmatch(r'("?)([0-9]{1,15})\1', given)
    if not match:
        raise HttpError(400, 'If-Match is the number of a version, such as "7"')
    return int(match[2])
