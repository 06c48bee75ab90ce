"""What a site's driver does about an error: try again, or leave it to an operator."""

from __future__ import annotations

import logging

from mirrorfs.journal.control_client import ControlError
from mirrorfs.journal.reader import RecordsGoneError
from mirrorfs.journal.segment import CorruptionError
from replicator.site_state import StateError
from replicator.stores.base import (
    SiteBusyError,
    SiteEmptiedError,
    SiteMissingError,
    SiteReadOnlyError,
    SiteRefusedError,
    StoreError,
)
from replicator.surroundings import TroubleError
from replicator.under_way import CutOffError, InternalError
from replicator.view import SourceError, SourceRefusedError

_log = logging.getLogger(__name__)

REFUSALS = (SiteRefusedError, SourceRefusedError, StateError, CorruptionError, RecordsGoneError)
"""What only an operator can mend. (Of RecordsGoneError: if a second look at the cursor does not
help.)"""

_AWAY = (SiteMissingError, SiteEmptiedError, SiteReadOnlyError, SiteBusyError)
"""A site that may come back, or be let go of by another replicator."""

_TROUBLE = (*_AWAY, TroubleError, StoreError, SourceError, ControlError, OSError)
"""What may be over by itself."""


class StopNowError(CutOffError):
    """The operator does not want to wait for the end of what is being done."""


class PausedError(CutOffError):
    """The operator holds the site up."""


def is_final(error: Exception) -> bool:
    """Whether the site is to halt."""
    return isinstance(error, REFUSALS) and not isinstance(error, _AWAY)


def expected(error: Exception, site: str, reason: str) -> Exception:
    """What to back off for. A mistake of ours must not end the other sites: this one begins anew
    from its state. It is logged, unless that is the `reason` known already."""
    if isinstance(error, _TROUBLE):
        return error
    told = InternalError(error)
    if reason != str(told):
        _log.error("%s: %s", site, told, exc_info=error)
    return told
