"""The recipes a dictionary is trained by: what is sparse, how, and what the loss adds to the error.

A model works in normalised units: inputs and outputs centred and divided by one scalar each. Shapes: x (n, d_in),
y (n, d_out), pre and f (n, features). All share

    pre = x @ W_enc + b_enc,   y^ = f @ W_dec + b_dec [+ x @ W_skip],   loss = |y - y^|^2 / |y|^2 + the recipe's term

and AuxK (Gao et al. 2024, arXiv:2406.04093): latents silent for a while predict the residual, coefficient 1/32, so that
they come back. The optional skip connection is a linear path beside the latents (Paulo et al. 2025, arXiv:2501.18823),
zero at the start. Decoder rows are kept at unit norm (along which no gradient flows), so an activation is the length of
what it adds. At the start decoder rows are random directions and the encoder is the least-squares map from input to
output, seen along them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import torch

from interlatent_live.analyzer.dictionary import Activation

if TYPE_CHECKING:
    from interlatent_live.analyzer.training import TrainOptions

__all__ = ["RECIPES", "BatchTopK", "JumpReLU", "Model", "Penalty", "Recipe", "ReluL1", "TopK", "make_model"]

Recipe: TypeAlias = Literal["relu-l1", "topk", "batchtopk", "jumprelu"]
Penalty: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(true output, reconstruction), both (n, d_out) in normalised units, to a scalar added to the loss."""
AUXK_COEFFICIENT: Final = 1 / 32
EMA: Final = 0.99


class Model:
    """The tensors being trained; subclasses say which latents are active and what the loss adds."""

    activation: Activation
    keeps_k: bool = True

    def __init__(self, x: torch.Tensor, y: torch.Tensor, options: TrainOptions) -> None:
        self.options = options
        generator = torch.Generator().manual_seed(options.seed)
        decoder = torch.randn(options.features, y.shape[1], generator=generator)
        decoder /= decoder.norm(dim=1, keepdim=True)
        gram = (x.T @ x).double().cpu()
        gram += 1e-6 * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram), dtype=torch.float64)
        linear = torch.linalg.solve(gram, (x.T @ y).double().cpu()).float()

        def leaf(values: torch.Tensor) -> torch.Tensor:
            return values.to(x.device, copy=True).requires_grad_()

        self.tensors = {
            "W_enc": leaf(linear @ decoder.T),
            "b_enc": leaf(torch.zeros(options.features)),
            "W_dec": leaf(decoder),
            "b_dec": leaf(torch.zeros(y.shape[1])),
        }
        if options.skip:
            self.tensors["W_skip"] = leaf(torch.zeros(x.shape[1], y.shape[1]))
        self.silent = torch.zeros(options.features, dtype=torch.int64, device=x.device)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What the optimiser moves."""
        return list(self.tensors.values())

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """What changes in training without a gradient."""
        return {"silent": self.silent}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `state`."""
        for name, value in self.state.items():
            value.copy_(state[name])

    def pre(self, x: torch.Tensor) -> torch.Tensor:
        """(n, d_in) to (n, features) before the activation function."""
        return torch.addmm(self.tensors["b_enc"], x, self.tensors["W_enc"])

    def encode(self, pre: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """(n, features) latents; with `training` as the loss sees them."""
        raise NotImplementedError

    def decode(self, f: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(n, d_out) reconstruction."""
        y = torch.addmm(self.tensors["b_dec"], f, self.tensors["W_dec"])
        return y + x @ self.tensors["W_skip"] if self.options.skip else y

    def sparsity(self, pre: torch.Tensor, f: torch.Tensor) -> torch.Tensor | None:
        """What the recipe adds to the error."""
        return None

    def threshold(self, x: torch.Tensor) -> torch.Tensor | None:
        """Of the finished dictionary, in normalised units."""
        return None

    def objective(self, x: torch.Tensor, y: torch.Tensor, penalty: Penalty | None = None) -> torch.Tensor:
        """Error, the recipe's term and `penalty`; what early stopping watches on validation episodes."""
        pre = self.pre(x)
        f = self.encode(pre)
        y_hat = self.decode(f, x)
        loss = (y - y_hat).square().mean() / y.square().mean().clamp(min=1e-30)
        return _sum(loss, self.sparsity(pre, f), None if penalty is None else penalty(y, y_hat))

    def loss(self, x: torch.Tensor, y: torch.Tensor, penalty: Penalty | None = None) -> torch.Tensor:
        """What a step descends: the objective and AuxK; counts silent latents."""
        pre = self.pre(x)
        f = self.encode(pre, training=True)
        y_hat = self.decode(f, x)
        error = y - y_hat
        loss = error.square().mean() / y.square().mean().clamp(min=1e-30)
        with torch.no_grad():
            self.silent.copy_(torch.where((f > 0).any(dim=0), 0, self.silent + 1))
            dead = self.silent > self.options.dead_steps
            count = int(dead.sum()) if self.keeps_k else 0
        auxk = AUXK_COEFFICIENT * self._auxk(pre, error.detach(), dead, count) if count else None
        return _sum(loss, self.sparsity(pre, f), auxk, None if penalty is None else penalty(y, y_hat))

    def _auxk(self, pre: torch.Tensor, residual: torch.Tensor, dead: torch.Tensor, count: int) -> torch.Tensor:
        k = min(max(1, residual.shape[1] // 2), count)
        values, indices = torch.topk(torch.where(dead, pre, -torch.inf), k, dim=1, sorted=False)
        # Without the relu: a latent that is negative everywhere would get no gradient and never come back.
        f = torch.zeros_like(pre).scatter(1, indices, values)
        return (residual - f @ self.tensors["W_dec"]).square().mean() / residual.square().mean().clamp(min=1e-30)

    def drop_radial_gradient(self) -> None:
        """Leave of the decoder's gradient what turns its rows."""
        decoder = self.tensors["W_dec"]
        with torch.no_grad():
            if decoder.grad is not None:
                decoder.grad -= (decoder.grad * decoder).sum(dim=1, keepdim=True) * decoder

    def hold_unit_norm(self) -> None:
        """Bring the decoder's rows back to length 1."""
        decoder = self.tensors["W_dec"]
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True).clamp(min=1e-12)


class ReluL1(Model):
    """'relu-l1': f = relu(pre), plus l1 * sum of latents (Bricken et al. 2023, Towards Monosemanticity)."""

    activation = "relu"
    keeps_k = False

    def encode(self, pre: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """All positive ones."""
        return torch.relu(pre)

    def sparsity(self, pre: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        """L1 of the latents; their decoder rows have unit norm, so it cannot be gamed."""
        return self.options.l1 * f.sum(dim=1).mean()


class TopK(Model):
    """'topk': the k largest of relu(pre) in each frame, error alone (Gao et al. 2024, arXiv:2406.04093)."""

    activation = "topk"

    def encode(self, pre: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """The k largest of each row."""
        values, indices = torch.topk(pre, self.options.k, dim=1, sorted=False)
        return torch.zeros_like(pre).scatter(1, indices, torch.relu(values))


class BatchTopK(Model):
    """'batchtopk': the k * n largest of a batch of n frames, so that hard frames get more latents than easy ones
    (Bussmann et al. 2024, arXiv:2412.06410).

    A finished dictionary must not depend on what else is in a batch: it applies one threshold. The paper takes a running
    mean of the batches' smallest kept value, which also judges here while training goes on; at the end the threshold is
    set so that the frames fitted have k active latents on average, which is exact.
    """

    activation = "batchtopk"

    def __init__(self, x: torch.Tensor, y: torch.Tensor, options: TrainOptions) -> None:
        super().__init__(x, y, options)
        self.running = torch.full((), -1.0, device=x.device)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """With the running threshold; -1 before the first batch."""
        return {**super().state, "running": self.running}

    def encode(self, pre: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """The k a row on average that are largest in the batch, or those above the running threshold."""
        f = torch.relu(pre)
        with torch.no_grad():
            if training or float(self.running) < 0:
                kept = min(f.numel(), self.options.k * len(f))
                smallest = torch.topk(f.flatten(), kept, sorted=False).values.min()
                if training:
                    before = float(self.running)
                    self.running.copy_(smallest if before < 0 else EMA * before + (1 - EMA) * smallest)
            else:
                smallest = self.running
        return torch.where(f >= smallest, f, 0.0) if training else torch.where(f > smallest, f, 0.0)

    def threshold(self, x: torch.Tensor) -> torch.Tensor:
        """Above which lie k latents a frame, on average over `x` (at most 16,384 of its frames)."""
        with torch.no_grad():
            chosen = x[:: -(-len(x) // 16_384)]
            f = torch.relu(self.pre(chosen))
            most = min(f.shape[1], 8 * self.options.k)  # no frame has more than that in what counts
            largest = torch.topk(f, most, dim=1, sorted=False).values.flatten()
            kept = min(len(largest), self.options.k * len(chosen))
            return torch.topk(largest, kept, sorted=False).values.min()


class _Jump(torch.autograd.Function):
    """z where z > theta, with the straight-through derivative by theta of Rajamanoharan et al. 2024, equation 11."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, theta: torch.Tensor, width: float) -> torch.Tensor:
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return torch.where(z > theta, z, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        z, theta = ctx.saved_tensors
        near = (z - theta).abs() < ctx.width / 2
        return grad * (z > theta), (-(theta / ctx.width) * near * grad).sum(dim=0), None


class _Step(torch.autograd.Function):
    """1 where z > theta, with the straight-through derivative by theta (equation 12)."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, theta: torch.Tensor, width: float) -> torch.Tensor:
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        z, theta = ctx.saved_tensors
        near = (z - theta).abs() < ctx.width / 2
        return None, (-(1 / ctx.width) * near * grad).sum(dim=0), None


class JumpReLU(Model):
    """'jumprelu': f = pre where pre > theta, one theta a latent, plus (L0 / k - 1)^2
    (Rajamanoharan et al. 2024, arXiv:2407.14435).

    Both derivatives by theta are straight-through, by a rectangle of `bandwidth`; the paper's 0.001 is for batches of
    thousands of tokens, where enough values fall into so narrow a strip. Thetas are learned as logarithms.
    """

    activation = "jumprelu"

    def __init__(self, x: torch.Tensor, y: torch.Tensor, options: TrainOptions) -> None:
        super().__init__(x, y, options)
        with torch.no_grad():  # as many active at the start as are wanted at the end
            pre = self.pre(x[:: -(-len(x) // 4096)])
            kept = min(pre.numel(), options.k * len(pre))
            level = torch.topk(torch.relu(pre).flatten(), kept, sorted=False).values.min().clamp(min=1e-3)
        self.tensors["log_theta"] = torch.full((options.features,), float(level.log()), device=x.device, requires_grad=True)

    def encode(self, pre: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """Those above their thresholds."""
        latents: torch.Tensor = _Jump.apply(pre, self.tensors["log_theta"].exp(), self.options.bandwidth)  # type: ignore[no-untyped-call]
        return latents

    def sparsity(self, pre: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        """Square of the relative difference of L0 from k."""
        active: torch.Tensor = _Step.apply(pre, self.tensors["log_theta"].exp(), self.options.bandwidth)  # type: ignore[no-untyped-call]
        return (active.sum(dim=1).mean() / self.options.k - 1).square()

    def threshold(self, x: torch.Tensor) -> torch.Tensor:
        """(features,) thetas."""
        return self.tensors["log_theta"].detach().exp()


RECIPES: Final[dict[Recipe, type[Model]]] = {"relu-l1": ReluL1, "topk": TopK, "batchtopk": BatchTopK, "jumprelu": JumpReLU}
assert tuple(RECIPES) == get_args(Recipe)


def make_model(x: torch.Tensor, y: torch.Tensor, options: TrainOptions) -> Model:
    """The model of `options.recipe` over normalised x (n, d_in), y (n, d_out)."""
    return RECIPES[options.recipe](x, y, options)


def _sum(loss: torch.Tensor, *terms: torch.Tensor | None) -> torch.Tensor:
    for term in terms:
        if term is not None:
            loss = loss + term
    return loss
