"""Quantisation-aware retraining (not here yet)."""
