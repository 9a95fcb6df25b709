"""The documents cannot drift: every metric, route and command is in them, and nothing else is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import App
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter

from sept.cli import app as commands
from services.api.metrics import SnapshotCollector
from services.bottleneck import Look, find_bottleneck
from services.contracts import GeneratorStatus, Part
from tests.support.endpoint import open_endpoint
from tests.support.heartbeats import heartbeat, status_of
from tests.support.recorded_run import metrics

ROOT = Path(__file__).parent.parent
PACKAGES = ("services", "learner", "generator", "deploy", "studies", "sept")
MONITORING = ROOT / "deploy" / "containers" / "monitoring"
DASHBOARD = ROOT / "docs" / "dashboard.md"


def exported() -> set[str]:
    """Names of all metrics of a run that has everything."""
    shares = {"waiting_for_tasks": 0.0, "generating": 1.0}
    generator = heartbeat(Part.GENERATOR, "g", "generating", weight_version=1, shares=shares)
    row = GeneratorStatus(heartbeat=generator, age_s=0, lost=False)
    rounds = [metrics(number, learner_wait_s=20.0) for number in range(5)]
    snapshot = status_of(
        round=5,
        rounds_total=9,
        weight_version=5,
        last_round=rounds[-1],
        learner=heartbeat(Part.LEARNER, "learner", "training"),
        generators=(row,),
        generators_target=1,
    )
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot, find_bottleneck(rounds, [row], [Look(rounds[-1].time, 1.0)] * 3)))
    return {family.name for family in text_string_to_metric_families(generate_latest(registry).decode())}


def documented(path: Path, pattern: str) -> set[str]:
    """First cells of a document's tables that look like this."""
    return set(re.findall(rf"^\| `({pattern})` \|", path.read_text(), re.MULTILINE))


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    assert documented(ROOT / "docs" / "metrics.md", r"sept_\w+") == exported()


async def test_every_route_is_documented_and_every_documented_one_exists(tmp_path: Path, redis_url: str) -> None:
    async with open_endpoint(tmp_path / "run", redis_url) as endpoint:
        paths = endpoint.app.openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    assert documented(DASHBOARD, r"[A-Z]+ /[^`]*") == routes


def names(commands: App, prefix: str) -> Iterator[str]:
    for name in commands:
        if not name.startswith("-"):
            children = list(names(commands[name], f"{prefix} {name}"))
            yield from children or [f"{prefix} {name}"]


def test_every_command_is_documented_and_every_documented_one_exists() -> None:
    assert documented(DASHBOARD, r"sept [a-z ]+") == set(names(commands, "sept"))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_is_whole_and_names_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m"))
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "remedy"}
    assert_known(rule["expr"])


def test_alerts_have_names_of_their_own() -> None:
    found = [rule["alert"] for rule in rules()]
    assert len(found) == len(set(found))


def test_the_grafana_dashboard_asks_for_metrics_that_exist() -> None:
    board = TypeAdapter(dict[str, Any]).validate_json((MONITORING / "grafana.json").read_bytes())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert_known(target["expr"])


def assert_known(expr: str) -> None:
    """Brackets match and every metric is one of ours, or Prometheus' own `up`."""
    bare = re.sub(r'"[^"]*"', "", expr)
    assert all(bare.count(one) == bare.count(other) for one, other in ("()", "[]", "{}"))
    assert set(re.findall(r"\bsept_\w+", bare)) <= exported()
    assert re.search(r"\bsept_|\bup\{", bare)


def test_the_scrape_config_takes_the_rules_in() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    assert config["scrape_configs"][0]["authorization"]


PAGES = [path for path in ROOT.glob("docs/**/*.md") if path.name != "log.md"] + [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_and_links_to_exist(page: Path) -> None:
    text = page.read_text()
    packages = "services|learner|generator|deploy|studies|sept|benchmarks|tests|docs|requirements"
    named = re.findall(rf"`((?:{packages})/[\w./-]*\w/?)`", text)
    linked = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [name for name in linked if not (page.parent / name).exists()] == []


def test_functions_that_the_architecture_follows_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    sources = "\n".join(path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    methods = set(re.findall(r"`([A-Z]\w+)\.(\w+)`", text))
    functions = set(re.findall(r"`([a-z]\w+_\w+)`", text))
    assert len(methods) > 30
    assert [f"{owner}.{name}" for owner, name in methods if not re.search(rf"class {owner}\b", sources)] == []
    assert [f"{owner}.{name}" for owner, name in methods if not re.search(rf"def {name}\b|\b{name}:", sources)] == []
    assert [name for name in functions if not re.search(rf"def {name}\b|\b{name}\b *[:=]", sources)] == []
