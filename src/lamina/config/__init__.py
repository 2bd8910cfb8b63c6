"""The typed, strict configuration of a run.

Importing it does not import torch or transformers. `load_config` is the only entry point, for YAML files, dictionaries
and command-line overrides.
"""

from lamina.config.data import DataConfig, ReplayConfig, SourceConfig
from lamina.config.given import only_given, resolved_values
from lamina.config.load import load_config, merge_overrides
from lamina.config.methods import DEFAULT_METHOD, METHOD_CONFIGS, MethodConfig
from lamina.config.read import read_yaml
from lamina.config.root import Config
from lamina.config.train import TrainConfig

__all__ = [
    "DEFAULT_METHOD",
    "METHOD_CONFIGS",
    "Config",
    "DataConfig",
    "MethodConfig",
    "ReplayConfig",
    "SourceConfig",
    "TrainConfig",
    "load_config",
    "merge_overrides",
    "only_given",
    "read_yaml",
    "resolved_values",
]
