"""Files as users have them: judged by content, hashed, written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmbench.data.problem import Problem
from mmbench.errors import DataError

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
CHUNK = 1 << 20


class FileError(DataError):
    """A :class:`Problem` with a file, raised: ``path: what; mend``."""

    def __init__(self, problem: Problem) -> None:
        super().__init__("; ".join(filter(None, (f"{problem.path}: {problem.what}", problem.mend))))
        self.problem = problem


def inspect(path: Path) -> Problem | None:
    """Return why a file cannot hold data, whatever its name says, or None.

    Found by content: a missing, unreadable or empty file, a git-LFS pointer, a web page saved in
    place of the data, a gzip stream that is cut or damaged, a zip archive (``.npz``) that is cut.
    """
    try:
        if path.is_dir():
            return Problem(str(path), "is a folder, not a file", "name the file in it")
        if not path.exists():
            return Problem(str(path), "does not exist", "check the path, or download the file")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        return Problem(str(path), f"cannot be read: {error.strerror}", "check its permissions")
    if not head:
        return Problem(str(path), "is empty", "download or write it again")
    if head.startswith(LFS_POINTER):
        what = "is a git-LFS pointer, not the data"
        return Problem(str(path), what, "run `git lfs pull` in its repository")
    if _is_web_page(head):
        what = "is a web page, not the data"
        return Problem(str(path), what, "download the file itself, not the page that links to it")
    if head.startswith(GZIP_MAGIC):
        return _inspect_gzip(path)
    if head.startswith(ZIP_MAGIC) and not zipfile.is_zipfile(path):
        return Problem(str(path), "is cut: its zip archive has no end", "download it again")
    return None


def _is_web_page(head: bytes) -> bool:
    """Say whether a file begins as HTML, or as the XML error message of a storage service."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<?xml"):
        return b"<html" in text or b"<error>" in text
    return text.startswith((b"<!doctype html", b"<html", b"<head"))


def _inspect_gzip(path: Path) -> Problem | None:
    try:
        with gzip.open(path, "rb") as stream:
            while stream.read(CHUNK):
                pass
    except EOFError:
        return Problem(str(path), "is cut: its gzip stream ends early", "download it again")
    except (OSError, zlib.error):
        return Problem(str(path), "is damaged: its gzip stream is not valid", "download it again")
    return None


def require_sound(path: Path) -> None:
    """Raise :class:`FileError`, a ``DataError``, with what :func:`inspect` finds wrong."""
    if problem := inspect(path):
        raise FileError(problem)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write a file to; it takes the name at the end.

    A reader never sees half a file: after an error the temporary file is removed, and what stood
    under ``path`` stays. The temporary path keeps the suffix, by which some writers choose a
    format. Raises :class:`DataError` when the place cannot be written or is full; errors of the
    block about other files pass through.
    """
    temporary = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if not _concerns(error, path, temporary):
            raise
        raise DataError(_cannot_write(path, error)) from error
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder that data are prepared into for this process; what a killed one left half
    written there is removed.

    Raises :class:`DataError` when another process holds it, or when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(_cannot_write(folder, error)) from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in [*folder.glob("*/.partial-*"), *folder.glob(".partial-*")]:
                leftover.unlink()
        except BlockingIOError as error:
            raise DataError(
                f"{folder} is being written by another `mmbench data prepare`; wait for it"
            ) from error
        except OSError as error:
            raise DataError(_cannot_write(folder, error)) from error
        yield
    finally:
        os.close(held)


def _concerns(error: OSError, path: Path, temporary: Path) -> bool:
    """Say whether an error is about writing ``path``: a failed write names no file."""
    if error.filename is None:
        return True
    place = Path(os.fsdecode(error.filename))
    return place in (path, temporary) or place in path.parents


def _cannot_write(path: Path, error: OSError) -> str:
    reason, mend = error.strerror or str(error), "choose a folder you can write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, mend = "no space left", "free some, or write elsewhere"
    return f"cannot write {path}: {reason}; {mend} (--cache or MMBENCH_CACHE)"


def cache_root() -> Path:
    """Return where prepared data go: ``$MMBENCH_CACHE``, else ``mmbench`` in the user's cache
    folder (``$XDG_CACHE_HOME``, else ``~/.cache``)."""
    if chosen := os.environ.get("MMBENCH_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmbench"
