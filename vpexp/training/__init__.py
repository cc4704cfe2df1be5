"""Fine-tuning: loss, module, callbacks, trainer."""
