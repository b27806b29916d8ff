"""TLS contexts, and what a failed handshake is called."""

import os
import signal
import ssl
import subprocess
import time
import warnings
from pathlib import Path
from typing import TypeVar

import gevent
import pytest
from gevent import socket

from proxy.errors import ConfigError, ProtocolError
from proxy.net.deadline import wait
from proxy.relaying.stream import Buffer, Ending, TlsStream
from proxy.tls.contexts import ClientContext, client_context, server_context, validity_of
from proxy.tls.tlssocket import TlsSocket, accept_tls, connect_tls
from tests.integration.certificates import Authority, Certificate
from tests.wire.greenlets import tcp_pair
from tests.wire.processes import listening_ports
from tests.wire.sockets import free_port
from tests.wire.waits import wait_until

AnyContext = TypeVar("AnyContext", bound=ssl.SSLContext)


def shake_hands(
    server: ssl.SSLContext, client: ClientContext, host: str = "localhost"
) -> tuple[TlsSocket, TlsSocket]:
    """Do both sides' handshakes, and give the TLS sockets; raises what the client's raises."""
    ours, theirs = tcp_pair()
    accepting = gevent.spawn(accept_tls, theirs, server)
    accepting.rawlink(lambda _: None)
    try:
        return connect_tls(ours, client, host), accepting.get()
    finally:
        if not accepting.ready():
            accepting.kill()


def quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a greenlet fail without a traceback on the terminal."""
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)


def test_a_verified_connection_carries_bytes(authority: Authority, good: Certificate) -> None:
    server = server_context(str(good.cert), str(good.key))
    client, served = shake_hands(server, client_context(str(authority.root.cert)))
    client.write(b"hello")
    wait(served.reader)
    assert served.recv(10) == b"hello"


@pytest.mark.parametrize(("host", "issuer_known", "reason"), [
    ("other.example", True, "certificate refused: Hostname mismatch"),
    ("localhost", False, "certificate refused: unable to get local issuer certificate"),
])  # fmt: skip
def test_a_certificate_that_proves_nothing_is_refused_in_one_line(
    authority: Authority,
    good: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    issuer_known: bool,
    reason: str,
) -> None:
    """CASES F169."""
    quietly(monkeypatch)
    ca = str(authority.root.cert) if issuer_known else ""
    with pytest.raises(ProtocolError, match=reason) as raised:
        shake_hands(server_context(str(good.cert), str(good.key)), client_context(ca), host)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("settings", "said"), [
    ({"SSL_CERT_FILE": "{empty}/ca.pem"}, "SSL_CERT_FILE names {empty}/ca.pem, which does not exist"),
    (
        {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": "{empty}"},
        (
            "the system has no authorities to trust, neither in /dev/null nor in {empty}: "
            "install the package ca-certificates, or name a file in tls_ca"
        ),
    ),
])  # fmt: skip
def test_authorities_that_are_missing_are_named_with_the_cure(
    good: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    """To OpenSSL, a machine without authorities is one that does not know the right one."""
    quietly(monkeypatch)
    for name, value in settings.items():
        monkeypatch.setenv(name, value.format(empty=tmp_path))
    with pytest.raises(ProtocolError) as raised:
        shake_hands(server_context(str(good.cert), str(good.key)), client_context())
    assert str(raised.value).endswith(
        f"unable to get local issuer certificate; {said.format(empty=tmp_path)}"
    )


def test_a_file_of_our_own_is_not_looked_for_in_the_system(
    authority: Authority, good: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    quietly(monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    other = client_context(str(authority.self_signed("other", "Other").cert))
    with pytest.raises(ProtocolError, match="the authorities to trust are those in tls_ca"):
        shake_hands(server_context(str(good.cert), str(good.key)), other)


def test_what_is_not_valid_now_is_refused_with_the_day_of_the_clock(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a box without a battery may be decades behind."""
    quietly(monkeypatch)
    old = authority.issue("old", "localhost", expired=True)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    said = f"certificate has expired; the clock of this machine says it is {today}"
    with pytest.raises(ProtocolError, match=said):
        shake_hands(server_context(str(old.cert), str(old.key)), client_context(str(authority.root.cert)))


def test_the_dates_of_a_certificate_are_read(authority: Authority, good: Certificate, tmp_path: Path) -> None:
    expired = authority.issue("over", "localhost", expired=True)
    assert validity_of(str(expired.cert)) == (1577836800, 1577923200)
    (tmp_path / "chain.pem").write_bytes(good.cert.read_bytes() + expired.cert.read_bytes())
    assert validity_of(str(tmp_path / "chain.pem")) == validity_of(str(good.cert))


def test_what_is_no_certificate_has_no_dates(good: Certificate, tmp_path: Path) -> None:
    assert [validity_of(str(each)) for each in (good.key, tmp_path, tmp_path / "none.pem")] == [None] * 3


def test_without_verification_anything_goes(good: Certificate) -> None:
    server = server_context(str(good.cert), str(good.key))
    shake_hands(server, client_context(verify=False), "other.example")


def old_tls(context: AnyContext) -> AnyContext:
    """Let a context speak TLS 1.1 only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def test_neither_side_speaks_tls_1_1(good: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES F169; RFC 8996."""
    quietly(monkeypatch)
    server, client = server_context(str(good.cert), str(good.key)), client_context(verify=False)
    with pytest.raises(ProtocolError):
        shake_hands(server, old_tls(client_context(verify=False)))
    with pytest.raises(ProtocolError):
        shake_hands(old_tls(server_context(str(good.cert), str(good.key))), client)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_peer_that_does_not_speak_tls_is_called_so(good: Certificate, side: str) -> None:
    ours, theirs = tcp_pair()
    theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" if side == "client" else b"SSH-2.0-OpenSSH_9.9\r\n")
    server = server_context(str(good.cert), str(good.key))

    def shake() -> None:
        if side == "client":
            connect_tls(ours, client_context(verify=False), "localhost")
        else:
            accept_tls(ours, server)

    with pytest.raises(ProtocolError, match=r"^TLS handshake: the peer does not speak TLS$"):
        shake()


def test_a_peer_that_closes_in_the_handshake_is_called_so() -> None:
    ours, theirs = tcp_pair()
    theirs.shutdown(1)
    with pytest.raises(ProtocolError, match="closed the connection during the handshake"):
        connect_tls(ours, client_context(verify=False), "localhost")


# -- files


@pytest.fixture
def rubbish(tmp_path: Path) -> str:
    """Make a file that is no certificate."""
    path = tmp_path / "rubbish.pem"
    path.write_text("-----BEGIN NONSENSE-----\n")
    return str(path)


def test_a_missing_file_is_named(good: Certificate) -> None:
    for field, files in {
        "tls_cert": ("/nowhere/cert.pem", str(good.key)),
        "tls_key": (str(good.cert), "/nowhere/key.pem"),
    }.items():
        with pytest.raises(ConfigError, match=r"^/nowhere/\w+\.pem: No such file or directory$") as raised:
            server_context(*files)
        assert raised.value.field == field
    with pytest.raises(ConfigError, match=r"/nowhere/ca\.pem: No such file") as raised:
        client_context("/nowhere/ca.pem")
    assert raised.value.field == "tls_ca"


def test_a_certificate_and_its_key_that_are_swapped_are_called_so(good: Certificate) -> None:
    cert, key = str(good.cert), str(good.key)
    for build in (server_context, lambda *files: client_context("", *files)):
        with pytest.raises(ConfigError, match=r"\.key and .*\.pem: the two are swapped$") as raised:
            build(key, cert)
        assert raised.value.field == "tls_cert"


def test_a_file_that_is_no_certificate_is_named(good: Certificate, rubbish: str) -> None:
    for files in ((rubbish, str(good.key)), (str(good.cert), rubbish)):
        with pytest.raises(ConfigError, match=f"{rubbish}.*: not a PEM certificate chain with its key"):
            server_context(*files)
    with pytest.raises(ConfigError, match=rubbish):
        client_context(rubbish)


def test_a_key_that_belongs_to_another_certificate_is_told(authority: Authority, good: Certificate) -> None:
    other = authority.issue("other", "localhost")
    with pytest.raises(ConfigError, match="the key does not belong to the certificate"):
        server_context(str(good.cert), str(other.key))


def test_an_encrypted_key_is_refused_without_asking_for_its_passphrase(
    good: Certificate, tmp_path: Path
) -> None:
    """OpenSSL would ask on the terminal, and a service would hang."""
    encrypted = tmp_path / "encrypted.key"
    command = [
        "openssl",
        "pkey",
        "-in",
        str(good.key),
        "-out",
        str(encrypted),
        "-aes256",
        "-passout",
        "pass:x",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with pytest.raises(ConfigError, match="encrypted") as raised:
        server_context(str(good.cert), str(encrypted))
    assert raised.value.field == "tls_key"


def openssl(folder: Path, command: str) -> None:
    done = subprocess.run(
        ["openssl", *command.split()], cwd=folder, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("made_by", "words"),
    [
        (["req -x509 -newkey rsa:1024 -nodes -subj /CN=localhost -keyout key -out cert"], "ee key too small"),
        (
            [
                "req -x509 -newkey rsa:2048 -nodes -subj /CN=root -keyout ca.key -out ca",
                "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key -out csr",
                "x509 -req -sha1 -in csr -CA ca -CAkey ca.key -CAcreateserial -out cert",
            ],
            "ca md too weak",
        ),
    ],
    ids=["key", "digest"],
)
def test_a_key_or_a_digest_that_is_too_weak_is_called_so(
    tmp_path: Path, made_by: list[str], words: str
) -> None:
    """Case 311: as OpenSSL says it; and not that it is no certificate, which it is."""
    for command in made_by:
        openssl(tmp_path, command)
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        probe.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    except ssl.SSLError:
        pass
    else:
        pytest.skip("OpenSSL takes it, as it is set up here")
    with pytest.raises(ConfigError, match=f"refused by OpenSSL: {words}: issue it anew"):
        server_context(str(tmp_path / "cert"), str(tmp_path / "key"))


def test_a_peer_that_renegotiates_and_then_says_nothing_does_not_keep_us_from_sending(
    authority: Authority, good: Certificate
) -> None:
    """A stream would be blocked though its socket is writable, and a relay would turn in circles."""
    port = free_port()
    files = ["-cert", str(good.cert), "-key", str(good.key)]
    command = ["openssl", "s_server", "-accept", str(port), "-tls1_2", *files]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            wait_until(lambda: port in listening_ports(server.pid), "the server to listen")
            sock = socket.create_connection(("127.0.0.1", port))
            stream = TlsStream(connect_tls(sock, client_context(str(authority.root.cert)), "localhost"))
            assert server.stdin
            server.stdin.write(b"r\n")  # renegotiate
            server.stdin.flush()
            wait(stream.reader)
            server.send_signal(signal.SIGSTOP)
            buffer = Buffer()
            assert stream.recv_into(buffer, bulk=False) is None  # the HelloRequest
            stream.send(buffer, 1)
            assert not stream.blocked
            stream.begin_close(Ending.CUT)
        finally:
            server.kill()
