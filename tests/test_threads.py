"""Threads that the end of the process doesn't wait for."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from exproto_app.asyncio_host.threads import IdleThreads


def test_as_many_run_at_once_as_there_may_be_and_no_more() -> None:
    begun: list[str] = []
    threads = IdleThreads(2, "two of them", lambda: begun.append(threading.current_thread().name))
    gate, both = threading.Event(), threading.Barrier(3, timeout=20)

    def wait(number: int) -> int:
        if number < 2:
            both.wait()
            gate.wait(20)
        return number

    futures = [threads.submit(wait, number) for number in range(5)]
    both.wait()
    assert not any(future.done() for future in futures)
    gate.set()
    assert [future.result(20) for future in futures] == [0, 1, 2, 3, 4]
    assert begun == ["two of them"] * 2


def test_what_is_raised_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        IdleThreads(1, "one").submit(lambda: 1 // 0).result(20)


@pytest.mark.live
def test_the_process_ends_while_one_is_at_work() -> None:
    code = (
        "import threading; from exproto_app.asyncio_host.threads import IdleThreads;"
        "began = threading.Event();"
        "IdleThreads(1, 'x').submit(lambda: (began.set(), threading.Event().wait()));"
        "began.wait(); print('bye')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "bye\n"
