"""
Fuzz all that reads what others have written, on all processors: ``make fuzz``.

``SEED=1`` repeats a run, ``ONLY=http-request,config`` takes some subjects, ``COUNT=100000`` so many inputs of
each, and ``TIME=60`` that many seconds for each at most.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from proxy.console import progress
from tests.fuzz.runs import bound_memory, run
from tests.fuzz.subjects import SUBJECTS

COUNT = 1_000_000
TIME = 300.0  # seconds
CHUNK = 500  # inputs between two looks at the clock
EVERY = 0.5  # seconds between two words of progress


def fuzz(
    pool: ProcessPoolExecutor,
    subject: str,
    seed: int,
    count: int,
    seconds: float,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[int, str]:
    """Try inputs of a subject, and give how many there were and the first finding."""
    ends, tells, done = time.monotonic() + seconds, time.monotonic() + EVERY, 0
    chunks: Iterator[range] = (range(at, min(at + CHUNK, count)) for at in range(0, count, CHUNK))
    running: dict[Future[str], range] = {}
    while True:
        while len(running) < 2 * (os.cpu_count() or 1) and time.monotonic() < ends:
            chunk = next(chunks, None)
            if chunk is None:
                break
            running[pool.submit(run, subject, seed, chunk)] = chunk
        if not running:
            return done, ""
        for each in wait(running, return_when=FIRST_COMPLETED).done:
            done += len(running.pop(each))
            if found := each.result():
                return done, found
        if time.monotonic() > tells:
            tell(f"{subject}: {done} of {count}, {max(ends - time.monotonic(), 0):.0f} s left at most")
            tells = time.monotonic() + EVERY


def main() -> int:
    """Fuzz each subject, and give the exit code: 1 if anything was found."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    count = int(os.environ.get("COUNT") or COUNT)
    seconds = float(os.environ.get("TIME") or TIME)
    only = (os.environ.get("ONLY") or ",".join(SUBJECTS)).split(",")
    print(f"seed {seed}: SEED={seed} repeats this run", flush=True)
    findings = 0
    with ProcessPoolExecutor(initializer=bound_memory) as pool:
        for subject in only:
            began = time.monotonic()
            with progress() as tell:
                done, found = fuzz(pool, subject, seed, count, seconds, tell)
            said = "time is over" if done < count and not found else "FOUND" if found else "nothing found"
            print(f"{subject:16} {done:9} inputs in {time.monotonic() - began:5.0f} s  {said}", flush=True)
            if found:
                findings += 1
                print(found, flush=True)
    return min(findings, 1)


if __name__ == "__main__":
    sys.exit(main())
