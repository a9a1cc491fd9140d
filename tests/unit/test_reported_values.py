"""Accuracies in print: the files hold what their sources hold, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mmbench.registry import entries
from mmbench.report.reported import Source, load_reported

DATASETS = {
    *("cremad", "kinetics_sounds", "ave", "vggsound", "ucf101", "food101", "cmu_mosei"),
    *("balancedav", "avmnist", "modelnet40", "cmu_mosi", "ch_sims", "meld", "iemocap"),
}

# Counted in the sources: BalanceBenchmark's table has 21 rows of accuracies, 18 of them in 7
# columns and Greedy in 4; the unimodal ones have 7, 7 and 1 columns; F1 beside every accuracy of
# two columns but that of the third modality.
COUNTS = {
    "balancebenchmark": 17 * 7 + 4 + 7 + 7 + 1 + 2 * 20,
    "dgl": 5,
    "g2d": 6,
    "g2d_summary": 4,
    "gmm_guided_loss": 2,
    "graphsmile": 2,
    "lfm_thread": 3,
    "mmsa": 4 * 4 + 3 * 4 + 2 * 4,
    "ogm_ge_readme": 2,
    "ogm_ge_threads": 6,
    "reconboost": 9,
}

SPOTS = [
    ("balancebenchmark", "cremad", "OGM", "accuracy", 67.76),
    ("balancebenchmark", "cremad", "MMPareto", "macro_f1", 80.57),
    ("balancebenchmark", "kinetics_sounds", "GBlending", "macro_f1", 66.43),
    ("balancebenchmark", "ucf101", "AMCo", "accuracy", 86.91),
    ("balancebenchmark", "food101", "Baseline", "accuracy", 91.65),
    ("balancebenchmark", "cmu_mosei", "Unimodal-3", "accuracy", 80.58),
    ("balancebenchmark", "balancedav", "Greedy", "accuracy", 73.80),
    ("balancebenchmark", "vggsound", "Modality-valuation", "accuracy", 48.25),
    ("dgl", "cremad", "alpha=5", "accuracy", 78.12),
    ("g2d", "vggsound", "visual teacher", "accuracy", 32.32),
    ("g2d_summary", "cremad", "video, joint", "modality_accuracy", 27.42),
    ("mmsa", "cmu_mosi", "MISA", "accuracy_2_non0", 83.5),
    ("mmsa", "cmu_mosei", "Self-MM", "mae", 53.1),
    ("mmsa", "ch_sims", "TFN", "accuracy_3", 65.1),
    ("ogm_ge_threads", "cremad", "OGM-GE, checkpoint", "accuracy", 64.41),
    ("reconboost", "modelnet40", "ModelNet40", "accuracy", 91.14),
]


@pytest.fixture(scope="module")
def sources(repository: Path) -> dict[str, Source]:
    folder = repository / "results" / "reported"
    names = [file.stem for file in sorted(folder.glob("*.yaml"))]
    return dict(zip(names, load_reported(folder), strict=True))


def test_every_source_has_as_many_values_as_it_prints(sources: dict[str, Source]) -> None:
    assert {name: len(source.values) for name, source in sources.items()} == COUNTS


@pytest.mark.parametrize(("name", "dataset", "printed_as", "metric", "value"), SPOTS)
def test_a_value_is_the_one_in_print(
    sources: dict[str, Source],
    name: str,
    dataset: str,
    printed_as: str,
    metric: str,
    value: float,
) -> None:
    (found,) = [
        v
        for v in sources[name].values
        if (v.dataset, v.printed_as, v.metric) == (dataset, printed_as, metric)
    ]
    assert found.value == value


def test_methods_are_registered_or_marked_and_datasets_known(sources: dict[str, Source]) -> None:
    methods = {entry.name for entry in entries("method")}
    for source in sources.values():
        for value in source.values:
            assert (value.method in methods) != value.unregistered, value
            assert value.dataset in DATASETS
            assert (value.method == "unimodal") <= (value.modality is not None)


def test_no_protocol_in_print_is_one_of_ours(sources: dict[str, Source]) -> None:
    """A match has to be argued for: it lets a table compare our rows with these."""
    assert {name for name, source in sources.items() if source.matches} == set()


def test_every_source_says_how_it_was_read_and_what_to_beware_of(
    sources: dict[str, Source],
) -> None:
    for name, source in sources.items():
        assert source.caveats, name
        assert re.search(r"commit [0-9a-f]{7}|issue|abstract|notes|summary|config", source.read)


def test_values_that_are_whole_counts_of_test_clips_are(sources: dict[str, Source]) -> None:
    """Accuracies that the caveats call counts of a cut test set are multiples of it."""
    for name, dataset, rows, least in (
        ("balancebenchmark", "cremad", 704, 18),
        ("balancebenchmark", "kinetics_sounds", 1344, 19),
    ):
        values = [
            v.value for v in sources[name].values if (v.dataset, v.metric) == (dataset, "accuracy")
        ]
        counts = [abs(round(v * rows / 100) * 100 / rows - v) < 0.00501 for v in values]
        assert sum(counts) >= least, (dataset, sum(counts), len(values))


def test_the_files_are_plain_yaml_without_duplicate_keys(repository: Path) -> None:
    class Strict(yaml.SafeLoader):
        def construct_mapping(
            self, node: yaml.MappingNode, deep: bool = False
        ) -> dict[object, object]:
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), node.start_mark
            return super().construct_mapping(node, deep)

    for folder in ("results/reported", "experiments"):
        for file in (repository / folder).glob("*.yaml"):
            yaml.load(file.read_text(), Strict)
