"""Mount: look at what can be refused, leave the terminal, set the environment, begin the session.

The order matters: the client library reads its environment, and must not be forked, once it is
imported. So this module does not import it; `session`, which does, is imported in the child.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from xrootdfs import background, checks, mounted, notify
from xrootdfs.config import Mount
from xrootdfs.errors import UnusableError

ENVIRONMENT: Final = {
    "XRD_APPNAME": "xrootdfs",
    "XRD_TIMEOUTRESOLUTION": "1",
    "XRD_CONNECTIONWINDOW": "2",
    "XRD_CONNECTIONRETRY": "1",
    "XRD_STREAMERRORWINDOW": "1",
    "XRD_STREAMTIMEOUT": "15",
    "XRD_REQUESTTIMEOUT": "30",
    "XRD_REDIRECTLIMIT": "4",
    "XRD_TCPKEEPALIVE": "1",
    "XRD_PARALLELEVTLOOP": "2",
    "XRD_WORKERTHREADS": "3",
    "XRD_SUBSTREAMSPERCHANNEL": "1",
    "XRD_RUNFORKHANDLER": "1",
}
"""Settings of the client library without which no deadline of ours would hold: its own are minutes.
They replace what the environment says; other XRD_* of the environment stay."""


def mount(wanted: Mount, *, foreground: bool) -> None:
    """Mount a federation.

    In the background: returns when the mount answers. In the foreground: ends the process after it
    was unmounted. Raises XrootdfsError.
    """
    checks.check_permissions()
    checks.check_mountpoint(wanted.mountpoint)
    if foreground:
        _serve(wanted, notify.ready, background.log_to_terminal)
        _end()

    def work(ready: Callable[[], None]) -> None:
        _serve(wanted, ready, lambda: _start_log(wanted))

    background.start(work)
    try:
        mounted.ask(wanted.mountpoint, mounted.DAEMON_ATTRIBUTE)
    except OSError as error:
        reason = f"{error.strerror}, once mounted"
        raise UnusableError(f"mountpoint: {wanted.mountpoint}: {reason}") from None


def connect() -> None:
    """Set the environment of the client library; before it is imported."""
    os.environ.update(ENVIRONMENT)


def _serve(wanted: Mount, ready: Callable[[], None], start_log: Callable[[], None]) -> None:
    connect()
    from xrootdfs import session  # here: see above

    session.serve(wanted, ready, start_log)


def _start_log(wanted: Mount) -> None:
    if wanted.log == "syslog":
        background.log_to_system("xrootdfs")
        return
    try:
        background.log_to(wanted.log)
    except OSError as error:
        raise UnusableError(f"log: {wanted.log}: {error.strerror}") from None


def _end() -> NoReturn:
    """Now: the client library's threads may still wait for servers that say nothing."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
