"""Several nodes: what docs/haproxy.md and docs/kubernetes.md say is run, or checked as far as that can be."""

import re
import signal
import threading
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from time import monotonic, sleep

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.integration import peers
from tests.integration.programs import REPOSITORY, Proxy, run_proxy
from tests.integration.test_reverse_proxies import with_names
from tests.wire import clients, targets
from tests.wire.sockets import free_port, read_exact
from tests.wire.targets import Target
from tests.wire.waits import wait_until

HAPROXY, KUBERNETES = REPOSITORY / "docs" / "haproxy.md", REPOSITORY / "docs" / "kubernetes.md"
CONNECTIONS = 500


def block(document: Path, language: str) -> str:
    """Give the one block of code in a language."""
    (text,) = re.findall(
        rf"^```{language}\n(.*?)^```$", document.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return str(text)


class Node:
    """A node of the document, which can be restarted."""

    def __init__(self, stack: ExitStack) -> None:
        self.port, self.control = free_port(), free_port()
        names = {
            "192.0.2.11:9180": f"127.0.0.1:{self.control}",
            "192.0.2.11:1080": f"127.0.0.1:{self.port}",
            "192.0.2.10": "127.0.0.1",
            "drain_timeout = 10m": "drain_timeout = 20s",
            "[proxy]\n": "[proxy]\nguard = off\n",  # the targets are on this machine
        }
        self.proxy = Proxy({"listeners": {"clients": {"listen_addr": f"127.0.0.1:{self.port}"}}})
        self.proxy.config_path.write_text(with_names(block(HAPROXY, "ini"), names))
        stack.enter_context(self.proxy)

    def restart(self) -> None:
        """Restart it, as the service manager does."""
        self.proxy.signal(signal.SIGTERM)
        assert self.proxy.wait(40) == 0
        Proxy.start(self.proxy)


def test_haproxy_restarts_two_nodes_one_after_the_other_and_no_client_notices(stack: ExitStack) -> None:
    echo = stack.enter_context(Target(targets.echo))
    nodes = [Node(stack), Node(stack)]
    port = free_port()
    names = {
        ":1080\n    default": f"127.0.0.1:{port}\n    default",
        "check port 9180 ": "check ",
        "192.0.2.11:1080": f"127.0.0.1:{nodes[0].port} port {nodes[0].control}",
        "maxconn 20000": "maxconn 2000",  # as CI may open no more files
        "192.0.2.12:1080": f"127.0.0.1:{nodes[1].port} port {nodes[1].control}",
    }
    front = stack.enter_context(peers.haproxy_with(port, with_names(block(HAPROXY, "haproxy"), names)))

    def come() -> clients.SocksTunnel:
        return clients.socks5(front, "127.0.0.1", echo.port, ("alice", "PASSWORD"), timeout=30)

    def works(tunnel: clients.SocksTunnel) -> bool:
        tunnel.sendall(b"hello")
        return read_exact(tunnel, 5) == b"hello"

    served: list[bool] = []
    is_over = threading.Event()

    def keep_coming() -> None:
        """Come 500 times, and for as long as the restarts take."""
        while not is_over.is_set() or len(served) < CONNECTIONS:
            served.append(False)
            with suppress(Exception), closing(come()) as tunnel:
                served[-1] = works(tunnel)
            sleep(0.02)

    visitor = threading.Thread(target=keep_coming, daemon=True)
    visitor.start()
    try:
        for node in nodes:
            before = len(served)
            wait_until(lambda before=before: len(served) > before + 10, "clients to come")  # type: ignore[misc]
            # Some of them are at this node, and finish while it drains.
            tunnels = [stack.enter_context(closing(come())) for _ in range(8)]
            restart = threading.Thread(target=node.restart)
            restart.start()
            node.proxy.wait_for_log("stopping: ")
            assert all(map(works, tunnels))
            for tunnel in tunnels:
                tunnel.close()
            restart.join(60)
            assert not restart.is_alive()
            # As the document waits, for HAProxy to see it.
            back = monotonic() + 3
            wait_until(lambda back=back: monotonic() > back, "HAProxy to see it")  # type: ignore[misc]
    finally:
        is_over.set()
        visitor.join(60)
    assert len(served) >= CONNECTIONS
    assert served.count(False) == 0


def manifests() -> list[dict[str, object]]:
    return list(yaml.safe_load_all(block(KUBERNETES, "yaml")))


def test_the_manifests_are_what_the_api_takes() -> None:
    kinds = []
    for each in manifests():
        kubernetes_validate.validate(each, "1.31", strict=True)
        kinds.append(each["kind"])
    assert {"ConfigMap", "Secret", "Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler"} <= set(
        kinds
    )


def test_a_manifest_that_is_wrong_would_be_noticed() -> None:
    deployment = next(each for each in manifests() if each["kind"] == "Deployment")
    deployment["spec"]["replica"] = 3  # type: ignore[index]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.31", strict=True)


def test_the_configuration_in_the_secret_is_one(tmp_path: Path) -> None:
    secret = next(each["stringData"] for each in manifests() if each["kind"] == "Secret")
    assert isinstance(secret, dict)
    folder = tmp_path / "etc"
    folder.mkdir()
    for name, text in secret.items():
        path = folder / name
        path.write_text(
            with_names(text, {"/etc/proxy-server/users": str(folder / "users")}) if "ini" in name else text
        )
        path.chmod(0o600)
    done = run_proxy("-c", str(folder / "proxy.ini"), "-check")
    assert done.returncode == 0
    assert done.stdout.endswith(b"ok\n")


def test_a_pod_has_more_time_than_a_drain_takes() -> None:
    text = block(KUBERNETES, "yaml")
    deployment = next(each for each in manifests() if each["kind"] == "Deployment")
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]  # type: ignore[index]
    delay, minutes = re.search(r"drain_delay += (\d+)s", text), re.search(r"drain_timeout += (\d+)m", text)
    assert delay
    assert minutes
    assert grace > int(delay[1]) + 60 * int(minutes[1])
