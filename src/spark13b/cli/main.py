"""The entry point: runs a command and turns every error into one message on stderr and an exit code.

0: done. 1: the job failed. 2: the user's input is wrong. A traceback is shown only with `--debug`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
from types import FrameType

import typer

from spark13b.cli.app import build_app, debug_wanted
from spark13b.errors import SparkError


def main(argv: list[str] | None = None) -> None:
    """Run `spark13b` with `argv` (default: the process's own) and exit the process."""
    _open_closed_streams()
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run one command line and return its exit code."""
    _interrupt_on_sigterm()
    _take_any_text()
    try:
        result = build_app()(argv, prog_name="spark13b", standalone_mode=False)
        sys.stdout.flush()
        if result == _INTERRUPTED:
            return _fail(_STOPPED, 1)
        return result if isinstance(result, int) else 0
    except (BrokenPipeError, SystemExit):  # `spark13b preset list | head`: the reader has gone, nothing is wrong
        # SystemExit is what typer makes of it; it raises that for nothing else when standalone_mode is off
        _silence_stdout()
        return 0
    except KeyboardInterrupt:
        return _fail(_STOPPED, 1)
    except SparkError as error:
        return _fail(error.message(), error.exit_code)
    except typer.Abort:
        return _fail("stopped", 1)
    except typer.TyperException as error:  # wrong options and arguments
        return _fail(_usage_message(error), 2)
    except MemoryError:
        return _fail("out of memory\n  fix: use a smaller model, batch or sequence length", 1)
    except OSError as error:
        return _fail(_os_message(error), 2 if error.errno in _INPUT_ERRNO else 1)
    except Exception as error:  # a defect of ours or of a library: short by default, whole with --debug
        return _fail(
            f"unexpected {type(error).__name__}: {_first_line(error)}\n  fix: run again with --debug for the traceback",
            1,
        )


_STOPPED = "stopped before the end (Ctrl-C or SIGTERM)"
_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt inside a command
_INPUT_ERRNO = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EROFS}


def _interrupt_on_sigterm() -> None:
    """Let SIGTERM unwind as Ctrl-C does. Ctrl-C while MindSpore compiles arrives as SIGTERM, too: it sends one."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


def _open_closed_streams() -> None:
    """Put /dev/null where a standard stream was closed (`>&-`): else the next file that is opened gets its number, and
    what is printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # until the end


def _take_any_text() -> None:
    """Let no letter end a command: a terminal that lacks it shows its number, and who reads finds what is no UTF-8."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _fail(message: str, code: int) -> int:
    if debug_wanted() and sys.exc_info()[0] is not None:
        traceback.print_exc()
    with contextlib.suppress(BrokenPipeError, ValueError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _os_message(error: OSError) -> str:
    message = error.strerror or str(error)
    if error.filename is not None:
        message += f"\n  at: {error.filename}"
    if error.errno == errno.ENOSPC:
        message += "\n  fix: free some space, then run the same command again"
    return message


def _usage_message(error: typer.TyperException) -> str:
    """Typer's message, with the command it came from and where its help is."""
    message = error.format_message().rstrip(".").replace("Value error, ", "") or "no command given"
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "spark13b"
    fix = f"see '{path} --help'"
    options = {name for parameter in context.command.params for name in parameter.opts} if context is not None else ()
    if "unexpected extra argument" in message and "=" in message and "--set" in options:
        fix = "write --set before each KEY=VALUE"
    return f"{message}\n  at: {path}\n  fix: {fix}"


def _silence_stdout() -> None:
    """Keep the interpreter from complaining about the closed pipe when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
