"""A language model run over a set of prompts with a tap in it: `interlatent-live run lm`, and the demo of that name.

1. Prompts are read and tokenised before anything runs, so that what is wrong with one of them is told at once, by its line.
2. Each is continued by sampling or greedily, alone or in batches padded on the left; its labels go with it.
3. Ctrl-C and the time limit end a generation between two tokens; what was read until then is kept.
4. What other processes ask for (`serve`) is written between two texts; of a demo, which repeats its own, at once.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.stream.errors import AgentError, MalformedMessage, PromptError
from interlatent_live.stream.prompt import MAX_TEXT, checked_labels

if TYPE_CHECKING:
    from interlatent_live.agent_side.tap import Tap

__all__ = ["POINTS", "SHIPPED", "Given", "Loaded", "Written", "load", "make_tap", "read_prompts", "serve", "tokenised", "write"]

SHIPPED: Final = Path(__file__).parent / "examples" / "prompts.jsonl"
"""48 beginnings of sentences about four topics, labelled."""
POINTS: Final = ("model.layers.15.mlp",)
"""What the demo reads of SmolLM2: the layer of the dictionary that ships."""
_TEXT: Final = ("text", "prompt")
_MAX_FILE_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Given:
    """One prompt."""

    text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    place: str = ""
    """Where it was read, for messages."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A language model that is ready to write."""

    model: Any
    tokenizer: Any
    name: str
    context: int | None
    """Tokens that it was made for."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a run over prompts came to."""

    prompts: int
    tokens: int
    """Written, of all prompts."""
    seconds: float


def read_prompts(path: Path) -> list[Given]:
    """Prompts of a .jsonl file (an object a line) or a .csv file (a column `text`); whatever else is named there is a label.

    Raises PromptError, which names the line.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise PromptError(f"{path} has {path.stat().st_size >> 20} MiB; at most {_MAX_FILE_BYTES >> 20} are read: split it")
        raw = path.read_bytes()
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}") from error
    lines = _lines(raw, path)
    found = list(_csv(lines, path) if path.suffix.lower() == ".csv" else _jsonl(lines, path))
    if not found:
        raise PromptError(f"{path} holds no prompt; a line of it looks like {json.dumps({'text': 'The engine', 'topic': 'physics'})}")
    return found


def tokenised(loaded: Loaded, prompts: Sequence[Given], *, chat: bool = False) -> list[list[int]]:
    """The tokens of each prompt. Raises PromptError for those that are empty or longer than the model's context.

    `chat`: as a user's turn in the tokenizer's template.
    """
    tokenizer, ids = loaded.tokenizer, []
    if chat and not getattr(tokenizer, "chat_template", None):
        raise PromptError(f"the tokenizer of {loaded.name} has no chat template; leave --chat out")
    for given in prompts:
        if chat:
            turn = [{"role": "user", "content": given.text}]
            found = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
        else:
            found = tokenizer(given.text)["input_ids"]
        if all(token in tokenizer.all_special_ids for token in found):
            raise PromptError(f"{given.place}: the prompt {given.text[:40]!r} has no token; give it some text")
        if loaded.context is not None and len(found) >= loaded.context:
            raise PromptError(
                f"{given.place}: a prompt of {len(found)} tokens; the context of {loaded.name} is {loaded.context}, with what it writes: "
                "shorten it"
            )
        ids.append([int(token) for token in found])
    return ids


def load(directory: Path | None = None, *, say: Callable[[str], None] | None = None) -> Loaded:
    """A model and its tokenizer from a directory; None: SmolLM2, converted where it is not yet. Raises AgentError."""
    if directory is None:
        from interlatent_live.smollm2 import NAME, ensure

        directory, name = ensure(say), NAME
    else:
        name = directory.name
        if not directory.is_dir():
            raise AgentError(f"{directory} is no directory; --model takes one with config.json, weights and tokenizer in it")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise AgentError(f"language models need {error.name}, which is not installed: pip install 'interlatent-live[lm]'") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise AgentError(f"{directory} cannot be loaded: {error}") from error
        raise AgentError(f"{directory} does not fit into memory ({_weigh(directory)}): free some, or name a smaller model") from error
    except (OSError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0]
        raise AgentError(f"{directory} cannot be loaded: {why}; name a directory with a causal model in it") from error
    model.eval()
    context = getattr(model.config, "max_position_embeddings", None)
    return Loaded(model, tokenizer, name, context if isinstance(context, int) and context > 0 else None)


def make_tap(loaded: Loaded, points: Sequence[str] = (), **options: Any) -> Tap:
    """A tap in it; without points those of the demo where the model has them, else its middle MLP."""
    from interlatent_live.agent_side.tap import Tap

    known = dict(loaded.model.named_modules())
    chosen = list(points) or ([*POINTS] if all(point in known for point in POINTS) else None)
    return Tap(loaded.model, chosen, tokenizer=loaded.tokenizer, agent="lm", environment=loaded.name, **options)


def write(
    loaded: Loaded,
    tap: Tap,
    prompts: Sequence[Given],
    ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    repeat: bool = False,
    seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    done: Callable[[int, int], object] = lambda prompts, tokens: None,
    serves: bool = False,
) -> Written:
    """Have the model go on with each prompt. `done(prompts, tokens)` is told after each batch how far things are.

    `temperature` 0 takes the likeliest token; `repeat`: begin again at the end, until `seconds` or `stop()`. `serves`: write
    what others ask for in between, and where nothing is repeated stay for it afterwards.
    """
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    began = time.monotonic()

    def over() -> bool:
        return stop() or (seconds is not None and time.monotonic() - began >= seconds)

    class Ending(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            ends = over() or (repeat and tap.waiting > 0)  # it comes again: whoever asks is not kept waiting
            return torch.full((input_ids.shape[0],), ends, device=input_ids.device, dtype=torch.bool)

    torch.manual_seed(seed)
    pad = loaded.tokenizer.pad_token_id
    pad = pad if pad is not None else next((t for t in (loaded.tokenizer.eos_token_id, 0) if t is not None), 0)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    finished = tokens = 0
    while not over():
        for first in range(0, len(prompts), batch):
            if over():
                break
            some, given = prompts[first : first + batch], ids[first : first + batch]
            width = max(map(len, given))
            filled = torch.tensor([[pad] * (width - len(one)) + list(one) for one in given])
            mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in given])
            room = max_new_tokens if loaded.context is None else min(max_new_tokens, loaded.context - width)
            with tap.prompt([one.text for one in some], labels=[one.labels for one in some]):
                out = loaded.model.generate(
                    input_ids=filled.to(loaded.model.device), attention_mask=mask.to(loaded.model.device), max_new_tokens=room,
                    pad_token_id=pad, stopping_criteria=StoppingCriteriaList([Ending()]), **sampling,
                )  # fmt: skip
            finished += len(some)
            tokens += (out.shape[1] - width) * len(some)
            done(finished, tokens)
            if serves:
                serve(loaded, tap, 0.0)
                torch.manual_seed(seed + finished)  # whoever asked brought a seed of his own
        if not repeat:
            break
    while serves and not over():
        serve(loaded, tap, 0.2)
    return Written(finished, tokens, time.monotonic() - began)


def serve(loaded: Loaded, tap: Tap, timeout_s: float) -> None:
    """Write what other processes ask for, until nobody asks for `timeout_s` seconds."""
    for asked in tap.asked(timeout_s):
        asked.answer(loaded.model.generate(**asked.inputs, **asked.options))


def _lines(raw: bytes, path: Path) -> list[str]:
    lines = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            what = f"byte {error.start} ({line[error.start]:#04x}) is no UTF-8 text"
            raise PromptError(f"{path}, line {number}: {what}; save the file as UTF-8") from error
        if "\0" in text:
            raise PromptError(f"{path}, line {number}: a zero byte stands there, so this is no text file; name a .jsonl or .csv")
        lines.append(text)
    return lines


def _jsonl(lines: Sequence[str], path: Path) -> Iterator[Given]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            item = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise PromptError(f"{place}: this is no JSON ({error}); a line looks like {json.dumps({'text': 'The engine'})}") from error
        if isinstance(item, str):
            item = {"text": item}
        if not isinstance(item, dict):
            raise PromptError(f"{place}: a {type(item).__name__} stands there; an object with `text` and labels is needed")
        nested = item.pop("labels", None) or {}
        if not isinstance(nested, dict):
            raise PromptError(f"{place}: `labels` is a {type(nested).__name__}; an object of name and value is needed")
        yield _given(item, nested, place)


def _csv(lines: Sequence[str], path: Path) -> Iterator[Given]:
    reader = csv.DictReader(lines, strict=True)
    try:
        for item in reader:
            place = f"{path}, line {reader.line_num}"
            if None in item:
                raise PromptError(f"{place}: more fields than the first line names; put text with commas in double quotes")
            yield _given({name: value for name, value in item.items() if name in _TEXT or value not in (None, "")}, {}, place)
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num}: {error}; put text with commas or quotes in double quotes") from error


def _given(item: dict[str, Any], nested: Mapping[str, Any], place: str) -> Given:
    text = next((item[name] for name in _TEXT if item.get(name) is not None), None)
    if not isinstance(text, str) or not text.strip():
        what = "missing" if text is None else "empty" if text == "" else repr(text)[:40]
        raise PromptError(f"{place}: `text` is {what}; give it some text")
    if len(text) > MAX_TEXT:
        raise PromptError(f"{place}: a prompt of {len(text)} characters; at most {MAX_TEXT} are taken: shorten it")
    rest = {name: value for name, value in item.items() if name not in _TEXT}
    for name, value in (rest | dict(nested)).items():
        if isinstance(value, (dict, list)):
            raise PromptError(f"{place}: label {name!r} is a {type(value).__name__}; give text or a number")
    try:
        return Given(text, checked_labels(rest | dict(nested)), place)
    except MalformedMessage as error:
        raise PromptError(f"{place}: {error}") from error


def _weigh(directory: Path) -> str:
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return f"{size / 2**30:.1f} GiB of weights"
