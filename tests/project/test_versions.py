"""make test-oldest takes the lower bounds of setup.cfg, make test-newest what is newer than constraints.txt."""

import configparser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
# Gigabytes, or built for minutes: oldest.txt says so.
LEFT_TO_THE_ENVIRONMENT = {"torch"}


def pins(path: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def test_the_oldest_releases_are_the_lower_bounds_of_setup_cfg():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    wanted = [Requirement(line) for line in settings["options"]["install_requires"].split("\n") if line]
    bounds = {}
    for one in wanted:
        [bound] = one.specifier
        assert bound.operator == ">="
        bounds[canonicalize_name(one.name)] = Version(bound.version)
    assert bounds.keys() >= LEFT_TO_THE_ENVIRONMENT
    oldest = pins("tests/versions/oldest.txt")
    for name in bounds.keys() - LEFT_TO_THE_ENVIRONMENT:
        assert oldest[name] == bounds[name], name


def test_the_newest_releases_are_newer_than_those_of_make_setup():
    pinned, newest = pins("launch/constraints.txt"), pins("tests/versions/newest.txt")
    assert {name: version for name, version in newest.items() if version <= pinned[name]} == {}
