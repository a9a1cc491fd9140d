"""What a git-LFS clone says that its files should be."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from mmbench.data.files import LFS_POINTER
from mmbench.errors import DataError


@dataclass(frozen=True)
class Pointer:
    """SHA-256 and size in bytes of a file that git-LFS keeps."""

    sha256: str
    size: int


def pointers(clone: Path, folders: tuple[str, ...]) -> dict[str, Pointer]:
    """Return the pointers in the last commit of a clone by path, for files in some folders.

    Empty where the folder is no clone. Needs git, and not git-LFS: a pointer is what git itself
    keeps. Raises :class:`DataError` when git is missing or cannot read the clone.
    """
    if not (clone / ".git").exists():
        return {}
    listed = _git(clone, b"", "ls-tree", "-r", "-z", "HEAD", "--", *folders)
    entries = [entry.split(b"\t", 1) for entry in listed.split(b"\0") if entry]
    blobs = [(meta.split()[2], path.decode(errors="surrogateescape")) for meta, path in entries]
    asked = b"".join(name + b"\n" for name, _ in blobs)
    # Sizes first: a clone without git-LFS may hold gigabytes, of which no pointer is a part.
    sizes = _git(clone, asked, "cat-file", "--batch-check=%(objectsize)").split()
    small = [blob for blob, size in zip(blobs, sizes, strict=True) if int(size) < 1024]
    content = _git(clone, b"".join(name + b"\n" for name, _ in small), "cat-file", "--batch")
    found: dict[str, Pointer] = {}
    place = 0
    for _, path in small:
        end = content.index(b"\n", place)
        start, size = end + 1, int(content[place:end].split()[2])
        if (pointer := _parsed(content[start : start + size])) is not None:
            found[path] = pointer
        place = start + size + 1
    return found


def _parsed(text: bytes) -> Pointer | None:
    if not text.startswith(LFS_POINTER):
        return None
    fields = dict(line.split(" ", 1) for line in text.decode().splitlines() if " " in line)
    return Pointer(fields["oid"].removeprefix("sha256:"), int(fields["size"]))


def _git(clone: Path, standard_input: bytes, *words: str) -> bytes:
    try:
        done = subprocess.run(
            ["git", "-C", str(clone), *words], input=standard_input, capture_output=True, check=True
        )
    except FileNotFoundError as error:
        raise DataError(f"{clone} is a git clone and git is not installed; install git") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise DataError(
            f"git cannot read the clone {clone}: {lines[0]}; correct that, or verify a copy of the "
            "files without .git"
        ) from error
    return done.stdout
