"""The command line: `selfspec VERB`, one file a verb.

What a user did wrong (arguments that cannot be parsed, a `ValueError`, an `OSError`) is one line on
standard error and exit code 2, what went wrong on the way (a `RuntimeError`: no memory left, a loss
that is not finite) exit code 1, Ctrl-C 130. `python -X dev -m selfspec` shows the traceback
instead. PyTorch is imported when a verb runs, not for `--help`. Of the processes that torchrun
started, the first tells what concerns all of them; it alone runs a verb that has no work to share.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

from selfspec.cli.common import first_rank
from selfspec.cli.usage import later, one_line
from selfspec.progress import watched

__all__ = ["main"]

FAILURE, USAGE, INTERRUPTED = 1, 2, 130
SHARED = ("sample", "train", "adapt", "attach", "evaluate")
"""Verbs whose work the processes of torchrun share."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and out.errors in ("strict", "surrogateescape"):
        # As on standard error: no result is lost for a letter that the encoding lacks.
        out.reconfigure(errors="backslashreplace")
    # Threads that spin while they wait make a busy machine many times slower; read by PyTorch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What `transformers` says of its own while it loads; read by it.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not watched():
        for library in ("HUB", "DATASETS"):
            os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")
    try:
        code = run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()  # here, where a reader that has gone can still be met
        return code
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED) if first_rank() else INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `selfspec ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        if sys.flags.dev_mode:
            raise
        if getattr(error, "on_every_rank", False) and not first_rank():
            return FAILURE
        return complain(explain(error), FAILURE if isinstance(error, RuntimeError) else USAGE)
    except MemoryError as error:
        if sys.flags.dev_mode:
            raise
        return complain(f"not enough memory: {error}".rstrip(": "), FAILURE)


def run(argv: list[str]) -> int:
    """Parse the arguments and call the verb."""
    import tyro

    verbs = all_verbs()
    if argv == ["--version"]:
        from selfspec import __version__

        print(f"selfspec {__version__}")
        return 0
    if argv and not argv[0].startswith("-") and argv[0] not in verbs:
        raise ValueError(f"`verb` must be one of {', '.join(verbs)}, got {argv[0]!r}")
    if "--out=" in argv or ("--out", "") in pairwise(argv):
        # Of a variable of the shell that is not set; `Path` takes it for the current folder.
        raise ValueError("`out` must be a path, got ''")
    with one_line():
        call = tyro.extras.subcommand_cli_from_dict(
            {name: later(verb) for name, verb in verbs.items()},
            prog="selfspec",
            description="Verified parallel decoding for masked diffusion models.",
            args=argv or ["--help"],
            config=(
                tyro.conf.DisallowNone,
                tyro.conf.FlagCreatePairsOff,
                tyro.conf.OmitArgPrefixes,
                tyro.conf.PositionalMetavarFromFieldName,
            ),
        )
    if call.func.__name__ not in SHARED and not first_rank():
        return 0  # the others would do it all again, and write to the same place
    return call() or 0


def all_verbs() -> dict[str, Callable[..., int | None]]:
    """The verbs by name."""
    from selfspec.cli.adapt import adapt
    from selfspec.cli.attach import attach
    from selfspec.cli.benchmark import benchmark
    from selfspec.cli.demo import demo
    from selfspec.cli.evaluate import evaluate
    from selfspec.cli.infill import infill
    from selfspec.cli.prepare import prepare
    from selfspec.cli.recipes import recipes
    from selfspec.cli.sample import sample
    from selfspec.cli.score import score
    from selfspec.cli.train import train

    verbs = (
        sample, infill, score, train, adapt, attach, evaluate, benchmark, prepare, recipes, demo,
    )  # fmt: skip
    for verb in verbs:  # the help would break its lines where the docstring does
        verb.__doc__ = (verb.__doc__ or "").replace("\n" + 12 * " ", " ")
    return {verb.__name__: verb for verb in verbs}


def explain(error: Exception) -> str:
    """The message of an error; of a failed system call without its number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    # Of a rename the second name is the file that the user knows; a stream has none.
    name = error.filename2 or error.filename
    return error.strerror if name is None else f"{name}: {error.strerror}"


def complain(message: str, code: int) -> int:
    """One line on standard error."""
    print("selfspec:", " ".join(message.split()), file=sys.stderr)
    return code
