"""
Make .venv in this clone and install the dependencies that setup.py names.

A copy of setup.py in .venv, written last, says that .venv is complete for exactly those dependencies.
Until then ``unfinished`` stands there, so that the rest of an interrupted set-up is known for what it
is, and made anew. A .venv with neither was made by hand, and is only added to.
"""

import fcntl
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETUP = ROOT / "setup.py"
VENV = ROOT / ".venv"
DISCARDED = ROOT / ".venv.old"
PYTHON = VENV / "bin" / "python"
UNFINISHED = VENV / "unfinished"
LOG = VENV / "setup.log"

# Where packages come from is the user's to say; where they go is not.
DESTINATIONS = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON")
PIP_SETTINGS = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


class SetupError(Exception):
    """The set-up cannot go on; the text says why, and what helps."""


def main(extra: str = "") -> None:
    """Bring .venv up to date, with an extra of setup.py if one is named."""
    ready = VENV / "ready"
    wanted = VENV / f"ready-{extra}" if extra else ready
    with locked() as lock:
        if is_current(wanted):
            return
        if UNFINISHED.exists() or not is_usable():
            make()
        UNFINISHED.touch()
        install(requirements(extra), lock)
        tell_where_the_clone_is()
        for stamp in {ready, wanted}:
            shutil.copyfile(SETUP, stamp)
        UNFINISHED.unlink()
    say("ready")


@contextmanager
def locked() -> Iterator[int]:
    """Keep other set-ups of this clone waiting; the lock is on setup.py, so that it leaves no file behind."""
    with SETUP.open("r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this clone to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def is_current(stamp: Path) -> bool:
    """Tell whether .venv was completed for the present setup.py."""
    return PYTHON.exists() and stamp.exists() and stamp.read_bytes() == SETUP.read_bytes()


def is_usable() -> bool:
    """Tell whether .venv has a Python that runs, is recent enough and can install."""
    check = "import pip, sys; sys.exit(sys.version_info < (3, 10))"
    if not PYTHON.exists():
        return False
    return subprocess.run([PYTHON, "-I", "-c", check], stderr=subprocess.DEVNULL).returncode == 0


def make() -> None:
    """Make an empty .venv in the place of whatever is there."""
    # The real path has the version in its name. When an upgrade of the system takes that version away,
    # .venv/bin/python dangles and is made anew; python3 would go on, and miss its packages.
    python = os.path.realpath(sys.executable)
    if importlib.util.find_spec("ensurepip") is None:
        package = f"python3.{sys.version_info.minor}-venv"
        raise SetupError(f"{python} cannot make virtual environments (Debian: apt install {package})")
    say(f"setting up {VENV} with Python {sys.version.split()[0]}; this happens once")
    discard()
    VENV.mkdir()
    UNFINISHED.touch()
    made = subprocess.run([python, "-I", "-m", "venv", VENV], capture_output=True, text=True)
    if made.returncode:
        raise SetupError(f"cannot make {VENV}: {last_line(made.stdout + made.stderr)}")


def discard() -> None:
    """Remove .venv; the name goes first, so that half of it never stands there."""
    shutil.rmtree(DISCARDED, ignore_errors=True)
    if os.path.lexists(VENV):
        VENV.rename(DISCARDED)
        shutil.rmtree(DISCARDED, ignore_errors=True)


def requirements(extra: str) -> list[str]:
    """Read the dependencies from setup.py, which does nothing when it is not the program that runs."""
    setup = runpy.run_path(str(SETUP))
    return [*setup["REQUIREMENTS"], *setup["EXTRAS"]["speedups"], *setup["EXTRAS"].get(extra, [])]


def install(wanted: list[str], lock: int) -> None:
    """Install what is not there yet, naming each package as pip comes to it."""
    pip = subprocess.Popen(
        [PYTHON, "-I", "-m", "pip", "install", *wanted],
        env={k: v for k, v in os.environ.items() if k not in DESTINATIONS} | PIP_SETTINGS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=[lock],  # a pip that outlives us keeps other set-ups waiting
    )
    with pip, LOG.open("w") as log:
        say("installing", end="")
        for line in pip.stdout or ():
            log.write(line)
            if collecting := re.match(r"(?:Collecting |Processing .*/)([\w.]+(?:-[a-zA-Z]\w*)*)", line):
                print(end=f" {collecting[1]}", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    if pip.returncode:
        reason = last_line(LOG.read_text(), "ERROR: ")
        raise SetupError(f"cannot install the dependencies: {reason} (is this machine online? see {LOG})")


def tell_where_the_clone_is() -> None:
    """Put the clone on the path of .venv's Python, relative to .venv, so that the clone may be moved."""
    for packages in VENV.glob("lib/python3*/site-packages"):
        (packages / "proxy-server.pth").write_text(os.path.relpath(ROOT, packages) + "\n")


def last_line(text: str, start: str = "") -> str:
    """Find the last line that begins so, and give what follows."""
    lines = [line[len(start) :] for line in text.splitlines() if line.startswith(start) and line.strip()]
    return lines[-1] if lines else "no reason given"


def say(text: str, end: str = "\n") -> None:
    """Tell the user; standard output belongs to the proxy."""
    print(f"proxy-server: {text}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SetupError as exc:
        say(str(exc))
        sys.exit(1)
    except OSError as exc:
        say(f"cannot set up {VENV}: {exc}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
