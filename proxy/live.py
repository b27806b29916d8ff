"""
A server that runs from a file: all that watches it, changes it and tells of it, joined to the program.

This is where the control plane meets the data plane, which knows nothing of it.
"""

import logging

from proxy.app import App, Hooks
from proxy.config import ProxyConfig
from proxy.configfile.load import peek, state_dir_of
from proxy.configfile.trust import Trust
from proxy.control.admin import Admin
from proxy.control.notify import Notifier, inherited_sockets
from proxy.control.versions import Versions
from proxy.control.watcher import Watcher
from proxy.ctl.ask import why_not_ours
from proxy.logs import begin, say


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
    versions = Versions(
        path, None if reason else folder, ProxyConfig.history_size, lambda config: app.apply(config), trust
    )
    warnings = versions.start(last_good=last_good)
    begin(as_json=versions.config.log_format == "json")
    for warning in warnings:
        say(f"warning: {warning}", logging.WARNING)
    hooks = Hooks()
    app = App(versions.config, hooks=hooks, patient=True)
    app.inherited = inherited_sockets()
    admin = Admin(app, versions, path, folder, trust, why_not_ours=reason)
    watcher = Watcher(versions.files, lambda: versions.config.reload_interval, versions.look)
    notifier = Notifier()

    def tell_what_is_missing() -> None:
        notifier.waiting_for([address for server in app.servers for address in server.missing])

    hooks.opened += [admin.start, versions.record]  # only what did come into effect
    hooks.ready += [watcher.start, notifier.ready, notifier.start_watchdog, tell_what_is_missing]
    hooks.reloading += [notifier.reloading]
    hooks.reload += [versions.reload]
    hooks.reloaded += [notifier.ready, admin.reopen]
    hooks.applied += [tell_what_is_missing]
    hooks.applied += [watcher.start]  # its greenlet goes on when the new interval is in effect
    hooks.arrived += [tell_what_is_missing]
    hooks.stopping += [watcher.stop, notifier.stopping]
    hooks.stopped += [versions.catch_up, admin.stop]
    app.run()
