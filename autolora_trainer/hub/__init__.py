"""The model card of a run, and the upload of its result."""

from autolora_trainer.hub.push import PushError, push_to_hub

__all__ = ["PushError", "push_to_hub"]
