"""Messages that stand beside the frames: each becomes rows as it is, once, however often it comes."""

from __future__ import annotations

from interlatent_live.analyzer.attributions import attribute
from interlatent_live.analyzer.interventions import intervened, measured
from interlatent_live.analyzer.prompts import write_message
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.prompt import Prompt, Vocabulary
from interlatent_live.stream.wire import Attribution, Effects, Intervention, Picture, Scalars

__all__ = ["write_beside"]


def write_beside(message: Picture | Scalars | Intervention | Effects | Prompt | Vocabulary | Attribution, writes: Writes) -> None:
    """Gather the rows of one message."""
    match message:
        case Picture():
            _picture(message, writes)
        case Scalars():
            _scalars(message, writes)
        case Intervention():
            intervened(message, writes)
        case Effects():
            measured(message, writes)
        case Attribution():
            attribute(message, writes)
        case Prompt() | Vocabulary():
            write_message(message, writes)


def _picture(picture: Picture, writes: Writes) -> None:
    writes.insert_once(
        "pictures",
        run=picture.run,
        boot=picture.boot,
        env=picture.env,
        seq=picture.seq,
        wall_ns=picture.wall_ns,
        width=picture.width,
        height=picture.height,
        data=picture.data,
    )


def _scalars(scalars: Scalars, writes: Writes) -> None:
    for row, values in enumerate(scalars.values):
        for name, value in zip(scalars.names, values, strict=True):
            writes.insert_once(
                "scalars",
                run=scalars.run,
                boot=scalars.boot,
                seq=scalars.seq + row,
                name=name,
                step=scalars.step[row],
                monotonic_ns=scalars.monotonic_ns[row],
                wall_ns=scalars.wall_ns[row],
                policy_version=scalars.policy_version[row],
                value=value,
            )
