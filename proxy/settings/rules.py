"""
A rule: where those to whom it applies may go, and through which upstreams.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from proxy.errors import ConfigError
from proxy.networks import NO_NETWORKS, Networks
from proxy.settings.checked import Settings
from proxy.settings.kinds import NAMES, NETWORKS, PORTS, SOME_NAMES, TARGETS
from proxy.settings.upstream import UpstreamConfig
from proxy.targets import ANY_PORT, ANYWHERE, Ports, Targets

ALLOW, BLOCK = "allow", "block"  # what a rule may do, if it names no ways out
GUARD = "guard"  # the last rule, which is always there


@dataclass(frozen=True)
class RuleConfig(Settings):
    """
    Where those may go whom it is for, and by which way: the first rule that matches decides.

    ``to`` are the targets, ``port`` their ports; an empty list chooses all. ``action`` is to allow, by the
    ways out of the listener, or to block, or else the names of ways out, which are then in
    ``upstream_config``, in order of preference. With ``resolve`` a name is judged by its addresses wherever
    it goes; with ``report`` the rule only says what it would have done.
    """

    name: str
    to: Annotated[Targets, TARGETS] = ANYWHERE
    port: Annotated[Ports, PORTS] = ANY_PORT
    user: Annotated[tuple[str, ...], NAMES] = ()
    from_: Annotated[Networks, NETWORKS] = NO_NETWORKS
    listener: Annotated[tuple[str, ...], NAMES] = ()
    action: Annotated[tuple[str, ...], SOME_NAMES] = (ALLOW,)
    resolve: bool = False
    report: bool = False
    upstream_config: tuple[UpstreamConfig, ...] = ()

    def _problems(self) -> Iterator[ConfigError]:
        if self.name == GUARD:
            yield ConfigError("", f"{GUARD} is the name of the built-in rule: give this one another name")
        if len(self.action) > 1 and {ALLOW, BLOCK} & set(self.action):
            yield ConfigError("action", f"is {ALLOW}, or {BLOCK}, or a list of upstreams")

    @property
    def is_block(self) -> bool:
        """True if what it matches is refused."""
        return self.action == (BLOCK,)

    @property
    def leads(self) -> bool:
        """True if it names ways out."""
        return self.action not in ((ALLOW,), (BLOCK,))

    @property
    def effect(self) -> str:
        """What it does, in the word that counts it; one that only reports would do so."""
        effect = "lead" if self.leads else self.action[0]
        return f"would_{effect}" if self.report else effect

    def covers(self, other: "RuleConfig") -> bool:
        """Tell whether nothing is left for the other one where this one stands before it."""
        lists = ((self.user, other.user), (self.listener, other.listener))
        return (
            not self.report
            and all(not mine or (its and set(its) <= set(mine)) for mine, its in lists)
            and (not self.from_ or (bool(other.from_) and self.from_.covers(other.from_)))
            and self.port.covers(other.port)
            and self.to.covers(other.to)
            # What is open here is not for an address that is looked up there.
            and not (other.resolve and other.to.has_addresses and self.to and not self.resolve)
        )
