"""
TLS contexts, built once per configuration: reading the system's certificates takes 70 ms.
"""

import _ssl
import os
import ssl
from time import gmtime, monotonic, strftime
from typing import Any, TypeVar

from proxy.errors import ConfigError, is_shortage
from proxy.net.limits import from_reserve, untold_shortage
from proxy.tls import tickets

# Of OpenSSL's X509_V_ERR_...: unable to get an issuer (2, 20, 21), self-signed (18, 19).
_NOT_TRUSTED = (2, 18, 19, 20, 21)
_NOT_NOW = (9, 10)  # not yet valid, expired
_AUTHORITIES = "the authorities to trust are those in {}, or the system's where that is not set"
_CERTIFICATE, _PRIVATE_KEY = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"  # in PEM (RFC 7468)
_Context = TypeVar("_Context", bound=ssl.SSLContext)
_MOST = 1 << 20  # bytes that are looked at of a file in which something is wrong
_SESSION = 3600.0  # seconds for which a session is resumed, before the certificate is looked at again


class ClientContext(ssl.SSLContext):
    """
    The context of a client, with the last session that each server gave to it.

    Who resumes a session looks at no certificate. So it never leaves the context under whose settings the
    certificate was looked at, nor the name for which that was.
    """

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.authorities = ""  # what the user of this program names them by
        self.trusts_system = False
        self._sessions: dict[str, tuple[ssl.SSLSession, float]] = {}

    def advice(self) -> str:
        """Say what decides on whom is trusted."""
        lack = lack_of_authorities(self.authorities) if self.trusts_system else ""
        return lack or _AUTHORITIES.format(self.authorities)

    def session_with(self, host: str) -> ssl.SSLSession | None:
        """Give a session to be resumed, if there is one; a server that refuses it goes on without."""
        session, since = self._sessions.get(host, (None, 0.0))
        return session if monotonic() - since < _SESSION else None

    def keep_session(self, host: str, session: ssl.SSLSession) -> None:
        """Keep a new session, which any number of connections may resume."""
        self._sessions[host] = session, monotonic()

    def forget_session(self, host: str) -> None:
        """Keep none."""
        self._sessions.pop(host, None)


def server_context(cert: str, key: str) -> ssl.SSLContext:
    """Build the context of a listener; raises ``ConfigError`` that names the file at fault."""
    context = _secured(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.num_tickets = 1  # for each connection, which is enough for a client that keeps one
    _load_certificate(context, cert, key)
    tickets.set_keys(context, f"{cert}\0{key}")  # clients show no certificates, so there is nothing else
    return context


def _load_certificate(context: ssl.SSLContext, cert: str, key: str) -> None:
    for field, path in (("tls_cert", cert), ("tls_key", key)):
        check_readable(field, path)
    try:
        from_reserve(lambda: context.load_cert_chain(cert, key, password=_no_password))
    except ssl.SSLError as exc:
        why = "the two are swapped" if _are_swapped(cert, key) else _explain(exc)
        raise ConfigError("tls_cert", f"{cert} and {key}: {why}") from exc


def _are_swapped(cert: str, key: str) -> bool:
    try:
        contents = []
        for path in (cert, key):
            with open(path, "rb") as file:
                contents.append(file.read(_MOST))
    except OSError:
        return False
    has_cert, has_key = ([word in text for text in contents] for word in (_CERTIFICATE, _PRIVATE_KEY))
    return has_cert == [False, True] and has_key == [True, False]


def validity_of(cert: str) -> tuple[float, float] | None:
    """
    Tell from when until when the first certificate of a PEM file is valid, as Unix times.

    Nothing public reads a certificate that no peer has shown. So this is None where Python has no such
    function inside, as for a file that cannot be read.
    """
    try:
        says: dict[str, str] = getattr(_ssl, "_test_decode_cert", lambda _: {})(cert)
        return ssl.cert_time_to_seconds(says["notBefore"]), ssl.cert_time_to_seconds(says["notAfter"])
    except (OSError, KeyError, ValueError):
        return None


def client_context(
    ca: str = "", cert: str = "", key: str = "", *, verify: bool = True, authorities: str = "tls_ca"
) -> ClientContext:
    """
    Build the context of a client; ``ca`` is a PEM file that replaces the system's authorities.

    ``cert`` and ``key`` say who we are, to a server that asks. What the user of this program names ``ca`` by
    is in advice. Raises ``ConfigError``.
    """
    context = _secured(ClientContext(ssl.PROTOCOL_TLS_CLIENT))
    context.authorities = authorities
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca:
        check_readable("tls_ca", ca)
        try:
            from_reserve(lambda: context.load_verify_locations(ca))
        except ssl.SSLError as exc:
            raise ConfigError("tls_ca", f"{ca}: no PEM certificate in it") from exc
    else:
        context.load_default_certs()
        context.trusts_system = True
    if cert:
        _load_certificate(context, cert, key)
    return context


def lack_of_authorities(named_by: str = "tls_ca") -> str:
    """
    Say what is missing, and the cure, where the system has no authorities to trust, like many containers.

    OpenSSL says nothing of it when a context is made, and later the same as of an authority that is unknown.
    """
    paths = ssl.get_default_verify_paths()
    for variable in (paths.openssl_cafile_env, paths.openssl_capath_env):
        named = os.environ.get(variable)
        if named and not any(map(os.path.exists, named.split(os.pathsep))):
            return f"{variable} names {named}, which does not exist"
    file = os.environ.get(paths.openssl_cafile_env) or paths.openssl_cafile
    folders = os.environ.get(paths.openssl_capath_env) or paths.openssl_capath
    if _has_bytes(file) or any(map(_has_files, folders.split(os.pathsep))):
        return ""
    cure = f"install the package ca-certificates, or name a file in {named_by}"
    return f"the system has no authorities to trust, neither in {file} nor in {folders}: {cure}"


def _has_bytes(file: str) -> bool:
    try:
        return os.path.getsize(file) > 0
    except OSError:
        return False


def _has_files(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_file() for entry in entries)
    except OSError:
        return False


def _secured(context: _Context) -> _Context:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # In a renegotiation, which TLS 1.3 has no more, sending has to wait for something to read. A relay waits
    # for room to write then, and there is room: it would turn in circles for as long as the peer likes.
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


# What OpenSSL calls it.
_NO_TLS = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST")


def describe(exc: ssl.SSLError, context: ClientContext | None = None) -> str:
    """Say why a TLS handshake failed, in one line; and what a client may have to change."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        advice = ""
        if exc.verify_code in _NOT_TRUSTED and context:
            advice = f"; {context.advice()}"
        elif exc.verify_code in _NOT_NOW:
            # A box without a battery begins in 1970, or where it was when it was switched off. The day
            # does: a line that is always new would not be collapsed.
            advice = strftime("; the clock of this machine says it is %Y-%m-%d (UTC)", gmtime())
        return f"certificate refused: {exc.verify_message.rstrip('.')}{advice}"
    if exc.reason in _NO_TLS:
        return "the peer does not speak TLS"
    # Without notice and with; Debian's Python 3.11 takes the one for the other.
    if isinstance(exc, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return "the peer closed the connection during the handshake"
    return (exc.reason or "handshake failed").lower().replace("_", " ")


def _no_password() -> str:
    raise ConfigError("tls_key", "the key is encrypted: store it without a passphrase")


def check_readable(field: str, path: str) -> None:
    """Raise ``ConfigError`` for a file that cannot be opened."""
    try:
        with from_reserve(lambda: open(path, "rb")):
            pass
    except OSError as exc:
        if is_shortage(exc):
            raise untold_shortage(f"{path} cannot be read now", exc) from exc
        raise ConfigError(field, f"{path}: {exc.strerror}") from exc


def _explain(exc: ssl.SSLError) -> str:
    if exc.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if exc.library == "PEM" or exc.reason in (None, "PEM_LIB"):
        return "not a PEM certificate chain with its key"
    words = exc.reason.lower().replace("_", " ")
    is_weak = words.endswith(("too small", "too weak"))
    cure = ": issue it anew, with RSA of 2048 bits or an elliptic curve, and SHA-256" if is_weak else ""
    return f"refused by OpenSSL: {words}{cure}"
