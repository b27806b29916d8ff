"""
What can go wrong, said once.

A ``Failure`` is the cause in our own words. Each protocol has one table that translates it to the wire, and
back when an upstream reports it, so that a client several hops away learns the true reason.
"""

import errno
from enum import Enum


class Failure(Enum):
    """Why a client did not get its connection."""

    MALFORMED = "malformed request"
    CREDENTIALS = "credentials refused"
    NOT_ALLOWED = "not allowed"
    NETWORK_UNREACHABLE = "network unreachable"
    HOST_UNREACHABLE = "host unreachable"
    NAME_NOT_FOUND = "name does not resolve"
    NAME_TIMED_OUT = "name lookup failed or timed out"
    REFUSED = "connection refused"
    TIMED_OUT = "timed out"
    UNSUPPORTED_COMMAND = "command not supported"
    UNSUPPORTED_ADDRESS = "address type not supported"
    LIMIT = "connection limit reached"
    TOO_MANY = "too many requests"
    UPSTREAM = "upstream proxy failed"
    GENERAL = "general failure"


class ProxyError(Exception):
    """Base of all that this package raises on purpose; the text is fit for an operator's eyes."""

    def __init__(self, message: str, failure: Failure = Failure.GENERAL) -> None:
        super().__init__(message)
        self.failure = failure
        self.via = ""  # the upstream that it came by, if it is known
        self.is_answer = False  # to a proxy that only asked for a sign of life: nobody was refused anything
        self.retry_after = 1.0  # seconds, where it is said that there was too much of something
        self.told = ""  # what a client may know of it, if that is more than its failure


class ConfigError(ProxyError, ValueError):
    """A setting that cannot be right; ``field`` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ProtocolError(ProxyError, ValueError):
    """The peer broke its protocol."""

    def __init__(self, message: str, failure: Failure = Failure.MALFORMED) -> None:
        super().__init__(message, failure)


class AuthError(ProxyError):
    """The peer's credentials are missing or wrong; ``user`` is the name it gave, if it gave one."""

    def __init__(self, user: str = "") -> None:
        super().__init__(Failure.CREDENTIALS.value, Failure.CREDENTIALS)
        self.user = user


class NotAClientError(ProxyError):
    """Whoever comes from this address may not come in, and is not told why."""

    def __init__(self) -> None:
        super().__init__("is not among the clients of this listener", Failure.NOT_ALLOWED)


class LimitError(ProxyError):
    """There is no room left here: no place, no descriptor, no port, no memory. Nobody else is to blame."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Failure.LIMIT)


class OverLimitError(ProxyError):
    """The configuration gives ``identity``, whom the client belongs to, no more now."""

    def __init__(self, what: str, identity: str, retry_after: float) -> None:
        super().__init__(what, Failure.TOO_MANY)
        self.identity = identity
        self.retry_after = retry_after


class PenaltyError(OverLimitError):
    """Too many logins from this address have failed, so this one was not judged."""

    def __init__(self, user: str, client: str, retry_after: float) -> None:
        super().__init__("login penalty", client, retry_after)
        self.user = user


class ClientLeftError(ProxyError):
    """The client went away while it was being served, so nobody is left to be told."""


class DialError(ProxyError, ConnectionError):
    """The target could not be reached; the way to it is not to blame."""


class UpstreamError(DialError):
    """
    An upstream proxy failed, whatever the target is like.

    ``transient`` says that the same upstream may be asked again at once: it is false where the answer
    would be the same, such as for refused credentials.

    ``unclear`` says that the request had reached it, so that its target may be the cause: then only a
    sign of life tells who is to blame. ``status`` is the HTTP status that it answered, or 0.

    ``well`` says that it is alive and would not serve this request, as one that has no place left:
    another one may be asked, and it need not rest.
    """

    def __init__(
        self,
        message: str,
        failure: Failure = Failure.UPSTREAM,
        *,
        transient: bool = True,
        unclear: bool = False,
        well: bool = False,
        status: int = 0,
    ) -> None:
        super().__init__(message, failure)
        self.transient = transient
        self.unclear = unclear
        self.well = well
        self.status = status


class EgressError(UpstreamError):
    """
    This machine does not let connections leave as an upstream's ``source`` or ``interface`` wants it.

    That is nobody's fault but ours, so the upstream need not rest, and another one may be asked, which may
    leave in another way. ``setting`` is the one that cannot be had, where it is known, and ``reason`` why.
    """

    def __init__(self, message: str, *, setting: str = "", reason: str = "") -> None:
        super().__init__(message, transient=False, well=True)
        self.setting = setting
        self.reason = reason


_BY_ERRNO = {
    errno.ECONNREFUSED: Failure.REFUSED,
    errno.ENETUNREACH: Failure.NETWORK_UNREACHABLE,
    errno.ENETDOWN: Failure.NETWORK_UNREACHABLE,
    # No IPv6 here: for this address there is no network to reach it by.
    errno.EAFNOSUPPORT: Failure.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: Failure.NETWORK_UNREACHABLE,
    # A route that swallows what is sent by it, an address that none can have; an interface that is gone.
    errno.EINVAL: Failure.NETWORK_UNREACHABLE,
    errno.ENODEV: Failure.NETWORK_UNREACHABLE,
    errno.ENXIO: Failure.NETWORK_UNREACHABLE,
    errno.ENETRESET: Failure.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Failure.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Failure.HOST_UNREACHABLE,
    # ICMP says that the host takes no TCP.
    errno.ENOPROTOOPT: Failure.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Failure.TIMED_OUT,
    errno.EACCES: Failure.NOT_ALLOWED,
    errno.EPERM: Failure.NOT_ALLOWED,
    errno.EMFILE: Failure.LIMIT,
    errno.ENFILE: Failure.LIMIT,
    errno.ENOBUFS: Failure.LIMIT,
    errno.ENOMEM: Failure.LIMIT,
}


def is_shortage(exc: OSError) -> bool:
    """Tell whether the operating system has no more of something to give, which is nobody else's fault."""
    return _BY_ERRNO.get(exc.errno or 0) is Failure.LIMIT


def failure_of(exc: OSError) -> Failure:
    """Tell which failure an error of the operating system stands for."""
    if isinstance(exc, TimeoutError):
        return Failure.TIMED_OUT
    return _BY_ERRNO.get(exc.errno or 0, Failure.GENERAL)


def reason_of(exc: BaseException) -> str:
    """Say what an exception means in a few words, without an errno number or a class name."""
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__
