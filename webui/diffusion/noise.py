"""Start noise: drawn on the CPU, so that a seed means the same picture on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from webui.diffusion.memo import Memo
from webui.request import MAX_SEED, GenerationRequest

NoiseMemo = Memo[tuple[bytes, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]]


class Noise:
    """The generators of a batch's pictures, one each. They go on from one pass to the next."""

    def __init__(self, pictures: Sequence[GenerationRequest], memo: NoiseMemo) -> None:
        """``pictures``: a request for each, of one variation strength."""
        self.pictures = pictures
        self.memo = memo
        self.generators = [generator(picture.seed) for picture in pictures]

    def draw(self, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal (B, ...) float32 on the CPU; each picture's part by its own generator."""
        return torch.cat([self._drawn(generator, shape) for generator in self.generators])

    def start(self, shape: Sequence[int]) -> torch.Tensor:
        """The noise that a picture starts from, as :meth:`draw`; moved towards the variation seed's."""
        noise, strength = self.draw(shape), self.pictures[0].variation_strength
        if not strength:
            return noise
        others = [generator(picture.variation_seed) for picture in self.pictures]
        other = torch.cat([self._drawn(generator, shape) for generator in others])
        return slerp(noise, other, strength)

    def _drawn(self, generator: torch.Generator, shape: Sequence[int]) -> torch.Tensor:
        """(1, ...): what the generator draws next, which is remembered by the state it draws it from."""

        def draw() -> tuple[torch.Tensor, torch.Tensor]:
            return torch.randn((1, *shape[1:]), generator=generator), generator.get_state()

        before = generator.get_state().numpy().tobytes()
        noise, after = self.memo((before, tuple(shape[1:])), draw)
        generator.set_state(after)
        return noise


def slerp(a: torch.Tensor, b: torch.Tensor, strength: float) -> torch.Tensor:
    """Between two noises along the sphere, per picture, so that the result is as large as noise is.

    a, b: (B, C, h, w); strength 0 gives ``a``, 1 gives ``b``. Shoemake, 'Animating rotation with
    quaternion curves' (1985): (sin((1-s) w) a + sin(s w) b) / sin w, w the angle between them.
    """
    x, y = a.flatten(1).double(), b.flatten(1).double()
    cosine = functional.cosine_similarity(x, y, dim=1).clamp(-1, 1)[:, None]
    angle = torch.acos(cosine)
    along = (torch.sin((1 - strength) * angle) * x + torch.sin(strength * angle) * y) / torch.sin(angle)
    parallel = angle.abs() < 1e-6  # the same noise twice: nothing to turn through
    mixed = torch.where(parallel, x, along)
    return mixed.to(a.dtype).view_as(a)


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed % (MAX_SEED + 1))
