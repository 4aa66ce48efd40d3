"""`python -m bench [NAME …]`: each bench in a process of its own, one after the other."""

from __future__ import annotations

import datetime
import subprocess
import sys

from .table import machine

BENCHES = ("tap", "encode", "statistics", "analyzer", "recording", "latency", "sb3", "opening", "memory", "why", "explaining")

if __name__ == "__main__":
    print(f"{machine()}; {datetime.date.today().isoformat()}", flush=True)
    failed = [name for name in sys.argv[1:] or BENCHES if subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
