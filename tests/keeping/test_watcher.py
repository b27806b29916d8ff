"""What changed is looked at once it has come to rest, however it was changed."""

import os
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest

from proxy.errors import LimitError
from proxy.keeping.fingerprint import Fingerprint, take
from proxy.keeping.watcher import Watcher
from tests.wire.greenlets import until


@pytest.fixture(autouse=True)
def within_a_minute() -> Iterator[None]:
    with gevent.Timeout(60):
        yield


class House:
    """A file, its watcher, and how often it was told, as its keeper, that there may be something new."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.looks = 0
        self.troubles: Iterator[Exception] = iter(())  # one for each look, as long as there are any
        self.files = [str(path)]
        self.config = SimpleNamespace(reload_interval=1.0)  # seconds
        self.watcher = Watcher(self)  # type: ignore[arg-type]

    def fingerprint(self) -> Fingerprint:
        return take(self.files)

    def reload_if_changed(self) -> None:
        self.looks += 1
        if trouble := next(self.troubles, None):
            raise trouble

    def polls(self, count: int) -> int:
        """Poll so many times, and tell how many looks that led to."""
        before = self.looks
        for _ in range(count):
            self.watcher.poll()
        return self.looks - before


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    path = tmp_path / "proxy.ini"
    path.write_text("one")
    house = House(path)
    house.polls(1)  # the look at what may have changed between reading and watching
    house.looks = 0
    yield house
    house.watcher.stop()


def write(path: Path) -> None:
    path.write_text("two")


def write_the_same_size_at_the_same_time(path: Path) -> None:
    before = path.stat()
    path.write_text("six")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rename(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text("one")
    new.replace(path)


def date_back(path: Path) -> None:
    os.utime(path, (1, 1))


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    "change", [write, write_the_same_size_at_the_same_time, rename, date_back, remove, empty]
)
def test_a_change_is_looked_at_once_within_two_polls(house: House, change: Callable[[Path], None]) -> None:
    """CASES H199."""
    change(house.path)
    assert house.polls(1) == 0
    assert house.polls(1) == 1
    assert house.polls(3) == 0


def test_the_first_look_is_at_what_changed_before_watching_began(tmp_path: Path) -> None:
    assert House(tmp_path / "proxy.ini").polls(3) == 1


def test_a_link_that_is_turned_is_a_change_as_of_a_config_map(tmp_path: Path) -> None:
    """CASES H199: proxy.ini -> ..data/proxy.ini, ..data -> a folder, and the folder is swapped."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "proxy.ini").write_text(name)
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "proxy.ini").symlink_to("..data/proxy.ini")
    house = House(tmp_path / "proxy.ini")
    house.polls(1)
    (tmp_path / "..data_tmp").symlink_to("new")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert (house.polls(1), house.polls(1), house.polls(2)) == (0, 1, 0)


def test_a_file_that_is_being_written_is_left_alone(house: House) -> None:
    for size in range(1, 6):
        house.path.write_text("x" * size)
        assert house.polls(1) == 0
    assert house.polls(1) == 1


def test_a_new_certificate_is_a_change(house: House, tmp_path: Path) -> None:
    (tmp_path / "pair.pem").write_text("one")
    house.files.append(str(tmp_path / "pair.pem"))
    assert house.polls(2) == 1  # other files than before are watched
    (tmp_path / "pair.pem").write_text("two")
    assert house.polls(2) == 1


def test_a_certificate_that_was_missing_is_a_change_when_it_appears(house: House, tmp_path: Path) -> None:
    house.files.append(str(tmp_path / "pair.pem"))
    house.polls(2)
    (tmp_path / "pair.pem").write_text("one")
    assert (house.polls(1), house.polls(1), house.polls(2)) == (0, 1, 0)


def test_it_polls_at_the_interval_that_is_in_effect(house: House) -> None:
    house.config.reload_interval = 0.001
    house.watcher.start()
    for number in (1, 2):
        write(house.path)
        until(lambda number=number: house.looks == number)  # type: ignore[misc]


def test_an_interval_of_zero_is_no_watching_until_there_is_another(house: House) -> None:
    house.config.reload_interval = 0.0
    house.watcher.start()
    gevent.idle()
    write(house.path)
    house.config.reload_interval = 0.001
    gevent.sleep(0.02)  # twenty times as long
    assert house.looks == 0
    house.watcher.start()
    until(lambda: house.looks)


def test_a_shorter_interval_does_not_wait_for_the_end_of_the_longer_one(house: House) -> None:
    house.config.reload_interval = 3600.0
    house.watcher.start()
    gevent.idle()  # it has begun to wait
    write(house.path)
    house.config.reload_interval = 0.001
    house.watcher.start()
    until(lambda: house.looks)


def test_changes_that_leave_the_interval_as_it_is_do_not_put_off_a_poll(house: House) -> None:
    house.config.reload_interval = 0.05
    house.watcher.start()
    write(house.path)
    while not house.looks:
        house.watcher.start()
        gevent.sleep(0.001)


def test_a_failure_does_not_end_it(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.config.reload_interval = 0.001
    house.troubles = repeat(RuntimeError("out of order"))
    house.watcher.start()
    for number in (1, 2):
        write(house.path)
        until(lambda number=number: house.looks == number)  # type: ignore[misc]
    assert "internal error: RuntimeError: out of order" in caplog.messages


def test_once_stopped_it_looks_no_more(house: House) -> None:
    house.config.reload_interval = 0.001
    house.watcher.start()
    house.watcher.stop()
    write(house.path)
    gevent.sleep(0.02)  # twenty times as long
    assert house.looks == 0


def test_what_could_not_be_looked_at_is_looked_at_again_at_the_next_poll(tmp_path: Path) -> None:
    """Case 340: without descriptors the file cannot be read now, which says nothing of the file."""
    path = tmp_path / "proxy.ini"
    path.write_text("one")
    house = House(path)
    house.troubles = repeat(LimitError("Too many open files"), 2)
    assert house.polls(6) == 3
