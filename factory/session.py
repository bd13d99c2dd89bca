"""The Ray session: the cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import ray
from ray.data import DataContext

from factory.errors import RunError
from factory.plan import Node

T = TypeVar("T")
TASKS_AT_ONCE = 512
SERVERS = {"raylet", "gcs_server"}
PACKAGE_ROOT = Path(__file__).resolve().parent.parent


def here(cpus: int | None = None) -> list[Node]:
    """This machine as one node, looked at without starting Ray; ``cpus`` overrides its logical CPUs."""
    gpus = len([device for device in Path("/dev").glob("nvidia*") if device.name[6:].isdigit()])
    return [Node(float(cpus or len(os.sched_getaffinity(0))), float(gpus))]


def cluster_address() -> str | None:
    """The cluster that commands use, from ``RAY_ADDRESS``; a submitted job finds it set."""
    return os.environ.get("RAY_ADDRESS") or None


@contextmanager
def session(logs: Path, *, cpus: int | None = None) -> Iterator[list[Node]]:
    """Connect to the cluster of ``RAY_ADDRESS`` or start Ray on this machine; gives the nodes that are there.

    ``cpus`` is the number of logical CPUs of an own Ray, by default the cores that this process may use. Third-party
    log lines are kept off the terminal; at the end the workers' logs of an own session are copied to ``logs``.
    """
    # Ray runs workers at niceness 15, below everything else on the machine; the engines live in workers and their
    # threads wait for each other at every layer, so one thread that is put off holds up all.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # An engine's own processes must not outlive the worker that started them: they hold cores, or a GPU's memory.
    os.environ.setdefault("RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper", "1")
    address = cluster_address()
    if ray.is_initialized():
        yield nodes()
        return
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
        else:
            ray.init(
                address="local",  # without it Ray joins a cluster that somebody has started on this machine
                num_cpus=cpus or len(os.sched_getaffinity(0)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                # Workers import our four packages although the command may run in any directory.
                runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise RunError(f"cannot {f'reach Ray at {address}' if address else 'start Ray here'}: {first}") from None
    logs_of_session = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    try:
        yield nodes()
    finally:
        ray.shutdown()
        if not address and logs.is_dir():  # a run that was refused has left no directory, and none is made here
            with contextlib.suppress(OSError):  # a full disk has been told of by what failed before
                _keep(logs_of_session, logs / "ray")


def yield_cores(engines: set[int]) -> None:
    """Let Ray's own processes on this machine wait for engines that fill its cores; ``engines`` are the process ids of
    the replicas.

    An engine's threads meet at every layer, so that what interrupts one holds up all. Some nine idle processes of Ray
    wake up a hundred times a second each: on two cores that cost 19 % of the tokens per second, and 6 % where they
    yield. The raylet and the GCS stay as they are, so that nothing is taken for dead. Only for a Ray of our own.
    """
    with contextlib.suppress(psutil.Error, OSError):
        spared = {child.pid for pid in engines for child in psutil.Process(pid).children(recursive=True)} | engines
        mine = psutil.Process()
        for process in [mine, *mine.children(recursive=True)]:
            if process.pid not in spared and process.name() not in SERVERS:
                _schedule(process, os.SCHED_IDLE)


def take_cores() -> None:
    """Make this process an ordinary one again, where the system allows it."""
    with contextlib.suppress(psutil.Error, OSError):
        _schedule(psutil.Process(), os.SCHED_OTHER)


def _schedule(process: psutil.Process, policy: int) -> None:
    for thread in process.threads():
        os.sched_setscheduler(thread.id, policy, os.sched_param(0))


def gathered(start: Callable[[T], ray.ObjectRef], items: Sequence[T], progress: Callable[[int], None]) -> list[Any]:
    """The results of one task for each item, in order; ``start`` submits one.

    At most ``TASKS_AT_ONCE`` are submitted and not done: Ray looks at all that it is asked to wait for, so that waiting
    for tens of thousands at once takes hours.
    """
    results: list[Any] = [None] * len(items)
    pending: dict[ray.ObjectRef, int] = {}
    left = deque(enumerate(items))
    while left or pending:
        while left and len(pending) < TASKS_AT_ONCE:
            i, item = left.popleft()
            pending[start(item)] = i
        (done,), _ = ray.wait([*pending], num_returns=1)
        results[pending.pop(done)] = ray.get(done)
        progress(len(items) - len(left) - len(pending))
    return results


def quiet_data() -> None:
    """Keep Ray Data's own reports off the terminal, and its limits off our work."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A large model may load for longer than the default of half an hour without any block moving.
    context.execution_no_progress_timeout_s = -1
    # An error that ends the run from inside a pool arrives as what it is, not as "UDF failed" without its cause.
    context.raise_original_map_exception = True


def nodes() -> list[Node]:
    """The living nodes with their logical resources."""
    return [
        Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def _python_path() -> str:
    return os.pathsep.join([str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _keep(source: Path, target: Path) -> None:
    """Copy what Ray's processes have logged, without the empty files."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.rglob("*"):
        if file.is_file() and file.stat().st_size and file.suffix in {".log", ".err", ".out"}:
            shutil.copyfile(file, target / file.name)
