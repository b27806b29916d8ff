"""
Limits and penalties that hold for all workers together.

The supervisor has the one ``Limiter`` that counts. A worker asks it for each connection as long as there are
limits, and keeps the same accounts beside it, for what is shared out in bytes a second: of that each worker
has a share, by how many of its connections wait for more.
"""

from collections.abc import Iterable, Mapping

from proxy.address import Address
from proxy.control.snapshot import Snapshot
from proxy.errors import OverLimitError
from proxy.limiter import Account, Limiter, Stay, Who
from proxy.policy.limits import Identity
from proxy.settings.limits import Per
from proxy.settings.listener import ServerConfig
from proxy.workers.link import Answers, Link

Key = tuple[str, Identity]
Refused = tuple[str, str, float]  # what an OverLimitError is made of
Share = tuple[Key, int, int]  # an account, and what it may send and receive in a second

_IDLE = 0.1  # of a connection's weight for a worker in which none waits, so that the next one need not


class SharedLimiter(Limiter):
    """The limits as a worker keeps them: the supervisor says who has room."""

    link: Link

    def arrive(self, stay: Stay, who: Who, most_refused: int) -> None:
        """Count a connection if there is room for it; raises ``OverLimitError``."""
        if self._ask("arrive", stay, who, most_refused):
            super().admit(stay, who)

    def admit(self, stay: Stay, who: Who) -> None:
        """Count a connection whose request is there; raises ``OverLimitError``."""
        self._ask("admit", stay, who)
        super().admit(stay, who)

    def renew(self, stay: Stay, who: Who) -> None:
        """Count a connection by the limits that hold now."""
        self.link.tell("renew", id(stay), who)
        super().renew(stay, who)

    def leave(self, stay: Stay) -> None:
        """Count a connection no more."""
        self.link.tell("leave", id(stay))
        super().leave(stay)

    def note_failure(self, config: ServerConfig, client: Address) -> None:
        """Note that a login failed, here and everywhere."""
        super().note_failure(config, client)
        if config.punishes(client):
            self.link.tell("failed", client, config.login_penalty)

    def take(self, shares: Iterable[Share]) -> None:
        """Take what this worker may move from now on."""
        for key, sent, received in shares:
            account = self._accounts.get(key)
            if account and account.sent and account.received:
                account.sent.rate, account.received.rate = sent, received

    def _ask(self, what: str, stay: Stay, who: Who, *more: int) -> bool:
        try:
            answer: bool | Refused = self.link.ask(what, id(stay), who, *more)
        except BaseException:
            self.link.tell("leave", id(stay))  # it may have been counted, though nobody waits any more
            raise
        if isinstance(answer, tuple):
            raise OverLimitError(*answer)
        return answer

    def _full_one(self, stay: Stay, accounts: Mapping[Per, Account], now: float) -> Account | None:
        return None


class Ledger:
    """The connections of one worker in the supervisor's limiter."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._stays: dict[int, Stay] = {}

    @property
    def answers(self) -> Answers:
        """What the worker may ask."""
        return {each.__name__: each for each in (self.arrive, self.admit, self.renew, self.leave)}

    def arrive(self, number: int, who: Who, most_refused: int) -> bool | Refused:
        """Count one whose request is still to come, and tell whether there is room; or say the refusal."""
        stay = self._stays.setdefault(number, Stay())
        try:
            self._limiter.arrive(stay, who, most_refused)
        except OverLimitError as exc:
            return str(exc), exc.identity, exc.retry_after
        return stay.turned_away_by is None

    def admit(self, number: int, who: Who) -> bool | Refused:
        """Count one whose request is there, or say the refusal."""
        try:
            self._limiter.admit(self._stays.setdefault(number, Stay()), who)
        except OverLimitError as exc:
            return str(exc), exc.identity, exc.retry_after
        return True

    def renew(self, number: int, who: Who) -> None:
        """Count one by the limits that hold now."""
        self._limiter.renew(self._stays.setdefault(number, Stay()), who)

    def leave(self, number: int) -> None:
        """Count one no more."""
        if stay := self._stays.pop(number, None):
            self._limiter.leave(stay)

    def close(self) -> None:
        """Count none any more."""
        for number in list(self._stays):
            self.leave(number)


def share_out(limiter: Limiter, snapshots: Mapping[int, Snapshot]) -> dict[int, list[Share]]:
    """Share out the bandwidth of each account among workers, by how many connections wait in each."""
    rates = {each.name: each.bandwidth for each in limiter.limits if each.bandwidth}
    shares: dict[int, list[Share]] = {number: [] for number in snapshots}
    for key in {key for each in snapshots.values() for key in each.flows if key[0] in rates}:
        flows = {number: each.flows[key] for number, each in snapshots.items() if key in each.flows}
        sent = _split(rates[key[0]], {number: each.sent_waiting for number, each in flows.items()})
        received = _split(rates[key[0]], {number: each.received_waiting for number, each in flows.items()})
        for number in flows:
            shares[number].append((key, sent[number], received[number]))
    return shares


def _split(rate: int, waiting: Mapping[int, int]) -> dict[int, int]:
    weights = {number: count or _IDLE for number, count in waiting.items()}
    whole = sum(weights.values())
    return {number: max(1, int(rate * weight / whole)) for number, weight in weights.items()}
