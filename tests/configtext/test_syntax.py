"""Lines and quotes: what is read is what configobj reads, or it is refused."""

import re

import pytest
from configobj import ConfigObj, ConfigObjError
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.configtext.syntax import Fault, Header, Setting, quote, quote_key, read_secret, read_value, scan

# What matters to an INI file, far more often than chance would bring it.
TEXT = st.text(st.sampled_from("ab#%,;\"'=[] \t$\\\u00a0") | st.characters(codec="utf-8"), max_size=12)


def configobj_reads(line: str) -> dict[str, str] | None:
    """Read one line with the library, or return None if it refuses."""
    try:
        read: dict[str, str] = ConfigObj([line], interpolation=False).dict()
    except ConfigObjError:
        return None
    return read


def test_reads_headers_and_settings_with_their_lines() -> None:
    lines = ["# comment", "[a]", "", "  [[ 'b c' ]]  # comment", "key = value # comment", '"k=" = "v"']
    assert list(scan(lines)) == [
        Header(2, 1, "a"),
        Header(4, 2, "b c"),
        Setting(5, "key", "value # comment"),
        Setting(6, "k=", '"v"'),
    ]


@pytest.mark.parametrize("line", ["[a", "a]b]", "[[a]", "[]", "[a] b", "[[a]]]", "[a = b", "[a#]"])
def test_refuses_a_broken_line(line: str) -> None:
    (fault,) = scan([line])
    assert isinstance(fault, Fault)
    assert fault.hides_more is line.startswith("[")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("listen_addr: 127.0.0.1", "no ="),
        ("; alice = old", "begins with #"),
        ("= value", "no name"),
        ('"" = value', "no name"),
        ("alice hunter=2", "needs quotes"),
        ("alice: hunter=2", "needs quotes"),
        ("alice#1 = x", "needs quotes"),
        ('"al"ice" = x', "needs quotes"),
        ('"al" ice = "x" = y', "needs quotes"),
        ("alice\u00a0= x", "U\\+00A0"),
        ("alice\u200b = x", "U\\+200B"),
        ("alice = x\u00a0", "U\\+00A0"),
        ("alice =\u3000x", "U\\+3000"),
    ],
)
def test_says_why_a_line_is_no_setting(line: str, hint: str) -> None:
    (fault,) = scan([line])
    assert isinstance(fault, Fault)
    assert re.search(hint, fault.message)
    assert "hunter" not in fault.message


def test_what_stands_inside_an_open_quote_is_no_setting() -> None:
    items = list(scan(["a = '''x", "token = 1", "''' # end", "b = 2"]))
    assert [item.key for item in items if isinstance(item, Setting)] == ["a", "b"]
    assert len(items) == 2


@pytest.mark.parametrize(
    "char", ["#", "%", ",", ";", '"', "'", "=", "[", "]", " ", "\t", "$", "\\", "ä", "\u2028"]
)
@pytest.mark.parametrize(
    "form", ["{0}ss", "pa{0}ss", "pa{0}", "{0}", "pa {0}ss", "{0}pa{0}", "pa{0} ss", "{0}{0}"]
)
def test_an_unquoted_secret_is_exact_or_refused(form: str, char: str) -> None:
    secret = form.format(char)
    raw = secret.strip(" \t")
    try:
        value = read_secret(raw)
    except ValueError as exc:
        refusal = str(exc)
    else:
        # Blanks at its ends are the only thing that a secret loses, unless it is a quoted one.
        assert value.text == (raw[1:-1] if value.is_quoted else raw)
        assert configobj_reads(f"k = {secret}") == {"k": value.text}
        refusal = ""
    assert not refusal or char in "#,\"'\u2028"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('"p#ss"', "p#ss"),
        ("'p\"ss'", 'p"ss'),
        ('"a,b"', "a,b"),
        ('"  x  "', "  x  "),
        ('"x" # why', "x"),
        ('"""a"b\'c"""', "a\"b'c"),
        ("100%(x)s$y", "100%(x)s$y"),
        ("wonderland          # plain, or a hash", "wonderland"),
        ("wonderland\t# why", "wonderland"),
    ],
)
def test_reads_a_secret_as_documented(raw: str, expected: str) -> None:
    assert read_secret(raw).text == expected
    assert configobj_reads(f"k = {raw}") == {"k": expected}


@pytest.mark.parametrize(
    "raw",
    [
        "p#ss",
        "p #ss",
        "p # ss",
        "p  #ss",
        "#ss",
        "a,b",
        "a,",
        ",",
        '"abc',
        'abc"d"#',
        '"a"b"',
        '"a" b',
        '"x"#y',
        '"""x',
        "''a''",
    ],
)
def test_refuses_a_secret_that_could_be_cut(raw: str) -> None:
    with pytest.raises(ValueError, match=r"quote"):
        read_secret(raw)


@pytest.mark.parametrize(
    ("raw", "text"), [("30s # why", "30s"), ("30s# why", "30s"), ("# why", ""), ("x #why", "x")]
)
def test_other_values_may_have_a_comment(raw: str, text: str) -> None:
    assert read_value(raw).text == text


def test_a_path_is_not_cut_at_a_hash() -> None:
    with pytest.raises(ValueError, match="comment"):
        read_value("/var/log/a#b")


@given(TEXT)
@example("\"'")
@example("'''\"")
@example("a\u0085")
def test_a_quoted_value_reads_back(text: str) -> None:
    try:
        written = quote(text)
    except ValueError:
        assert any(ord(char) < 32 or char == "\x7f" for char in text) or ('"""' in text and "'''" in text)
        return
    assert read_secret(written).text == text
    assert configobj_reads(f"k = {written}") == {"k": text}


@given(TEXT.filter(bool))
def test_a_quoted_name_reads_back(text: str) -> None:
    try:
        line = f"{quote_key(text)} = x"
    except ValueError:
        assert any(ord(char) < 32 or char == "\x7f" for char in text) or ('"' in text and "'" in text)
        return
    assert list(scan([line])) == [Setting(1, text, "x")]
    assert configobj_reads(line) == {text: "x"}


@given(TEXT)
def test_a_secret_is_never_read_in_two_ways(raw: str) -> None:
    raw = raw.strip(" \t")
    if any(char in raw for char in "\r\n"):
        return
    (item, *_) = scan([f"k = {raw}"])
    try:
        value = read_secret(item.raw) if isinstance(item, Setting) else None
    except ValueError:
        return
    if value is None:
        return
    library = configobj_reads(f"k = {raw}")
    assert library == {"k": value.text}
