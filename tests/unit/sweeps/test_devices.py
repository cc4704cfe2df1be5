"""A job of a sweep trains on one device, the first like the others."""

import pytest

from vpexp.config import compose_config
from vpexp.errors import ConfigError
from vpexp.sweeps.plan import refuse_many_devices


@pytest.mark.parametrize(
    "override", ["trainer.devices=2", "trainer.devices='0,1'", "trainer.devices='[0,1]'", "trainer.strategy=ddp"]
)
def test_refuse__several_devices_or_their_strategy(override):
    with pytest.raises(ConfigError, match="a job of a sweep trains on one device"):
        refuse_many_devices(compose_config([override]))


@pytest.mark.parametrize("override", ["trainer.devices=1", "trainer.devices=auto", "trainer.devices='[3]'"])
def test_refuse__one_device_may_be_any(override):
    refuse_many_devices(compose_config([override]))
