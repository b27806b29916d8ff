"""
Programs that other people wrote, set up to stand before or behind ours.

Where one is not installed its tests are skipped with a line that says so; with REQUIRE_PEERS=1 in the
environment, as in continuous integration, they fail.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType

import pytest

from tests.integration.programs import Program, clean_environment
from tests.wire.sockets import Credentials, Door, free_port


def require(condition: object, what: str) -> None:
    """Skip the test that lacks something; fail it where everything has to be there."""
    if condition:
        return
    if os.environ.get("REQUIRE_PEERS") == "1":
        pytest.fail(f"{what}, and REQUIRE_PEERS=1")
    pytest.skip(what)


def find(program: str, package: str = "") -> str:
    """Find an installed program."""
    path = shutil.which(program, path=clean_environment("/")["PATH"])
    require(path, f"{program} is not installed (Debian package {package or program})")
    return str(path)


@contextlib.contextmanager
def microsocks(credentials: Credentials | None = None) -> Iterator[Door]:
    """Run microsocks: a SOCKS5 server."""
    port = free_port()
    command = [find("microsocks"), "-i", "127.0.0.1", "-p", str(port)]
    if credentials:
        command += ["-u", credentials[0], "-P", credentials[1]]
    with Program(command) as program:
        program.wait_listening(port)
        yield "127.0.0.1", port


DANTE = """
logoutput: stderr
internal: 127.0.0.1 port = {port}
external: lo
clientmethod: none
socksmethod: {method}
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: ::/0 }}
"""


@contextlib.contextmanager
def dante(credentials: Credentials | None = None) -> Iterator[Door]:
    """Run Dante: a SOCKS5 server, which knows the users of the system."""
    danted = find("danted", "dante-server")
    port = free_port()
    program = Program(())
    config = program.directory / "danted.conf"
    config.write_text(DANTE.format(port=port, method="username" if credentials else "none"))
    program.command = [danted, "-f", str(config), "-p", str(program.directory / "danted.pid")]
    with program:
        program.wait_listening(port)
        yield "127.0.0.1", port


@contextlib.contextmanager
def system_user() -> Iterator[Credentials]:
    """Make a user of this system who can log in nowhere but at a daemon that asks for the password."""
    require(os.geteuid() == 0, "making a system user needs root")
    name, password = f"pxt{os.getpid()}", uuid.uuid4().hex
    make = [find("useradd", "passwd"), "--no-create-home", "--shell", "/usr/sbin/nologin", name]
    done = subprocess.run(make, capture_output=True, text=True, timeout=60)
    require(done.returncode == 0, f"cannot make a system user: {done.stderr.strip()}")
    try:
        line = f"{name}:{password}\n"
        subprocess.run([find("chpasswd", "passwd")], input=line, text=True, check=True, timeout=60)
        yield name, password
    finally:
        subprocess.run([find("userdel", "passwd"), name], capture_output=True, timeout=60)


NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
{modules}
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {servers}
}}
{stream}
"""

NGINX_SERVER = """
    server {{
        listen 127.0.0.1:{port}{tls};
        location / {{
            proxy_pass http://{backend};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_read_timeout {patience};
            proxy_send_timeout {patience};
            send_timeout {patience};
        }}
    }}
"""


@contextlib.contextmanager
def nginx_with(port: int, servers: str = "", *, stream: str = "", modules: str = "") -> Iterator[Door]:
    """Run nginx with server blocks that listen on a port, or with a stream block and the modules for it."""
    binary = find("nginx", "nginx-light")
    program = Program(())
    config = program.directory / "nginx.conf"
    config.write_text(
        NGINX.format(directory=program.directory, servers=servers, stream=stream, modules=modules)
    )
    # Workers of a root nginx become another user: their temporary files lie in our directory.
    program.directory.chmod(0o755)
    program.command = [binary, "-c", str(config), "-e", "stderr", "-p", str(program.directory)]
    with program:
        program.wait_listening(port)
        yield "127.0.0.1", port


@contextlib.contextmanager
def nginx(
    backend: Door, certificate: tuple[Path, Path] | None = None, *, patience: str = "60s"
) -> Iterator[Door]:
    """
    Run nginx before a WebSocket server, with the settings its own documentation gives for one.

    The patience, 60 seconds if nothing is set, is for silence in each direction.
    """
    port = free_port()
    tls = ""
    if certificate:
        tls = (
            f" ssl;\n        ssl_certificate {certificate[0]};\n        ssl_certificate_key {certificate[1]}"
        )
    server = NGINX_SERVER.format(port=port, backend=f"{backend[0]}:{backend[1]}", tls=tls, patience=patience)
    with nginx_with(port, server) as front:
        yield front


HAPROXY = """
defaults
    mode {mode}
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout tunnel 60s
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    server one {backend} {options}
"""


@contextlib.contextmanager
def haproxy_with(port: int, text: str) -> Iterator[Door]:
    """Run HAProxy with a configuration that listens on a port."""
    program = Program(())
    config = program.directory / "haproxy.cfg"
    config.write_text(text)
    program.command = [find("haproxy"), "-db", "-f", str(config)]
    with program:
        program.wait_listening(port)
        yield "127.0.0.1", port


@contextlib.contextmanager
def haproxy(backend: Door, mode: str = "http", options: str = "") -> Iterator[Door]:
    """Run HAProxy before a server, a WebSocket server unless the mode is tcp."""
    port = free_port()
    text = HAPROXY.format(port=port, mode=mode, backend=":".join(map(str, backend)), options=options)
    with haproxy_with(port, text) as front:
        yield front


@contextlib.contextmanager
def caddy_with(port: int, sites: str) -> Iterator[Door]:
    """Run Caddy with sites that listen on a port, and without all that it does of its own accord."""
    program = Program(())
    config = program.directory / "Caddyfile"
    config.write_text(f"{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{sites}")
    program.command = [find("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    with program:
        program.wait_listening(port)
        yield "127.0.0.1", port


APACHE = """
ServerRoot /usr/lib/apache2
PidFile {directory}/apache.pid
DefaultRuntimeDir {directory}
ErrorLog /dev/stderr
Mutex pthread
ServerName localhost
User www-data
Group www-data
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule ssl_module modules/mod_ssl.so
LoadModule proxy_module modules/mod_proxy.so
LoadModule proxy_http_module modules/mod_proxy_http.so
Listen 127.0.0.1:{port}
{hosts}
"""


@contextlib.contextmanager
def apache_with(port: int, hosts: str) -> Iterator[Door]:
    """Run Apache httpd with virtual hosts that listen on a port."""
    program = Program(())
    config = program.directory / "apache.conf"
    config.write_text(APACHE.format(directory=program.directory, port=port, hosts=hosts))
    program.command = [find("apache2", "apache2-bin"), "-D", "FOREGROUND", "-f", str(config)]
    with program:
        program.wait_listening(port)
        yield "127.0.0.1", port


TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 60
LogLevel Warning
{more}
"""


@contextlib.contextmanager
def tinyproxy(more: str = "") -> Iterator[Door]:
    """Run tinyproxy: an HTTP proxy, with further lines of configuration."""
    port = free_port()
    program = Program(())
    config = program.directory / "tinyproxy.conf"
    config.write_text(TINYPROXY.format(port=port, more=more))
    program.command = [find("tinyproxy", "tinyproxy-bin"), "-d", "-c", str(config)]
    with program:
        program.wait_listening(port)
        yield "127.0.0.1", port


SQUID = """
visible_hostname localhost
pid_filename none
shutdown_lifetime 0 seconds
coredump_dir {directory}
access_log none
cache_log /dev/stderr
cache_store_log none
cache_mem 0 MB
cache deny all
pinger_enable off
netdb_filename none
max_filedescriptors 1024
# Squid 7 tries one address of a name, and a machine's own file may have ::1 for this one.
hosts_file {directory}/hosts
{text}
"""


@contextlib.contextmanager
def squid_with(ports: Sequence[int], text: str, files: Mapping[str, str]) -> Iterator[None]:
    """Run Squid with settings that have it listen on ports, and with files beside them."""
    binary = find("squid")
    program = Program(())
    # It becomes another user where root starts it, and reads some of the files as that.
    program.directory.chmod(0o755)
    for name, content in {**files, "hosts": "127.0.0.1 localhost\n"}.items():
        (program.directory / name).write_text(content)
    config = program.directory / "squid.conf"
    config.write_text(SQUID.format(directory=program.directory, text=text))
    program.command = [binary, "-N", "-f", str(config)]
    with program:
        program.wait_listening(*ports)
        yield


class Sshd:
    """An SSH server that knows one key, and the client options that lead to it and to nowhere else."""

    def __init__(self, program: Program, door: Door, user: str) -> None:
        self.program = program
        self.host, self.port = door
        self.user = user

    def client(self, proxy_command: str, *remote: str) -> list[str]:
        """Write the command that runs something on the server, through a proxy command."""
        return [*self.command(ProxyCommand=proxy_command), *remote]

    def command(self, **more: str) -> list[str]:
        """Write the command that connects to the server."""
        options = {
            **more,
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "ConnectTimeout": "60",
            "LogLevel": "ERROR",
        }
        written = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        key = str(self.program.directory / "user_key")
        where = ["-p", str(self.port), f"{self.user}@{self.host}"]
        return [find("ssh", "openssh-client"), "-F", "none", "-i", key, *written, *where]


def user_name() -> str:
    """Name the user who runs the tests."""
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


SSHD = """
ListenAddress {address}
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""


@contextlib.contextmanager
def sshd(
    address: str = "127.0.0.1", prefix: Sequence[str] = (), *, runs_commands: bool = True
) -> Iterator[Sshd]:
    """
    Run an SSH server on a port and with keys of its own.

    One that has to run no commands, but only to carry connections, has no rights of root.
    """
    binary = find("sshd", "openssh-server")
    require(os.geteuid() == 0, "sshd needs root")
    keygen = find("ssh-keygen", "openssh-client")
    port = free_port()
    program = Program(())
    for name in ("host_key", "user_key"):
        path = str(program.directory / name)
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, timeout=60)
    config = program.directory / "sshd_config"
    config.write_text(SSHD.format(address=address, port=port, directory=program.directory))
    user, become = user_name(), list[str]()
    if runs_commands:
        Path("/run/sshd").mkdir(
            mode=0o755, exist_ok=True
        )  # its init script makes it, which runs nowhere here
    else:
        # Who serves a connection leads a session of its own, and would wait for ever for a client that is
        # gone together with the wire.
        config.write_text(config.read_text() + "ClientAliveInterval 5\n")
        user = "daemon"  # not nobody, whose account systemd shows as locked to all but root
        # To become somebody else undoes the wish to be ended with us, so it is made again.
        identity = ["--reuid", user, "--regid", user, "--clear-groups", "--pdeathsig", "KILL"]
        become = [find("setpriv", "util-linux"), *identity, "--"]
        program.directory.chmod(0o755)
        shutil.chown(program.directory / "host_key", user)
    program.command = [*prefix, *become, binary, "-D", "-e", "-f", str(config)]
    with program:
        program.wait_listening(port)
        yield Sshd(program, (address, port), user)


V2RAY = """
{{
  "log": {{"loglevel": "warning"}},
  "inbounds": [{{
    "listen": "127.0.0.1", "port": {port}, "protocol": "socks",
    "settings": {{"auth": "noauth", "udp": false}}
  }}],
  "outbounds": [{outbound}]
}}
"""

V2RAY_FREEDOM = '{"protocol": "freedom"}'
V2RAY_SOCKS = '{{"protocol": "socks", "settings": {{"servers": [{{"address": "{0}", "port": {1}{2}}}]}}}}'


@contextlib.contextmanager
def v2ray(through: Door | None = None, credentials: Credentials | None = None) -> Iterator[Door]:
    """Run v2ray as a SOCKS5 server that goes out directly, or through another SOCKS5 server."""
    binary = find("v2ray")
    port = free_port()
    program = Program(())
    users = ""
    if credentials:
        users = ', "users": [{{"user": "{}", "pass": "{}"}}]'.format(*credentials)
    outbound = V2RAY_SOCKS.format(*through, users) if through else V2RAY_FREEDOM
    config = program.directory / "v2ray.json"
    config.write_text(V2RAY.format(port=port, outbound=outbound))
    program.command = [binary, "-config", str(config)]
    with program:
        program.wait_listening(port)
        yield "127.0.0.1", port


class StubDns:
    """
    A DNS server on UDP that knows what a test tells it.

    ``names`` maps a name to its addresses, or to NXDOMAIN, SERVFAIL, REFUSED, SILENCE or TRUNCATED, which
    asks for TCP in vain; a name that is not there does not exist. ``"name AAAA"`` has an answer of its
    own for one kind of question. It listens from its making on, so that it can be made inside a namespace.
    """

    NXDOMAIN = "nxdomain"
    SERVFAIL = "servfail"
    REFUSED = "refused"
    SILENCE = "silence"
    TRUNCATED = "truncated"

    def __init__(self, names: Mapping[str, Sequence[str] | str], door: Door = ("127.0.0.1", 53)) -> None:
        self.names = names
        self.asked: list[str] = []
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(door)
        self._sock.settimeout(0.2)
        self._stopping = threading.Event()

    def __enter__(self) -> "StubDns":
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(30)
        self._sock.close()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                query, client = self._sock.recvfrom(4096)
            except TimeoutError:
                continue
            response = self._answer(query)
            if response:
                self._sock.sendto(response, client)

    def _answer(self, query: bytes) -> bytes:
        name, end = _read_name(query, 12)
        question = query[12 : end + 4]
        kind = int.from_bytes(query[end : end + 2], "big")
        self.asked.append(name)
        known = self.names.get(f"{name} {_KINDS.get(kind)}", self.names.get(name, self.NXDOMAIN))
        if known == self.SILENCE:
            return b""
        # RFC 1035, section 4.1.1: a response (0x8180), its RCODE in the last four bits, and TC (0x0200).
        codes = {self.NXDOMAIN: 3, self.SERVFAIL: 2, self.REFUSED: 5, self.TRUNCATED: 0x0200}
        code = codes.get(str(known), 0)
        records = [] if code else [_record(address) for address in known if _kind(address) == kind]
        counts = b"\x00\x01" + len(records).to_bytes(2, "big") + b"\x00\x00\x00\x00"
        return query[:2] + (0x8180 | code).to_bytes(2, "big") + counts + question + b"".join(records)


_KINDS = {1: "A", 28: "AAAA"}


def _read_name(message: bytes, position: int) -> tuple[str, int]:
    labels = []
    while length := message[position]:
        labels.append(message[position + 1 : position + 1 + length].decode())
        position += 1 + length
    return ".".join(labels).lower(), position + 1


def _kind(address: str) -> int:
    return 1 if ip_address(address).version == 4 else 28  # A, and AAAA of RFC 3596


def _record(address: str) -> bytes:
    packed = ip_address(address).packed
    # The name is a pointer to the question's; class IN; it may be kept for no second.
    kind = _kind(address).to_bytes(2, "big")
    return b"\xc0\x0c" + kind + b"\x00\x01\x00\x00\x00\x00" + len(packed).to_bytes(2, "big") + packed
