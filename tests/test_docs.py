"""The pages in docs/ do what they say: every Python block and every command runs as it stands, links lead somewhere.

Each block runs in an empty folder. Words after the language in a fence's first line, which readers do not see:
`continues`: after the blocks before it, in their folder and namespace; `needs=NAME`: a file is there under that name;
`skip="why"`: it does not run. A block that imports what is not installed is skipped. Blocks of docs/adapters run with
their libraries' tests.
"""

import ast
import contextlib
import functools
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import interlatent_live.agent_side.tap
from interlatent_live.cli.live import EXAMPLE

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINKING = sorted((ROOT / "docs").rglob("*.md"))
_FENCE = re.compile(r"^```(python|sh)\b([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SERVING = re.compile(r"interlatent-live (watch|view)\b")
_UP_S = 60


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    code: str
    before: tuple["Block", ...] = ()

    def word(self, name: str) -> str | None:
        return next((w.partition("=")[2] for w in self.words if w.partition("=")[0] == name), None)

    @property
    def missing(self) -> list[str]:
        if self.language == "sh":
            return []
        tree = ast.walk(ast.parse(self.code))
        names = {a.name for n in tree if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(ast.parse(self.code)) if isinstance(n, ast.ImportFrom) and n.module}
        return sorted(n for n in names if importlib.util.find_spec(n.partition(".")[0]) is None)


@functools.cache
def blocks(page: Path) -> list[Block]:
    text, found = page.read_text(encoding="utf-8"), list[Block]()
    for match in _FENCE.finditer(text):
        words = tuple(shlex.split(match[2]))
        before = (*found[-1].before, found[-1]) if "continues" in words else ()
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, match[1], words, match[3], before))
    return found


def named(block: Block) -> str:
    return f"{block.page.name}:{block.line}"


@pytest.fixture(autouse=True)
def _free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that takes the default endpoint gets a free one: something else may run on this machine."""
    monkeypatch.setattr(interlatent_live.agent_side.tap, "DEFAULT_ENDPOINT", "tcp://127.0.0.1:*")


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page)], ids=named)
def test_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (why := block.word("skip")) is not None:
        pytest.skip(why)
    if missing := [name for b in (*block.before, block) for name in b.missing]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for one in (*block.before, block):
        _provide(one.word("needs"), tmp_path)
        if one.language == "sh":
            _command_lines(one.code, tmp_path)
        else:
            code = compile("\n" * one.line + one.code, str(one.page), "exec")
            exec(code, namespace)


def _provide(name: str | None, folder: Path) -> None:
    if name is None or (folder / name).exists():
        return
    if name.endswith(".mcap"):
        shutil.copy(EXAMPLE, folder / name)
    else:
        from tests.test_onnx import actor

        actor(folder / name)


def _command_lines(code: str, folder: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in code.splitlines():
        command = shlex.split(line, comments=True)
        if not command:
            continue
        if shutil.which(command[0], path=environment["PATH"]) is None:
            pytest.skip(f"not installed: {command[0]}")
        if _SERVING.match(line):
            _serves([*command, "--port", "0"], folder, environment)
            continue
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def _serves(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        impatient = threading.Timer(_UP_S, process.kill)
        impatient.start()
        try:
            assert "the page is at http://127.0.0.1:" in process.stdout.readline()
        finally:
            impatient.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(15) == 0


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        if not to.exists() or (anchor and anchor not in _anchors(to)):
            broken.append(target)
    assert broken == []


def _anchors(page: Path) -> set[str]:
    """Anchors of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name != "README.md" and f"({page.name})" not in index] == []


def test_readme_points_to_the_pages() -> None:
    more = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Read more")[2]
    assert [page.name for page in PAGES if f"docs/{page.name}" not in more] == []
