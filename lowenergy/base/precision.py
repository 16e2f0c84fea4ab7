"""The arithmetic of a forward and a backward pass."""

from typing import Literal

Precision = Literal["32-true", "bf16-mixed"]
