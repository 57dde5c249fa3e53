"""Accuracy and pictures of a result; no PyTorch."""
