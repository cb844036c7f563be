"""Definition files without an engine: sections and arguments as an engine reads them, and shellcheck of the scripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONTAINERS = Path(__file__).resolve().parents[2] / "containers"
DEFINITIONS = sorted(CONTAINERS.glob("*.def"))
IMAGES = [path for path in DEFINITIONS if path.stem != "base"]
# https://apptainer.org/docs/user/main/definition_files.html
SECTIONS = {"setup", "files", "app", "post", "test", "environment", "startscript", "runscript", "labels", "help", "arguments"}
SCRIPTS = {"post", "test", "environment", "runscript"}
HEADERS = {"bootstrap", "from", "osversion", "mirrorurl", "include", "stage"}
AGENTS = {"docker", "debootstrap", "localimage"}


class Stage:
    """One stage of a definition file: header, sections, and the words that follow a section's name (`%files from build`)."""

    def __init__(self, text: str) -> None:
        self.headers: dict[str, str] = {}
        self.sections: dict[str, str] = {}
        self.words: dict[str, str] = {}
        name = ""
        for line in text.splitlines():
            opened = re.match(r"%(\w+)\s*(.*)", line)
            if opened:
                name = opened[1]
                assert name in SECTIONS and name not in self.sections, line
                self.sections[name], self.words[name] = "", opened[2]
            elif name:
                self.sections[name] += line + "\n"
            elif line.strip() and not line.startswith("#"):
                key, colon, value = line.partition(":")
                assert colon and key.lower() in HEADERS, line
                self.headers[key.lower()] = value.strip()

    @property
    def arguments(self) -> dict[str, str]:
        """Build arguments with their defaults."""
        lines = (line.strip() for line in self.sections.get("arguments", "").splitlines())
        pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
        return {name: value for name, _, value in pairs}

    def filled(self, text: str) -> str:
        """Return text with build arguments in place of their names."""
        return re.sub(r"\{\{ (\w+) \}\}", lambda match: self.arguments[match[1]], text)


def stages(path: Path) -> list[Stage]:
    """Split a file where a header begins."""
    parts = re.split(r"(?m)^(?=Bootstrap:)", path.read_text())
    assert all(line.startswith("#") or not line for line in parts[0].splitlines()), parts[0]
    return [Stage(part) for part in parts[1:]]


def test_there_are_two_images_and_a_base() -> None:
    assert [path.name for path in DEFINITIONS] == ["base.def", "farm.def", "train.def"]


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_every_argument_is_defined_and_used(path: Path) -> None:
    for stage in stages(path):
        text = "\n".join([*stage.headers.values(), *(body for name, body in stage.sections.items() if name != "arguments")])
        used = set(re.findall(r"\{\{ (\w+) \}\}", text))
        assert used == set(stage.arguments), "an engine refuses arguments that are not defined, or not used"
        assert "{{" not in stage.filled(text)
        assert stage.filled(stage.headers["bootstrap"]) in AGENTS
        assert {"from", "osversion", "mirrorurl", "include"} <= set(stage.headers), "one file serves every agent"


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_every_script_passes_shellcheck(path: Path, tmp_path: Path) -> None:
    for number, stage in enumerate(stages(path)):
        for name in SCRIPTS & set(stage.sections):
            script = tmp_path / f"{number}-{name}.sh"
            script.write_text(stage.filled(stage.sections[name]))
            # 2050, 2157, 2194: a comparison of two constants is what an argument leaves; 1091: the file is the image's
            command = ["shellcheck", "--shell=sh", "--exclude=SC1091,SC2050,SC2157,SC2194", str(script)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stdout
            subprocess.run(["sh", "-n", str(script)], check=True)


@pytest.mark.parametrize("path", sorted(CONTAINERS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path: Path) -> None:
    ended = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_has_all_that_a_user_looks_for(path: Path) -> None:
    build, final = stages(path)
    assert build.headers["stage"] == "build" and final.headers["stage"] == "final" and final.words["files"] == "from build"
    assert {"post", "environment", "runscript", "test", "labels", "help"} <= set(final.sections)
    assert final.sections["runscript"].strip() == 'exec hpc-molgen "$@"'
    assert "org.opencontainers.image.version" in final.sections["post"] + final.sections["labels"]
    assert "org.opencontainers.image.revision {{ COMMIT }}" in final.sections["labels"]
    assert "hpc_molgen.launch.inside smoke" in final.sections["test"]
    assert f"apptainer run {path.stem}.sif" in final.sections["help"].replace("--nv ", "")
    copied = [line.split()[0] for line in build.sections["files"].splitlines() if line.strip()]
    assert all((CONTAINERS.parent / name).exists() for name in copied) and "constraints.txt" in copied


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("%post\n", "%prost\n"),
        ("DEVICE=cpu\n", ""),
        ("    set -eu\n", "    set -eu\n    if [ $HOME = 1 ; then\n"),
    ],
)
def test_these_checks_can_fail(before: str, after: str, tmp_path: Path) -> None:
    broken = tmp_path / "farm.def"
    text = (CONTAINERS / "farm.def").read_text()
    assert before in text
    broken.write_text(text.replace(before, after))
    with pytest.raises(AssertionError):
        test_every_argument_is_defined_and_used(broken)
        test_every_script_passes_shellcheck(broken, tmp_path)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with this machine's programs but those that building wants; an engine of no use stands in for one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for directory in map(Path, ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin")):
        for program in directory.iterdir() if directory.is_dir() else ():
            if (
                program.name not in ("apptainer", "singularity", "debootstrap", "newuidmap")
                and not (folder / program.name).exists()
            ):
                (folder / program.name).symlink_to(program)
    return folder


def add(programs: Path, *names: str) -> None:
    for name in names:
        (programs / name).unlink(missing_ok=True)  # a link to the machine's own
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)


def refused(programs: Path, *arguments: str, **variables: str) -> str:
    """Call build.sh with those programs; return the one message that it ends with."""
    env = {"PATH": str(programs), "HOME": str(programs.parent), "PYTHON": sys.executable} | variables
    command = ["bash", str(CONTAINERS / "build.sh"), *arguments]
    ended = subprocess.run(command, env=env, cwd=programs.parent, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("build.sh: "), ended.stdout + ended.stderr
    return ended.stderr


def test_build_says_what_is_missing(programs: Path) -> None:
    assert "there is no option '--bose'" in refused(programs, "--bose")
    assert "--base is debootstrap or docker, not 'alpine'" in refused(programs, "--base", "alpine")
    assert "--out names one image" in refused(programs, "--out", "a.sif")
    assert "no engine: neither apptainer nor singularity" in refused(programs, "farm")
    add(programs, "apptainer")
    assert "no fakeroot: newuidmap is missing" in refused(programs, "farm", "--base", "docker")
    assert "has no pip" in refused(programs, "farm", PYTHON="/bin/false")
    add(programs, "debootstrap", "apt-get")
    assert "apt-get update, or set MIRROR" in refused(programs, "farm")


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk that is full is made by root")
def test_build_says_that_there_is_no_space(programs: Path, tmp_path: Path) -> None:
    add(programs, "apptainer")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=True)
    try:
        said = refused(programs, "farm", "--base", "docker", APPTAINER_TMPDIR=str(small))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert f"no space: {small} has 0 GiB free and an image is made in 5; set APPTAINER_TMPDIR" in said
