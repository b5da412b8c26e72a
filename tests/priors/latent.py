"""The Stable Diffusion priors that tests build, and the pipelines that they must equal."""

from pathlib import Path

import torch

from outsourced.priors import DiffusionPrior, LatentDiffusionPrior

DIFFUSION = {
    "ddim": "DDIMScheduler",
    "dpm_solver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}
FLOW = {"flow_match_euler": "FlowMatchEulerDiscreteScheduler"} | {
    name: DIFFUSION[name] for name in ("dpm_solver++", "unipc")
}
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}
PROMPTS = {"prompt": "a bag", "negative_prompt": "a shoe"}


def prior(folder, **settings) -> LatentDiffusionPrior:
    if Path(folder, "transformer").is_dir():
        settings = {"load": WITHOUT_T5, **settings}
    return LatentDiffusionPrior(str(folder), **{"steps": 3, **PROMPTS, **settings})


def noise(model: DiffusionPrior, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *model.noise_shape, generator=torch.Generator().manual_seed(seed))


def pipeline(folder, scheduler: str, dtype: torch.dtype = torch.float32, **changes):
    import diffusers

    absent = WITHOUT_T5 if (folder / "transformer").is_dir() else {"safety_checker": None}
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **absent).to(dtype)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **changes)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():  # torch takes other kernels where weights want gradients
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return pipe


def images(pipe, z, guidance: float, **settings):
    arguments = {**PROMPTS, "guidance_scale": guidance, "num_inference_steps": 3, **settings}
    arguments = {"num_images_per_prompt": len(z), "output_type": "pt", **arguments}
    return pipe(latents=z, **arguments).images
