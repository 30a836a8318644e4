"""Names for the tensor shapes that cross module borders.

Axis letters: ``B`` batch, ``C`` image channels, ``D H W`` voxels of a crop (array order, slowest axis first),
``d h w`` tokens of the ViT's grid, ``K`` segmentation heads. Masks are boolean; ``True`` means hidden.
"""

from jaxtyping import Bool, Float
from torch import Tensor

Volume = Float[Tensor, "B C D H W"]
TokenMask = Bool[Tensor, "B d h w"]
VoxelMask = Bool[Tensor, "B 1 D H W"]
KeyPoints = Float[Tensor, "B 9 3"]
Vectors = Float[Tensor, "B 9 3"]
VectorTargets = Float[Tensor, "B 9 4"]
Scalar = Float[Tensor, ""]

Size3 = tuple[int, int, int]
