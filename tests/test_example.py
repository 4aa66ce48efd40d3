"""The recording that ships: whole, small, and shown without any agent."""

import subprocess
import sys
import urllib.request
from pathlib import Path

from interlatent_live.analyzer.service import analyze_recording
from interlatent_live.cli.live import EXAMPLE
from interlatent_live.stream.reading import Recording


def test_example_is_whole_and_small() -> None:
    info = Recording(EXAMPLE).info()
    assert info["bytes"] < 2 << 20
    assert info["damaged"] is None
    assert info["ledger"] == {"produced": 1250, "queue_dropped": 0, "recorded": 1250, "record_failed": 0}
    assert info["pictures"] > 200
    assert Recording(EXAMPLE).manifest.host == "example"


def test_example_is_analysed_with_the_dictionary_that_ships(tmp_path: Path) -> None:
    done = analyze_recording(EXAMPLE, tmp_path / "r.db")
    assert done["analyzed"] == 1250


def test_example_is_package_data() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert "examples/*" in project["tool"]["setuptools"]["package-data"]["interlatent_live"]


def test_watch_example_opens_the_page_with_no_agent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "interlatent_live", "watch", "--example", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            url = line.split("the page is at ")[1].split(";")[0]
            with urllib.request.urlopen(url, timeout=30) as page:
                assert page.status == 200
        finally:
            process.terminate()
        assert process.wait(15) == 0


def test_example_and_a_source_exclude_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "interlatent_live", "watch", "run.mcap", "--example"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "leave out run.mcap" in " ".join(done.stderr.replace("│", " ").split())


