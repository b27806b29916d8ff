"""
What the control interface answers, as people like to read it: aligned, in units, one thing a line.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from textwrap import wrap
from typing import Any

from proxy.accesslog import quoted
from proxy.ctl.cells import harmless, pad, width

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))

_MOST_NAMES = 4  # of a certificate
_SOON = 14 * 86400.0  # seconds before its end in which a certificate should have been renewed
_GAP = 2  # columns between those of a table
_LEAST = 8  # columns that are left of a text
_columns: ContextVar[int] = ContextVar("columns", default=0)  # that there are; 0: as many as it takes

Object = dict[str, Any]


def size(count: int) -> str:
    """Write a number of bytes with three digits or so: 0 B, 1.5 KiB, 23 MiB."""
    value, power = float(count), 0
    while value >= 999.5 and power < len(_SIZES) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.1f} {_SIZES[power]}" if power and value < 9.95 else f"{value:.0f} {_SIZES[power]}"


def span(seconds: float) -> str:
    """Write a duration in its two largest units: 5 s, 2 m 10 s, 3 d 4 h."""
    whole = max(0, int(seconds))
    parts = []
    for unit, length in _SPANS:
        count, whole = divmod(whole, length)
        parts.append((count, unit))
    first = next((at for at, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [part for part in parts[first : first + 2] if part[0] or part is parts[first]]
    return " ".join(f"{count} {unit}" for count, unit in shown)


def moment(seconds: float) -> str:
    """Write a time of day, as the clock here shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


@contextmanager
def across(columns: int) -> Iterator[None]:
    """Have tables in a block take no more columns than so many, if they can."""
    before = _columns.set(columns)
    try:
        yield
    finally:
        _columns.reset(before)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    Align columns; a head that begins with > has its column flush right.

    Where there is no room for all of it, texts are cut, the longest first, and numbers never. A text in the
    last column, such as a reason, goes on below instead.
    """
    rights = [head.startswith(">") for head in heads]
    lines = [[head.lstrip(">") for head in heads], *rows]
    lines = [[harmless(text) for text in line] for line in lines]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    if room := _columns.get():
        texts = [at for at, right in enumerate(rights) if not right]
        _fit(widths, texts, room - _GAP * (len(widths) - 1))
    return "\n".join(
        (" " * _GAP)
        .join(pad(text, size, right=right) for right, text, size in zip(rights, line, widths, strict=True))
        .rstrip()
        for whole in lines
        for line in _wrapped(whole, widths[-1])
    )


def _fit(widths: list[int], texts: Sequence[int], room: int) -> None:
    """Take from the widest of the texts what is too much, but leave something of each."""
    while sum(widths) > room and texts:
        widest = max(texts, key=widths.__getitem__)
        if widths[widest] <= _LEAST:
            return
        widths[widest] -= 1


def _wrapped(line: Sequence[str], columns: int) -> Iterator[Sequence[str]]:
    """Give a line of a table, and those below it that the last text takes."""
    *others, last = line
    # Only of these is it sure that each takes one column.
    pieces = wrap(last, columns) if last.isascii() and len(last) > columns else [last]
    yield [*others, pieces[0]]
    for piece in pieces[1:]:
        yield [*("" for _ in others), piece]


def render_status(answer: Object) -> str:
    """Show ``GET /status``."""
    blocks = [_summary(answer), _listeners(answer["listeners"])]
    if answer["upstreams"]:
        rows = [_upstream(each) for each in answer["upstreams"]]
        blocks.append(table(("LISTENER", "UPSTREAM", "ADDRESS", ">READY", "HEALTH"), rows))
    if answer.get("workers"):
        rows = [_worker(each) for each in answer["workers"]]
        blocks.append(table((">WORKER", ">PROCESS", "STATE", ">LIVE", ">AGE", ">CPU", ">MEMORY"), rows))
    return "\n\n".join(blocks)


def _worker(each: Object) -> list[str]:
    memory = size(each["memory"]) if each["memory"] is not None else "-"
    ids = str(each["id"]), str(each["pid"])
    return [*ids, each["state"], str(each["live"]), span(each["uptime"]), span(each["cpu"]), memory]


def _summary(answer: Object) -> str:
    version = answer["version"]
    when = moment(version["time"]) + (", not in the file" if version["volatile"] else "")
    since = answer["uptime" if answer["state"] == "running" else "draining_for"]
    lines = [
        f"{answer['program']}, process {answer['pid']}, {answer['state']} for {span(since)}",
        f"configuration: version {version['number']} from {version['source']}, {when}",
        *_trouble(answer.get("file", {"in_effect": True})),  # an older server says nothing of it
        *_certificates(answer["listeners"]),
        f"connections: {answer['live']} live, {answer['total']} in all",
        f"bytes: {size(answer['sent'])} sent, {size(answer['received'])} received",
    ]
    return "\n".join(lines)


def _trouble(file: Object) -> list[str]:
    if file["in_effect"]:
        return []
    return [f"the file is not in effect, since {moment(file['since'])}: {_plain(file['problem'])}"]


def _certificates(listeners: Sequence[Object]) -> Iterator[str]:
    for each in listeners:
        end = each.get("certificate_ends")  # an older server says nothing of it
        left = end - time.time() if end else _SOON
        if end and left < _SOON:
            when = f"expires in {span(left)}" if left > 0 else f"has expired, {span(-left)} ago"
            yield f"the certificate of {each['name']} {when}: {moment(end)}"


def _listeners(listeners: Sequence[Object]) -> str:
    heads = ("LISTENER", "SPEAKS", "ADDRESS", ">LIVE", ">LIMIT", ">TOTAL", ">FAILED", ">SENT", ">RECEIVED")
    return table(heads, [_listener(each) for each in listeners])


def _listener(each: Object) -> list[str]:
    missing = [f"{one} (waiting: {_plain(each['problem'])})" for one in each.get("waits_for", ())]
    return [
        each["name"],
        each["protocol"] + (" (TLS)" if each["tls"] else ""),
        ", ".join([*each["addresses"], *missing]) or "closed",
        *(str(each[key]) for key in ("live", "max_connections", "total", "failed")),
        size(each["sent"]),
        size(each["received"]),
    ]


def _upstream(each: Object) -> list[str]:
    spares = str(each.get("spares", 0))  # an older server has none
    return [each["listener"], each["name"], each["address"] or each["type"], spares, health(each)]


def health(each: Object) -> str:
    """Show how an upstream is."""
    said: str = each["health"]
    if said == "down":
        when = f"in {span(each['rests_for'] + 1)}" if each["rests_for"] else "next time"
        count = "1 failure" if each["failures"] == 1 else f"{each['failures']} failures"
        said = f"down ({count}), tried again {when}: {_plain(each['problem'])}"
    elif each["problem"]:
        said += f"; the last time: {_plain(each['problem'])}"
    elif not each["confirms"]:
        said += "; that a target is connected is only a promise (no X-Proxy-Bound)"
    return said


def upgrade(told: Object) -> str:
    """Show what came of an upgrade."""
    if told["status"] == "done":
        return f"upgraded from proxy-server {told['from']} to {told['to']}; the workers before it drain"
    return f"the upgrade failed: {_plain(told['problem'])}"


def connections(answer: Object) -> str:
    """Show ``GET /connections``."""
    rows = [_connection(each) for each in answer["connections"]]
    if not rows:
        return "no connections"
    return table(
        (">ID", "USER", "CLIENT", "LISTENER", "TARGET", "UPSTREAM", ">AGE", ">SENT", ">RECEIVED"), rows
    )


def _connection(each: Object) -> list[str]:
    return [
        str(each["id"]),
        quoted(each["user"]) if each["user"] else "-",
        each["client"],
        each["listener"],
        quoted(each["target"]) if each["target"] else "-",
        each["upstream"] or f"({each['state']})",
        span(each["age"]),
        size(each["sent"]),
        size(each["received"]),
    ]


def limits(answer: Object) -> str:
    """Show ``GET /limits``."""
    if not answer["limits"]:
        return "no limits"
    lines = [f"limit {name}: {count} refused" for name, count in answer["refused"].items() if count]
    if not answer["accounts"]:
        return "\n".join([*lines, "nobody has any of a limit"])
    heads = ("LIMIT", "WHO", ">LIVE", ">NEW/S", ">SENT/S", ">RECEIVED/S", ">WAITING")
    blocks = [table(heads, [_account(each) for each in answer["accounts"]])]
    if more := answer["total"] - len(answer["accounts"]):
        blocks.append(f"and {more} more with less")
    return "\n\n".join([*blocks, *(["\n".join(lines)] if lines else [])])


def explanation(answer: Object) -> str:
    """Show ``GET /explain``: each rule, each address, and what becomes of the connection."""
    rules = answer["rules"]
    width = max([len("(no rule)"), *(len(each["name"]) for each in rules)])
    lines = [_rule(each, width) for each in rules]
    decided = answer["decided"]
    if decided and not decided["rule"]:
        lines.append(f"{'':4}{'(no rule)':{width}}  yes   allow: by {_own_ways(answer, decided)}")
    if answer["addresses"] and answer["is_name"]:
        lines.append(f"looked up here: {', '.join(each['ip'] for each in answer['addresses'])}")
    across = max((len(each["ip"]) for each in answer["addresses"]), default=0)
    lines += [f"  {each['ip']:{across}}  {_verdict(each)}" for each in answer["addresses"]]
    if turned := answer.get("turned"):
        whose = f"by rule {turned['rule']}" if turned["rule"] else "as no rule is for it"
        lines.append(f"its address has it go another way, {whose}: by {', '.join(turned['ways'])}")
    if answer["goes"]:
        return "\n".join([*lines, f"goes: by {', '.join(answer['by'])}"])
    reply = ""
    if "socks" in answer:
        reply = f"  SOCKS {answer['socks']:02}, HTTP {answer['http']} {answer['proxy_status']}".rstrip()
    return "\n".join([*lines, f"refused: {_plain(answer['failure'])}{reply and '    '}{reply.strip()}"])


def _rule(each: Object, width: int) -> str:
    does = ""
    if each["answer"] == "yes":
        does = f"; would {each['action']}, and only reports" if each["report"] else f": {each['action']}"
    return f"{each['number']:3} {each['name']:{width}}  {each['answer']:4}  {_plain(each['why'])}{does}"


def _own_ways(answer: Object, decided: Object) -> str:
    return f"the ways out of {answer['listener']}: {', '.join(decided['ways'])}"


def _verdict(each: Object) -> str:
    if each["goes"]:
        return f"goes, by rule {each['rule']}" if each["rule"] else "goes"
    return _plain(each["why"])


def trial(answer: Object) -> str:
    """Show ``POST /test``: each hop, each stage of it with its time, and how it ends."""
    lines = []
    failed = ""
    for hop in answer["hops"]:
        lines.append(f"{hop['upstream']}  {hop['type']} {hop['address']}".rstrip())
        for stage in hop["stages"]:
            failed = "" if stage["ok"] else stage["stage"]
            said = [] if stage["ok"] else ["failed"]
            said += [stage["said"]] if stage["said"] else []
            said += [_certificate(stage["certificate"])] if stage["certificate"] else []
            lines.append(
                f"  {stage['stage']:9}  {_took(stage['seconds']):>9}  {_plain('; '.join(said))}".rstrip()
            )
    if not answer["ok"]:
        return "\n".join([*lines, f"failed at {failed}: {_plain(answer['failure'])}"])
    lines.append(f"reached in {_took(answer['seconds'])}")
    return "\n".join([*lines, *([f"note: {answer['note']}"] if answer["note"] else [])])


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 9.9995 else f"{seconds * 1000:.1f} ms"


def _certificate(each: Object) -> str:
    names, left = each["for"][:_MOST_NAMES], each["until"] - time.time()
    more = len(each["for"]) - len(names)
    whom = ", ".join(names) + (f" and {more} more" if more else "")
    when = f"in {span(left)}" if left > 0 else f"{span(-left)} ago"
    trust = {True: "trusted", False: "not trusted", None: "not checked (tls_verify = no)"}[each["trusted"]]
    return f"certificate for {whom} by {each['by']}, {trust}, ends {moment(each['until'])} ({when})"


def _account(each: Object) -> list[str]:
    most = size(each["bandwidth"]) if each["bandwidth"] else ""
    return [
        each["limit"],
        quoted(each["user"]) if each["user"] else each["client"] or "all",
        _of(str(each["live"]), each["connections"]),
        _of(f"{each['rate']:.1f}", each["new"]),
        *(_of(size(each[way]), most) if most else "-" for way in ("sent", "received")),
        str(each["waiting"]),
    ]


def refusals(answer: Object) -> str:
    """Show ``GET /refusals``, the newest last, as one reads a log."""
    if not answer["refusals"]:
        return "nobody was refused"
    rows = [_refusal(each) for each in answer["refusals"]]
    return table(("TIME", "CLIENT", "USER", "LISTENER", "TARGET", "UPSTREAM", "BY", "CAUSE"), rows)


def _refusal(each: Object) -> list[str]:
    # The penalty for failed logins is no section of [limits], whose names have no blanks.
    limit = each["limit"] if " " in each["limit"] else each["limit"] and f"limit {each['limit']}"
    by = f"rule {each['rule']}" if each["rule"] else limit
    return [
        moment(each["time"]),
        each["client"],
        quoted(each["user"]) if each["user"] else "-",
        each["listener"],
        quoted(each["target"]) if each["target"] else "-",
        each["upstream"] or "-",
        by or "-",
        each["cause"] if each["limit"] else each["reason"],  # a limit's reason is its name
    ]


def penalties(answer: Object) -> str:
    """Show ``GET /penalties``."""
    refused = f"{answer['refused']} logins were not judged"
    if not answer["penalties"]:
        return f"no login has failed of late; {refused}"
    rows = [
        [
            each["client"],
            f"{each['seconds']:.0f} s",
            span(each["refused_for"] + 1) if each["refused_for"] else "-",
        ]
        for each in answer["penalties"]
    ]
    return "\n\n".join([table(("CLIENT", ">SUM", ">REFUSED FOR"), rows), refused])


def _of(used: str, most: object) -> str:
    return f"{used} of {most}" if most else used


def versions(answer: Object) -> str:
    """Show ``GET /versions``, the newest last, as one reads a log."""
    rows = [
        [
            str(each["number"]) + ("*" if each["number"] == answer["current"] else " "),
            moment(each["time"]),
            each["source"],
            _plain(each["summary"]) + (" (not in the file)" if each["volatile"] else ""),
        ]
        for each in sorted(answer["versions"], key=lambda each: each["number"])
    ]
    return table((">VERSION ", "TIME", "SOURCE", "CHANGE"), rows)


def diff(answer: Object) -> str:
    """Show what differs between two versions."""
    return text(answer["diff"]) or "no difference"


def text(lines: str) -> str:
    """Show a text of several lines."""
    return "\n".join(map(_plain, lines.splitlines()))


def outcome(answer: Object) -> str:
    """Show what came of a reload, a rollback or a change."""
    said = {
        "applied": f"applied as version {answer['version']}",
        "unchanged": f"unchanged: version {answer['version']} stays",
        "rejected": f"rejected: version {answer['version']} stays",
    }[answer["status"]]
    problems = [f"  {_plain(problem)}" for problem in answer["problems"]]
    return "\n".join([said, *problems, *(f"note: {_plain(note)}" for note in answer["notes"])])


def _plain(text: str) -> str:
    """Keep what others wrote from steering the terminal."""
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)
