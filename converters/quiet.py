"""Keeps converters' chatter off the terminal: compilers write to the process's own stdout and stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

_LOG = logging.getLogger(__name__)
_KEPT_CHARS = 4000


@contextlib.contextmanager
def quiet_tools(what: str) -> Iterator[None]:
    """Sends everything that is printed meanwhile, also by native code, to the debug log.

    Standard output stays free for our own JSON. The file descriptors come back whatever ends the block,
    Ctrl-C included.

    Args:
        what: What runs, for the log.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = os.dup(1), os.dup(2)
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            with _python_streams():
                yield
        finally:
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            sink.seek(0)
            _LOG.debug("%s said: %s", what, sink.read().decode("utf-8", "replace")[-_KEPT_CHARS:])


@contextlib.contextmanager
def _python_streams() -> Iterator[None]:
    """Sends Python's own streams the same way: they may be wrapped and not reach the descriptors."""
    with (
        open(1, "w", closefd=False, encoding="utf-8", errors="replace") as out,
        open(2, "w", closefd=False, encoding="utf-8", errors="replace") as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        yield
