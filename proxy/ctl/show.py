"""
The answers of the control interface for people: aligned, with units, one thing per line.

Each answer has a function here that makes a text of it, and each kind of row one that gives its cells by
the heads of their columns, as ``table`` takes them.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from proxy.accesslog import quoted
from proxy.ctl.cells import table
from proxy.ctl.units import moment, size, span

_MOST_NAMES = 4  # of a certificate
_SOON = 14 * 86400.0  # seconds before its end in which a certificate should have been renewed

Object = dict[str, Any]
Row = dict[str, object]


def render_status(answer: Object) -> str:
    """Show ``GET /status``."""
    blocks = [_summary(answer), table([_listener(each) for each in answer["listeners"]])]
    if answer["upstreams"]:
        blocks.append(table([_upstream(each) for each in answer["upstreams"]]))
    if answer.get("workers"):
        blocks.append(table([_worker(each) for each in answer["workers"]]))
    return "\n\n".join(blocks)


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


def _listener(each: Object) -> Row:
    missing = [f"{one} (waiting: {_plain(each['problem'])})" for one in each.get("waits_for", ())]
    return {
        "LISTENER": each["name"],
        "SPEAKS": each["protocol"] + (" (TLS)" if each["tls"] else ""),
        "ADDRESS": ", ".join([*each["addresses"], *missing]) or "closed",
        ">LIVE": each["live"],
        ">LIMIT": each["max_connections"],
        ">TOTAL": each["total"],
        ">FAILED": each["failed"],
        ">SENT": size(each["sent"]),
        ">RECEIVED": size(each["received"]),
    }


def _upstream(each: Object) -> Row:
    return {
        "LISTENER": each["listener"],
        "UPSTREAM": each["name"],
        "ADDRESS": each["address"] or each["type"],
        ">READY": each.get("spares", 0),  # an older server has none
        "HEALTH": health(each),
    }


def _worker(each: Object) -> Row:
    return {
        ">WORKER": each["id"],
        ">PROCESS": each["pid"],
        "STATE": each["state"],
        ">LIVE": each["live"],
        ">AGE": span(each["uptime"]),
        ">CPU": span(each["cpu"]),
        ">MEMORY": "-" if each["memory"] is None else size(each["memory"]),
    }


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
        said += "; its success is only a promise (no X-Proxy-Bound)"
    return said


def upgrade(told: Object) -> str:
    """Show what came of an upgrade."""
    if told["status"] == "done":
        return f"upgraded from proxy-server {told['from']} to {told['to']}; the old workers drain"
    return f"the upgrade failed: {_plain(told['problem'])}"


def connections(answer: Object) -> str:
    """Show ``GET /connections``."""
    return table([_connection(each) for each in answer["connections"]]) or "no connections"


def _connection(each: Object) -> Row:
    return {
        ">ID": each["id"],
        "USER": _name(each["user"]),
        "CLIENT": each["client"],
        "LISTENER": each["listener"],
        "TARGET": _name(each["target"]),
        "UPSTREAM": each["upstream"] or f"({each['state']})",
        ">AGE": span(each["age"]),
        ">SENT": size(each["sent"]),
        ">RECEIVED": size(each["received"]),
    }


def _name(given: str) -> str:
    """Show a name that a client gave."""
    return quoted(given) if given else "-"


def limits(answer: Object) -> str:
    """Show ``GET /limits``."""
    if not answer["limits"]:
        return "no limits"
    lines = [f"limit {name}: {count} refused" for name, count in answer["refused"].items() if count]
    if not answer["accounts"]:
        return "\n".join([*lines, "nobody uses a limit"])
    blocks = [table([_account(each) for each in answer["accounts"]])]
    if more := answer["total"] - len(answer["accounts"]):
        blocks.append(f"and {more} more with less")
    if lines:
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _account(each: Object) -> Row:
    most = size(each["bandwidth"]) if each["bandwidth"] else ""
    return {
        "LIMIT": each["limit"],
        "WHO": quoted(each["user"]) if each["user"] else each["client"] or "all",
        ">LIVE": _of(each["live"], each["connections"]),
        ">NEW/S": _of(f"{each['rate']:.1f}", each["new"]),
        ">SENT/S": _of(size(each["sent"]), most) if most else "-",
        ">RECEIVED/S": _of(size(each["received"]), most) if most else "-",
        ">WAITING": each["waiting"],
    }


def _of(used: object, most: object) -> str:
    return f"{used} of {most}" if most else str(used)


def refusals(answer: Object) -> str:
    """Show ``GET /refusals``, the newest last, as one reads a log."""
    return table([_refusal(each) for each in answer["refusals"]]) or "nobody was refused"


def _refusal(each: Object) -> Row:
    # The penalty for failed logins is no section of [limits], whose names have no blanks.
    limit = each["limit"] if " " in each["limit"] else each["limit"] and f"limit {each['limit']}"
    by = f"rule {each['rule']}" if each["rule"] else limit
    return {
        "TIME": moment(each["time"]),
        "CLIENT": each["client"],
        "USER": _name(each["user"]),
        "LISTENER": each["listener"],
        "TARGET": _name(each["target"]),
        "UPSTREAM": each["upstream"] or "-",
        "BY": by or "-",
        "CAUSE": each["cause"] if each["limit"] else each["reason"],  # a limit's reason is its name
    }


def penalties(answer: Object) -> str:
    """Show ``GET /penalties``."""
    refused = f"logins not judged: {answer['refused']}"
    if not answer["penalties"]:
        return f"no login has failed recently; {refused}"
    return f"{table([_penalty(each) for each in answer['penalties']])}\n\n{refused}"


def _penalty(each: Object) -> Row:
    return {
        "CLIENT": each["client"],
        ">SUM": f"{each['seconds']:.0f} s",
        ">REFUSED FOR": span(each["refused_for"] + 1) if each["refused_for"] else "-",
    }


def explanation(answer: Object) -> str:
    """Show ``GET /explain``: each rule, each address, and what becomes of the connection."""
    rules = answer["rules"]
    width = max([len("(no rule)"), *(len(each["name"]) for each in rules)])
    lines = [_rule(each, width) for each in rules]
    decided = answer["decided"]
    if decided and not decided["rule"]:
        ways = f"the upstreams of {answer['listener']}: {', '.join(decided['ways'])}"
        lines.append(f"{'':4}{'(no rule)':{width}}  yes   allow: through {ways}")
    if answer["addresses"] and answer["is_name"]:
        lines.append(f"looked up here: {', '.join(each['ip'] for each in answer['addresses'])}")
    across = max((len(each["ip"]) for each in answer["addresses"]), default=0)
    lines += [f"  {each['ip']:{across}}  {_verdict(each)}" for each in answer["addresses"]]
    if turned := answer.get("turned"):
        whose = f"by rule {turned['rule']}" if turned["rule"] else "as no rule matches"
        lines.append(f"its address sends it another way, {whose}: through {', '.join(turned['ways'])}")
    if answer["goes"]:
        return "\n".join([*lines, f"goes: through {', '.join(answer['by'])}"])
    refused = f"refused: {_plain(answer['failure'])}"
    if "socks" in answer:
        refused += f"    SOCKS {answer['socks']:02}, HTTP {answer['http']} {answer['proxy_status']}".rstrip()
    return "\n".join([*lines, refused])


def _rule(each: Object, width: int) -> str:
    does = ""
    if each["answer"] == "yes":
        does = f"; would {each['action']}, and only reports" if each["report"] else f": {each['action']}"
    return f"{each['number']:3} {each['name']:{width}}  {each['answer']:4}  {_plain(each['why'])}{does}"


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
            certificate = stage["certificate"] and _certificate(stage["certificate"])
            said = filter(None, ("" if stage["ok"] else "failed", stage["said"], certificate))
            took = f"{_took(stage['seconds']):>9}"
            lines.append(f"  {stage['stage']:9}  {took}  {_plain('; '.join(said))}".rstrip())
    if not answer["ok"]:
        return "\n".join([*lines, f"failed at {failed}: {_plain(answer['failure'])}"])
    lines.append(f"reached in {_took(answer['seconds'])}")
    if answer["note"]:
        lines.append(f"note: {answer['note']}")
    return "\n".join(lines)


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 9.9995 else f"{seconds * 1000:.1f} ms"


def _certificate(each: Object) -> str:
    names, left = each["for"][:_MOST_NAMES], each["until"] - time.time()
    more = len(each["for"]) - len(names)
    whom = ", ".join(names) + (f" and {more} more" if more else "")
    when = f"in {span(left)}" if left > 0 else f"{span(-left)} ago"
    trust = {True: "trusted", False: "not trusted", None: "not checked (tls_verify = no)"}[each["trusted"]]
    return f"certificate for {whom} by {each['by']}, {trust}, ends {moment(each['until'])} ({when})"


def versions(answer: Object) -> str:
    """Show ``GET /versions``, the newest last, as one reads a log."""
    rows = [
        {
            ">VERSION ": str(each["number"]) + ("*" if each["number"] == answer["current"] else " "),
            "TIME": moment(each["time"]),
            "SOURCE": each["source"],
            "CHANGE": _plain(each["summary"]) + (" (not in the file)" if each["volatile"] else ""),
        }
        for each in sorted(answer["versions"], key=lambda each: each["number"])
    ]
    return table(rows)


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
