"""
A pool of greenlets that serve one connection after another.

That its size can change is tested with an acceptor, in test_listen.py.
"""

from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event

from proxy.net.places import Places

PATIENCE = 5.0  # seconds


@pytest.fixture
def places() -> Iterator[Places]:
    """Give two places."""
    made = Places(2)
    with gevent.Timeout(PATIENCE):
        yield made
        made.kill()


def test_the_next_job_is_done_by_the_one_that_has_just_finished(places: Places) -> None:
    workers = []
    for _ in range(3):
        places.spawn(lambda: workers.append(gevent.getcurrent()))
        places.join()
    assert len(set(workers)) == 1


def test_one_that_is_done_has_no_place_and_soon_ends(places: Places) -> None:
    worker = places.spawn(lambda: None)
    places.join()
    assert places.free_count() == 2
    assert not worker.dead
    worker.join()
    assert worker.dead
    assert places.free_count() == 2


def test_it_does_the_next_job_as_it_would_have_done_the_first(places: Places) -> None:
    done: list[tuple[int, ...]] = []
    for args in ((1,), (2, 3), ()):
        places.spawn(lambda *given: done.append(given), *args)
        places.join()
    assert done == [(1,), (2, 3), ()]


def test_a_job_given_while_it_rests_is_counted_and_waited_for(places: Places) -> None:
    places.spawn(lambda: None)
    places.join()
    go = Event()
    worker = places.spawn(go.wait)
    assert places.free_count() == 1
    assert not places.join(0.05)
    assert not worker.dead
    go.set()
    places.join()
    assert places.free_count() == 2


def test_a_job_that_takes_long_is_not_disturbed_by_the_end_of_the_rest(places: Places) -> None:
    places.spawn(lambda: None)
    places.join()
    woken = []
    places.spawn(lambda: woken.append(gevent.sleep(0.05)))
    gevent.sleep(0.02)
    assert not woken
    places.join()
    assert woken == [None]


def test_an_error_costs_no_place(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)

    def fail() -> None:
        raise ValueError("a bug")

    for _ in range(5):
        places.spawn(fail)
        places.join()
    assert places.free_count() == 2


def test_killing_ends_those_at_work(places: Places) -> None:
    places.spawn(lambda: None)
    places.join()
    worker = places.spawn(Event().wait)
    gevent.sleep(0)
    places.kill()
    assert worker.dead
    assert places.free_count() == 2
