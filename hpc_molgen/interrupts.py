"""Ctrl-C and SIGTERM: raised at once, and remembered in case a library's bare `except:` swallows the exception."""

from __future__ import annotations

import signal

_asked = False


def _raise(*_: object) -> None:
    global _asked  # noqa: PLW0603 (signal handlers have nowhere else to leave word)
    _asked = True
    raise KeyboardInterrupt


def install() -> None:
    """Turn SIGINT and SIGTERM into KeyboardInterrupt."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise)


def came() -> bool:
    """Return True once a signal has come: whatever error follows may be its trace in a library that met it halfway."""
    return _asked


def check() -> None:
    """Raise KeyboardInterrupt if a signal has come, even if its exception was lost; call it between pieces of work."""
    if _asked:
        raise KeyboardInterrupt
