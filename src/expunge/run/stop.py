"""Ctrl-C and a polite request to end, both held back until the work in flight is kept."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_between() -> Iterator[Callable[[], bool]]:
    """Hold both signals back; a second one stops at once. Yields a question: was one sent?

    Outside the main thread, which alone may listen for signals, the answer is always no.
    """
    sent = False

    def remember(*_: object) -> None:
        nonlocal sent
        if sent:
            raise KeyboardInterrupt("stopped at once; what was being done is lost")
        sent = True

    with contextlib.ExitStack() as stack:
        try:
            for number in SIGNALS:
                stack.callback(signal.signal, number, signal.signal(number, remember))
        except ValueError:  # not the main thread
            pass
        yield lambda: sent


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def end_as_interrupt() -> None:
    """From here on a request to end (SIGTERM) says and keeps what Ctrl-C does."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _interrupt)
