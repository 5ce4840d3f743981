"""A frozen linear layer with a trainable low-rank correction: `lora_linear`."""

from fastgrow.ops.lora.call import lora_linear

__all__ = ["lora_linear"]
