"""One setting changes, and all the rest of the text stays as it was."""

import difflib
import re

import pytest
from configobj import ConfigObj
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.configtext import changes
from proxy.configtext.document import Document, edit, redact
from proxy.errors import ConfigError
from tests.configfile.reading import read

TEXT = """\
# What this file is about.

[proxy]
timeout           = 30s     # the whole budget
state_dir         =         # where it lives
idle_timeout      = 5m

[auth_users]
# bob = "old secret"
alice = wonderland

# The doors.
[listeners]

[[socks]]
protocol=socks5
listen_addr=127.0.0.1:1080   # this machine only
upstream=home, direct

# The other one.
[[web]]
protocol = websocket
listen_addr = 127.0.0.1:8080

[upstreams]
[[home]]
type = socks5
proxy_address = 10.0.0.1:1080
proxy_username = alice
proxy_password = "rabbit, hole"   # ask Bob
"""

# What matters to an INI file, far more often than chance would bring it.
VALUES = st.text(st.sampled_from("ab#%,;\"'=[] \t$\\\u00a0") | st.characters(codec="utf-8"), max_size=12)


def changed_lines(old: str, new: str) -> list[str]:
    """List the lines that a diff takes away and adds."""
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0))
    return [line for line in lines if line[0] in "+-" and not line.startswith(("+++", "---"))]


@pytest.mark.parametrize(
    ("name", "value", "lines"),
    [
        (
            "proxy.timeout",
            "5s",
            [
                "-timeout           = 30s     # the whole budget",
                "+timeout           = 5s      # the whole budget",
            ],
        ),
        (
            "proxy.state_dir",
            "/var",
            [
                "-state_dir         =         # where it lives",
                "+state_dir         = /var    # where it lives",
            ],
        ),
        (
            "listeners.socks.listen_addr",
            "127.0.0.1:11080",
            [
                "-listen_addr=127.0.0.1:1080   # this machine only",
                "+listen_addr=127.0.0.1:11080  # this machine only",
            ],
        ),
        ("listeners.socks.upstream", "direct, home", ["-upstream=home, direct", "+upstream=direct, home"]),
        ("auth_users.alice", "a#b", ["-alice = wonderland", '+alice = "a#b"']),
        (
            "upstreams.home.proxy_password",
            "plain",
            ['-proxy_password = "rabbit, hole"   # ask Bob', '+proxy_password = "plain"          # ask Bob'],
        ),
    ],
)
def test_a_setting_changes_in_its_line_and_its_comment_stays(name: str, value: str, lines: list[str]) -> None:
    assert changed_lines(TEXT, edit(TEXT, [(name, value)])) == lines


@pytest.mark.parametrize(
    ("name", "value", "after", "line"),
    [
        ("auth_users.carol", "x", "alice = wonderland", "carol = x"),
        ("auth_users.c.d@e", "x", "alice = wonderland", "c.d@e = x"),
        ("auth_users.c d", "x", "alice = wonderland", '"c d" = x'),
        ("proxy.splice", "off", "idle_timeout      = 5m", "splice            = off"),
        ("listeners.socks.auth", "none", "upstream=home, direct", "auth = none"),
    ],
)
def test_a_new_setting_comes_below_the_others_of_its_section(
    name: str, value: str, after: str, line: str
) -> None:
    lines = edit(TEXT, [(name, value)]).splitlines()
    assert lines[lines.index(line) - 1] == after
    assert changed_lines(TEXT, "\n".join(lines)) == [f"+{line}"]


def test_a_new_section_comes_behind_those_of_its_kind_and_before_the_comments_of_what_follows() -> None:
    text = "[listeners]\n[[socks]]\nprotocol = socks5\n\n# Ways out.\n[upstreams]\n"
    assert edit(text, [("listeners.web.protocol", "websocket")]) == (
        "[listeners]\n[[socks]]\nprotocol = socks5\n\n"
        "[[web]]\nprotocol = websocket\n\n# Ways out.\n[upstreams]\n"
    )


def test_sections_are_made_where_there_are_none() -> None:
    assert edit("", [("upstreams.home.type", "direct")]) == "[upstreams]\n\n[[home]]\ntype = direct\n"


def test_a_text_of_which_nothing_is_left_can_begin_anew() -> None:
    edits = [("proxy", None), ("control.token", "x")]
    assert edit("[proxy]\r\ntimeout = 1s", edits) == "[control]\r\ntoken = x\r\n"


def test_a_setting_is_taken_away_with_its_line() -> None:
    assert changed_lines(TEXT, edit(TEXT, [("auth_users.alice", None)])) == ["-alice = wonderland"]


def test_a_section_is_taken_away_with_its_settings_and_the_comments_of_others_stay() -> None:
    assert changed_lines(TEXT, edit(TEXT, [("listeners.socks", None)])) == [
        "-[[socks]]",
        "-protocol=socks5",
        "-listen_addr=127.0.0.1:1080   # this machine only",
        "-upstream=home, direct",
    ]


def test_a_section_goes_with_all_that_is_in_it() -> None:
    assert "[[" not in edit(TEXT, [("listeners", None), ("upstreams", None)])


def test_what_is_set_after_its_section_was_taken_away_is_all_that_it_has() -> None:
    text = edit(TEXT, [("listeners.web", None), ("listeners.web.path", "/")])
    assert [key for path, key in Document(text).settings() if path == ("listeners", "web")] == ["path"]


def test_a_byte_order_mark_stays() -> None:
    text = "\ufeff[proxy]\ntimeout = 1s\n"
    assert edit(text, [("proxy.timeout", "2s")]) == "\ufeff[proxy]\ntimeout = 2s\n"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_stay_what_they_are(end: str) -> None:
    text = "[proxy]\ntimeout = 1s\n".replace("\n", end)
    edits = [("proxy.timeout", "2s"), ("proxy.splice", "off"), ("auth_users.bob", "x")]
    expected = "[proxy]\ntimeout = 2s\nsplice = off\n\n[auth_users]\nbob = x\n".replace("\n", end)
    assert edit(text, edits) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "proxy", "listeners.web", "timeout", "proxy.a b", "listeners.a b.path"),
        *("proxy.timeout\n[auth_users]\nmallory", "auth_users.mallory = x\nmallory", "[proxy].timeout"),
    ],
)
def test_refuses_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ConfigError):
        edit(TEXT, [(name, "1s")])


def test_refuses_to_take_away_what_is_not_there() -> None:
    with pytest.raises(ConfigError, match="is not set"):
        edit(TEXT, [("auth_users.bob", None)])
    assert edit(TEXT, [("auth_users.bob", None)], is_again=True) == TEXT


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("X-A: 1", "headers        = X-A: 1"),
        ("X-A: a, b", 'headers        = "X-A: a, b"'),
        ('"X-A: a # b", "X-B: 2"', 'headers        = "X-A: a # b", "X-B: 2"'),
        ("""'X-A: "a"',"X-B: 2\"""", """headers        = 'X-A: "a"',"X-B: 2\""""),
    ],
)
def test_headers_are_one_or_a_list_in_quotes(value: str, line: str) -> None:
    changed = edit(TEXT, [("upstreams.home.headers", value)])
    assert changed_lines(TEXT, changed) == [f"+{line}"]
    again = edit(changed, [("upstreams.home.headers", "X-C: 3")])
    assert changed_lines(changed, again) == [f"-{line}", "+headers        = X-C: 3"]
    assert changes.summary(changed, again) == "upstreams.home.headers changed"
    told = changes.diff(changed, again, "1", "2")
    assert "+headers        = ********: ********  # changed\n" in told
    assert "X-" not in told


def test_a_part_of_a_list_that_looks_like_a_comment_is_no_comment() -> None:
    """So a change of what stands behind it is one."""
    old, new = (f'[upstreams]\n[[home]]\nheaders = "X-A: a # b", "X-B: {value}"\n' for value in (1, 2))
    assert changes.summary(old, new) == "upstreams.home.headers changed"


@pytest.mark.parametrize("value", ["a\nb = c", "a\rb", "\x00", "\ud800", "p\udcffw"])
def test_refuses_a_value_that_would_not_read_back(value: str) -> None:
    with pytest.raises(ConfigError):
        edit(TEXT, [("auth_users.alice", value)])


@pytest.mark.parametrize("name", ["auth_users.\ud800", "proxy.\udcff", "listeners.\udcff.path"], ids=ascii)
def test_refuses_a_name_that_is_no_text(name: str) -> None:
    """CASES H211: what came from a command line may be any bytes."""
    with pytest.raises(ConfigError, match=r"UTF-8|not the name"):
        edit(TEXT, [(name, "x")])


def test_a_value_that_reads_back_as_another_one_is_refused_whatever_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.configtext.document.syntax.quote", lambda text, **how: text.partition("#")[0])
    with pytest.raises(ConfigError, match="read back"):
        edit(TEXT, [("auth_users.alice", "a#b")])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bob", "there is no section [bob]"),
        ("prxy.timeout", "there is no section [prxy]; did you mean [proxy]?"),
        ("listener.a.path", "there is no section [listener]; did you mean [listeners]?"),
        ("timeout", "there is no section [timeout]; did you mean proxy.timeout?"),
        ("proxy", "is a section: name a setting of it"),
    ],
)
def test_a_name_that_begins_with_no_section_is_called_so(name: str, said: str) -> None:
    """Case 357."""
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        edit(TEXT, [(name, "x")])
    assert caught.value.field == name


@given(VALUES)
@example("a # b")
@example("")
@example(" a ")
def test_a_password_reads_back_the_same_for_every_reader_or_is_refused(password: str) -> None:
    try:
        text = edit(TEXT, [("auth_users.alice", password), ("upstreams.home.proxy_password", password)])
    except ConfigError:
        return
    conf = ConfigObj(text.split("\n"), interpolation=False)
    assert conf["auth_users"]["alice"] == password
    assert conf["upstreams"]["home"]["proxy_password"] == password
    if 0 < len(password.encode()) <= 255 and not password.startswith("scrypt$"):
        assert read(text).config.listeners[0].auth_users == {"alice": password}


def shown(text: str) -> str:
    return "\n".join(line for line, _ in redact(text))


def test_no_secret_is_left_in_a_redacted_text_not_even_in_a_comment() -> None:
    """CASES H210."""
    text = shown(TEXT + "# proxy_password = cheshire\n[control]\ntoken = sesame\n")
    for secret in ("wonderland", "rabbit", "old secret", "ask Bob", "cheshire", "sesame"):
        assert secret not in text
    assert "alice = ********" in text
    assert "timeout           = 30s     # ********" in text


@pytest.mark.parametrize(
    "line",
    [
        "#[auth_users]\n#carol = silenced",
        "# [auth_users]\n#   carol: silenced",
        "#[auth_users] (the old ones)\n# [old] ones\n#carol=silenced",
        "#[auth_users]\n#\n# 'carol smith' = silenced  # ask Bob",
        "## [ auth_users ] ##\n## carol = silenced",
        "[control]  # token = silenced",
        "[control]\nlisten_addr =  # Token: silenced",
        "#proxy_password: silenced",
        "# the old PASSWORD = silenced",
        '# "proxy_password" = "silenced"',
        "# proxy_username = a  # proxy_password = silenced",
        "[[b]]\nproxy_username = a  # proxy_password = silenced",
        "[[b]]\nproxy_username = 'a'\t#proxy_password = silenced, too",
        "[[b]]\nproxy_address = wss://gw/t?token=silenced",
        "[[b]]\nproxy_address = gw:80?silenced  # the old one",
        "[[b]]\nproxy_address = \"wss://gw/t?a='b'&c='silenced',d\"",
        "# proxy_address = wss://gw/t?silenced",
        "[[b]]\nproxy_address = wss://gw/t  # was wss://gw/t?a,silenced",
        "#[[b]]\n#proxy_address = wss://gw/t?silenced",
        "[[b]]\nproxy_username = a#proxy_password = silenced",
        # Case 374: a list of words misses these.
        "# ws://user:silenced@gw/",
        "# pass = silenced",
        "[control]  # api_key silenced",
        "[control]\nlisten_addr = 127.0.0.1:1  # curl -u me:silenced",
        "#carol = silenced\n#[auth_users]",
        "# gw:80?silenced",
        "    # silenced",
        "#silenced",
        "[[b]]\nproxy_address = ws://me:silenced@gw/",
        "[control]\nsilenced = x",
        "[control]\nsilenced",
        "[silenced]",
        "[[silenced there]]",
        '[[b]]\nproxy_username = a\nproxy_username = "silenced"',
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=ascii)
def test_no_secret_is_left_where_somebody_silenced_it(line: str, end: str) -> None:
    """CASES H210."""
    text = shown(f"{TEXT}{line}\n[proxy]\nsplice = off\n".replace("\n", end))
    assert "silenced" not in text
    assert "********" in text
    assert text.endswith("[proxy]\nsplice = off\n")


def test_what_is_no_secret_stays_readable() -> None:
    lines = [
        "idle_timeout = 5m",
        "  log_level =  'info'",
        "",
        "[auth_users]",
        "[listeners]",
        "[[a.b]]",
        "path = /x",
    ]
    text = "[proxy]\n" + "\n".join(lines)
    assert shown(text) == text


class TestSaying:
    """What changed, in words and as a diff."""

    @pytest.mark.parametrize(
        ("edits", "words"),
        [
            ([("listeners.socks.auth", "none")], "listeners.socks.auth = none"),
            ([("proxy.timeout", "1m")], "proxy.timeout 30s -> 1m"),
            ([("proxy.timeout", None)], "proxy.timeout unset"),
            ([("auth_users.carol", "x"), ("auth_users.alice", None)], "users +carol -alice"),
            ([("auth_users.alice", "x")], "password of alice"),
            ([("upstreams.home.proxy_password", "x")], "upstreams.home.proxy_password changed"),
            ([("listeners.web", None), ("upstreams.b.type", "direct")], "listeners -web, upstreams +b"),
        ],
    )
    def test_a_summary_names_what_changed(
        self,
        edits: list[tuple[str, None] | tuple[str, str]] | list[tuple[str, None]] | list[tuple[str, str]],
        words: str,
    ) -> None:
        assert changes.summary(TEXT, edit(TEXT, edits)) == words

    def test_the_query_of_an_address_changes_and_is_not_shown(self) -> None:
        """CASES H210: it may be a token."""
        text = "[upstreams]\n[[home]]\nproxy_address = wss://{}\n"
        old, new, other = map(text.format, ("g/t?one", "g/t?two", "h/t?one"))
        assert changes.summary(old, new) == "upstreams.home.proxy_address changed"
        assert changes.summary(old, other).endswith("wss://g/t?******** -> wss://h/t?********")
        assert "+proxy_address = wss://g/t?********  # changed\n" in changes.diff(old, new, "1", "2")

    def test_so_does_the_query_of_a_path_which_is_the_same_token_at_the_other_end(self) -> None:
        old, new = TEXT, edit(TEXT, [("listeners.web.path", "/tunnel?sesame")])
        said = changes.summary(old, new)
        assert "/tunnel?********" in said
        assert "sesame" not in said + "".join(seen for seen, _ in redact(new))

    def test_a_summary_of_comments_says_so(self) -> None:
        assert changes.summary(TEXT, TEXT + "# more\n") == "comments and order only"

    def test_a_summary_of_much_stays_one_line(self) -> None:
        users = [(f"auth_users.user{number}", "x") for number in range(5000)]
        words = changes.summary(TEXT, edit(TEXT, users))
        assert len(words) < 200
        assert words.endswith("and 4990 more")

    def test_a_diff_says_that_a_secret_changed_and_not_what_it_is(self) -> None:
        new = edit(TEXT, [("auth_users.alice", "looking glass"), ("proxy.timeout", "1m")])
        text = changes.diff(TEXT, new, "version 1", "version 2")
        assert "wonderland" not in text
        assert "looking glass" not in text
        assert text.startswith("--- version 1\n+++ version 2\n")
        assert "-alice = ********\n+alice = ********  # changed\n" in text
        assert "+timeout           = 1m      # ********\n" in text

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("# The doors.", "# Mine.", ["-# ********", "+# ********  # changed"]),
            (
                "# the whole budget",
                "# api_key = silenced",
                [
                    "-timeout           = 30s     # ********",
                    "+timeout           = 30s     # ********  # changed",
                ],
            ),
            ("# The doors.\n", "# The doors.\n# silenced\n", ["+# ********"]),
        ],
    )
    def test_of_a_comment_a_diff_says_that_it_changed(self, old: str, new: str, said: list[str]) -> None:
        """Case 374."""
        assert old in TEXT
        text = changes.diff(TEXT, TEXT.replace(old, new), "1", "2")
        assert [line for line in text.splitlines()[2:] if line[0] in "+-"] == said


def test_nothing_is_shown_that_stands_below_a_broken_header() -> None:
    """What belongs where is not known there, so neither is what is a secret."""
    seen = [
        line for line, _ in redact("[proxy]\ntimeout = 1s\n[[control\ntimeout = 2s\n[proxy]\nsplice = off")
    ]
    assert seen == ["[proxy]", "timeout = 1s", "********", "********", "[proxy]", "splice = off"]
