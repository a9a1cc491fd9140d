"""Work on clips in several processes that end when the one that started them does."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from mmbench.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")
WAITING = 4
"""Tasks handed out for each process, so that none waits for work and few results are held."""


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int | None
) -> Iterator[tuple[int, Result]]:
    """Yield the place and the result of each task as it is done, not in order.

    One worker is this process itself; None takes as many as there are usable cores. ``work`` is a
    function of a module. Raises :class:`DataError` when a process is killed.
    """
    workers = min(workers or usable_cores(), len(tasks))
    if workers <= 1:
        for place, task in enumerate(tasks):
            yield place, work(task)
        return
    # Not plain forks: this process has threads of torch. The server imports once, for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    queue = iter(enumerate(tasks))
    running: dict[Future[Result], int] = {}
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        while True:
            while len(running) < WAITING * workers and (item := next(queue, None)) is not None:
                running[pool.submit(work, item[1])] = item[0]
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes clips was killed, perhaps for want of memory; run the same "
            "command again, which goes on from there, or with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Make this process end when the one that started it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
