"""The configuration of a run: YAML files and overrides, all checked before anything starts. Imports no torch."""

from trainlib.config.checking.given_parts import METRICS, TRANSFORM
from trainlib.config.compare import (
    Difference,
    differences,
    dump_config,
    harmful,
    is_free,
    is_harmless,
    trained_otherwise,
)
from trainlib.config.custom import PREFIX as CUSTOM_PREFIX
from trainlib.config.custom import custom_part_missing, is_code, is_custom, own_name
from trainlib.config.libraries.catalog import BALANCED, weights_run
from trainlib.config.load import load_config, read_resolved, shipped_configs, with_older_values
from trainlib.config.older import keep_older_values
from trainlib.config.reading.command_line import mark_bare_resume
from trainlib.config.schema.augment import Augment, PolicyConfig
from trainlib.config.schema.framing import Crop, Resize
from trainlib.config.schema.sections import (
    AfterConfig,
    AverageConfig,
    Best,
    CheckpointConfig,
    Config,
    DataConfig,
    EarlyStopping,
    HealthConfig,
    LossConfig,
    ModelConfig,
    Normalize,
    OptimizerConfig,
    ParamGroup,
    SchedulerConfig,
    TrackingConfig,
    TrainConfig,
    WandbConfig,
)
from trainlib.config.schema.slurm import SlurmConfig
from trainlib.config.schema.values import Size, canonical_precision, fold_of, sides

__all__ = [
    "BALANCED",
    "CUSTOM_PREFIX",
    "METRICS",
    "TRANSFORM",
    "AfterConfig",
    "Augment",
    "AverageConfig",
    "Best",
    "CheckpointConfig",
    "Config",
    "Crop",
    "DataConfig",
    "Difference",
    "EarlyStopping",
    "HealthConfig",
    "LossConfig",
    "ModelConfig",
    "Normalize",
    "OptimizerConfig",
    "ParamGroup",
    "PolicyConfig",
    "Resize",
    "SchedulerConfig",
    "Size",
    "SlurmConfig",
    "TrackingConfig",
    "TrainConfig",
    "WandbConfig",
    "canonical_precision",
    "custom_part_missing",
    "differences",
    "dump_config",
    "fold_of",
    "harmful",
    "is_code",
    "is_custom",
    "is_free",
    "is_harmless",
    "keep_older_values",
    "load_config",
    "mark_bare_resume",
    "own_name",
    "read_resolved",
    "shipped_configs",
    "sides",
    "trained_otherwise",
    "weights_run",
    "with_older_values",
]
