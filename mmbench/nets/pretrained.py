"""A pretrained language model as the encoder of tokens, by weights that lie on disk."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmbench.data.pretrained_text import first_line, transformers
from mmbench.errors import RequestError

if TYPE_CHECKING:
    from mmbench.data.dataset import Modality


class PretrainedText(nn.Module):
    """A model of Hugging Face's transformers, as wide as its hidden states, which are averaged over
    the positions that are not padding. All of its weights are trained on.

    Its input is what :class:`mmbench.data.pretrained_text.PretrainedTokens` gives: 0 is padding,
    and an id is one more than the model's own. The modality's ``weights`` name the folder. Every
    encoder that is built starts from the weights in it; nothing is drawn.
    """

    kinds = ("tokens",)

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        if modality.weights is None:
            raise RequestError(
                "encoder 'pretrained_text' needs the weights that the dataset's tokens are made "
                "for: choose them with its option, such as -d text_encoder=FOLDER, which chooses "
                "the encoder too"
            )
        self.model = _loaded(Path(modality.weights))
        settings = self.model.config
        self.width = int(settings.hidden_size)
        self.block_widths = (self.width,)
        _require_room(settings, modality)
        self.padding = int(getattr(settings, "pad_token_id", None) or 0)

    def forward(self, x: Tensor) -> Tensor:
        present = self._present(x)
        return _mean(self._hidden(x, present), present)

    def by_blocks(self, x: Tensor) -> Generator[Tensor, Tensor | None, None]:
        """All of the model is one block, whichever layers it has; the summary is the mean over
        positions that are not padding."""
        present = self._present(x)
        hidden = self._hidden(x, present)
        gate = yield _mean(hidden, present)
        yield _mean(hidden if gate is None else hidden * gate.unsqueeze(1), present)

    def _hidden(self, x: Tensor, present: Tensor) -> Tensor:
        """Return the last hidden states ``(B, length, width)``."""
        own_ids = torch.where(x > 0, x - 1, self.padding)
        given = self.model(input_ids=own_ids, attention_mask=present.long())
        hidden: Tensor = given.last_hidden_state
        return hidden

    def _present(self, x: Tensor) -> Tensor:
        """Return which positions are not padding, ``(B, length)``."""
        present = x != 0
        present[:, 0] |= ~present.any(dim=1)  # a wholly empty text attends to its first place
        return present


def _mean(hidden: Tensor, present: Tensor) -> Tensor:
    weight = present.unsqueeze(-1).to(hidden.dtype)
    mean: Tensor = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    return mean


def _loaded(folder: Path) -> Any:
    """Return the model in a folder, with all of its weights and without its pooler, whose output
    nothing reads. Raises :class:`RequestError` for files that are not those of such a model."""
    library = transformers()
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    try:
        model, info = library.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, for files of many formats
        raise RequestError(
            f"the model in {folder} cannot be loaded ({first_line(error)}): copy all of its files "
            "there"
        ) from error
    if not all(hasattr(model.config, name) for name in ("hidden_size", "vocab_size")):
        raise RequestError(
            f"the model in {folder} ({model.config.model_type}) has no single width and "
            "vocabulary: choose one that reads text alone, such as BERT"
        )
    if model.config.is_encoder_decoder:
        raise RequestError(
            f"the model in {folder} writes texts of texts: choose one that only reads them, such "
            "as BERT"
        )
    absent = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    if absent:
        raise RequestError(
            f"the weights in {folder} are not those of the model in its config.json: "
            f"{len(absent)} are missing, such as {sorted(absent)[0]}; copy both from one place"
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _require_room(settings: Any, modality: Modality) -> None:
    """Raise :class:`RequestError` when the tokens are not the model's, or too many for it."""
    if (modality.vocabulary or 0) > settings.vocab_size + 1:
        raise RequestError(
            f"the tokenizer in {modality.weights} has {(modality.vocabulary or 0) - 1} tokens, its "
            f"model {settings.vocab_size}: copy both from one place"
        )
    longest = getattr(settings, "max_position_embeddings", None)
    if longest is not None and modality.shape[0] > longest:
        raise RequestError(
            f"the model in {modality.weights} reads at most {longest} tokens, not "
            f"{modality.shape[0]}: choose a smaller -d length"
        )
