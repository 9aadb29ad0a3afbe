"""Where records of earlier versions find the activations of experts."""

from nanigpt.models.activation import ClampedSwiGLU, GatedActivation, SwiGLU

__all__ = ["ClampedSwiGLU", "GatedActivation", "SwiGLU"]
