"""Post-training quantisation: calibration, ranges, corrections, recipes, reports."""
