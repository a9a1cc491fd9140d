"""Multimodal transfer modules: gates between the encoders of several modalities.

    e   = relu( F [q_1 | ... | q_M] + f )              q_m: the mean of a block's output, (B, c_m)
    a_m = sigmoid( G_m e + g_m )                       (B, c_m), multiplies the block's channels

H. R. V. Joze, A. Shaban, M. L. Iuzzolino, K. Koishida: MMTM: Multimodal Transfer Module for CNN
Fusion, CVPR 2020, in the form that N. Wu et al. (ICML 2022) train, which is for two modalities and
holds for any number. ``e`` is ``2 sum_m c_m / ratio`` wide.

Each gate has a running average over all batches trained on, which says nothing of a sample:
``mean_m <- (mean over the batch of a_m + n mean_m) / (n + 1)``. It takes the gate's place in
training where the gate is held, and wherever a modality is absent, so that what an encoder gives
without the others depends on its own modality alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmbench.nets.encoders import ByBlocks, Encoder
from mmbench.nets.fusion import linear
from mmbench.seeds import Key


class Excitation(nn.Module):
    """One modality's gate, ``(B, width)`` out of ``e (B, d)``, and its running average."""

    average: Tensor

    def __init__(self, size: int, channels: int, *key: Key) -> None:
        super().__init__()
        self.layer = linear(size, channels, *key)
        self.register_buffer("average", torch.full((channels,), 0.5))

    def forward(self, shared: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(shared))


class MMTM(nn.Module):
    """One module, between one block of every modality; ``channels`` are ``c_m``."""

    batches: Tensor

    def __init__(self, channels: Mapping[str, int], ratio: int, *key: Key) -> None:
        super().__init__()
        total = sum(channels.values())
        size = max(1, 2 * total // ratio)
        self.squeeze = linear(total, size, *key, "squeeze")
        self.excite = nn.ModuleDict(
            {m: Excitation(size, c, *key, "excite", m) for m, c in channels.items()}
        )
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def excitation(self, modality: str) -> Excitation:
        found = self.excite[modality]
        assert isinstance(found, Excitation)
        return found

    def forward(self, summaries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the gates ``{m: (B, c_m)}`` for summaries of all modalities."""
        shared = torch.relu(self.squeeze(torch.cat([summaries[m] for m in self.excite], dim=1)))
        return {m: excite(shared) for m, excite in self.excite.items()}

    @torch.no_grad()
    def remember(self, gates: Mapping[str, Tensor]) -> None:
        """Take a batch's gates into the running averages."""
        self.batches.add_(1)
        for m, gate in gates.items():
            average = self.excitation(m).average
            average.add_((gate.to(average.dtype).mean(dim=0) - average) / self.batches)


class Bridges(nn.Module):
    """Runs encoders side by side, with an MMTM between blocks of theirs.

    There are as many as the encoder with the fewest blocks has; they stand at the last blocks of
    each. ``held (M,)`` says whose gates are held at their averages in training. With
    ``averages_of_first`` the averages are all those of the first modality's gates.
    """

    held: Tensor

    def __init__(
        self,
        encoders: nn.ModuleDict,
        ratio: int,
        *key: Key,
        averages_of_first: bool = False,
    ) -> None:
        super().__init__()
        widths = {m: _encoder(encoders, m).block_widths for m in encoders}
        count = min(map(len, widths.values()))
        self.skipped = {m: len(width) - count for m, width in widths.items()}
        self.averages_of_first = averages_of_first
        self.mmtms = nn.ModuleList(
            MMTM({m: width[i - count] for m, width in widths.items()}, ratio, *key, "mmtm", i)
            for i in range(count)
        )
        self.register_buffer("held", torch.zeros(len(encoders), dtype=torch.bool))

    def forward(self, encoders: nn.ModuleDict, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the features ``{m: (B, width_m)}`` of the modalities in ``inputs``."""
        running = {m: _encoder(encoders, m).by_blocks(x) for m, x in inputs.items()}
        hidden = {m: _start(blocks, self.skipped[m]) for m, blocks in running.items()}
        all_present = len(inputs) == len(encoders)
        for mmtm in self.mmtms:
            assert isinstance(mmtm, MMTM)
            gates = self._gates(mmtm, hidden) if all_present else _averages(mmtm, hidden)
            hidden = {m: blocks.send(gates[m]) for m, blocks in running.items()}
        return hidden

    def _gates(self, mmtm: MMTM, summaries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        gates = mmtm(summaries)
        if not self.training:
            return dict(gates)
        if self.averages_of_first:
            first = next(iter(gates.values()))
            mmtm.remember(dict.fromkeys(gates, first))
        else:
            mmtm.remember(gates)
        averages = _averages(mmtm, gates)
        pairs = zip(gates.items(), self.held.unbind(), strict=True)
        return {m: torch.where(held, averages[m], gate) for (m, gate), held in pairs}


def _encoder(encoders: nn.ModuleDict, modality: str) -> Encoder:
    encoder = encoders[modality]
    assert isinstance(encoder, Encoder), "built by build_encoder"
    return encoder


def _start(blocks: ByBlocks, skipped: int) -> Tensor:
    """Return the summary of the first block that has an MMTM."""
    summary = next(blocks)
    for _ in range(skipped):
        summary = blocks.send(None)
    return summary


def _averages(mmtm: MMTM, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the average gates, in the shape and precision of the tensors given."""
    return {m: mmtm.excitation(m).average.to(x.dtype).expand_as(x) for m, x in like.items()}
