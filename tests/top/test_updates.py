"""What becomes of a state when the server answers, or does not."""

from proxy.top.state import State
from proxy.top.updates import miss, take
from tests.top.states import looks, sample, state, text


def test_while_the_server_does_not_answer_the_last_picture_stays() -> None:
    now = miss(state(), "no server is found")
    assert looks(now, "no answer, asking again: no server is found") == {"bad"}
    assert any("192.0.2.1:4003" in line for line in text(now))
    assert not any("no answer" in line for line in text(take(now, sample(9.0))))


def test_a_server_that_was_started_anew_is_told_and_counts_from_nothing() -> None:
    now = take(state(), sample(2.0))
    now = take(now, sample(3.0, pid=99, uptime=1.0, sent=0, received=0, total=0))
    assert "the server was restarted" in text(now)[-1]
    assert now.rates == ()


def test_before_the_first_answer_there_is_a_line_about_it() -> None:
    assert "asking the server" in text(State())[0]
    assert "no server" in text(miss(State(), "no server"))[0]
