"""Judging the files of clips one by one, without writing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmbench.data.files import file_sha256
from mmbench.data.media.clips import clip_problems
from mmbench.data.media.manifest import Clip, MediaRecipe
from mmbench.data.media.parallel import in_processes
from mmbench.data.media.pointers import Pointer
from mmbench.data.media.shards import portions
from mmbench.data.problem import Problem

if TYPE_CHECKING:
    from mmbench.data.dataset import Progress


@dataclass(frozen=True)
class Questions:
    """Some clips to judge, and the pointers of their files where there are any."""

    clips: tuple[Clip, ...]
    source: Path
    recipe: MediaRecipe
    pointers: Mapping[str, Pointer]


def answer(questions: Questions) -> list[list[Problem]]:
    """Return the problems of each clip, decoding all of it."""
    return [_problems(clip, questions) for clip in questions.clips]


def judged(
    clips: Sequence[Clip],
    source: Path,
    recipe: MediaRecipe,
    pointers: Mapping[str, Pointer],
    progress: Progress | None,
    workers: int | None,
) -> dict[str, list[Problem]]:
    """Return the problems of every clip by its id, in the order of the clips."""
    tasks = [
        Questions(
            part,
            source,
            recipe,
            {p: pointers[p] for clip in part for p in clip.places if p in pointers},
        )
        for part in portions(clips, recipe)
    ]
    answers: dict[int, list[list[Problem]]] = {}
    done = 0
    for place, found in in_processes(answer, tasks, workers):
        answers[place] = found
        done += len(found)
        if progress:
            progress(done, len(clips), recipe.clips_are)
    ordered = [problems for place in sorted(answers) for problems in answers[place]]
    return {clip.id: problems for clip, problems in zip(clips, ordered, strict=True)}


def _problems(clip: Clip, questions: Questions) -> list[Problem]:
    problems = clip_problems(clip, questions.source, questions.recipe)
    faulty = {problem.path for problem in problems}
    for place in clip.places:
        path, pointer = questions.source / place, questions.pointers.get(place)
        if pointer is None or str(path) in faulty:
            continue
        if path.stat().st_size != pointer.size or file_sha256(path) != pointer.sha256:
            what = "is not the file that its git-LFS pointer names (SHA-256)"
            mend = "remove it and run `git lfs pull` and `git lfs checkout`"
            problems.append(Problem(str(path), what, mend))
    return problems
