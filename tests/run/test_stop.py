from __future__ import annotations

import os
import signal

import pytest

from expunge.run.stop import SIGNALS, end_as_interrupt, stop_between


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_waits_and_the_second_does_not(number: int) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with stop_between() as stopped:
        assert not stopped()
        os.kill(os.getpid(), number)
        assert stopped()
        with pytest.raises(KeyboardInterrupt, match="what was being done is lost"):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_request_to_end_is_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        end_as_interrupt()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
