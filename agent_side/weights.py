"""A model's weights as one hash, so that a dictionary knows the model that it was trained on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["weights_hash"]


def weights_hash(model: nn.Module) -> str:
    """SHA-256, in hex, of names, dtypes, shapes and bytes of the parameters and buffers, in the order of their names.

    Costs a pass over the weights (about 1 s per GB, and a copy from the device), once, when a tap is opened.
    """
    import torch
    from torch.nn.parameter import is_lazy

    digest = hashlib.sha256()
    named = {n.replace("_orig_mod.", ""): t for n, t in (*model.named_parameters(), *model.named_buffers())}
    for name in sorted(named):
        if is_lazy(named[name]):
            continue  # it has neither shape nor bytes yet
        tensor = named[name].detach()
        digest.update(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode())
        if not tensor.is_meta:
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
