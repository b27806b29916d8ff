"""
The configuration file that ``-init`` writes, for somebody to start from.

As it stands it serves this machine alone. The settings that it only suggests are valid too, all together.
"""

import os
from contextlib import suppress

from proxy.errors import ProxyError, reason_of

STARTER = """\
# Configuration of proxy-server, to start from. As it is, it is a proxy for this machine alone,
# without passwords:
#
#   curl -x socks5h://127.0.0.1:1080 https://www.example.com/     SOCKS5
#   curl -x http://127.0.0.1:1080 https://www.example.com/        the same port as an HTTP proxy
#
# Lines that begin with # and no blank are settings to try: remove the #, and change the value.
# There are many more: the manual page proxy-server.ini(5), or docs/configuration.md, explains them,
# and `proxy-server -c FILE -dump` prints them. A running server notices a change of this file within
# two seconds. A file with a mistake changes nothing: `proxy-server -c FILE -check` shows what is wrong.

[proxy]
#timeout = 30s                  # the total time for reaching a target
#idle_timeout = 2h              # close connections on which no byte moves for this long; 0 = never
#max_connections = 1024         # for each listener
#access_log = -                 # one line for each connection: - is standard error; a path; or off

# Who may use the proxy: name = password, one user per line. The password is plain, or better the hash that
# `proxy-server -hash-password` prints. Add users before a listener listens on more than 127.0.0.1.
[auth_users]
#alice = change-me

# Where clients connect. Each listener is a [[section]] with a name of your choice.
[listeners]
[[local]]
protocol = mixed                # SOCKS5, SOCKS4 and HTTP proxy clients on one port; or: socks5 | websocket
listen_addr = 127.0.0.1:1080    # :1080 is every address of this machine
#upstream = gateway             # from [upstreams], in order of preference; without it: direct
#clients = 127.0.0.0/8          # who may connect, as networks: 192.168.0.0/16, fd00::/8

# The far end of a tunnel, for other proxy-servers, behind nginx or another HTTP server that does the TLS.
#[[tunnel]]
#protocol = websocket
#listen_addr = 127.0.0.1:8080
#path = /tunnel

# Other proxies through which connections can go.
[upstreams]
#[[gateway]]
#type = websocket               # direct | socks5 | http | websocket
#proxy_address = wss://gateway.example.com/tunnel
#proxy_username = alice
#proxy_password = change-me

# Where clients may go. The first rule that matches decides; `proxy-server -c FILE -explain HOST:PORT`
# shows which.
[rules]
#[[mail]]
#port = 25, 465, 587
#action = block

# How much each client may use.
[limits]
#[[fair]]
#per = client
#connections = 200
"""


def write_starter(path: str) -> None:
    """Write the file where there is none yet, for its owner alone: there will be passwords in it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ProxyError(f"{path} exists already, and is not overwritten: name another file") from None
    except OSError as exc:
        raise _cannot(path, exc) from exc
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(STARTER)
            file.flush()
            os.fsync(descriptor)
    except OSError as exc:
        # Half a file would be in the way of the next attempt.
        with suppress(OSError):
            os.unlink(path)
        raise _cannot(path, exc) from exc


def _cannot(path: str, exc: OSError) -> ProxyError:
    return ProxyError(f"{path} cannot be written: {reason_of(exc)}")
