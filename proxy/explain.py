"""
Explain what the rules decide about a target, and why.

The code that decides is the code that explains: the same walk over the rules, and the same ``Course`` by
which each address is judged before it is dialled. Only nothing is dialled.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from proxy.accesslog import quoted, shortened
from proxy.address import Address, IPAddress, read_ip, split_authority
from proxy.errors import (
    ConfigError,
    DialError,
    Failure,
    LimitError,
    NotAClientError,
    ProtocolError,
    ProxyError,
)
from proxy.http.refusals import refusal
from proxy.net.deadline import Deadline
from proxy.net.dial import MOST_ADDRESSES, interleave
from proxy.policy.rules import (
    Answer,
    Course,
    ElsewhereError,
    LookUp,
    NotAllowedError,
    Policy,
    Query,
    Reason,
    Step,
    Verdict,
    Ways,
    blocked,
    conclude,
)
from proxy.routing import looking_up
from proxy.settings.listener import ServerConfig, Strategy
from proxy.settings.rules import RuleConfig
from proxy.settings.upstream import UpstreamConfig, UpstreamType
from proxy.socks5.codec import code_of

_MOST_NAMED = 4  # entries of a list

Object = dict[str, Any]


def read_target(text: str) -> Address:
    """Read ``host:port``; raises ``ConfigError`` that says what would be right."""
    host, port = split_authority(text) or ("", None)
    if not host or not port or not port.isdecimal():
        raise ConfigError("target", "is not host:port or [::1]:port")
    try:
        return Address(host, int(port))
    except ProtocolError as exc:
        raise ConfigError("target", str(exc)) from None


def read_client(text: str) -> IPAddress | None:
    """Read the address of a client, if there is one; raises ``ConfigError``."""
    ip = read_ip(text)
    if text and ip is None:
        raise ConfigError("from", "is not an IP address")
    return ip


def choose(listeners: Sequence[ServerConfig], name: str) -> ServerConfig:
    """Find the listener that is meant; raises ``ConfigError``."""
    names = ", ".join(each.name for each in listeners)
    if not name and len(listeners) == 1:
        return listeners[0]
    for each in listeners:
        if each.name == name:
            return each
    raise ConfigError("listener", f"there is no {name}, only {names}" if name else f"must be one of {names}")


def explain_request(
    policy: Policy, config: ServerConfig, target: Address, user: str, client: IPAddress | None
) -> Object:
    """Say what becomes of a client's wish at a listener; names are looked up as they would be for it."""
    query = Query(target, user, client, config.name)
    return explain(policy, config, query, looking_up(target, Deadline(config.timeout)))


def explain(policy: Policy, config: ServerConfig, query: Query, look_up: LookUp) -> Object:
    """
    Describe what becomes of a request, as plain values for JSON.

    ``look_up`` finds all addresses of the target's name, and may raise ``DialError`` and ``LimitError``.
    """
    told: Object = {
        "target": str(query.target),
        "listener": query.listener,
        "user": query.user,
        "from": str(query.client or ""),
        "rules": [],
        "decided": None,
        "is_name": query.target.ip is None,
        "addresses": [],
        "goes": False,
        "by": [],
        "failure": "",
    }
    try:
        config.check_client(query.client)
        return told | _judge(policy, config, query, look_up, told)
    except NotAClientError as exc:
        return told | {"failure": f"{exc}, so it is closed before a byte is read"}
    except (DialError, LimitError) as exc:
        return told | _refused(exc)


def _judge(policy: Policy, config: ServerConfig, query: Query, look_up: LookUp, told: Object) -> Object:
    steps: list[Step] = []
    try:
        steps.extend(policy.walk(query, look_up=look_up))
    finally:  # a lookup may have failed, and ended it
        told["rules"] = list(_rules(config.rules, steps, query))
    verdict = conclude(steps)
    told["decided"] = _decided(policy, verdict)
    if verdict.is_block:
        raise blocked(str(query.target), verdict)
    course = Course(policy, query, verdict)
    ways = policy.ways(verdict)
    direct = next((way for way in ways if way.type is UpstreamType.DIRECT), None)
    if not direct or not _goes_directly(config, ways):
        # Another way is taken first, so its addresses say only what happens if that cannot be had.
        judged: list[_Judged] = []
        if direct:
            with suppress(DialError, LimitError):
                judged = [_judge_address(course, direct, ip) for ip in _addresses(direct, query, look_up)]
        told["addresses"] = [each.told for each in judged]
        return _goes(ways, judged)
    try:
        return _directly(policy, course, query, look_up, told)
    except ElsewhereError as exc:
        course.turn(exc.verdict)
        told["turned"] = _decided(policy, exc.verdict)
        if not _goes_directly(config, policy.ways(exc.verdict)):
            return _goes(policy.ways(exc.verdict), [])
        return _directly(policy, course, query, look_up, told)


def _goes_directly(config: ServerConfig, ways: Ways) -> bool:
    """Tell whether a direct connection comes first, whatever the state of the upstreams."""
    directly = [way.type is UpstreamType.DIRECT for way in ways]
    return all(directly) or (directly[0] and config.strategy is Strategy.FAILOVER)


def _addresses(way: UpstreamConfig, query: Query, look_up: LookUp) -> Sequence[IPAddress]:
    """Find the addresses that a direct way would dial, and then those that it leaves out."""
    if query.target.ip:
        return [query.target.ip]
    ips = interleave(look_up(), way.egress.preferred)
    dialled = [ip for ip in ips if not way.egress.why_not(ip.version)]
    return [*dialled[:MOST_ADDRESSES], *(ip for ip in ips if ip not in dialled)][:MOST_ADDRESSES]


def _directly(policy: Policy, course: Course, query: Query, look_up: LookUp, told: Object) -> Object:
    """
    Judge the addresses of the first direct way that does not leave out all of them.

    Raises ``ElsewhereError``, or why none is dialled.
    """
    ways = policy.ways(course.verdict)
    judged: list[_Judged] = []
    for number, way in enumerate(ways):
        if way.type is not UpstreamType.DIRECT:
            return _goes(ways[number:], judged)
        judged.clear()
        for ip in _addresses(way, query, look_up):
            judged.append(_judge_address(course, way, ip))
            told["addresses"] = [each.told for each in judged]
            if isinstance(judged[-1].refusal, ElsewhereError):
                raise judged[-1].refusal
        if any(each.told["goes"] for each in judged):
            return _goes(ways[number:], judged)
        if refusal := next((each.refusal for each in judged if each.refusal), None):
            raise refusal
    raise DialError(f"{query.target}: {judged[0].told['why']}", Failure.NETWORK_UNREACHABLE)


class _Judged(NamedTuple):
    """What becomes of an address, and what keeps it from being dialled, if a rule does."""

    ip: IPAddress
    told: Object
    refusal: NotAllowedError | ElsewhereError | None = None


def _judge_address(course: Course, way: UpstreamConfig, ip: IPAddress) -> _Judged:
    def out(rule: str, why: str, refusal: NotAllowedError | ElsewhereError | None = None) -> _Judged:
        return _Judged(ip, {"ip": str(ip), "goes": False, "rule": rule, "why": why}, refusal)

    left_out = way.egress.why_not(ip.version)
    try:
        # Of those of a name, one that is left out is not even judged.
        if not left_out or course.target.ip:
            course.check(ip)
    except NotAllowedError as exc:
        return out(exc.rule, exc.why, exc)
    except ElsewhereError as exc:
        rule = exc.verdict.rule
        return out(rule.name if rule else "", "goes another way", exc)
    if left_out:
        return out("", left_out)
    rule = course.verdict.rule
    return _Judged(ip, {"ip": str(ip), "goes": True, "rule": rule.name if rule else "", "why": ""})


def _goes(ways: Ways, judged: Sequence[_Judged]) -> Object:
    """Name the ways by which it goes, as a direct one leaves out addresses that others do not."""
    ips = [each.ip for each in judged if not each.refusal]
    by = [
        way.name
        for way in ways
        if way.type is not UpstreamType.DIRECT or any(not way.egress.why_not(ip.version) for ip in ips)
    ]
    return {"goes": True, "by": by}


def _refused(exc: ProxyError) -> Object:
    said = refusal(exc.failure)
    status = dict(said.headers).get("Proxy-Status", "")
    return {
        "goes": False,
        "failure": str(exc),
        "socks": int(code_of(exc.failure)),
        "http": said.status,
        "proxy_status": status.partition("error=")[2].partition(";")[0],
    }


def _decided(policy: Policy, verdict: Verdict) -> Object:
    rule = verdict.rule
    return {
        "rule": rule.name if rule else "",
        "action": ", ".join(rule.action) if rule else "allow",
        "ways": [] if verdict.is_block else [way.name for way in policy.ways(verdict)],
    }


# Each rule, and why


def _rules(rules: Sequence[RuleConfig], steps: Sequence[Step], query: Query) -> Iterator[Object]:
    """Tell of all rules in the file up to the last one that was asked, also of those for other listeners."""
    left = list(steps)
    for number, rule in enumerate(rules, 1):
        if not left:
            return
        is_asked = left[0].rule is rule
        step = left.pop(0) if is_asked else Step(rule, Answer.NO, Reason.LISTENER)
        yield {
            "number": number,
            "name": rule.name,
            "answer": step.answer.value,
            "why": _why(step, query),
            "action": ", ".join(rule.action),
            "report": rule.report,
        }


def _why(step: Step, query: Query) -> str:
    rule, _, reason = step
    target, user, client, listener = query
    if reason is Reason.LISTENER:
        return f"listener: {listener} is not {_some(rule.listener)}"
    if reason is Reason.USER:
        who = f"{quoted(shortened(user))} is not" if user else "nobody has logged in, and it is for"
        return f"user: {who} {_some(rule.user)}"
    if reason is Reason.FROM:
        networks = _some(str(rule.from_).split(", "))
        return f"from: {client or 'a client without an address'} is not in {networks}"
    if reason is Reason.PORT:
        return f"port: {target.port} is not in {_some(str(rule.port).split(', '))}"
    if reason is Reason.ANY:
        return "to: any target"
    if reason is Reason.NAME:
        return f"to: {target.host} is one of its names"
    if reason is Reason.ADDRESS:
        return "to: the address is one of its" + ("" if target.ip else ", by a lookup here")
    addresses = _some(rule.to.addresses)
    if reason is Reason.LATER:
        first = "no name matches; " if rule.to.has_names else ""
        return f"to: {first}{addresses}, judged after the lookup"
    if target.ip:
        return f"to: the address is not in {addresses}" if addresses else "to: it has names only"
    looked = f", nor an address of {addresses}, by a lookup here" if addresses else ""
    return f"to: {'no name matches' if rule.to.has_names else 'none of its addresses'}{looked}"


def _some(texts: Sequence[str]) -> str:
    more = [f"and {len(texts) - _MOST_NAMED} more"] if len(texts) > _MOST_NAMED else []
    return ", ".join([*texts[:_MOST_NAMED], *more])
