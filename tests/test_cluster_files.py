"""The files that make clusters: what Ray's own validator says of them, and what they must never say."""

import copy
import json
import os
import re
import runpy
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
AWS, ON_PREMISE = ROOT / "ray-cluster.yaml", ROOT / "cluster/on-premise.yaml"
LAUNCHER = [pytest.param(AWS, id="aws"), pytest.param(ON_PREMISE, id="on-premise")]
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": 1000,
    "RAY_health_check_period_ms": 1000,
    "RAY_health_check_timeout_ms": 2000,
    "RAY_health_check_failure_threshold": 3,
}
SECRET = re.compile(r"AKIA|ASIA|BEGIN [A-Z ]*PRIVATE KEY|aws_secret|password\s*[:=]\s*\w", re.IGNORECASE)


def prepared(path: Path) -> dict[str, Any]:
    """Return a cluster file as `ray up` completes and checks it before it touches any machine."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    return config


def versions() -> dict[str, Version]:
    lines = (ROOT / "cluster/versions.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    return {one.name: Version(str(one.specifier).removeprefix("==")) for one in pinned}


def policy() -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = json.loads((ROOT / "cluster/iam-policy.json").read_text())["Statement"]
    return statements


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Return the JSON schema of an object that has these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


class TestLauncherFiles:
    @pytest.mark.parametrize("path", LAUNCHER)
    def test_ray_accepts_it(self, path: Path) -> None:
        assert prepared(path)["cluster_name"] == "uapray"

    def test_the_validator_would_notice(self, tmp_path: Path) -> None:
        from jsonschema import ValidationError

        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(AWS.read_text().replace("idle_timeout_minutes", "idle_timeout_minuts"))
        with pytest.raises(ValidationError, match="idle_timeout_minuts"):
            prepared(wrong)

    @pytest.mark.parametrize("path", LAUNCHER)
    def test_strangers_stay_out(self, path: Path) -> None:
        config = prepared(path)
        head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
        for command in (head, worker):
            exported, _, started = command.partition("ray start")
            assert started
            assert re.search(r"export [^;]*RAY_AUTH_MODE=token", exported)
        assert "--dashboard-host=127.0.0.1" in head
        assert "~/.ray/auth_token" in config["file_mounts"]
        assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
        assert not SECRET.search(path.read_text())

    @pytest.mark.parametrize("path", LAUNCHER)
    def test_a_machine_that_hangs_is_given_up_soon(self, path: Path) -> None:
        head = prepared(path)["head_start_ray_commands"][-1]
        assert [name for name, value in HEALTH_CHECKS.items() if f"{name}={value}" not in head] == []

    @pytest.mark.parametrize("path", LAUNCHER)
    def test_what_it_copies_is_there(self, path: Path) -> None:
        sources = [Path(source) for source in prepared(path)["file_mounts"].values() if source[0] != "~"]
        assert [str(source) for source in sources if not (ROOT / source).exists()] == []

    @pytest.mark.parametrize("path", LAUNCHER)
    def test_nothing_in_the_home_hides_the_package(self, path: Path) -> None:
        """`ray submit` runs a file in the home folder, whose folders can then be imported."""
        assert not [target for target in prepared(path)["file_mounts"] if target.split("/")[1] == "uapray"]

    @pytest.mark.parametrize("path", LAUNCHER)
    def test_its_shell_is_shell(self, path: Path) -> None:
        config = prepared(path)
        for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
            for command in config[key]:
                subprocess.run(["bash", "-n", "-c", command], check=True)

    def test_head_has_no_gpu_and_spot_workers_come_from_zero(self) -> None:
        config = prepared(AWS)
        head, worker = (config["available_node_types"][name] for name in ("head", "gpu-spot"))
        assert config["head_node_type"] == "head"
        assert head["max_workers"] == 0
        assert "GPU" not in head["resources"]
        assert "InstanceMarketOptions" not in head["node_config"]
        assert worker["min_workers"] == 0
        assert worker["max_workers"] == config["max_workers"] > 0
        assert worker["resources"]["GPU"] == 1
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}

    def test_local_provider_keeps_to_the_autoscaler_that_starts_all_workers(self) -> None:
        config = prepared(ON_PREMISE)
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            assert "RAY_enable_autoscaler_v2=0" in config[key][-1]
        assert "RAY_UP_enable_autoscaler_v2=0 ray up" in ON_PREMISE.read_text()


class TestRights:
    def test_nothing_is_allowed_wholesale(self) -> None:
        for statement in policy():
            assert statement["Effect"] == "Allow"
            assert not any("*" in action for action in listed(statement["Action"]))
            if statement["Resource"] == "*":
                assert all(action.startswith("ec2:Describe") for action in listed(statement["Action"]))

    def test_the_policy_and_the_cluster_file_speak_of_the_same_cluster(self) -> None:
        config = prepared(AWS)
        workers = config["available_node_types"]["gpu-spot"]["node_config"]
        conditions = [one["Condition"]["StringEquals"] for one in policy() if "Condition" in one]
        assert {"aws:RequestTag/ray-cluster-name": "uapray", "ec2:InstanceType": workers["InstanceType"]} in conditions
        assert {"aws:ResourceTag/ray-cluster-name": config["cluster_name"]} in conditions
        assert "IamInstanceProfile" not in workers

    @pytest.fixture
    def aws(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        from moto import mock_aws

        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        with mock_aws():
            iam = boto3.client("iam", region_name="us-west-2")
            iam.create_instance_profile(InstanceProfileName="uapray-head")
            yield

    @pytest.mark.usefixtures("aws")
    def test_ray_starts_and_ends_a_spot_worker_with_these_rights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ray's own AWS code against an imitation of EC2: what it calls on the head is what the policy allows."""
        from botocore.client import BaseClient
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        config = bootstrap_aws(prepared(AWS))
        called: list[str] = []
        call = BaseClient._make_api_call

        def noted(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
            called.append(f"{client.meta.service_model.service_name}:{operation}")
            return call(client, operation, parameters)

        monkeypatch.setattr(BaseClient, "_make_api_call", noted)
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        asked = copy.deepcopy(config["available_node_types"]["gpu-spot"]["node_config"])
        provider.create_node(asked, {"ray-node-type": "worker"}, 1)
        (node,) = provider.non_terminated_nodes({})
        started = boto3.resource("ec2", region_name="us-west-2").Instance(node)
        assert started.instance_type == "g5.2xlarge"
        assert started.instance_lifecycle == "spot"
        assert {"Key": "ray-cluster-name", "Value": "uapray"} in started.tags
        assert started.iam_instance_profile is None
        provider.terminate_node(node)
        assert provider.non_terminated_nodes({}) == []
        allowed = {action for statement in policy() for action in listed(statement["Action"])}
        assert set(called) <= allowed


# What KubeRay reads. Its own description (a CRD) is in no package registry, so what we may need of it stands here.
TEXT = {"type": "string"}
GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": TEXT},
    "template": {"type": "object"},
}
WORKERS = {
    "groupName": TEXT,
    "replicas": {"type": "integer"},
    "minReplicas": {"type": "integer"},
    "maxReplicas": {"type": "integer"},
    "idleTimeoutSeconds": {"type": "integer"},
    "numOfHosts": {"type": "integer"},
}
CLUSTER = {
    "rayVersion": TEXT,
    "authOptions": closed({"mode": {"enum": ["disabled", "token"]}}, "mode"),
    "enableInTreeAutoscaling": {"type": "boolean"},
    "autoscalerOptions": closed({"idleTimeoutSeconds": {"type": "integer"}, "upscalingMode": TEXT}),
    "headGroupSpec": closed(GROUP, "rayStartParams", "template"),
    "workerGroupSpecs": {"items": closed({**GROUP, **WORKERS}, "groupName", *GROUP, "minReplicas", "maxReplicas")},
}
JOB = {
    "entrypoint": TEXT,
    "backoffLimit": {"type": "integer"},
    "activeDeadlineSeconds": {"type": "integer"},
    "shutdownAfterJobFinishes": {"type": "boolean"},
    "ttlSecondsAfterFinished": {"type": "integer"},
    "rayClusterSpec": closed(CLUSTER, "headGroupSpec"),
}
KUBERAY = [
    pytest.param("rayjob.yaml", "RayJob", closed(JOB, "entrypoint", "rayClusterSpec"), id="job"),
    pytest.param("raycluster.yaml", "RayCluster", closed(CLUSTER, "headGroupSpec"), id="cluster"),
]


class TestKubernetes:
    def read(self, name: str) -> dict[str, Any]:
        made: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / name).read_text())
        return made

    def job(self) -> dict[str, Any]:
        return self.read("rayjob.yaml")

    @pytest.mark.parametrize(("name", "kind", "schema"), KUBERAY)
    def test_it_has_the_shape_that_kuberay_reads(self, name: str, kind: str, schema: dict[str, Any]) -> None:
        made = self.read(name)
        assert set(made) == {"apiVersion", "kind", "metadata", "spec"}
        assert (made["apiVersion"], made["kind"]) == ("ray.io/v1", kind)
        jsonschema.validate(made["spec"], schema)

    def test_the_shape_would_notice(self) -> None:
        spec = self.job()["spec"]
        spec["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 8
        with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
            jsonschema.validate(spec, closed(JOB))

    @pytest.mark.parametrize("group", ["head", "workers"])
    def test_kubernetes_accepts_its_pods(self, group: str) -> None:
        cluster = self.job()["spec"]["rayClusterSpec"]
        template = {"head": cluster["headGroupSpec"], "workers": cluster["workerGroupSpecs"][0]}[group]["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": group}, **template}
        kubernetes_validate.validate(pod, "1.31", strict=True)
        with pytest.raises(kubernetes_validate.ValidationError, match="tolerate"):
            kubernetes_validate.validate({**pod, "spec": {**pod["spec"], "tolerate": []}}, "1.31", strict=True)

    def test_the_cluster_that_stays_is_that_of_the_job(self) -> None:
        assert self.read("raycluster.yaml")["spec"] == self.job()["spec"]["rayClusterSpec"]

    def test_it_is_closed_cleans_up_and_grows_from_zero(self) -> None:
        spec = self.job()["spec"]
        cluster = spec["rayClusterSpec"]
        (workers,) = cluster["workerGroupSpecs"]
        assert spec["shutdownAfterJobFinishes"] is True
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["enableInTreeAutoscaling"] is True
        assert workers["replicas"] == workers["minReplicas"] == 0 < workers["maxReplicas"]
        (container,) = workers["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
        assert {one["name"]: int(one["value"]) for one in head["env"]} == HEALTH_CHECKS
        for name in ("rayjob.yaml", "raycluster.yaml"):
            assert not SECRET.search((ROOT / "cluster" / name).read_text().split("apiVersion", 1)[1])

    def test_its_command_is_one_that_the_job_takes(self) -> None:
        python, script, *words = shlex.split(self.job()["spec"]["entrypoint"])
        assert python == "python"
        assert script.removeprefix("/opt/uapray/") == "jobs/chest_xray.py"
        parsed = runpy.run_path(str(ROOT / "jobs/chest_xray.py"))["JOB"].parser().parse_args(words)
        (workers,) = self.job()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert parsed.replicas <= workers["maxReplicas"]
        assert parsed.gpus == 1

    def test_the_image_copies_what_is_there(self) -> None:
        lines = (ROOT / "cluster/Dockerfile").read_text().splitlines()
        copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
        assert "uapray" in copied
        assert "jobs" in copied
        assert [source for source in copied if not (ROOT / source).exists()] == []


class TestVersions:
    def test_ray_is_the_same_everywhere(self) -> None:
        job = yaml.safe_load((ROOT / "cluster/rayjob.yaml").read_text())
        assert Version(job["spec"]["rayClusterSpec"]["rayVersion"]) == versions()["ray"]

    def test_what_is_pinned_is_what_the_package_asks_for(self) -> None:
        asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        specifiers = {one.name: one.specifier for one in map(Requirement, asked)}
        assert set(versions()) == {"ray", "torch"}
        for name, version in versions().items():
            assert specifiers[name].contains(version)

    @pytest.mark.parametrize("path", [AWS, ON_PREMISE, ROOT / "cluster/Dockerfile"], ids=lambda path: path.name)
    def test_every_machine_is_held_to_them(self, path: Path) -> None:
        assert re.search(r"pip install .*--constraint \S*versions\.txt", path.read_text())


SCRIPTS = [f"scripts/{name}" for name in ("check", "demo", "nightly", "setup", "test")]


@pytest.mark.parametrize("name", [*SCRIPTS, ".ci/run", "cluster/lab/lab", "cluster/lab/host"])
def test_a_script_is_bash_and_can_be_run(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / name).read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", ROOT / name], check=True)
