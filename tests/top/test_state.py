"""What is asked of the server."""

from tests.top.states import query, state


def test_no_more_is_asked_for_than_is_shown() -> None:
    assert query(state(lines=30)) == {"sort": "-rate", "limit": "60"}
