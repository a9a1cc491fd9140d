"""MMPareto: Pareto integration of multimodal and unimodal gradients.

    L_mm = CE(z, y),   L_m = CE(u_m, y),   u_m = h_m U_m^T + c_m        own heads beside the fusion
    G = dL_mm / d theta_m,   U = dL_m / d theta_m                        for each encoder m
    (a, b) = (1/2, 1/2)                                    if G.U > 0:   no conflict
           = argmin |a G + b U|,  a + b = 1,  a, b >= 0    else:         min-norm point
    n = 2 a G + 2 b U
    g = gamma * max( |G + U| / |n|, 1 ) * n
    heads, fused and own: the gradient of L_mm + sum_m L_m

Y. Wei, D. Hu: MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance, ICML 2024.
The min-norm point has ``a = (U.U - G.U) / |G - U|^2`` (Desideri, 2012). The product of ``n`` with
both G and U is never negative, so that neither loss rises to first order.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.nets.fusion import add, own_heads
from mmbench.options import option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run

NEARLY_ALL = 0.999
"""Weight of the shorter gradient where the min-norm point is at an end of the segment, as in the
released solver."""
SMALLEST_NORM = 1e-12
"""Keeps the ratio of norms finite where the two gradients cancel."""


class MMPareto(Method):
    """Each encoder follows a direction that serves the fused and its own classifier."""

    info = MethodInfo(
        title="MMPareto",
        family="gradient",
        summary="combines the gradients of the fused and of each unimodal loss so that neither "
        "loss suffers, and enlarges them",
        acts="on encoder gradients, at every step",
        cost="1 forward, 2 backwards",
        authors="Y. Wei, D. Hu",
        venue="ICML",
        year=2024,
        arxiv="2405.17730",
        departures=(
            "The norms in g are over a whole encoder, as in the paper as far as known here; the "
            "released code takes those of each parameter tensor, which can turn g against one of "
            "the losses (rescale=tensor repeats it).",
            "Two backward passes for any number of modalities in place of M + 2: an own loss "
            "reaches no other encoder, and the summed gradient is the sum of those at hand.",
            "The released schedule is built and never stepped, so its learning rate is constant; "
            "here the recipe's schedule holds.",
        ),
    )

    class Config(Options):
        gamma: float = option(
            1.5, "factor that enlarges g; 1.5 as released", gt=0, search=[1.0, 1.25, 1.5, 2.0]
        )
        rescale: Literal["encoder", "tensor"] = option(
            "encoder", "what the norms are taken over: an encoder, or, as released, each tensor"
        )

    def setup(self, run: Run) -> None:
        self.heads = own_heads(run.network.widths, run.classes, run.seed)
        if run.recipe.optimizer != "sgd":
            run.note(
                f"{run.recipe.optimizer} divides by the gradient's own size and so all but undoes "
                "the factor gamma: use -t optimizer=sgd"
            )

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        out = run.net(batch)
        fused = functional.cross_entropy(out.logits, batch.y)
        own = add(
            {m: functional.cross_entropy(u, batch.y) for m, u in self.own_logits(run, out).items()}
        )
        run.backward(fused, retain_graph=True)
        multimodal = {m: take_gradients(run.encoder_params(m)) for m in run.modalities}
        run.backward(own)
        with torch.no_grad():
            for m, of_fused in multimodal.items():
                parameters = run.encoder_params(m)
                of_own = take_gradients(parameters)
                agreement = product(of_fused, of_own)
                squares = norms(of_fused).square().sum(), norms(of_own).square().sum()
                weight = multimodal_weight(*squares, agreement)
                run.log(f"multimodal_weight.{m}", weight)
                run.log(f"conflict.{m}", (agreement <= 0).float())
                combined = self.integrate(of_fused, of_own, weight)
                for p, gradient in zip(parameters, combined, strict=True):
                    p.grad = gradient
        run.step()
        return (fused + own).detach()

    def integrate(
        self, of_fused: list[Tensor], of_own: list[Tensor], weight: Tensor
    ) -> list[Tensor]:
        """Return ``g`` of an encoder, in its tensors, from G, which it overwrites, U and a."""
        wanted = norms(torch._foreach_add(of_fused, of_own))
        # Half of n, in place of G.
        combined = [g.lerp_(u, 1 - weight) for g, u in zip(of_fused, of_own, strict=True)]
        size = 2 * norms(combined)
        if self.config.rescale == "encoder":
            wanted, size = wanted.norm().expand_as(size), size.norm().expand_as(size)
        longer = (wanted / size.clamp(min=SMALLEST_NORM)).clamp(min=1.0)
        factors = 2 * self.config.gamma * longer
        torch._foreach_mul_(combined, list(factors.unbind()))
        return combined

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return {m: self.heads[m](h) for m, h in out.features.items()}


def product(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the inner product of two vectors that are given in pieces."""
    pieces = [torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]
    return torch.stack(pieces).sum()


def norms(pieces: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Return the Euclidean norm of each piece."""
    return torch.stack(torch._foreach_norm(pieces))


def multimodal_weight(gg: Tensor, uu: Tensor, gu: Tensor) -> Tensor:
    """Return ``a`` from the products of G and U with themselves and each other."""
    inside = (uu - gu) / (gg + uu - 2 * gu)
    at_end = torch.where(gu >= uu, 1 - NEARLY_ALL, inside)
    minimum = torch.where(gu >= gg, NEARLY_ALL, at_end)
    return torch.where(gu > 0, 0.5, minimum)


def take_gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return the gradients, zero where there is none, and clear them."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return gradients
