"""
The packages for OpenWrt, without its SDK: their Makefiles with stand-ins for what they include, and the
script with stand-ins for procd.

The ones of make do in a few lines what the real ones do for these packages: unpack or copy, install, compile,
leave bytecode alone, and run the package's own recipes.
"""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from proxy import __version__
from tests.integration.peers import find, require
from tests.integration.programs import REPOSITORY, Program, clean_environment
from tests.wire import clients, targets
from tests.wire.sockets import free_port, read_exact
from tests.wire.targets import Target

OPENWRT = REPOSITORY / "conf" / "openwrt"
SCRIPT = OPENWRT / "proxy-server" / "files" / "proxy-server.init"
LIBRARIES = ("python-configobj", "python-gevent-websocket")
# What the feed of OpenWrt has, under lang/python.
FEED = {"gevent", "idna", "pysocks", "websocket-client"}
# The standard library's parts that are packages of their own there, with a module of each.
PARTS = {
    "asyncio": "asyncio",
    "codecs": "unicodedata",
    "ctypes": "ctypes",
    "dbm": "dbm",
    "decimal": "decimal",
    "email": "email",
    "logging": "logging",
    "lzma": "lzma",
    "multiprocessing": "multiprocessing",
    "ncurses": "curses",
    "openssl": "ssl",
    "pydoc": "pydoc",
    "readline": "readline",
    "sqlite3": "sqlite3",
    "unittest": "unittest",
    "urllib": "urllib",
    "uuid": "uuid",
    "webbrowser": "webbrowser",
    "xml": "xml",
}

RULES = """
INCLUDE_DIR := $(TOPDIR)/include
INSTALL_DIR := install -d -m0755
INSTALL_BIN := install -m0755
INSTALL_CONF := install -m0600
CP := cp -fpR
"""
PYPI = "PKG_SOURCE := $(PYPI_NAME)-$(PKG_VERSION).tar.gz\n"
PACKAGE = """
PKG_BUILD_DIR := $(TOPDIR)/build_dir/$(PKG_NAME)-$(PKG_VERSION)
PKG_INSTALL_DIR := $(PKG_BUILD_DIR)/ipkg-install

define Build/Prepare
	echo "$(PKG_HASH)  $(TOPDIR)/dl/$(PKG_SOURCE)" | sha256sum -c --quiet
	mkdir -p $(PKG_BUILD_DIR)
	tar xzf $(TOPDIR)/dl/$(PKG_SOURCE) -C $(PKG_BUILD_DIR) --strip-components=1
endef

prepare:
	$(Build/Prepare)
	test -f $(PKG_BUILD_DIR)/$(PKG_LICENSE_FILES)
	$(PYTHON) -m pip install -q --no-deps --ignore-installed --root $(PKG_INSTALL_DIR) --prefix /usr \\
		$(PKG_BUILD_DIR)

define BuildPackage
$(eval $(call Package/$(1)))
$(foreach name,SECTION CATEGORY TITLE,$(if $($(name)),,$(error $(1) has no $(name))))
$(info $(1): $(DEPENDS))
build: build-$(1)
build-$(1): prepare
	$$(call Package/$(1)/install,$(TOPDIR)/out/$(1))
endef
"""
PYTHON3 = """
define Py3Package
define Package/$(1)-src
$(call Package/$(1))
endef
define Package/$(1)/install
	$$(call Py3Package/$(1)/install,$$(1))
	mkdir -p $$(1)/usr
	cp -R $(PKG_INSTALL_DIR)/usr/lib $$(1)/usr/
	$(PYTHON) -m compileall -q -b $$(1)/usr/lib
	find $$(1) -name '*.py' -delete
	find $$(1) -name __pycache__ -prune -exec rm -rf {} +
endef
endef
"""

pytestmark = pytest.mark.timeout(120)


def sdk(folder: Path) -> None:
    """Write the stand-ins."""
    for name, text in {
        "rules.mk": RULES,
        "include/package.mk": PACKAGE,
        "feeds/packages/lang/python/pypi.mk": PYPI,
        "feeds/packages/lang/python/python3-package.mk": PYTHON3,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make(package: str, folder: Path, *targets: str) -> str:
    """Run make in the folder of a package, and give what it prints."""
    command = ["make", "-C", str(OPENWRT / package), f"TOPDIR={folder}", f"PYTHON={sys.executable}", *targets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def variable(package: str, name: str) -> str:
    (value,) = re.findall(rf"^{name}:=(.*)$", (OPENWRT / package / "Makefile").read_text(), re.MULTILINE)
    return str(value)


def depends(folder: Path, package: str = "proxy-server") -> set[str]:
    """Name what a package depends on, as make sees it."""
    sdk(folder)
    (line,) = re.findall(rf"^{package}: (.*)$", make(package, folder, "-n", "build"), re.MULTILINE)
    return {each.removeprefix("+") for each in line.split()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the three packages, and give the folder in which they are."""
    folder = tmp_path_factory.mktemp("openwrt")
    sdk(folder)
    wanted = [f"{variable(each, 'PYPI_NAME')}=={variable(each, 'PKG_VERSION')}" for each in LIBRARIES]
    pip = [sys.executable, "-I", "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run([*pip, "-d", folder / "dl", *wanted], capture_output=True, text=True, timeout=100)
    require("connection broken" not in done.stderr, "the package registry is out of reach")
    assert done.returncode == 0, done.stderr
    for package in (*LIBRARIES, "proxy-server"):
        make(package, folder, "build")
    return folder / "out"


# -- the packages


def test_the_version_is_that_of_the_program(tmp_path: Path) -> None:
    sdk(tmp_path)
    assert f"/proxy-server-{__version__}" in make("proxy-server", tmp_path, "-n", "prepare")


def test_every_requirement_is_a_package_of_the_feed_or_stands_beside_it(tmp_path: Path) -> None:
    requirements = runpy.run_path(str(REPOSITORY / "setup.py"))["REQUIREMENTS"]
    names = {re.split("[><]", each)[0].lower() for each in requirements}
    ours = {variable(each, "PYPI_NAME") for each in LIBRARIES}
    assert names == FEED | ours
    assert {f"python3-{name}" for name in names} <= depends(tmp_path)


def test_the_versions_of_the_libraries_are_in_the_ranges_of_setup_py() -> None:
    requirements = runpy.run_path(str(REPOSITORY / "setup.py"))["REQUIREMENTS"]
    for package in LIBRARIES:
        name, version = variable(package, "PYPI_NAME"), variable(package, "PKG_VERSION")
        (found,) = [each for each in requirements if each.startswith(f"{name}>=")]
        least, end = (tuple(map(int, each.split("."))) for each in re.findall(r"[\d.]+", found))
        assert least <= tuple(map(int, version.split("."))) < end


def test_it_depends_on_the_parts_of_the_standard_library_that_are_imported(tmp_path: Path) -> None:
    """All that is no dependency is hidden, and nothing fails; and each that is one is imported."""
    parts = {name for name in PARTS if f"python3-{name}" in depends(tmp_path)}
    program = """
import importlib, pkgutil, sys
hidden = set(sys.argv.pop().split(","))
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ImportError(name)
sys.meta_path.insert(0, Hidden())
import proxy.__main__
for module in pkgutil.walk_packages(proxy.__path__, "proxy."):
    importlib.import_module(module.name)
import configobj, geventwebsocket.handler, idna, socks, websocket
print(",".join(sys.modules))
"""
    hidden = ",".join(module for name, module in PARTS.items() if name not in parts)
    done = subprocess.run(
        [sys.executable, "-c", program, hidden],
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.strip().split(",")
    assert {name for name in PARTS if PARTS[name] in loaded} == parts


@pytest.mark.registry
def test_what_is_built_serves_from_bytecode_alone(built: Path, tmp_path: Path) -> None:
    places = [str(path) for path in built.glob("*/usr/lib/python3*/site-packages")]
    assert len(places) == 3
    assert not list(built.rglob("*.py"))
    port = free_port()
    start = f"""
import sys
sys.path[:0] = {places}
import proxy
assert proxy.__file__.endswith(".pyc")
from proxy.__main__ import main
main()
"""
    command = [
        sys.executable,
        "-c",
        start,
        "-mode",
        "server",
        "-protocol",
        "mixed",
        "-addr",
        f"127.0.0.1:{port}",
    ]
    environment = {**clean_environment(tmp_path), "PYTHONPATH": ""}
    with Target(targets.echo) as target, Program(command, environment=environment) as program:
        program.wait_listening(port)
        tunnel = clients.socks5(("127.0.0.1", port), "127.0.0.1", target.port)
        tunnel.sendall(b"hello")
        assert read_exact(tunnel, 5) == b"hello"
        tunnel.close()
        assert "Traceback" not in program.log


@pytest.mark.registry
def test_the_package_has_script_command_and_configuration(built: Path) -> None:
    root = built / "proxy-server"
    assert (root / "etc/init.d/proxy-server").read_bytes() == SCRIPT.read_bytes()
    assert (root / "etc/init.d/proxy-server").stat().st_mode & 0o777 == 0o755
    assert (root / "usr/bin/proxy-server").exists()
    config = root / "etc/proxy-server/proxy.ini"
    assert config.stat().st_mode & 0o777 == 0o600
    for line in ("state_dir = /var/run/proxy-server", "access_log = off"):
        assert line in re.sub(" +", " ", config.read_text()).splitlines()
    conffiles = re.findall(
        r"/conffiles\n(.*?)endef", (OPENWRT / "proxy-server/Makefile").read_text(), re.DOTALL
    )
    assert conffiles == ["/etc/proxy-server/proxy.ini\n"]


# -- the script

RC_COMMON = """
for each in open_instance set_param close_instance send_signal; do
    eval "procd_$each() { echo procd_$each \\"\\$@\\"; }"
done
id() { [ -n "$HAS_ACCOUNT" ]; }
chown() { echo chown "$@"; }
. "$1"
PROG=$2 CONF=$3/proxy.ini STATE=$3/state
"$4"
"""


def call(
    shell: list[str], function: str, folder: Path, prog: str = "true", account: str = "yes"
) -> list[str]:
    """Call a function of the script in a shell, with stand-ins for what procd gives it."""
    (folder / "proxy.ini").touch()
    done = subprocess.run(
        [*shell, "-euc", RC_COMMON, "rc.common", SCRIPT, prog, folder, function],
        env={"HAS_ACCOUNT": account, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stderr == ""
    return done.stdout.splitlines() if done.returncode == 0 else []


@pytest.fixture(params=["busybox ash", "dash"])
def shell(request: pytest.FixtureRequest) -> list[str]:
    program, *applet = request.param.split()
    return [find(program), *applet]


def test_the_script_starts_the_program_as_the_user_of_the_package(shell: list[str], tmp_path: Path) -> None:
    said = call(shell, "start_service", tmp_path)
    config, state = tmp_path / "proxy.ini", tmp_path / "state"
    assert f"procd_set_param command true -c {config}" in said
    assert f"chown -h proxy-server:proxy-server {state} {tmp_path} {config}" in said
    assert "procd_set_param user proxy-server" in said
    assert (said[0], said[-1]) == ("procd_open_instance", "procd_close_instance")
    assert state.stat().st_mode & 0o777 == 0o700


def test_the_script_starts_the_program_as_root_where_there_is_no_such_user(
    shell: list[str], tmp_path: Path
) -> None:
    said = call(shell, "start_service", tmp_path, account="")
    assert f"procd_set_param command true -c {tmp_path / 'proxy.ini'}" in said
    assert not [line for line in said if line.startswith("chown") or "user" in line]


def test_the_script_starts_nothing_from_a_configuration_that_is_wrong(
    shell: list[str], tmp_path: Path
) -> None:
    assert call(shell, "start_service", tmp_path, prog="false") == []


def test_the_script_reloads_by_a_signal(shell: list[str], tmp_path: Path) -> None:
    assert call(shell, "reload_service", tmp_path) == ["procd_send_signal proxy-server * HUP"]
