"""Training: loop, optimiser and schedule, averages of weights, checkpoints and exact resume."""
