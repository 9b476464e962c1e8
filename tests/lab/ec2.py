"""An AWS account in the lab: an API whose instances are hosts, each with a metadata service and a stand-in for Docker."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import pytest
import ray

from tests.conftest import ROOT, wait_for
from tests.lab.aws_server import REGION
from tests.lab.hosts import Host, Lab

GATEWAY = "172.31.255.254"  # in moto's default network, above the addresses that it gives to instances
PORT = 5055
SERVER = str(Path(__file__).with_name("aws_server.py"))
VARIABLES = {
    "AWS_ENDPOINT_URL": f"http://{GATEWAY}:{PORT}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "testtest",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
}
CALL = """import boto3, json, sys
service, call, arguments = sys.argv[1:]
print(json.dumps(getattr(boto3.client(service), call)(**json.loads(arguments)), default=str))"""


class Account:
    """An AWS account in a lab of its own. Use it in a `with` statement."""

    def __init__(self) -> None:
        if lacking := [name for name in ("boto3", "moto") if find_spec(name) is None]:
            pytest.skip(f"an AWS account of the lab needs {' and '.join(lacking)}: pip install 'mnist-ray[test]'")
        if shutil.which("patch") is None:
            pytest.skip("an AWS account of the lab needs patch: apt-get install patch")
        self.lab = Lab(f"{GATEWAY}/16", VARIABLES)
        self.folder = self.lab.folder / "aws"
        self.folder.mkdir()
        self._closing = threading.Event()
        self._room = threading.Thread(target=self._follow)
        self._server = self.start("api", sys.executable, SERVER, "api", GATEWAY, str(PORT), str(self.folder))

    def __enter__(self) -> Self:
        reach = f"</dev/tcp/{GATEWAY}/{PORT}"
        wait_for(lambda: self.lab.run("bash", "-c", reach, check=False).returncode == 0, self._server)
        wait_for((self.folder / "instances.json").exists, self._server)
        self._room.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._room.join()
        self.lab.close()

    def call(self, service: str, name: str, **arguments: Any) -> Any:
        """The answer to a call of the API, made as a laptop would."""
        return json.loads(self.run(sys.executable, "-c", CALL, service, name, json.dumps(arguments)))

    def run(self, *words: str, **more: str) -> str:
        """What a command prints that runs on the laptop."""
        return self.lab.run(*words, variables={**VARIABLES, **more}).stdout

    def start(self, name: str, *words: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a command on the laptop that prints to the file `name`.log."""
        return self.lab.start(self.folder / f"{name}.log", *words, **VARIABLES, **more)

    def calls(self, action: str) -> list[dict[str, Any]]:
        """The calls of a kind until now, in order: their parameters, whether they were refused, and their time."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call["Action"] == action]

    def instances(self) -> dict[str, dict[str, str]]:
        """All instances that ever were, by id."""
        return {instance["id"]: instance for instance in json.loads((self.folder / "instances.json").read_text())}

    def running(self) -> list[str]:
        """Ids of the instances that cost money."""
        return [name for name, instance in self.instances().items() if instance["state"] not in ("terminated", "shutting-down")]

    def story(self) -> str:
        """How often each call was made, and the machines that were asked for and ended, in seconds since the first call."""
        lines = [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]
        told = [f"{count:5} {action}" for action, count in Counter(call["Action"] for call in lines).most_common()]
        for call in lines:
            at = f"{call['seconds'] - lines[0]['seconds']:5.0f} s"
            if call["Action"] == "RunInstances":
                market = call.get("InstanceMarketOptions.MarketType", "on-demand")
                answer = "no capacity" if call["refused"] else "started"
                told.append(f"{at} {market} {call['InstanceType']} in {call['SubnetId']}: {answer}")
            elif call["Action"] == "TerminateInstances":
                told.append(f"{at} ends {', '.join(value for key, value in call.items() if key.startswith('InstanceId'))}")
        return "\n".join(told)

    def host(self, instance: str) -> Host:
        """The host of an instance."""
        return self.lab.hosts[self.instances()[instance]["private"]]

    def shortage(self, short: bool) -> None:
        """AWS has no spot machines, or has some again."""
        file = self.folder / "shortage"
        file.touch() if short else file.unlink()

    def _follow(self) -> None:
        """Start and end hosts as instances start and end. They end with this thread, so it lives as long as the account."""
        while not self._closing.wait(0.2):
            for instance in self.instances().values():
                here = instance["private"] in self.lab.hosts
                if instance["state"] == "running" and not here:
                    self._boot(instance)
                elif instance["state"] in ("stopped", "terminated") and here:
                    self.lab.remove(self.lab.hosts[instance["private"]])

    def _boot(self, instance: dict[str, str]) -> None:
        """Start an instance: only when all is in place may the instance's own key log in."""
        host = self.lab.add(instance["private"], *filter(None, [instance["public"]]))
        image = self.folder / "image"
        if not image.exists():
            write_image(image)
        self.lab.ssh(
            host,
            f"install {Path(__file__).with_name('docker.sh')} /usr/local/bin/docker; mkdir /run/docker-stand-in;"
            f"cp -r {image} /run/docker-stand-in/image; ip address add 169.254.169.254/32 dev lo;"
            f"setsid nohup {sys.executable} {SERVER} metadata 169.254.169.254 80 /run/notice >/dev/null 2>&1 </dev/null &"
            f"echo '{instance['key'].strip()}' >> /etc/ssh/lab_authorized_keys",
        )


def write_image(folder: Path) -> None:
    """What the stand-in for Docker needs of the image, out of deploy/Dockerfile."""
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    (variables,) = re.findall(r"^ENV ((?:\\\n|[^\n])*)", dockerfile, re.MULTILINE)
    (installed,) = re.findall(r"^WORKDIR (/opt/.*)", dockerfile, re.MULTILINE)
    folder.mkdir()
    (folder / "env").write_text("".join(f"{variable}\n" for variable in variables.replace("\\\n", " ").split()))
    (folder / "folder").write_text(installed)
    (folder / "ray").write_text(str(Path(ray.__file__).parent))
    (folder / "ray.patch").write_text((ROOT / "deploy/ray-spot-fallback.patch").read_text())
    (folder / "spot_notice.py").write_text((ROOT / "deploy/spot_notice.py").read_text())
