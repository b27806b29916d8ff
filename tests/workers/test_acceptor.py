"""A socket on which several processes accept, as one of them has it."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.address import Endpoint
from proxy.listening.opening import bind
from proxy.listening.pool import Job, Pool
from proxy.workers.table import Seat, Table
from proxy.workers.worker import SharingAcceptor


@pytest.fixture
def pool() -> Pool:
    return Pool(10)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def acceptor(pool: Pool, table: Table) -> Iterator[SharingAcceptor]:
    server = cast(Any, SimpleNamespace(config=SimpleNamespace(max_connections=10)))
    with bind(Endpoint("tcp", "127.0.0.1", 0))[0] as sock:
        made = SharingAcceptor(
            Seat(table, 0, "socks"), server, sock, lambda *_: job(), pool, lambda client: False
        )
        yield made
        made.close()


def job() -> Job:
    return
    yield


def seen(table: Table) -> int:
    """Tell how few one has, as another one sees it."""
    return table.least(1, Seat(table, 1, "socks")._column)


def test_others_know_of_it_at_once_and_of_each_that_ends(
    acceptor: SharingAcceptor, pool: Pool, table: Table
) -> None:
    assert seen(table) == 0
    first, second = job(), job()
    pool.start(first)
    pool.start(second)
    acceptor.do_read()  # nobody is there
    assert seen(table) == 2
    pool.leave(first)
    assert seen(table) == 1


def test_who_listens_no_more_says_nothing_of_those_who_go_on(
    acceptor: SharingAcceptor, pool: Pool, table: Table
) -> None:
    """Its row may be another one's by then."""
    going_on = job()
    pool.start(going_on)
    acceptor.close()
    table.put(0, Seat(table, 0, "socks")._column, 7)
    pool.leave(going_on)
    assert seen(table) == 7
