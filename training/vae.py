"""Train the autoencoder: first whole, on crops; then its decoder alone, on whole scenes.

The encoder is frozen half-way, so that latents cached for the UNet stay valid while the decoder goes on
learning from slightly noisy ones, such as a sampler leaves.
"""

import logging
import random
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from training.budget import Budget
from training.latents import as_tensor
from training.muon import Muon
from training.recipe import Recipe
from training.scenes import Composer

log = logging.getLogger(__name__)

# Green against magenta, red against blue: without them hue is learnt last.
CHROMA = torch.tensor([[-0.5, 1.0, -0.5], [1.0, 0.0, -1.0]]).view(2, 3, 1, 1)
KL_WEIGHT = 1e-4
LATENT_NOISE = 0.12
MUON_LR, ADAM_LR = 0.03, 3e-3
REFINING = 0.1  # of those rates


def new_vae(recipe: Recipe) -> AutoencoderKL:
    """8x smaller, four channels, convolutions only: what is learnt on crops holds for whole pictures."""
    levels = len(recipe.vae_channels)
    vae = AutoencoderKL(
        latent_channels=4,
        sample_size=recipe.image_size,
        block_out_channels=recipe.vae_channels,
        layers_per_block=1,
        norm_num_groups=recipe.vae_norm_groups,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] -= 6.0  # begin with a nearly certain posterior
    return vae


def train(recipe: Recipe, composer: Composer) -> AutoencoderKL:
    """-> the averaged weights, with the scaling factor that gives latents of scenes variance 1."""
    torch.manual_seed(recipe.seed)
    vae = new_vae(recipe).to(memory_format=torch.channels_last)
    half = recipe.vae_steps // 2
    fit(vae, [*vae.parameters()], crops(recipe, composer), Budget(half), recipe.ema_decay)
    fit(vae, decoder_of(vae), wholes(recipe, composer), Budget(recipe.vae_steps - half), recipe.ema_decay)
    vae.register_to_config(scaling_factor=scaling_factor(vae, wholes(recipe, composer)))
    return vae.eval()


def refine(vae: AutoencoderKL, recipe: Recipe, composer: Composer, budget: Budget) -> AutoencoderKL:
    """Go on with the decoder of a finished VAE, more gently. Latents mean what they meant."""
    torch.manual_seed(recipe.seed + 1)
    vae.to(memory_format=torch.channels_last).train()
    fit(vae, decoder_of(vae), wholes(recipe, composer), budget, recipe.ema_decay, REFINING)
    return vae.eval()


def decoder_of(vae: AutoencoderKL) -> list[torch.nn.Parameter]:
    """Freeze what makes latents; -> the parameters of the rest."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return [p for p in vae.parameters() if p.requires_grad]


def fit(
    vae: AutoencoderKL,
    params: list[torch.nn.Parameter],
    pictures: Iterator[torch.Tensor],
    budget: Budget,
    ema_decay: float,
    rate: float = 1.0,
) -> None:
    """Train some parameters, at a share of the usual rates, then put their moving averages in their place."""
    ends = {
        id(p)
        for name, p in vae.named_parameters()
        if any(e in name for e in ("conv_in", "conv_out", "quant"))
    }
    matrices = [p for p in params if p.ndim == 4 and id(p) not in ends]
    rest = [p for p in params if p.ndim != 4 or id(p) in ends]
    optimizers = [(Muon(matrices, MUON_LR), MUON_LR), (torch.optim.AdamW(rest, betas=(0.9, 0.95)), ADAM_LR)]
    average = [p.detach().clone() for p in params]
    step, started = 0, time.time()
    while (progress := budget.progress(step, started)) < 1:
        budget.stand_still()
        warm = min(1.0, (step + 1) / 20)
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = rate * peak * warm * min(1.0, 1.25 * (1 - progress))
        loss, error = losses(vae, next(pictures))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        vae.zero_grad()
        decay = min(ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in params], 1 - decay)
        step += 1
        if step % 100 == 0:
            log.info("VAE step %d (%.0f %%), PSNR %.1f dB", step, 100 * progress, 10 * torch.log10(4 / error))
    with torch.no_grad():
        for p, value in zip(params, average, strict=True):
            p.copy_(value)


def losses(vae: AutoencoderKL, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-> the loss of (N, 3, H, W) pictures in -1..1, and their mean squared error."""
    posterior = vae.encode(pictures).latent_dist
    frozen = not vae.quant_conv.weight.requires_grad
    spread = LATENT_NOISE if frozen else posterior.std
    difference = pictures - vae.decode(posterior.mean + spread * torch.randn_like(posterior.mean)).sample
    error = difference.square().mean()
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    chroma = F.conv2d(F.avg_pool2d(difference, 4), CHROMA).square().mean()
    patches = F.avg_pool2d(difference, 8).square().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    loss = 0.7 * difference.abs().mean() + error + 1.5 * (chroma + patches) + 0.2 * edges
    return loss + (0 if frozen else KL_WEIGHT * kl), error.detach()


def wholes(recipe: Recipe, composer: Composer) -> Iterator[torch.Tensor]:
    """Batches of random scenes, without end."""
    keys = sorted(composer.sprites)
    while True:
        chosen = composer.random.choices(keys, k=max(1, recipe.vae_batch // 2))
        scenes = [composer.scene(*key).pixels for key in chosen]
        yield as_tensor(scenes).contiguous(memory_format=torch.channels_last)


def crops(recipe: Recipe, composer: Composer) -> Iterator[torch.Tensor]:
    """Batches of random quarters of scenes, two of each."""
    draw = random.Random(recipe.seed)
    side = recipe.image_size // 2
    for pictures in wholes(recipe, composer):
        places = [(draw.randint(0, side), draw.randint(0, side)) for _ in range(2)]
        quarters = [pictures[:, :, y : y + side, x : x + side] for y, x in places]
        yield torch.cat(quarters).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, pictures: Iterator[torch.Tensor]) -> float:
    means = [vae.encode(next(pictures)).latent_dist.mean for _ in range(32)]
    return round(1 / torch.cat(means).std().item(), 6)
