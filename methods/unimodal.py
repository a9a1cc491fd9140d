"""Unimodal: one encoder and a linear head, trained alone.

    L = CE(u_m, y),    u_m = h_m U_m^T + c_m

Its encoder starts from the weights that the same encoder has in every other method, so the gap
between the two after training is what training together did to it.
"""

from mmbench.errors import RequestError, unknown_name
from mmbench.options import option
from mmbench.train.method import Method, MethodInfo, Options


class Unimodal(Method):
    """Asked for without a modality, it runs once for each."""

    info = MethodInfo(
        title="Unimodal training",
        family="control",
        summary="one modality alone; run for each modality unless one is named",
        acts="never",
        cost="1 forward of one encoder, 1 backward",
        default_fusion="sum",
        fusions=("sum",),
        min_modalities=1,
    )

    class Config(Options):
        modality: str | None = option(None, "the modality to train; none runs each in turn")

    @classmethod
    def variants(cls, options: Options, modalities: tuple[str, ...]) -> list[Options]:
        assert isinstance(options, cls.Config)
        if options.modality is None:
            return [cls.Config(modality=m) for m in modalities]
        if options.modality not in modalities:
            raise unknown_name("modality", options.modality, modalities)
        return [options]

    def modalities(self, available: tuple[str, ...]) -> tuple[str, ...]:
        if self.config.modality is None:
            raise RequestError("unimodal trains one modality: name it with -o modality=NAME")
        return (self.config.modality,)
