"""docs/clusters.md: its commands name files and flags that exist. They are parsed, not run."""

import re
import shlex
from collections.abc import Callable

import pytest
from tyro.conf import OmitArgPrefixes
from tyro.extras import subcommand_cli_from_dict

from mnist_ray.cli import _COMMANDS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "clusters.md").read_text()
HEADERS = [path.read_text() for path in (ROOT / "cluster.yaml", *sorted((ROOT / "deploy").rglob("*.yaml")))]
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The commands of the page, and those at the top of the launch files, one per line."""
    lines = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
    tops = [line.lstrip("# ") for text in HEADERS for line in text.splitlines() if line.startswith("#")]
    return lines + tops


def ours() -> list[str]:
    """The arguments that the commands give to this project's command line."""
    found = [
        re.search(r"(?:\bmnist-ray|python jobs/(?=\w+\.py))\s*(?=train|score|verify|doctor)([^#;]*)", line)
        for line in commands()
    ]
    return sorted({re.sub(r"^(\w+)\.py", r"\1", match[1]).strip() for match in found if match})


@pytest.mark.parametrize("arguments", ours())
def test_the_command_line_knows_the_command(arguments: str) -> None:
    kinds: dict[str, Callable[..., object]] = {command.__name__: kind for kind, command in _COMMANDS.items()}
    config = subcommand_cli_from_dict(kinds, args=shlex.split(arguments), config=(OmitArgPrefixes,))
    assert type(config) is kinds[arguments.split()[0]]


def test_the_files_exist() -> None:
    named = set(re.findall(r"(?<![\w/.-])(?:deploy/[\w./-]+|cluster\.yaml|jobs/\w+\.py|constraints\.txt)", PAGE))
    assert {"cluster.yaml", "deploy/Dockerfile", "deploy/kuberay/train.yaml"} <= named
    assert [name for name in named if not (ROOT / name.rstrip(".")).exists()] == []
