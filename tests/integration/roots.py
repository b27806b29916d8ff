"""
This machine's root folder, as a copy to which a test may do anything: install packages, add users, listen.

It is an overlay, whose changes are in memory, with a network and mounts of its own. All of that lives as long
as one process, which ends with its standard input; so nothing is left, whatever becomes of the test.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.integration.peers import find, require
from tests.integration.programs import clean_environment

# /run is empty: installation scripts look there whether systemd runs, and it is not theirs here.
# Without auto-update man-db does not read all the machine's pages whenever one comes or goes.
MOUNTS = """
set -eu
mount -t tmpfs none "$1"
mkdir "$1/changes" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/changes,workdir=$1/work" "$1/root"
cd "$1/root"
mount --rbind /proc proc
mount --rbind /dev dev
mount -t tmpfs none run
mount -t tmpfs -o mode=1777 none tmp
mount --bind "$2" mnt
rm -f var/lib/man-db/auto-update
[ "$3" = none ] || "$3" link set lo up
exec chroot . sh -c 'echo ready; exec cat >/dev/null'
"""


class Root:
    """A root folder. What a folder of the test holds is at /mnt; with ``network`` it has the machine's."""

    def __init__(self, shared: Path, *, network: bool = False) -> None:
        require(os.geteuid() == 0, "a root folder of one's own needs root")
        self._network = [] if network else ["--net"]
        self._ip = "none" if network else find("ip", "iproute2")
        self._place = Path(tempfile.mkdtemp(prefix="root-", dir=shared))
        self._shared = shared
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def prefix(self) -> list[str]:
        """What to write before a command that shall run inside."""
        assert self._holder
        # env: what the tests have set is not for the programs of the system.
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"]
        return ["nsenter", "-t", str(self._holder.pid), "-m", "-n", "-r", "-w", *clean]

    def run(self, *command: str, check: bool = True, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command inside to its end, which has to be a good one."""
        done = subprocess.run(
            [*self.prefix, *command], input=stdin, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def changed(self, name: str) -> list[str]:
        """Name all that is there, was not before, and has a name of this pattern."""
        assert self._holder
        changes = f"{self._place}/changes"
        # A character device in the place of a file says that it was there, and is not any more.
        command = [
            "nsenter",
            "-t",
            str(self._holder.pid),
            "-m",
            "find",
            changes,
            "-name",
            name,
            "!",
            "-type",
            "c",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return sorted(line.removeprefix(changes) for line in done.stdout.splitlines())

    def __enter__(self) -> "Root":
        arguments = [str(self._place), str(self._shared), self._ip]
        self._holder = subprocess.Popen(
            ["unshare", "--mount", *self._network, "sh", "-c", MOUNTS, "root", *arguments],
            env=clean_environment("/"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout
        assert self._holder.stderr
        if self._holder.stdout.readline() != b"ready\n":
            self._holder.wait(20)
            require(False, f"cannot make a root folder: {self._holder.stderr.read().decode()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._holder
        self._holder.communicate(timeout=20)
        shutil.rmtree(self._place)
