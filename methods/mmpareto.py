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
            "The norms in g are over a whole encoder, as in the paper; the released code takes "
            "those of each parameter tensor, which can turn g against one of the losses "
            "(rescale=tensor repeats it).",
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
                weight = multimodal_weight(
                    dot(of_fused, of_fused), dot(of_fused, of_own), dot(of_own, of_own)
                )
                run.log(f"conflict.{m}", (dot(of_fused, of_own) <= 0).float())
                run.log(f"multimodal_weight.{m}", weight)
                for p, g in zip(parameters, self.integrate(of_fused, of_own, weight), strict=True):
                    p.grad = g
        run.step()
        return (fused + own).detach()

    def integrate(
        self, of_fused: list[Tensor], of_own: list[Tensor], weight: Tensor
    ) -> list[Tensor]:
        """Return ``g`` for the parameters of an encoder from G, U and a."""
        combined = [
            2 * weight * g + 2 * (1 - weight) * u for g, u in zip(of_fused, of_own, strict=True)
        ]
        sums = [g + u for g, u in zip(of_fused, of_own, strict=True)]
        sizes, plain = norms(combined), norms(sums)
        if self.config.rescale == "encoder":
            sizes, plain = sizes.norm().expand_as(sizes), plain.norm().expand_as(plain)
        factors = self.config.gamma * (plain / sizes.clamp(min=SMALLEST_NORM)).clamp(min=1.0)
        return [factor * n for factor, n in zip(factors, combined, strict=True)]

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return {m: self.heads[m](h) for m, h in out.features.items()}


def multimodal_weight(gg: Tensor, gu: Tensor, uu: Tensor) -> Tensor:
    """Return ``a`` from the products G.G, G.U and U.U."""
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


def dot(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Return the inner product over all tensors."""
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()


def norms(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of each tensor, ``(K,)``."""
    return torch.stack(torch._foreach_norm(tensors))
