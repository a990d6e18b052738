"""CT perfusion: motion correction, arterial input function, deconvolution, maps, and summary volumes."""
