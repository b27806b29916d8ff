"""A command line is read as it is meant, and no message repeats what may be a secret."""

import pytest

from proxy.options import Option, UsageError, describe, read

OPTIONS = (
    Option("config", "FILE", "a file", also=("c",)),
    Option("username", "NAME", "who"),
    Option("password", "PASSWORD", "a secret"),
    Option("mode", "MODE", "which", choices=("server", "client")),
    Option("check", "", "only look"),
)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["-c", "a.ini"], {"config": "a.ini"}),
        (["--config=a.ini", "-check"], {"config": "a.ini", "check": ""}),
        (["-password", "-s3cret"], {"password": "-s3cret"}),
        (["-password", "--s3cret=x"], {"password": "--s3cret=x"}),
        (["-password=-check"], {"password": "-check"}),
        (["-password", "--"], {"password": "--"}),
        (["-password", "a=b"], {"password": "a=b"}),
        (["-password="], {"password": ""}),
        (["-username", ""], {"username": ""}),
        (["-mode", "client"], {"mode": "client"}),
    ],
    ids=" ".join,
)
def test_an_option_has_the_value_that_follows_it_whatever_that_looks_like(
    words: list[str], given: dict[str, str]
) -> None:
    """CASES 315."""
    assert read(words, OPTIONS) == (given, [])


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["-new"], {"new": "a.ini"}),
        (["-new", "b.ini"], {"new": "b.ini"}),
        (["-new", "-"], {"new": "-"}),
        (["-new=-x"], {"new": "-x"}),
        (["-new", ""], {"new": ""}),
        (["-new", "-check"], {"new": "a.ini", "check": ""}),
        (["-new", "--"], {"new": "a.ini"}),
    ],
    ids=" ".join,
)
def test_an_option_with_a_default_needs_no_value(words: list[str], given: dict[str, str]) -> None:
    options = (*OPTIONS, Option("new", "FILE", "make it", default="a.ini"))
    assert read(words, options) == (given, [])
    assert "  -new [FILE]  " in describe(options)


@pytest.mark.parametrize(
    ("words", "others"),
    [
        (["set", "a.b", "-"], ["set", "a.b", "-"]),
        (["set", "a.b", "--", "-c"], ["set", "a.b", "-c"]),
        (["--", "-check", "--"], ["-check", "--"]),
        (["a", "-check", "b"], ["a", "b"]),
    ],
    ids=" ".join,
)
def test_what_belongs_to_no_option_is_kept_in_order(words: list[str], others: list[str]) -> None:
    assert read(words, OPTIONS)[1] == others


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-passwrod", "hunter2"], "argument 1 is an unknown option (did you mean -password?)"),
        (["--passwrod=hunter2"], "did you mean --password?"),
        (["-pass", "hunter2"], "argument 1 "),  # no abbreviations
        (["-check", "-phunter2"], "argument 2 "),
        (["-passwordhunter2"], "argument 1 "),
        (["-username", "-password=hunter2"], "-username needs a value"),
        (["-password"], "-password needs a value"),
        (["-password", "hunter2", "-password", "x"], "-password is given twice"),
        (["-mode", "hunter2"], "-mode must be one of server, client"),
        (["-check=hunter2"], "-check takes no value"),
        (["-c", "a", "--config", "b"], "-config is given twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_named_and_nothing_is_repeated_that_may_be_a_secret(words: list[str], said: str) -> None:
    """CASES 315."""
    with pytest.raises(UsageError) as refused:
        read(words, OPTIONS)
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_the_help_has_every_option() -> None:
    lines = describe(OPTIONS).splitlines()
    assert lines[0].split() == ["-config,", "-c", "FILE", "a", "file"]
    assert lines[3].endswith("which (server or client)")
    assert len(lines) == len(OPTIONS)
