"""Submit a recipe to a Ray cluster as a job and follow its log: ``python -m cluster.submit RECIPE``.

The job runs in an uploaded copy of this checkout, with the libraries that the cluster's Python has. The run directory
is not part of the upload: it must lie on storage that all nodes see under the same path.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from aiohttp import ClientError
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from factory.cookbook import built_in, order
from factory.errors import InputError, PopalignError, RunError
from factory.session import PACKAGE_ROOT

# Beside what .gitignore names, which Ray leaves out too. Anchored by "/", so that a package's folder `runs` would stay.
EXCLUDES = ("/.git", "/.venv", "/runs", "/build", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
# A job's metadata names its run directory under this key.
RUN = "popalign_run"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    help="Submit a recipe to a Ray cluster and follow the job's log. Submit the same again to resume: what is stored "
    "in the run directory is not made again. Relative paths in the recipe are those of the project's folder."
)
def submit(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A built-in recipe, or a YAML file: one below the project's folder is uploaded with it, any other "
            "must be readable under its absolute path on the cluster's head node."
        ),
    ],
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard and job server.")
    ] = "http://127.0.0.1:8265",
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, such as run=/nfs/runs/mine."),
    ] = [],  # noqa: B006 - typer copies it
    command: Annotated[Literal["run", "generate"], typer.Option(help="All steps, or only the completions.")] = "run",
    submission_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Default: the run's name, the time and four random digits.")
    ] = None,
    python: Annotated[
        str, typer.Option(help="The Python on the head node: one that Ray's PATH there finds, or a path.")
    ] = "python",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log until the job ends.")] = True,
) -> None:
    if not (PACKAGE_ROOT / "pyproject.toml").is_file():
        raise InputError(f"submit uploads the project's checkout, and {PACKAGE_ROOT} is none; run it in a checkout")
    path = recipe_on_cluster(recipe)
    with contextlib.chdir(PACKAGE_ROOT):
        run = Path(order(path, set_).recipe.run).absolute()
    client = connect(address)
    identity = submission_id or default_id(run)
    with one_line(InputError, f"the cluster at {address} did not take the job"):
        refuse_twice(client, run)
        client.submit_job(
            # The run is given absolute: the job's own directory is a copy of the project that Ray deletes after it.
            entrypoint=entrypoint(path, [*set_, f"run={json.dumps(str(run))}"], command=command, python=python),
            submission_id=identity,
            runtime_env={"working_dir": str(PACKAGE_ROOT), "excludes": list(EXCLUDES)},
            metadata={RUN: str(run)},
        )
    typer.echo(f"job {identity} at {address}; run directory on the cluster: {run}")
    again = f"to follow it: ray job logs {shlex.quote(identity)} --follow --address {shlex.quote(address)}"
    if not wait:
        typer.echo(again)
        return
    try:
        with one_line(RunError, f"lost the job's log, and the job may run on; {again}"):
            asyncio.run(follow(client, identity))
            code = exit_code(client, identity)
    except KeyboardInterrupt:
        typer.echo(f"\nsubmit: the job runs on; {again}", err=True)
        code = 130
    raise typer.Exit(code)


def recipe_on_cluster(recipe: str) -> str:
    """How the job names the recipe: by its built-in name, its place in the upload, or its absolute path."""
    if recipe in built_in():
        return recipe
    path = Path(recipe).resolve()
    # Excluded from the upload, but a run's own recipe.yaml is a good thing to submit again.
    if path.is_relative_to(PACKAGE_ROOT) and not path.is_relative_to(PACKAGE_ROOT / "runs"):
        return str(path.relative_to(PACKAGE_ROOT))
    # A misspelt name is left to the cookbook, which knows what is near.
    return str(path) if path.exists() else recipe


def entrypoint(recipe: str, overrides: Sequence[str], *, command: str, python: str) -> str:
    """The job's shell command."""
    words = [python, "-m", "factory", command, recipe]
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)


def default_id(run: Path) -> str:
    """An id that says which run it is; Ray refuses one that was used before."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", run.name) or "run"
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server.

    Raises:
        InputError: the address is no URL, nothing that is Ray answers there, or it asks for a token.
    """
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--address {address}: expected a URL, such as http://127.0.0.1:8265")
    # Ray's client prefers these two to the address that it is given.
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    way_out = "start one with `ray start --head`, or forward its port with `ray dashboard cluster/local.yaml`"
    with one_line(InputError, f"no Ray job server answers at {address}; {way_out}"):
        try:
            return JobSubmissionClient(address)
        except AuthenticationError:
            # Ray 2.60 makes a token at the first `ray.init()`; `ray start` then asks for it, and Ray's job client does
            # not send it by itself. Nor do we: the address may be anybody's.
            raise InputError(
                f"the cluster at {address} asks for its token; set RAY_AUTH_MODE=token and have the token in "
                "~/.ray/auth_token, or in a file that RAY_AUTH_TOKEN_PATH names"
            ) from None


@contextlib.contextmanager
def one_line(kind: type[PopalignError], text: str) -> Iterator[None]:
    """Whatever goes wrong between this machine and the job server, as one line."""
    try:
        yield
    except PopalignError:
        raise
    # KeyError: what answers sends JSON and is no Ray.
    except (OSError, RuntimeError, ValueError, KeyError, ClientError, RayError) as error:
        # Ray's server answers with whole tracebacks, quoted in JSON: the line that names an error says what happened.
        lines = str(error).replace("\\n", "\n").strip().splitlines() or [type(error).__name__]
        what = next((line for line in reversed(lines) if re.match(r"[\w.]+Error: ", line)), lines[-1])
        raise kind(f"{text} ({what.strip()})") from None


def refuse_twice(client: JobSubmissionClient, run: Path) -> None:
    """Two jobs must not write into one run directory: after a Ctrl-C the first one still runs."""
    for job in client.list_jobs():
        if (job.metadata or {}).get(RUN) == str(run) and not job.status.is_terminal():
            which = f"{job.submission_id} --address {client.get_address()}"
            raise InputError(
                f"job {job.submission_id} is at work on {run}; to follow it: ray job logs {which} --follow; "
                f"to end it: ray job stop {which}"
            )


async def follow(client: JobSubmissionClient, identity: str) -> None:
    """Print the job's log until the job ends."""
    async for text in client.tail_job_logs(identity):
        typer.echo(text, nl=False)


def exit_code(client: JobSubmissionClient, identity: str) -> int:
    """0 for a job that succeeded, 2 where the factory found the input bad, 1 for any other end."""
    job: Any = client.get_job_info(identity)
    if job.status == JobStatus.SUCCEEDED:
        return 0
    typer.echo(f"submit: job {identity} ended as {job.status}", err=True)
    return 2 if job.driver_exit_code == 2 else 1


def main() -> None:
    """Submit; an error of ours is one line on standard error and its exit code."""
    logging.disable(logging.WARNING)  # Ray tells what it packs, from loggers with levels of their own
    try:
        app()
    except PopalignError as error:
        typer.echo(f"submit: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
