"""Threads in forked processes, where PyTorch's pools lack theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from hiergen.environment import one_thread, settle_threads

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def add_in_threads(count: int) -> list[str]:
    """Return the errors of threads whose first operation is one that is cut for several threads."""
    errors: list[str] = []
    numbers = torch.ones(300, 300)

    def add() -> None:
        try:
            torch.add(numbers, 1)
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=add) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_forked_processes_compute_and_start_threads() -> None:
    """Without `settle_threads` the first operation waits for ever, and two of three of the threads' processes find no pool."""
    # Replacing so large a pool takes a while, in which the other threads come.
    torch.set_num_threads(64)
    torch.get_num_threads()
    torch.ones(300, 300).add(1).sum()
    for _ in range(6):
        pid = os.fork()
        if not pid:
            signal.alarm(60)
            code = 1
            try:
                settle_threads()
                torch.ones(300, 300).add(1).sum()
                code = 2 if add_in_threads(8) else 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    torch.set_num_threads(1)


def test_elsewhere_the_number_of_threads_stays() -> None:
    torch.set_num_threads(3)
    settle_threads()
    assert torch.get_num_threads() == 3
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)


def test_a_process_leaves_its_group_before_it_ends() -> None:
    """Gloo's thread calls Python a second after the program's end; without `leave_processes_at_exit` that aborts the process."""
    program = """
import os, time, torch.distributed
from hiergen.environment import leave_processes_at_exit
leave_processes_at_exit()
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
work = torch.distributed.all_reduce(torch.ones(4), async_op=True)
work.get_future().then(lambda future: (time.sleep(1), print("called"))[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "called\n"), done.stderr
