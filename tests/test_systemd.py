"""The unit as systemd's own tools judge it.  They need no booted systemd; Debian's package is called systemd."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .installed import ROOT

UNITS = Path(os.environ.get("ARENITE_CHECKOUT", ROOT)) / "systemd"
PROGRAM = "/opt/arenite/bin/arenite"
EXPOSURE = "15"  # tenths, as --threshold takes them
TOOLS_SINCE = 250  # the first systemd whose tools know --offline, --recursive-errors and --dry-run
BACKOFF_SINCE = 254  # the first that knows RestartSteps=


def tool(name: str) -> str:
    """Return the path of one of systemd's tools, or skip."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here (apt-get install systemd)")
    if version(found) < TOOLS_SINCE:
        pytest.skip(f"{name} is older than {TOOLS_SINCE}")
    return found


def version(program: str) -> int:
    """Return the number of the systemd that a tool belongs to."""
    found = re.search(r"systemd (\d+)", run(program, "--version"))
    assert found
    return int(found[1])


def run(*command: str) -> str:
    """Run a tool; it must succeed.  Returns what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def analyze(*arguments: str) -> str:
    return run(tool("systemd-analyze"), "--no-pager", *arguments)


def installed(folder: Path, *drop_ins: str) -> Path:
    """Put the unit into a folder as INSTALL.md does, with a program that exists; returns its path."""
    text = (UNITS / "arenite.service").read_text(encoding="utf-8")
    unit = folder / "arenite.service"
    unit.write_text(text.replace(PROGRAM, sys.executable), encoding="utf-8")
    shutil.copy(UNITS / "arenite.slice", folder)
    for name in drop_ins:
        place = folder / "arenite.service.d" / name.removeprefix("arenite-")
        place.parent.mkdir(exist_ok=True)
        shutil.copy(UNITS / name, place)
    return unit


def settings(name: str = "arenite.service") -> dict[str, list[str]]:
    """Return the keys of a unit's [Service] section, each with all its values."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (UNITS / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("drop_ins", [[], ["arenite-gpu.conf"]], ids=["cpu", "gpu"])
def test_the_unit_is_verified_without_a_remark(tmp_path: Path, drop_ins: list[str]) -> None:
    unit = installed(tmp_path, *drop_ins)
    said = analyze("verify", "--man=no", "--recursive-errors=no", str(unit), str(tmp_path / "arenite.slice"))
    assert str(tmp_path) not in said
    assert "arenite" not in said


def test_verification_would_see_a_key_that_does_not_exist(tmp_path: Path) -> None:
    unit = installed(tmp_path)
    unit.write_text(unit.read_text(encoding="utf-8").replace("RestartSec=5", "RestartSecs=5"), encoding="utf-8")
    done = subprocess.run([tool("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", str(unit)],
                          capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "RestartSecs" in done.stderr


def test_the_backoff_is_verified_where_systemd_knows_it(tmp_path: Path) -> None:
    if version(tool("systemd-analyze")) < BACKOFF_SINCE:
        pytest.skip(f"RestartSteps= needs systemd {BACKOFF_SINCE}")
    analyze("verify", "--man=no", "--recursive-errors=no", str(installed(tmp_path, "arenite-backoff.conf")))


@pytest.mark.parametrize("drop_ins", [[], ["arenite-gpu.conf"]], ids=["cpu", "gpu"])
def test_the_unit_is_hardened(tmp_path: Path, drop_ins: list[str]) -> None:
    said = analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", str(installed(tmp_path, *drop_ins)))
    assert ("/dev/nvmap" in said) == bool(drop_ins), "the drop-in takes part"


def test_the_unit_fits_the_service() -> None:
    unit = settings()
    assert unit["Type"] == ["notify"]
    assert unit["ExecStart"] == [f"{PROGRAM} serve --config /etc/arenite/arenite.toml"]
    assert unit["RestartPreventExitStatus"] == ["78"], "the exit code of a bad configuration"
    assert unit["RuntimeDirectory"] == ["arenite"]
    assert unit["RuntimeDirectoryMode"] == ["0750"]
    assert (UNITS / unit["Slice"][0]).is_file()
    assert float(unit["WatchdogSec"][0]) > 0


def test_every_secret_may_be_missing() -> None:
    unit = settings()
    loaded = {value.split(":")[0] for value in unit["LoadCredential"]}
    assert loaded == {value.split(":")[0] for value in unit["SetCredential"]}
    assert all(value.endswith(":\\n") for value in unit["SetCredential"]), "no secret stands in the unit"


def test_units_have_no_comment_behind_a_value() -> None:
    """To systemd it would be a part of the value."""
    for name in ("arenite.service", "arenite-gpu.conf", "arenite-backoff.conf", "arenite.slice"):
        parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=["="])
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read(UNITS / name, encoding="utf-8")
        assert not [value for section in parser.sections() for value in parser[section].values() if " #" in value]


def test_the_user_is_made(tmp_path: Path) -> None:
    said = run(tool("systemd-sysusers"), f"--root={empty_root(tmp_path)}", "--dry-run", str(UNITS / "arenite.sysusers"))
    for name in ("arenite", "video", "render"):
        assert f"Creating group '{name}'" in said
    assert "Creating user 'arenite'" in said
    groups = {group for value in settings("arenite-gpu.conf")["SupplementaryGroups"] for group in value.split()}
    assert groups == {"video", "render"}, "a group that nobody makes stops the start"


def test_the_folders_are_made(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("to give folders away needs root")
    root = empty_root(tmp_path)
    run(tool("systemd-sysusers"), f"--root={root}", str(UNITS / "arenite.sysusers"))
    for _ in range(2):  # the second time everything is there
        run(tool("systemd-tmpfiles"), f"--root={root}", "--create", str(UNITS / "arenite.tmpfiles"))
    users = dict(line.split(":")[:3:2] for line in (root / "etc/passwd").read_text(encoding="utf-8").splitlines())
    for path, mode, owner in (("etc/arenite", 0o750, 0), ("etc/arenite/credentials", 0o700, 0),
                              ("var/lib/arenite", 0o750, int(users["arenite"])),
                              ("var/lib/arenite/models", 0o750, int(users["arenite"]))):
        found = (root / path).stat()
        assert (found.st_mode & 0o7777, found.st_uid) == (mode, owner), path


def test_the_notes_name_every_file() -> None:
    notes = (UNITS / "INSTALL.md").read_text(encoding="utf-8")
    files = {path.name for path in UNITS.iterdir() if path.suffix != ".md"}
    assert not {name for name in files if f"| `{name}` |" not in notes}


def empty_root(folder: Path) -> Path:
    """Make a tree into which users and folders may be put."""
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    return root
