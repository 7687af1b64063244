"""Who may talk to whom, decided by the rendered NetworkPolicies as a cluster would decide."""

import ipaddress

import pytest

from tests.support import manifests as k8s

HERE = {"kubernetes.io/metadata.name": "lorchestra"}
OPERATOR = (
    {"kubernetes.io/metadata.name": "kuberay-system"},
    {"app.kubernetes.io/component": "kuberay-operator"},
)
DNS = ({"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "kube-dns"})
STRANGER = (
    {"kubernetes.io/metadata.name": "default"},
    {"app.kubernetes.io/component": "ray", "lorchestra.io/pool": "head"},
)
PROMETHEUS = ({"kubernetes.io/metadata.name": "monitoring"}, {})


def ours(**labels):
    names = {"component": "app.kubernetes.io/component", "pool": "lorchestra.io/pool"}
    return HERE, {names[key]: value for key, value in labels.items()}


HEAD, WORKER = ours(component="ray", pool="head"), ours(component="ray", pool="steady")
TRAINER = ours(component="ray", pool="trainer")
MLFLOW, POSTGRES, S3 = (ours(component=one) for one in ("mlflow", "postgres", "s3"))
UPGRADE = ours(component="mlflow-upgrade")


def matches(selector, labels):
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", ()):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def is_peer(rule, other):
    """Whether a peer of a rule is a pod (labels of namespace and pod) or an address."""
    if isinstance(other, str):
        block = rule.get("ipBlock")
        if block is None:
            return False
        address = ipaddress.ip_address(other)
        blocked = [ipaddress.ip_network(one) for one in block.get("except", ())]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in one for one in blocked
        )
    if "ipBlock" in rule:
        return False
    namespace, labels = other
    if "namespaceSelector" in rule:
        is_there = matches(rule["namespaceSelector"], namespace)
    else:
        is_there = namespace == HERE
    return is_there and matches(rule.get("podSelector", {}), labels)


def one_way(policies, way, pod, other, port, protocol):
    """Whether the policies of a pod let a connection through in one direction."""
    key, peers = ("ingress", "from") if way == "Ingress" else ("egress", "to")
    mine = [
        one["spec"]
        for one in policies
        if way in one["spec"]["policyTypes"] and matches(one["spec"]["podSelector"], pod[1])
    ]
    if not mine:
        return True
    for rule in (rule for spec in mine for rule in spec.get(key, ())):
        ports = rule.get("ports")
        fits = ports is None or {"protocol": protocol, "port": port} in ports
        if fits and (peers not in rule or any(is_peer(one, other) for one in rule[peers])):
            return True
    return False


def allowed(overlay, source, target, port, protocol="TCP"):
    """Whether a connection is let out of the one and into the other."""
    policies = list(k8s.of_kind(k8s.manifests(overlay), "NetworkPolicy").values())
    out = source[0] != HERE or one_way(policies, "Egress", source, target, port, protocol)
    is_inside = not isinstance(target, str) and target[0] == HERE
    return out and (not is_inside or one_way(policies, "Ingress", target, source, port, protocol))


@pytest.mark.parametrize("overlay", k8s.PLATFORMS)
def test_everything_is_denied_first(overlay):
    policy = k8s.of_kind(k8s.manifests(overlay), "NetworkPolicy")["default-deny"]
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("overlay", k8s.PLATFORMS)
def test_what_a_sweep_needs_is_open(overlay):
    for source, target, port in (
        (HEAD, WORKER, 10002), (TRAINER, HEAD, 6379), (WORKER, TRAINER, 34567),
        (HEAD, MLFLOW, 5000), (MLFLOW, POSTGRES, 5432), (UPGRADE, POSTGRES, 5432),
        (OPERATOR, HEAD, 8265),
        (PROMETHEUS, TRAINER, 8080), (HEAD, "10.96.0.1", 443), (HEAD, "172.18.0.2", 6443),
    ):  # fmt: skip
        assert allowed(overlay, source, target, port), (source, target, port)
    for source in (HEAD, WORKER, TRAINER, MLFLOW, POSTGRES):
        assert allowed(overlay, source, DNS, 53, "UDP")
        assert allowed(overlay, source, "169.254.20.10", 53, "UDP")


@pytest.mark.parametrize("overlay", k8s.PLATFORMS)
def test_all_else_is_closed(overlay):
    for source, target, port in (
        (STRANGER, HEAD, 8265), (STRANGER, HEAD, 6379), (STRANGER, MLFLOW, 5000),
        (STRANGER, POSTGRES, 5432), (OPERATOR, HEAD, 6379), (PROMETHEUS, HEAD, 8265),
        (MLFLOW, HEAD, 8265), (WORKER, MLFLOW, 5000), (TRAINER, MLFLOW, 5000),
        (HEAD, POSTGRES, 5432), (TRAINER, POSTGRES, 5432),
        (HEAD, "169.254.169.254", 80), (HEAD, "169.254.169.254", 443), (TRAINER, "10.96.0.1", 443),
        (UPGRADE, MLFLOW, 5000), (HEAD, UPGRADE, 5000), (TRAINER, "203.0.113.7", 80),
        (POSTGRES, "203.0.113.7", 443),
    ):  # fmt: skip
        assert not allowed(overlay, source, target, port), (source, target, port)


def test_storage_is_reached_where_it_is():
    for source in (HEAD, TRAINER, MLFLOW):
        assert allowed("local-cpu", source, S3, 9000)
        assert allowed("gpu", source, "203.0.113.7", 443)
    for source in (STRANGER, POSTGRES, OPERATOR):
        assert not allowed("local-cpu", source, S3, 9000)
    # Nothing on one machine needs the world.
    assert not allowed("local-cpu", TRAINER, "203.0.113.7", 443)
    assert not allowed("local-cpu", MLFLOW, "203.0.113.7", 443)


@pytest.mark.parametrize("overlay", [*k8s.SWEEPS, *k8s.RAYS])
def test_the_rules_know_rays_pods_by_their_labels(overlay):
    items = k8s.manifests(overlay)
    pools = {"head": "head", "steady": "steady", "gpu": "trainer"}
    for spec in k8s.ray_specs(items).values():
        for name, group in k8s.ray_groups(spec).items():
            assert group["template"]["metadata"]["labels"] == {
                "app.kubernetes.io/component": "ray",
                "lorchestra.io/pool": pools[name],
            }


@pytest.mark.parametrize("overlay", k8s.PLATFORMS)
def test_services_reach_ports_of_their_pods(overlay):
    items = k8s.manifests(overlay)
    templates = k8s.templates(items)
    services = k8s.of_kind(items, "Service")
    assert {"mlflow", "postgres"} <= set(services)
    for service in services.values():
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
        behind = [
            one
            for one in templates
            if matches({"matchLabels": service["spec"]["selector"]}, one.metadata["labels"])
        ]
        assert len(behind) == 1
        named = {port["name"] for one in behind[0].spec["containers"] for port in one["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


@pytest.mark.parametrize("overlay", k8s.PLATFORMS)
def test_budgets_of_disruption_find_pods(overlay):
    budgets = k8s.of_kind(k8s.manifests(overlay), "PodDisruptionBudget")
    for sweep in [one for one in k8s.SWEEPS if k8s.platform_of(one) == overlay]:
        kept = {
            one.name.rpartition("-")[2]
            for one in k8s.templates(k8s.manifests(sweep))
            if matches(budgets["ray-steady"]["spec"]["selector"], one.metadata["labels"])
        }
        assert kept == {"head", "steady"}
    # Kubernetes takes no other form for pods of a custom resource.
    assert "maxUnavailable" not in budgets["ray-steady"]["spec"]
    assert isinstance(budgets["ray-steady"]["spec"]["minAvailable"], int)
