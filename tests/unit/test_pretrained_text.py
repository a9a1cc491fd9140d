"""A pretrained text encoder: tokens, features, weights that stay, methods that rebuild it.

The model is a small BERT with random weights, saved as transformers save one.
"""

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mmbench
from mmbench.data.dataset import Modality
from mmbench.data.files import file_sha256
from mmbench.data.pretrained_text import PretrainedTokens, find_model, weights_sha256
from mmbench.datasets.food101 import Food101
from mmbench.errors import RequestError
from mmbench.nets.encoders import build_encoder, default_encoder
from mmbench.options import validated
from mmbench.seeds import default_stream
from mmbench.testing.food101 import SOME, food101
from tests.unit.media_clips import quiet

transformers = pytest.importorskip(
    "transformers", reason="needs the extra: pip install 'mmbench[text]'"
)

WORDS = (
    *" ".join(SOME).replace("_", " ").split(),
    "the",
    "best",
    "easy",
    "for",
    "how",
    "to",
    "make",
)
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXTS = ["The best apple pie", "", "sushi", "easy recipe for french fries, how to make"]
LENGTH = 9


def write_model(folder: Path, seed: int, marks: tuple[str, ...] = MARKS, **settings: Any) -> Path:
    """Save a BERT of 3 layers, 32 wide, and its tokenizer; the vocabulary starts with ``marks``."""
    folder.mkdir()
    vocabulary = [*marks, *dict.fromkeys(WORDS)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=32)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        pad_token_id=marks.index("[PAD]"),
        **settings,
    )
    with default_stream(seed):
        model = transformers.BertModel(config)
        for parameter in model.parameters():  # biases and norms too: none may pass for fresh
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "bert", 0)


@pytest.fixture(scope="module")
def padded_by_3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that pads with 3 and whose 0 is the mark of the beginning, as RoBERTa's is."""
    marks = ("[CLS]", "[UNK]", "[SEP]", "[PAD]", "[MASK]")
    return write_model(tmp_path_factory.mktemp("models") / "other", 1, marks)


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """The model again, to be damaged."""
    return Path(shutil.copytree(model, tmp_path / "own"))


def modality(folder: Path, length: int = LENGTH) -> Modality:
    tokens = PretrainedTokens(folder)
    return Modality(
        "tokens", (length,), encoder="pretrained_text", vocabulary=len(tokens), weights=str(folder)
    )


def encoder(folder: Path, length: int = LENGTH) -> Any:
    spec = modality(folder, length)
    return build_encoder(default_encoder(spec), "text", spec).eval()


def tokens(folder: Path, length: int = LENGTH) -> Tensor:
    return torch.from_numpy(PretrainedTokens(folder).encode(TEXTS, length))


def reference(folder: Path, text: str) -> Tensor:
    """Mean of the last hidden states of a text on its own, without any padding."""
    plain = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden: Tensor = plain(input_ids=ids).last_hidden_state
    return hidden[0].mean(dim=0)


# -- tokens and features ---------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["model", "padded_by_3"])
def test_0_is_padding_whatever_the_model_pads_with(
    which: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = PretrainedTokens(folder).encode(TEXTS, LENGTH)
    assert rows.dtype == np.int64
    assert rows.shape == (4, LENGTH)
    for row, text in zip(rows, TEXTS, strict=True):
        expected = tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"]
        assert [i - 1 for i in row if i != 0] == expected
        assert not row[len(expected) :].any()
    assert (rows[3] != 0).all()  # cut
    assert len(PretrainedTokens(folder)) == len(tokenizer) + 1


@pytest.mark.parametrize("which", ["model", "padded_by_3"])
def test_features_are_the_means_of_the_models_own_hidden_states(
    which: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    net = encoder(folder)
    with torch.no_grad():
        features = net(tokens(folder))
    assert features.shape == (4, net.width) == (4, 32)
    expected = torch.stack([reference(folder, text) for text in TEXTS])
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing(model: Path) -> None:
    with torch.no_grad():
        short = encoder(model)(tokens(model))
        long = encoder(model, 20)(torch.nn.functional.pad(tokens(model), (0, 11)))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


def test_a_row_of_nothing_but_padding_has_finite_features(model: Path) -> None:
    x = tokens(model)
    x[1] = 0  # as when a corruption drops every token
    features = encoder(model).train()(x)
    features.sum().backward()
    assert bool(features.isfinite().all())


def test_by_blocks_gates_the_hidden_states(model: Path) -> None:
    net, x = encoder(model), tokens(model)
    assert net.block_widths == (32,)
    with torch.no_grad():
        features = net(x)
        for gate, expected in (
            (None, features),
            (torch.ones(4, 32), features),
            (torch.full((4, 32), 0.25), 0.25 * features),
        ):
            blocks = net.by_blocks(x)
            torch.testing.assert_close(next(blocks), features)
            torch.testing.assert_close(blocks.send(gate), expected)
            with pytest.raises(StopIteration):
                next(blocks)


# -- weights ---------------------------------------------------------------------------------------


def test_an_encoder_starts_from_the_weights_on_disk_each_time(model: Path) -> None:
    saved = transformers.BertModel.from_pretrained(model).state_dict()
    for seed in (0, 1):
        with default_stream(seed):
            net = encoder(model)
        found = net.model.state_dict()
        assert {name for name in saved if not name.startswith("pooler.")} == found.keys()
        assert all(torch.equal(found[name], saved[name]) for name in found)
        assert all(parameter.requires_grad for parameter in net.parameters())
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()  # of this one alone
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def test_every_weight_has_a_gradient_and_a_copy_is_its_own(model: Path) -> None:
    net = encoder(model)
    other = copy.deepcopy(net)
    net.train()(tokens(model)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert all(parameter.grad is None for parameter in other.parameters())
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net.eval()(tokens(model)), other.eval()(tokens(model)))


def test_the_fingerprint_names_weights_and_tokenizer(model: Path, own: Path) -> None:
    (weights,) = own.glob("*.safetensors")
    before = PretrainedTokens(model).fingerprint()
    assert PretrainedTokens(own).fingerprint() == before  # wherever it lies
    assert weights_sha256(own) == file_sha256(weights)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    after = PretrainedTokens(own).fingerprint()
    assert after != before
    settings = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    assert PretrainedTokens(own).fingerprint() not in (before, after)


# -- where it lies ---------------------------------------------------------------------------------


def in_local_cache(model: Path, home: Path) -> None:
    """Put a model where Hugging Face keeps what it has downloaded."""
    place = home / "models--somebody--tiny-bert"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123abc")
    shutil.copytree(model, place / "snapshots" / "0123abc")


def test_a_model_is_found_by_folder_and_by_name_in_the_local_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_model(str(model)) == model
    with pytest.raises(RequestError, match="run `hf download somebody/tiny-bert`"):
        find_model("somebody/tiny-bert")
    in_local_cache(model, tmp_path)
    found = find_model("somebody/tiny-bert")
    assert found.parent.parent.name == "models--somebody--tiny-bert"
    assert weights_sha256(found) == weights_sha256(model)


def refused(folder: Path, message: str, length: int = LENGTH) -> None:
    def use() -> None:
        encoder(find_model(str(folder)), length)(tokens(folder, length))

    with pytest.raises(RequestError, match=message) as caught:
        use()
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(own: Path, tmp_path: Path) -> None:
    refused(tmp_path / "absent", "no folder, and not in the local cache")
    refused(Path("no such/name/at all"), "no folder, and not in the local cache")
    refused(tmp_path, "holds no config.json")
    (weights,) = own.glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    refused(own, "the model in .* cannot be loaded")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(Exception, match="is a git-LFS pointer"):
        PretrainedTokens(own)
    weights.rename(own / "pytorch_model.bin")
    refused(own, r"holds no weights .* pickled weights \(.bin\) are not read")


def test_models_that_do_more_than_read_text_are_refused(own: Path, tmp_path: Path) -> None:
    settings = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**settings, "is_encoder_decoder": True}))
    refused(own, "writes texts of texts: choose one that only reads them")
    part = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    picture = {**part, "image_size": 8, "patch_size": 4}
    both = transformers.CLIPConfig(
        text_config={**part, "vocab_size": 9}, vision_config=picture, projection_dim=8
    )
    transformers.CLIPModel(both).save_pretrained(tmp_path / "clip")
    with pytest.raises(RequestError, match=r"\(clip\) has no single width and vocabulary"):
        build_encoder(
            "pretrained_text",
            "text",
            Modality("tokens", (4,), vocabulary=9, weights=str(tmp_path / "clip")),
        )


def test_a_tokenizer_that_is_cut_is_refused(own: Path) -> None:
    path = own / "tokenizer.json"
    path.write_text(path.read_text()[:50])
    refused(own, "the tokenizer in .* cannot be loaded")


def test_weights_of_another_model_are_refused(own: Path) -> None:
    settings = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 4}))
    refused(own, "are missing, such as encoder.layer.3")


def test_more_tokens_than_the_model_reads_are_refused(model: Path, own: Path) -> None:
    refused(model, "reads at most 32 tokens, not 33: choose a smaller -d length", 33)
    settings = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 8}))
    with pytest.raises(RequestError, match="reads at most 8 tokens, not 9"):
        PretrainedTokens(own).encode(TEXTS, 9)


def test_a_tokenizer_of_another_model_is_refused(model: Path) -> None:
    spec = Modality("tokens", (4,), vocabulary=10_000, weights=str(model))
    with pytest.raises(RequestError, match="has 9999 tokens, its model"):
        build_encoder("pretrained_text", "text", spec)


def test_tokens_that_are_no_models_are_refused() -> None:
    with pytest.raises(RequestError, match=r"needs the weights .* -d text_encoder=FOLDER"):
        build_encoder("pretrained_text", "text", Modality("tokens", (4,), vocabulary=9))


def test_without_the_package_the_extra_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RequestError, match=r"pip install 'mmbench\[text\]'"):
        find_model(str(model))


# -- in a run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("food")
    food101(folder / "files", 40, side=32)
    dataset = Food101(validated(Food101.Config, {}, "food101"))
    dataset.prepare(folder / "files", folder / "cache", quiet, workers=1)
    return folder / "cache"


def options(cache: Path, model: Path) -> dict[str, Any]:
    return {"cache": str(cache), "size": 32, "length": 8, "text_encoder": str(model)}


def test_food101_reads_titles_with_it(cache: Path, model: Path, own: Path) -> None:
    splits = Food101(validated(Food101.Config, options(cache, model), "food101")).load(
        "official", 0
    )
    splits.check("food101")
    spec = splits.modalities["text"]
    assert (spec.kind, spec.shape, spec.encoder) == ("tokens", (8,), "pretrained_text")
    assert any(f"{weights_sha256(model)[:16]}" in note for note in splits.notes)
    (weights,) = own.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    other = Food101(validated(Food101.Config, options(cache, own), "food101")).load("official", 0)
    assert other.fingerprints()["data"] != splits.fingerprints()["data"]
    assert other.fingerprints()["split"] == splits.fingerprints()["split"]


HOLDOUT = {"holdout": 0.4}
METHODS: dict[str, dict[str, Any]] = {
    "joint": {},
    "greedy": {},  # gates between the encoders
    "umt": {},  # teachers
    "gblending": HOLDOUT,  # deep copies
    "relearning": HOLDOUT | {"every": 1},  # goes back towards the initial weights
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_gate_copy_and_rebuild_encoders_train_it(
    method: str, cache: Path, model: Path, tmp_path: Path
) -> None:
    (outcome,) = mmbench.run(
        method,
        dataset="food101",
        dataset_options=options(cache, model),
        method_options=METHODS[method],
        encoders={"image": "small_cnn"},
        recipe={"epochs": 2, "batch_size": 10},
        results=tmp_path,
    )
    assert outcome.record["status"] == "done", outcome
    assert any(weights_sha256(model)[:16] in note for note in outcome.record["notes"])
    tested = torch.load(outcome.path / "checkpoint" / "model.pt", weights_only=True)
    assert any("encoders.text.model.encoder.layer.2" in name for name in flat(tested))


def flat(stored: dict[str, Any]) -> list[str]:
    """Return the names of all tensors in what is stored."""
    names: list[str] = []
    for name, value in stored.items():
        names += [f"{name}.{more}" for more in flat(value)] if isinstance(value, dict) else [name]
    return names
