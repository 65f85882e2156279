"""A fault of one rank in the midst of a training, as a `sitecustomize.py` for the folder that it is started in."""

from __future__ import annotations

from changed_steps import sitecustomize

# The rank FAULT_RANK does what FAULT says: in step 17, or once there is a snapshot that is older than the last step.
# Until there is one, steps take long enough for snapshots to cost little, however fast the machine is.
FAULTY = sitecustomize("""\
import os, signal, time
def changed(train_step):
    def faulty(state, step, *rest):
        fault = os.environ["FAULT"] if os.environ.get("RANK", "0") == os.environ["FAULT_RANK"] else ""
        if fault == "kill after a snapshot" and not os.path.exists("was killed"):
            names = os.listdir(os.environ["TRAINLAUNCH_SNAPSHOTS"])
            if any(name.startswith("step-") and int(name[5:]) < step for name in names):
                open("was killed", "x").close()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.05)
        if fault == "raise" and step == 16:
            raise ValueError("a mistake in the model")
        if fault == "kill" and step == 16:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "flip" and step == 16 and os.environ["WORLD_SIZE"] == "3":
            state.parameters[0].register_hook(lambda gradient: gradient * 2)
        return train_step(state, step, *rest)
    return faulty
""")
