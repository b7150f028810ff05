"""deploy/monitoring fits together: its files name each other, the settings, and nothing that is not there."""

import ipaddress
import json
import re
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from serving.settings import Settings, read_ini

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
COMPOSE, PROMETHEUS, RULES, TESTS, SOURCES, PROVIDERS = (
    yaml.safe_load((MONITORING / name).read_text())
    for name in (
        *("compose.yaml", "prometheus.yml", "rules.yml"),
        *("rules_test.yml", "datasources.yml", "dashboards.yml"),
    )
)
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]


def cells(panel):
    place = panel["gridPos"]
    return {
        (x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])
    }


def test_panels_have_ids_and_places_of_their_own():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(PANELS) > 20 and len(set(ids)) == len(ids)
    for one, other in combinations(DASHBOARD["panels"], 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
    assert max(x for panel in DASHBOARD["panels"] for x, _ in cells(panel)) < 24


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_says_what_it_shows_and_asks_the_source_that_is_chosen(panel):
    assert panel["title"] and panel["description"].endswith(".")
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    for asker in (panel, *panel["targets"]):
        assert asker["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert 'instance=~"$instance"' in target["expr"]


def test_grafana_finds_the_dashboard_and_its_source():
    (source,), (provider,) = SOURCES["datasources"], PROVIDERS["providers"]
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "instance"}
    assert variables["datasource"]["current"]["value"] == source["uid"] == "prometheus"
    mounted = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/dashboard.json" in mounted
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_an_alert_names_its_cause_and_settings_that_there_are(alert):
    settings = {key for section in read_ini(ROOT / "uwsgi.ini", {}).values() for key in section}
    assert alert["labels"]["severity"] in ("warning", "critical")
    told = alert["annotations"]
    assert "$labels.instance" in told["summary"] and told["summary"].endswith(".")
    named = set(re.findall(r"`(\w+)`", told["summary"] + told["description"]))
    assert named and named <= settings


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_an_alert_is_tested_where_it_fires_and_where_it_does_not(alert):
    cases = [case for test in TESTS["tests"] for case in test["alert_rule_test"] if case["alertname"] == alert["alert"]]
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}


def test_compose_is_reached_from_this_machine_alone_and_its_versions_stand():
    assert set(COMPOSE["services"]) == {"muleteer", "prometheus", "grafana"}
    for name, service in COMPOSE["services"].items():
        assert service["ports"] and all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        if name != "muleteer":
            assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])


def test_what_compose_mounts_is_there():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (MONITORING / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
    assert (MONITORING / COMPOSE["services"]["muleteer"]["build"] / "Dockerfile").is_file()


def test_prometheus_alone_of_the_network_may_see_the_metrics():
    service, network = COMPOSE["services"]["prometheus"], COMPOSE["networks"]["monitoring"]["ipam"]["config"][0]
    address = ipaddress.ip_address(service["networks"]["monitoring"]["ipv4_address"])
    assert address in ipaddress.ip_network(network["subnet"])
    # where no other container gets one
    assert address not in ipaddress.ip_network(network["ip_range"])
    environ = {**COMPOSE["services"]["muleteer"]["environment"], "MODEL": str(ROOT / "examples" / "fancy")}
    settings = Settings.read(ROOT / "uwsgi.ini", environ)
    assert settings.monitors == [*Settings.read(ROOT / "uwsgi.ini", {"MODEL": environ["MODEL"]}).monitors, str(address)]
    (job,) = PROMETHEUS["scrape_configs"]
    assert (job["job_name"], job["static_configs"]) == ("muleteer", [{"targets": ["muleteer:80"]}])
