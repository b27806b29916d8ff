"""The dashboard for Grafana: it asks for what a running server tells, and is one that Grafana takes."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.certificates import Certificate
from tests.integration.programs import REPOSITORY, Proxy, run_proxy, socks_door, upstream, web_door
from tests.wire.sockets import free_port

FILE = REPOSITORY / "conf" / "grafana" / "proxy-server.json"
FUNCTIONS = {"sum", "min", "max", "count", "rate", "increase", "changes", "time", "histogram_quantile", "by"}
ADDED = {"instance"}  # by Prometheus, to each sample


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return content


@pytest.fixture(scope="module")
def told(good: Certificate) -> dict[str, set[str]]:
    """Give the labels of each metric of a server."""
    config = {
        "listeners": {"socks": socks_door(upstream="home"), "web": web_door(**good.settings)},
        "upstreams": {"home": upstream("socks5", ("127.0.0.1", free_port()))},
        "rules": {"none": {"port": "25", "action": "block"}},
        "limits": {"each": {"per": "user", "connections": "9", "bandwidth": "1m"}},
    }
    with Proxy(config) as node:
        text = run_proxy("ctl", "-c", str(node.config_path), "metrics").stdout.decode()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for each in dashboard["annotations"]["list"]:
        yield each["expr"]


def test_it_asks_for_nothing_that_is_not_told(dashboard: dict[str, Any], told: dict[str, set[str]]) -> None:
    asked = list(queries(dashboard))
    assert len(asked) > 20
    for query in asked:
        plain = re.sub(r'"[^"]*"|\[[^]]*\]', "", query)
        (by,) = re.findall(r"by \(([^)]*)\)", plain) or [""]
        wanted = set(re.findall(r"\w+", by))
        names = set(re.findall(r"[a-z_]{3,}(?![\w]*\s*=~)", re.sub(r"\{[^}]*\}|by \([^)]*\)", "", plain)))
        metrics = names - FUNCTIONS
        assert len(metrics) == 1, query
        (metric,) = metrics
        assert metric in told, query
        matched = {
            name for inside in re.findall(r"\{([^}]*)\}", plain) for name in re.findall(r"\w+", inside)
        }
        assert wanted | matched <= told[metric] | ADDED, query


def test_it_shows_what_an_operator_is_woken_up_by(dashboard: dict[str, Any]) -> None:
    """The gauges of the alerts in docs/operations.md."""
    text = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
    woken_by = set(re.findall(r"proxy_\w+", " ".join(re.findall(r"^ +expr: (.*)$", text, re.MULTILINE))))
    assert len(woken_by) > 5
    assert woken_by - set(re.findall(r"proxy_\w+", " ".join(queries(dashboard)))) == set()


def test_its_choices_are_labels_that_are_told(dashboard: dict[str, Any], told: dict[str, set[str]]) -> None:
    choices = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    for each in choices:
        match = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", each["definition"])
        assert match
        assert match[2] in told[match[1]] | ADDED
        assert each["query"]["query"] == each["definition"]
    known = {each["name"] for each in dashboard["templating"]["list"]} | {"__rate_interval", "__all"}
    assert set(re.findall(r"\$\{?(\w+)", FILE.read_text("utf-8"))) <= known


def test_no_label_in_a_legend_is_summed_away(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            kept = re.findall(r"\w+", "".join(re.findall(r"by \(([^)]*)\)", target["expr"])))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= set(kept), target


def test_it_is_one_that_grafana_takes(dashboard: dict[str, Any]) -> None:
    """
    Grafana's reference, "Dashboard JSON model": 24 columns, ids that are unique, and a datasource that is
    chosen where it is imported.
    """
    assert dashboard["schemaVersion"] >= 36
    assert (dashboard["title"], dashboard["uid"]) == ("proxy-server", "proxy-server")
    assert "id" not in dashboard  # that is given by the one who imports it
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["y"] >= 0
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["description"]
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in sources)
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        ), (one, other)
