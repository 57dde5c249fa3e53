"""Data sets, augmentation and batches; NumPy and Pillow only."""
