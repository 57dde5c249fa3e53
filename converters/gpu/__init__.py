"""LiteRT's GPU accelerator, over a GPU or software Vulkan."""
