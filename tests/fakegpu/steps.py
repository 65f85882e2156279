"""Launches, copies and waits of training steps on the stand-in, whose kernels do nothing here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_ranks import stand_in
from parts import build_trainer, make_dataset, resolved
from trainings import BASE

from trainlib.distributed import process_group
from trainlib.training.step.train_step import train_step

WARM, STEPS, BATCH = 4, 8, 8
COUNTED = ("launch", "wait", "copy H2D", "copy D2H", "memset")
UNAUGMENTED = BASE["data"] | {"val_fraction": 0.0, "augment": {}}
CASES: Mapping[str, Mapping[str, Any]] = {
    "cnn": {},
    "cnn, flip and crop": {"data": BASE["data"] | {"val_fraction": 0.0}},
    "cnn, clipping": {"train": {"epochs": 1, "batch_size": BATCH, "clip_grad_norm": 1.0}},
    "cnn, EMA": {"train": {"epochs": 1, "batch_size": BATCH, "average": {"decay": 0.9}}},
    "resnet18, bf16, AdamW": {
        "model": {"name": "resnet18"},
        "optimizer": {"name": "AdamW", "lr": 0.001, "fused": True},
        "train": {"epochs": 1, "batch_size": BATCH, "precision": "bf16"},
    },
}


def count(output: str) -> None:
    """Write how often each of COUNTED happens in a step, by the name of the case."""
    counts = {}
    for name, changes in CASES.items():
        defaults = {"data": UNAUGMENTED, "train": {"epochs": 1, "batch_size": BATCH}}
        config = resolved({**BASE, **defaults, "tracking": {"log_every": 1000}, **changes})
        with process_group.joined(config.train) as accelerator:
            trainer = build_trainer(config, make_dataset(BATCH * (WARM + STEPS)), accelerator, None)
            samples = trainer.samples.train.train_batches(trainer.plan.batches(0), 0, trainer.samples.augmentation)
            library = stand_in()
            for step in range(WARM + STEPS):
                if step == WARM:
                    library.fakecuda_reset()
                trainer.accumulator.add(step, train_step(trainer.state, step, next(samples), float(BATCH)))
                trainer.schedule.after_step()
                trainer.state.ema.update()
            counts[name] = {what: library.fakecuda_count(what.encode()) / STEPS for what in COUNTED}
    Path(output).write_text(json.dumps(counts))
