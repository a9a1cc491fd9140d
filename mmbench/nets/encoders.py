"""Encoders: one modality of a batch in, a feature vector per sample ``(B, width)`` out.

Each encoder is chosen by the kind of its modality, or by name (``--encoder audio=resnet18``).

Beside ``forward`` an encoder can be run by blocks, so that something may pass between those of
several modalities (:mod:`mmbench.nets.mmtm`): ``by_blocks(x)`` yields, after each block named in
its docstring, a summary of what has been computed so far, ``(B, c)`` with ``c`` from
``block_widths``; it is sent a gate ``(B, c)`` that its channels are multiplied by, or None; and it
yields the features last. With gates of one they are those of ``forward``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

import torch
from torch import Tensor, nn

from mmbench.data.dataset import Modality
from mmbench.errors import RequestError, unknown_name
from mmbench.nets.pretrained import PretrainedText

SMALL_PICTURE = 64 * 64
"""Pictures up to this many pixels get the small CNN, larger ones ResNet-18."""

ByBlocks = Generator[Tensor, Tensor | None, None]
"""Summaries and then features out, gates in."""


class MLP(nn.Module):
    """Two linear layers, 256 and 128 wide, each followed by ReLU, for ``vector``."""

    kinds = ("vector",)
    block_widths = (256, 128)

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.width = 128
        (size,) = modality.shape
        self.layers = nn.Sequential(
            nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, self.width), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features

    def by_blocks(self, x: Tensor) -> ByBlocks:
        """Both layers are blocks; the summary is what the layer gives."""
        hidden = x
        for layer in (self.layers[:2], self.layers[2:]):
            hidden = layer(hidden)
            hidden = gated(hidden, (yield hidden))
        yield hidden


class SmallCNN(nn.Module):
    """Three convolutions (16, 32, 64 channels), each with halving max pooling, batch norm and
    ReLU, and a linear layer, 64 wide, with ReLU, for tiny images and short spectrograms.

    The linear layer reads every place of the last block: in pictures as small as a digit it matters
    where a stroke is, which a global average would forget.
    """

    kinds = ("image", "spectrogram")
    block_widths = (32, 64)

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.width = 64
        layers: list[nn.Module] = []
        channels = modality.shape[0]
        for out in (16, 32, self.width):
            layers += [
                nn.Conv2d(channels, out, kernel_size=3, padding=1, bias=False),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            channels = out
        height, width = (-(-size // 8) for size in modality.shape[1:])  # halved thrice, rounding up
        flat = channels * height * width
        layers += [nn.Flatten(), nn.Linear(flat, self.width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        # Channels last halves the time of a step on a CPU.
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x.contiguous(memory_format=torch.channels_last))
        return features

    def by_blocks(self, x: Tensor) -> ByBlocks:
        """The second and third convolutions are blocks; the summary is the mean over places."""
        hidden = self.layers[:4](x.contiguous(memory_format=torch.channels_last))
        for block in (self.layers[4:8], self.layers[8:12]):
            hidden = block(hidden)
            gate = yield hidden.mean(dim=(2, 3))
            hidden = gated(hidden, gate)
        yield self.layers[12:](hidden)


class ResNet18(nn.Module):
    """torchvision's ResNet-18 without weights, 512 wide; frames are averaged, and the first
    convolution takes the modality's number of channels (one for a spectrogram)."""

    kinds = ("image", "spectrogram", "frames")
    block_widths = (128, 256, 512)

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.width = 512
        channels = modality.shape[-3]
        self.backbone = resnet18(weights=None)
        if channels != 3:
            self.backbone.conv1 = nn.Conv2d(
                channels, 64, kernel_size=7, stride=2, padding=3, bias=False
            )
        self.backbone.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            features: Tensor = self.backbone(x)
            return features
        frames: Tensor = self.backbone(x.flatten(0, 1))
        return frames.view(*x.shape[:2], self.width).mean(dim=1)

    def by_blocks(self, x: Tensor) -> ByBlocks:
        """The last three of its four layers are blocks; the summary is the mean over frames and
        places, and all frames of a sample have one gate."""
        net = self.backbone
        count = x.shape[1] if x.dim() == 5 else 1
        frames = x.flatten(0, 1) if x.dim() == 5 else x
        hidden = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(frames)))))
        for layer in (net.layer2, net.layer3, net.layer4):
            hidden = layer(hidden)
            gate = yield hidden.mean(dim=(2, 3)).unflatten(0, (len(x), count)).mean(dim=1)
            hidden = gated(hidden, gate if gate is None else gate.repeat_interleave(count, dim=0))
        yield net.avgpool(hidden).flatten(1).unflatten(0, (len(x), count)).mean(dim=1)


class Transformer(nn.Module):
    """Two pre-norm Transformer layers (64 wide, 4 heads) over a sequence of vectors or tokens,
    averaged over the positions that are not padding (all-zero vectors, token 0)."""

    kinds = ("sequence", "tokens")
    block_widths = (64, 64)

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.width = 64
        self.embed: nn.Module
        if modality.kind == "tokens":
            if modality.vocabulary is None:
                raise RequestError("a 'tokens' modality must state its vocabulary size")
            self.embed = nn.Embedding(modality.vocabulary, self.width, padding_idx=0)
        else:
            self.embed = nn.Linear(modality.shape[1], self.width)
        length = modality.shape[0]
        self.register_buffer("positions", _sinusoids(length, self.width), persistent=False)
        layer = nn.TransformerEncoderLayer(
            self.width, 4, 2 * self.width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Tensor) -> Tensor:
        present = self._present(x)
        hidden = self.embed(x) + self.positions
        hidden = self.norm(self.layers(hidden, src_key_padding_mask=~present))
        return self._mean(hidden, present)

    def by_blocks(self, x: Tensor) -> ByBlocks:
        """Both layers are blocks; the summary is the mean over positions that are not padding."""
        present = self._present(x)
        hidden = self.embed(x) + self.positions
        for layer in self.layers.layers:
            hidden = layer(hidden, src_key_padding_mask=~present)
            gate = yield self._mean(hidden, present)
            hidden = hidden if gate is None else hidden * gate.unsqueeze(1)
        yield self._mean(self.norm(hidden), present)

    def _present(self, x: Tensor) -> Tensor:
        """Return which positions are not padding, ``(B, length)``."""
        present = x != 0 if x.dim() == 2 else (x != 0).any(dim=-1)
        present[:, 0] |= ~present.any(dim=1)  # a wholly empty sequence attends to its first place
        return present

    def _mean(self, hidden: Tensor, present: Tensor) -> Tensor:
        """Return the mean over the present positions, ``(B, width)``."""
        weight = present.unsqueeze(-1).to(hidden.dtype)
        mean: Tensor = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return mean


def gated(hidden: Tensor, gate: Tensor | None) -> Tensor:
    """Return ``hidden (B, c, ...)`` with its channels multiplied by ``gate (B, c)``, if any."""
    if gate is None:
        return hidden
    return hidden * gate.view(*gate.shape, *[1] * (hidden.dim() - 2))


def _sinusoids(length: int, width: int) -> Tensor:
    """Return the sinusoidal position code ``(length, width)`` of Vaswani et al. (2017), §3.5."""
    position = torch.arange(length).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    code = torch.zeros(length, width)
    code[:, 0::2] = torch.sin(position * rate)
    code[:, 1::2] = torch.cos(position * rate)
    return code


Encoder = MLP | SmallCNN | ResNet18 | Transformer | PretrainedText
ENCODERS: dict[str, Callable[[Modality], Encoder]] = {
    "mlp": MLP,
    "small_cnn": SmallCNN,
    "resnet18": ResNet18,
    "transformer": Transformer,
    "pretrained_text": PretrainedText,
}
KINDS = {
    "mlp": MLP.kinds,
    "small_cnn": SmallCNN.kinds,
    "resnet18": ResNet18.kinds,
    "transformer": Transformer.kinds,
    "pretrained_text": PretrainedText.kinds,
}


def default_encoder(modality: Modality) -> str:
    """Return the name of the encoder for a modality that names none."""
    if modality.encoder is not None:
        return modality.encoder
    match modality.kind:
        case "vector":
            return "mlp"
        case "image" | "spectrogram":
            height, width = modality.shape[-2:]
            return "small_cnn" if height * width <= SMALL_PICTURE else "resnet18"
        case "frames":
            return "resnet18"
        case "sequence" | "tokens":
            return "transformer"
        case "waveform":
            raise RequestError(
                "a waveform needs a front end that makes a spectrogram of it; the dataset "
                "chooses one in `load` (mmbench.data.frontends)"
            )


def build_encoder(name: str, modality_name: str, modality: Modality) -> Encoder:
    """Return an encoder with fresh weights (see :func:`initialise`), or with those that it was
    pretrained to.

    Raises :class:`RequestError` for an unknown name or a kind that the encoder cannot read.
    """
    if name not in ENCODERS:
        raise unknown_name("encoder", name, ENCODERS)
    if modality.kind not in KINDS[name]:
        fitting = [other for other, kinds in KINDS.items() if modality.kind in kinds]
        raise RequestError(
            f"encoder '{name}' cannot read modality '{modality_name}' of kind '{modality.kind}': "
            f"use {' or '.join(fitting) or 'a dataset with a front end'}"
        )
    encoder = ENCODERS[name](modality)
    if not isinstance(encoder, PretrainedText):
        initialise(encoder)
    return encoder


def initialise(module: nn.Module) -> None:
    """Apply the field's customary initial weights: linear layers Xavier normal with zero bias,
    convolutions Kaiming normal (fan out, ReLU), norms one and zero (as released with OGM-GE)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
