"""The commands. Everything but click is imported inside them, so that ``--help`` stays quick."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click
from click_default_group import DefaultGroup

from gradlint import __version__
from gradlint.errors import UsageProblem

WRONG_USAGE = 2
INTERRUPTED = 130


class _Commands(DefaultGroup):  # type: ignore[misc]  # click-default-group has no types
    """``gradlint PATH`` is ``gradlint check PATH``; a first argument after ``--`` is a path whatever its name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {*self.commands, *self.get_help_option_names(ctx), "--version"}
        if args and args[0] not in own:
            args = [self.default_cmd_name, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def _listed(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """``--select GL1,GL201 --select GL301`` as one tuple."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


@click.group(
    cls=_Commands,
    default="check",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "--version", message="%(prog)s %(version)s", prog_name="gradlint")
def _cli() -> None:
    """Find what quietly breaks the training of a PyTorch model, and prove it by an experiment.

    `gradlint PATH...` is short for `gradlint check PATH...`; `gradlint check --help` shows its options.
    """


cli: click.Group = _cli


@cli.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--select", multiple=True, callback=_listed, help="Rules to run: codes, prefixes or names, by commas.")
@click.option("--ignore", multiple=True, callback=_listed, help="Rules to leave out.")
@click.option("--extend-select", multiple=True, callback=_listed, help="Rules to add to those selected.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="Form of the report.")
@click.option("--output", metavar="FILE", help="Write the report to FILE.")
@click.option("--fail-on", type=click.Choice(["any", "confirmed"]), help="Findings that give status 1.  [any]")
@click.option("--exit-zero", is_flag=True, help="Give status 0 also where there are findings.")
@click.option("--statistics", is_flag=True, help="Count the findings of each rule.")
@click.option("--show-refuted", is_flag=True, help="List also what an experiment refuted.")
@click.option("--fix", is_flag=True, help="Apply the fixes that were seen to work and are safe.")
@click.option("--unsafe-fixes", is_flag=True, help="With --fix or --diff: also fixes that may change more.")
@click.option("--diff", is_flag=True, help="Print the fixes as a diff and write nothing.")
@click.option("--probe/--no-probe", default=None, help="Run experiments.  [probe]")
@click.option("--probe-timeout", type=click.FloatRange(0, min_open=True), help="CPU seconds per experiment.  [5]")
@click.option("--probe-budget", type=click.FloatRange(0, min_open=True), help="Seconds for all experiments.  [300]")
@click.option("--python", metavar="PATH", help="The Python with torch that runs the experiments.")
@click.option("--trust-project", is_flag=True, help="Let the linted project name an interpreter and rules.")
@click.option("--stdin-filename", metavar="NAME", help="With `-`: the name of what is read from stdin.")
@click.option("--jobs", "-j", type=click.IntRange(1), help="Processes to use.  [all processors]")
@click.option("--no-cache", is_flag=True, help="Neither read nor write the cache.")
def check(paths: tuple[str, ...], **options: Any) -> NoReturn:
    """Lint files and folders (the current one if none is given; `-` is stdin).

    Exit status: 0 nothing that counts, 1 findings, 2 wrong usage or a crash.
    """
    from gradlint.checking import Request, check

    sys.exit(check(Request(paths=paths, **options)))


@cli.command()
@click.argument("target", metavar="FILE.py:MODEL")
@click.option("--input", "inputs", multiple=True, metavar="32,3,64,64", help="Shape of an input; once for each.")
@click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE", help="An argument of the constructor.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="Form of the report.")
@click.option("--probe-timeout", type=click.FloatRange(0, min_open=True), help="CPU seconds.  [5]")
@click.option("--python", metavar="PATH", help="The Python with torch that runs the experiment.")
@click.option("--trust-project", is_flag=True, help="Let the project name an interpreter.")
def probe(target: str, **options: Any) -> NoReturn:
    """Show the gradient profile of one model, layer by layer.

    MODEL is a class, a function that returns a model, or a variable of the file. Exit status: 0 measured, 2 not.
    """
    from gradlint.profile import Request, profile

    sys.exit(profile(Request(target=target, **options)))


@cli.command()
@click.argument("code")
def explain(code: str) -> None:
    """Show the page of a rule, by its code or name."""
    from gradlint.pages import page

    click.echo(page(code, terminal=sys.stdout.isatty() and not os.environ.get("NO_COLOR")), nl=False)


@cli.command()
def rules() -> None:
    """List the rules."""
    from gradlint.pages import overview

    click.echo(overview(), nl=False)


def main() -> NoReturn:
    """Run the command line. Errors become one line on stderr."""
    try:
        cli.main(prog_name="gradlint", standalone_mode=False)
        sys.exit(0)
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        click.echo(help_wanted.ctx.get_help() if help_wanted.ctx else "", err=True)
        sys.exit(WRONG_USAGE)
    except click.UsageError as error:
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        _fail(f"{error.format_message()}{where}")
    except (click.ClickException, UsageProblem) as error:
        _fail(error.format_message() if isinstance(error, click.ClickException) else str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("gradlint: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # the last resort: a crash is one line too, the traceback on request
        if os.environ.get("GRADLINT_TRACEBACK"):
            raise
        _fail(f"internal error, please report it: {_where(error)}: GRADLINT_TRACEBACK=1 shows more")


def _where(error: Exception) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" at {os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}" if frame else ""
    return f"{type(error).__name__}: {error}{place}"


def _fail(message: str) -> NoReturn:
    """One line on stderr, whatever control characters a path or a configuration held."""
    from gradlint.report.style import visible

    click.echo(f"gradlint: {visible(' '.join(message.split()))}", err=True)
    sys.exit(WRONG_USAGE)
