"""Starting processes: addresses that are nobody else's."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from interlatent_live.launch import free_endpoint

ASK = """
import sys
from interlatent_live.launch import free_endpoint
print(free_endpoint(sys.argv[1]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def preferred() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.skipif(sys.platform != "linux", reason="reservations are Linux's abstract sockets")
def test_those_who_ask_at_once_get_an_address_each_and_leave_it_when_killed(preferred: str) -> None:
    command = [sys.executable, "-c", ASK, preferred]
    asked = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        given = [one.stdout.readline().strip() for one in asked if one.stdout is not None]
    finally:
        for one in asked:
            one.kill()
            one.communicate()
    assert len(set(given)) == 3
    assert preferred in given
    assert free_endpoint(preferred) == preferred


def test_what_another_program_holds_is_not_given(preferred: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", int(preferred.rpartition(":")[2])))
        holder.listen()
        assert free_endpoint(preferred) not in (preferred, "")
