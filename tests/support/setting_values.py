"""What each setting takes of eight odd values; the rest is refused. A new setting gets a row here."""

from __future__ import annotations

VALUES = {
    **{"word": "blah", "float": "0.37", "null": "null", "negative": "-3", "nan": "nan", "empty": "", "list": "[1,2]"},
    "huge": "1000000000000",
}

# What is taken, by setting. Text arrives letter by letter, so that a number or a bracket in it is text too.
TEXT = {"word", "float", "negative", "nan", "list", "huge"}
OR_NULL = {"null"}
ALL = {"huge"}  # as many as there are
NOTHING: set[str] = set()
MEANT: dict[str, set[str]] = {
    "layer": OR_NULL,
    "retention_ratio": {"float"},
    "tokens": OR_NULL,
    "data_root": OR_NULL,  # a folder that is there
    "predictions": TEXT - {"list"},  # a list is one of files
    "against": TEXT,
    "sample": TEXT | OR_NULL,
    "image": TEXT | OR_NULL,
    "question": TEXT | OR_NULL,
    "compare": {"list", "null"},
    "shard": OR_NULL,
    "store": TEXT,
    "report": TEXT,
    "force": NOTHING,
    "part": NOTHING,
    "limit": ALL | OR_NULL,
    "skip_limit": {"float"},
    "batch_size": ALL,  # what does not fit into memory is refused when the model is there
    "workers": OR_NULL,
    "shared_gb": {"float", "null"},
    "cost": ALL,
    "seed": NOTHING,
    "share": NOTHING,
    "tables": OR_NULL,
    "figures": OR_NULL,
    "title": TEXT,
    "overrides": {"list"},
    "points": {"list"},
    "objective": TEXT | OR_NULL,
    "token_price": {"float", "huge"},
    "dashboard": OR_NULL,
    "train": TEXT | {"empty"},  # words of train.py, none by default
    "output": TEXT | OR_NULL,
    "resume": TEXT | OR_NULL,
    "image_loading.exif": NOTHING,
    "image_loading.alpha": OR_NULL,
    "image_loading.max_pixels": NOTHING,
    "image_loading.outside": NOTHING,
    "saliency.scorer": TEXT,  # packages may bring scorers; an unknown one is refused when the method is made
    "grid.p": NOTHING,
    "grid.scale_thresholds": NOTHING,
    "thresholds.tau_exp": {"float"},
    "thresholds.tau_drop": {"float"},
    "layers.indices": {"list", "null"},  # null: refused where no layer= is given
    "layers.base": NOTHING,
    "layers.relative": NOTHING,
    "resolution.policy": NOTHING,
    "resolution.on_reexpand": NOTHING,
    "resolution.scan": NOTHING,
    "resolution.interpolate": NOTHING,
    "resolution.positions": NOTHING,
    "tokensr.architecture": TEXT,  # as scorers
    "tokensr.path": TEXT | OR_NULL,
    "fill.policy": NOTHING,
    "hero.tokens_per_view": OR_NULL,
    "hero.relative": NOTHING,
    "hero.options.allocation": NOTHING,
    "hero.options.temperature_cls": {"float"},
    "hero.options.temperature_clip": {"float"},
    "hero.options.density_weight": {"float"},
    "hero.options.cls_source": NOTHING,
    "hero.options.text": NOTHING,
    "hero.options.remainder": NOTHING,
    "hero.options.overflow": NOTHING,
    "hero.options.score": NOTHING,
    "hero.options.tile_budget": NOTHING,
    "hero_alpha.alpha": {"float"},
    "hero_low.layers": {"list"},
    "hero_high.layers": {"list"},
    "newline_policy.policy": NOTHING,
    "positions.policy": OR_NULL,
    # a loss that leaves the range of numbers ends the training (tests/training)
    "loss.weights.answer": {"float", "huge"},
    "loss.weights.kl": {"float", "huge"},
    "loss.weights.kl_standardised": {"float", "huge"},
    "loss.temperature": {"float"},
    "loss.standardise": NOTHING,
    "loss.statistics_pairs": NOTHING,
    "loss.weights.kl_spatial": {"float", "huge"},
    "loss.weights.mse": {"float", "huge"},
    "loss.weights.cosine": {"float", "huge"},
    "trainer.accelerator": NOTHING,
    "trainer.strategy": TEXT,  # an unknown one is refused when the trainer is made
    "trainer.devices": {"list"},
    "trainer.num_nodes": NOTHING,
    "trainer.precision": NOTHING,
    "trainer.max_epochs": NOTHING,
    "trainer.log_every_n_steps": ALL,
    "trainer.callbacks.checkpoint.every_n_train_steps": ALL,
    "trainer.callbacks.checkpoint.save_last": NOTHING,
    "trainer.callbacks.checkpoint.save_top_k": NOTHING,
    "trainer.callbacks.checkpoint.enable_version_counter": NOTHING,
    "optim.lr": {"float", "huge"},
    "optim.weight_decay": {"float"},
    "optim.betas": OR_NULL,
    "optim.eps": {"float", "null"},
    "optim.warmup": {"float"},
    "checkpoint_activations": NOTHING,
    "channels_last": NOTHING,
    "measure": NOTHING,
    "model.path": TEXT,
    "model.name": TEXT | OR_NULL,
    "model.revision": TEXT | OR_NULL,
    "model.dtype": NOTHING,
    "model.device": TEXT,
    "model.device_map": OR_NULL,
    "model.attn_implementation": NOTHING,
    "model.quantization": OR_NULL,
    "model.pad": NOTHING,
    "model.system_prompt": OR_NULL,
    "model.clip": TEXT | OR_NULL,
    "benchmark.path": TEXT,
    "benchmark.config": TEXT | OR_NULL,
    "benchmark.image_config": TEXT,
    "benchmark.revision": TEXT | OR_NULL,
    "benchmark.split": TEXT,
    "benchmark.protocol": TEXT,
    "benchmark.request": TEXT,
    "benchmark.exif": OR_NULL,  # null: that of image_loading
    "benchmark.language": NOTHING,
    "benchmark.choice": NOTHING,
    "benchmark.normalization": NOTHING,
    "benchmark.ocr": OR_NULL,
    "benchmark.max_new_tokens": NOTHING,
    "benchmark.images": NOTHING,
    "benchmark.layers": {"list"},
    "benchmark.top": NOTHING,
    "benchmark.of": NOTHING,
    "benchmark.batch": NOTHING,
    "benchmark.seed": NOTHING,
    "benchmark.rule": NOTHING,
    "benchmark.questions": NOTHING,
    "benchmark.blank": NOTHING,
    "judge.model": TEXT,
    "judge.base_url": TEXT | OR_NULL,
    "judge.key_variable": TEXT,
    "judge.cache": TEXT,
    "judge.temperature": {"float", "null"},
    "judge.max_tokens": OR_NULL,
    "judge.max_retries": NOTHING,
    "judge.timeout": {"float"},
    "judge.threads": NOTHING,
    "judge.give_up": ALL,
    "data.global_batch": NOTHING,
    "data.path": TEXT,
    "data.json": TEXT,
    "data.images": TEXT,
    "data.held_out_share": {"float"},
    "data.train_size": NOTHING,
    "data.held_out_size": NOTHING,
    "data.batch_size": OR_NULL,
    "data.workers": NOTHING,
    "data.pad": NOTHING,
    "data.quadrants": NOTHING,
    "data.questions": NOTHING,
    "data.sizes": {"list"},
    "data.small": NOTHING,
    "data.cache_features": NOTHING,
    "data.cache_path": TEXT,
    "data.cache_dtype": NOTHING,
    "logger.project": TEXT,
    "logger.entity": TEXT | OR_NULL,
    "logger.uri": TEXT | OR_NULL,
    "logger.mode": NOTHING,
    "logger.rows": ALL,
    "logger.images": ALL,
}
# where a preset takes more or less than its neighbours
BUT = {
    ("benchmark=duts", "benchmark.path"): TEXT | OR_NULL,
    ("benchmark=easyvqa", "benchmark.path"): TEXT | OR_NULL,
    ("benchmark=duts", "benchmark.split"): NOTHING,
    ("data=llava_665k", "data.train_size"): OR_NULL,
    ("data=llava_665k", "data.held_out_size"): OR_NULL,
    **{(f"method={name}", "method.layer"): NOTHING for name in ("two_views", "crop", "vicrop")},
}
# of methods, under method., method.pruner. and method.policy.
OF_METHODS: dict[str, set[str]] = {
    "amplify": NOTHING,
    "saliency": TEXT,
    "p": NOTHING,
    "scale_thresholds": NOTHING,
    "tau_exp": {"float"},
    "tau_drop": {"float"},
    "layer": OR_NULL,
    "seed": NOTHING,
    "retention_ratio": {"float"},
    "ratio": {"float"},
    "tokens": OR_NULL,
    "tokens_per_view": OR_NULL,
    "alpha": {"float"},
    "low": {"list"},
    "high": {"list"},
    "relative": NOTHING,
    "newline_policy": NOTHING,
    "mode": NOTHING,
    "temperature": {"float"},
    "allocation_layer": OR_NULL,
    "selection_layer": OR_NULL,
    "neighbours": NOTHING,
    "iqr_factor": {"float"},
    "densify": NOTHING,
    "full_layers": NOTHING,
    "schedule": {"null", "list"},
    "layers": {"list"},
    "metric": NOTHING,
    "rank": NOTHING,
    "fewer": NOTHING,
    "cls_source": NOTHING,
    "fill": NOTHING,
    "region": NOTHING,
    "alone": NOTHING,
    "name": TEXT | OR_NULL,
}
NULLABLE_NEWLINES = ("fastervlm", "globalcom2", "hired")  # null: that of the mode


def meant(word: str, key: str) -> set[str] | None:
    """Kinds of values that a setting takes; None for what is no value of its own: a group, or what a method takes from another group."""
    if (word, key) in BUT:
        return BUT[word, key]
    if key in MEANT:
        return MEANT[key]
    name = key.rpartition(".")[2]
    if key.startswith("method.") and name in OF_METHODS:
        if name == "newline_policy" and any(method in word for method in NULLABLE_NEWLINES):
            return OR_NULL
        if name == "retention_ratio" and "sparsevlm" in word:
            return {"float", "null"}
        if name == "layers" and "sparsevlm" not in word:
            return None
        return OF_METHODS[name]
    return None
