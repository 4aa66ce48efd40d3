"""The tap on a language model: a step is a token.

    tap = il.Tap(model, "model.layers.15.mlp", run="smollm2", tokenizer=tokenizer)
    with tap, tap.prompt(labels={"topic": "physics"}):
        model.generate(**inputs, max_new_tokens=64)

A row is a token that was read, with what the points were given and gave, how likely it was and what was predicted from it.
The last token that a model writes is never read, so it has no row. Everything else is as with any tap: stream, recording,
dictionaries, the page. `lm_passes` says which tokens count, `lm_stack` what is in a row.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.agent_side.asking import Asking, Generation
from interlatent_live.agent_side.capture import Capture
from interlatent_live.agent_side.lm_capture import TokenCapture
from interlatent_live.agent_side.lm_passes import Asked, Pass, Passes
from interlatent_live.agent_side.lm_stack import TokenStacker
from interlatent_live.agent_side.lm_text import Text, check_fit
from interlatent_live.agent_side.points import Point, resolve
from interlatent_live.agent_side.rows import Stacker
from interlatent_live.agent_side.tap import Tap
from interlatent_live.stream.errors import MalformedMessage, SteeringError, TapError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.prompt import MAX_TEXT, checked_labels, pieces

if TYPE_CHECKING:
    from torch import nn

    from interlatent_live.agent_side.policy import SteeringPolicy
    from interlatent_live.agent_side.steering import Steering
    from interlatent_live.stream.wire import Message

__all__ = ["LanguageTap", "Written"]

_KEPT_BYTES: Final = 64 << 20
"""Of the last prompt's rows that `Tap.last` keeps."""
_SETTLE_S: Final = 2.0
_PERIOD_S: Final = 0.05
"""How often the sender's thread looks: text is read by people, and each look takes the interpreter from the model."""


@dataclass(frozen=True, eq=False)
class Written:
    """A sequence as it was read: n tokens, those given and those written but the last."""

    prompt: int
    labels: Mapping[str, str]
    tokens: npt.NDArray[np.int32]
    """(n,) token numbers."""
    texts: tuple[str, ...]
    """(n,) what each adds to the text."""
    special: npt.NDArray[np.bool_]
    generated: npt.NDArray[np.bool_]
    logprob: npt.NDArray[np.float64]
    """(n,) nat; NaN where unknown."""
    activations: Mapping[str, npt.NDArray[Any]]
    """By tap point: (n, …) float32; NaN in rows that a point did not see, or that were too many to keep."""
    model_hash: str

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"<prompt {self.prompt}: {len(self)} tokens, {self.text[:60]!r}>"


class LanguageTap(Tap):
    """What `Tap(model, …, tokenizer=…)` makes."""

    def __init__(
        self,
        model: nn.Module | None,
        points: str | Iterable[str] | None = None,
        *,
        tokenizer: Any,
        prompt_logprobs: bool = True,
        num_envs: int = 1,
        **kwargs: Any,
    ) -> None:
        """`points`: names or patterns; one without ':in' or ':out' means both. None: the MLP in the middle of the model.
        `prompt_logprobs`: whether to compute, on the sender's thread, the log-probabilities of prompts that `generate`
        leaves out. The rest is as for any tap."""
        self._text = _checked(model, tokenizer)
        if num_envs != 1:
            raise TapError(f"num_envs is {num_envs}, but a language model's rows are counted by their batches: leave it out")
        for name in ("metrics", "observation_names", "why"):
            if kwargs.get(name):
                raise TapError(f"{name}=… describes an environment, and a language model has none: leave it out")
        kwargs.setdefault("send_period_s", _PERIOD_S)
        kwargs["environment"] = kwargs.get("environment") or "text"
        kwargs["agent"] = kwargs.get("agent") or os.path.basename(str(getattr(getattr(model, "config", None), "_name_or_path", "")))
        super().__init__(model, points, **kwargs)
        assert isinstance(self._capture, TokenCapture)
        assert model is not None
        self._passes = Passes(model, self._capture, self._queue_bytes, prompts=prompt_logprobs, say=self._say)
        self._context = _context(model)
        self._kept: deque[FrameBatch] = deque()
        self._kept_bytes = 0
        self._kept_prompt = -1
        self._late = 0
        self._asking: Asking | None = None
        self._shaped = False

    def open(self) -> None:
        """As `Tap.open`."""
        super().open()
        self._passes.attach()

    def close(self) -> None:
        """As `Tap.close`."""
        if self._asking is not None:
            self._asking.close()
        self._passes.settle(ends=True)
        self._passes.detach()
        super().close()

    @contextmanager
    def prompt(
        self, text: str | Sequence[str] | None = None, labels: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> Iterator[None]:
        """Sequences that begin inside are of this text and these labels; one of each, or a list with one for each sequence.

        Without a text, the tokens given are decoded. Raises TapError for labels that predicates could not ask for.
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        given = [labels] if isinstance(labels, Mapping) else list(labels or ())
        for one in texts:
            if len(one) > MAX_TEXT:
                raise TapError(f"a prompt of {len(one)} characters; at most {MAX_TEXT} are kept as its text: leave text out")
        try:
            asked = Asked(texts, [checked_labels(one) for one in given])
        except MalformedMessage as error:
            raise TapError(str(error)) from error
        with self._within(asked):
            yield

    def asked(self, timeout_s: float | None = None) -> Iterator[Generation]:
        """Prompts that other processes ask for (`interlatent-live ask`, the page's box), one text at a time; each is to be written
        by this loop, on the model's thread:

            for asked in tap.asked(timeout_s=60):
                asked.answer(model.generate(**asked.inputs, **asked.options))

        Labels, seed and interventions hold until the loop goes on. Ends where none comes for `timeout_s` seconds (None: never),
        or the tap is closed. Where nothing was read yet, one token runs through the model and is not kept: only then can the
        tap tell what it has, and others find it. Raises SteeringError unless the tap has `steering=il.SteeringPolicy(prompts=8)`, or so.
        """
        asking, steering = self._asking, self._passes.steering
        if asking is None or steering is None:
            what = "give the tap steering=il.SteeringPolicy(prompts=8), and open it"
            raise SteeringError(f"no prompts are taken: {what}", reason="not_allowed")
        self._learn_shapes()
        from interlatent_live.agent_side.lm_asked import generations

        while (wanted := asking.take(timeout_s, steering.adopt)) is not None:
            yield from generations(wanted, self.model, self._text, self._context, steering, self._within, lambda: asking.closed)

    def _learn_shapes(self) -> None:
        """Run a token through the model where hooks have seen nothing yet."""
        if self._shaped or any(self._capture.layouts) or self._closing:
            return
        import torch

        self._passes.learning = True
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self.model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=next(self.model.parameters()).device))
        finally:
            self._passes.learning = False
            self._slots[:] = self._nothing
        self._shaped = True

    @property
    def waiting(self) -> int:
        """Prompts of other processes that wait for `asked`."""
        return 0 if self._asking is None else self._asking.waiting

    def step(self, **given: Any) -> None:
        """Not for a language model, whose passes are steps by themselves."""
        self._say("step does nothing on a language model: every pass is kept by itself", now=True)

    @property
    def last(self) -> Written:
        """The newest prompt's tokens and activations. Waits up to two seconds for the sender's thread; raises TapError where
        nothing was read."""
        self._passes.settle(ends=False)
        from time import monotonic, sleep

        deadline = monotonic() + _SETTLE_S
        while self._passes.queue and not self._closing and monotonic() < deadline:
            sleep(0.005)
        sleep(0.0 if self._closing else 2 * self._send_period_s)
        batches = list(self._kept)
        if not batches:
            raise TapError("nothing was read yet; run the model inside `with tap:` first")
        return self._written(batches)

    @property
    def frames(self) -> int:
        """Frames handed to the sender so far."""
        return 0 if self._stacker is None else self._stacker.next_seq

    def status(self) -> dict[str, float]:
        """Numbers for the heartbeat."""
        self._steps, self.policy_version = self._passes.steps, max(self.policy_version, self._passes.policy_version)
        self._passes.policy_version = self.policy_version
        self._overheads = self._passes.overheads
        numbers = super().status()
        stacker = self._stacker
        if isinstance(stacker, TokenStacker):
            counts = {"padding": stacker.padding, "rejected_tokens": stacker.rejected, "reordered_rows": stacker.reordered}
            numbers |= {name: float(value) for name, value in counts.items()}
        numbers |= {"pass_failures": float(self._passes.failures), "blind_passes": float(self._passes.blind)}
        return numbers

    @contextmanager
    def _within(self, asked: Asked) -> Iterator[None]:
        before = self._passes.asked
        self._passes.begin(asked)
        try:
            yield
        finally:
            self._passes.begin(before)

    # what Tap asks for

    def _make_capture(self, model: nn.Module | None, points: str | Iterable[str] | None, num_envs: int) -> Capture:
        assert model is not None
        return TokenCapture(_both(model, points))

    def _make_stacker(self, manifest: Any) -> Stacker:
        assert isinstance(self._capture, TokenCapture)
        made = TokenStacker(
            self._capture, replace(manifest, software=dict(manifest.software) | _versions()), self._text, self._say,
            head=self._head, stops=_stops(self.model, self._text.tokenizer), taken=self._took, seen=self._keep,
        )  # fmt: skip
        steering = self._passes.steering
        if steering is not None:
            made.placed = steering.placed
            steering.idle = lambda: (made.next_seq, made.next_step) if self._passes.idle else None
        return made

    def _make_steering(self, policy: SteeringPolicy) -> Steering:
        from interlatent_live.agent_side.lm_steering import TokenSteering

        self._passes.steering = TokenSteering(policy, self._capture, self.run, self.boot, self._say)
        return self._passes.steering

    def _drain(self) -> Iterator[FrameBatch]:
        queue, passes = self._passes.queue, []
        for _ in range(len(queue)):
            one = queue.popleft()
            passes.append(one)
        if passes and isinstance(self._stacker, TokenStacker):
            yield from self._stacker.passes(passes)
        elif self._shaped and isinstance(self._stacker, TokenStacker) and self._stacker.stacked is None:
            self._stacker.learn_points()
        self._steps = self._passes.steps
        self._tell()

    def _logged(self) -> Iterator[Message]:
        yield from super()._logged()
        stacker, subscribers = self._stacker, self.subscribers
        if isinstance(stacker, TokenStacker):
            yield from stacker.messages(subscribers > self._late)
        self._late = subscribers

    def _make_asking(self, policy: SteeringPolicy, steering: Steering) -> Asking | None:
        if policy.prompts and self._passes.steering is not None:
            self._asking = Asking(policy, self._text.of, self._passes.steering.check)
        return self._asking

    def _took(self, one: Pass) -> None:
        one.taken = True
        one.kept = one.logits = one.hidden = one.mask = one.before = one.keys = None
        self._passes.out += one.nbytes

    def _head(self) -> tuple[Any, Any] | None:
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        weight = getattr(head, "weight", None)
        return None if weight is None else (weight, getattr(head, "bias", None))

    def _orphan(self) -> None:
        super()._orphan()
        self._passes.detach()
        self._passes.queue.clear()

    def _keep(self, batch: FrameBatch) -> None:
        newest = int(batch.columns["prompt"].max())
        if newest > self._kept_prompt:
            self._kept.clear()
            self._kept_prompt, self._kept_bytes = newest, 0
        if int(batch.columns["prompt"].max()) < self._kept_prompt:
            return
        if self._kept_bytes + batch.nbytes > _KEPT_BYTES:
            batch = replace(batch, activations={}, present={})
            if self._kept_bytes + batch.nbytes > 2 * _KEPT_BYTES:
                return
        self._kept_bytes += batch.nbytes
        self._kept.append(batch)

    def _written(self, batches: Sequence[FrameBatch]) -> Written:
        stacker, manifest = self._stacker, self.manifest
        assert isinstance(stacker, TokenStacker)
        assert manifest is not None
        prompt = max(int(batch.columns["prompt"].max()) for batch in batches)
        rows = [np.flatnonzero(batch.columns["prompt"] == prompt) for batch in batches]

        def column(name: str) -> npt.NDArray[Any]:
            return np.concatenate([batch.columns[name][some] for batch, some in zip(batches, rows, strict=True)])

        activations: dict[str, npt.NDArray[Any]] = {}
        for spec in manifest.tap_points:
            parts = []
            for batch, some in zip(batches, rows, strict=True):
                whole = np.full((batch.rows, *spec.shape), np.nan, np.float32)
                values = batch.activations.get(spec.name)
                if values is not None:
                    if values.dtype == np.uint16:
                        values = (values.astype(np.uint32) << 16).view(np.float32)
                    whole[batch.rows_of(spec.name)] = values
                parts.append(whole[some])
            activations[spec.name] = np.concatenate(parts)
        tokens = column("token")
        known = stacker.label_of(prompt)
        return Written(
            prompt, {} if known is None else known.labels, tokens, tuple(pieces([self._text.of(int(t)) for t in tokens])),
            column("special"), column("generated"), column("metrics")[:, 0], activations, manifest.weights_hash,
        )  # fmt: skip


def _checked(model: Any, tokenizer: Any) -> Text:
    """What the tokenizer tells. Raises TapError for what is no decoder-only language model, or not its tokenizer."""
    model = getattr(model, "_orig_mod", model)
    kind = type(model).__name__
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        raise TapError(f"tokenizer=… is for language models of transformers, and this is a {kind}; leave it out")
    masked = (
        "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
    )  # fmt: skip
    if getattr(config, "is_encoder_decoder", False) or kind.endswith(masked):
        what = "an encoder-decoder" if getattr(config, "is_encoder_decoder", False) else "no model that writes from left to right"
        raise TapError(f"{kind} is {what}; tokens are read of decoder-only models: load one with AutoModelForCausalLM")
    if model.get_output_embeddings() is None:
        raise TapError(f"{kind} has no head that predicts tokens; load it with AutoModelForCausalLM")
    if not all(hasattr(tokenizer, name) for name in ("get_vocab", "decode", "all_special_ids")):
        raise TapError(f"tokenizer is a {type(tokenizer).__name__}; give the model's own, from AutoTokenizer.from_pretrained")
    text = Text(tokenizer)
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    if weight is not None:
        check_fit(text.size, int(weight.shape[0]))
    return text


def _both(model: nn.Module, points: str | Iterable[str] | None) -> tuple[Point, ...]:
    """The points; a name without a side means both."""
    if points is None:
        points = _middle(model)
    named = (points,) if isinstance(points, str) else tuple(points)
    wanted = [one for name in named for one in ((name,) if ":" in name else (f"{name}:in", f"{name}:out"))]
    found = resolve(model, wanted)
    for point in found:
        if not point.part.plain:
            raise TapError(f"{point.name}: parts and pooling are not read of language models, whose rows are tokens; name a side alone")
    return found


def _middle(model: nn.Module) -> str:
    import re

    names = [name.replace("_orig_mod.", "") for name, _ in model.named_modules()]
    blocks = [name for name in names if re.fullmatch(r"(.*\.)?(mlp|feed_forward|ffn)", name)]
    if not blocks:
        raise TapError(f"no MLP is recognised in {type(model).__name__}; name a point: il.points(model) lists them")
    return str(blocks[len(blocks) // 2])


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a sequence of a batch during generation: end tokens, and the padding that follows them."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer):
        for name in ("eos_token_id", "pad_token_id"):
            value = getattr(source, name, None)
            found |= {int(v) for v in value} if isinstance(value, (list, tuple)) else set() if value is None else {int(value)}
    return frozenset(found)


def _context(model: Any) -> int | None:
    """Tokens that the model was made for; None where it does not say."""
    size = getattr(model.config, "max_position_embeddings", None)
    return int(size) if isinstance(size, int) and size > 0 else None


def _versions() -> dict[str, str]:
    from importlib import metadata

    try:
        return {"transformers": metadata.version("transformers")}
    except metadata.PackageNotFoundError:
        return {}

