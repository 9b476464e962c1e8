"""`ray up cluster.yaml`, jobs that grow the cluster, and `ray down`, with Ray's own launcher and autoscaler.

AWS is an emulator of its API (moto), and its instances are SSH hosts on this machine. Not covered: what AWS itself checks
(permissions of the profiles, quotas, images, whether a security group really closes its ports), the machine image, and
Docker: a stand-in runs the commands on the host itself, as root, in this machine's Python.

The tests use one cluster, in the order of a user's day.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, wait_for
from tests.lab.ec2 import Account

pytestmark = pytest.mark.long

BUCKET, LAPTOP, IMAGE = "digits", "203.0.113.7/32", "ami-12345678901234567"
RUN, SECOND, TABLE = (f"s3://{BUCKET}/{name}" for name in ("runs/first", "runs/second", "tables/first"))
JOBS = "http://127.0.0.1:8265"
SUBMIT = ("ray", "job", "submit", "--address", JOBS, "--")
NODES = "import json, ray; ray.init(); print('nodes:', json.dumps(ray.nodes()))"
PREEMPTED = 3
"""Ray's code of the death of a node that was drained because its machine is taken back."""


class Cluster:
    """A running cluster of cluster.yaml, and the laptop that started it."""

    def __init__(self, account: Account, file: str) -> None:
        self.account, self.file = account, file

    def submit(self, *words: str) -> str:
        """Run a job to its end through the forwarded port. What it prints."""
        return self.account.run(*SUBMIT, *words, RAY_AUTH_MODE="token")

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Submit a job. What it prints stands in `log`."""
        return self.account.start("job", *SUBMIT, *words, RAY_AUTH_MODE="token", PYTHONUNBUFFERED="1")

    def log(self) -> str:
        """What the job of `start` has printed."""
        return (self.account.folder / "job.log").read_text()

    def nodes(self) -> list[dict[str, Any]]:
        """All nodes that the cluster ever had."""
        found: list[dict[str, Any]] = json.loads(re.findall("nodes: (.*)", self.submit("python", "-c", NODES))[-1])
        return found

    def markets(self) -> list[str]:
        """The markets of the nodes that are there."""
        return sorted(node["Labels"].get("market", "head") for node in self.nodes() if node["Alive"])

    def keys(self, prefix: str) -> set[str]:
        """The keys below a prefix of the bucket, without the prefix."""
        listed = self.account.call("s3", "list_objects_v2", Bucket=BUCKET, Prefix=prefix)
        return {item["Key"].removeprefix(prefix) for item in listed.get("Contents", [])}

    def asked(self, since: int = 0) -> list[dict[str, Any]]:
        """The calls for machines, without the first ones."""
        return self.account.calls("RunInstances")[since:]


def launch_file(account: Account) -> dict[str, Any]:
    """cluster.yaml with the values that its users change, and with workers of two CPUs."""
    network = account.call("ec2", "describe_vpcs")["Vpcs"][0]["VpcId"]
    values = {"Bucket": BUCKET, "SshFrom": LAPTOP, "Vpc": network}
    account.call(
        "cloudformation",
        "create_stack",
        StackName="mnist-ray",
        TemplateBody=(ROOT / "deploy/aws-account.yaml").read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    (stack,) = account.call("cloudformation", "describe_stacks", StackName="mnist-ray")["Stacks"]
    group = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}["SecurityGroup"]
    text = (ROOT / "cluster.yaml").read_text()
    for placeholder, value in (("sg-00000000000000000", group), ("ami-00000000000000000", IMAGE)):
        assert text.count(placeholder) == 1
        text = text.replace(placeholder, value)
    found: dict[str, Any] = yaml.safe_load(text)
    for node_type in found["available_node_types"].values():
        node_type["resources"]["CPU"] = min(2, node_type["resources"]["CPU"])
    return found


def market(call: dict[str, Any]) -> str:
    return str(call.get("InstanceMarketOptions.MarketType", "on-demand"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Account() as account:
        file = account.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(launch_file(account)))
        account.call("s3", "create_bucket", Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        account.run("ray", "get-auth-token", "--generate")
        account.run("ray", "up", "--yes", str(file))
        dashboard = account.start("dashboard", "ray", "dashboard", str(file))
        forwarded = f"</dev/tcp/{JOBS.removeprefix('http://').replace(':', '/')}"
        wait_for(lambda: account.lab.run("bash", "-c", forwarded, check=False).returncode == 0, dashboard)
        yield Cluster(account, str(file))


def test_only_ssh_is_open_and_not_to_everyone(cluster: Cluster) -> None:
    used = {call["SecurityGroupId.1"] for call in cluster.asked()}
    assert len(used) == 1
    (group,) = cluster.account.call("ec2", "describe_security_groups", GroupIds=list(used))["SecurityGroups"]
    outside = [rule for rule in group["IpPermissions"] if not rule["UserIdGroupPairs"]]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in outside] == [("tcp", 22, 22)]
    assert [addresses["CidrIp"] for addresses in outside[0]["IpRanges"]] == [LAPTOP]
    (inside,) = [rule for rule in group["IpPermissions"] if rule["UserIdGroupPairs"]]
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == list(used)
    assert not cluster.account.calls("AuthorizeSecurityGroupIngress"), "Ray must not open anything itself"


def test_a_job_without_the_token_is_refused(cluster: Cluster) -> None:
    done = cluster.account.lab.run(*SUBMIT, "true", variables={"RAY_AUTH_MODE": "disabled"}, check=False)
    assert done.returncode != 0
    assert "Unauthorized" in done.stdout


def test_training_starts_a_spot_worker(cluster: Cluster) -> None:
    cluster.submit("mnist-ray", "train", "--workers", "2", "--data", "mnist5k", "--epochs", "1", "--out", RUN)
    assert {"model/digest.json", "metrics.json"} <= cluster.keys("runs/first/")
    assert [(market(call), call["refused"]) for call in cluster.asked()] == [("on-demand", False), ("spot", False)]
    assert cluster.markets() == ["head", "spot"]


def test_machines_are_asked_for_as_the_file_says(cluster: Cluster) -> None:
    head, worker = cluster.asked()
    assert head["IamInstanceProfile.Name"] == "mnist-ray-head"
    assert worker["IamInstanceProfile.Name"] == "mnist-ray-worker"
    for call in (head, worker):
        assert call["MetadataOptions.HttpTokens"] == "required"
        assert call["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
        assert call["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp3"
        assert (call["ImageId"], call["KeyName"]) == (IMAGE, "mnist-ray")
        assert "mnist-ray" in [value for key, value in call.items() if key.startswith("TagSpecification.2.Tag")]


def test_training_ends_well_although_aws_takes_its_spot_machine_back(cluster: Cluster) -> None:
    account, since = cluster.account, len(cluster.asked())
    (instance,) = [name for name in account.running() if account.instances()[name]["spot"]]
    training = cluster.start("mnist-ray", "train", "--workers", "2", "--data", "mnist5k", "--seconds", "60", "--out", SECOND)
    wait_for(lambda: "training  " in cluster.log(), training)
    end = datetime.now(UTC) + timedelta(minutes=2)
    notice = json.dumps({"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"})
    account.lab.ssh(account.host(instance), f"echo '{notice}' > /run/notice")
    assert training.wait(600) == 0, cluster.log()
    print(cluster.log())
    assert "model/digest.json" in cluster.keys("runs/second/")
    assert [(market(call), call["refused"]) for call in cluster.asked(since)] == [("spot", False)]
    wait_for(lambda: instance not in account.running())
    (dead,) = [node for node in cluster.nodes() if not node["Alive"]]
    assert dead["DeathReason"] == PREEMPTED
    assert "AWS will terminate this spot instance" in dead["DeathReasonMessage"]


def test_where_there_are_no_spot_machines_scoring_starts_a_worker_on_demand(cluster: Cluster, digit_folder: Path) -> None:
    account, since = cluster.account, len(cluster.asked())
    copy = "import sys; from pyarrow import fs; fs.copy_files(*sys.argv[1:])"
    account.run(sys.executable, "-c", copy, str(digit_folder), f"s3://{BUCKET}/scans")
    account.shortage(True)
    cluster.submit("mnist-ray", "score", f"s3://{BUCKET}/scans", "--model", RUN, "--out", TABLE, "--workers", "3")
    account.shortage(False)
    assert cluster.markets() == ["head", "on-demand", "spot"]
    *refused, bought = cluster.asked(since)
    assert {(market(call), call["refused"]) for call in refused} == {("spot", True)}
    assert len({call["SubnetId"] for call in refused}) == 3, "spot machines are asked for in all zones"
    assert (market(bought), bought["refused"]) == ("on-demand", False)
    assert bought["IamInstanceProfile.Name"] == "mnist-ray-worker"
    assert "300" in account.run("mnist-ray", "verify", TABLE)


def test_down_ends_all_machines(cluster: Cluster) -> None:
    cluster.account.run("ray", "down", "--yes", cluster.file)
    wait_for(lambda: not cluster.account.running())
    print(cluster.account.story())
