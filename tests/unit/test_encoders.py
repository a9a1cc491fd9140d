"""Encoders: shapes for each kind of modality, padding, frames, and initial weights."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmbench.data.dataset import Modality
from mmbench.errors import RequestError
from mmbench.nets.encoders import (
    ENCODERS,
    KINDS,
    build_encoder,
    default_encoder,
    initialise,
)
from mmbench.seeds import default_stream

CASES = {
    "vector": (Modality("vector", (7,)), "mlp", 128),
    "one number": (Modality("vector", (1,)), "mlp", 128),
    "tiny image": (Modality("image", (1, 28, 28)), "small_cnn", 64),
    "one pixel": (Modality("image", (3, 1, 1)), "small_cnn", 64),
    "large image": (Modality("image", (3, 65, 64)), "resnet18", 512),
    "short spectrogram": (Modality("spectrogram", (1, 32, 41)), "small_cnn", 64),
    "long spectrogram": (Modality("spectrogram", (1, 65, 64)), "resnet18", 512),
    "frames": (Modality("frames", (2, 3, 32, 32)), "resnet18", 512),
    "grey frames": (Modality("frames", (2, 1, 32, 32)), "resnet18", 512),
    "sequence": (Modality("sequence", (9, 5)), "transformer", 64),
    "tokens": (Modality("tokens", (9,), vocabulary=11), "transformer", 64),
}


def encoder(modality: Modality, name: str | None = None) -> Any:
    with default_stream("test"):
        return build_encoder(name or default_encoder(modality), "m", modality)


def samples(modality: Modality, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if modality.kind == "tokens":
        return torch.randint(
            1, modality.vocabulary or 0, (rows, *modality.shape), generator=generator
        )
    return torch.randn(rows, *modality.shape, generator=generator)


@pytest.mark.parametrize("case", CASES)
def test_the_default_encoder_gives_a_feature_vector_per_sample(case: str) -> None:
    modality, name, width = CASES[case]
    assert default_encoder(modality) == name
    net = encoder(modality).eval()
    features = net(samples(modality))
    assert features.shape == (3, net.width) == (3, width)
    assert bool(features.isfinite().all())
    one_by_one = torch.cat([net(row[None]) for row in samples(modality)])
    torch.testing.assert_close(features, one_by_one, atol=1e-4, rtol=1e-4)


def test_the_size_of_a_picture_decides_between_the_small_cnn_and_resnet() -> None:
    assert default_encoder(Modality("image", (3, 64, 64))) == "small_cnn"
    assert default_encoder(Modality("image", (3, 64, 65))) == "resnet18"


def test_a_modality_can_name_its_encoder() -> None:
    assert default_encoder(Modality("image", (3, 8, 8), encoder="resnet18")) == "resnet18"


def test_frames_are_encoded_one_by_one_and_averaged() -> None:
    modality = Modality("frames", (3, 3, 32, 32))
    net = encoder(modality).eval()
    x = samples(modality, rows=2)
    with torch.no_grad():
        expected = torch.stack([net(x[:, t]) for t in range(3)]).mean(dim=0)
        torch.testing.assert_close(net(x), expected, atol=1e-4, rtol=1e-4)
        shuffled = net(x[:, [2, 0, 1]])
        torch.testing.assert_close(shuffled, net(x), atol=1e-4, rtol=1e-4)


def test_resnet_is_torchvisions_up_to_its_classifier() -> None:
    from torchvision.models import resnet18

    net = encoder(Modality("image", (3, 64, 65)))
    reference = resnet18(weights=None)
    reference.load_state_dict(net.backbone.state_dict(), strict=False)
    reference.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 65)
    torch.testing.assert_close(net.eval()(x), reference.eval()(x))


# -- padding ---------------------------------------------------------------------------------------


def padded(kind: str, x: Tensor, length: int) -> Tensor:
    size = (len(x), length - x.shape[1], *x.shape[2:])
    return torch.cat([x, torch.zeros(size, dtype=x.dtype)], dim=1)


def pair(kind: str) -> tuple[Any, Any, Tensor]:
    """The same encoder for sequences of up to 5 and up to 12 places, and sequences of 5."""
    short = Modality("tokens", (5,), vocabulary=11)
    long = Modality("tokens", (12,), vocabulary=11)
    if kind == "sequence":
        short, long = Modality("sequence", (5, 4)), Modality("sequence", (12, 4))
    one, other = encoder(short), encoder(long)
    other.load_state_dict(one.state_dict())
    return one.eval(), other.eval(), samples(short)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", ["sequence", "tokens"])
def test_padding_changes_nothing(kind: str, gradients: bool) -> None:
    """With and without gradients: torch takes another path through its layers without."""
    one, other, x = pair(kind)
    with torch.set_grad_enabled(gradients):
        expected = one(x)
        torch.testing.assert_close(other(padded(kind, x, 12)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sequence", "tokens"])
def test_what_shares_the_batch_changes_nothing(kind: str) -> None:
    _, net, x = pair(kind)
    whole = padded(kind, x, 12)
    whole[1, 2:] = 0
    with torch.no_grad():
        torch.testing.assert_close(net(whole)[:1], net(whole[:1]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(net(whole)[1:2], net(whole[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sequence", "tokens"])
def test_order_and_every_place_that_is_present_matter(kind: str) -> None:
    one, _, x = pair(kind)
    with torch.no_grad():
        assert float((one(x.flip(1)) - one(x)).abs().max()) > 1e-3
        for t in range(5):
            changed = x.clone()
            changed[:, t] = x[:, t] % 10 + 1 if kind == "tokens" else x[:, t] + 1
            assert float((one(changed) - one(x)).abs().min(dim=0).values.max()) > 1e-3


@pytest.mark.parametrize("kind", ["sequence", "tokens"])
def test_an_empty_sequence_has_finite_features_and_gradients(kind: str) -> None:
    one, _, x = pair(kind)
    x[0] = 0
    features = one.train()(x)
    features.sum().backward()
    assert bool(features.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in one.parameters() if p.grad is not None)


def test_the_position_code_is_that_of_vaswani() -> None:
    net = encoder(Modality("sequence", (6, 4)))
    for position in range(6):
        for i in range(32):
            angle = position / 10000 ** (2 * i / 64)
            assert float(net.positions[position, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-5)
            assert float(net.positions[position, 2 * i + 1]) == pytest.approx(
                math.cos(angle), abs=1e-5
            )


# -- requests that cannot be met -------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_refuses_kinds_that_it_cannot_read(name: str) -> None:
    kinds = {case[0].kind: case[0] for case in CASES.values()}
    for kind, modality in kinds.items():
        if kind in KINDS[name]:
            continue
        with pytest.raises(RequestError) as caught:
            build_encoder(name, "speech", modality)
        text = str(caught.value)
        assert text.startswith(f"encoder '{name}' cannot read modality 'speech' of kind '{kind}'")
        fitting = text.partition("use ")[2].split(" or ")
        assert fitting == [other for other in ENCODERS if kind in KINDS[other]]


def test_a_waveform_asks_for_a_front_end() -> None:
    waveform = Modality("waveform", (16_000,))
    with pytest.raises(RequestError, match="front end"):
        default_encoder(waveform)
    with pytest.raises(
        RequestError, match=r"cannot read .* 'waveform': use a dataset with a front"
    ):
        build_encoder("small_cnn", "speech", waveform)


def test_an_unknown_encoder_suggests_near_ones() -> None:
    with pytest.raises(RequestError, match="unknown encoder 'resnet': did you mean resnet18"):
        build_encoder("resnet", "m", Modality("image", (3, 8, 8)))


def test_tokens_without_a_vocabulary_are_refused() -> None:
    with pytest.raises(RequestError, match="vocabulary"):
        build_encoder("transformer", "m", Modality("tokens", (4,)))


# -- initial weights -------------------------------------------------------------------------------


def test_initial_weights_have_the_customary_spread() -> None:
    """Xavier normal: variance 2 / (in + out). Kaiming normal, fan out: 2 / (out * kernel area)."""
    linear, convolution, norm = nn.Linear(300, 500), nn.Conv2d(40, 80, 5), nn.BatchNorm2d(9)
    layers = nn.ModuleList([linear, convolution, norm])
    for parameter in layers.parameters():
        parameter.data.fill_(3.0)
    with default_stream("spread"):
        initialise(layers)
    assert float(linear.weight.detach().var()) == pytest.approx(2 / 800, rel=0.02)
    assert float(convolution.weight.detach().var()) == pytest.approx(2 / (80 * 25), rel=0.02)
    for weight in (linear.weight, convolution.weight):
        spread = float(weight.detach().std())
        assert abs(float(weight.detach().mean())) < 0.02 * spread
        within = (weight.detach().abs() < spread).double().mean()  # 68 % of a normal, not a uniform
        assert float(within) == pytest.approx(0.6827, abs=0.01)
    assert float(linear.bias.detach().abs().max()) == 0
    assert float(norm.bias.detach().abs().max()) == 0
    assert bool((norm.weight.detach() == 1).all())


@pytest.mark.parametrize("case", ["vector", "tiny image", "grey frames", "sequence"])
def test_every_encoder_starts_customarily(case: str) -> None:
    for layer in encoder(CASES[case][0]).modules():
        if isinstance(layer, nn.Linear):
            spread = math.sqrt(2 / (layer.in_features + layer.out_features))
            assert float(layer.weight.detach().std()) == pytest.approx(spread, rel=0.2)
            assert float(layer.bias.detach().abs().max()) == 0
        elif isinstance(layer, nn.Conv2d):
            area = layer.kernel_size[0] * layer.kernel_size[1]
            spread = math.sqrt(2 / (layer.out_channels * area))
            assert float(layer.weight.detach().std()) == pytest.approx(spread, rel=0.2)


def test_the_padding_token_keeps_its_zero_vector() -> None:
    net = encoder(CASES["tokens"][0])
    assert float(net.embed.weight.detach()[0].abs().max()) == 0
