"""
What goes from one version of the program to the next in an upgrade, and between their processes.

It is pickled, so it goes by the names of modules, classes and fields. What the release before knows is
written down here.
"""

import dataclasses
import enum
import inspect
import pickle
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from proxy.errors import Failure, ProxyError
from proxy.metrics import Histogram, ListenerMetrics, Refusal
from proxy.supervisor import HANDED, TRIAL
from proxy.supervisor.handover import Handover
from proxy.workers import VARIABLE, link
from proxy.workers.limits import Ledger
from proxy.workers.worker import Worker

# Of each class: its fields, in their order.
EXCHANGED = {
    "proxy.address.Address": "host port zone ip",
    "proxy.address.Place": "host port zone both_families",
    "proxy.address.UnixAddress": "host port zone ip path",
    "proxy.control.connections.Listing": "live matching rows groups",
    "proxy.control.connections.Query": "sort is_descending limit words of group",
    "proxy.control.snapshot.Flow": "sent received sent_waiting received_waiting",
    "proxy.control.snapshot.Process": "cpu files memory",
    "proxy.control.snapshot.Ready": "state spares",
    "proxy.control.snapshot.Snapshot": "listeners live upstreams flows penalized process refusals",
    "proxy.errors.Failure": (
        "malformed_request credentials_refused not_allowed network_unreachable host_unreachable "
        "name_does_not_resolve name_lookup_failed_or_timed_out connection_refused timed_out "
        "command_not_supported address_type_not_supported connection_limit_reached too_many_requests "
        "upstream_proxy_failed general_failure"
    ),
    "proxy.errors.ProxyError": "failure",
    "proxy.health.State": "failures problem status may_return confirms answered_at failed_at cooldown_until",
    "proxy.limiter.Who": "client user listener",
    "proxy.metrics.Histogram": "counts sum (15)",
    "proxy.metrics.ListenerMetrics": (
        "refusals accepted filled sent received handshakes dials failures endings rules spares"
    ),
    "proxy.metrics.Refusal": "time client user listener target upstream stage cause reason rule limit",
    "proxy.policy.limits.Identity": "user client",
    "proxy.supervisor.handover.Handover": (
        "version upgrades next_number workers listening past deaths filled penalties refusals outcomes"
    ),
    "proxy.supervisor.handover.OldWorker": "number row pid link received snapshot age is_leaving",
}

# What a supervisor asks a worker that is older than it, and what such a worker asks: the parameters.
QUESTIONS = {
    "pause": "place",
    "resume": "place",
    "report": "places",
    "connections": "query",
    "end_connection": "name",
    "forgive": "client",
    "failed": "client penalty",
    "learn": "news",
    "take": "shares",
    "reopen_logs": "",
    "count_anew": "",
    "stop_at_once": "",
    "arrived_at": "name sockets",
    "arrive": "number who most_refused",
    "admit": "number who",
    "renew": "number who",
    "leave": "number",
}

WHAT_TO_DO = """
An upgrade from the release before would break: its supervisor and its workers know what stands in this file.
- Leave the name and the module of a class as they are, and the names and the meaning of its fields. Where one
  has to move, its old module has to know it, too.
- A new field has a plain default, no default_factory, and its class no slots: then either version can read
  what the other one has written. Write it down here.
- A new question is for workers of our own version: older ones do not know it.
What no release has had yet may change. Write it down here as it is now."""


def fields_of(kind: type) -> tuple[str, ...]:
    """Give what is pickled of a class of ours."""
    if dataclasses.is_dataclass(kind):
        return tuple(each.name for each in dataclasses.fields(kind))
    if issubclass(kind, enum.Enum):
        members: Iterable[enum.Enum] = kind
        return tuple(str(each.value).replace(" ", "_") for each in members)  # pickled are these
    if kind is ProxyError:
        return ("failure",)
    if kind is Histogram:
        return (*Histogram.__slots__, f"({len(Histogram().counts)})")  # which are added up
    assert kind is ListenerMetrics, f"{kind} is not known to this test"
    return tuple(vars(ListenerMetrics()))


def hints_of(kind: Any) -> Iterator[Any]:
    """Give the types that there are in a type, or in the fields of a class of ours."""
    yield from typing.get_args(kind)
    if isinstance(kind, type) and kind.__module__.startswith("proxy."):
        if dataclasses.is_dataclass(kind):
            yield from typing.get_type_hints(kind).values()
        elif kind is ListenerMetrics:
            yield from (Histogram, Refusal)
        elif kind is ProxyError:
            yield Failure
        subclasses: list[type] = type.__subclasses__(kind)
        yield from filter(dataclasses.is_dataclass, subclasses)


def classes_in(*roots: Any) -> dict[str, str]:
    """Give the classes of ours that values of these types are made of, each with its fields."""
    seen: list[Any] = []
    todo = list(roots)
    while todo:
        kind = todo.pop()
        if kind not in seen:
            seen.append(kind)
            todo += hints_of(kind)
    ours = [each for each in seen if isinstance(each, type) and each.__module__.startswith("proxy.")]
    return {f"{each.__module__}.{each.__qualname__}": " ".join(fields_of(each)) for each in ours}


def known(question: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Give the parameters of what answers a question, and the types of these and of the answer."""
    names = [each for each in inspect.signature(question).parameters if each != "self"]
    return " ".join(names), typing.get_type_hints(question)


def answering(questions: Iterable[str]) -> dict[str, Callable[..., Any]]:
    return {name: getattr(Ledger if hasattr(Ledger, name) else Worker, name) for name in questions}


def test_what_an_older_program_is_asked_it_knows() -> None:
    """And so does ours what such a one asks."""
    now = {name: known(each)[0] for name, each in answering(QUESTIONS).items()}
    assert now == QUESTIONS, WHAT_TO_DO


def test_what_goes_from_one_version_to_the_next_keeps_its_names() -> None:
    values = [kind for each in answering(QUESTIONS).values() for kind in known(each)[1].values()]
    assert classes_in(Handover, ProxyError, *values) == EXCHANGED, WHAT_TO_DO


def test_a_program_finds_what_the_one_before_hands_over() -> None:
    """By a variable of the environment; and a link goes on in the midst of its messages."""
    said = HANDED, TRIAL, VARIABLE, link._HEAD.format
    assert said == ("PROXY_SERVER_HANDED", "PROXY_SERVER_TRIAL", "PROXY_SERVER_WORKER", "!IH"), WHAT_TO_DO


def test_what_has_a_new_field_with_a_plain_default_is_read_as_it_was_written() -> None:
    """What the words above promise of pickles: the counter-example has slots."""
    written = pickle.dumps(Handover(upgrades=3)).replace(b"\x06deaths", b"\x06others")  # there was none then
    read = pickle.loads(written)
    assert (read.upgrades, read.deaths) == (3, 0)
