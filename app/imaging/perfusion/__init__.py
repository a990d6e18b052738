"""CT perfusion: arterial input, deconvolution, maps, and their summary in numbers."""
