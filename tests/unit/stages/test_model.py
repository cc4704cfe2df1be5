"""Where the model of a stage runs."""

import pytest

from vpexp.config import compose_config
from vpexp.errors import ConfigError
from vpexp.stages.shared.model import load_stage_model


@pytest.mark.parametrize(("accelerator", "is_said"), [("auto", False), ("cpu", False), ("gpu", True)])
def test_load_stage_model__exported_runs_on_the_cpu_and_says_so(debug_ir, capsys, accelerator, is_said):
    cfg = compose_config(["experiment=debug", "stage=test", f"trainer.accelerator={accelerator}"])
    cfg.checkpoint = str(debug_ir.decoder)
    load_stage_model(cfg)
    said = capsys.readouterr().out
    assert ("trainer.accelerator=gpu: an exported model runs on the CPU" in said) == is_said


def test_load_stage_model__torch_runs_where_the_trainer_would(monkeypatch):
    cfg = compose_config(["experiment=debug", "trainer.accelerator=gpu", "trainer.devices=[1]"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"^trainer\.devices=\[1\]: there is no GPU 1 here; there is 0$"):
        load_stage_model(cfg)
