"""What a language model's loop is handed for a prompt that another process asked for: one text to write, or a pair.

Each text is written with its seed, labels and interventions in place, which hold from when it is handed out until the loop
asks for the next. What cannot be written is refused to who asked, and the loop never hears of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from interlatent_live.agent_side.asking import Generation, Wanted
from interlatent_live.agent_side.lm_passes import Asked
from interlatent_live.stream.errors import DictionaryError, PromptError, SteeringError

if TYPE_CHECKING:
    from interlatent_live.agent_side.lm_steering import TokenSteering
    from interlatent_live.agent_side.lm_text import Text

__all__ = ["generations"]


def generations(
    wanted: Wanted,
    model: Any,
    text: Text,
    context: int | None,
    steering: TokenSteering,
    within: Callable[[Asked], AbstractContextManager[None]],
    closed: Callable[[], bool],
) -> Iterator[Generation]:
    """The texts of one prompt, in order: plain, then steered. `within`: sequences that begin inside are what it is given."""
    try:
        ids = _tokens(wanted, text, context)
    except PromptError as error:
        wanted.close("refused", str(error))
        return
    device = next(model.parameters()).device
    inputs = {
        "input_ids": torch.tensor([ids], device=device),
        "attention_mask": torch.ones((1, len(ids)), dtype=torch.int64, device=device),
    }
    options: dict[str, Any] = {
        "max_new_tokens": wanted.max_new_tokens if context is None else min(wanted.max_new_tokens, context - len(ids)),
        "pad_token_id": next((int(t) for t in (text.tokenizer.pad_token_id, text.tokenizer.eos_token_id) if t is not None), 0),
        "stopping_criteria": _stopping(lambda: wanted.cancelled or closed()),
        "do_sample": wanted.temperature > 0,
    }
    if wanted.temperature > 0:
        options["temperature"] = wanted.temperature
    for arm in wanted.arms:
        if wanted.cancelled:
            break
        labels = {**wanted.labels, "arm": arm.name} if wanted.pair else dict(wanted.labels)
        asked = Asked([wanted.text], [labels], pair=wanted.pair, arm=arm.name, read=arm.read)
        acts: list[str] = []
        finished = False
        try:
            for one in wanted.steer if arm.steered else ():
                reason = one.get("reason") or f"asked with the prompt {wanted.text[:60]!r}"
                acts.append(steering.start(**{**one, "author": wanted.client, "reason": reason}).id)
            steering.adopt()
            torch.manual_seed(wanted.seed)
            arm.state = "running"
            with within(asked):
                yield Generation(wanted.text, labels, arm.name, inputs, options, arm)
            finished = True
        except (SteeringError, DictionaryError) as error:
            wanted.close("refused", str(error))
            return
        finally:
            for act in acts:
                steering.end(act, "released")
            arm.state, arm.ended = "over", time.monotonic()
            if not finished and wanted.state == "running":
                wanted.close("failed", "the agent's loop left off")
    wanted.close("cancelled" if wanted.cancelled else "done")


def _tokens(wanted: Wanted, text: Text, context: int | None) -> list[int]:
    """Raises PromptError for what holds no text, or does not fit the model."""
    tokenizer = text.tokenizer
    if wanted.chat:
        if not getattr(tokenizer, "chat_template", None):
            raise PromptError("this model's tokenizer has no chat template; ask without chat")
        turn = [{"role": "user", "content": wanted.text}]
        found = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    else:
        found = tokenizer(wanted.text)["input_ids"]
    ids = [int(token) for token in found]
    if all(token in text.special for token in ids):
        raise PromptError(f"the prompt {wanted.text[:40]!r} has no token of text; give it some")
    if context is not None and len(ids) >= context:
        raise PromptError(f"a prompt of {len(ids)} tokens; the model's context is {context}, with what it writes: shorten it")
    return ids


def _stopping(over: Callable[[], bool]) -> Any:
    """What ends `generate` between two tokens."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Ending(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full((input_ids.shape[0],), over(), device=input_ids.device, dtype=torch.bool)

    return StoppingCriteriaList([Ending()])
