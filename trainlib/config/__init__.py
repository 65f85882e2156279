"""The configuration of a run: YAML files and overrides, checked whole before anything starts. Never imports torch."""

from trainlib.config.command_line import mark_bare_resume
from trainlib.config.compare import Difference, differences, dump_config, is_harmless
from trainlib.config.load import load_config, read_resolved, shipped_configs
from trainlib.config.schema import (
    Augment,
    Best,
    CheckpointConfig,
    Config,
    DataConfig,
    EarlyStopping,
    LossConfig,
    ModelConfig,
    Normalize,
    OptimizerConfig,
    ParamGroup,
    SchedulerConfig,
    SlurmConfig,
    TrackingConfig,
    TrainConfig,
    WandbConfig,
)

__all__ = [
    "Augment",
    "Best",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "Difference",
    "EarlyStopping",
    "LossConfig",
    "ModelConfig",
    "Normalize",
    "OptimizerConfig",
    "ParamGroup",
    "SchedulerConfig",
    "SlurmConfig",
    "TrackingConfig",
    "TrainConfig",
    "WandbConfig",
    "differences",
    "dump_config",
    "is_harmless",
    "load_config",
    "mark_bare_resume",
    "read_resolved",
    "shipped_configs",
]
