"""What a dictionary keeps of a language model: the cross-entropy of its next tokens with the dictionary spliced in.

    python -m interlatent_live.splicing DICTIONARY [--model DIR] [--texts FILE.jsonl] [--write]

1. Texts that the dictionary was not trained on; by default those that `texts.write_texts` leaves out of its first 700.
2. The module whose output the dictionary gives is replaced, at every token, by what the dictionary makes of the module's
   input. Controls: its output replaced by zeros, and by its mean over the same texts.
3. recovered = (CE_control − CE_spliced) / (CE_control − CE_clean), of all tokens but the first of each text, with a 95 %
   interval by bootstrap over texts. A layer that hardly matters has a control close to the clean model, and then the
   interval is wide: the three cross-entropies are told beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.stream.errors import DictionaryError

if TYPE_CHECKING:
    from interlatent_live.analyzer.dictionary import Dictionary
    from interlatent_live.prompting import Loaded

__all__ = ["judge", "recovered"]

TRAINED_ON: Final = 700
"""Texts of `texts.write_texts` that the dictionary that ships was trained on; the rest was not seen."""
_RESAMPLES: Final = 2_000


def judge(loaded: Loaded, dictionary: Dictionary, texts: Sequence[str], done: Callable[[int], object] = lambda n: None) -> dict[str, Any]:
    """Cross-entropies in nats a token, clean, spliced, zero- and mean-ablated, and how much is recovered. Raises DictionaryError
    for a dictionary of other points."""
    import torch

    path, _, side = dictionary.cfg.output.partition(":")
    module = dict(loaded.model.named_modules()).get(path)
    if module is None or side != "out" or dictionary.cfg.input not in (f"{path}:in", f"{path}:out"):
        raise DictionaryError(
            f"{dictionary.name} goes from {dictionary.cfg.input} to {dictionary.cfg.output}; one that gives a module's output from its "
            "input, or from itself, can be spliced in"
        )
    ids = [loaded.tokenizer(text, return_tensors="pt").input_ids for text in texts]
    ids = [one for one in ids if one.shape[1] > 1]
    sse = sst = 0.0
    mean = torch.zeros(dictionary.cfg.d_out)

    def measure(replaced: Callable[[Any, Any], Any] | None) -> np.ndarray[Any, Any]:
        """(texts, 2) sum of cross-entropy and tokens of each."""

        def hook(_: Any, given: Any, output: Any) -> Any:
            return None if replaced is None else replaced(given[0], output).to(output.dtype)

        handle = module.register_forward_hook(hook)
        sums = []
        try:
            with torch.inference_mode():
                for one in ids:
                    logits = loaded.model(one.to(loaded.model.device)).logits[0, :-1].float()
                    loss = torch.nn.functional.cross_entropy(logits, one[0, 1:].to(logits.device), reduction="sum")
                    sums.append((float(loss), one.shape[1] - 1))
                    done(len(sums))
        finally:
            handle.remove()
        return np.array(sums)

    outputs: list[Any] = []

    def watched(given: Any, output: Any) -> Any:
        outputs.append(output[0].float())
        return output

    clean = measure(watched)
    together = torch.cat(outputs)
    mean = together.mean(0)
    sst = float(((together - mean) ** 2).sum())
    outputs.clear()
    from_itself = dictionary.cfg.input == dictionary.cfg.output

    def spliced(given: Any, output: Any) -> Any:
        nonlocal sse
        x = (output if from_itself else given)[0].float()
        made = dictionary.decode_sparse(*dictionary.encode(x), x)
        sse += float(((made - output[0].float()) ** 2).sum())
        return made[None]

    conditions = {
        "clean": clean,
        "spliced": measure(spliced),
        "zero": measure(lambda given, output: torch.zeros_like(output)),
        "mean": measure(lambda given, output: mean.expand_as(output)),
    }
    return {
        "texts": len(ids),
        "tokens": int(clean[:, 1].sum()),
        "fvu": sse / sst,
        "cross_entropy": {name: float(sums[:, 0].sum() / sums[:, 1].sum()) for name, sums in conditions.items()},
        "recovered_over_zero": recovered(conditions, "zero"),
        "recovered_over_mean": recovered(conditions, "mean"),
    }


def recovered(conditions: dict[str, np.ndarray[Any, Any]], control: str, seed: int = 0) -> dict[str, float | None]:
    """Share of the control's loss that the dictionary makes good, with a 95 % interval by bootstrap over texts; None where the
    control is no worse than the clean model."""
    rng = np.random.default_rng(seed)
    texts = len(conditions["clean"])
    drawn = rng.integers(0, texts, (_RESAMPLES, texts))

    def share(rows: Any) -> Any:
        clean, spliced, ablated = (conditions[name][rows, 0].sum(-1) for name in ("clean", "spliced", control))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(ablated > clean, (ablated - spliced) / (ablated - clean), np.nan)

    draws = share(drawn)
    value = float(share(np.arange(texts)))
    known = np.isfinite(draws).mean() > 0.95
    low, high = (float(v) for v in np.nanpercentile(draws, (2.5, 97.5))) if known else (None, None)
    return {"value": value if np.isfinite(value) else None, "low": low, "high": high}


def main() -> None:
    """The command."""
    from interlatent_live.analyzer.card_page import write_card
    from interlatent_live.analyzer.registry import find
    from interlatent_live.prompting import load, read_prompts
    from interlatent_live.texts import paragraphs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dictionary")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--write", action="store_true", help="put it into the dictionary's card, as `language`")
    given = parser.parse_args()
    if given.texts is not None:
        texts = [one.text for one in read_prompts(given.texts)]
    else:
        import random

        found = list(dict.fromkeys(paragraphs()))
        random.Random(0).shuffle(found)
        texts = [text for _, text in found[TRAINED_ON:]]
    dictionary = find(given.dictionary)
    found_ = judge(load(given.model), dictionary, texts, lambda n: print(f"\r{n} texts", end="", file=sys.stderr))  # noqa: T201
    print(json.dumps(found_, indent=2))  # noqa: T201 - the command's result
    if given.write and dictionary.path is not None:
        card = dict(dictionary.card or {}) | {"language": found_}
        write_card(Path(dictionary.path), card)


if __name__ == "__main__":
    main()
