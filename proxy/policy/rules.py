"""
Where a client may go, and through which upstreams: the rules of a configuration, and the guard after them.

A request is judged twice. First as the client wrote it: the rules are asked one after the other, and the
first that matches decides (``Policy.judge``). Then, where the connection goes out directly from here, every
address is judged by the same rules when it is about to be dialled, and by the guard (``Course``).

What a rule answers:

    yes     All its conditions hold: it decides, unless it only reports.
    no      One of them does not.
    open    It is for an address, and there is only a name so far. It does not decide; if the connection goes
            out directly, it is asked again for each address.

What may never be violated:

- An address is judged as the host that a connection to it ends at (``stands_for``), so no spelling and no
  way of writing it in IPv6 gets round a rule.
- What the guard stops goes only through a rule that names it, not by one that is for everything. To come to
  a listener of our own such a rule has to name the port too.
- ``explain`` walks the same way as what decides.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from proxy.address import Address, IPAddress
from proxy.errors import DialError, Failure, ProxyError
from proxy.policy.selectors import mismatch
from proxy.settings.listener import Guard, ServerConfig
from proxy.settings.rules import GUARD, RuleConfig
from proxy.settings.upstream import UpstreamConfig
from proxy.targets import Word, stands_for

_BROADCAST = IPv4Address("255.255.255.255")

LookUp = Callable[[], Sequence[IPAddress]]
Reported = Callable[[RuleConfig], object]  # is told of each rule that would have decided
Ways = tuple[UpstreamConfig, ...]


def ignore(rule: RuleConfig) -> None:
    """Do nothing about a rule that only reports."""


class NotAllowedError(DialError):
    """A target that is refused; ``rule`` says by which rule. The client is not told its addresses."""

    def __init__(self, target: str, why: str, rule: str = "", *, cure: str = "") -> None:
        super().__init__(f"{target}: {why}{f': {cure}' if cure else ''}", Failure.NOT_ALLOWED)
        self.rule = rule
        self.why = why
        self.told = f"not allowed by {'the guard' if rule == GUARD else f'rule {rule}'}" if rule else ""
        self.told += f": {cure}" if cure else ""


class ElsewhereError(Exception):
    """The rules have a connection go another way, now that they know where its target is."""

    def __init__(self, verdict: "Verdict") -> None:
        super().__init__(str(verdict))
        self.verdict = verdict


def check(ip: IPAddress) -> None:
    """Raise ``NotAllowedError`` for an address that is no single host's: TCP cannot connect to it."""
    if not _is_a_host(ip):
        raise NotAllowedError(str(ip), "is not the address of a host")


@lru_cache(1024)
def _is_a_host(ip: IPv4Address | IPv6Address) -> bool:
    ip = stands_for(ip)
    return not (ip.is_unspecified or ip.is_multicast or ip == _BROADCAST)


class Machine(NamedTuple):
    """What is to be known of this machine at the moment in which it is asked."""

    is_own: Callable[[IPAddress], bool]  # one of its addresses
    listens_on: Callable[[IPAddress, int], bool]  # this program does


class Query(NamedTuple):
    """Who wants to go where; without a user if there was no login."""

    target: Address
    user: str = ""
    client: IPAddress | None = None
    listener: str = ""


class Answer(Enum):
    """What a rule says to a query."""

    YES = "yes"
    NO = "no"
    OPEN = "open"


class Reason(Enum):
    """Why it says that: by which condition."""

    USER = "user"
    FROM = "from"
    LISTENER = "listener"
    PORT = "port"
    NAME = "name"  # one of its names is the target's
    ADDRESS = "address"  # the address is one of its addresses
    OTHERS = "others"  # neither is
    ANY = "any"  # it is for all targets
    LATER = "later"  # it is for addresses, and there is none


class Step(NamedTuple):
    """One rule, and what it says."""

    rule: RuleConfig
    answer: Answer
    reason: Reason


class Verdict(NamedTuple):
    """What came of asking the rules: the one that decided, if one did, and why."""

    rule: RuleConfig | None
    reason: Reason | None = None

    @property
    def is_block(self) -> bool:
        """True if the target is refused."""
        return self.rule is not None and self.rule.is_block


_REASONS = {each.value: each for each in Reason}


class Policy:
    """The rules that clients of one listener may meet, and its guard."""

    def __init__(self, config: ServerConfig, machine: Machine) -> None:
        self.rules = config.own_rules
        self._machine = machine
        self._setting = config.guard.value
        self._level = config.guarded
        # Whatever else it lets through.
        self._keeps_off_ours = config.guard is not Guard.OFF
        self._own_ways = config.ways
        self._has_others = config.enable_upstream

    @property
    def is_plain(self) -> bool:
        """True if all that is refused is our own listeners."""
        return not self.rules and self._level is None and self._keeps_off_ours

    def ways(self, verdict: Verdict) -> Ways:
        """Give the ways out by which a verdict has a connection go."""
        if verdict.rule and verdict.rule.leads and self._has_others:
            return verdict.rule.upstream_config
        return self._own_ways

    def judge(
        self,
        query: Query,
        ip: IPAddress | None = None,
        look_up: LookUp | None = None,
        reported: Reported = ignore,
    ) -> Verdict:
        """
        Find the rule that decides.

        For a name there may be an ``ip``, one of its addresses; without it ``look_up`` finds all for the
        rules that want them. Raises what that raises.
        """
        return conclude(self.walk(query, ip, look_up), reported)

    def walk(
        self, query: Query, ip: IPAddress | None = None, look_up: LookUp | None = None
    ) -> Iterator[Step]:
        """Ask one rule after the other, to the one that decides."""
        ip = ip or query.target.ip
        inside = stands_for(ip) if ip else None
        for rule in self.rules:
            answer, reason = self._ask(rule, query, inside, look_up)
            yield Step(rule, answer, reason)
            if answer is Answer.YES and not rule.report:
                return

    def _ask(
        self, rule: RuleConfig, query: Query, ip: IPAddress | None, look_up: LookUp | None
    ) -> tuple[Answer, Reason]:
        target, user, client, listener = query
        if other := mismatch(rule, user, client, listener):
            return Answer.NO, _REASONS[other]
        if rule.port and target.port not in rule.port:
            return Answer.NO, Reason.PORT
        to = rule.to
        if not to:
            return Answer.YES, Reason.ANY
        # That an address is named counts for more than that its name is: see the guard.
        if ip and to.has_ip(ip, self._machine.is_own):
            return Answer.YES, Reason.ADDRESS
        if target.ip is None and to.has_name(target.host):
            return Answer.YES, Reason.NAME
        if ip or not to.has_addresses:
            return Answer.NO, Reason.OTHERS
        if not rule.resolve or look_up is None:
            return Answer.OPEN, Reason.LATER
        try:
            found = [stands_for(each) for each in look_up()]
        except ProxyError:
            if not rule.report:
                raise
            return Answer.OPEN, Reason.LATER  # what only reports ends nothing
        which = found if rule.is_block else found[:1]
        is_one = any(to.has_ip(each, self._machine.is_own) for each in which)
        return (Answer.YES, Reason.ADDRESS) if is_one else (Answer.NO, Reason.OTHERS)

    def guard(self, query: Query, ip: IPAddress, verdict: Verdict, where: str) -> NotAllowedError | None:
        """Make the error by which the guard stops a direct connection to an address; none if it does not."""
        port, inside = query.target.port, stands_for(ip)
        rule = verdict.rule if verdict.reason is Reason.ADDRESS else None  # that names the address
        if self._keeps_off_ours and not (rule and rule.port) and self._machine.listens_on(inside, port):
            why = f"this proxy itself listens on {ip}, port {port}"
            return NotAllowedError(
                where, why, GUARD, cure="only a rule that names address and port allows it"
            )
        level = self._level
        if rule or level is None or not level.has(inside, self._machine.is_own):
            return None
        what = next(text for word, text in _WHAT.items() if word.has(inside, self._machine.is_own))
        why = "" if self._setting == level.value else f", which is {level.value} here"
        cure = f"only a rule that names the address allows it (guard = {self._setting}{why})"
        return NotAllowedError(where, f"{ip} is {what}", GUARD, cure=cure)


_WHAT = {
    Word.METADATA: "link-local or a cloud's metadata",
    Word.SELF: "this machine",
    Word.PRIVATE: "in a private network",
}


class Course:
    """
    The direct connection of one client: each address of its target is judged before it is dialled.

    The first that is not refused decides by which way the connection goes. Those that would go another
    way than the one that is taken are not dialled.
    """

    def __init__(self, policy: Policy, query: Query, verdict: Verdict, reported: Reported = ignore) -> None:
        """Take the verdict on the target as it was written, by which it goes out directly."""
        self._policy = policy
        self._query = query
        self._reported = reported
        self._is_settled = False
        self.verdict = verdict  # the one by which it goes now

    @property
    def target(self) -> Address:
        """The target as it was written."""
        return self._query.target

    def check(self, ip: IPAddress) -> None:
        """Let an address be dialled; raises ``NotAllowedError`` if not, or else ``ElsewhereError``."""
        check(ip)
        target, policy = self._query.target, self._policy
        where = str(target) if target.ip else f"{target} ({ip})"
        verdict = policy.judge(self._query, ip, reported=self._reported)
        if verdict.is_block:
            raise blocked(where, verdict)
        if policy.ways(verdict) != policy.ways(self.verdict):
            if self._is_settled:
                raise NotAllowedError(where, f"goes another way than others, {_by_whom(verdict)}")
            raise ElsewhereError(verdict)
        if refusal := policy.guard(self._query, ip, verdict, where):
            raise refusal
        if not self._is_settled:
            self.turn(verdict)

    def turn(self, verdict: Verdict) -> None:
        """Go the way that a verdict wants, and leave it no more."""
        self._is_settled = True
        self.verdict = verdict


def conclude(steps: Iterable[Step], reported: Reported = ignore) -> Verdict:
    """Make the verdict of a walk: the first rule that matches decides."""
    for rule, answer, reason in steps:
        if answer is Answer.YES:
            if not rule.report:
                return Verdict(rule, reason)
            reported(rule)
    return Verdict(None)


def blocked(where: str, verdict: Verdict) -> NotAllowedError:
    """Make the error that says which rule refuses a target."""
    assert verdict.rule is not None
    return NotAllowedError(where, f"not allowed by rule {verdict.rule.name}", verdict.rule.name)


def _by_whom(verdict: Verdict) -> str:
    return f"by rule {verdict.rule.name}" if verdict.rule else "as no rule matches"


_REACH = {
    None: "whatever this machine reaches, itself included",
    Word.METADATA: "whatever this machine reaches, itself included, but no link-local or metadata address",
    Word.SELF: "whatever this machine reaches, private networks included, but not itself",
    Word.PRIVATE: "the Internet, but neither this machine nor private networks",
}


def openness(config: ServerConfig) -> str:
    """Say who may use a listener that others reach, and what for, in one line."""
    who = "whoever has a login" if config.needs_auth else "anybody who reaches it"
    if config.clients:
        who += f" from {config.clients}"
    more = ", as far as [rules] allow" if config.own_rules else ""
    return f"{who} may connect to {_REACH[config.guarded]} (guard = {config.guard.value}){more}"
