"""What an error of the operating system is called, on any of them."""

import errno

import pytest

from proxy.errors import Failure, failure_of, is_shortage, reason_of


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (errno.ECONNREFUSED, Failure.REFUSED),
        (errno.ENETUNREACH, Failure.NETWORK_UNREACHABLE),
        (errno.EHOSTUNREACH, Failure.HOST_UNREACHABLE),
        (errno.ETIMEDOUT, Failure.TIMED_OUT),
        (errno.EACCES, Failure.NOT_ALLOWED),
        (errno.EMFILE, Failure.LIMIT),
        (errno.EPIPE, Failure.GENERAL),
    ],
)
def test_an_error_has_the_failure_that_connect_2_says_it_is(number: int, failure: Failure) -> None:
    assert failure_of(OSError(number, "said the system")) is failure


def test_a_timeout_of_ours_has_no_number_and_is_one_all_the_same() -> None:
    assert failure_of(TimeoutError("greeting timed out")) is Failure.TIMED_OUT
    assert failure_of(OSError("without a number")) is Failure.GENERAL


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_what_the_system_has_no_more_of_is_nobodys_fault(number: int) -> None:
    """CASES 178."""
    assert is_shortage(OSError(number, "said the system"))
    assert not is_shortage(OSError(errno.ECONNREFUSED, "said the system"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (ValueError("no port"), "no port"),
        (EOFError(), "EOFError"),
    ],
)
def test_a_reason_has_neither_a_number_nor_a_class_if_there_are_words(error: Exception, said: str) -> None:
    assert reason_of(error) == said
