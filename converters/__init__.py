"""From an exported network to a verified .tflite, and what a delegate makes of it."""
