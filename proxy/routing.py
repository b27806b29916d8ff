"""
Where the connections of a listener go: its rules choose among its upstreams.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache

from proxy.accesslog import quoted
from proxy.address import Address, IPAddress
from proxy.client import Connected, ProxyClient
from proxy.listening import ours
from proxy.metrics import ListenerMetrics
from proxy.net.deadline import Deadline
from proxy.net.lookup import look_up_all
from proxy.policy.rules import (
    Course,
    ElsewhereError,
    Machine,
    NotAllowedError,
    Policy,
    Query,
    Verdict,
    blocked,
)
from proxy.settings.listener import ServerConfig
from proxy.settings.rules import BLOCK, RuleConfig
from proxy.upstream import Ways

log = logging.getLogger(__name__)


class Router:
    """The rules of a listener, and its ways out."""

    def __init__(self, config: ServerConfig, ways: Ways, metrics: ListenerMetrics) -> None:
        self.policy = Policy(config, Machine(ours.is_local, ours.is_ours))
        self.ways = ways
        self._metrics = metrics
        self._listener = config.name

    def trip(self, target: Address, user: str = "", client: IPAddress | None = None) -> "Trip":
        """Take a client's wish, to do what the rules say to it."""
        return Trip(self, Query(target, user, client, self._listener))

    def way(self, verdict: Verdict) -> ProxyClient:
        """Give the way out by which a verdict has a connection go."""
        return self.ways[self.policy.ways(verdict)]

    def count(self, rule: str, action: str) -> None:
        """Count what a rule did to a connection."""
        self._metrics.rules[rule, action] += 1


class Trip:
    """
    One client's way to its target.

    ``rule`` is the name of the one that decided, if one did, and ``via`` that of the way out that was taken.
    """

    __slots__ = ("_query", "_reported", "_router", "rule", "via")

    def __init__(self, router: Router, query: Query) -> None:
        self._router = router
        self._query = query
        self._reported: set[str] = set()
        self.rule = ""
        self.via = ""

    def dial(self, deadline: Deadline) -> Connected:
        """Connect to the target, if the rules allow it; raises like ``ProxyClient.dial``."""
        router, target = self._router, self._query.target
        if router.policy.is_plain and not ours.has(target.port):
            self.via = router.ways.own.name
            return router.ways.own.dial(target, deadline)
        try:
            return self._dial(deadline)
        except NotAllowedError as exc:
            self.via = ""
            if exc.rule:
                self._note(exc.rule, BLOCK)
            raise

    def _dial(self, deadline: Deadline) -> Connected:
        router, query = self._router, self._query
        verdict = router.policy.judge(
            query, look_up=looking_up(query.target, deadline), reported=self._report
        )
        if verdict.is_block:
            raise blocked(str(query.target), verdict)
        course = Course(router.policy, query, verdict, self._report)
        try:
            return self._go(course, deadline)
        except ElsewhereError as exc:
            course.turn(exc.verdict)
            return self._go(course, deadline)

    def _go(self, course: Course, deadline: Deadline) -> Connected:
        """Take the way that was chosen; whatever comes of it, a rule has decided, if there is one."""
        way = self._router.way(course.verdict)
        self.via = way.name
        is_decided = True
        try:
            return way.dial(self._query.target, deadline, course.check)
        except (ElsewhereError, NotAllowedError):
            is_decided = False  # another one does
            raise
        finally:
            rule = course.verdict.rule
            if is_decided and rule:
                self._note(rule.name, rule.effect)

    def _note(self, rule: str, action: str) -> None:
        self.rule = rule
        self._router.count(rule, action)

    def _report(self, rule: RuleConfig) -> None:
        """Note what a rule would have done that is only to be tried."""
        if rule.name in self._reported:
            return
        self._reported.add(rule.name)
        self._router.count(rule.name, rule.effect)
        _, user, client, listener = self._query
        whose = f"user {quoted(user)}" if user else f"client {client}"
        what = f"rule {rule.name} would {_words(rule)}"
        log.info(
            "%s: %s: %s (%s)", listener, what, self._query.target, whose, extra={"collapse": (whose, what)}
        )


def looking_up(target: Address, deadline: Deadline) -> Callable[[], Sequence[IPAddress]]:
    """Make what looks the target's name up, once, for the rules that want that."""
    return cache(lambda: look_up_all(target.host, deadline).ips)


def _words(rule: RuleConfig) -> str:
    return f"lead to {', '.join(rule.action)}" if rule.leads else rule.action[0]
