"""Sessions that one process gives and another resumes: two contexts stand for two processes."""

import builtins
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.tls import tickets
from proxy.tls.contexts import server_context
from tests.integration.certificates import Authority, Certificate

SECRET = bytes(range(32))


@pytest.fixture(autouse=True)
def nothing_shared() -> Iterator[None]:
    yield
    tickets.share(b"")
    tickets._control.cache_clear()


def session_of(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[bool, ssl.SSLSession]:
    """Connect without a network; returns whether the session was resumed, and the one to go on with."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    served = server.wrap_bio(to_server, to_client, server_side=True)
    asking = client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
    for _ in range(4):
        for each in (asking, served):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                pass
    served.write(b"x")
    assert asking.read(1) == b"x"  # and with it the tickets
    assert asking.session_reused == served.session_reused
    assert asking.session
    return bool(asking.session_reused), asking.session


def made(certificate: Certificate, secret: bytes = SECRET) -> ssl.SSLContext:
    tickets.share(secret)
    return server_context(str(certificate.cert), str(certificate.key))


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def client(request: pytest.FixtureRequest, authority: Authority) -> ssl.SSLContext:
    context = authority.client_context()
    context.maximum_version = request.param
    return context


def test_who_shares_a_secret_resumes_the_sessions_of_all_others(
    good: Certificate, client: ssl.SSLContext
) -> None:
    first, second, third = (made(good) for _ in range(3))
    is_resumed, session = session_of(first, client)
    assert not is_resumed
    for server in (second, third, first):
        is_resumed, session = session_of(server, client, session)
        assert is_resumed


@pytest.mark.parametrize(("mine", "yours"), [(SECRET, bytes(32)), (SECRET, b""), (b"", b"")])
def test_who_has_another_secret_or_none_does_a_full_handshake(
    good: Certificate, client: ssl.SSLContext, mine: bytes, yours: bytes
) -> None:
    first, second = made(good, mine), made(good, yours)
    _, session = session_of(first, client)
    assert session_of(second, client, session)[0] is False


def test_a_session_is_not_resumed_under_another_certificate(
    good: Certificate, client: ssl.SSLContext, authority: Authority
) -> None:
    """The client would take it for the server that it has met."""
    other = authority.issue("other", "localhost")
    _, session = session_of(made(good), client)
    assert session_of(made(other), client, session)[0] is False


def test_without_ctypes_a_context_keeps_keys_of_its_own(
    good: Certificate, client: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_as_ever = builtins.__import__

    def fail(name: str, *rest: Any) -> Any:
        if name == "ctypes":
            raise ImportError(name)
        return import_as_ever(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fail)
    first, second = made(good), made(good)
    assert not tickets.set_keys(first, "")
    _, session = session_of(first, client)
    assert session_of(second, client, session)[0] is False
    assert session_of(first, client, session)[0] is True
