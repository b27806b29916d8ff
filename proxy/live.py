"""
A server that runs from a file: the program, joined to what watches, changes and reports on it.

This is where the control plane meets the data plane, which knows nothing of it.
"""

import logging
import os
from collections.abc import Mapping

from proxy.app import App, Companion
from proxy.config import ProxyConfig
from proxy.configfile.load import peek, state_dir_of
from proxy.control.admin import Admin
from proxy.control.notify import Notifier, inherited_sockets
from proxy.control.program import Program
from proxy.ctl.ask import why_not_ours
from proxy.keeping.keeper import Keeper
from proxy.keeping.watcher import Watcher
from proxy.lines import begin, say
from proxy.net.deadline import Deadline
from proxy.net.sock import GeventSocket
from proxy.supervisor import HANDED
from proxy.trust import Trust

log = logging.getLogger(__name__)

_FAREWELL = 5.0  # seconds for the versions at the end


def serve(path: str, *, last_good: bool = False) -> None:
    """
    Serve what a file says, and what it comes to say, until a signal ends it.

    Raises ``InvalidConfigError`` for a file that cannot be used, unless the ``last_good`` version
    can be taken instead, and ``ProxyError`` for what cannot be had.
    """
    begin(as_json=peek(path, "log_format") == "json")  # whoever collects the log gets this too
    folder = state_dir_of(path)
    trust = Trust(path)
    reason = why_not_ours(folder, trust)  # asked before anything is read there
    if reason and last_good:
        say(f"warning: {reason}, so no version there is started with", logging.WARNING)
    keeper = Keeper(
        path, None if reason else folder, ProxyConfig.history_size, lambda config: app.apply(config), trust
    )
    warnings = keeper.start(last_good=last_good)
    begin(as_json=keeper.config.log_format == "json")
    for warning in warnings:
        say(f"warning: {warning}", logging.WARNING)
    app, program = _make_program(keeper)
    if program is None:
        return
    # The port of these the kernel has chosen, so that nothing but their names tells whose they are.
    left_open = {each.name for each in keeper.config.listeners if not each.is_unix and not each.endpoint.port}
    for name, sock in inherited_sockets():
        if name in left_open:
            app.at_hand.setdefault(name, []).append(sock)
        else:
            app.inherited.append(sock)
    admin = Admin(program, keeper, path, folder, trust, why_not_ours=reason)
    app.companion = _Control(app, keeper, admin)
    app.run()


def _make_program(keeper: Keeper) -> tuple[App, Program | None]:
    """Make the program; where this is only a trial whether it could be made, there is none."""
    # In the place of a supervisor comes another one, whatever the file says by now.
    if keeper.config.workers == 1 and HANDED not in os.environ:
        app = App(keeper.config, patient=True)
        return app, Program(app)
    # Not where one process is enough, which is to be no bigger for it.
    from proxy.supervisor.fleet import Fleet
    from proxy.supervisor.handover import Handover, is_trial, received
    from proxy.supervisor.together import Together
    from proxy.supervisor.upgrade import Upgrade

    before = received() or Handover()
    fleet = Fleet(keeper.config, patient=True)
    if is_trial():
        fleet.crew.try_one()
        return fleet, None
    keeper.outcomes.update(before.outcomes)
    return fleet, Together(fleet, Upgrade(fleet, before))


class _Control(Companion):
    """Watches a file, changes the program and tells of it."""

    def __init__(self, app: App, keeper: Keeper, admin: Admin) -> None:
        self._app = app
        self._keeper = keeper
        self._admin = admin
        self._watcher = Watcher(keeper)
        self._notifier = Notifier()

    def opened(self) -> None:
        self._admin.start()
        self._keeper.record()  # only what did come into effect

    def ready(self) -> None:
        self._watcher.start()
        self._keep_sockets()
        self._notifier.ready()
        self._notifier.start_watchdog()
        self.arrived()

    def reloading(self) -> None:
        self._notifier.reloading()

    def reload(self) -> None:
        self._keeper.reload()

    def reloaded(self) -> None:
        self._notifier.ready()
        self._admin.reopen()

    def replaced(self) -> Mapping[str, str]:
        self._notifier.reloading()
        return self._notifier.environment

    def undo(self, why: str) -> None:
        self._keeper.rollback()

    def applied(self) -> None:
        self.arrived()
        self._watcher.start()  # its greenlet goes on when the new interval is in effect

    def arrived(self) -> None:
        missing = [address for server in self._app.servers for address in server.missing]
        self._notifier.waiting_for(missing)
        self._keep_sockets()

    def _keep_sockets(self) -> None:
        """Have the service manager keep what listens: clients wait there while we are started anew."""
        listening: dict[str, list[GeventSocket]] = {}
        for server in self._app.servers:
            if server.acceptors:
                listening[server.config.name] = [each.given for each in server.acceptors]
        self._notifier.keep(listening)

    def stopping(self) -> None:
        self._watcher.stop()
        self._notifier.stopping()
        if self._notifier.is_there:
            for server in self._app.servers:
                for acceptor in server.acceptors:
                    acceptor.keep_file()

    def stopped(self) -> None:
        try:
            with Deadline(_FAREWELL).limit("the state_dir"):
                self._keeper.catch_up()
        except TimeoutError:
            # A thread may be held by a file system that does not answer, or a FIFO that nobody writes.
            log.warning("the configuration or its versions are still being read or written: not waited for")
        self._admin.stop()
