"""What each key of a config means, in words, and a config file that says so beside each value.

The keys, their defaults and their order are the dataclasses' own; the texts are here, and a test sees to it that none
is missing. Knows nothing of torch.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import Field, asdict, fields

from training import config_file
from training.config import ESTIMATORS, KINDS, LIKELIHOODS, PRIOR_FITS, Config

_WIDTH = 100

SECTIONS = {
    "data": "The images.",
    "model": "The network.",
    "objective": "What training makes small.",
    "prior": "What is fitted to the encoded images once the model is trained.",
    "optimiser": "AdamW.",
    "run": "How long, where, and how it is kept.",
}

TEXTS = {
    "data.path": "An IDX folder (MNIST's own files), a folder of images, a .zip of images, or a .npz; as --data.",
    "data.image_size": "[height, width] in pixels, 8 to 4096, that all images are resized and cropped to; left out: as "
    "they are, if all are alike.",
    "data.channels": "1 (grey) or 3 (RGB); left out: as the files are.",
    "data.labels": "The names of the classes 0, 1, 2, ... in order; a folder for each class names them by itself.",
    "data.holdout": "The share of images, 0.001 to 0.9, that is held out if the source has no test images.",
    "data.max_bad_share": "The share of unreadable files, 0 to 1, that is put up with.",
    "data.validation": "So many of the images to train on are set aside to choose by: the last ones of a source with "
    "test images of its own, else drawn; 0: none.",
    "data.cache": "A folder for decoded pixels on the disk, for sets larger than memory; empty: pixels are in memory.",
    "model.kind": f"{', '.join(KINDS)}. conv: residual and convolutional; pca: in closed form, and nothing is trained.",
    "model.latent_dim": "How many numbers an image is encoded to.",
    "model.width": "conv, plain: channels at the first scale, doubled at each further one; multiples of 32 are quick.",
    "model.max_width": "conv, plain: channels at most.",
    "model.blocks": "conv: residual blocks at each scale.",
    "model.head": "conv, plain: units of the dense layer before the latents.",
    "model.hidden": "The dense models: sizes of the encoder's layers; the decoder has them in reverse.",
    "model.conditional": "Give encoder and decoder each image's class, so that a wanted class can be drawn.",
    "objective.likelihood": f"p(x|z): {', '.join(LIKELIHOODS)}. gaussian: one variance, the best for the data; "
    "bernoulli: grey values are drawn as black and white anew each time.",
    "objective.variance": "gaussian-fixed: the c of N(mean, c I), in units of squared pixel values in [0, 1].",
    "objective.prior": "normal: N(0, I); flow: learnt with the model.",
    "objective.estimator": f"{', '.join(ESTIMATORS)}. iwae: the importance-weighted bound of `samples`; stl and dreg: "
    "the gradients of elbo and iwae with less noise.",
    "objective.samples": "Samples of q(z|x) for each image and step.",
    "objective.beta": "The weight of the KL; 1 is the ELBO proper, which is reported whatever this is.",
    "objective.beta_warmup": "The share of the steps, 0 to 1, over which beta grows from 0, if it has no cycles.",
    "objective.beta_cycles": "Let beta rise so many times, from 0 each time; 0: once.",
    "objective.free_bits": "Nats of each latent's KL that cost nothing.",
    "objective.perceptual": 'A distance that sees blur, added to the loss: laplacian or ms-ssim; "": none.',
    "objective.perceptual_weight": "The weight of that distance, in nats.",
    "objective.corruption": "model.kind = denoising: standard deviation of the noise that is added, in pixel values "
    "in [0, 1].",
    "prior.fit": f"{', '.join(PRIOR_FITS)}. best: whichever gives held-out images' latents the highest density.",
    "prior.components": "mixture: how many Gaussians.",
    "optimiser.learning_rate": "The highest rate, reached after the warm-up; from there a cosine falls to 0.",
    "optimiser.warmup_steps": "Steps over which the rate grows from 0; a fifth of all steps at most.",
    "optimiser.weight_decay": "Of the weights; norms and biases do not decay.",
    "optimiser.clip_norm": "Gradients longer than this are shortened to it.",
    "optimiser.ema_decay": "Of the weights' moving average, which is what is evaluated and exported; 0 to 0.999999.",
    "run.epochs": "Times that each image is seen.",
    "run.batch_size": "Images in a step, of all processes together.",
    "run.seed": "Of the weights, the order, the noise and the held-out share: 0 to 4294967295.",
    "run.device": "auto, cpu or cuda.",
    "run.precision": "auto, fp32 or bf16; auto: bf16 where the hardware has it. The loss is computed in fp32 always.",
    "run.checkpoint_steps": "Steps between checkpoints; there is one at the end of each epoch too.",
    "run.devices": "Processes on each machine, one for each GPU, that share each batch.",
    "run.nodes": "Machines.",
    "run.snapshots": "Keep the averaged weights of epochs 1, 2, 3, 4, 6, 8, 11, 16, ... for animations.",
}


def commented(config: Config) -> str:
    """`config` as TOML that `config_file.parse` reads back to an equal one, each key under its meaning.

    A key without a value (the images say) stands there as a comment.
    """
    values = config_file.to_dict(config)
    lines = ["# A config of latentry: latentry train --config FILE. What is left out has its default.", ""]
    for section in fields(Config):
        lines += [f"# {SECTIONS[section.name]}", f"[{section.name}]"]
        for key in fields(getattr(config, section.name)):
            lines += [*_comment(section.name, key), _line(key.name, values[section.name].get(key.name)), ""]
    return "\n".join(lines)


def _comment(section: str, key: Field[object]) -> Iterator[str]:
    default = asdict(Config())[section][key.name]
    text = TEXTS[f"{section}.{key.name}"]
    if default not in (None, "", ()):
        text += f" Default: {_literal(default)}."
    return (f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False))


def _line(name: str, value: object) -> str:
    if value is None:
        return f"# {name} ="
    return f"{name} = {_literal(value)}"


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON's strings, numbers, booleans and lists are TOML's too
