"""The client library's settings, before any test imports the binding."""

from __future__ import annotations

from xrootdfs import mount

mount.connect()
