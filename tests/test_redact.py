"""What may be told of an address that holds a secret."""

import pytest

from proxy.redact import without_query


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("wss://gw/t?token=x", "wss://gw/t?********"),
        ("gw:80?x?y", "gw:80?********"),
        ("wss://gw/t", "wss://gw/t"),
        ("wss://gw/t?", "wss://gw/t?"),
    ],
)
def test_the_query_of_an_address_is_not_shown(text: str, shown: str) -> None:
    """CASES H210: it may be a token."""
    assert without_query(text) == shown
