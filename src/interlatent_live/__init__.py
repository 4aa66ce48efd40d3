"""See what an agent is thinking while it acts.

    import interlatent_live as il

    tap = il.Tap(policy, ["1:out", "3:out"], run="my-agent", record="run.mcap")
    env = il.watch(gym.make("CartPole-v1"), tap)
    with tap:
        ...

    run = il.open("run.mcap")

Importing this imports neither torch nor gymnasium; names are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from interlatent_live import onnx
    from interlatent_live.agent_side.attribution import Why
    from interlatent_live.agent_side.metrics import Metric, Transition
    from interlatent_live.agent_side.points import points
    from interlatent_live.agent_side.policy import SteeringPolicy
    from interlatent_live.agent_side.tap import Tap
    from interlatent_live.agent_side.watch import watch
    from interlatent_live.analyzer.dictionary import Dictionary
    from interlatent_live.analyzer.run import Run
    from interlatent_live.analyzer.run import open_run as open
    from interlatent_live.stream.condition import Condition
    from interlatent_live.tokens import tokens

    __version__: str

__all__ = ["Metric", "Run", "SteeringPolicy", "Tap", "Transition", "Why", "__version__", "onnx", "open", "points", "tokens", "watch"]

_HOMES = {
    "Metric": "metrics",
    "SteeringPolicy": "policy",
    "Tap": "tap",
    "Transition": "metrics",
    "Why": "attribution",
    "points": "points",
    "watch": "watch",
}
_READING = {"Run": "Run", "open": "open_run"}


if not TYPE_CHECKING:  # a checker that saw this would let every misspelt name pass

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("interlatent-live")
        if name == "onnx":
            return import_module("interlatent_live.onnx")
        if name == "tokens":
            globals()[name] = import_module("interlatent_live.tokens").tokens
            return globals()[name]
        if name in _READING:
            globals()[name] = getattr(import_module("interlatent_live.analyzer.run"), _READING[name])
            return globals()[name]
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"interlatent_live.agent_side.{_HOMES[name]}"), name)
        if name in ("Tap", "SteeringPolicy"):
            tap = import_module("interlatent_live.agent_side.tap").Tap
            tap.find_dictionaries, tap.parse_condition = staticmethod(_dictionaries), staticmethod(_condition)
        if name == "Tap":
            # the agent's side may not know of the processes beside it, so they are handed in here
            found.viewer = _view_beside
        if name == "Why":
            found.find = staticmethod(_find_dictionary)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _view_beside(tap: Tap) -> Callable[[], object]:
    from interlatent_live.launch import view_beside

    return view_beside(tap.endpoint, tap.run).end


def _find_dictionary(name: str | Path) -> Dictionary:
    from interlatent_live.analyzer.registry import find

    return find(name)


def _dictionaries(name: str | None) -> Sequence[Dictionary]:
    from interlatent_live.analyzer.registry import find, installed

    return installed() if name is None else [find(name)]


def _condition(text: str) -> Condition:
    """The one grammar of predicates, as data that the agent's side evaluates. Raises PredicateError."""
    try:
        from interlatent_live.explainer.grammar import parse
    except ImportError as error:
        from interlatent_live.stream.errors import SteeringError

        raise SteeringError("conditions need pydantic: pip install 'interlatent-live[explainer]'") from error
    from interlatent_live.stream.condition import Condition

    return Condition.from_data(parse(text).model_dump())
