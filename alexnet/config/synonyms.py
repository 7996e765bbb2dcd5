"""Names that other training programs use for settings and values: an error message suggests ours."""

import difflib
import re
from collections.abc import Iterable

SETTINGS = {
    "learning_rate": "lr base_lr rate eta",
    "n_epochs": "epoch epochs max_epochs num_epochs",
    "n_iterations": "iters iterations max_iter max_steps steps num_steps",
    "random_seed": "seed rng_seed manual_seed",
    "batch_size": "b bs batch minibatch train_batch_size",
    "micro_batch_size": "micro_batch microbatch accumulate accumulation accumulate_grad_batches "
                        "gradient_accumulation gradient_accumulation_steps grad_accum accum_steps iter_size",
    "devices": "gpu gpus cuda num_gpus n_gpus ngpu workers n_workers num_workers nproc world_size",
    "update": "opt optim optimizer optimiser solver algorithm",
    "ema_decay": "ema model_ema model_ema_decay ema_rate polyak swa",
    "weight_decay": "wd decay l2",
    "clip_norm": "clip grad_clip clip_grad clip_grad_norm max_grad_norm gradient_clip_val clip_gradients",
    "momentum": "mom",
    "use_nesterov_momentum": "nesterov",
    "dropout_rate": "dropout",
    "label_smoothing": "smoothing ls label_smooth lsr",
    "model": "arch architecture net network",
    "data": "d dataset data_dir data_path train_dir input",
    "output": "o out out_dir output_dir save_dir log_dir",
    "run_name": "name run experiment",
    "resume_train": "resume checkpoint ckpt load",
    "weights": "pretrained init finetune fine_tune",
    "classes": "num_classes n_classes",
    "lr_policy": "scheduler sched schedule lr_schedule lr_scheduler",
    "lr_step": "step steps_lr milestones lr_steps step_size stepsize",
    "lr_factor": "gamma lr_gamma",
    "warmup_epochs": "warmup",
    "frozen_layers": "freeze frozen",
    "precision": "amp dtype fp16 bf16",
    "threads": "num_threads cores cpus",
    "print_freq": "p log_interval log_every display",
    "snapshot_freq": "save_every save_freq save_interval snapshot",
    "keep_snapshots": "keep save_total_limit",
    "validation": "val validate eval evaluate",
    "rule": "strategy sync_rule",
    "rand_crop": "crop random_crop augment",
    "random_resized_crop": "rrc resized_crop random_resize_crop random_sized_crop crop_scale min_scale",
    "pca_colour": "pca_color color_noise colour_noise pca_noise fancy_pca lighting alphastd",
    "exchange": "comm communication",
}
OURS = {synonym: setting for setting, synonyms in SETTINGS.items() for synonym in synonyms.split()}


def similar_setting(name: str, known: Iterable[str]) -> str | None:
    """Return the setting that `name` stands for, or a known one with a similar spelling, or None."""
    plain = re.sub(r"[-. ]", "_", name.strip("-").lower())
    known = tuple(known)
    if plain in known:
        return plain
    if plain in OURS:
        return OURS[plain]
    return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=0.6)), None)


def similar_device(name: str) -> str | None:
    """Return the device that `name` stands for: gpu, gpu1, cuda, cuda:1, 1 → cuda0, cuda1 …; None if none."""
    match = re.fullmatch(r"(?:gpus?|cuda)?[:_]?(\d{0,3})", name.strip().lower())
    return f"cuda{int(match[1] or 0)}" if match and name else None
