"""Basic credentials, as RFC 7617 prints them."""

import pytest

from proxy.http.basic import encode_basic, parse_basic
from proxy.http.heads import HttpError

ALADDIN = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="  # RFC 7617, section 2


def test_the_example_of_the_rfc_is_read_and_written() -> None:
    """RFC 7617, section 2."""
    assert parse_basic(ALADDIN) == (b"Aladdin", b"open sesame")
    assert encode_basic(b"Aladdin", b"open sesame") == ALADDIN


def test_the_example_in_utf_8_is_read() -> None:
    """RFC 7617, section 2.1."""
    assert parse_basic("Basic dGVzdDoxMjPCow==") == (b"test", "123£".encode())


def test_a_password_may_have_colons_and_a_scheme_any_case() -> None:
    """RFC 7617, section 2: the first colon is the one; RFC 9110, section 11.1."""
    assert parse_basic("bAsIc dTphOmI6") == (b"u", b"a:b:")


@pytest.mark.parametrize("value", [None, "", "Bearer x", "NTLM TlRMTVNTUAABAAAA", "Basically x"])
def test_what_is_of_no_or_another_scheme_is_no_login(value: str | None) -> None:
    assert parse_basic(value) is None


@pytest.mark.parametrize(
    "value",
    [
        "Basic",
        "Basic ",
        "Basic x",
        "Basic QQ==QQ==",
        "Basic dTpw, Basic dTpw",
        "Basic QWxhZGRpbg==",
        "Basic d;A=",
    ],
    ids=["alone", "empty", "short", "padded inside", "twice", "without a colon", "not base64"],
)
def test_what_cannot_be_read_is_malformed(value: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_basic(value)
    assert caught.value.status == 400


@pytest.mark.parametrize(("user", "password"), [(256, 1), (1, 256)])
def test_what_is_longer_than_any_login_is_malformed(user: int, password: int) -> None:
    """RFC 1929, section 2, bounds both by 255 bytes; so does every door."""
    assert parse_basic(encode_basic(b"u" * 255, b"p" * 255))
    with pytest.raises(HttpError):
        parse_basic(encode_basic(b"u" * user, b"p" * password))
