"""A generated corpus that lies on disk as UCF-101 does, with optical flow, in every layout.

The colour of a clip's picture names a class, and the direction in which its flow moves names one,
each under noise and of a brightness or speed of its own; with probability ``picture`` and
``motion`` it is the clip's own, otherwise one drawn from all classes. Directions lie to the right
of upright, so that none is another's mirror image. A clip depends on the seed and its own name.

    ucf101(folder, groups=25, signal=Signal(picture=0.6, motion=0.9))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from mmbench.data.media.parallel import in_processes
from mmbench.errors import RequestError
from mmbench.seeds import Key, numpy_stream
from mmbench.testing.clips import Look, picture

CLASSES = ("ApplyEyeMakeup", "HandstandPushups", "JumpingJack", "JumpRope", "YoYo")
"""Some of the 101, in the order of ``classInd.txt``: those whose capitals make trouble among
them."""
WRITTEN = {"HandstandPushups": "HandStandPushups"}
"""Classes whose clips have other capitals than their folder."""
LARGEST = 80.0
"""Degrees from the right that a direction has at most, up or down."""
NOISE = 6.0
"""Standard deviation of what is added to flow, of 255."""
SMALL = Look(seconds=1.0, height=48, width=64, fps=25)

Pictures = Literal["avi", "rawframes", "jpegs_256"]
Flows = Literal["tvl1_flow", "rawframes"]


@dataclass(frozen=True)
class Signal:
    """Probability that a modality names the clip's class, from 0 (never on purpose) to 1."""

    picture: float = 0.6
    motion: float = 0.9


CLEARER_MOTION = Signal()


@dataclass(frozen=True)
class Generated:
    """One clip that was written, and what it shows."""

    name: str
    label: str
    group: int
    seen: int
    """Number of the class that the picture names."""
    moved: int
    """Number of the class that the flow names."""


@dataclass(frozen=True)
class _Order:
    """A clip to write, with all that decides its content."""

    folder: Path
    name: str
    label: str
    group: int
    classes: tuple[str, ...]
    seed: int
    signal: Signal
    look: Look
    pictures: Pictures
    flow: Flows | None


def ucf101(
    folder: Path,
    *,
    classes: Sequence[str] = CLASSES,
    groups: int = 6,
    clips: int = 1,
    seed: int = 0,
    signal: Signal = CLEARER_MOTION,
    look: Look = SMALL,
    pictures: Pictures = "avi",
    flow: Flows | None = "tvl1_flow",
    workers: int = 1,
) -> tuple[Generated, ...]:
    """Write pictures, flow and the lists of three splits; ``clips`` of each group of each class.

    Of 25 groups the test lists name 1 to 7, 8 to 14 and 15 to 21, as those of the archive do, and
    of fewer as many in proportion. Lines end as in the archive, with a carriage return. Returns the
    clips in the order of the classes, groups and numbers.
    """
    if groups < 4:
        raise RequestError(f"{groups} groups are too few for three test lists; ask for 4 at least")
    orders = [
        _Order(
            folder,
            f"v_{WRITTEN.get(label, label)}_g{group:02d}_c{clip:02d}",
            label,
            group,
            tuple(classes),
            seed,
            signal,
            look,
            pictures,
            flow,
        )
        for label in classes
        for group in range(1, groups + 1)
        for clip in range(1, clips + 1)
    ]
    _write_lists(folder / "ucfTrainTestlist", orders, classes, groups)
    written = dict(in_processes(_write_clip, orders, workers))
    return tuple(written[place] for place in range(len(orders)))


def write_avi(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write frames ``(T, H, W, 3)`` uint8 as the clips of the archive are: MPEG-4 (XviD) in AVI,
    without sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=Fraction(fps))
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.codec_tag = "XVID"
        video.codec_context.thread_count = 1
        video.codec_context.bit_rate = 4_000_000
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))


def write_series(paths: Sequence[Path], pictures: np.ndarray) -> None:
    """Write pictures ``(T, H, W, 3)``, or grey ``(T, H, W)``, as JPEG files."""
    for path, content in zip(paths, pictures, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path, quality=95)


def motion(number: int, classes: int, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Return flow ``(T - 1, H, W, 2)`` uint8 in the direction of a class, of random speed."""
    angle = np.radians(LARGEST * (2 * number / max(classes - 1, 1) - 1))
    speed = rng.uniform(0.4, 0.8)  # of the 20 pixels that 0 and 255 stand for
    mean = 127.5 + 127.5 * speed * np.array([np.cos(angle), np.sin(angle)])
    count = max(round(look.seconds * look.fps), 2) - 1
    noise = NOISE * rng.standard_normal((count, look.height, look.width, 2))
    return np.asarray((mean + noise).round().clip(0, 255), dtype=np.uint8)


def _write_clip(order: _Order) -> Generated:
    key: tuple[Key, ...] = (order.seed, "ucf101", order.name)
    rng = numpy_stream(*key, "shown")
    own, count = order.classes.index(order.label), len(order.classes)
    seen, moved = (
        own if rng.random() < strength else int(rng.integers(count))
        for strength in (order.signal.picture, order.signal.motion)
    )
    frames = picture(seen, count, order.look, numpy_stream(*key, "picture"))
    single = order.folder / "rawframes" / order.label / order.name
    match order.pictures:
        case "avi":
            path = order.folder / "UCF-101" / order.label / f"{order.name}.avi"
            write_avi(path, frames, order.look.fps)
        case "rawframes":
            write_series(_numbered(single / "img_{:05d}.jpg", frames), frames)
        case "jpegs_256":
            place = order.folder / "jpegs_256" / order.name / "frame{:06d}.jpg"
            write_series(_numbered(place, frames), frames)
    if order.flow is not None:
        flow = motion(moved, count, order.look, numpy_stream(*key, "motion"))
        for i, (u_or_v, x_or_y) in enumerate(zip("uv", "xy", strict=True)):
            if order.flow == "tvl1_flow":
                place = order.folder / "tvl1_flow" / u_or_v / order.name / "frame{:06d}.jpg"
            else:
                place = single / f"flow_{x_or_y}_{{:05d}}.jpg"
            write_series(_numbered(place, flow), flow[..., i])
    return Generated(order.name, order.label, order.group, seen, moved)


def _numbered(place: Path, pictures: np.ndarray) -> list[Path]:
    """Return as many paths as there are pictures, numbered from 1."""
    return [Path(str(place).format(number)) for number in range(1, len(pictures) + 1)]


def _write_lists(
    folder: Path, orders: Sequence[_Order], classes: Sequence[str], groups: int
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {label: number for number, label in enumerate(classes, start=1)}
    _write_lines(
        folder / "classInd.txt", [f"{number} {label}" for label, number in numbers.items()]
    )
    tested = max(groups * 7 // 25, 1)
    for split in (1, 2, 3):
        of_test = range((split - 1) * tested + 1, split * tested + 1)
        train = [o for o in orders if o.group not in of_test]
        test = [o for o in orders if o.group in of_test]
        lines = [f"{o.label}/{o.name}.avi {numbers[o.label]}" for o in train]
        _write_lines(folder / f"trainlist0{split}.txt", lines)
        _write_lines(folder / f"testlist0{split}.txt", [f"{o.label}/{o.name}.avi" for o in test])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode())
