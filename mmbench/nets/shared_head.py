"""One classifier for all modalities, in place of the own ones of sum fusion.

It reads features of one width. Where encoders differ in width, a linear layer of each modality's
own brings its features to a common one, if a user names it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mmbench.errors import RequestError
from mmbench.nets.fusion import Sum, linear
from mmbench.nets.network import Network


class Branch(nn.Module):
    """A modality's way from its features ``(B, width_m)`` to logits ``(B, C)``."""

    def __init__(self, adapter: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter
        """The modality's own: a linear layer, or nothing where all features are of one width."""
        self.head = head
        """The same module in every branch."""

    def forward(self, h: Tensor) -> Tensor:
        logits: Tensor = self.head(self.adapter(h))
        return logits


def shared_width(widths: Mapping[str, int], chosen: int | None, method: str) -> int:
    """Return the width that the shared classifier reads: the one chosen, else that of all features.

    Raises :class:`RequestError` when none is chosen and the features are of several widths.
    """
    if chosen is not None:
        return chosen
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{m} {width}" for m, width in widths.items())
        raise RequestError(
            f"{method} shares one classifier and needs features of one width, not {listed}: add "
            f"-o width={min(widths.values())} for a linear layer per modality, or choose encoders "
            "of equal width"
        )
    return next(iter(widths.values()))


def share_head(network: Network, head: nn.Module, chosen: int | None) -> None:
    """Replace the own classifiers of a network with sum fusion by branches to one ``head``, with
    linear layers of ``chosen`` width before it if there is one."""
    assert isinstance(network.fusion, Sum), "only sum and late fusion have own heads"
    for m, width in network.widths.items():
        adapter = nn.Identity() if chosen is None else linear(width, chosen, *_key(network, m))
        device = next(network.encoders[m].parameters()).device
        network.fusion.heads[m] = Branch(adapter, head).to(device)


def branch_of(network: Network, modality: str) -> Branch:
    """Return a modality's branch in a network whose head is shared."""
    assert isinstance(network.fusion, Sum), "only sum and late fusion have own heads"
    branch = network.fusion.heads[modality]
    assert isinstance(branch, Branch), "share_head makes the branches"
    return branch


def _key(network: Network, modality: str) -> tuple[int, str, str]:
    return network.spec.seed, "adapter", modality
