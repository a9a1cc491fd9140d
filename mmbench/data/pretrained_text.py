"""Texts as the tokens of a pretrained model that lies on disk, by its own tokenizer.

A model is a folder as Hugging Face's transformers write it, or a name that is in their local cache.
Nothing is ever downloaded, no code of a model's own is run, and weights are read from safetensors
alone. transformers is an optional extra, imported when a model is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mmbench.data.files import file_sha256, require_sound
from mmbench.errors import RequestError
from mmbench.hashing import digest

SETTINGS = "config.json"
WEIGHTS = "*.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt")
"""Files that decide which tokens a text has; a model has some of them."""
UNLIMITED = 1_000_000
"""Tokenizers that know no longest text say a number above this one."""


def transformers() -> ModuleType:
    """Return the package transformers. Raises :class:`RequestError` that names the extra where it
    is not installed."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise RequestError(
            "a pretrained text encoder needs the package transformers, which is not installed: "
            "pip install 'mmbench[text]'"
        ) from error


def find_model(name: str) -> Path:
    """Return the folder of a model, given by its path or by a name in the local cache of Hugging
    Face. Raises :class:`RequestError` when it is in neither, or holds no weights in safetensors."""
    transformers()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _in_local_cache(name)
    if not (folder / SETTINGS).is_file():
        raise RequestError(
            f"{folder} holds no {SETTINGS}: give the folder that the model's save_pretrained "
            "wrote, with its tokenizer"
        )
    if not weights_files(folder):
        raise RequestError(
            f"{folder} holds no weights ({WEIGHTS}): get them, or save the model anew with "
            "save_pretrained, which writes them; pickled weights (.bin) are not read"
        )
    return folder


def _in_local_cache(name: str) -> Path:
    hub = import_module("huggingface_hub")  # transformers depends on it
    try:
        found = hub.try_to_load_from_cache(name, SETTINGS)
    except ValueError:  # no name that a model could have
        found = None
    if not isinstance(found, str):
        raise RequestError(
            f"there is no pretrained model '{name}': it is no folder, and not in the local cache "
            f"of Hugging Face; nothing is downloaded here, so run `hf download {name}` where there "
            "is a network, or give the folder of the model"
        )
    return Path(found).parent


def weights_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(WEIGHTS))


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of a model's weights in hex digits; of several files, of the hashes of
    all. Raises :class:`DataError` for a git-LFS pointer or another file that is no weights."""
    hashes = []
    for path in weights_files(folder):
        require_sound(path)
        hashes.append(file_sha256(path))
    return hashes[0] if len(hashes) == 1 else digest(*hashes)


class PretrainedTokens:
    """A model's tokenizer, with ids of our own: 0 is padding, and the model's id k becomes k + 1.

    So 0 is padding whichever id the model pads with; :mod:`mmbench.nets.pretrained` goes back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = _tokenizer(folder)
        self.weights_sha256 = weights_sha256(folder)

    def __len__(self) -> int:
        """Return the number of ids, that of padding included."""
        return len(self.tokenizer) + 1

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Return the tokens of each text, the model's marks of beginning and end included, cut to
        ``length`` and followed by padding: ``(N, length)`` int64.

        Raises :class:`RequestError` when the model cannot read as many.
        """
        longest = self.tokenizer.model_max_length
        if length > longest and longest < UNLIMITED:
            raise RequestError(
                f"the model in {self.folder} reads at most {longest} tokens, not {length}: choose "
                "a smaller -d length"
            )
        rows = np.zeros((len(texts), length), dtype=np.int64)
        tokens = self.tokenizer([*texts], truncation=True, max_length=length)["input_ids"]
        for row, found in zip(rows, tokens, strict=True):
            row[: len(found)] = np.asarray(found, dtype=np.int64) + 1
        return rows

    def fingerprint(self) -> str:
        """Return a hash of the files that decide over tokens and weights."""
        files = [self.folder / name for name in (SETTINGS, *TOKENIZER)]
        said = [f"{path.name}:{file_sha256(path)}" for path in files if path.is_file()]
        return digest(*said, self.weights_sha256)


def _tokenizer(folder: Path) -> Any:
    try:
        return transformers().AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many kinds, for files of many formats
        raise RequestError(
            f"the tokenizer in {folder} cannot be loaded ({first_line(error)}): copy all files of "
            "the model there"
        ) from error


def first_line(error: Exception) -> str:
    """Return what a foreign error says, in short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
