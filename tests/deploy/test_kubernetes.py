"""The manifests are what Kubernetes allows, and what the program expects."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest

from devmesh import __version__
from devmesh.edges.health import Health, routes
from devmesh.environment import SettingsError
from devmesh.settings import Settings
from tests.deploy.files import KUBERNETES, PORTS, SECRETS, SETTINGS, documents, is_command

TEMPLATE, KUSTOMIZATION = "secret.example.yaml", "kustomization.yaml"
MANIFESTS = [path for path in sorted(KUBERNETES.glob("*.yaml")) if path.name != KUSTOMIZATION]
OBJECTS = [document for path in MANIFESTS for document in documents(path)]
HEALTH_PATHS = {route.path for route in routes(Health("any"))}
MARGIN_S = 5
CONNECTIONS_BESIDE_POOL = 2


def named(kind: str) -> dict[str, Any]:
    return {item["metadata"]["name"]: item for item in OBJECTS if item["kind"] == kind}


DEPLOYMENTS = named("Deployment")
CONFIG: dict[str, str] = named("ConfigMap")["devmesh"]["data"]
TEMPLATE_VALUES: dict[str, str] = named("Secret")["devmesh"]["stringData"]


def pod_of(name: str) -> dict[str, Any]:
    pod: dict[str, Any] = DEPLOYMENTS[name]["spec"]["template"]["spec"]
    return pod


def container_of(name: str) -> dict[str, Any]:
    [container] = pod_of(name)["containers"]
    assert isinstance(container, dict)
    return container


def containers_of(name: str) -> list[dict[str, Any]]:
    return [*pod_of(name)["initContainers"], *pod_of(name)["containers"]]


def replicas_of(name: str) -> int:
    """At the least."""
    autoscalers = [item["spec"] for item in named("HorizontalPodAutoscaler").values()]
    scaled = {spec["scaleTargetRef"]["name"]: spec["minReplicas"] for spec in autoscalers}
    replicas: int = DEPLOYMENTS[name]["spec"].get("replicas") or scaled[name]
    return replicas


@pytest.mark.parametrize("version", ["1.30.0", "latest"])
def test_each_is_what_kubernetes_allows(version: str) -> None:
    wanted = kubernetes_validate.latest_version() if version == "latest" else version
    for item in OBJECTS:
        kubernetes_validate.validate(item, wanted, strict=True)


def test_everything_is_applied_but_the_form_for_the_secret() -> None:
    [kustomization] = documents(KUBERNETES / KUSTOMIZATION)
    assert set(kustomization["resources"]) == {path.name for path in MANIFESTS} - {TEMPLATE}
    assert kustomization["resources"][0] == "namespace.yaml"
    [image] = kustomization["images"]
    used = {container["image"] for name in DEPLOYMENTS for container in containers_of(name)}
    assert used == {f"{image['name']}:{__version__}"}
    assert image["newTag"] == __version__
    for item in OBJECTS:
        assert item["kind"] == "Namespace" or item["metadata"]["namespace"] == "devmesh"


def test_every_variable_is_a_setting_and_every_value_is_taken() -> None:
    assert {*CONFIG, *TEMPLATE_VALUES} <= SETTINGS
    secrets = {name: SECRETS[name] for name in TEMPLATE_VALUES}
    settings = Settings.load({**CONFIG, **secrets})
    assert settings.environment == "production"
    assert settings.skip_migrations  # the init containers migrate
    assert not settings.warnings


def test_what_stands_in_the_form_is_refused() -> None:
    for name, value in TEMPLATE_VALUES.items():
        with pytest.raises(SettingsError, match=name):
            Settings.load({name: value})


def test_all_three_services_run_in_several_replicas_of_which_one_may_go() -> None:
    assert set(DEPLOYMENTS) == set(PORTS)
    budgets = named("PodDisruptionBudget")
    for name, deployment in DEPLOYMENTS.items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        assert replicas_of(name) >= 2
        assert budgets[name]["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        for constraint in pod_of(name)["topologySpreadConstraints"]:
            assert constraint["labelSelector"]["matchLabels"] == labels


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_pods_migrate_and_then_run_their_service(name: str) -> None:
    [migrate] = pod_of(name)["initContainers"]
    assert migrate["args"] == ["migrate"]
    assert container_of(name)["args"] == [name]
    for container in containers_of(name):
        assert is_command(container["args"])
        assert container["envFrom"] == [{"configMapRef": {"name": "devmesh"}}, {"secretRef": {"name": "devmesh"}}]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_probes_ask_what_the_service_answers(name: str) -> None:
    container = container_of(name)
    [port] = container["ports"]
    assert port["containerPort"] == PORTS[name]
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
        assert path in HEALTH_PATHS


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_service_leads_to_its_pods(name: str) -> None:
    service = named("Service")[name]["spec"]
    [port] = service["ports"]
    [target] = container_of(name)["ports"]
    assert (port["port"], port["targetPort"]) == (PORTS[name], target["name"])
    assert service["selector"] == DEPLOYMENTS[name]["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_is_not_killed_while_it_stops(name: str) -> None:
    [_, sleep_s] = container_of(name)["lifecycle"]["preStop"]["exec"]["command"]
    grace_s = float(CONFIG["DEVMESH_SHUTDOWN_GRACE_S"])
    assert pod_of(name)["terminationGracePeriodSeconds"] >= int(sleep_s) + grace_s + MARGIN_S


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_may_do_nothing_but_its_work(name: str) -> None:
    pod = pod_of(name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in containers_of(name):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert {"requests", "limits"} <= set(container["resources"])


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_kubernetes_adds_no_variables_of_its_own(name: str) -> None:
    """It would call them DEVMESH_…_PORT for a service named devmesh-…, and they are no ports."""
    assert pod_of(name)["enableServiceLinks"] is False


def test_the_network_policies_select_ports_and_pods_that_there_are() -> None:
    ports = {port["name"] for name in DEPLOYMENTS for port in container_of(name)["ports"]}
    for policy in named("NetworkPolicy").values():
        opened = [port["port"] for rule in policy["spec"].get("ingress", []) for port in rule["ports"]]
        assert set(opened) <= ports
    text = (KUBERNETES / "network-policy.yaml").read_text()
    assert all(name in text for name in DEPLOYMENTS)


def test_the_read_me_counts_connections_as_the_files_make_them() -> None:
    each = int(CONFIG["DEVMESH_DATABASE_POOL_SIZE_MAX"]) + CONNECTIONS_BESIDE_POOL
    [autoscaler] = named("HorizontalPodAutoscaler").values()
    least = sum(replicas_of(name) for name in DEPLOYMENTS)
    most = least - autoscaler["spec"]["minReplicas"] + autoscaler["spec"]["maxReplicas"]
    text = (KUBERNETES.parent / "README.md").read_text()
    for label, processes in (("as it is", least), ("gateways at their most", most)):
        row = re.search(rf"\| Kubernetes, {label} \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", text)
        assert row is not None, label
        counted, pool, connections, maximum = map(int, row.groups())
        assert (counted, pool, connections) == (processes, each - CONNECTIONS_BESIDE_POOL, (processes + 3) * each)
        assert maximum > connections
