"""Drains this machine's Ray node when AWS announces that it takes the spot instance back.

AWS announces the end of a spot instance two minutes ahead, in the metadata service of the instance. Ray does not read that
service. This script does: it asks every few seconds, and on a notice it calls `ray drain-node`. Then Ray starts no new work on
the node, and training saves a checkpoint.

Start it on each worker, in the background, after `ray start`:

    python spot_notice.py --address HEAD_IP:6379 &

It ends when the node is drained, and also when no metadata service answers at the start: then the machine is not at AWS. It
never stops the node itself. It needs only Python and the `ray` command. The variable AWS_EC2_METADATA_SERVICE_ENDPOINT changes
the address of the metadata service.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

ENDPOINT = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
TIMEOUT_S = 2.0
TOKEN_LIFE_S = 6 * 3600
FIRST_TRIES = 5
"""Failures in a row before the first answer, after which this machine counts as one without a metadata service."""

_open = build_opener(ProxyHandler({})).open  # a proxy would ask for the notices of its own machine


def ask(path: str, headers: dict[str, str], method: str = "GET") -> str:
    """The answer of the metadata service. Raises OSError, of which HTTPError is one."""
    with _open(Request(ENDPOINT + path, headers=headers, method=method), timeout=TIMEOUT_S) as answer:
        return str(answer.read().decode())


def new_token() -> str:
    """A session token, which version 2 of the metadata service asks for. Raises OSError."""
    return ask("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFE_S)}, "PUT")


def notice(token: str) -> dict[str, str] | None:
    """The notice, such as {"action": "terminate", "time": "2026-01-31T12:00:00Z"}, or None. Raises OSError and ValueError."""
    try:
        return dict(json.loads(ask("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})))
    except HTTPError as error:
        if error.code == 404:
            return None
        raise


def wait_for_notice(every_s: float) -> dict[str, str] | None:
    """Wait until there is a notice, and return it; None if no metadata service answers."""
    token, answered, failures = "", False, 0
    while answered or failures < FIRST_TRIES:
        try:
            token = token or new_token()
            found = notice(token)
            if found:
                return found
            answered, failures = True, 0
        except (OSError, ValueError) as error:
            token, failures = "", failures + 1  # a token can expire: get another one
            if failures == FIRST_TRIES:
                log(f"{ENDPOINT} does not answer as a metadata service: {error}")
        time.sleep(every_s)
    return None


def own_nodes(address: str) -> Iterator[str]:
    """The ids of the Ray worker nodes of this machine that belong to the cluster at this address.

    They stand in the command lines of Ray's node processes. The cluster is not asked, because the dashboard answers only on the
    head, and a driver may attach to another node than the one of this machine.
    """
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # ended, or of another user
            continue
        if Path(command[0]).name == "raylet" and f"--gcs-address={address}" in command and "--head" not in command:
            yield from (part.removeprefix("--node_id=") for part in command if part.startswith("--node_id="))


def seconds_left(found: dict[str, str]) -> int:
    """Whole seconds until the time of a notice; two minutes if it names none."""
    try:
        end = datetime.fromisoformat(found["time"])
    except (KeyError, ValueError):
        return 120
    return max(0, math.floor((end.replace(tzinfo=end.tzinfo or UTC) - datetime.now(UTC)).total_seconds()))


def drain(address: str, found: dict[str, str]) -> bool:
    """Drain all worker nodes of this machine; false if there is none, or if the cluster refused."""
    message = f"AWS will {found.get('action', 'terminate')} this spot instance at {found.get('time', 'an unknown time')}"
    flags = ["--address", address, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", message]
    nodes = list(own_nodes(address))
    if not nodes:
        log(f"{message}, and no Ray worker node of the cluster at {address} runs here")
    refused = 0
    for node in nodes:
        log(f"{message}: draining Ray node {node}")
        left = ["--deadline-remaining-seconds", str(seconds_left(found))]
        refused += subprocess.run(["ray", "drain-node", "--node-id", node, *flags, *left]).returncode != 0
    return bool(nodes) and not refused


def log(line: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} spot_notice: {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Wait for the notice, and drain the node; try again until the instance ends."""
    parser = argparse.ArgumentParser(description="Drains this machine's Ray node when AWS takes the spot instance back.")
    parser.add_argument("--address", required=True, help="IP:PORT of the head, as given to `ray start`")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="time between two questions")
    args = parser.parse_args()
    found = wait_for_notice(args.every)
    while found and not drain(args.address, found):
        time.sleep(args.every)


if __name__ == "__main__":
    main()
