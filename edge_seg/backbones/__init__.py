"""Backbones in plain PyTorch; parameter names equal timm's where timm has the network."""
