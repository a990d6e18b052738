"""The model store: manifests, versions, aliases and signatures."""
