"""The tree keeps its shape, imports stay light, texts name no machine."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("stream", "agent_side", "analyzer", "explainer", "viewer")


@pytest.mark.parametrize("folder", FOLDERS)
def test_root_folder_is_linked_into_the_package(folder: str) -> None:
    link = ROOT / "src" / "interlatent_live" / folder
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / folder


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import interlatent_live", {"torch", "zmq", "bokeh", "gymnasium"}),
        ("import interlatent_live.stream.reading", {"torch", "bokeh", "gymnasium", "scipy", "river"}),
        ("import interlatent_live.analyzer.queries", {"torch", "river"}),
        ("import interlatent_live.viewer.app", {"torch", "river", "gymnasium"}),
        ("import interlatent_live.cli", {"torch", "bokeh", "scipy", "gymnasium"}),
    ],
)
def test_import_stays_light(statement: str, absent: set[str]) -> None:
    assert not _modules_after(statement) & absent


def test_every_dependency_is_pinned_in_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {re.match(r"[A-Za-z0-9_.-]+", r)[0].lower().replace("_", "-") for r in wanted}  # type: ignore[index]
    assert names - pinned - {"interlatent-live"} == set()


def test_no_text_names_a_machine_or_a_registry_host() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile(r"/work/(main|shared)|/root/|pypi\.org|files\.pythonhosted|registry\.npmjs", re.IGNORECASE)
    hits = []
    for name in tracked.stdout.split("\0"):
        path = ROOT / name
        if (
            name
            and path.is_file()
            and not path.is_symlink()
            and path != Path(__file__)
            and path.suffix in {".py", ".md", ".toml", ".txt", ".sql", ""}
        ):
            hits += [f"{name}: {m.group()}" for m in [forbidden.search(path.read_text(errors="ignore"))] if m]
    assert hits == []
