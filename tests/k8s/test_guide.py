"""k8s/README.md: its commands, names, sizes and links, as far as no cluster is needed."""

import functools
import re
import shlex
import shutil
import stat
import subprocess

import kubernetes_validate
import pytest
import yaml

from orchestrator import cli
from tests.support import manifests as k8s
from tests.support.kuberay import refusals
from tests.support.manifests import asked, quantity

GUIDE = (k8s.K8S / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
INLINE = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", GUIDE, flags=re.DOTALL))


def commands(text):
    return [line for line in text.splitlines() if line and not line.startswith("#")]


KUBECTL = [
    line
    for line in [*(line for block in BLOCKS for line in commands(block)), *INLINE]
    if line.startswith("kubectl ") and line.split()[1] != "kustomize"
]


@functools.cache
def help_of(*words):
    said = subprocess.run(
        [k8s.kubectl(), *words, "--help"], capture_output=True, text=True, check=True
    )
    options = subprocess.run(
        [k8s.kubectl(), "options"], capture_output=True, text=True, check=True
    )
    return said.stdout + options.stdout


def split(line):
    """Verb (`apply`, `create job`), options and names of a kubectl command."""
    words = shlex.split(re.sub(r"\s[<>] \S+$", "", line).partition(" -- ")[0])[1:]
    options = [word for word in words if word.startswith("-")]
    plain = [word for word in words if not word.startswith("-")]
    if plain and plain[0] == "lorchestra" and words[0] == "-n":
        plain = plain[1:]
    verb = plain[:2] if plain[:2] in (["create", "job"], ["rollout", "status"]) else plain[:1]
    return verb, options, plain[len(verb) :]


def test_it_takes_ten_commands_to_a_champion():
    assert len(commands(BLOCKS[0])) == 10
    assert re.findall(r"(?m)^# (\d+)\.", BLOCKS[0]) == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize("line", dict.fromkeys(KUBECTL))
def test_kubectl_knows_the_command_and_its_options(line):
    verb, options, _ = split(line)
    text = help_of(*verb)
    assert "Usage:" in text
    for option in options:
        name = option.partition("=")[0]
        sign = rf"(?m)^\s+{name}(=|,)|, {name}=" if name.startswith("--") else rf"(?m)^\s+{name},"
        assert re.search(sign, text), (verb, option)


def test_an_option_that_is_not_there_is_found():
    assert not re.search(r"(?m)^\s+--server-sid(=|,)", help_of("apply"))


def test_every_object_that_a_command_names_is_rendered():
    items = k8s.manifests("local-cpu") + k8s.manifests("local-cpu/sweep")
    kinds = {
        "deployment": "Deployment", "service": "Service", "rayjob": "RayJob", "cronjob": "CronJob",
        "pvc": "PersistentVolumeClaim",
    }  # fmt: skip
    named = re.findall(r"\b(deployment|service|rayjob|cronjob)/([\w-]+)", " ".join(KUBECTL))
    assert len(named) > 6
    for kind, name in [*named, ("pvc", "model-cache")]:
        assert name in k8s.of_kind(items, kinds[kind]), (kind, name)
    assert "exec postgres-0" in GUIDE
    assert k8s.of_kind(items, "StatefulSet")["postgres"]["spec"]["replicas"] == 1
    labels = {label for one in KUBECTL for label in re.findall(r"-l (\S+)=(\S+)", one)}
    pods = k8s.templates(items)
    assert labels == {("lorchestra.io/pool", "head")}
    assert any(one.metadata["labels"].get("lorchestra.io/pool") == "head" for one in pods)
    assert "-n lorchestra" in GUIDE
    assert "lorchestra" in k8s.of_kind(items, "Namespace")


def test_files_in_commands_are_where_the_pods_have_them():
    (mlflow,) = [one for one in k8s.templates(k8s.manifests("gpu")) if one.name == "mlflow"]
    (container,) = mlflow.containers()
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    (script,) = set(re.findall(r"python (/etc/\S+)", GUIDE))
    folder, _, file = script.rpartition("/")
    volume = next(one for one in mlflow.spec["volumes"] if one["name"] == mounts[folder])
    files = k8s.of_kind(k8s.manifests("gpu"), "ConfigMap")[volume["configMap"]["name"]]["data"]
    assert file in files
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["MLFLOW_AUTH_CONFIG_PATH"].rpartition("/")[2] in files


def test_the_folders_that_are_applied_are_there():
    folders = re.findall(r"apply (?:--server-side )?-k (\S+)", GUIDE)
    assert len(folders) >= 4
    named = re.findall(r"`(?:k8s/)?((?:overlays|components|base)/[\w/-]+)`", GUIDE)
    for folder in [*(one.removeprefix("k8s/") for one in folders), *named]:
        assert (k8s.K8S / folder / "kustomization.yaml").is_file(), folder


def test_lorchestra_knows_its_commands():
    lines = [line for line in INLINE if line.startswith("lorchestra ")]
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line)[1:]
        cli._build_parser().parse_args(words)


LORCHESTRA = [
    line for block in BLOCKS for line in commands(block) if line.startswith("lorchestra ")
]


def test_the_sweep_that_the_guide_submits_is_that_of_its_overlay(capsys, monkeypatch):
    monkeypatch.chdir(k8s.ROOT)
    for line in LORCHESTRA:
        cli._build_parser().parse_args(shlex.split(line)[1:])
    (submit,) = [line for line in LORCHESTRA if line.endswith("--watch")]
    assert cli.main([*shlex.split(submit)[1:], "--dry-run"]) == 0
    sent = k8s.parse(capsys.readouterr().out)
    applied = k8s.manifests("local-cpu/sweep")
    assert sent == sorted(applied, key=lambda item: item["kind"])


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)\s]+)\)", GUIDE):
        if link.startswith("#"):
            heading = link[1:].replace("-", " ")
            assert re.search(rf"(?mi)^#+ {heading}$", GUIDE), link
        elif "://" not in link:
            assert (k8s.K8S / link).exists(), link


def sizes_of(overlay):
    """CPUs, GiB and GPUs of a folder, as the table has them."""
    items = k8s.manifests(overlay)
    rays = k8s.ray_specs(items)
    if rays:
        (spec,) = rays.values()
        return [
            (asked(spec, name, is_full=False), asked(spec, name, is_full=True))
            for name in ("cpu", "memory", "nvidia.com/gpu")
        ]
    total = [0, 0, 0]
    for template in k8s.templates(items):
        if template.name == "mlflow-upgrade":  # only when it is asked for
            continue
        for container in template.spec["containers"]:
            for place, name in enumerate(("cpu", "memory")):
                total[place] += quantity(container["resources"]["requests"][name])
    return [(one, one) for one in total]


def test_the_table_of_sizes_is_what_is_rendered():
    rows = re.findall(
        r"(?m)^\| `overlays/([\w/-]+)`[^|]*\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", GUIDE
    )
    assert [row[0] for row in rows] == [
        "local-cpu", "local-cpu/sweep", "gpu", "gpu/l4", "gpu/a100", "gpu/h100",
    ]  # fmt: skip
    for overlay, *cells in rows:
        for cell, (low, high), unit in zip(cells, sizes_of(overlay), (1, 2**30, 1), strict=True):
            said = [float(one) for one in cell.split(" to ")]
            found = [float(round(one / unit, 2 if unit == 1 else 1)) for one in (low, high)]
            assert said == (found if len(said) == 2 else found[:1]), (overlay, cell)


# ------------------------------------------------------------------- what no overlay renders alone


@pytest.fixture
def copy_of_k8s(tmp_path):
    folder = tmp_path / "k8s"
    shutil.copytree(k8s.K8S, folder, ignore=shutil.ignore_patterns("*.env"))
    return folder


def test_the_secrets_folder_makes_what_the_pods_name(copy_of_k8s):
    script = copy_of_k8s / "secrets" / "make-env.sh"
    environment = {"PATH": "/usr/bin:/bin"}
    subprocess.run([script], check=True, capture_output=True, env=environment)
    first = k8s.build(copy_of_k8s / "secrets")
    secrets = k8s.of_kind(k8s.parse(first), "Secret")
    assert {name: set(one["data"]) for name, one in secrets.items()} == k8s.SECRETS
    files = sorted((copy_of_k8s / "secrets").glob("*.env"))
    assert len(files) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    subprocess.run([script], check=True, capture_output=True, env=environment)
    assert k8s.build(copy_of_k8s / "secrets") == first  # the passwords are in use
    ignored = subprocess.run(
        ["git", "check-ignore", "k8s/secrets/s3.env", "k8s/secrets/mlflow.env"],
        cwd=k8s.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert len(ignored.stdout.split()) == 2


def test_keys_of_the_environment_are_taken_whole_or_not_at_all(copy_of_k8s):
    script = copy_of_k8s / "secrets" / "make-env.sh"
    half = {"PATH": "/usr/bin:/bin", "AWS_ACCESS_KEY_ID": "one"}
    said = subprocess.run([script], capture_output=True, text=True, env=half)
    assert said.returncode == 2
    assert "AWS_SECRET_ACCESS_KEY: got nothing" in said.stderr
    assert not (script.parent / "s3.env").exists()
    whole = half | {"AWS_SECRET_ACCESS_KEY": "two", "HF_TOKEN": "three"}
    subprocess.run([script], check=True, capture_output=True, env=whole)
    assert (script.parent / "s3.env").read_text() == (
        "AWS_ACCESS_KEY_ID=one\nAWS_SECRET_ACCESS_KEY=two\n"
    )
    assert (script.parent / "hub.env").read_text() == "token=three\n"


def test_an_outside_database_takes_the_place_of_the_inner_one(copy_of_k8s):
    file = copy_of_k8s / "overlays" / "gpu" / "kustomization.yaml"
    commented = "  # - ../../components/external-postgres\n"
    assert commented in file.read_text()
    file.write_text(file.read_text().replace(commented, commented.replace("# ", "")))
    items = k8s.parse(k8s.build(file.parent))
    assert "StatefulSet" not in {one["kind"] for one in items}
    assert "postgres" not in {one["metadata"]["name"] for one in items}
    (database,) = [
        one for name, one in k8s.of_kind(items, "ConfigMap").items() if "database" in name
    ]
    assert database["data"]["PGHOST"] == "postgres.example.com"
    assert database["data"]["PGSSLMODE"] == "verify-full"
    assert database["data"]["PGUSER"] == "lorchestra"
    policy = k8s.of_kind(items, "NetworkPolicy")["mlflow-to-postgres"]
    assert policy["spec"]["egress"][0]["to"] == [{"ipBlock": {"cidr": "192.0.2.10/32"}}]
    for item in items:
        kubernetes_validate.validate(item, "1.37", strict=True)


def test_a_disk_can_hold_the_sweeps(copy_of_k8s):
    platform = copy_of_k8s / "overlays" / "gpu" / "kustomization.yaml"
    sweep = copy_of_k8s / "overlays" / "gpu" / "h100" / "kustomization.yaml"
    for file, before, component in (
        (platform, "../../components/quota", "../../components/storage-volume/claim"),
        (sweep, "../../../components/h100", "../../../components/storage-volume/mounts"),
    ):
        text = file.read_text()
        assert f"  - {before}\n" in text
        file.write_text(text.replace(f"  - {before}\n", f"  - {before}\n  - {component}\n"))
    claims = k8s.of_kind(k8s.parse(k8s.build(platform.parent)), "PersistentVolumeClaim")
    assert claims["sweep-storage"]["spec"]["accessModes"] == ["ReadWriteMany"]
    (job,) = k8s.of_kind(k8s.parse(k8s.build(sweep.parent)), "RayJob").values()
    assert refusals(job) == []
    groups = k8s.ray_groups(job["spec"]["rayClusterSpec"])
    assert len(groups) == 3
    for group in groups.values():
        pod = group["template"]["spec"]
        mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
        volumes = {one["name"]: one for one in pod["volumes"]}
        claim = volumes[mounts["/storage"]]["persistentVolumeClaim"]["claimName"]
        assert claim == "sweep-storage"
    assert " /storage " in (k8s.K8S / "image" / "Dockerfile").read_text()


def test_every_component_is_used():
    used = {
        (file.parent / one).resolve()
        for file in k8s.K8S.rglob("kustomization.yaml")
        for one in yaml.safe_load(file.read_text()).get("components", ())
    }
    optional = {
        k8s.K8S / "components" / name
        for name in ("external-postgres", "storage-volume/claim", "storage-volume/mounts")
    }
    folders = {file.parent for file in (k8s.K8S / "components").rglob("kustomization.yaml")}
    assert folders - used == optional


def test_the_operator_is_of_a_version_with_these_kinds():
    (remote,) = [
        one
        for one in yaml.safe_load((k8s.K8S / "operator" / "kustomization.yaml").read_text())[
            "resources"
        ]
        if "github.com" in one
    ]
    version = re.search(r"ref=v(\d+)\.(\d+)\.\d+$", remote)
    assert version is not None
    assert (int(version[1]), int(version[2])) >= (1, 7)
    assert f"KubeRay](https://github.com/ray-project/kuberay) {version[1]}.{version[2]}" in GUIDE
