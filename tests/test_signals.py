"""
Signals that come before it is known what to do with them: they wait, and none is lost.

Each test is a process of its own, as all this belongs to a process.
"""

import signal
import subprocess
import sys

import pytest

EARLY = ["SIGHUP", "SIGUSR1", "SIGUSR2"]


def run(program: str) -> "subprocess.CompletedProcess[str]":
    """Run a program that has the module, and may send itself signals."""
    begin = "import os, signal, threading\nfrom proxy import signals\nme = os.getpid()\n"
    # What started us may ignore them, and whoever starts a program hands that down.
    begin += (
        "for each in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2): signal.signal(each, signal.SIG_DFL)\n"
    )
    return subprocess.run([sys.executable, "-c", begin + program], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("name", EARLY)
def test_one_that_comes_early_ends_nothing_until_it_is_wanted(name: str) -> None:
    done = run(f"signals.block()\nos.kill(me, signal.{name})\nprint('still here', flush=True)\n")
    assert (done.stdout, done.returncode) == ("still here\n", 0)
    done = run(f"signals.block()\nos.kill(me, signal.{name})\nsignals.unblock()\nprint('still here')\n")
    assert (done.stdout, done.returncode) == ("", -signal.Signals[name])


@pytest.mark.parametrize("name", EARLY)
def test_one_that_came_early_is_taken_by_the_handler_that_came_later(name: str) -> None:
    done = run(
        f"signals.block()\nos.kill(me, signal.{name})\n"
        f"signal.signal(signal.{name}, lambda *_: print('taken'))\n"
        "print('now')\nsignals.unblock()\n"
    )
    assert (done.stdout.splitlines(), done.returncode) == (["now", "taken"], 0), done.stderr


def test_an_interrupt_waits_until_the_imports_are_over() -> None:
    done = run(
        "signals.block()\nos.kill(me, signal.SIGINT)\nprint('imports')\n"
        "try:\n    signals.unblock_interrupt()\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    assert (done.stdout.splitlines(), done.returncode) == (["imports", "interrupted"], 0), done.stderr


@pytest.mark.parametrize("name", EARLY)
def test_the_interrupt_comes_through_while_the_others_still_wait(name: str) -> None:
    done = run(
        f"signals.block()\nsignals.unblock_interrupt()\nos.kill(me, signal.{name})\nprint('still here')\n"
        "try:\n    os.kill(me, signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    assert (done.stdout.splitlines(), done.returncode) == (["still here", "interrupted"], 0), done.stderr


@pytest.mark.parametrize("name", EARLY)
def test_no_thread_that_began_meanwhile_takes_one(name: str) -> None:
    """They inherit what is blocked: else the first such signal would end the program through one of them."""
    done = run(
        "signals.block()\n"
        "end = threading.Event()\nthread = threading.Thread(target=end.wait)\nthread.start()\n"
        f"os.kill(me, signal.{name})\nprint('still here')\nend.set()\nthread.join()\n"
    )
    assert (done.stdout, done.returncode) == ("still here\n", 0), done.stderr
