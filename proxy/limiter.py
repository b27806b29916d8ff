"""
The limits of a configuration, counted over all connections of the program, and the penalties for failed
logins.

A connection has a ``Stay``, which says what it counts for: of the sections with the same ``per`` the first
that is for it. It is counted as soon as it is known who the client is, so that handshakes count too, and
judged when its request is there: only then it can be told, and only then its user is known, for whom other
sections may hold.

What may never be violated:

- A stay counts once in each of its accounts, from the moment in which it came in until it leaves.
- One that is refused has taken nothing, neither a place nor a token.
- An account is forgotten when it says no more than a new one would: nobody is in it, and nothing is owed.
- A change of the configuration makes nobody leave. Those that live are counted by what holds now, even above
  it, and share its bandwidth from that moment on.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic

from proxy.accesslog import MOST_OF_A_USER, quoted, shortened
from proxy.address import Address
from proxy.errors import OverLimitError, PenaltyError
from proxy.policy.limits import Bucket, Identity, Meter, identity_of
from proxy.policy.penalties import Penalties
from proxy.policy.selectors import is_for
from proxy.settings.limits import LimitConfig, Per
from proxy.settings.listener import ServerConfig
from proxy.sharing.throttle import Throttle

_MOST_IDLE = 4096  # accounts of nobody that lives, which are kept because of what is owed to them
# Clients a second that are heard out only to be told that no login of theirs is judged: each takes 0.5 ms,
# which is three times what it takes to close the connection.
_ANSWERS = 20
_SOON = 1.0  # seconds after which to come again, where nobody knows when somebody else leaves


@dataclass(frozen=True, slots=True)
class Who:
    """Whose connection it is, and by which listener it came; without a user until it has logged in."""

    client: Address
    user: str
    listener: str


_Key = tuple[str, Identity]


class Account:
    """What one identity has of one limit."""

    __slots__ = ("identity", "key", "live", "meter", "new", "received", "refused", "sent", "settings")

    def __init__(self, settings: LimitConfig, identity: Identity, now: float) -> None:
        self.identity = identity
        self.key = (settings.name, identity)
        self.live = 0  # connections
        self.refused = 0  # connections that wait to be told so
        self.meter = Meter(now)  # of new ones
        self.new: Bucket | None = None
        self.sent: Throttle | None = None
        self.received: Throttle | None = None
        self.obey(settings, now)

    def obey(self, settings: LimitConfig, now: float) -> None:
        """Keep to these settings from now on."""
        self.settings = settings
        new, bandwidth = settings.new, settings.bandwidth
        if not new:
            self.new = None
        elif self.new:
            self.new.become(new.per_second, new.count, now)
        else:
            self.new = Bucket(new.per_second, new.count, now)
        if not bandwidth:
            self.sent = self.received = None
        elif self.sent and self.received:
            self.sent.rate = self.received.rate = bandwidth
        else:
            self.sent, self.received = Throttle(bandwidth), Throttle(bandwidth)

    def wait(self, now: float) -> float:
        """Tell for how long it has no room for another connection; 0 if it has."""
        if self.settings.connections and self.live >= self.settings.connections:
            return _SOON
        return self.new.wait(1, now) if self.new else 0.0

    @property
    def waiting(self) -> int:
        """How many directions of connections wait for bandwidth."""
        return sum(each.waiting for each in (self.sent, self.received) if each)

    def note_new(self, now: float) -> None:
        """Take what a new connection takes."""
        self.meter.add(1, now)
        if self.new:
            self.new.take(1, now)

    def give_back(self, now: float) -> None:
        """Take nothing for a connection, after all: its login said that it is another one's."""
        self.meter.add(-1, now)
        if self.new:
            self.new.take(-1, now)

    def is_idle(self, now: float) -> bool:
        """Tell whether a new one would be no different."""
        if self.live or self.refused or (self.new and not self.new.is_full(now)):
            return False
        return all(each is None or each.is_idle for each in (self.sent, self.received))


class Stay:
    """One connection, as it is counted."""

    __slots__ = ("accounts", "turned_away_by")

    def __init__(self) -> None:
        self.accounts: dict[Per, Account] = {}
        self.turned_away_by: Account | None = None  # until it is told, or comes in after all

    @property
    def throttles(self) -> tuple[tuple[Throttle, ...], tuple[Throttle, ...]]:
        """What limits its bandwidth, from the client and to it, in the one order of all connections."""
        mine = [self.accounts[per] for per in Per if per in self.accounts]
        sent, received = (each.sent for each in mine), (each.received for each in mine)
        return tuple(filter(None, sent)), tuple(filter(None, received))


class Limiter:
    """All accounts of the limits in effect."""

    def __init__(self, limits: Iterable[LimitConfig] = (), clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._accounts: dict[_Key, Account] = {}
        self._idle: OrderedDict[_Key, None] = OrderedDict()  # those in which nobody is
        self.refusals: Counter[str] = Counter()  # by limit
        self.limits = tuple(limits)
        self.penalties = Penalties()
        self._answers = Bucket(_ANSWERS, _ANSWERS, clock())

    def check_login(self, config: ServerConfig, user: str, client: Address) -> None:
        """Raise ``PenaltyError`` if no login from this client is judged now."""
        if wait := self._penalty(config, client):
            self.penalties.refused += 1
            raise PenaltyError(user, client.network, wait)

    def passes_over(self, config: ServerConfig, client: Address) -> bool:
        """Tell whether this client could only be told that, and so many are told already that it is not."""
        now = self._clock()
        if not self._penalty(config, client):
            return False
        if not self._answers.wait(1, now):
            self._answers.take(1, now)
            return False
        self.penalties.refused += 1
        return True

    def has_penalty(self, config: ServerConfig, client: Address | None) -> bool:
        """Tell whether no login from this client is judged now, in any thread."""
        return client is not None and self._penalty(config, client) > 0

    def note_failure(self, config: ServerConfig, client: Address) -> None:
        """Note that a login from this client failed."""
        if config.punishes(client):
            self.penalties.add(client, config.login_penalty, self._clock())

    def _penalty(self, config: ServerConfig, client: Address) -> float:
        """Tell for how many seconds nothing is judged; 0 if it is."""
        if client.ip is None or not config.punishes(client):
            return 0.0
        return self.penalties.wait(client.ip, config.login_penalty, self._clock())

    def change(self, limits: Iterable[LimitConfig]) -> None:
        """Keep these limits from now on; then ``renew`` the stay of each connection that lives."""
        self.limits = tuple(limits)
        now, by_name = self._clock(), {each.name: each for each in self.limits}
        for key, account in list(self._accounts.items()):
            if settings := by_name.get(account.settings.name):
                account.obey(settings, now)
            else:
                del self._accounts[key]
                self._idle.pop(key, None)

    def arrive(self, stay: Stay, who: Who, most_refused: int) -> None:
        """
        Count a connection whose request is still to come, if there is room for it.

        Raises ``OverLimitError`` if there is none, and so many wait already to be told the same.
        """
        now = self._clock()
        accounts = self._accounts_of(who, now)
        full = self._full_one(stay, accounts, now)
        if not full:
            self._count(stay, accounts, now)
        elif full.refused < most_refused:
            full.refused += 1
            stay.turned_away_by = full
        else:
            raise self._refusal(full, now)

    def admit(self, stay: Stay, who: Who) -> None:
        """Count a connection whose request is there; raises ``OverLimitError`` if there is no room for it."""
        now = self._clock()
        accounts = self._accounts_of(who, now)
        if full := self._full_one(stay, accounts, now):
            self._count(stay, {}, now)
            raise self._refusal(full, now)
        self._count(stay, accounts, now)

    def renew(self, stay: Stay, who: Who) -> None:
        """Count a connection by the limits that hold now, whether there is room for it or not."""
        now = self._clock()
        self._count(stay, self._accounts_of(who, now), now, is_new=False)

    def leave(self, stay: Stay) -> None:
        """Count a connection no more."""
        self._count(stay, {}, self._clock(), is_new=False)

    def _accounts_of(self, who: Who, now: float) -> dict[Per, Account]:
        accounts: dict[Per, Account] = {}
        for limit in self.limits:
            if limit.per not in accounts and is_for(limit, who.user, who.client.ip, who.listener):
                identity = identity_of(limit.per, who.user, who.client)
                key = (limit.name, identity)
                account = self._accounts.get(key)
                if account is None:
                    account = self._accounts[key] = Account(limit, identity, now)
                    self._idle[key] = None
                accounts[limit.per] = account
        return accounts

    def _full_one(self, stay: Stay, accounts: Mapping[Per, Account], now: float) -> Account | None:
        """Find an account with no room for a connection that is not in it yet."""
        return next(
            (each for per, each in accounts.items() if stay.accounts.get(per) is not each and each.wait(now)),
            None,
        )

    def _refusal(self, full: Account, now: float) -> OverLimitError:
        self.refusals[full.settings.name] += 1
        self._forget_some(now)
        return OverLimitError(f"limit {full.settings.name}", shown(full.identity), full.wait(now))

    def _count(self, stay: Stay, accounts: dict[Per, Account], now: float, *, is_new: bool = True) -> None:
        """Have a connection count in these accounts, and in no others."""
        before, stay.accounts = stay.accounts, accounts
        if stay.turned_away_by:
            stay.turned_away_by.refused -= 1
            stay.turned_away_by = None
        for per, account in before.items():
            if accounts.get(per) is not account:
                account.live -= 1
                if is_new:
                    account.give_back(now)
                if not account.live and self._accounts.get(account.key) is account:
                    self._idle[account.key] = None
        for per, account in accounts.items():
            if before.get(per) is not account:
                account.live += 1
                self._idle.pop(account.key, None)
                if is_new:
                    account.note_new(now)
        self._forget_some(now)

    def _forget_some(self, now: float) -> None:
        """Forget what is idle: more of them, each time, than can have become so."""
        for _ in range(min(len(self._idle), 2 * len(Per))):
            key, _ = self._idle.popitem(last=False)
            if self._accounts[key].is_idle(now):
                del self._accounts[key]
            else:
                self._idle[key] = None  # as something is owed to it, or by it
        while len(self._idle) > _MOST_IDLE:
            key, _ = self._idle.popitem(last=False)
            del self._accounts[key]

    @property
    def accounts(self) -> list[Account]:
        """The accounts of which there is anything to tell."""
        now = self._clock()
        return [each for each in self._accounts.values() if not each.is_idle(now)]

    @property
    def live(self) -> Iterator[Account]:
        """Those in which there are connections."""
        return (each for each in self._accounts.values() if each.live)


def shown(identity: Identity) -> str:
    """Write an identity for a log."""
    if identity.user:
        return quoted(shortened(identity.user, MOST_OF_A_USER))
    return identity.client or "all"
