"""Recipe of `fashion_sd`, a text-conditional latent diffusion model in the layout and classes of
Stable Diffusion 1.5: `python -m outsourced.zoo.fashion_sd`.

Trains, on all 60 000 images of Fashion-MNIST, an autoencoder (Rombach et al., 2022, arXiv
2112.10752) and then a U-Net with cross-attention together with its text encoder, by the noise
prediction loss (Ho et al., 2020, arXiv 2006.11239) with min-SNR weights (Hang et al., 2023, arXiv
2303.09556) and dropped captions (Ho & Salimans, 2022, arXiv 2207.12598).
`StableDiffusionPipeline.from_pretrained(folder)` loads what it writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from outsourced.classifiers import FashionFeatures
from outsourced.data import FASHION_CLASSES, load_fashion_mnist, to_model_range
from outsourced.metrics import psnr
from outsourced.priors import LatentDiffusionPrior
from outsourced.zoo.captions import LONGEST, caption, draw_captions, prompt_table, tokenizer
from outsourced.zoo.quality import draw
from outsourced.zoo.recipe import recipe_parser, start

LATENT, CLIP_SNR = 4, 5.0


def autoencoder() -> Any:
    """`AutoencoderKL` from 1 x 32 x 32 to 4 x 8 x 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 48),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT,
        sample_size=32,
        mid_block_add_attention=False,
    )


def text_encoder(tokens: Any) -> Any:
    """`CLIPTextModel` of two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        projection_dim=64,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return CLIPTextModel(config)


def denoiser() -> Any:
    """`UNet2DConditionModel` on 4 x 8 x 8 with cross-attention to the text at 4 x 4.

    Attention at the 64 positions of the full resolution would cost as much as all the rest.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT,
        out_channels=LATENT,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        attention_head_dim=4,  # heads, by the name that Stable Diffusion 1 gave their number
        cross_attention_dim=64,
        norm_num_groups=16,
    )


def noise_schedule() -> Any:
    """The scheduler of Stable Diffusion 1.5, as `DDIMScheduler`."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def averaged(module: nn.Module, decay: float, steps: int) -> AveragedModel:
    """Exponential moving average of a module's weights; it forgets the start of short trainings."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(min(decay, 1 - 3 / steps)))


def updates(
    module: nn.Module, average: AveragedModel, steps: int, rate: float
) -> Iterator[tuple[int, Any]]:
    """Steps of Adam with warm-up, cosine decay and clipping; the average follows.

    Yields:
        step and progress bar; the loop body leaves gradients behind.
    """
    from tqdm import trange

    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    progress = trange(steps, unit="step", mininterval=2)
    for step in progress:
        ramp = min(1.0, (step + 1) / 200)
        optimizer.param_groups[0]["lr"] = rate * ramp * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        yield step, progress
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(module)


def train_autoencoder(
    x_all: Tensor, steps: int, batch: int, rate: float, kl_weight: float, seed: int
) -> Any:
    """Least absolute error with a faint KL, which keeps the latents smooth and bounded."""
    device = x_all.device
    generator = torch.Generator(device).manual_seed(seed)
    vae = autoencoder().to(device, memory_format=torch.channels_last)
    average = averaged(vae, 0.998, steps)
    for step, progress in updates(vae, average, steps, rate):
        x = x_all[torch.randint(len(x_all), (batch,), generator=generator, device=device)]
        with torch.autocast(device.type, torch.bfloat16):
            code = vae.encode(x).latent_dist
            noise = torch.randn(code.mean.shape, generator=generator, device=device)
            decoded = vae.decode(code.mean + code.std * noise).sample
        error = (decoded.float() - x).abs().mean()
        kl = 0.5 * (code.mean**2 + code.var - 1 - code.logvar).float().mean()
        (error + kl_weight * kl).backward()
        if step % 50 == 0:
            progress.set_postfix(error=f"{error.item():.4f}", kl=f"{kl.item():.3f}")
    return average.module.eval().requires_grad_(False)


@torch.no_grad()
def encode_all(vae: Any, x_all: Tensor) -> Tensor:
    """Means of the codes of all images, scaled to unit variance by `vae.config.scaling_factor`."""
    with torch.autocast(x_all.device.type, torch.bfloat16):
        codes = [vae.encode(x).latent_dist.mean.float() for x in x_all.split(500)]
    code = torch.cat(codes)
    vae.register_to_config(scaling_factor=1 / code.std().item())
    return code * vae.config.scaling_factor


def train_denoiser(
    code: Tensor, labels: Tensor, tokens: Any, steps: int, batch: int, rate: float, seed: int
) -> tuple[Any, Any]:
    """Predict the noise of noised latents, given their captions; 10 % of the captions are empty.

    Returns:
        averaged U-Net and text encoder.
    """
    draws: dict[str, Any] = {
        "generator": torch.Generator(code.device).manual_seed(seed),
        "device": code.device,
    }
    captions = torch.Generator().manual_seed(seed)
    alphas = noise_schedule().alphas_cumprod.to(code.device)
    table = prompt_table(tokens)
    pair = nn.ModuleDict({"unet": denoiser(), "text": text_encoder(tokens)}).to(code.device)
    average = averaged(pair, 0.9995, steps)
    for step, progress in updates(pair, average, steps, rate):
        rows = torch.randint(len(code), (batch,), **draws)
        time = torch.randint(len(alphas), (batch,), **draws)
        alpha = alphas[time][:, None, None, None]
        noise = torch.randn(code[rows].shape, **draws)
        noisy = alpha.sqrt() * code[rows] + (1 - alpha).sqrt() * noise
        ids = table[draw_captions(labels[rows.cpu()], 0.1, captions)].to(code.device)
        with torch.autocast(code.device.type, torch.bfloat16):
            words = pair["text"](ids)[0]
            found = pair["unet"](noisy, time, words).sample
        error = (found.float() - noise).square().flatten(1).mean(1)
        snr = alphas[time] / (1 - alphas[time])
        (error * (CLIP_SNR / snr).clamp_max(1)).mean().backward()
        if step % 50 == 0:
            progress.set_postfix(error=f"{error.mean().item():.4f}")
    trained: Any = average.module.eval().requires_grad_(False)
    return trained["unet"], trained["text"]


def save_pipeline(folder: Path, vae: Any, unet: Any, text: Any, tokens: Any) -> None:
    """Write a Stable Diffusion pipeline folder in half precision."""
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokens,
        unet=unet,
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)


@torch.no_grad()
def steering(folder: Path, guidance: float, steps: int, n: int, seed: int) -> Tensor:
    """Share of the n samples of each garment's prompt that fashion_features calls that garment.

    Args:
        folder: pipeline.
        guidance: weight of classifier-free guidance.
        steps: DDIM steps.
        n: samples for each of the 10 prompts.
        seed: of the noise.

    Returns:
        shares, (10,), in the order of the classes.
    """
    judge, shares = FashionFeatures.from_weights(), []
    for label in range(len(FASHION_CLASSES)):
        settings: dict[str, Any] = {"guidance": guidance, "steps": steps}
        prior = LatentDiffusionPrior(str(folder), prompt=caption(label), **settings)
        guess = judge.log_probs(draw(prior, n, seed)).argmax(1)
        shares.append((guess == label).float().mean())
    return torch.stack(shares)


@torch.no_grad()
def evaluate(folder: Path, test: Tensor, n: int) -> dict[str, str]:
    """Compute the rows of the card that only this family has.

    Args:
        folder: pipeline.
        test: test images in [-1, 1], (M, C, H, W).
        n: samples for each prompt.

    Returns:
        name -> value, in the order of the card.
    """
    prior = LatentDiffusionPrior(str(folder))
    decoded = torch.cat([prior.decode(prior.encode(x)).clamp(-1, 1) for x in test.split(500)])
    rows = {"test reconstruction PSNR of the autoencoder, dB": f"{psnr(decoded, test).mean():.2f}"}
    for guidance, steps in ((1.0, 20), (3.0, 20), (3.0, 12)):
        shares = steering(folder, guidance, steps, n, seed=0)
        worst = int(shares.argmin())
        rows[f"prompts obeyed at guidance {guidance:g}, {steps} DDIM steps"] = (
            f"{shares.mean():.3f}, least {shares[worst]:.3f} ({FASHION_CLASSES[worst]})"
        )
    return rows


def main() -> None:
    parser = recipe_parser(__doc__, "fashion_sd")
    parser.add_argument("--autoencoder-steps", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--autoencoder-rate", type=float, default=2e-3)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--kl-weight", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="print the card's rows of --out")
    parser.add_argument("--n", type=int, default=100, help="with --evaluate: samples of a prompt")
    args = parser.parse_args()
    device = start(args, args.seed)
    if args.evaluate:
        test = to_model_range(load_fashion_mnist("test", args.folder)[0])
        for name, value in evaluate(args.out, test, args.n).items():
            print(f"| {name} | {value} |")
        return
    images, labels = load_fashion_mnist("train", args.folder)
    x_all, tokens = to_model_range(images).to(device), tokenizer()
    vae = train_autoencoder(
        x_all,
        args.autoencoder_steps,
        args.batch,
        args.autoencoder_rate,
        args.kl_weight,
        args.seed,
    )
    code = encode_all(vae, x_all)
    unet, text = train_denoiser(code, labels, tokens, args.steps, args.batch, args.rate, args.seed)
    save_pipeline(args.out, vae.cpu(), unet.cpu(), text.cpu(), tokens)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
