"""CMU-MOSEI: 22,856 sentences from YouTube monologues, each with a sentiment between -3 and 3.

Read from the pickles of features that people have: MulT's (``mosei_senti_data.pkl``, aligned by
word, and ``mosei_senti_data_noalign.pkl``) or MMSA's (``aligned_50.pkl``, ``unaligned_50.pkl``).
Text is GloVe (300 wide) in MulT's and BERT (768) in MMSA's, sound COVAREP (74), face Facet (35);
lengths and widths are the file's. They are opened by a restricted unpickler. MMSA's ``text_bert``
(token ids) is not read.

The sets are the published ones: 16,326/1,871/4,659 sentences, in MulT's aligned file
16,265/1,869/4,643.

The harness trains classifiers: a protocol says how a score becomes a class. ``binary`` has neutral
(0) among the positive, as BalanceBenchmark does; other works leave neutral out (``nonzero``).
``three`` goes by sign, where BalanceBenchmark's has everything within 0.5 of zero neutral, and
numbers negative, positive, neutral. ``seven`` rounds, halves to even, as the field does;
BalanceBenchmark's cuts at whole numbers instead. Regression (mean absolute error, correlation), the
task of MulT, MMSA and EBMC, is not here.

Features are as extracted, as in MulT, whose network begins with a linear layer, as the Transformer
here does; ``standardise=true`` changes that. MulT reads -inf in the sound as 0; here this holds for
anything infinite or NaN in any modality, which is counted.
"""

from __future__ import annotations

from typing import Literal

from mmbench.data.dataset import DatasetInfo
from mmbench.data.sentiment.dataset import Known, SentimentDataset, SentimentOptions
from mmbench.options import option

COUNTS = (16326, 1871, 4659)
"""Sentences of train, validation and test."""


class CmuMosei(SentimentDataset):
    """CMU-MOSEI with text, sound and face."""

    info = DatasetInfo(
        title="CMU-MOSEI",
        summary="22,856 sentences scored for sentiment, with features of text, sound and face over "
        "time",
        licence="CMU: research only, given as is; users answer for the rights of those shown",
        citation="A. Zadeh et al., Multimodal language analysis in the wild: CMU-MOSEI dataset and "
        "interpretable dynamic fusion graph, ACL 2018",
        modalities={
            "text": "word vectors: GloVe (MulT) or BERT (MMSA)",
            "audio": "COVAREP features over time",
            "vision": "Facet features over time",
        },
        protocols={
            "binary": "16,326/1,871/4,659 sentences as published; score below 0, or not",
            "nonzero": "the same sets without neutral (0); score below or above 0",
            "three": "the same sets; below, at and above 0",
            "seven": "the same sets; score rounded, -3 to 3",
        },
        files="mosei_senti_data.pkl or mosei_senti_data_noalign.pkl (MulT), or aligned_50.pkl or "
        "unaligned_50.pkl (MMSA, MOSEI/Processed)",
    )
    corpus = "MOSEI"
    files = {
        "mosei_senti_data.pkl": Known("MulT", True, (16265, 1869, 4643)),
        "mosei_senti_data_noalign.pkl": Known("MulT", False, COUNTS),
        "aligned_50.pkl": Known(
            "MMSA", True, COUNTS, "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791"
        ),
        "unaligned_50.pkl": Known(
            "MMSA",
            False,
            COUNTS,
            "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f",
        ),
    }
    """SHA-256 from the README of MMSA."""

    class Config(SentimentOptions):
        file: (
            Literal[
                "mosei_senti_data.pkl",
                "mosei_senti_data_noalign.pkl",
                "aligned_50.pkl",
                "unaligned_50.pkl",
            ]
            | None
        ) = option(None, "which file to prepare or to read; needless where there is only one")

    config: Config
