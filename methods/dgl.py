"""DGL: disentangled gradient learning.

    z   = F(sg[h_1], ..., sg[h_M])         fused logits of detached features
    u_m = sg[F](h_m, others absent)        for concat head([h_m | 0]), the same head, a constant
    L   = CE(z, y) + alpha sum_m CE(u_m, y)

The fused loss teaches the fusion alone, whose gradient is that of joint training; the unimodal
losses teach the encoders alone.

S. Wei, C. Luo, Y. Luo: Boosting Multimodal Learning via Disentangled Gradient Learning, ICCV 2025.
"""

from torch import Tensor
from torch.nn import functional

from mmbench.options import option
from mmbench.train.alone import ABSENT_MEANING, Absent, alone, alone_losses, constant, stand_in
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run


class DGL(Method):
    """Encoders learn from their modality alone, the fusion from all of them."""

    info = MethodInfo(
        title="Disentangled gradient learning",
        family="gradient",
        summary="keeps the fused loss from the encoders, which learn through the same fusion from "
        "their own modality alone, and the unimodal losses from the fusion",
        acts="in the backward pass, at every step",
        cost="1 forward, 1 backward; the fusion for M+2 times the rows",
        authors="S. Wei, C. Luo, Y. Luo",
        venue="ICCV",
        year=2025,
        arxiv="2507.10213",
        departures=(
            "One backward pass, in which the fusion's parameters are constants of the unimodal "
            "losses, in place of two and a gradient that is cleared between them; an auxiliary "
            "head of the released code that nothing reads is left out.",
            "The fusion is the network's own for every modality alone: with sum the biases of the "
            "other heads are in u_m too, and with film and gated a modality takes every place, "
            "each with that place's weights.",
            "The released settings clip the whole gradient at a norm of 40 (-t clip_norm=40).",
        ),
    )

    class Config(Options):
        alpha: float = option(
            4.0,
            "weight of the unimodal losses; as released 4 to 5 on CREMA-D, 2 to 3 on "
            "Kinetics-Sounds",
            gt=0,
            search=[1.0, 2.0, 4.0, 5.0],
        )
        absent: Absent | None = option(None, ABSENT_MEANING)

    def setup(self, run: Run) -> None:
        self.absent = stand_in(run, self.config.absent, "dgl")
        if run.recipe.optimizer != "sgd":
            run.note(
                f"{run.recipe.optimizer} divides by the gradient's own size and so all but undoes "
                "the factor alpha: use -t optimizer=sgd"
            )

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        detached = {m: h.detach() for m, h in out.features.items()}
        fused = functional.cross_entropy(run.network.fuse(detached).logits, batch.y)
        with constant(run.head_params()):
            losses = alone_losses(self.logits_alone(out), batch.y)
        for m, own in zip(run.modalities, losses.unbind(), strict=True):
            run.log(f"own_loss.{m}", own)
        total: Tensor = fused + self.config.alpha * losses.sum()
        return total

    def logits_alone(self, out: Output) -> Tensor:
        """Return ``u (M, B, C)``."""
        assert out.fusion is not None, "a method for two modalities or more"
        return alone(out.fusion, out.features, self.absent)

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return dict(zip(out.features, self.logits_alone(out).unbind(), strict=True))
