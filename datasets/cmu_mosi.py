"""CMU-MOSI: 2,199 sentences from 93 YouTube monologues, each with a sentiment between -3 and 3.

Read from the pickles of features that people have: MulT's (``mosi_data.pkl``, aligned by word, and
``mosi_data_noalign.pkl``) or MMSA's (``aligned_50.pkl``, ``unaligned_50.pkl``). Text is GloVe (300
wide) in MulT's and BERT (768) in MMSA's, sound 5 features of COVAREP, face 20 of Facet; lengths and
widths are the file's. All else is as in CMU-MOSEI (``mmbench show cmu_mosei``): the restricted
unpickler, the published sets, what the protocols do with neutral, features as extracted.

Two sentences of the corpus were scored twice (A2Zadeh/CMU-MultimodalSDK#265); such rows are told
apart by ``#2`` after their id.
"""

from __future__ import annotations

from typing import Literal

from mmbench.data.dataset import DatasetInfo
from mmbench.data.sentiment.dataset import Known, SentimentDataset, SentimentOptions
from mmbench.options import option

COUNTS = (1284, 229, 686)
"""Sentences of train, validation and test."""


class CmuMosi(SentimentDataset):
    """CMU-MOSI with text, sound and face."""

    info = DatasetInfo(
        title="CMU-MOSI",
        summary="2,199 sentences scored for sentiment, with features of text, sound and face over "
        "time",
        licence="CMU: research only, given as is; users answer for the rights of those shown",
        citation="A. Zadeh et al., Multimodal sentiment intensity analysis in videos: facial "
        "gestures and verbal messages, IEEE Intelligent Systems 31(6), 2016",
        modalities={
            "text": "word vectors: GloVe (MulT) or BERT (MMSA)",
            "audio": "COVAREP features over time",
            "vision": "Facet features over time",
        },
        protocols={
            "binary": "1,284/229/686 sentences as published; score below 0, or not",
            "nonzero": "the same sets without neutral (0); score below or above 0",
            "three": "the same sets; below, at and above 0",
            "seven": "the same sets; score rounded, -3 to 3",
        },
        files="mosi_data.pkl or mosi_data_noalign.pkl (MulT), or aligned_50.pkl or "
        "unaligned_50.pkl (MMSA, MOSI/Processed)",
    )
    corpus = "MOSI"
    files = {
        "mosi_data.pkl": Known("MulT", True, COUNTS),
        "mosi_data_noalign.pkl": Known("MulT", False, COUNTS),
        "aligned_50.pkl": Known(
            "MMSA", True, COUNTS, "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9"
        ),
        "unaligned_50.pkl": Known(
            "MMSA",
            False,
            COUNTS,
            "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524",
        ),
    }
    """SHA-256 from the README of MMSA."""

    class Config(SentimentOptions):
        file: (
            Literal["mosi_data.pkl", "mosi_data_noalign.pkl", "aligned_50.pkl", "unaligned_50.pkl"]
            | None
        ) = option(None, "which file to prepare or to read; needless where there is only one")

    config: Config
