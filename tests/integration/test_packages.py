"""The Debian package: what is in it, and that it serves as installed, and leaves when it is told to."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import __version__
from tests.integration.peers import find
from tests.integration.programs import REPOSITORY, Program, clean_environment
from tests.integration.roots import Root

CONFIG = "/etc/proxy-server/proxy.ini"
# Whoever upgrades unattended keeps what was changed; without this dpkg asks.
INSTALL = ("apt-get", "install", "-y", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold")
# What Debian calls the packages of which its name is not the one that PyPI has.
NAMES = {"pysocks": "socks", "websocket-client": "websocket"}

pytestmark = pytest.mark.timeout(150)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a command to its end, which has to be a good one, and give what it prints."""
    env = clean_environment("/", **environment)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path) -> Path:
    """Build the package in a copy of the project, at a time that is not now."""
    for program, package in {"dh": "debhelper", "dh_python3": "dh-python"}.items():
        find(program, package)
    folder.mkdir()
    for name in ("proxy", "conf", "docs", "scripts"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(REPOSITORY / name, folder)
    run("scripts/build-deb", cwd=folder, SOURCE_DATE_EPOCH="1790000000", PYTHON=sys.executable)
    return folder / "build" / f"proxy-server_{__version__}_all.deb"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("package") / "project")


@pytest.fixture
def root(package: Path, tmp_path: Path) -> Iterator[Root]:
    """Make a root folder in which the package lies at /mnt, and nothing of it is installed."""
    shutil.copy(package, tmp_path / "this.deb")
    with Root(tmp_path) as root:
        yield root


def changed(package: Path, version: str, more: str) -> None:
    """Write the package anew as another version, which has one line more in its configuration."""
    tree = package.with_name("tree")
    run("dpkg-deb", "-R", package, tree)
    control = tree / "DEBIAN" / "control"
    control.write_text(
        re.sub(r"^Version: .*", f"Version: {version}", control.read_text(), flags=re.MULTILINE)
    )
    with (tree / CONFIG.lstrip("/")).open("a") as config:
        config.write(more)
    run("dpkg-deb", "--build", "--root-owner-group", tree, package.with_name("next.deb"))


def service(root: Root) -> Program:
    """Make the program that the unit starts, as the user that it names."""
    unit = root.run("cat", "/lib/systemd/system/proxy-server.service").stdout
    (user,) = re.findall(r"^User=(.+)$", unit, re.MULTILINE)
    (command,) = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--no-new-privs", "--"]
    return Program([*root.prefix, *become, *shlex.split(command)])


def mode_of(root: Root, path: str) -> str:
    return root.run("stat", "-c", "%U:%G %a", path).stdout.strip()


# -- what is in it


def test_two_builds_of_the_same_are_the_same(package: Path, tmp_path: Path) -> None:
    assert build(tmp_path / "elsewhere").read_bytes() == package.read_bytes()


def test_it_depends_on_the_versions_that_setup_py_names(package: Path) -> None:
    wanted = set()
    for requirement in runpy.run_path(str(REPOSITORY / "setup.py"))["REQUIREMENTS"]:
        ((name, least, end),) = re.findall(r"^([\w-]+)>=([\d.]+),<([\d.]+)$", requirement)
        debian = f"python3-{NAMES.get(name.lower(), name)}"
        wanted |= {f"{debian} (>= {least})", f"{debian} (<< {end})"}
    depends = run("dpkg-deb", "-f", package, "Depends").strip().split(", ")
    assert wanted == {each for each in depends if each.startswith("python3-")}


def test_it_has_manual_pages_and_completion_where_they_are_looked_for(package: Path) -> None:
    found = {line.split()[-1] for line in run("dpkg-deb", "-c", package).splitlines()}
    assert found >= {
        "./usr/share/man/man1/proxy-server.1.gz",
        "./usr/share/man/man5/proxy-server.ini.5.gz",
        "./usr/share/bash-completion/completions/proxy-server",
        "./usr/share/zsh/vendor-completions/_proxy-server",
        "./usr/share/fish/vendor_completions.d/proxy-server.fish",
    }


def test_lintian_finds_nothing_to_say(package: Path) -> None:
    run(find("lintian"), "--allow-root", "--fail-on", "error,warning", package)


# -- what it does


def test_it_serves_as_installed_and_takes_changes_of_its_configuration(root: Root) -> None:
    root.run(*INSTALL, "/mnt/this.deb")
    assert root.run("proxy-server", "-version").stdout == f"proxy-server {__version__}\n"
    assert root.run("proxy-server", "-c", CONFIG, "-check").stdout == "ok\n"
    assert mode_of(root, CONFIG) == "proxy-server:proxy-server 640"
    assert mode_of(root, "/etc/proxy-server") == "proxy-server:proxy-server 750"
    root.run("sh", "-c", "mkdir /tmp/page && echo hello >/tmp/page/index.html")
    page = Program([*root.prefix, "python3", "-m", "http.server", "-b", "127.0.0.1", "-d", "/tmp/page", "80"])
    with page, service(root) as program:
        page.wait_listening(80)
        program.wait_listening(1080, 8080)
        for proxy in ("socks5h://127.0.0.1:1080", "socks5h://127.0.0.1:1081"):
            assert root.run("curl", "-sSm", "20", "-x", proxy, "http://localhost/").stdout == "hello\n"
            # As root, of the program that is not; it writes the file anew.
            root.run(
                "proxy-server", "ctl", "-c", CONFIG, "set", "listeners.socks.listen_addr", "127.0.0.1:1081"
            )
        assert "127.0.0.1:1081" in root.run("cat", CONFIG).stdout
        program.process.terminate()
        assert program.wait(30) == 0
        for word in ("Traceback", "warning", "error"):
            assert word not in program.log, program.log


def test_it_serves_by_several_processes(root: Root) -> None:
    """They are started by the command as it was started itself, wherever that is."""
    root.run(*INSTALL, "/mnt/this.deb")
    root.run("sed", "-i", "s/^workers .*/workers = 2/", CONFIG)
    with service(root) as program:
        program.wait_for_log("workers serve")
        assert root.run("proxy-server", "ctl", "-c", CONFIG, "status").stdout
        program.process.terminate()
        assert program.wait(30) == 0


def test_systemd_finds_nothing_to_say_about_the_unit(root: Root) -> None:
    find("systemd-analyze", "systemd")
    root.run(*INSTALL, "/mnt/this.deb")
    unit = "/lib/systemd/system/proxy-server.service"
    done = root.run("systemd-analyze", "verify", "--man=no", unit, check=False)
    assert [line for line in done.stderr.splitlines() if "proxy-server" in line] == []


def test_an_upgrade_keeps_what_was_changed_and_so_does_a_removal(root: Root, tmp_path: Path) -> None:
    root.run(*INSTALL, "/mnt/this.deb")
    root.run("sed", "-i", "s/^log_level .*/log_level = debug/", CONFIG)
    root.run("chown", "root:proxy-server", "/etc/proxy-server", CONFIG)
    root.run("touch", "/var/lib/proxy-server/a-version")
    changed(tmp_path / "this.deb", f"{__version__}+next", "# of the next version\n")
    root.run(*INSTALL, "/mnt/next.deb")
    version = root.run("dpkg-query", "-f", "${Version} ${db:Status-Status}", "-W", "proxy-server").stdout
    assert version == f"{__version__}+next installed"
    kept = root.run("cat", CONFIG).stdout
    assert "log_level = debug" in kept
    assert "# of the next version" not in kept
    assert mode_of(root, CONFIG) == "root:proxy-server 640"
    assert mode_of(root, "/etc/proxy-server") == "root:proxy-server 750"
    root.run("apt-get", "remove", "-y", "proxy-server")
    assert root.run("cat", CONFIG).stdout == kept
    assert "/var/lib/proxy-server/a-version" in root.changed("*version")
    assert root.run("sh", "-c", "command -v proxy-server", check=False).returncode != 0
    assert root.changed("*.pyc") == []


def test_a_purge_leaves_nothing_but_the_user(root: Root) -> None:
    root.run(*INSTALL, "/mnt/this.deb")
    root.run("install", "-d", "-o", "proxy-server", "/var/log/proxy-server")
    root.run("touch", "/var/lib/proxy-server/a-version", "/var/log/proxy-server/access.log")
    root.run("apt-get", "purge", "-y", "proxy-server")
    assert root.changed("*proxy-server*") == []
    account = root.run("getent", "passwd", "proxy-server").stdout.strip().split(":")
    assert account[-2:] == ["/var/lib/proxy-server", "/usr/sbin/nologin"]
    assert root.run("getent", "shadow", "proxy-server").stdout.split(":")[1] in ("!", "*", "!*")
    root.run(*INSTALL, "/mnt/this.deb")
    assert mode_of(root, CONFIG) == "proxy-server:proxy-server 640"
