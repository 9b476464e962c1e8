"""The lab's own promises, on which the tests of launch files rest."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import descendants, wait_for
from tests.lab.hosts import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(variables={"GREETING": "hello world"}) as lab:
        lab.add("10.66.0.11")
        lab.add("10.66.0.12", "10.77.0.12")
        yield lab


def test_a_host_has_its_own_name_network_processes_and_environment(lab: Lab) -> None:
    host = lab.hosts["10.66.0.11"]
    assert lab.ssh(host, "hostname; echo $GREETING; hostname -I; command -v ray").stdout.splitlines()[:3] == [
        "ip-10-66-0-11",
        "hello world",
        "10.66.0.11 ",
    ]
    assert f"\n{os.getpid()} " not in lab.ssh(host, "ps -eo pid,args").stdout
    assert lab.ssh(host, "ps -p 1 -o args=").stdout.startswith("sshd: /usr/sbin/sshd")


def test_files_that_a_host_writes_stay_in_it(lab: Lab) -> None:
    one, two = lab.hosts.values()
    lab.ssh(one, "echo mine | tee /etc/lab-test /tmp/lab-test /dev/shm/lab-test; rm -r /usr/share/doc")
    assert lab.ssh(two, "ls /etc/lab-test /tmp/lab-test /dev/shm/lab-test", check=False).returncode == 2
    assert not any(Path(folder, "lab-test").exists() for folder in ("/etc", "/tmp", "/dev/shm"))
    assert lab.ssh(two, "test -d /usr/share/doc").returncode == 0


def test_hosts_reach_each_other_and_nothing_else(lab: Lab) -> None:
    host = lab.hosts["10.66.0.11"]
    reach = "timeout 1 bash -c '</dev/tcp/{}/22'"
    assert lab.ssh(host, reach.format("10.66.0.12")).returncode == 0
    assert lab.run("bash", "-c", reach.format("10.77.0.12")).returncode == 0
    assert lab.run("bash", "-c", reach.format("192.0.2.1"), check=False).returncode != 0
    assert lab.ssh(host, reach.format("192.0.2.1"), check=False).returncode != 0


@pytest.mark.slow
def test_a_link_can_be_cut_and_a_host_replaced(lab: Lab) -> None:
    one, two = lab.hosts.values()
    reach = f"timeout 2 bash -c '</dev/tcp/{two.address}/22'"
    lab.connect(two, False)
    assert lab.ssh(one, reach, check=False).returncode != 0
    lab.connect(two, True)
    wait_for(lambda: lab.ssh(one, reach, check=False).returncode == 0)
    processes = descendants(two.pid)
    assert processes
    lab.remove(two)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))
    assert lab.ssh(one, reach, check=False).returncode != 0
    lab.add(two.address)
    assert lab.ssh(one, reach).returncode == 0
