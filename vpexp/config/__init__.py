"""The configuration: its types, how it is composed, checked, saved, and explained where it is wrong."""

from vpexp.config.compose import compose_config
from vpexp.config.saved import INHERITED, inherit, load_config, save_config
from vpexp.config.schema import Config
from vpexp.config.validate import validate

__all__ = ["INHERITED", "Config", "compose_config", "inherit", "load_config", "save_config", "validate"]
