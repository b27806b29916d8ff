"""
What can be asked of a running program through its control interface: JSON over HTTP.

A request is a row of ``_ROUTES``, which says what answers it, by a method of ``Api`` where that takes more
than a line. GET changes nothing, and no header allows another origin's page anything.
"""

import json
import logging
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from decimal import Decimal
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import unquote, unquote_to_bytes

from proxy.accesslog import quoted
from proxy.address import Address, read_ip
from proxy.configtext.document import Edit
from proxy.control import status
from proxy.control.connections import Query
from proxy.control.http import Answer, Request
from proxy.control.page import page
from proxy.control.program import Program
from proxy.ctl.ask import CONFIG_HEADER, NOTHING_HERE
from proxy.errors import ConfigError, ProxyError
from proxy.explain import choose, explain_request, read_client, read_target
from proxy.http.heads import HttpError
from proxy.keeping.candidate import Conflict, Outcome
from proxy.keeping.keeper import Keeper
from proxy.metrics import render
from proxy.stages import examine, find

log = logging.getLogger(__name__)

# For who knows no token: load balancers and the like, which get a word on the state, and a browser, which
# gets the page with nothing in it, and asks for the token then.
TOLD_TO_ANYBODY = ("/healthz", "/livez", "/")

Told = Answer | dict[str, Any] | str  # an object or a text where there is no more to an answer


class Api:
    """Answers requests, whoever may ask."""

    def __init__(self, program: Program, keeper: Keeper, config: str, *, needs_token: bool = False) -> None:
        """Take the path of the file that is served, and whether a token is needed to ask."""
        self.program = program
        self.keeper = keeper
        self._config = config
        self.needs_token = needs_token

    def answer(self, request: Request) -> Answer:
        """Answer a request; raises ``HttpError``."""
        self._check_config(request.headers.get(CONFIG_HEADER))
        method = "GET" if request.method == "HEAD" else request.method
        routes = [
            (verb, action, found) for verb, path, action in _ROUTES if (found := path.fullmatch(request.path))
        ]
        if not routes:
            raise HttpError(404, NOTHING_HERE)
        for verb, action, found in routes:
            if verb == method:
                _check_query(request, action)
                told = action(self, request, *found.groups())
                return told if isinstance(told, Answer) else Answer(told)
        verbs = [verb for verb, _, _ in routes]
        allowed = ", ".join(["HEAD", *verbs] if "GET" in verbs else verbs)
        raise HttpError(405, f"only {' and '.join(verbs)} will do", headers=(("Allow", allowed),))

    def _connections(self, request: Request) -> Told:
        try:
            query = Query.parse(request.query)
        except ValueError as exc:
            raise HttpError(400, str(exc)) from None
        return self.program.connections(query).describe(query)

    def _forgive(self, request: Request, address: str) -> Told:
        ip = read_ip(unquote(address))
        if ip is None:
            raise HttpError(400, f"{quoted(unquote(address))} is not an IP address")
        if not self.program.forgive(ip):
            raise HttpError(404, "no login from there has failed recently")
        client = Address(str(ip), 0)
        log.info("the failed logins of %s are forgiven by an operator", client.network)
        return {"status": "forgiven", "client": client.network}

    def _explain(self, request: Request) -> Told:
        """Say what the rules in effect make of a target."""
        given = request.query
        if unknown := given.keys() - {"target", "listener", "user", "from"}:
            raise HttpError(400, f"there is no {', '.join(sorted(unknown))}")
        try:
            target, client = read_target(given.get("target", "")), read_client(given.get("from", ""))
            listener = choose(self.keeper.config.listeners, given.get("listener", ""))
        except ConfigError as exc:
            raise HttpError(400, f"{exc.field}: {exc}") from None
        # Those that accept clients come first.
        runtime = next(each.runtime for each in self.program.app.servers if each.config.name == listener.name)
        user = given.get("user", "")
        return explain_request(runtime.router.policy, runtime.config, target, user, client)

    def _test(self, request: Request) -> Told:
        """Reach an upstream of the configuration in effect, stage by stage, and a target through it."""
        content = _object(request.body, {"upstream", "target"})
        name, text = content.get("upstream"), content.get("target", "")
        if not isinstance(name, str) or not isinstance(text, str):
            raise HttpError(400, "upstream and target are strings, and the first one is needed")
        try:
            upstream = find(self.keeper.config, name)
            return examine(upstream, read_target(text) if text else None)
        except LookupError as exc:
            raise HttpError(404, str(exc.args[0])) from None
        except ValueError as exc:
            raise HttpError(400, f"target: {exc}") from None

    def _kill(self, request: Request, name: str) -> Told:
        if not self.program.end_connection(name):
            raise HttpError(404, "there is no such connection")
        return {"status": "ended", "id": int(name) if name.isdecimal() else name}

    def _versions_list(self, request: Request) -> Told:
        versions = [status.describe_version(each) for each in self.keeper.versions()]
        return {"current": self.keeper.current.number, "versions": versions}

    def _version(self, request: Request, number: str) -> Told:
        """Show a version, and with ``?to=M`` or ``?to=current`` what differs from it to another one."""
        try:
            if unknown := request.query.keys() - {"to"}:
                raise HttpError(400, f"there is no {', '.join(sorted(unknown))}")
            version = self.keeper.get(int(number))
            content = status.describe_version(version) | {"text": self.keeper.redacted(version)}
            if (to := request.query.get("to")) is not None:
                other = self.keeper.current if to == "current" else self.keeper.get(_number(to))
                content["diff"] = self.keeper.diff(version, other)
        except KeyError:
            raise HttpError(404, "there is no such version") from None
        return content

    def _reload(self, request: Request) -> Told:
        _object(request.body, set())
        for note in self.program.app.reopen_logs():  # whatever becomes of the file
            log.warning("%s", note)
        self._refuse_while_draining()
        return _told(self.keeper.reload("ctl"))

    def _upgrade(self, request: Request) -> Told:
        """Begin to have the program's file started anew; what comes of it, the status says."""
        _object(request.body, set())
        self._refuse_while_draining()
        try:
            number = self.program.begin_upgrade(self.keeper.outcomes, self.keeper.held)
        except ProxyError as exc:
            raise HttpError(409, str(exc)) from None
        return Answer({"status": "begun", "number": number}, HTTPStatus.ACCEPTED)

    def _rollback(self, request: Request) -> Told:
        self._refuse_while_draining()
        wanted = _object(request.body, {"version"}).get("version")
        if wanted is not None and (not isinstance(wanted, int) or isinstance(wanted, bool)):
            raise HttpError(400, "version is a number")
        try:
            return _told(self.keeper.rollback(wanted))
        except KeyError:
            raise HttpError(404, "there is no such version") from None

    def _change(self, request: Request) -> Told:
        self._refuse_while_draining()
        edits, volatile = _read_change(request.body)
        try:
            outcome = self.keeper.change(edits, volatile=volatile, if_match=_if_match(request))
        except Conflict as exc:
            content = {"status": "conflict", "version": exc.current.number, "error": str(exc)}
            return Answer(content, HTTPStatus.PRECONDITION_FAILED)
        return _told(outcome)

    def _health(self, request: Request) -> Told:
        servers = self.program.app.servers
        # As long as one listener serves, it is not out of service because of another.
        is_waiting = any(each.missing for each in servers) and not any(each.acceptors for each in servers)
        state = "draining" if self.program.app.draining else "waiting" if is_waiting else "ok"
        return Answer({"status": state}, 200 if state == "ok" else 503)

    def _refuse_while_draining(self) -> None:
        if self.program.app.draining:
            raise HttpError(409, "the server is stopping, so its configuration stays as it is")

    def _check_config(self, given: str | None) -> None:
        """Answer 421 if the caller meant another server, which shares our state_dir."""
        if given is not None and not _is_same_file(os.fsdecode(unquote_to_bytes(given)), self._config):
            raise HttpError(
                421,
                f"the server that listens here runs with {self._config}: give each server its own state_dir",
            )


_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Told]]] = [
    (method, re.compile(path), action)
    for method, path, action in (
        ("GET", "/", lambda api, _: page(needs_token=api.needs_token)),
        ("GET", "/status", lambda api, _: status.describe(api.program, api.keeper)),
        ("GET", "/connections", Api._connections),
        ("DELETE", r"/connections/([0-9]{1,15}(?:-[0-9]{1,15})?)", Api._kill),
        ("GET", "/limits", lambda api, _: status.limits(api.program)),
        ("GET", "/refusals", lambda api, _: {"refusals": status.refusals(api.program)}),
        ("GET", "/penalties", lambda api, _: status.penalties(api.program)),
        ("DELETE", r"/penalties/([0-9A-Za-z.:%]{1,80})", Api._forgive),
        ("GET", "/explain", Api._explain),
        ("POST", "/test", Api._test),
        ("GET", "/versions", Api._versions_list),
        ("GET", r"/versions/([0-9]{1,15})", Api._version),
        ("POST", "/reload", Api._reload),
        ("POST", "/rollback", Api._rollback),
        ("POST", "/upgrade", Api._upgrade),
        ("GET", "/config", lambda api, _: {"version": api.keeper.current.number, "text": api.keeper.shown()}),
        ("PATCH", "/config", Api._change),
        ("GET", "/metrics", lambda api, _: render(status.families(api.program, api.keeper))),
        ("GET", "/healthz", Api._health),
        # That the event loop turns, whatever else is the matter.
        ("GET", "/livez", lambda api, _: {"status": "alive"}),
    )
]


# Which read their query, and which are asked by programs that add one of their own accord.
_WITH_QUERY = (Api._connections, Api._explain, Api._version)
_ASKED_ANYHOW = (*TOLD_TO_ANYBODY, "/metrics")


def _check_query(request: Request, action: Callable[..., Told]) -> None:
    """Refuse one that would have no effect: ``POST /rollback?version=1`` would go back to another version."""
    if request.query and action not in _WITH_QUERY and request.path not in _ASKED_ANYHOW:
        raise HttpError(400, f"{request.path} takes no query")


def _told(outcome: Outcome) -> Answer:
    """Say what came of a reload, a rollback or a change."""
    return Answer(asdict(outcome), HTTPStatus.UNPROCESSABLE_ENTITY if outcome.status == "rejected" else 200)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise HttpError(400, "a version is a number")
    return int(text)


def _object(body: bytes, known: set[str]) -> dict[str, Any]:
    """Read a body: a JSON object with nothing in it but what is known, or nothing at all."""
    try:
        value = json.loads(
            body.decode() or "{}", parse_constant=_no_json, object_pairs_hook=_object_of_different
        )
    except HttpError:
        raise
    except (ValueError, RecursionError):
        raise HttpError(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise HttpError(400, "the body is not a JSON object")
    if value.keys() - known:
        only = f"the body may have only {', '.join(sorted(known))}" if known else "the body has to be empty"
        raise HttpError(400, only)
    return value


def _read_change(body: bytes) -> tuple[list[Edit], bool]:
    content = _object(body, {"set", "unset", "volatile"})
    wanted, unwanted = content.get("set", {}), content.get("unset", [])
    volatile = content.get("volatile", False)
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


def _object_of_different(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; raises ``HttpError`` if it has a name twice, of which only one would count."""
    if len(dict(pairs)) < len(pairs):
        raise HttpError(400, "an object in the body has a name twice")
    return dict(pairs)


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


def _is_same_file(one: str, other: str) -> bool:
    """Compare what the paths lead to now, or where they are if that cannot be had."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return os.path.abspath(one) == os.path.abspath(other)
