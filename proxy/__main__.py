"""
Where the program starts: the standard library is made cooperative before anything else is imported.
"""

from proxy import signals

signals.block()

from gevent import config, events, monkey

# For each of 25 things that it patches it would look through all that is installed for plugins, which takes a
# fifth of the start, and more where much is installed. We have none.
events.notify_and_call_entry_points = events.notify  # type: ignore[attr-defined]
config.track_greenlet_tree = False  # which greenlet made which: 3 KB a connection, for nobody
# Nothing here uses it, and since Python 3.14 to patch it loads multiprocessing.
monkey.patch_all(subprocess=False)

import sys

from gevent.hub import Hub

from proxy import console
from proxy.cli import run

# One that comes while the event loop waits goes up to ``run``; gevent would print it on the way.
Hub.NOT_ERROR = (*Hub.NOT_ERROR, KeyboardInterrupt)


def main() -> None:
    """Run the command line, and exit with its code."""
    console.take_over()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
