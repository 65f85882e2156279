"""The watchdog's last resort, in a process that it really ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import REPOSITORY
from patience import HANG

from trainlib.errors import EXIT_HANG

AGENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"

# A rank that is deaf to being asked to stop.
RANK = """\
import sys, time
from trainlib.distributed.checks import watchdog
from trainlib.runs.attempt.stop_request import StopFlag
watchdog.POLL_SECONDS, watchdog.ORPHAN_SECONDS = 0.05, 0.3
flag = StopFlag()
with watchdog.Watchdog(None, flag, open(sys.argv[1], "a", buffering=1), {"TORCHELASTIC_RUN_ID": "1"}):
    print("up", flush=True)
    while flag.reason is None:
        time.sleep(0.01)
    print("asked to stop:", flag.reason, flush=True)
    time.sleep(3600)
"""


@pytest.mark.parametrize("full_disk", [False, True])
def test_a_rank_without_its_agent_is_asked_to_stop_then_ended(full_disk: bool, tmp_path: Path) -> None:
    log = Path("/dev/full") if full_disk else tmp_path / "rank-0.log"
    words = [sys.executable, "-c", AGENT, RANK, str(log)]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "up\n"
        agent.kill()
        rest, _ = agent.communicate(timeout=HANG)  # until the rank, which holds the other end, is gone too
    assert rest == "asked to stop: the launcher died\n"
    if not full_disk:
        assert log.read_text() == (
            "the launcher died, and the ranks did not come to stop together; "
            "this rank ends here, its last checkpoint is good\n"
        )


# Works for a second and a half, beating all the while, then hangs.
WORKER = """\
import sys, time
from trainlib.distributed.checks import watchdog
from trainlib.runs.attempt.stop_request import StopFlag
watchdog.POLL_SECONDS = 0.05
with watchdog.Watchdog(1.0, StopFlag(), open(sys.argv[1], "a", buffering=1), {}) as dog:
    print("up", flush=True)
    for _ in range(150):
        time.sleep(0.01)
        dog.heartbeat()
    print("hangs", flush=True)
    time.sleep(3600)
"""


def test_a_hang_ends_the_process_and_a_suspended_one_is_no_hang(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WORKER, str(tmp_path / "log")]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "up\n"
        worker.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        worker.send_signal(signal.SIGCONT)
        rest, _ = worker.communicate(timeout=HANG)
    assert rest == "hangs\n"  # it was not ended while it was suspended, nor right after
    assert worker.returncode == EXIT_HANG
    log = (tmp_path / "log").read_text()
    assert log.startswith("no step was finished for 1 s (train.hang_seconds)")
    assert "time.sleep" in log or "<string>" in log
