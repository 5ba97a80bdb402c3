"""The program as processes that start in milliseconds: forked from this one, which has loaded torch.

A child is what `altgrad ARGUMENTS` is to the system: a session of its own, its own descriptors, the default signals. It
computes nothing before the fork that could leave a thread behind, since campaigns use one thread.
"""

import ctypes
import functools
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from altgrad.cli.main import app
from altgrad.training.prepare import load_all

_warm = functools.cache(load_all)


@dataclass
class Process:
    """A child with its output in files; `code` once it has ended, minus the signal's number if one ended it."""

    pid: int
    output: Path
    errors: Path
    code: int | None = None

    def ended(self) -> bool:
        """Whether it has."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, seconds: float = 120) -> int:
        """Its exit code; it is killed when it takes longer, and the code is then -9."""
        deadline = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def listens(self, number: int) -> bool:
        """Whether it has a handler of its own for a signal: before, it is not yet a command of ours."""
        if self.ended():
            return False
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (caught,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
        return bool(caught >> (number - 1) & 1)

    def send(self, number: int) -> None:
        """A signal, unless it has ended."""
        if not self.ended():
            os.kill(self.pid, number)


def start(folder: Path, arguments: Sequence[str], *, obeys: bool = False) -> Process:
    """Fork `altgrad ARGUMENTS` with `folder` as its present one; `obeys`: permission bits hold for it, root or not."""
    _warm()
    output, errors = folder / ".stdout", folder / ".stderr"
    pid = os.fork()
    if pid:
        return Process(pid, output, errors)
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666) for path in (output, errors)]
        for descriptor, source in enumerate((nothing, *files)):
            os.dup2(source, descriptor)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in ((0, "r"), (1, "w"), (2, "w")))
        os.chdir(folder)
        _usual_warnings()
        if obeys:
            obey()
        code = _run(arguments)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _usual_warnings() -> None:
    """Python's own filters, in place of those of a test."""
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)


def obey() -> None:
    """From here on permission bits hold for this process as for anyone: what lets root pass them over is given up.

    capset(2) with CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER (bits 0 to 3) cleared. OSError where
    the system refuses. The user id stays, so that Python's own files can still be imported.
    """
    if os.geteuid():
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the same again for the upper 32
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, held) == 0:
        for index in range(3):
            held[index] &= ~0b1111
    if libc.capset(header, held):
        raise OSError(ctypes.get_errno(), "capset")


def _run(arguments: Sequence[str]) -> int:
    try:
        app(list(arguments))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0
