"""
The Dockerfile, and what docs/docker.md does with it, without Docker.

Each stage is a root folder of this machine that the instructions change; a container is a process 1 in
the last of them, with the user, the mounts and the command that the image and `docker run` name.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pip
import pytest

from tests.integration.peers import require
from tests.integration.programs import REPOSITORY, Program
from tests.integration.roots import Root
from tests.wire.waits import wait_until

DOCKER = REPOSITORY / "conf" / "docker"
PATH = "/usr/local/bin:/usr/bin:/bin"
# Where packages come from is the user's to say.
NETWORK = ("PIP_", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy")

pytestmark = pytest.mark.timeout(150)


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Read a Dockerfile, as far as ours goes: an instruction and what follows it, on one line."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        name, _, rest = line.partition(" ")
        yield name, rest.strip()


def run_commands(document: Path) -> list[list[str]]:
    """Give the commands of all blocks for a shell, as words."""
    text = document.read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


class Stage:
    """What the instructions of one stage make of a root folder, and note for the containers."""

    def __init__(self, root: Root, others: Mapping[str, "Stage"]) -> None:
        self.root = root
        self.noted: dict[str, str] = {}
        self._others = others
        self._folder = "/"
        self._environment = {k: v for k, v in os.environ.items() if k.startswith(NETWORK)} | {"PATH": PATH}
        # The image's Python and pip are this machine's and ours.
        for name, command in {"python": "exec", "pip": "PYTHONPATH=/mnt/tools exec"}.items():
            module = "-m pip" if name == "pip" else ""
            script = f'#!/bin/sh\n{command} /usr/bin/python3 {module} "$@"\n'
            root.run("install", "-m", "0755", "/dev/stdin", f"/usr/local/bin/{name}", stdin=script)

    @property
    def variables(self) -> list[str]:
        """The environment of all that runs in the image, for env."""
        return [f"{name}={value}" for name, value in self._environment.items()]

    def do(self, instruction: str, rest: str) -> None:
        """Do what an instruction says."""
        if instruction == "RUN":
            script = f"cd {self._folder} && {rest}"
            done = self.root.run("env", *self.variables, "sh", "-c", script, check=False)
            require("connection broken" not in done.stderr, "the package registry is out of reach")
            assert done.returncode == 0, done.stdout + done.stderr
        elif instruction == "WORKDIR":
            self._folder = rest
            self.root.run("mkdir", "-p", rest)
        elif instruction == "COPY":
            self._copy(*shlex.split(rest))
        elif instruction == "ENV":
            name, value = rest.split("=", 1)
            self._environment[name] = value.replace("$PATH", PATH)
        else:
            self.noted[instruction] = rest

    def _copy(self, *words: str) -> None:
        *sources, there = words
        origin = "/mnt/context/"
        if sources[0].startswith("--from="):
            origin = f"/mnt/{sources[0].removeprefix('--from=')}"
            self._others[sources.pop(0).removeprefix("--from=")].root.run(
                "cp", "-a", "--parents", *sources, origin
            )
        place = os.path.join(self._folder, there)
        is_folder = there.endswith("/") or self._is_folder(origin + sources[0])
        self.root.run("mkdir", "-p", place if is_folder else os.path.dirname(place))
        for source in sources:
            # Of a folder Docker copies what is in it.
            what = f"{source}/." if self._is_folder(origin + source) else source
            self.root.run("cp", "-a", origin + what, place)

    def _is_folder(self, path: str) -> bool:
        return self.root.run("test", "-d", path, check=False).returncode == 0


class Container(Program):
    """A process 1 with a view of its own of the root folder of an image."""

    def __init__(self, image: Stage, options: list[str], arguments: list[str]) -> None:
        entry = json.loads(image.noted["ENTRYPOINT"])
        command = entry + (arguments or json.loads(image.noted["CMD"]))
        user, group = image.noted["USER"].split(":")
        mounts = "".join(f"mount --bind {a} {b}\n" for a, b in self._volumes(options))
        if "--read-only" in options:
            mounts += "mount -o remount,bind,ro /\n"
        become = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
        if "--cap-drop" in options:
            become += ["--bounding-set=-all", "--inh-caps=-all"]
        self._inside = ["env", "-i", *image.variables, *become]
        view = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
        script = f'{mounts}exec "$@"'
        super().__init__([*image.root.prefix, *view, "sh", "-euc", script, "sh", *self._inside, *command])
        self._image = image

    @staticmethod
    def _volumes(options: list[str]) -> Iterator[tuple[str, str]]:
        for option, value in pairwise(options):
            if option == "-v":
                here, there = value.split(":")
                # A volume that has a name lies in the image as it is.
                yield here.replace("$PWD", "/mnt") if here.startswith("$PWD") else there, there

    @property
    def first(self) -> int:
        """The process that is the first one inside, by its number outside; 0 before it is there."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text() or 0)

    def execute(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command inside, as the image's user."""
        enter = ["nsenter", "-t", str(self.first), "-p", "-m", "-n", "-r", "-w"]
        return subprocess.run([*enter, *self._inside, *command], capture_output=True, text=True, timeout=60)

    @property
    def is_healthy(self) -> bool:
        """Tell what the image's health check finds."""
        (check,) = re.findall(r"CMD (\[.*\])", self._image.noted["HEALTHCHECK"])
        return self.execute(*json.loads(check)).returncode == 0


def sent() -> list[str]:
    """Name what Docker sends to the builder: all that the file excepts from its first pattern."""
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    first, *others = [line for line in lines if not line.startswith("#")]
    assert first == "*"
    return [line.removeprefix("!") for line in others if line.startswith("!")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Build the image; what the commands of the document use is beside its context."""
    shared = tmp_path_factory.mktemp("docker")
    for name in sent():
        copy_to(shared / "context" / name, REPOSITORY / name)
    copy_to(shared / "conf" / "examples", REPOSITORY / "conf" / "examples")
    (shared / "page").mkdir()
    (shared / "page" / "index.html").write_text("hello")
    copy_to(shared / "tools" / "pip", Path(pip.__file__).parent)
    with ExitStack() as stack:
        stages: dict[str, Stage] = {}
        stage: Stage | None = None
        for instruction, rest in instructions(DOCKER / "Dockerfile"):
            if instruction == "FROM":
                _, _, name = rest.partition(" AS ")
                (shared / name).mkdir(exist_ok=True)
                root = stack.enter_context(Root(shared, network=bool(name)))
                stages[name] = stage = Stage(root, stages)
            elif stage:
                stage.do(instruction, rest)
        yield stages[""]


def copy_to(place: Path, source: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, place)
    else:
        shutil.copy(source, place)


class Commands:
    """A shell that knows docker by what it means to an image, and in which config is edited in one way."""

    def __init__(self, image: Stage) -> None:
        self.image = image
        self.container: Container | None = None
        self._stack = ExitStack()
        self._hash = ""

    def run(self, words: list[str]) -> None:
        """Run a command, which has to succeed."""
        if words[:2] == ["docker", "build"]:
            assert (REPOSITORY / words[words.index("-f") + 1]).samefile(DOCKER / "Dockerfile")
            assert words[-1] == "."
        elif words[:2] == ["docker", "run"]:
            end = words.index("proxy-server")
            self._start(words[2:end], words[end + 1 :])
        elif words[:3] == ["docker", "exec", "proxy"]:
            assert self.container
            done = self.container.execute(*words[3:])
            assert done.returncode == 0, done.stderr
        elif words == ["docker", "logs", "proxy"]:
            assert self.container
            assert "mixed listens on" in self.container.log
        elif words == ["docker", "stop", "proxy"]:
            assert self.container
            os.kill(self.container.first, signal.SIGTERM)
            assert self.container.wait(30) == 0
        elif words[0] == "$EDITOR":
            self.image.root.run("sed", "-i", f"s|^# alice = .*|alice = {self._hash}|", f"/mnt/{words[1]}")
        else:
            self.image.root.run("sh", "-c", 'cd /mnt && exec "$@"', "sh", *words)

    def _start(self, options: list[str], arguments: list[str]) -> None:
        container = Container(self.image, options, arguments)
        if "-d" in options:
            self.container = self._stack.enter_context(container)
            wait_until(lambda: container.first and container.is_healthy, "a healthy container")
            return
        done = subprocess.run(
            container.command, input="wonderland\n", capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        self._hash = done.stdout.strip()

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def test_hadolint_finds_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{sys.prefix}/bin")
    require(hadolint, "hadolint is not installed in .venv")
    done = subprocess.run([str(hadolint), DOCKER / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.registry
def test_the_document_leads_to_a_container_that_serves_and_stops(image: Stage) -> None:
    commands = run_commands(REPOSITORY / "docs" / "docker.md")
    with Commands(image) as shell:
        for words in commands[:-1]:
            shell.run(words)
        page = ["python3", "-m", "http.server", "-b", "127.0.0.1", "-d", "/mnt/page", "80"]
        url = "socks5h://alice:wonderland@127.0.0.1:1080"
        with Program([*image.root.prefix, *page]) as server:
            server.wait_listening(80)
            assert image.root.run("curl", "-sSm", "20", "-x", url, "http://localhost/").stdout == "hello"
        shell.run(commands[-1])
        assert shell.container
        assert "Traceback" not in shell.container.log


@pytest.mark.registry
def test_a_container_in_which_nothing_answers_is_not_healthy(image: Stage) -> None:
    arguments = ["-mode", "server", "-protocol", "socks5", "-addr", "127.0.0.1:1081"]
    with Container(image, [], arguments) as container:
        container.wait_for_log("listens on 127.0.0.1:1081")
        assert not container.is_healthy
