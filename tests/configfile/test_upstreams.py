"""Upstreams in the file: what is read, refused and warned of."""

# ruff: noqa: E501

from pathlib import Path

import pytest

from proxy.configfile.load import load
from proxy.settings.egress import Egress, Family
from proxy.settings.upstream import UpstreamConfig
from tests.configfile.reading import LISTENER, problems, read


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", "2: [upstreams.x] type: is missing"),
        ("type = gopher", "3: [upstreams.x] type: must be one of direct, socks5, http, websocket"),
        ("type = websocket", "2: [upstreams.x] proxy_address: is missing: type = websocket needs one"),
        (
            "type = websocket\nproxy_address = ws://h\ntls_ca = ca.pem",
            "5: [upstreams.x] tls_ca: only a wss:// or https:// proxy is reached by TLS",
        ),
        (
            "type = socks5\nproxy_address = h",
            "4: [upstreams.x] proxy_address: the port is missing: write host:port, :port or [::1]:port",
        ),
        (
            "type = socks5\nproxy_address = h:1\nproxy_username = a",
            "2: [upstreams.x] proxy_password: set a user name and a password, or neither",
        ),
        (
            "type = socks5\nproxy_address = h:1\nauth = basic",
            "5: [upstreams.x] auth: only websocket upstreams have this setting",
        ),
        (
            "type = http\nproxy_address = h:1\nsni = gateway.example",
            "5: [upstreams.x] sni: only a wss:// or https:// proxy is reached by TLS",
        ),
        (
            "type = websocket\nproxy_address = wss://h\nsni = gateway.example:443",
            "5: [upstreams.x] sni: is not a plain host name in ASCII",
        ),
        (
            "type = websocket\nproxy_address = wss://h\nhost = http://gateway.example",
            "5: [upstreams.x] host: is not a plain host name in ASCII",
        ),
        (
            "type = websocket\nproxy_address = wss://h\ntls_cert = cert.pem",
            "2: [upstreams.x] tls_key: tls_cert is set, so this must be set too",
        ),
        (
            "type = direct\nsni = gateway.example",
            "3: [upstreams.x] type: a direct upstream has no proxy_address, credentials, headers, TLS settings or via",
        ),
        (
            "type = socks5\nproxy_address = h:1\nretry_count = -1",
            "5: [upstreams.x] retry_count: not a number: write digits, or digits with k, m or g, such as 64k",
        ),
    ],
)
def test_refuses_a_wrong_upstream(settings: str, expected: str) -> None:
    line, rest = expected.split(":", 1)
    text = f"{LISTENER}upstream = x\n[upstreams]\n[[x]]\n{settings}\n"
    assert problems(text) == [f"proxy.ini:{LISTENER.count(chr(10)) + 1 + int(line)}:{rest}"]


VIA = (
    LISTENER
    + """\
upstream = home
[upstreams]
[[home]]
type = websocket
proxy_address = wss://gateway.example/
via = corporate
[[corporate]]
type = http
proxy_address = proxy.corp.example:3128
"""
)


def test_an_upstream_is_reached_via_another_whatever_their_order() -> None:
    (home,) = read(VIA).config.listeners[0].upstream_config
    assert [each.name for each in home.hops] == ["home", "corporate"]
    assert home.hops[-1].client_config.endpoint.port == 3128


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("via = corporate", "via = corprate"),
            "via: there is no corprate in [upstreams]; did you mean corporate?",
        ),
        (("via = corporate", "via = direct"), "via: there is no direct in [upstreams]"),
        (("via = corporate", "via = home"), "via: leads in a circle: home via home"),
        (
            ("type = http", "type = websocket"),
            "via: must name a socks5 or http upstream, and corporate is another type",
        ),
    ],
)
def test_refuses_a_way_that_leads_nowhere(change: tuple[str, str], expected: str) -> None:
    (problem,) = [each for each in problems(VIA.replace(*change)) if " via: " in each]
    assert problem.endswith(f"[upstreams.home] {expected}")


def test_refuses_a_circle_of_ways_and_tells_it_once() -> None:
    text = VIA.replace("via = corporate", "via = two") + "via = home\n[[two]]\ntype = http\n"
    text += "proxy_address = two.example:1\nvia = corporate\n"
    assert [each.partition(": ")[2] for each in problems(text)] == [
        "[upstreams.corporate] via: leads in a circle: home via two via corporate via home"
    ]


def test_a_direct_upstream_is_reached_via_nothing() -> None:
    text = VIA.replace("type = websocket\nproxy_address = wss://gateway.example/", "type = direct")
    assert problems(text)[0].endswith(
        "[upstreams.home] type: a direct upstream has no proxy_address, credentials, headers, TLS settings or via"
    )


# -- how an upstream is asked, and how connections leave


HOME = (
    f"{LISTENER}upstream = home\n[upstreams]\n[[home]]\ntype = websocket\nproxy_address = ws://h.example/\n"
)


def home(settings: str) -> UpstreamConfig:
    """Read a WebSocket upstream."""
    (way,) = read(HOME + settings).config.upstreams
    return way


@pytest.mark.parametrize(
    ("written", "headers"),
    [
        ("X-A: 1", ("X-A: 1",)),
        ('"X-A: 1"', ("X-A: 1",)),
        ('"X-A: a, b # c"  # a note', ("X-A: a, b # c",)),  # one header, which has a comma
        ('"X-A: a, b", "X-B: 2"', ("X-A: a, b", "X-B: 2")),
        ("""'X-A: "a"' , "X-B: # 2"  # a note""", ('X-A: "a"', "X-B: # 2")),
        ('"X-A:1", "authorization: Bearer \u00e4"', ("X-A:1", "authorization: Bearer \u00e4")),
        ("", ()),
    ],
)
def test_headers_are_a_list_whose_elements_may_have_commas(written: str, headers: tuple[str, ...]) -> None:
    """DESIGN 1.3."""
    assert home(f"headers = {written}").headers == headers


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("X-A: sesame, X-B: 2", "has a comma: put each element into quotes"),
        ('"X-A: sesame", X-B: 2', "has a comma: put each element into quotes"),
        ("X-A: sesame # x", "everything from # on would be a comment"),
        ('"X-A: sesame', "the closing quote is missing"),
        # RFC 9110, sections 5.1 and 5.5
        ("sesame", "header 1 is not written"),
        ('"X-A: 1", "X B: sesame"', "header 2 is not written"),
        ('"X-A : sesame"', "header 1 is not written"),
        ('": sesame"', "header 1 is not written"),
        ('"X-sesame:"', "header 1 is not written"),
        ('"X-A: sesame "', "header 1 is not written"),
        ('"X-A: se\tsame"', "header 1 is not written"),
        ('"X-A: sesame\u0085"', "header 1 is not written"),
        ('"X-A: 1", "x-a: sesame"', "header 2 has the name of one before it"),
        (f'"X-A: sesame{"x" * 8192}"', "header 1 is longer than 8 KiB"),
        ('"Host: sesame.example"', "header 1 is Host: for websocket there is the setting host"),
        *(
            (f'"{name}: sesame"', "header 1 is one that is written here")
            for name in (
                *("connection", "Upgrade", "Content-Length", "TRANSFER-ENCODING", "Sec-WebSocket-Key"),
                *("Sec-WebSocket-Protocol", "X-Proxy-Target-Host", "x-proxy-username", "Expect", "TE"),
            )
        ),
        (
            '"authorization: sesame"\nauth = basic\nproxy_username = a\nproxy_password = b',
            "has Authorization, which the login, by auth = basic, is written in",
        ),
    ],
)
def test_refuses_headers_that_cannot_be_and_repeats_nothing_of_them(written: str, why: str) -> None:
    (problem,) = problems(f"{HOME}headers = {written}\n")
    assert problem.startswith(f"proxy.ini:{HOME.count(chr(10)) + 1}: [upstreams.home] headers: {why}")
    assert "sesame" not in problem


@pytest.mark.parametrize(
    "settings",
    [
        "headers = Authorization: Bearer x",
        "headers = Authorization: Bearer x\nauth = basic",
        "headers = Authorization: Bearer x\nproxy_username = a\nproxy_password = b",  # for who is in front
        "headers = Proxy-Authorization: x\nproxy_username = a\nproxy_password = b\nauth = basic",
    ],
)
def test_a_login_of_another_kind_may_be_given_where_we_write_none_there(settings: str) -> None:
    assert len(home(settings).headers) == 1


@pytest.mark.parametrize("login", ["", "proxy_username = a\nproxy_password = b\n"])
def test_an_http_proxy_is_told_one_login(login: str) -> None:
    text = HOME.replace("websocket", "http").replace("ws:", "http:")
    text += f"{login}headers = Proxy-Authorization: Bearer sesame\n"
    if login:
        assert problems(text)[0].endswith(
            "headers: has Proxy-Authorization, which the login is written in: set one of them"
        )
    else:
        assert len(read(text).config.upstreams[0].headers) == 1


def test_socks5_has_no_headers() -> None:
    text = HOME.replace("websocket", "socks5").replace("ws://h.example/", "h.example:1080")
    assert problems(f"{text}headers = X-A: 1\n")[0].endswith(
        "headers: only websocket and http upstreams have this setting"
    )


@pytest.mark.parametrize("kind", ["direct", "socks5", "http", "websocket"])
def test_every_type_may_say_how_connections_leave(kind: str) -> None:
    """DESIGN 1.3."""
    address = "" if kind == "direct" else "proxy_address = h.example:1080\n"
    text = HOME.replace("type = websocket\nproxy_address = ws://h.example/\n", f"type = {kind}\n{address}")
    (way,) = read(f"{text}source = 192.0.2.7\ninterface = eth1\nfamily = ipv4\n").config.upstreams
    assert way.egress == Egress("192.0.2.7", "eth1", Family.IPV4)
    assert kind == "direct" or way.client_config.egress == way.egress
    assert not way.is_plain


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("source = eth1", "source: is not an IP address"),
        ("source = 0.0.0.0", "source: is not an address that a machine can have"),
        ("source = ff02::1", "source: is not an address that a machine can have"),
        ("source = ::ffff:192.0.2.7", "source: is not an address that a machine can have"),
        ("source = fe80::7", "source: a link-local address needs its interface: write fe80::1%eth1"),
        ("interface = a/b", "interface: is not a name that an interface can have, such as eth1"),
        ("interface = sixteen-letters1", "interface: is not a name that an interface can have, such as eth1"),
        (
            "family = IPv4",
            "family: must be one of auto, ipv4, ipv6, ipv4_only, ipv6_only; did you mean ipv4?",
        ),
        ("source = 2001:db8::7\nfamily = ipv4_only", "family: is ipv4_only, and source is an IPv6 address"),
        ("source = 192.0.2.7\nfamily = ipv6", "family: is ipv6, and source is an IPv4 address"),
    ],
)
def test_refuses_what_no_connection_can_leave_by(settings: str, why: str) -> None:
    (problem,) = problems(f"{HOME}{settings}\n")
    assert problem.endswith(f"[upstreams.home] {why}")


@pytest.mark.parametrize("settings", ["source = fe80::7%eth1", "source = fe80::7\ninterface = eth1"])
def test_a_link_local_source_has_an_interface(settings: str) -> None:
    assert not home(settings).is_plain


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("family = ipv4_only", "family = ipv4_only leaves IPv6 out"),
        ("source = 192.0.2.7", "source 192.0.2.7 does not reach IPv6"),
    ],
)
def test_a_proxy_at_an_address_of_the_other_family_is_a_mistake(settings: str, why: str) -> None:
    (problem,) = problems(HOME.replace("h.example", "[2001:db8::1]") + settings)
    assert problem.endswith(f"[upstreams.home] proxy_address: cannot be reached: {why}")


@pytest.mark.parametrize("setting", ["source = 192.0.2.7", "interface = eth1", "family = ipv6"])
def test_what_is_reached_via_another_leaves_as_that_one_does(setting: str) -> None:
    (problem,) = problems(VIA.replace("via = corporate", f"via = corporate\n{setting}"))
    name = setting.partition(" ")[0]
    assert problem.endswith(f"[upstreams.home] {name}: it is reached via corporate, which says how it leaves")
    read(f"{VIA}{setting}")  # which is the end of [[corporate]]


def test_what_this_machine_does_not_have_now_is_a_warning_alone(tmp_path: Path) -> None:
    """It may come in a moment, such as a line that is down."""
    path = tmp_path / "proxy.ini"
    path.write_text(f"{HOME}source = 192.0.2.7\n[[line]]\ntype = direct\ninterface = nowhere0\n")
    path.chmod(0o600)
    until = "its connections fail until that changes"
    assert [str(each).partition(": ")[2] for each in load(str(path)).warnings] == [
        f"[upstreams.home] source: this machine does not have this address: {until}",
        f"[upstreams.line] interface: there is no such interface: {until}",
    ]
    path.write_text(f"{HOME}source = 127.0.0.2\ninterface = lo\n")
    assert load(str(path)).warnings == ()


def test_a_file_with_headers_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "proxy.ini"
    path.write_text(f"{HOME}headers = X-A: sesame\n")
    path.chmod(0o644)
    (warning,) = load(str(path)).warnings
    assert "has passwords in plain text" in str(warning)


def test_direct_is_no_name_for_an_upstream() -> None:
    assert problems(LISTENER + "[upstreams]\n[[direct]]\ntype = direct\n") == [
        "proxy.ini:7: [upstreams.direct] direct is built in: give this upstream another name"
    ]


def test_credentials_are_looked_at_beside_an_address_that_cannot_be() -> None:
    """Case 356."""
    text = f"{LISTENER}[upstreams]\n[[home]]\ntype = socks5\nproxy_address = h:x\nproxy_username = a\n"
    assert [each.split(": ")[1] for each in problems(text)] == [
        "[upstreams.home] proxy_password",
        "[upstreams.home] proxy_address",
    ]
