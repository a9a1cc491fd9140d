"""The network every method trains: an encoder per modality, and a fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from mmbench.data.dataset import Modality
from mmbench.errors import RequestError, unknown_name
from mmbench.nets.encoders import build_encoder, default_encoder
from mmbench.nets.fusion import FUSIONS, Features, Fusion
from mmbench.nets.mmtm import Bridges
from mmbench.seeds import Key, default_stream


@dataclass
class Output:
    """What a forward pass gives for ``B`` samples and ``C`` classes."""

    logits: Tensor
    """``(B, C)``, float32."""
    features: dict[str, Tensor]
    """``{m: (B, width_m)}``; a modality left out of the pass has zeros."""
    fusion: Fusion | None
    known_parts: dict[str, Tensor] | None = None
    """The parts, where the fusion had them before the logits."""

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """Logits divided among the modalities, ``{m: (B, C)}``, worked out when first read."""
        if self.known_parts is not None:
            return self.known_parts
        return {} if self.fusion is None else self.fusion.parts(self.features)

    @property
    def parts_are_exact(self) -> bool:
        """Whether the parts sum to ``logits``; otherwise each is a zero-feature ablation."""
        return self.fusion is None or self.fusion.parts_are_exact


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a network again: equal specs give equal initial weights."""

    modalities: Mapping[str, Modality]
    encoders: Mapping[str, str]
    classes: int
    fusion: str
    seed: int

    def build(self, keep: Sequence[str] | None = None, fusion: str | None = None) -> Network:
        """Return the network over the modalities in ``keep`` (default all), on the CPU, with
        another fusion than the spec's if one is named."""
        names = [m for m in self.modalities if keep is None or m in keep]
        return Network(self if fusion is None else replace(self, fusion=fusion), names)


class Network(nn.Module):
    """Encoders and a fusion over ``modalities``; without modalities its logits are zero."""

    def __init__(self, spec: NetworkSpec, modalities: Sequence[str]) -> None:
        super().__init__()
        self.spec = spec
        self.modalities = tuple(modalities)
        self.classes = spec.classes
        self.encoders = nn.ModuleDict()
        self.widths: dict[str, int] = {}
        for m in modalities:
            if not m or "." in m or hasattr(nn.ModuleDict(), m):
                raise RequestError(
                    f"a modality cannot be called '{m}', which is empty, holds a dot or is an "
                    "attribute of torch modules: rename it"
                )
            with default_stream(spec.seed, "encoder", m):
                encoder = build_encoder(spec.encoders[m], m, spec.modalities[m])
            self.encoders[m] = encoder
            self.widths[m] = encoder.width
        self.fusion = self._build_fusion(spec.seed)
        self.bridges: Bridges | None = None
        """Gates between the encoders, where a method has put some."""

    def _build_fusion(self, *key: Key) -> Fusion | None:
        if not self.modalities:
            return None
        kind = fusion_type(self.spec.fusion)
        if len(self.modalities) < kind.min_modalities:
            raise RequestError(
                f"fusion '{self.spec.fusion}' needs {kind.min_modalities} modalities, "
                f"{len(self.modalities)} given: use concat, sum, late or attention"
            )
        return kind(self.widths, self.classes, *key)

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the features of the modalities present in ``inputs``, in float32."""
        present = {m: inputs[m] for m in self.modalities if m in inputs}
        if self.bridges is not None:
            return {m: h.float() for m, h in self.bridges(self.encoders, present).items()}
        return {m: self.encoders[m](x).float() for m, x in present.items()}

    def encode_alone(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the features that each modality has in the absence of the others: those of
        `encode`, unless encoders gate each other."""
        return {m: self.encode({m: inputs[m]})[m] for m in self.modalities if m in inputs}

    def fuse(self, features: Features) -> Output:
        """Return the output for features of all modalities, ``{m: (B, width_m)}`` float32. Fusions
        are small and always run in float32, so that exact parts sum to the logits."""
        assert self.fusion is not None, "a network without modalities has nothing to fuse"
        full = {m: features[m] for m in self.modalities}
        device = next(iter(full.values())).device.type
        with torch.autocast(device, enabled=False):
            logits, parts = self.fusion.logits_and_parts(full)
            return Output(logits, full, self.fusion, parts)

    def forward(self, inputs: Mapping[str, Tensor], keep: Sequence[str] | None = None) -> Output:
        """Return the output for a batch; modalities outside ``keep`` are not encoded, and their
        features are zero."""
        if self.fusion is None:
            some = next(iter(inputs.values()))
            zeros = torch.zeros(len(some), self.classes, device=some.device)
            return Output(zeros, {}, None)
        if keep is None:
            return self.fuse(self.encode(inputs))
        seen = self.encode({m: inputs[m] for m in keep})
        some = next(iter(inputs.values()))
        zeros_for = {
            m: torch.zeros(len(some), width, device=some.device) for m, width in self.widths.items()
        }
        return self.fuse(zeros_for | seen)


def fusion_type(name: str) -> type[Fusion]:
    if name not in FUSIONS:
        raise unknown_name("fusion", name, FUSIONS)
    return FUSIONS[name]


def resolve_encoders(
    modalities: Mapping[str, Modality], chosen: Mapping[str, str]
) -> dict[str, str]:
    """Return an encoder name per modality: the chosen one, else the default for its kind.

    Raises :class:`RequestError` when ``chosen`` names a modality that is not there.
    """
    for m in chosen:
        if m not in modalities:
            raise unknown_name("modality", m, modalities)
    return {
        m: chosen[m] if m in chosen else default_encoder(spec) for m, spec in modalities.items()
    }
