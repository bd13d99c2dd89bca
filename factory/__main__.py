"""The command line: joins the commands of the layers. The only module of this package that knows ``train``."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from factory import command
from factory.errors import PopalignError
from train import command as train_command

app = typer.Typer(
    name="popalign",
    help="From prompts to an aligned model: preference pairs by contrast (PopAlign), then DPO. Start with: "
    "popalign run demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
command.add_to(app)
train_command.add_to(app)


def main() -> None:
    """Run a command; an error of ours is one line on standard error and its exit code."""
    errors = os.fdopen(os.dup(2), "w", encoding="utf-8")  # commands send the process's own outputs to a log
    try:
        app()
    except PopalignError as error:
        print(f"popalign: {error}", file=errors, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("popalign: interrupted; what is stored is kept, the same command goes on from there", file=errors)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - a mistake of ours; the process's own outputs are a log by now
        traceback.print_exception(error, file=errors)
        sys.exit(1)


if __name__ == "__main__":
    main()
