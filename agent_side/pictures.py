"""Pictures of the environment: when one is due, and how it travels.

Rendering is the environment's cost, not the tap's: it is measured apart, and what is rendered is bounded by a rate and
by a share of the time.
"""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import monotonic_ns
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.stream.wire import Picture

__all__ = ["PERIOD_S", "SHARE", "Pictures"]

_LOG = logging.getLogger(__name__)
PERIOD_S: Final = 0.1
"""At most one picture in so many seconds."""
SHARE: Final = 0.2
"""At most this share of the time goes into rendering; an environment that renders slowly is rendered less often."""
_QUALITY: Final = 80


@dataclass(slots=True)
class Pictures:
    """Decides when to render. Clock: CLOCK_MONOTONIC in ns."""

    period_ns: int = int(PERIOD_S * 1e9)
    share: float = SHARE
    _due_ns: int = 0
    _broken: bool = False
    _costs: deque[int] = field(default_factory=lambda: deque(maxlen=64))

    def due(self, now_ns: int) -> bool:
        """Whether a picture may be rendered now."""
        return now_ns >= self._due_ns

    def rendered(self, began_ns: int, cost_ns: int) -> None:
        """Note that rendering began at `began_ns` and took `cost_ns`."""
        self._costs.append(cost_ns)
        # the last cost, not the median: a stall is paid back at once
        self._due_ns = began_ns + max(self.period_ns, int(cost_ns / self.share))

    def take(self, render: Callable[[], Any]) -> Any:
        """What `render` gives, if a picture is due; else None. Measured; of several pictures the first is taken.

        An environment that cannot render, for want of a package or a display, is told once and not asked again.
        """
        began = monotonic_ns()
        if self._broken or not self.due(began):
            return None
        try:
            image = render()
        except Exception as error:  # noqa: BLE001 - the agent would have gone on without us
            self._broken = True
            _LOG.warning("no more pictures: the environment does not render (%s: %s)", type(error).__name__, error)
            return None
        self.rendered(began, monotonic_ns() - began)
        if isinstance(image, (tuple, list)):
            return image[0] if image else None
        return image

    @property
    def median_us(self) -> float:
        """Median cost of rendering one picture, in µs; NaN before the first."""
        return median(self._costs) / 1e3 if self._costs else float("nan")


def job(image: Any, header: Callable[[], dict[str, Any]]) -> Callable[[], Picture | None]:
    """What the sender's thread does to make a Picture of a copy of `image`, (height, width[, 1, 3 or 4]) uint8."""
    pixels = np.array(image)

    def make() -> Picture | None:
        from PIL import Image

        plain = _rgb(pixels)
        if plain is None:
            return None
        buffer = io.BytesIO()
        Image.fromarray(plain).save(buffer, "JPEG", quality=_QUALITY)
        height, width = plain.shape[:2]
        return Picture(width=width, height=height, data=buffer.getvalue(), **header())

    return make


def _rgb(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        return None
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.ascontiguousarray(pixels.reshape(pixels.shape[:2]))
    return np.ascontiguousarray(pixels[:, :, :3]) if pixels.shape[2] in (3, 4) else None
