"""
To whom a section of the configuration applies.
"""

from typing import Protocol

from proxy.address import IPAddress
from proxy.networks import Networks


class Selectors(Protocol):
    """What a section says of that; an empty list chooses nobody in particular, so anybody."""

    @property
    def user(self) -> tuple[str, ...]:
        """Names of users."""

    @property
    def from_(self) -> Networks:
        """The addresses of clients."""

    @property
    def listener(self) -> tuple[str, ...]:
        """Names of listeners."""


def is_for(section: Selectors, user: str, ip: IPAddress | None, listener: str) -> bool:
    """
    Tell whether all that a section asks for is so.

    Whoever has not logged in is no user, and a client that has no address comes from nowhere.
    """
    return not mismatch(section, user, ip, listener)


def mismatch(section: Selectors, user: str, ip: IPAddress | None, listener: str) -> str:
    """Name the first setting by which a section is for others; none if it is for this one."""
    if section.listener and listener not in section.listener:
        return "listener"
    if section.user and user not in section.user:
        return "user"
    if section.from_ and ip not in section.from_:
        return "from"
    return ""
