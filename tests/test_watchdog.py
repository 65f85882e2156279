"""The watchdog's last resort, in a process that it really ends."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

AGENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"

# A rank that is deaf to being asked to stop.
RANK = """\
import sys, time
from trainlib import watchdog
from trainlib.stopping import StopFlag
watchdog.POLL_SECONDS, watchdog.ORPHAN_SECONDS = 0.05, 0.3
flag = StopFlag()
with watchdog.Watchdog(None, flag, open(sys.argv[1], "a", buffering=1), {"TORCHELASTIC_RUN_ID": "1"}):
    print("up", flush=True)
    while flag.reason is None:
        time.sleep(0.01)
    print("asked to stop:", flag.reason, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("full_disk", [False, True])
def test_a_rank_without_its_agent_is_asked_to_stop_then_ended(full_disk: bool, tmp_path: Path) -> None:
    log = Path("/dev/full") if full_disk else tmp_path / "rank-0.log"
    words = [sys.executable, "-c", AGENT, RANK, str(log)]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "up\n"
        agent.kill()
        rest, _ = agent.communicate(timeout=20)  # until the rank, which holds the other end, is gone too
    assert rest == "asked to stop: the launcher died\n"
    if not full_disk:
        assert log.read_text() == (
            "the launcher died, and the ranks did not come to stop together; "
            "this rank ends here, its last checkpoint is good\n"
        )
