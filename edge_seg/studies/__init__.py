"""Programs behind published figures: ablations, speed, results tables."""
