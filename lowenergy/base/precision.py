"""What a forward and a backward pass compute in."""

from typing import Literal

Precision = Literal["32-true", "bf16-mixed"]
