"""Works off a queue of jobs in several processes, and keeps each result as soon as it is there."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from penstock.training.errors import RunError
from records import Store
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Job = dict[str, Any]
Work = Callable[[Job], dict[str, Any]]


def _die_with_parent() -> None:
    """End this process when its parent ends, however that happens."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _serve(connection: multiprocessing.connection.Connection, work: Work, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    use_threads(threads)
    while (job := connection.recv()) is not None:
        try:
            connection.send((job, work(job), None))
        except Exception:
            connection.send((job, None, traceback.format_exc()))


def use_threads(threads: int) -> None:
    """Let every library of this process compute with so many threads."""
    import penstock
    import torch

    penstock.set_num_threads(threads)
    torch.set_num_threads(threads)


class _Worker:
    """A process that takes one job after the other."""

    def __init__(self, work: Work, threads: int) -> None:
        # Not forked: the libraries' threads would not survive that.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, threads), daemon=True)
        self.process.start()
        theirs.close()


def _describe(job: Job) -> str:
    return f"{job['model']} on {job['data']}, seed {job['seed']}, fold {job['fold'] + 1}"


def run(
    jobs: Iterable[Job],
    work: Work,
    store: Store,
    *,
    processes: int,
    threads: int = 1,
    console: Console | None = None,
) -> None:
    """Do all jobs that the store has no record of, in their order.

    Args:
        jobs: dicts with the fields of `records.KEY`.
        work: called in a process of its own; returns a job's record.
        store: takes the records.
        processes: how many jobs run at once.
        threads: of each process.
        console: where to show how far it is.

    Raises:
        RunError: a job failed, or its process was killed; other jobs' records are kept.
    """
    jobs = list(jobs)
    waiting = [job for job in jobs if not store.has(job)]
    if not waiting:
        return
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)  # for the processes, before they load a library
    console = console or Console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    workers = [_Worker(work, threads) for _ in range(min(processes, len(waiting)))]
    queue = iter(waiting)
    busy: dict[Any, _Worker] = {}

    def feed(worker: _Worker) -> None:
        job = next(queue, None)
        if job is not None:
            worker.connection.send(job)
            busy[worker.connection] = worker

    try:
        with bar:
            task = bar.add_task("records", total=len(jobs), completed=len(jobs) - len(waiting))
            for worker in workers:
                feed(worker)
            while busy:
                for ready in multiprocessing.connection.wait(list(busy)):
                    worker = busy.pop(ready)
                    try:
                        job, record, error = worker.connection.recv()
                    except EOFError:
                        worker.process.join()
                        code = worker.process.exitcode
                        raise RunError(
                            f"a process was ended from outside (status {code})"
                        ) from None
                    if error is not None:
                        raise RunError(f"{_describe(job)} failed:\n{error}")
                    store.add(record)
                    bar.update(task, advance=1)
                    if not console.is_terminal:
                        shown = record.get("accuracy", record.get("dev_accuracy"))
                        line = f"{len(store.records)}: {_describe(job)}: {shown}"
                        console.print(line, highlight=False, soft_wrap=True)
                    feed(worker)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
