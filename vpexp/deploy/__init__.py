"""From trained models to deployed ones: export, the check that nothing was lost, and quantization."""
