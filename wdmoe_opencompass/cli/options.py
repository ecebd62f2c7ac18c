"""What every command of `wdmoe` shares: its options and their completion, its examples, and how it ends.

Exit codes: 0 fine, 1 a check failed, 2 bad input, 130 interrupted. Bad input, of whatever kind, is one sentence on
standard error, with `--json` too: standard output then stays empty.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from .._util.number_text import decimal
from .._util.tolerant_stdout import make_stdout_tolerant
from ..errors import WdmoeError, pip_install, unknown_name
from .console import print_aside, print_error

if TYPE_CHECKING:
    from ..channel.profile import ChannelProfile

CHECK_FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # the last as a shell reports the signal
EXIT_CODES = "Exit codes: 0 fine, 1 a check failed, 2 bad input (one sentence says what), 130 interrupted."

# The names that options accept, without importing the registries: tests compare both.
ALLOCATOR_NAMES = ("uniform", "slsqp", "optimal")
SCOPE_NAMES = ("layer", "pass")
OBJECTIVE_NAMES = ("latency", "transfers")
DTYPE_NAMES = ("auto", "float32", "float16", "bfloat16")
MIXTRAL_HIDDEN_SIZE, MIXTRAL_FFN_SIZE = 4096, 14336  # those of latency.ExpertShape()

# The commands that `pip install wdmoe_opencompass` alone cannot run: the extra of each, and what it brings.
EXTRA_OF_COMMAND = {
    "plan": "opencompass",
    "verify": "opencompass",
    "calibrate": "opencompass",
    "route": "torch",
    "simulate": "torch",
    "testbed": "testbed",
}
BROUGHT_BY_EXTRA = {"opencompass": "OpenCompass and torch", "torch": "torch", "testbed": "gRPC, transformers and torch"}

ClickError: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]  # typer ships its own copy of click, or not


class Format(StrEnum):
    """How tables are printed."""

    md = "md"
    csv = "csv"
    tex = "tex"
    json = "json"


def examples(*lines: str) -> str:
    """The end of a command's help: commands that can be copied, one a line (each is parsed by a test)."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Completion by a fixed list of names."""
    return lambda incomplete: [name for name in known if name.startswith(incomplete)]


def profile_names(incomplete: str) -> list[str]:
    """Completion by the shipped channel profiles."""
    from ..channel.profile import list_profiles

    return [name for name in list_profiles() if name.startswith(incomplete)]


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead.")]
Formatted = Annotated[
    Format | None,
    typer.Option("--format", help="Print the files' own text: Markdown (also what a pipe gets), CSV, LaTeX, JSON."),
]
PROFILE_HELP = "Channel profile: a shipped one's name, or a file."
ProfileArgument = Annotated[str, typer.Argument(help=PROFILE_HELP, autocompletion=profile_names)]
Allocator = Annotated[
    str, typer.Option(help=f"One of: {', '.join(ALLOCATOR_NAMES)}.", autocompletion=names(ALLOCATOR_NAMES))
]
Scope = Annotated[
    str,
    typer.Option(
        help="layer: one bandwidth split per layer; pass (hindsight): one for all layers of a forward pass, which "
        "needs the loads of layers that are not routed yet.",
        autocompletion=names(SCOPE_NAMES),
    ),
]
MAX_SIZE = (1 << 31) - 1  # as in a trace
HiddenSize = Annotated[int, typer.Option(min=1, max=MAX_SIZE, help="Hidden size m.")]
FfnSize = Annotated[int, typer.Option(min=1, max=MAX_SIZE, help="FFN hidden size m_h.")]


def format_of(form: Format | None, as_json: bool) -> Format | None:
    """`--json` is `--format json`; None where neither was given: Markdown, drawn on a terminal."""
    if as_json and form not in (None, Format.json):
        raise WdmoeError(f"--json and --format {form} exclude each other")
    return Format.json if as_json else form


def open_profile(name: str | Path) -> ChannelProfile:
    """Load a channel profile, and note its unusual values on standard error."""
    from ..channel.profile import load_profile

    profile = load_profile(name)
    for sentence in profile.unusual_values:
        print_aside(f"note: channel profile {profile.name}: {sentence}")
    return profile


def _read_decimals(parameter: Any) -> None:
    """Make a numeric option accept decimal notation only: Python also reads `1_000`, `nan` and digits of any script."""
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    name = getattr(getattr(parameter, "type", None), "name", "")  # of typer's that bring no types of their own
    if annotation not in (int, float) and name.partition(" ")[0] not in ("integer", "float"):
        return
    process_value = parameter.process_value

    def process_decimal(ctx: Any, value: Any) -> Any:
        if isinstance(value, str):
            try:
                decimal(value)
            except ValueError as reason:
                raise typer.BadParameter(str(reason), ctx=ctx, param=parameter) from None
        return process_value(ctx, value)

    parameter.process_value = process_decimal


class Group(TyperGroup):
    """A group of commands; a mistyped command gets the nearest name.

    Its commands' numbers are read in decimal notation alone.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for command in self.commands.values():
            for parameter in command.params:
                _read_decimals(parameter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer's; WdmoeError with the nearest name where there is no such command."""
        known = self.list_commands(ctx)
        if not ctx.resilient_parsing and args[0] not in known and not args[0].startswith("-"):
            raise WdmoeError(unknown_name(f"{ctx.command_path}: command", args[0], known))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """As typer's; WdmoeError with the install command if a package of an extra is missing."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            words = [*ctx.command_path.split(), ctx.invoked_subcommand]  # wdmoe, plan; wdmoe, testbed, keys
            extra = EXTRA_OF_COMMAND.get(words[1])
            if extra is None or error.name is None or error.name.startswith("wdmoe_opencompass"):
                raise
            raise WdmoeError(
                f"{' '.join(words)} needs {BROUGHT_BY_EXTRA[extra]}; install with: {pip_install(extra)} "
                f"(missing: {error.name})"
            ) from None


def new_app(**settings: Any) -> typer.Typer:
    """A typer application: help without arguments, no tracebacks of its own."""
    return typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False, **settings)


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code; errors that the user can fix are one sentence."""
    command = _command_of(app)
    words = sys.argv[1:] if arguments is None else list(arguments)
    make_stdout_tolerant()
    try:
        for word in words:
            if "\0" in word:
                raise WdmoeError(f"{word!r}: no path or name: it holds a zero byte")
        code = command.main(words, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except WdmoeError as error:
        _bad_input(error)
    except ClickError as error:
        _bad_input(usage_sentence(error))
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # `wdmoe ... | head`: whoever read has had enough; typer ends so too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CHECK_FAILED) from None
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        _bad_input(f"{error.filename}: {error.strerror}")
    except UnicodeDecodeError as error:
        _bad_input(f"a file that was given is not UTF-8 text: {error.reason} at byte {error.start}")
    raise SystemExit(code if isinstance(code, int) else 0)


@cache
def _command_of(app: typer.Typer) -> Any:
    """Built once: typer reads every command's signature in each call, which takes longer than a short command."""
    return typer.main.get_command(app)


def _bad_input(sentence: object) -> NoReturn:
    if str(sentence):
        print_error(sentence)
    raise SystemExit(BAD_INPUT) from None


def usage_sentence(error: Any) -> str:
    """One sentence about an invalid command line; empty if typer has shown the help instead."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    context = getattr(error, "ctx", None)
    sentence = _mend(error, context) or error.format_message().strip().rstrip(".")
    sentence = sentence.replace(": Value error, ", ": ")  # pydantic's words, which typer passes on
    sentence = sentence[:1].lower() + sentence[1:]
    return sentence if context is None else f"{sentence} (see {context.command_path} --help)"


def _mend(error: Any, context: Any) -> str | None:
    """The sentence with the nearest name, where an option or one of its fixed values was mistyped."""
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and context is not None:
        known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("-")]
        near = get_close_matches(str(option), known, n=1)
        return f"no such option {option}" + (f"; did you mean {near[0]}?" if near else "")
    choice = re.search(r"'([^']*)' is not one of (.*?)\.?$", error.format_message())
    if choice is not None:
        near = get_close_matches(choice[1], re.findall(r"'([^']*)'", choice[2]), n=1)
        return error.format_message().rstrip(".") + (f"; did you mean '{near[0]}'?" if near else "")
    return None
