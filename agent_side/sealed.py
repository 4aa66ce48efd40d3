"""Numbers of the row that was just sealed, by name: what the conditions of interventions ask for, on the agent's thread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from interlatent_live.agent_side.intervention import Act

__all__ = ["of_env", "sealed_value"]


def of_env(values: Any, env: int, several: bool) -> Any:
    """One environment's part; of a tap with one environment, or of what is no sequence, all of it."""
    return values if not several or values is None or not hasattr(values, "__getitem__") else values[env]


def sealed_value(name: str, env: int, act: Act, row: Mapping[str, Any], sources: Mapping[str, Any]) -> float:
    """A number of the frame that was just sealed; NaN where it is not known."""
    several, found = row["several"], None
    try:
        if name in sources:
            source = sources[name]
            if isinstance(source, int):
                found = of_env(row["observation"], env, row["batched"])
                found = None if found is None else _flat(found)[source]
            elif isinstance(source, tuple):
                found = None if row["evaluated"] is None else row["evaluated"][env, source[0]]
            else:
                found = of_env((row["metrics"] or {}).get(name), env, several)
        elif name in row:
            found = of_env(row[name], env, several)
        elif name.startswith("action["):
            found = _flat(of_env(row["action"], env, several))[int(name[7:-1])]
        elif name in act.features:
            found = act.features[name][env]
        return math.nan if found is None else float(found)
    except (TypeError, ValueError, IndexError, KeyError, RuntimeError):
        return math.nan


def _flat(value: Any) -> Any:
    return value.reshape(-1) if hasattr(value, "reshape") else value
