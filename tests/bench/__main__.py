"""
Run the benchmark: every work, through every contender in turn, several times over; show the medians.

The settings come from the environment, as ``make bench NAME=VALUE`` hands them on; docs/performance.md
has them all.
"""

import itertools
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from proxy.console import progress
from tests.bench import plan
from tests.bench.bars import Results
from tests.bench.contenders import CONTENDERS, QUICK, USUAL, Missing, Running, had, running
from tests.bench.load import LoadFailed, listen
from tests.bench.measuring import Sample
from tests.bench.plan import Plan
from tests.bench.tables import NOTES, Table, table_of, table_of_bars
from tests.bench.works import QUICK as QUICK_WORKS
from tests.bench.works import WORKS, Work
from tests.integration.longwire import Site, Wire

DESCRIPTORS = 16384  # that each program may open


def main() -> None:
    """Run the benchmark."""
    listen().close()  # where another run has just ended, this waits until there are free ports again
    began = time.monotonic()
    quick = bool(os.environ.get("QUICK"))
    scale = plan.QUICK if quick else plan.FULL
    works = chosen("WORK", WORKS, QUICK_WORKS if quick else WORKS)
    names = chosen("PEERS", CONTENDERS, QUICK if quick else USUAL)
    planned = plan.make(scale, works, names)
    until = began + scale.limit
    allow_descriptors()
    results: dict[str, dict[str, list[Sample]]] = {}
    for far, there in itertools.groupby(works, key=lambda name: WORKS[name].law is not None):
        group = list(there)
        with ExitStack() as stack:
            site = place(far, stack)
            if site is None:
                continue
            able = [name for name in names if any(name in WORKS[work].contenders for work in group)]
            contenders = list(start(able, site, stack, until))
            for name in group:
                results[name] = rounds(WORKS[name], contenders, planned, until)
                print(table_of(WORKS[name], results[name]).text(), flush=True)
    conclude(results, footer(time.monotonic() - began, planned))


def place(far: bool, stack: ExitStack) -> Site | None:
    """Make the place for some works: a long wire, or this machine's loopback."""
    if not far:
        return Site()
    try:
        return stack.enter_context(had(Wire))
    except Missing as exc:
        say(f"missing: the long wire, so nothing is measured over it: {exc}")
        return None


def conclude(results: Results, notes: Sequence[str]) -> None:
    """Show whether the bars were passed, and keep everything in a document if one is wanted."""
    bars = table_of_bars(results)
    print(bars.text(), *notes, sep="\n")
    if path := os.environ.get("MARKDOWN"):
        tables = [bars, *(table_of(WORKS[name], samples) for name, samples in results.items())]
        Path(path).write_text(document(tables, notes), encoding="utf-8")


def chosen(variable: str, known: Iterable[str], usual: Iterable[str]) -> list[str]:
    """Read a choice of names from the environment; the beginning of some names stands for all of them."""
    wanted = os.environ.get(variable, "").replace(",", " ").split()
    found: list[str] = []
    for word in wanted or usual:
        meant = [name for name in known if name == word] or [name for name in known if name.startswith(word)]
        if not meant:
            sys.exit(f"bench: {variable}={word}: choose from {', '.join(known)}")
        found += meant
    return list(dict.fromkeys(found))


def allow_descriptors() -> None:
    """Raise the limit of open files, for the load and for all programs alike."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = min(hard, DESCRIPTORS) if hard != resource.RLIM_INFINITY else DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


def start(names: Sequence[str], site: Site, stack: ExitStack, until: float) -> Iterable[Running]:
    """Start the contenders as long as there is time to measure them; name those that are missing."""
    for name in names:
        if time.monotonic() > until:
            return
        try:
            yield stack.enter_context(running(name, site))
        except Missing as exc:
            say(f"missing: {name}: {exc}")


def rounds(work: Work, contenders: Sequence[Running], planned: Plan, until: float) -> dict[str, list[Sample]]:
    """Give a work to the contenders in turn, some times over."""
    able = [contender for contender in contenders if contender.name in work.contenders]
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in able}
    say(f"{work.title} …")
    with progress() as tell:
        for number in range(-work.warm_ups, planned.rounds_of(work)):
            for contender in able[:]:
                left = until - time.monotonic()
                which = f"round {number + 1} of {planned.rounds_of(work)}" if number >= 0 else "warming up"
                tell(f"{which}: {contender.name}; {max(left, 0):.0f} s left for all at most")
                if left < 0:
                    tell("")
                    say("out of time: the rest is not measured")
                    return samples
                if work.law and isinstance(contender.site, Wire):
                    contender.site.obey(replace(work.law, seed=number))
                try:
                    sample = work.measure(contender, planned.length_of(work))
                except (LoadFailed, Missing) as exc:
                    tell("")
                    say(f"{contender.name} failed: {exc}")
                    able.remove(contender)
                    continue
                if number >= 0:
                    samples[contender.name].append(sample)
    return samples


def footer(seconds: float, planned: Plan) -> list[str]:
    """Say what the tables were measured on, and explain the marks."""
    return [
        f"Medians of {planned.rounds} rounds of {planned.length.seconds:.2f} s, {seconds:.0f} s in all.",
        machine(),
        *(f"Marked {mark}: {meaning}." for mark, meaning in NOTES.items()),
    ]


def machine() -> str:
    """Describe the machine, without its name."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    congestion_control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    # One that somebody has built may lack the optimizations that distributions turn on.
    origin = "of the system" if sys.base_prefix == "/usr" else "not of the system"
    return (
        f"Python {platform.python_version()} ({origin}), {platform.system()} {platform.release()}, "
        f"{os.cpu_count()} cores ({cpu}), TCP {congestion_control}."
    )


def document(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Write the results as a document."""
    head = ["# The latest measurement", "", "Generated by `make bench`; do not edit.", ""]
    return "\n".join([*head, *(f"{note}\n" for note in notes), *(table.markdown() for table in tables)])


def say(text: str) -> None:
    """Tell how it goes; the tables alone go to standard output."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # To be ended is to be interrupted: Dante outlives us unless it is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
