"""From a function to an exit code: one line on stderr for a mistake, none for a reader that has left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from lmm_forget.errors import LmmForgetError, format_os_error, print_error


def run_with_exit_code(function: Callable[[], int | None]) -> int:
    """Call `function` and return the exit code: what it returns (None: 0), or that of the error it raises.

    An LmmForgetError is printed as one line on stderr and ends with its `exit_code`, an OSError with 2; Ctrl-C ends
    with 130. Where the reader of standard output (head, less) has left, nothing is wrong.
    """
    try:
        exit_code = function() or 0
        sys.stdout.flush()  # a reader that has left shows here, not while Python ends
        return exit_code
    except LmmForgetError as error:
        print_error(error)
        return error.exit_code
    except BrokenPipeError:
        _discard_stdout()
        return 0
    except OSError as error:  # a folder that cannot be read or written, a full disk
        print_error(_describe_stdout_error(error) or format_os_error(error))
        return 2
    except KeyboardInterrupt:
        print("lmm-forget: stopped", file=sys.stderr, flush=True)
        return 130


def _describe_stdout_error(error: OSError) -> str | None:
    """The line for an error that names no file, where standard output could not be written."""
    if error.filename is not None or error.errno is None:
        return None
    try:  # Python dropped its buffer with the error; one more character shows whether standard output takes any
        os.write(sys.stdout.fileno(), b"\n")
    except (OSError, ValueError) as retry_error:
        if getattr(retry_error, "errno", None) != error.errno:
            return None
        _discard_stdout()  # or Python tries once more while it ends
        return f"standard output: {error.strerror or error}"
    return None


def _discard_stdout() -> None:
    """Send what is still written to standard output nowhere, so that it is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
