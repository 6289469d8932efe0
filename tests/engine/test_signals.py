"""A signal raises a flag, a second one ends the process, and the handlers before are put back."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from espalier.engine.signals import StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_raises_a_flag_and_the_handler_before_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.asked
        signal.raise_signal(number)
        assert stop.asked
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_at_once() -> None:
    code = (
        "import signal\n"
        "from espalier.engine.signals import StopSignal\n"
        "with StopSignal() as stop:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    assert stop.asked\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout == ""


def test_outside_of_the_main_thread_the_flag_stays_down() -> None:
    seen: list[bool] = []

    def work() -> None:
        with StopSignal() as stop:
            seen.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
