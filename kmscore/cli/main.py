"""The `kms` command: finds the command that is asked for, and tells what went wrong. Everything heavy is imported when it is needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

import kmscore
from kmscore.cli.engine import takes_service
from kmscore.errors import KmsError
from kmscore.operations import GROUPS, OPERATIONS

# name -> (module in kmscore.cli, one line of help): `kms --help` imports none of them.
TOOLS = {
    "serve": ("serve", "Serve on KMS_LISTEN, and do due work on time."),
    "encrypt-file": ("files", "Encrypt a file of any size."),
    "decrypt-file": ("files", "Decrypt what encrypt-file made."),
    "import-key": ("material", "Bring key material of your own, from a file."),
    "profile": ("profiles", "Services that --profile names."),
    "user": ("access", "Users of a service, and what they may do."),
    "access-key": ("access", "What users sign with."),
    "policy": ("access", "Who could do what."),
    "rotate": ("tools", "Rotate a key now."),
    "tick": ("tools", "Do what is due: rotations, deletions, the end of imported material."),
    "workers": ("tools", "Processes of the scheduler, and how due work stands."),
    "history": ("tools", "Every event of a key."),
    "reconcile": ("tools", "Settle interrupted work; compare token and store with the events."),
    "migrate": ("migrate", "Move the events into PostgreSQL, or back."),
    "doctor": ("tools", "Examine the home, and say what to do."),
}
INTERRUPTED = 130  # what a shell makes of Ctrl-C


class Kms(click.Group):
    """Commands are made when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*TOOLS, *OPERATIONS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in TOOLS:
            command: click.Command = getattr(import_module(f"kmscore.cli.{TOOLS[cmd_name][0]}"), cmd_name.replace("-", "_"))
            return command
        if cmd_name in OPERATIONS:
            from kmscore.cli.operations import operation_command

            return operation_command(OPERATIONS[cmd_name])
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """An operation in the wrong case gets a hint."""
        if args and args[0] not in TOOLS and args[0] not in OPERATIONS:
            near = [name for name in OPERATIONS if name.lower() == args[0].lower()]
            if near:
                ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in (*TOOLS, *OPERATIONS))
        sections = {"Tools": [(name, text) for name, (_, text) in TOOLS.items()]}
        for group, title in GROUPS.items():
            sections[title] = [(name, operation.help) for name, operation in OPERATIONS.items() if operation.group == group]
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows], col_max=width)


@click.group(cls=Kms, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(kmscore.__version__, prog_name="kms")
@click.option("--traceback", is_flag=True, help="Show where an unexpected error comes from.")
@click.pass_obj
@takes_service
def cli(options: dict[str, bool], traceback: bool) -> None:
    """A key management service: keys in a token, every change an event.

    An operation of the API is called by its name and answers the wire's JSON:

        kms CreateKey --ProtectionLevel HSM --Description "Key1 in Managed HSM"
    """
    options["traceback"] = traceback


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; answers its exit status: 0, 1 after an error, 2 when it was called wrongly."""
    options = {"traceback": False}
    try:
        status = cli.main(arguments, prog_name="kms", standalone_mode=False, obj=options)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KmsError as error:
        seen = f" (RequestId {error.request_id})" if error.status >= 500 and error.request_id else ""  # by which a log is searched
        click.echo(f"{error.code}: {error.message}{seen}", err=True)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; leave nothing for the interpreter to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # a fault of ours, or of the machine; its text may hold what must not be shown
        if options["traceback"]:
            raise
        reason = f": {error.strerror}" if isinstance(error, OSError) else ""
        click.echo(f"InternalFailure: unexpected {type(error).__name__}{reason}; kms --traceback … shows where", err=True)
    return 1
