"""What a server answers, for those who show it."""

from typing import Any

STATUS: dict[str, Any] = {
    "program": "proxy-server 1.0",
    "state": "running",
    "pid": 4711,
    "started": 0.0,
    "uptime": 90061.0,
    "version": {"number": 12, "time": 0.0, "source": "file", "summary": "", "volatile": False},
    "file": {"in_effect": True},
    "live": 3,
    "total": 4000,
    "sent": 1536,
    "received": 5 << 30,
    "listeners": [
        {
            "name": "socks",
            "protocol": "socks5",
            "tls": False,
            "addresses": ["127.0.0.1:1080"],
            "live": 3,
            "max_connections": 1024,
            "total": 4000,
            "failed": 17,
            "sent": 1536,
            "received": 5 << 30,
        }
    ],
    "upstreams": [
        {
            "listener": "socks",
            "name": "home",
            "type": "websocket",
            "address": "wss://gateway.example.com/",
            "health": "down",
            "failures": 3,
            "confirms": True,
            "rests_for": 3.2,
            "problem": "upstream home: Connection\x1b[31m refused",
        }
    ],
}
