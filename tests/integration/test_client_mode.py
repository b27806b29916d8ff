"""
``-mode client``: stdin and stdout joined to a target, as ssh uses it, and the command line as printed.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection, serve

from tests.integration import peers
from tests.integration.certificates import Authority
from tests.integration.netns import Namespace
from tests.integration.programs import (
    COMMAND,
    Program,
    Proxy,
    clean_environment,
    mixed_door,
    run_proxy,
    socks_door,
    web_door,
)
from tests.wire import clients, targets
from tests.wire.processes import catches
from tests.wire.sockets import connect, free_port, read_exact
from tests.wire.targets import Target
from tests.wire.waits import wait_until

PAYLOAD = os.urandom(4 << 20)
PROTOCOLS = {"socks5": "tcp", "websocket": "ws"}
PASSWORD = "wonder%land# 'of' alice"


@pytest.fixture(scope="module")
def node() -> Iterator[Proxy]:
    """Run a node that anybody may use."""
    with Proxy({"listeners": {"socks5": socks_door(), "websocket": web_door()}}) as node:
        yield node


@pytest.fixture(scope="module")
def guarded() -> Iterator[Proxy]:
    """Run a node that only alice may use."""
    doors = {"socks5": socks_door(), "websocket": web_door()}
    with Proxy({"listeners": doors, "auth_users": {"alice": PASSWORD}}) as node:
        yield node


def client_arguments(node: Proxy, protocol: str, *more: str, slash: str = "/") -> list[str]:
    """Write the options that lead through a node's door."""
    url = f"{PROTOCOLS[protocol]}://localhost:{node.door(protocol)[1]}{slash}"
    return ["-mode", "client", "-protocol", protocol, "-addr", url, *more]


def to_target(port: int, host: str = "localhost") -> list[str]:
    """Write the options that name a target."""
    return ["-host", host, "-port", str(port)]


def reason(done: "subprocess.CompletedProcess[bytes]") -> str:
    """Give the one line that a failed run has to say."""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestPipe:
    """Standard input and output are the two ends of the stream."""

    def test_the_end_of_stdin_is_passed_on_and_the_answer_awaited(self, node: Proxy, protocol: str) -> None:
        """CASES 126."""
        with Target(targets.answer_after_end(PAYLOAD)) as target:
            done = run_proxy(*client_arguments(node, protocol), *to_target(target.port), stdin=b"question")
            assert target.result() == b"question"
        assert done.stdout == PAYLOAD
        assert (done.returncode, done.stderr) == (0, b"")

    def test_megabytes_go_both_ways(self, node: Proxy, protocol: str) -> None:
        with Target(targets.echo) as target:
            done = run_proxy(*client_arguments(node, protocol), *to_target(target.port), stdin=PAYLOAD)
        assert done.stdout == PAYLOAD
        assert done.returncode == 0

    def test_an_empty_stdin_is_no_reason_to_leave(self, node: Proxy, protocol: str) -> None:
        with Target(targets.banner(b"220 ready\r\n")) as target:
            done = run_proxy(*client_arguments(node, protocol), *to_target(target.port))
        assert (done.returncode, done.stdout) == (0, b"220 ready\r\n")

    def test_stdin_and_stdout_may_be_files(self, node: Proxy, protocol: str, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(PAYLOAD)
        with Target(targets.echo) as target, (tmp_path / "in").open("rb") as stdin:
            done = run_proxy(*client_arguments(node, protocol), *to_target(target.port), stdin=stdin)
        assert done.stdout == PAYLOAD
        assert done.returncode == 0

    def test_output_that_cannot_be_written_is_no_success(
        self, node: Proxy, protocol: str, tmp_path: Path
    ) -> None:
        """Also where all of a short answer was on its way before the disk was found to be full."""
        if not os.path.exists("/dev/full"):
            pytest.skip("no /dev/full here")
        with Target(targets.banner(b"hello")) as target, open("/dev/full", "wb") as full:
            command = [*COMMAND, *client_arguments(node, protocol), *to_target(target.port)]
            done = subprocess.run(
                command,
                input=b"",
                stdout=full,
                stderr=subprocess.PIPE,
                env=clean_environment(tmp_path),
                timeout=60,
            )
        assert reason(done) == "proxy-server: standard output: No space left on device"
        assert done.returncode == 1

    def test_a_reader_that_has_had_enough_is_told_by_the_exit_code_alone(
        self, node: Proxy, protocol: str, tmp_path: Path
    ) -> None:
        with Target(targets.banner(b"hello")) as target:
            nobody, stdout = os.pipe()
            os.close(nobody)
            command = [*COMMAND, *client_arguments(node, protocol), *to_target(target.port)]
            done = subprocess.run(
                command,
                input=b"",
                stdout=stdout,
                stderr=subprocess.PIPE,
                env=clean_environment(tmp_path),
                timeout=60,
            )
            os.close(stdout)
        assert (done.returncode, done.stderr) == (1, b"")

    def test_input_that_cannot_be_read_to_its_end_is_no_end(
        self, node: Proxy, protocol: str, tmp_path: Path
    ) -> None:
        """The target would take the half of a file for all of it."""
        unreadable = tmp_path / "in"
        with Target(targets.sink) as target, unreadable.open("wb") as stdin:
            done = run_proxy(*client_arguments(node, protocol), *to_target(target.port), stdin=stdin)
            with pytest.raises(ConnectionResetError):
                target.result()
        assert reason(done) == "proxy-server: standard input: Bad file descriptor"
        assert done.returncode == 1

    def test_long_options_may_have_two_dashes(self, node: Proxy, protocol: str) -> None:
        with Target(targets.banner(b"hello")) as target:
            arguments = [*client_arguments(node, protocol), *to_target(target.port, "127.0.0.1")]
            doubled = [f"-{word}" if word.startswith("-") else word for word in arguments]
            done = run_proxy(*doubled)
        assert (done.returncode, done.stdout) == (0, b"hello")

    def test_an_address_needs_no_slash_and_no_scheme(self, node: Proxy, protocol: str) -> None:
        with Target(targets.banner(b"hello")) as target:
            done = run_proxy(*client_arguments(node, protocol, slash=""), *to_target(target.port, "::1"))
            assert (done.returncode, done.stdout) == (0, b"hello")
            bare = f"localhost:{node.door(protocol)[1]}"
            done = run_proxy(
                "-mode", "client", "-protocol", protocol, "-addr", bare, *to_target(target.port, "::1")
            )
            assert (done.returncode, done.stdout) == (0, b"hello")

    def test_a_reader_that_leaves_ends_it_quietly(self, node: Proxy, protocol: str, tmp_path: Path) -> None:
        with Target(targets.source(PAYLOAD)) as target:
            command = [*COMMAND, *client_arguments(node, protocol), *to_target(target.port)]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=clean_environment(tmp_path),
            )
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.read(10) == PAYLOAD[:10]
            process.stdout.close()
            process.wait(30)
            assert b"Traceback" not in process.stderr.read()


class Running:
    """A client whose input stays open, and that has a tunnel."""

    def __init__(self, arguments: list[str], home: Path, *prefix: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(home),
        )

    def __enter__(self) -> "subprocess.Popen[bytes]":
        return self.process

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestSignals:
    """CASES 332: ssh ends its ProxyCommand by one."""

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT], ids=str)
    def test_the_far_end_sees_an_ordinary_end(
        self, node: Proxy, protocol: str, number: int, tmp_path: Path
    ) -> None:
        with (
            Target(targets.echo) as target,
            Running([*client_arguments(node, protocol), *to_target(target.port)], tmp_path) as client,
        ):
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"hello")
            client.stdin.flush()
            assert client.stdout.read(5) == b"hello"
            client.send_signal(number)
            _, said = client.communicate(timeout=60)
            assert (client.returncode, said) == (128 + number, b"")
            assert node.wait_for_log(f"target=localhost:{target.port} ").endswith("end=finished")

    def test_nobody_has_to_take_what_is_left(self, node: Proxy, protocol: str, tmp_path: Path) -> None:
        with (
            Target(targets.source(PAYLOAD)) as target,
            Running([*client_arguments(node, protocol), *to_target(target.port)], tmp_path) as client,
        ):
            assert client.stdout is not None
            assert client.stdout.read(1) == PAYLOAD[:1]  # and no more
            client.send_signal(signal.SIGTERM)
            assert client.wait(30) == 128 + signal.SIGTERM

    def test_a_signal_that_was_ignored_stays_so(self, node: Proxy, protocol: str, tmp_path: Path) -> None:
        """As ``nohup`` wants it."""
        ignoring = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]
        with (
            Target(targets.echo) as target,
            Running(
                [*client_arguments(node, protocol), *to_target(target.port)], tmp_path, *ignoring
            ) as client,
        ):
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"hello")
            client.stdin.flush()
            assert client.stdout.read(5) == b"hello"
            client.send_signal(signal.SIGHUP)
            assert client.communicate(b"world", timeout=60) == (b"world", b"")
            assert client.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_client_that_still_dials_ends_at_once_and_without_a_word(number: int, tmp_path: Path) -> None:
    """CASES 332."""
    with targets.blackhole() as port:
        address = ["-mode", "client", "-protocol", "socks5", "-addr", f"127.0.0.1:{port}"]
        with Running([*address, *to_target(80)], tmp_path) as client:
            # Our own handlers: Python has one for SIGINT alone.
            wait_until(lambda: catches(client.pid, signal.SIGTERM), "the handlers")
            client.send_signal(number)
            _, said = client.communicate(timeout=60)
            assert (client.returncode, said) == (128 + number, b"")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_descriptors_that_are_not_ready_are_waited_for(node: Proxy, protocol: str, tmp_path: Path) -> None:
    """What ssh, a shell or a terminal gives may be non-blocking: "not now" is no end."""
    (far_in, stdin), (stdout, far_out) = os.pipe(), os.pipe()
    for fd in (far_in, far_out):
        os.set_blocking(fd, False)
    with Target(targets.echo) as target:
        command = [*COMMAND, *client_arguments(node, protocol), *to_target(target.port)]
        client = subprocess.Popen(command, stdin=far_in, stdout=far_out, env=clean_environment(tmp_path))
        os.close(far_in)
        os.close(far_out)
        try:
            wait_until(lambda: target.accepted, "the tunnel")
            writer = threading.Thread(target=write_and_close, args=(stdin, PAYLOAD), daemon=True)
            writer.start()
            with open(stdout, "rb") as file:
                assert file.read() == PAYLOAD
            assert client.wait(30) == 0
        finally:
            client.kill()
            client.wait(30)


def write_and_close(fd: int, data: bytes) -> None:
    with open(fd, "wb") as file:
        file.write(data)


def test_why_a_far_end_closed_is_said_in_its_words() -> None:
    """RFC 6455, section 7.1.6; with ``answer = at_once`` the Close is all that tells the cause."""
    with Proxy({"listeners": {"web": web_door(answer="at_once")}}) as node:
        url = f"ws://127.0.0.1:{node.door('web')[1]}/"
        done = run_proxy(
            "-mode", "client", "-protocol", "websocket", "-addr", url, *to_target(free_port(), "127.0.0.1")
        )
    warning, last = done.stderr.decode().splitlines()
    assert "did not confirm" in warning
    assert last.endswith(": target: the peer closed with code 1011: connection refused")
    assert done.returncode == 1


def test_a_far_end_that_is_no_tunnel_is_named(tmp_path: Path) -> None:
    """CASES 335: a server that echoes, for instance; the bytes go through all the same."""

    def echo(peer: ServerConnection) -> None:
        for message in peer:
            peer.send(message)

    with serve(echo, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        done = run_proxy(
            "-mode", "client", "-protocol", "websocket", "-addr", address, *to_target(80), stdin=b"hello"
        )
        server.shutdown()
    assert done.stdout == b"hello"
    assert f"{address} did not confirm that localhost:80 is connected" in reason(done)


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestSsh:
    """``ssh -o ProxyCommand='proxy-server -mode client …'`` against a real server."""

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[peers.Sshd]:
        """Run an SSH server."""
        with peers.sshd() as server:
            yield server

    def test_ssh_goes_through(self, server: peers.Sshd, guarded: Proxy, protocol: str) -> None:
        words = [*COMMAND, *client_arguments(guarded, protocol, "-username", "alice")]
        proxy_command = " ".join([*words, "-host", "%h", "-port", "%p"])
        environment = clean_environment(server.program.directory, PROXY_PASSWORD=PASSWORD)
        command = server.client(proxy_command, "cat")
        done = subprocess.run(command, input=PAYLOAD, capture_output=True, timeout=40, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout == PAYLOAD

    def test_ssh_shows_why_it_could_not(self, server: peers.Sshd, guarded: Proxy, protocol: str) -> None:
        words = [*COMMAND, *client_arguments(guarded, protocol, "-username", "alice")]
        proxy_command = " ".join([*words, "-host", "%h", "-port", "%p"])
        environment = clean_environment(server.program.directory, PROXY_PASSWORD="wrong")
        done = subprocess.run(
            server.client(proxy_command, "true"), capture_output=True, timeout=40, env=environment
        )
        assert done.returncode == 255  # ssh's own
        assert b"Traceback" not in done.stderr
        assert b"wrong" not in done.stderr
        assert b"refused" in done.stderr.lower() or b"credentials" in done.stderr.lower()


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestExitCodes:
    """0 ended as asked, 1 could not connect, 2 bad usage; and one line that says why."""

    def test_a_refused_target_is_1(self, node: Proxy, protocol: str) -> None:
        port = free_port()
        done = run_proxy(*client_arguments(node, protocol), *to_target(port, "127.0.0.1"))
        assert done.returncode == 1
        assert f"127.0.0.1:{port}" in reason(done)
        assert "refused" in reason(done)

    def test_a_proxy_that_is_not_there_is_1(self, protocol: str) -> None:
        port = free_port()
        url = f"{PROTOCOLS[protocol]}://127.0.0.1:{port}/"
        done = run_proxy("-mode", "client", "-protocol", protocol, "-addr", url, *to_target(80, "192.0.2.1"))
        assert done.returncode == 1
        assert f"127.0.0.1:{port}" in reason(done)
        assert "refused" in reason(done)

    @pytest.mark.parametrize(
        ("login", "environment", "said"),
        [
            (["-username", "alice"], {}, "-password: the user needs one: give it here, or in PROXY_PASSWORD"),
            (["-password", "s3cret"], {}, "-username: -password is given, so this is needed too"),
            ([], {"PROXY_PASSWORD": "s3cret"}, "-username: PROXY_PASSWORD is set, so this is needed too"),
        ],
        ids=["no password", "no user", "no user for the environment"],
    )
    def test_half_a_login_is_called_what_it_is(
        self, protocol: str, login: list[str], environment: dict[str, str], said: str
    ) -> None:
        """CASES 333."""
        address = ["-mode", "client", "-protocol", protocol, "-addr", "127.0.0.1:1"]
        done = run_proxy(*address, *to_target(80), *login, environment=environment)
        assert done.returncode == 2
        assert said in reason(done)
        assert "s3cret" not in reason(done)

    @pytest.mark.parametrize("login", [[], ["-username", "alice", "-password", "not-this-one"]])
    def test_refused_credentials_are_1(self, guarded: Proxy, protocol: str, login: list[str]) -> None:
        done = run_proxy(*client_arguments(guarded, protocol, *login), *to_target(80, "192.0.2.1"))
        assert done.returncode == 1
        assert "not-this-one" not in reason(done)

    @pytest.mark.parametrize(
        "arguments", [[], ["-host", "h"], ["-port", "80"], ["-host", "h", "-port", "0x"]]
    )
    def test_a_missing_or_wrong_target_is_2(self, node: Proxy, protocol: str, arguments: list[str]) -> None:
        done = run_proxy(*client_arguments(node, protocol), *arguments)
        assert done.returncode == 2
        assert done.stderr.strip()

    def test_an_address_of_another_scheme_is_2(self, protocol: str) -> None:
        done = run_proxy(
            "-mode", "client", "-protocol", protocol, "-addr", "http://localhost:1/", *to_target(80)
        )
        assert done.returncode == 2
        assert done.stderr.strip()

    def test_an_address_that_is_none_is_2(self, protocol: str) -> None:
        done = run_proxy("-mode", "client", "-protocol", protocol, "-addr", "localhost", *to_target(80))
        assert done.returncode == 2
        assert done.stderr.strip()

    def test_the_environment_has_the_password(self, guarded: Proxy, protocol: str) -> None:
        with Target(targets.banner(b"hello")) as target:
            done = run_proxy(
                *client_arguments(guarded, protocol, "-username", "alice"),
                *to_target(target.port),
                environment={"PROXY_PASSWORD": PASSWORD},
            )
        assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_listen_carries_each_local_connection(guarded: Proxy, protocol: str) -> None:
    """DESIGN 1.2: and the password is in no process list."""
    port = free_port()
    with Target(targets.echo) as target:
        arguments = client_arguments(guarded, protocol, "-username", "alice", "-listen", f"127.0.0.1:{port}")
        command = [*COMMAND, *arguments, *to_target(target.port)]
        with Program(command, environment={"PROXY_PASSWORD": PASSWORD}) as program:
            program.wait_listening(port)
            tunnels = [connect(("127.0.0.1", port)) for _ in range(3)]
            for number, sock in enumerate(tunnels):
                sock.sendall(bytes([number]) * 1000)
            for number, sock in enumerate(tunnels):
                assert read_exact(sock, 1000) == bytes([number]) * 1000
            assert PASSWORD.encode() not in Path(f"/proc/{program.pid}/cmdline").read_bytes()
            assert "Traceback" not in program.log
            assert PASSWORD not in program.log


def test_no_query_of_the_proxy_s_address_is_shown() -> None:
    """CASES H210: it may be a token."""
    address = f"ws://127.0.0.1:{free_port()}/t"
    done = run_proxy("-mode", "client", "-protocol", "websocket", "-addr", f"{address}?sesame", *to_target(9))
    assert (done.returncode, "sesame" in reason(done), address in reason(done)) == (1, False, True)


def test_a_command_line_server_takes_its_passwords_from_the_environment() -> None:
    """DESIGN 1.2: -mode server with users, and an upstream with credentials."""
    with ExitStack() as stack:
        ends = {"socks5": socks_door()}
        far = stack.enter_context(Proxy({"listeners": ends, "auth_users": {"bob": "builder's"}}))
        port = free_port()
        way = ["-upstream-type", "socks5", "-upstream-address", f"127.0.0.1:{far.door('socks5')[1]}"]
        users = ["-username", "alice", "-upstream-username", "bob"]
        address = ["-protocol", "websocket", "-addr", f"127.0.0.1:{port}"]
        secrets = {"PROXY_PASSWORD": PASSWORD, "PROXY_UPSTREAM_PASSWORD": "builder's"}
        near = stack.enter_context(
            Program([*COMMAND, "-mode", "server", *address, *way, *users], environment=secrets)
        )
        near.wait_listening(port)
        target = stack.enter_context(Target(targets.echo))
        tunnel = clients.websocket(("127.0.0.1", port), "localhost", target.port, ("alice", PASSWORD))
        tunnel.sendall(b"hello")
        assert read_exact(tunnel, 5) == b"hello"
        assert b"builder" not in Path(f"/proc/{near.pid}/cmdline").read_bytes()
        assert "builder" not in near.log
        assert "Traceback" not in near.log


HERE, THERE = "198.51.100.1", "198.51.100.2"
PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class TestAsPrinted:
    """The four command lines of the manual, letter by letter, where their ports and names are free."""

    @pytest.fixture(scope="class")
    @classmethod
    def space(cls) -> Iterator[Namespace]:
        """Make a namespace from which www.example.com is a web server of ours, on another machine."""
        with ExitStack() as stack:
            space, other = (stack.enter_context(Namespace()) for _ in range(2))
            space.ip("link", "add", "here0", "type", "veth", "peer", "name", "there0", "netns", other.name)
            for one, device, address in ((space, "here0", HERE), (other, "there0", THERE)):
                one.ip("addr", "add", f"{address}/24", "dev", device)
                one.ip("link", "set", device, "up")
            names = {"www.example.com": [THERE]}
            stack.enter_context(space.run(lambda: peers.StubDns(names)))
            stack.enter_context(other.run(lambda: targets.Scripted(PAGE, host=THERE, port=80)))
            yield space

    @pytest.mark.parametrize(
        ("server", "client"),
        [
            pytest.param(
                "-mode server -protocol socks5 -addr :1080",
                "-mode client -protocol socks5 -addr tcp://localhost:1080/ -host www.example.com -port 80",
                id="socks5",
            ),
            pytest.param(
                "-mode server -protocol socks5 -addr :1080 -username U -password P",
                "-mode client -protocol socks5 -addr tcp://localhost:1080/ -host www.example.com -port 80"
                " -username U -password P",
                id="socks5-users",
            ),
            pytest.param(
                "-mode server -protocol websocket -addr :1080",
                "-mode client -protocol websocket -addr ws://localhost:1080/ -host www.example.com -port 80",
                id="websocket",
            ),
        ],
    )
    def test_they_do_what_they_say(self, space: Namespace, server: str, client: str) -> None:
        with Program([*space.prefix, *COMMAND, *server.split()]) as program:
            program.wait_listening(1080)
            request = b"GET / HTTP/1.0\r\nHost: www.example.com\r\n\r\n"
            done = run_proxy(*client.split(), stdin=request, prefix=space.prefix)
            assert (done.returncode, done.stdout) == (0, PAGE), done.stderr
            # Without users, on every address of the machine.
            assert ("open proxy" in program.log.lower()) == ("-username" not in server), program.log

    def test_every_address_is_ipv4_and_ipv6(self, space: Namespace) -> None:
        command = [*COMMAND, "-mode", "server", "-protocol", "socks5", "-addr", ":1080"]
        with Program([*space.prefix, *command]) as program:
            program.wait_listening(1080)
            for host in ("127.0.0.1", "::1"):
                tunnel = space.run(lambda host=host: clients.socks5((host, 1080), THERE, 80))  # type: ignore[misc]
                tunnel.close()


@pytest.mark.parametrize("listens", [False, True], ids=["pipe", "listen"])
def test_a_certificate_that_is_not_trusted_has_the_option_named(
    authority: Authority, *, listens: bool
) -> None:
    """Nobody can set tls_ca on a command line."""
    made = authority.issue("untrusted", "localhost")
    with Proxy({"listeners": {"web": web_door(**made.settings)}}) as node:
        url = f"wss://localhost:{node.door('web')[1]}/"
        arguments = ["-mode", "client", "-protocol", "websocket", "-addr", url, *to_target(9)]
        if not listens:
            said = reason(run_proxy(*arguments))
        else:
            port = free_port()
            with Program([*COMMAND, *arguments, "-listen", f"127.0.0.1:{port}"]) as program:
                program.wait_listening(port)
                with connect(("127.0.0.1", port)):
                    said = program.wait_for_log("certificate refused")
    assert "the authorities to trust are those in -tls-ca, or the system's" in said


def test_for_the_proxy_on_the_way_the_variable_is_named_that_helps(authority: Authority) -> None:
    """-tls-ca is for the proxy behind it."""
    made = authority.issue("on the way", "localhost")
    with (
        Proxy({"listeners": {"web": web_door()}}) as node,
        Proxy(
            {"listeners": {"way": mixed_door(auth="none", **made.settings)}, "proxy": {"guard": "off"}}
        ) as way,
    ):
        url = f"https://localhost:{way.door('way')[1]}"
        arguments = ["-mode", "client", "-protocol", "websocket", "-addr", node.url("web"), *to_target(9)]
        arguments += ["-proxy", url]
        said = reason(run_proxy(*arguments))
        assert "the authorities to trust are those in SSL_CERT_FILE, or the system's" in said
        assert "-tls-ca" not in said
        environment = {"SSL_CERT_FILE": str(authority.root.cert)}
        assert "certificate" not in reason(run_proxy(*arguments, environment=environment))
