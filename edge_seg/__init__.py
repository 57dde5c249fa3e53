"""edge_seg: panoptic and instance segmentation from PyTorch to TFLite on a phone, measured on the way."""

__version__ = "0.1.0"
