"""PixArt-δ in PyTorch: transformer, control branches, consistency sampling, text encoder, VAE and edge detectors.

Nothing here knows how a model is served or trained; docs/model.md lists modules, shapes and equations.
"""
