"""Train the UNet and the text encoder together on cached latents. Runs add up: see `Trainer`.

v-prediction (Salimans & Ho 2022) with a weight that falls with the signal-to-noise ratio (after min-SNR,
Hang et al. 2023), Muon for matrices, AdamW for the rest, and a moving average of the weights to keep.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.budget import Budget
from training.latents import Latents
from training.muon import Muon
from training.precision import quick
from training.recipe import Recipe

NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
SNR_LIMIT = 5.0
WARM_UP = 100
HIGH_NOISE = 400  # timesteps from here on decide what is drawn, and where


@dataclass
class Run:
    """Where a run stands: steps and samples in all, the step and the time at which the present run began."""

    step: int = 0
    seen: int = 0
    first_step: int = 0
    started: float = 0.0


def new_unet(recipe: Recipe) -> UNet2DConditionModel:
    """Stable Diffusion's UNet in small; branches that add to a residual begin near zero."""
    levels = len(recipe.unet_channels)
    unet = UNet2DConditionModel(
        sample_size=recipe.latent_size,
        layers_per_block=1,
        block_out_channels=recipe.unet_channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (levels - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (levels - 1), "UpBlock2D"),
        cross_attention_dim=recipe.text_width,
        attention_head_dim=tuple(channels // 32 for channels in recipe.unet_channels),
        norm_num_groups=recipe.unet_norm_groups,
    )
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if name.endswith(("conv2.weight", "proj_out.weight", "conv_out.weight")):
                p.mul_(0.1)
    return unet


def new_text_encoder(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=recipe.text_width * 8 // 3,
        projection_dim=recipe.text_width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.text_heads,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.3)
    return encoder


def load_or_new(
    folder: Path, recipe: Recipe, tokenizer: CLIPTokenizer
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The float32 UNet and text encoder of a folder, or new ones."""
    if not (folder / "unet").exists():
        return new_unet(recipe), new_text_encoder(recipe, tokenizer)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32)
    return unet, CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)


def scheduler() -> DPMSolverMultistepScheduler:
    """What the model is shipped with: DPM-Solver++(2M) that begins at the last timestep.

    It never clips; `clip_sample` is for DDIM and DDPM made from its configuration, which would.
    """
    solver = DPMSolverMultistepScheduler(**NOISE, timestep_spacing="trailing", steps_offset=1)
    solver.register_to_config(clip_sample=False)
    return solver


class Trainer:
    """UNet, text encoder, optimisers and averages, kept in a folder.

    The folder's `unet` and `text_encoder` are the averaged weights in diffusers' layout; `checkpoint.pt` is
    everything else that going on exactly needs. A run cut short goes on from there, with the learning rate
    that its budget then says; a run that ended is followed by a new one, from the same weights and momenta.
    """

    def __init__(self, folder: Path, recipe: Recipe, latents: Latents, tokenizer: CLIPTokenizer) -> None:
        torch.manual_seed(recipe.seed)
        self.folder, self.recipe, self.latents = folder, recipe, latents
        self.unet, self.text_encoder = load_or_new(folder, recipe, tokenizer)
        # On a CPU the fused attention's backward pass takes several times as long as the plain one's.
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder.set_attn_implementation("eager")
        self.unet.to(memory_format=torch.channels_last).train()
        self.text_encoder.train()
        self.params = [*self.unet.parameters(), *self.text_encoder.parameters()]
        self.average = [p.detach().clone() for p in self.params]
        self.optimizers = self.make_optimizers()
        self.random = torch.Generator().manual_seed(recipe.seed)
        self.run = Run()
        self.losses: list[tuple[float, float]] = []
        signal = DDPMScheduler(**NOISE).alphas_cumprod
        self.signal, self.noise = signal.sqrt(), (1 - signal).sqrt()
        # limit / (snr + 1), where snr = signal / (1 - signal)
        self.weight = (SNR_LIMIT * (1 - signal)).clamp(0.15, 1.0)
        if (folder / "checkpoint.pt").exists():
            self.restore(torch.load(folder / "checkpoint.pt", weights_only=True))

    def make_optimizers(self) -> list[tuple[torch.optim.Optimizer, float]]:
        """Each with its peak learning rate: Muon for matrices, AdamW for the rest, twice that for words."""
        named = [*self.unet.named_parameters(), *self.text_encoder.named_parameters()]
        ends = ("conv_in", "conv_out", "embedding")
        matrices = [p for name, p in named if p.ndim > 1 and not any(end in name for end in ends)]
        words = self.text_encoder.get_input_embeddings().weight
        others = {id(p) for p in (*matrices, words)}
        rest = [p for _, p in named if id(p) not in others]
        return [
            (Muon(matrices, self.recipe.muon_lr), self.recipe.muon_lr),
            (adam(rest), self.recipe.adam_lr),
            (adam([words]), 2 * self.recipe.adam_lr),
        ]

    def train(self, budget: Budget, compiled: bool = False) -> None:
        """Go on until the budget is spent; save every few minutes."""
        unet = torch.compile(self.unet) if compiled else self.unet
        if not self.run.started:
            self.run.first_step, self.run.started = self.run.step, time.time()
        saved = logged = time.time()
        while (progress := budget.progress(self.run.step - self.run.first_step, self.run.started)) < 1:
            budget.stand_still()
            self.set_learning_rates(progress)
            self.losses.append(self.step(unet, progress))
            if len(self.losses) == 50:
                logged = self.log(progress, logged)
            if time.time() - saved > 300:
                self.save()
                saved = time.time()
        self.run.started = 0.0
        self.save()

    def set_learning_rates(self, progress: float) -> None:
        warm = min(1.0, (self.run.step - self.run.first_step + 1) / WARM_UP)
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * warm * cosine(progress)

    def step(self, unet: Callable[..., Any], progress: float) -> tuple[float, float]:
        """One batch. -> its weighted loss, and the plain mean squared error of v."""
        latents, tokens, t = self.batch(progress)
        noise = torch.randn(latents.shape, generator=self.random)
        a, s = (curve[t].view(-1, 1, 1, 1) for curve in (self.signal, self.noise))
        noisy = (a * latents + s * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=quick() is torch.bfloat16):
            predicted = unet(noisy, t, self.text_encoder(tokens).last_hidden_state).sample
        error = (predicted.float() - (a * noise - s * latents)).square().mean((1, 2, 3))
        loss = (error * self.weight[t]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for optimizer, _ in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.run.step += 1
        self.run.seen += len(t)
        self.follow()
        return loss.item(), error.mean().item()

    def batch(self, progress: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """-> latents (B, 4, h, w), tokens (B, 77) of which some say nothing, timesteps (B,)."""
        size = self.recipe.batch
        chosen = torch.randint(len(self.latents.pictures), (size,), generator=self.random)
        tokens = self.latents.tokens[chosen].long()
        silent = torch.rand(size, generator=self.random) < self.recipe.caption_dropout
        tokens[silent] = self.latents.empty.long()
        return self.latents.pictures[chosen].float(), tokens, timesteps(size, progress, self.random)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the averages towards the weights: quickly at first, then by 1 - ema_decay."""
        decay = min(self.recipe.ema_decay, (self.run.step + 1) / (self.run.step + 20))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1 - decay)

    def log(self, progress: float, since: float) -> float:
        """Append to log.jsonl the means over the last steps. -> now."""
        now, steps = time.time(), len(self.losses)
        loss, error = (sum(column) / steps for column in zip(*self.losses, strict=True))
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": self.run.step,
            "samples": self.run.seen,
            "progress": round(progress, 4),
            "loss": round(loss, 5),
            "v_mse": round(error, 5),
            "samples_per_second": round(steps * self.recipe.batch / (now - since), 1),
        }
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self.losses.clear()
        return now

    def save(self) -> None:
        """Write the checkpoint, whole or not at all, and the averaged weights."""
        state = {
            "unet": self.unet.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "random": self.random.get_state(),
            "run": vars(self.run),
        }
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")
        self.save_average()

    @torch.no_grad()
    def save_average(self) -> None:
        unet = UNet2DConditionModel.from_config(self.unet.config)
        text_encoder = CLIPTextModel(self.text_encoder.config)
        for p, value in zip([*unet.parameters(), *text_encoder.parameters()], self.average, strict=True):
            p.copy_(value)
        unet.save_pretrained(self.folder / "unet")
        text_encoder.save_pretrained(self.folder / "text_encoder")

    def restore(self, state: dict[str, Any]) -> None:
        self.unet.load_state_dict(state["unet"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        self.average = state["average"]
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.random.set_state(state["random"])
        self.run = Run(**state["run"])


def adam(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, betas=(0.9, 0.98), weight_decay=0.0)


def cosine(progress: float) -> float:
    """From 1 to 0."""
    return 0.5 + 0.5 * math.cos(math.pi * progress)


def timesteps(size: int, progress: float, random: torch.Generator) -> torch.Tensor:
    """(size,) int64, stratified: until 0.4 seven in ten more come from the noisy end, from 0.7 on none.

    What a caption means for shapes is learnt there, and slowly; edges are learnt quickly, at the end.
    """
    share = 0.7 * min(1.0, max(0.0, (0.7 - progress) / 0.3))
    noisy = round(size * share)
    low = HIGH_NOISE + (1000 - HIGH_NOISE) * strata(noisy, random)
    return torch.cat([low, 1000 * strata(size - noisy, random)]).long().clamp(max=999)


def strata(count: int, random: torch.Generator) -> torch.Tensor:
    """(count,) numbers in 0..1, evenly spread from a random start."""
    return (torch.rand(1, generator=random) + torch.arange(count) / max(1, count)) % 1
