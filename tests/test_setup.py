"""A fresh clone sets itself up, once; scripts/proxy-server is all that its user has to know."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from proxy import __version__
from tests.integration.peers import require
from tests.integration.programs import Program, clean_environment
from tests.wire import clients, targets
from tests.wire.sockets import free_port, read_exact
from tests.wire.targets import Target

ROOT = Path(__file__).parent.parent
VERSION = f"proxy-server {__version__}\n"

Result = subprocess.CompletedProcess[str]
FirstStarts = tuple[Path, list[Result]]


def copy_of_the_project(clone: Path) -> Path:
    """Copy what a clone needs in order to start."""
    clone.mkdir()
    for folder in ("proxy", "scripts"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, clone)
    return clone


def command(clone: Path) -> Path:
    return clone / "scripts" / "proxy-server"


def start(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Result:
    """Run a command to its end, as a user would, with a few settings of his own."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHON"} | environment
    return subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def program(path: Path, script: str) -> Path:
    """Write a small program that stands in for another one."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def refused(result: Result) -> str:
    """Check that a start ended with one clear line on stderr, and give that line."""
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return copy_of_the_project(tmp_path / "clone")


@pytest.fixture
def ready_clone(clone: Path) -> Path:
    """A clone as a first start leaves it; the packages are lent by the Python that runs the tests."""
    venv.create(clone / ".venv", symlinks=True)
    (packages,) = clone.glob(".venv/lib/python3*/site-packages")
    (packages / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n../../../..\n")
    shutil.copy(clone / "setup.py", clone / ".venv" / "ready")
    return clone


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder to be the whole PATH, with the two programs that the start needs and no Python."""
    folder = tmp_path / "path"
    folder.mkdir()
    for name in ("cmp", "readlink"):
        (folder / name).symlink_to(shutil.which(name) or name)
    return folder


# A start when all is there.


def test_a_later_start_sets_nothing_up(ready_clone: Path) -> None:
    result = start(command(ready_clone), "-version", PYTHON="/nonexistent")
    assert (result.stdout, result.stderr, result.returncode) == (VERSION, "", 0)


def test_starts_from_any_folder_and_through_symbolic_links(ready_clone: Path, tmp_path: Path) -> None:
    (tmp_path / "absolute").symlink_to(command(ready_clone))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "relative").symlink_to("../absolute")
    assert start("bin/relative", "-version", cwd=tmp_path).stdout == VERSION
    assert start("relative", "-version", PATH=f"{tmp_path}/bin:{os.environ['PATH']}").stdout == VERSION


def test_the_folder_may_have_any_name(ready_clone: Path, tmp_path: Path) -> None:
    ready_clone.rename(tmp_path / "a 'clone' $HOME *")
    assert start("./a 'clone' $HOME */scripts/proxy-server", "-version", cwd=tmp_path).stdout == VERSION


def test_nothing_in_the_current_folder_is_imported(ready_clone: Path, tmp_path: Path) -> None:
    for name in ("socket", "os", "gevent", "proxy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    result = start(command(ready_clone), "-version", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (result.stdout, result.stderr) == (VERSION, "")


def test_the_proxy_takes_the_place_of_the_script(ready_clone: Path) -> None:
    """Signals, standard input and output are then its own."""
    python = ready_clone / ".venv" / "bin" / "python"
    python.unlink()
    program(python, 'echo "$$ $*"; exec cat')
    process = subprocess.Popen(
        [command(ready_clone), "-c", "a b"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate("from standard input", timeout=20)
    assert output == f"{process.pid} -I -m proxy -c a b\nfrom standard input"


# A first start that cannot succeed.


def test_says_that_there_is_no_python(clone: Path, path: Path) -> None:
    assert "there is no python3 here" in refused(start(command(clone), PATH=str(path)))


def test_says_that_python_is_too_old(clone: Path, path: Path) -> None:
    program(path / "python3", '[ "$1" = -V ] && echo Python 3.9.2')
    line = refused(start(command(clone), PATH=str(path)))
    assert "Python 3.10 or newer is needed, and python3 is Python 3.9.2" in line


def test_takes_a_newer_python_where_python3_is_too_old(clone: Path, path: Path) -> None:
    program(path / "python3", "exit 1")
    program(path / "python3.12", '[ "$2" = -c ] || { echo "$@"; exit 7; }')
    result = start(command(clone), PATH=str(path))
    assert (result.returncode, result.stdout) == (7, f"-I {clone}/scripts/setup_venv.py\n")


def test_takes_no_other_python_than_the_one_that_was_named(clone: Path, tmp_path: Path) -> None:
    named = program(tmp_path / "named", "exit 1")
    assert f"PYTHON={named} is no Python 3.10 or newer" in refused(start(command(clone), PYTHON=str(named)))


def test_says_how_to_get_a_missing_venv_module(clone: Path, tmp_path: Path) -> None:
    """Debian ships ensurepip apart from Python."""
    without = (
        "import runpy, sys; sys.modules['ensurepip'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    python = program(
        tmp_path / "python",
        f'[ "$2" = -c ] && exec {sys.executable} "$@"\nshift\nexec {sys.executable} -I -c "{without}" "$@"',
    )
    line = refused(start(command(clone), PYTHON=str(python)))
    assert f"apt install python3.{sys.version_info.minor}-venv" in line
    assert not (clone / ".venv").exists()


def test_says_that_nothing_could_be_installed(clone: Path) -> None:
    line = refused(start(command(clone), PYTHON=sys.executable, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(clone)))
    assert "cannot install the dependencies: No matching distribution found for gevent" in line
    assert "is this machine online?" in line
    assert not (clone / ".venv" / "ready").exists()


# A first start that succeeds.


@pytest.fixture(scope="module")
def first_starts(tmp_path_factory: pytest.TempPathFactory) -> FirstStarts:
    """Two starts at once of a clone in which an earlier set-up was interrupted."""
    clone = copy_of_the_project(tmp_path_factory.mktemp("first") / "clone")
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "unfinished").touch()
    program(clone / ".venv" / "bin" / "python", "exit 0")
    processes = [
        subprocess.Popen(
            [command(clone), "-version"],
            env=os.environ | {"PYTHON": sys.executable, "PIP_USER": "1", "PIP_TARGET": str(clone / "astray")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    offline = all("is this machine online?" in errors for _, errors in outputs)
    require(not offline, "the package registry is out of reach")
    results = zip(processes, outputs, strict=True)
    return clone, [Result(process.args, process.returncode, *output) for process, output in results]


@pytest.mark.registry
@pytest.mark.timeout(240)
def test_two_first_starts_at_once_set_up_once_and_both_run(first_starts: FirstStarts) -> None:
    _, results = first_starts
    assert [(result.stdout, result.returncode) for result in results] == [(VERSION, 0)] * 2
    assert sum("setting up" in result.stderr for result in results) == 1
    assert sum(result.stderr.count("installing gevent") for result in results) == 1


@pytest.mark.registry
@pytest.mark.timeout(240)
def test_packages_go_nowhere_but_into_the_clone(first_starts: FirstStarts) -> None:
    clone, _ = first_starts
    assert list(clone.glob(".venv/lib/python3*/site-packages/gevent/__init__.py"))
    assert not (clone / "astray").exists()


@pytest.mark.registry
@pytest.mark.timeout(240)
def test_a_change_of_setup_py_brings_the_packages_up_to_date(first_starts: FirstStarts) -> None:
    clone, _ = first_starts
    with (clone / "setup.py").open("a") as setup:
        setup.write("# changed\n")
    # Nothing has to be fetched: every range is still met.
    changed, later = (start(command(clone), "-version", PIP_NO_INDEX="1") for _ in range(2))
    assert (changed.stdout, later.stdout) == (VERSION, VERSION)
    assert "ready" in changed.stderr
    assert later.stderr == ""


@pytest.mark.registry
@pytest.mark.timeout(240)
def test_a_clone_may_be_moved(first_starts: FirstStarts) -> None:
    clone, _ = first_starts
    moved = clone.rename(clone.with_name("moved"))
    try:
        result = start(command(moved), "-version")
    finally:
        moved.rename(clone)
    assert (result.stdout, result.stderr) == (VERSION, "")


@pytest.mark.registry
def test_the_distribution_has_the_command_and_all_its_files(clone: Path, tmp_path: Path) -> None:
    pip = (sys.executable, "-I", "-m", "pip")
    built = start(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, clone)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("proxy_server-*.whl"))) as wheel:
        names = set(wheel.namelist())
        (entry_points,) = (wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    files = [path for path in (ROOT / "proxy").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert names >= {str(path.relative_to(ROOT)) for path in files}
    assert "proxy-server = proxy.__main__:main" in entry_points
    assert not [name for name in names if name.startswith("tests/")]


# An environment that a tool makes.


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the command as `uv tool install` makes it, by way of the source distribution."""
    folder = tmp_path_factory.mktemp("tool")
    clone = copy_of_the_project(folder / "clone")
    uv = shutil.which("uv", path=f"{sys.prefix}/bin")
    require(uv, "uv is not installed in .venv")
    places = {f"UV_{name}": str(folder / name) for name in ("CACHE_DIR", "TOOL_DIR", "TOOL_BIN_DIR")}
    python = ("--no-python-downloads", "--python", sys.executable)
    # Without --wheel the wheel is built from the source distribution, and not from what lies beside that.
    built = start(str(uv), "build", *python, "--out-dir", folder / "dist", clone, cwd=folder, **places)
    require("error sending request" not in built.stderr, "the package registry is out of reach")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("dist/proxy_server-*.whl")
    shutil.rmtree(clone)
    installed = start(str(uv), "tool", "install", *python, wheel, cwd=folder, **places)
    assert installed.returncode == 0, installed.stderr
    return folder / "TOOL_BIN_DIR" / "proxy-server"


@pytest.mark.registry
@pytest.mark.timeout(120)
def test_the_installed_command_serves_far_from_any_clone(tool: Path, tmp_path: Path) -> None:
    port = free_port()
    command: list[str | Path] = [tool, "-mode", "server", "-protocol", "socks5", "-addr", f"127.0.0.1:{port}"]
    environment = {**clean_environment(tmp_path), "PYTHONPATH": ""}
    with Target(targets.echo) as target, Program(command, environment=environment) as program:
        program.wait_listening(port)
        tunnel = clients.socks5(("127.0.0.1", port), "127.0.0.1", target.port)
        tunnel.sendall(b"hello")
        assert read_exact(tunnel, 5) == b"hello"
        tunnel.close()
        assert "Traceback" not in program.log


@pytest.mark.registry
@pytest.mark.timeout(120)
def test_the_installed_command_writes_a_configuration_and_finds_it_right(tool: Path, tmp_path: Path) -> None:
    said = start(tool, "-version", cwd=tmp_path)
    assert said.stdout == VERSION
    assert start(tool, "-init", "proxy.ini", cwd=tmp_path).returncode == 0
    assert start(tool, "-c", "proxy.ini", "-check", cwd=tmp_path).stdout == "ok\n"
