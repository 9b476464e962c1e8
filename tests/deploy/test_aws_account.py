"""What cluster.yaml rests on: the template of the AWS account, and the repair of Ray. Not covered: AWS's own checks."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import ray

from tests.conftest import BIN, ROOT

TEMPLATE = ROOT / "deploy/aws-account.yaml"


def test_the_template_of_the_account_is_valid() -> None:
    linter = BIN / "cfn-lint"
    if not linter.exists():
        pytest.skip("needs cfn-lint: pip install cfn-lint")
    done = subprocess.run([linter, TEMPLATE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("addresses", "accepted"), [("203.0.113.7/32", True), ("10.0.0.0/8", True), ("0.0.0.0/0", False)])
def test_ssh_cannot_be_opened_to_everyone(addresses: str, accepted: bool) -> None:
    (pattern,) = re.findall("AllowedPattern: (.*)", TEMPLATE.read_text())
    assert bool(re.fullmatch(pattern, addresses)) is accepted


def test_the_repair_fits_the_installed_ray() -> None:
    if shutil.which("patch") is None:
        pytest.skip("needs patch: apt-get install patch")
    repair = ROOT / "deploy/ray-spot-fallback.patch"
    command = ["patch", "--dry-run", "--strip=1", "--fuzz=0", f"--directory={Path(ray.__file__).parent}", f"--input={repair}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
