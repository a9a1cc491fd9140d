"""What views of frames and spectrograms cost, in batches, over one picture or clip at a time.

    python benchmarks/augment.py
    python benchmarks/augment.py --device cuda --clips 64

Frames: mmbench's views against torchvision's transforms in a loop over the frames, as a data loader
runs them, on tensors and on PIL pictures; `at once` resizes all frames of a batch by matrix
products, as mmbench does on a GPU. Sound: each front end on a batch, and the same clip after clip.
Variants take turns, and each shows the median of its repeats. The line `to compare with` is a
training step of ResNet-18 on such frames.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import resnet18
from torchvision.transforms import v2

from mmbench.data import visual
from mmbench.data.crops import together
from mmbench.data.frontends import FRONT_ENDS, build_front_end
from mmbench.seeds import numpy_stream, torch_stream

HEIGHT, WIDTH = 256, 341
"""Of a stored frame of CREMA-D."""
SECONDS, RATE = 4.0, 16000
Work = Callable[[], object]


def milliseconds(works: dict[str, Work], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median time of each; they take turns, and their first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            settle(device)
            began = time.perf_counter()
            work()
            settle(device)
            if repeat:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(taken) for name, taken in times.items()}


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(title: str, times: dict[str, float], per: int) -> None:
    reference = next(iter(times.values()))
    print(f"\n{title:<40}{'ms each':>10}{'of the first':>14}")
    for name, taken in times.items():
        print(f"{name:<40}{taken / per:>10.3f}{taken / reference:>14.2f}")


def views(clips: int, frames_per_clip: int, repeats: int, device: torch.device) -> None:
    shape = (clips, frames_per_clip, HEIGHT, WIDTH, 3)
    # Coarse noise, as smooth as a photograph, so that nothing is special about its pixels.
    coarse = numpy_stream("augment").integers(0, 256, (*shape[:2], 16, 22, 3), dtype=np.uint8)
    large = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :HEIGHT, :WIDTH]
    frames = torch.from_numpy(np.ascontiguousarray(large)).to(device)
    single = list(frames.flatten(0, 1).permute(0, 3, 1, 2))
    pictures = [Image.fromarray(frame) for frame in large.reshape(-1, HEIGHT, WIDTH, 3)]
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(visual.MEAN, visual.DEVIATION)]
    crop_and_flip = [v2.RandomResizedCrop(visual.SIZE), v2.RandomHorizontalFlip()]
    on_tensors = v2.Compose([*crop_and_flip, *end])
    on_pil = v2.Compose([*crop_and_flip, v2.PILToTensor(), *end])
    train, test = visual.TrainViews().to(device), visual.TestViews().to(device)
    generator = torch_stream("augment", device=device)
    resize = v2.Compose([v2.Resize((visual.SIZE, visual.SIZE)), *end])

    def at_once() -> Tensor:
        with patch.object(visual, "resized", together):
            result: Tensor = train(frames, generator)
        return result

    count = clips * frames_per_clip
    training: dict[str, Work] = {
        "torchvision, a loop over tensors": lambda: torch.stack([on_tensors(x) for x in single]),
        "torchvision, a loop over PIL pictures": lambda: torch.stack([on_pil(x) for x in pictures]),
        "mmbench": lambda: train(frames, generator),
        "mmbench, at once": at_once,
    }
    show(f"training views, {count} frames", milliseconds(training, repeats, device), count)
    evaluation: dict[str, Work] = {
        "torchvision, a loop over tensors": lambda: torch.stack([resize(x) for x in single]),
        "mmbench": lambda: test(frames),
    }
    show(f"test views, {count} frames", milliseconds(evaluation, repeats, device), count)
    network = resnet18().to(device)
    x = train(frames[:2], generator).flatten(0, 1)

    def step() -> None:
        network.zero_grad()
        network(x).sum().backward()

    show("to compare with", milliseconds({"a step of ResNet-18": step}, 3, device), len(x))


def sounds(clips: int, repeats: int, device: torch.device) -> None:
    for name in FRONT_ENDS:
        front_end = build_front_end(name, RATE).to(device)
        samples = int(SECONDS * front_end.rate)
        noise = numpy_stream("augment", name).normal(0, 0.1, (clips, samples))
        waveform = torch.from_numpy(noise).float().to(device)
        lengths = torch.full((clips,), samples, device=device)

        def one_by_one(front_end: torch.nn.Module = front_end, x: Tensor = waveform) -> Tensor:
            return torch.cat([front_end(clip.unsqueeze(0)) for clip in x])

        def batch(
            front_end: torch.nn.Module = front_end, x: Tensor = waveform, ends: Tensor = lengths
        ) -> Tensor:
            result: Tensor = front_end(x, ends)
            return result

        works: dict[str, Work] = {"clip after clip": one_by_one, "mmbench": batch}
        show(f"{name}, {clips} clips", milliseconds(works, repeats, device), clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    parser.add_argument("--clips", type=int, default=16, help="in a batch")
    parser.add_argument("--frames", type=int, default=3, help="of a clip")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    views(arguments.clips, arguments.frames, arguments.repeats, device)
    sounds(arguments.clips, arguments.repeats, device)


if __name__ == "__main__":
    main()
