"""Names that options choose from. Imports nothing, so that a command line can list them at once."""

from typing import Literal

MethodName = Literal["keypoint", "ll", "ll++", "ll++conv"]
AugmentationName = Literal["none", "light", "paper"]
Precision = Literal["float32", "bfloat16", "float16"]
Views = Literal[1, 2]  # of an image: as it is; and mirrored too
