"""What cannot be in a file is reported and left out, and the rest keeps its place."""

import codecs

import pytest

from proxy.configtext.document import Document
from proxy.configtext.outline import MAX_BYTES, Outline, Problem, why_no_text_file

TEXT = """\
[proxy]
timeout = 10s
tiemout = 20s
[auth_users]
alice = wonderland  # of the queen
[listeners]
[[socks]]
protocol = socks5
protocol = websocket
"""


def outline(text: str) -> Outline:
    """Look at a text as at that of a file."""
    return Outline(Document(text), "proxy.ini")


def problems(text: str) -> list[str]:
    """Say what is wrong with it."""
    return [str(each) for each in outline(text).problems]


# A problem


@pytest.mark.parametrize(
    ("line", "section", "key", "said"),
    [
        (4, "listeners.web", "path", "proxy.ini:4: [listeners.web] path: must begin with /"),
        (4, "listeners.web", "", "proxy.ini:4: [listeners.web] must begin with /"),
        (4, "", "path", "proxy.ini:4: path: must begin with /"),
        (0, "", "", "proxy.ini: must begin with /"),
    ],
)
def test_a_problem_says_as_much_of_its_place_as_is_known(
    line: int, section: str, key: str, said: str
) -> None:
    assert str(Problem("proxy.ini", "must begin with /", line, section, key)) == said


# What is there


def test_what_can_be_stays_in_its_line_and_the_rest_leaves_an_empty_one() -> None:
    """So that whoever reads on counts the lines as the author does."""
    found = outline(TEXT)
    assert found.lines == [
        *("[proxy]", "timeout = 10s", ""),
        *("[auth_users]", "alice = wonderland  # of the queen"),
        *("[listeners]", "[[socks]]", "protocol = socks5", "", ""),
    ]
    assert [(each.line, each.section, each.key) for each in found.problems] == [
        (3, "proxy", "tiemout"),
        (9, "listeners.socks", "protocol"),
    ]


def test_sections_and_settings_have_the_line_of_their_first() -> None:
    places = outline(TEXT).places
    assert places[("proxy",), ""] == 1
    assert places[("proxy",), "timeout"] == 2
    assert places[("listeners", "socks"), ""] == 7
    assert places[("listeners", "socks"), "protocol"] == 8
    assert (("proxy",), "tiemout") not in places


def test_a_secret_is_read_exactly_and_a_comment_behind_it_is_warned_of() -> None:
    found = outline(TEXT)
    assert found.secrets == {(("auth_users",), "alice"): "wonderland"}
    (warning,) = found.warnings
    assert (warning.line, warning.key) == (5, "alice")
    assert "wonderland" not in str(warning)
    assert "queen" not in str(warning)


def test_windows_line_ends_are_no_part_of_a_line() -> None:
    found = outline(TEXT.replace("\n", "\r\n"))
    assert found.lines == outline(TEXT).lines
    assert found.secrets == {(("auth_users",), "alice"): "wonderland"}


# What is refused


def test_of_a_setting_that_was_refused_no_more_is_said() -> None:
    found = outline(TEXT)
    found.report_at(("proxy",), "tiemout", "a second complaint")
    assert len(found.problems) == 2
    found.report_at(("proxy",), "timeout", "the first of another")
    assert (found.problems[-1].line, found.problems[-1].key) == (2, "timeout")
    found.report_at(("listeners", "socks"), "listen_addr", "is missing")
    assert found.problems[-1].line == 7  # where its section begins


def test_what_stands_in_a_section_that_is_none_could_be_any_listener_or_upstream() -> None:
    """So that nobody complains of the lack of one that has only the wrong number of brackets."""
    found = outline("[socks]\nprotocol = socks5\nlisten_addr = :1\n")
    assert len(found.problems) == 1
    assert {(("listeners",), ""), (("upstreams",), "")} <= found.refused
    assert found.lines == [""] * 4


def test_below_a_section_that_is_none_there_can_be_no_section() -> None:
    assert problems("[listners]\n[[socks]]\nprotocol = socks5\n") == [
        "proxy.ini:1: [listners] unknown section; did you mean [listeners]?"
    ]


@pytest.mark.parametrize("name", ["wonder land", "won=der", "wonder!land", "wonder]land"])
def test_a_name_that_may_be_a_password_is_not_repeated(name: str) -> None:
    """Where a = is missing or misplaced, one can stand where a name should."""
    for text in (f"[proxy]\n{name} = x\n", f"[listeners]\n[[{name}]]\nprotocol = socks5\n"):
        said = problems(text)
        assert said
        assert not any(name in each for each in said)


def test_a_byte_that_is_no_text_is_named_with_its_place_and_no_more_is_said_of_its_line() -> None:
    """The offset is one of bytes, from the beginning of the file: that is how one finds it."""
    data = codecs.BOM_UTF8 + "[proxy]\nt\u00e4g = ".encode() + b"\xff\n"
    text = data.decode("utf-8", "surrogateescape")
    assert problems(text) == [f"proxy.ini:2: byte 0xff at offset {data.index(0xFF)} is not UTF-8"]


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\r"])
def test_a_control_character_is_named(character: str) -> None:
    said = problems(f"[proxy]\ntimeout = 1{character}0s\n")
    assert said == [f"proxy.ini:2: has a control character (U+{ord(character):04X})"]


def test_a_tab_and_a_carriage_return_at_the_end_are_none() -> None:
    assert problems("[proxy]\r\n\ttimeout\t=\t10s\r\n") == []


# What is no file of ours


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b'\xef\xbb\xbf {"listen_addr": ":1080"}',
            "is JSON: write an INI file, as docs/from-the-go-program.md shows",
        ),
        (b"", "is empty"),
        (b" \r\n\t\n", "is empty"),
        (codecs.BOM_UTF8 + b"\n", "is empty"),
        ("[proxy]\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (codecs.BOM_UTF16_BE + "[proxy]\n".encode("utf-16-be"), "is UTF-16: save it as UTF-8"),
        (b"[proxy]\n\n\x7fELF\0", "is not a text file: there is a NUL byte in line 3"),
        (b"#" * (MAX_BYTES + 1), "is larger than 16 MiB: this is not a configuration file"),
        (b"#" * MAX_BYTES, ""),
        (b"[proxy]\n", ""),
        (codecs.BOM_UTF8 + b"[proxy]\n", ""),
        (b"\xff\xfd", ""),  # may be text in another encoding: its bytes are looked at one by one
    ],
    ids=range(12),
)
def test_says_why_a_file_is_no_text(data: bytes, said: str) -> None:
    assert why_no_text_file(data) == said
