"""A signal raises a flag, a second one ends the process, and the handlers before are put back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from espalier.engine.signals import TOGETHER, Ended, StopSignal, raising, stop_asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_raises_a_flag_and_the_handler_before_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.asked
        signal.raise_signal(number)
        assert stop.asked
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_at_once_and_two_together_are_one() -> None:
    code = (
        "import signal, time\n"
        "from espalier.engine.signals import StopSignal, TOGETHER\n"
        "with StopSignal() as stop:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    assert stop.asked\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('one', flush=True)\n"
        "    time.sleep(TOGETHER + 0.1)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout == "one\n"


def test_who_waits_for_something_else_can_ask() -> None:
    assert not stop_asked()
    with StopSignal():
        signal.raise_signal(signal.SIGHUP)
        assert stop_asked()
    assert not stop_asked()


@pytest.mark.parametrize("handled", [StopSignal, raising])
def test_a_process_that_is_forked_off_ends_at_sigterm(
    handled: Callable[[], contextlib.AbstractContextManager[object]],
) -> None:
    """As a pool's worker, in a reward function say: the pool ends it so and waits for its end."""
    with handled():
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                signal.raise_signal(signal.SIGTERM)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert not stop_asked()


def test_a_hangup_that_nohup_has_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop, raising():
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_a_loop_a_signal_raises_and_says_whether_it_is_the_second() -> None:
    with raising():
        with pytest.raises(Ended, match="SIGTERM") as ended:
            signal.raise_signal(signal.SIGTERM)
        assert ended.value.number == signal.SIGTERM and not ended.value.again
        with pytest.raises(Ended) as ended, StopSignal():
            signal.raise_signal(signal.SIGINT)
            time.sleep(TOGETHER + 0.05)
            signal.raise_signal(signal.SIGINT)
        assert ended.value.again


def test_outside_of_the_main_thread_the_flag_stays_down() -> None:
    seen: list[bool] = []

    def work() -> None:
        with StopSignal() as stop:
            seen.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
