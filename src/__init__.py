"""Image captioning with GRPO on MindSpore."""

__version__ = "0.1.0"
