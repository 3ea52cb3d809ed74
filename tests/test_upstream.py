"""What this project leans on in other packages that they do not promise: private names, shapes, orders of calls.

A failure says in a sentence what has changed and what to change here. Facts are checked on what is installed, so a new version is tried by
running this file under it.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from support.models import IMAGE, prompts, random_llava, random_next

from blink_exp.backbone.cache_name import CACHE


@contextlib.contextmanager
def otherwise(change: str) -> Iterator[None]:
    """Fails with ``change``, what to change here, where the block does."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        pytest.fail(f"{change} [{type(error).__name__}: {error}]", pytrace=False)


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


# ---- torch


def test_torch_s_fused_attention_returns_log_sum_exps():
    with otherwise("decoder/shared_attention.py::kernel takes the log-sum-exp from aten's private kernel: call what replaces it"):
        query = torch.randn(2, 4, 3, 8)
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, query, query, 0.0, False, scale=0.5)
        logits = query @ query.mT * 0.5
        assert torch.allclose(sums, logits.logsumexp(-1), atol=1e-5) and torch.allclose(out, logits.softmax(-1) @ query, atol=1e-5)


def test_torch_s_variable_makes_every_load_one_of_weights_only(tmp_path, monkeypatch):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Code()}, tmp_path / "x.pt")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with otherwise(
        "training/distributed.py::weights_only_load relies on TORCH_FORCE_WEIGHTS_ONLY_LOAD: DeepSpeed's loads need another guard"
    ):
        with pytest.raises(Exception, match=r"(?i)weights.only"):
            torch.load(tmp_path / "x.pt", weights_only=False)
        assert not (tmp_path / "ran").exists()


# ---- Hydra and OmegaConf


def test_hydra_makes_its_config_loader_by_a_name_of_its_module(monkeypatch):
    from hydra._internal import hydra as internals
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra.core.global_hydra import GlobalHydra

    class Own(ConfigLoaderImpl):
        pass

    monkeypatch.setattr(internals, "ConfigLoaderImpl", Own)
    with otherwise(
        "settings/job_loader.py::check_all_configs puts its loader at hydra._internal.hydra.ConfigLoaderImpl: find where it is made now"
    ):
        try:
            made = internals.Hydra.create_main_hydra2("task", ConfigSearchPathImpl())
            assert type(made.config_loader) is Own
        finally:
            GlobalHydra.instance().clear()


def test_hydra_composes_through_load_configuration_before_it_configures_logging():
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.hydra import Hydra

    with otherwise("settings/job_loader.py::CheckedLoader checks in load_configuration: check where configs are composed now"):
        text = inspect.getsource(Hydra.compose_config)
        assert text.index("load_configuration") < text.index("configure_log(")
        assert "self.load_configuration" in inspect.getsource(ConfigLoaderImpl.load_sweep_config)
        assert parameters(ConfigLoaderImpl.load_sweep_config) == {"self", "master_config", "sweep_overrides"}
        assert {"config_name", "overrides", "run_mode"} <= parameters(ConfigLoaderImpl.load_configuration)
        assert "self.config_search_path = " in inspect.getsource(ConfigLoaderImpl.__init__)


def test_hydra_s_launchers_compose_jobs_by_the_loader_of_their_context():
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    with otherwise("hydra_plugins/blink_exp_shared/launcher.py extends BasicLauncher.launch: follow its arguments"):
        assert list(inspect.signature(BasicLauncher.launch).parameters) == ["self", "job_overrides", "initial_job_idx"]
        assert "self.hydra_context.config_loader.load_sweep_config" in inspect.getsource(BasicLauncher.launch)


def test_hydra_s_callbacks_and_overrides_have_the_names_that_are_used():
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.experimental.callback import Callback

    with otherwise("studies/jobs.py, studies/tuning.py: rename the callback methods as Hydra has"):
        assert {"on_run_start", "on_multirun_start", "on_multirun_end"} <= set(dir(Callback))
    with otherwise("settings/words.py reads parsed overrides: follow Hydra's Override"):
        override = OverridesParser.create().parse_override("+a.b=1,2")
        assert (override.key_or_group, override.input_line, override.is_sweep_override(), override.is_add()) == (
            "a.b",
            "+a.b=1,2",
            True,
            True,
        )
        assert list(override.sweep_iterator()) == [1, 2]


def test_hydra_has_one_name_for_what_reads_a_pickle():
    main = importlib.import_module("hydra.main")  # which the function of that name hides
    with otherwise("settings/words.py refuses --experimental-rerun, which loads a pickle: refuse its new name"):
        functions = [f for f in vars(main).values() if inspect.isfunction(f) and f.__module__ == main.__name__]
        assert [f.__name__ for f in functions if "pickle.load" in inspect.getsource(f)] == ["_get_rerun_conf"]
        assert "experimental_rerun" in inspect.getsource(main.main)


def test_omegaconf_s_errors_say_where_and_what():
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ValidationError

    from blink_exp.settings.roots import EvaluateSettings

    config = OmegaConf.structured(EvaluateSettings)
    with otherwise("settings/messages.py builds its lines from full_key, key, value, object_type, parent_node and _get_parent"):
        with pytest.raises(ValidationError) as wrong:
            config.batch_size = "many"
        assert (wrong.value.full_key, wrong.value.value, wrong.value.object_type) == ("batch_size", "many", EvaluateSettings)
        with pytest.raises(ConfigAttributeError) as unknown:
            config.no_such = 1
        assert str(unknown.value.full_key or unknown.value.key) == "no_such" and hasattr(unknown.value, "parent_node")
        assert OmegaConf.create({"a": [1]}).a._get_parent() == {"a": [1]}


def test_omegaconf_leaves_interpolations_and_makes_nodes_by_resolvers():
    from omegaconf import OmegaConf

    config = OmegaConf.create({"a": "${oc.create:{b:1}}", "c": "${a}", "d": "${oc.decode:'[1]'}"})
    with otherwise("settings/nodes.py walks unresolved containers, and what resolvers make of them: follow OmegaConf"):
        assert OmegaConf.to_container(config, resolve=False) == {"a": "${oc.create:{b:1}}", "c": "${a}", "d": "${oc.decode:'[1]'}"}
        assert OmegaConf.select(config, "a") == {"b": 1} and OmegaConf.select(config, "d") == [1]


# ---- transformers: modules and calls


@pytest.fixture(scope="module")
def llava():
    return random_llava()


@pytest.fixture(scope="module")
def llava_next():
    return random_next()


def test_the_parts_of_a_llava_have_these_names(llava, llava_next):
    with otherwise("backbone/model.py, decoder/attach.py, decoder/generated.py name the parts of LLaVA: rename them as transformers has"):
        for model in (llava, llava_next):
            inner, llm = model.model, model.model.language_model
            assert inner.vision_tower is not None and inner.multi_modal_projector.linear_2.weight is not None
            assert len(llm.layers) == model.config.text_config.num_hidden_layers and callable(llm.norm) and callable(llm.rotary_emb)
            assert model.lm_head.weight is not None and callable(model.get_input_embeddings())
            assert type(model.config.image_token_id) is int
        assert llava_next.model.image_newline.shape == (llava_next.config.text_config.hidden_size,)


def decoders() -> list[str]:
    from blink_exp.backbone.supported import LLMS

    return list(LLMS)


@pytest.mark.parametrize("kind", decoders())
def test_a_decoder_s_layer_takes_and_gives_these(kind):
    """The loop over the layers calls them itself, with a cache object of its own."""
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    llm: Any = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=8, **sizes)).eval()
    states, seen = torch.randn(1, 3, 16), []

    class Cache:
        def update(self, keys: Any, values: Any, *where: Any, **more: Any) -> tuple[Any, Any]:
            seen.append((keys.shape, where[:1]))
            return keys, values

    with otherwise("decoder/layers.py::run_layers calls a decoder's layers: follow its arguments and what it returns"), torch.no_grad():
        cos, sin = llm.rotary_emb(states, position_ids=torch.arange(3)[None])
        assert cos.shape == sin.shape == (1, 3, 8)
        out = llm.layers[1](
            states,
            attention_mask=None,
            position_embeddings=(cos, sin),
            position_ids=None,
            use_cache=True,
            **{CACHE: Cache()},
        )
        assert isinstance(out, torch.Tensor) and out.shape == states.shape
        assert seen == [((1, 1, 3, 8), (1,))]
    attention = llm.layers[1].self_attn
    with otherwise("decoder/scan.py, decoder/attention.py read attention modules: rename the attributes as transformers has"):
        assert attention.layer_idx == 1 and attention.scaling == pytest.approx(8**-0.5)
        assert attention.q_proj(states).shape == (1, 3, 16) and attention.k_proj(states).shape == (1, 3, 8)
        assert llm.layers[1].input_layernorm(states).shape == states.shape


def test_attention_is_looked_up_by_name_at_every_call(llava):
    """What the shared cache's ``update`` returns comes to the attention function as keys and values, untouched."""
    from transformers import AttentionInterface

    llm, states, seen = llava.model.language_model, torch.randn(1, 2, 32), {}
    handle = object()

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **more: Any) -> tuple[Any, None]:
        seen.update(query=query.shape, key=key, value=value, mask=attention_mask, scaling=scaling)
        return query.transpose(1, 2), None

    cache = types.SimpleNamespace(update=lambda *args, **more: (handle, handle))
    AttentionInterface.register("blink_exp_test", attend)
    before = llm.config._attn_implementation
    llm.config._attn_implementation = "blink_exp_test"
    try:
        with otherwise("decoder/shared_attention.py swaps the attention by its name in the config: find how transformers chooses it now"):
            rope = llm.rotary_emb(states, position_ids=torch.arange(2)[None])
            llm.layers[0](states, attention_mask=None, position_embeddings=rope, position_ids=None, use_cache=True, **{CACHE: cache})
            assert seen == {"query": (1, 4, 2, 8), "key": handle, "value": handle, "mask": None, "scaling": 8**-0.5}
    finally:
        llm.config._attn_implementation = before


def test_rotary_embeddings_are_applied_to_heads_first():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    query, angle = torch.randn(1, 2, 3, 4), torch.rand(1, 3, 2)
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
    with otherwise("decoder/scan.py and attention.py rotate queries by apply_rotary_pos_emb(q, k, cos, sin): follow its arguments"):
        turned = apply_rotary_pos_emb(query, query, cos, sin)[0]
        a, b = query.chunk(2, -1)
        c, s = angle.cos()[:, None], angle.sin()[:, None]
        assert torch.allclose(turned, torch.cat([a * c - b * s, b * c + a * s], -1), atol=1e-6)


def test_the_outer_model_calls_its_decoder_with_these(llava, monkeypatch):
    batch, seen = prompts(llava, [[8, 9], [10]]), {}
    llm = llava.model.language_model
    real = llm.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs, args=args)
        return real(*args, **kwargs)

    monkeypatch.setattr(llm, "forward", forward)
    with otherwise("decoder/attach.py::Attachment.forward stands in for the decoder's: follow what LLaVA calls it with"), torch.no_grad():
        llava(**batch)
        assert seen["args"] == () and seen["inputs_embeds"].shape[:2] == batch["input_ids"].shape
        assert {"attention_mask", CACHE} <= seen.keys()
        assert seen["attention_mask"].shape == batch["attention_mask"].shape


def test_generate_takes_images_that_are_encoded_already(llava):
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    batch = prompts(llava, [[8, 9]])
    with otherwise("backbone/model.py gives generate() its images as mm_encoder_outputs, and reads get_image_features().pooler_output"):
        with torch.no_grad():
            tokens = llava.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
            assert [t.shape for t in tokens] == [(36, 32)]
            stock = llava.generate(**batch, max_new_tokens=3, do_sample=False)
            ids = {k: v for k, v in batch.items() if k != "pixel_values"}
            encoded = {"image": BaseModelOutputWithPooling(pooler_output=list(tokens))}
            assert torch.equal(llava.generate(**ids, mm_encoder_outputs=encoded, max_new_tokens=3, do_sample=False), stock)
            other = {"image": BaseModelOutputWithPooling(pooler_output=[100 * torch.randn_like(t) for t in tokens])}
            assert not torch.equal(llava(**ids, mm_encoder_outputs=other).logits, llava(**ids, mm_encoder_outputs=encoded).logits)


def test_a_llava_next_s_image_features_stand_one_image_each(llava_next):
    size = llava_next.config.vision_config.image_size
    with otherwise("backbone/model.py::features reads the features of LLaVA-NeXT image by image"), torch.no_grad():
        pixels, sizes = torch.randn(2, 3, 3, size, size), torch.tensor([[size, 2 * size], [2 * size, size]])
        out = llava_next.get_image_features(pixel_values=torch.cat(list(pixels)), image_sizes=sizes).pooler_output
        assert [t.shape[0] for t in out] == [36 + 6 * 13, 36 + 12 * 7]  # a newline ends each row of the tiles


def test_eager_attention_returns_weights_and_sdpa_does_not():
    model = random_llava(attn="eager")
    with otherwise("figures and bench read attention weights of eager models only: follow where they are returned now"), torch.no_grad():
        attentions = model(**prompts(model, [[8, 9]]), output_attentions=True).attentions
        assert len(attentions) == 4 and attentions[0].shape[1] == 4


# ---- transformers: caches


def test_a_cache_is_a_list_of_layers_that_may_be_others(llava):
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

    with otherwise("decoder/generated.py refits a cache with layers of its own: follow transformers' Cache and DynamicLayer"):
        cache = Cache(layers=[DynamicLayer()])
        assert cache.get_seq_length() == 0 and isinstance(DynamicCache(config=llava.config.text_config).layers, list)
        layer = DynamicLayer()
        for name in ("get_seq_length", "reorder_cache", "batch_select_indices", "batch_repeat_interleave", "crop", "update"):
            assert callable(getattr(layer, name))
        layer.keys = layer.values = torch.arange(6.0).view(3, 1, 2, 1)
        layer.is_initialized, layer.dtype, layer.device = True, torch.float32, torch.device("cpu")
        layer.batch_select_indices(torch.tensor([2, 0]))
        assert layer.keys[:, 0, 0, 0].tolist() == [4, 0]
        layer.batch_repeat_interleave(2)
        assert layer.values[:, 0, 0, 0].tolist() == [4, 4, 0, 0]
        layer.reorder_cache(torch.tensor([3, 0, 0, 0]))
        assert layer.keys[:, 0, 0, 0].tolist() == [0, 4, 4, 4]


# ---- transformers: the vision tower and image processors


def test_clip_s_tower_has_these_parts_and_states(llava):
    from blink_exp.backbone.encode import post_layernorm, tower_layers

    tower = llava.model.vision_tower
    with otherwise("backbone/encode.py reads layers, CLS token and norm of the tower: rename them as transformers has"), torch.no_grad():
        assert len(tower_layers(tower)) == 2 and hasattr(getattr(tower, "vision_model", tower).embeddings, "class_embedding")
        attention = tower_layers(tower)[0].self_attn
        scores = []
        hook = attention.q_proj.register_forward_hook(lambda module, args, out: scores.append(out))
        out = tower(torch.randn(1, 3, 24, 24), output_hidden_states=True)
        hook.remove()
        assert len(out.hidden_states) == 3 and scores[0].shape == (1, 37, 16)
        assert torch.allclose(out.pooler_output, post_layernorm(tower)(out.hidden_states[-1][:, 0]), atol=1e-5)


def test_image_processors_of_pil_pad_and_tile_by_these_arguments():
    from PIL import Image
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    image = Image.new("RGB", (40, 20), "red")
    with otherwise("backbone/processor.py and backbone/pictures.py call image processors: follow their arguments"):
        size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
        padded = LlavaImageProcessorPil(**size, do_pad=True)
        assert padded(images=image, return_tensors="pt").pixel_values.shape == (1, 3, 24, 24) and hasattr(padded, "pad_to_square")
        tiled = LlavaNextImageProcessorPil(**size, image_grid_pinpoints=[[24, 48]])
        assert tiled(images=image, return_tensors="pt").pixel_values[0].shape == (3, 3, 24, 24)
        forced = tiled(images=image, return_tensors="pt", image_grid_pinpoints=[[48, 48]])
        assert forced.pixel_values[0].shape == (5, 3, 24, 24)
        plain = {"do_rescale": False, "do_normalize": False, "image_mean": [0.0] * 3, "resample": Image.Resampling.NEAREST}
        assert padded(images=image, return_tensors="pt", **plain).pixel_values.max() == 255


def test_llava_next_chooses_and_cuts_tiles_by_these_functions():
    from transformers.image_processing_utils import get_patch_output_size
    from transformers.image_utils import ChannelDimension
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    with otherwise("core/views.py uses LLaVA-NeXT's own rules for tiles and padding: follow their arguments"):
        assert get_anyres_image_grid_shape((30, 60), [[24, 48], [48, 24]], 24) == (1, 2)
        assert unpad_image(torch.zeros(1, 24, 48), (24, 24)).shape == (1, 24, 24)
        assert "target_resolution" in parameters(get_patch_output_size) and ChannelDimension.LAST is not None


def test_a_loaded_model_reports_what_it_lacks(tmp_path, llava):
    from transformers import AutoModelForImageTextToText

    llava.save_pretrained(tmp_path)
    with otherwise("backbone/load.py reads the loading info: follow its keys"):
        options = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded, report = AutoModelForImageTextToText.from_pretrained(
            str(tmp_path), dtype=torch.float32, attn_implementation="sdpa", **options
        )
        assert {"missing_keys", "mismatched_keys", "unexpected_keys"} <= report.keys() and not report["missing_keys"]
        assert loaded.config._attn_implementation == "sdpa" and loaded.generation_config is not None


def test_a_processor_counts_image_tokens_by_these_attributes(scale):
    with otherwise("backbone/processor.py sets what the processor counts image tokens by: rename it as transformers has"):
        processor = scale.processor
        for name in ("image_token", "patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "chat_template"):
            assert getattr(processor, name) is not None
        assert IMAGE >= 0 and callable(processor.apply_chat_template) and processor.image_processor.to_dict()


# ---- Lightning


def test_lightning_s_trainer_resumes_with_weights_only():
    import pytorch_lightning as pl

    with otherwise("training/training.py resumes with weights_only: follow Trainer.fit"):
        assert {"ckpt_path", "weights_only"} <= parameters(pl.Trainer.fit)


def test_lightning_s_checkpoint_counts_batches_here(tmp_path):
    import pytorch_lightning as pl
    from pytorch_lightning.demos.boring_classes import BoringModel

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_steps=1, default_root_dir=tmp_path, limit_val_batches=0, **quiet)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with otherwise("training/batches.py::rescale edits the batch counts of a checkpoint: find them in its loops"):
        progress = torch.load(tmp_path / "a.ckpt", weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        assert all(progress[name].keys() >= {"ready", "started", "processed", "completed"} for name in ("total", "current"))


def test_lightning_s_launcher_lists_the_processes_that_it_started():
    from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    with otherwise("training/distributed.py::terminate_children_on_failure reads launcher.procs: find the started processes"):
        assert "self.procs" in inspect.getsource(_SubprocessScriptLauncher)


def test_lightning_s_strategies_have_the_methods_that_are_overridden():
    from lightning_fabric.plugins.io import TorchCheckpointIO
    from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy

    with otherwise("training/distributed.py::Zero overrides Lightning's DeepSpeedStrategy: follow its methods"):
        for name in ("setup_environment", "setup_distributed", "set_world_ranks", "_init_deepspeed_distributed", "save_checkpoint"):
            assert callable(getattr(DeepSpeedStrategy, name))
        assert {"checkpoint_path", "weights_only"} <= parameters(DeepSpeedStrategy.load_checkpoint)
        assert "logging_batch_size_per_gpu" in parameters(DeepSpeedStrategy.__init__)
        assert callable(DDPStrategy.setup_environment) and {"checkpoint", "path"} <= parameters(TorchCheckpointIO.save_checkpoint)


def test_lightning_s_csv_logger_keeps_its_columns_in_metrics_keys(tmp_path):
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="", version="log", flush_logs_every_n_steps=1)
    with otherwise("tracking/training.py::keep_rows restores the columns of a resumed log: find them in CSVLogger.experiment"):
        assert list(logger.experiment.metrics_keys) == [] and logger.log_dir.endswith("log")


def test_lightning_turns_ctrl_c_into_an_exit_with_the_interrupt_behind_it():
    from pytorch_lightning.trainer import call

    with otherwise("training/signals.py::code_of finds Ctrl-C behind Lightning's exit: follow trainer.call"):
        text = inspect.getsource(call._call_and_handle_interrupt)
        assert "KeyboardInterrupt" in text and "_interrupt" in text


def test_lightning_s_rank_is_an_attribute_of_rank_zero_only():
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    with otherwise("tracking/training.py opens one run for all devices by rank_zero_only.rank: find the rank"):
        assert isinstance(getattr(rank_zero_only, "rank", 0), int)


# ---- DeepSpeed

deepspeed_installed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra: deepspeed)")


@deepspeed_installed
def test_deepspeed_s_private_names(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    ops = importlib.import_module("deepspeed.ops")
    universal = importlib.import_module("deepspeed.checkpoint.ds_to_universal")
    scaler = importlib.import_module("deepspeed.runtime.fp16.loss_scaler")
    with otherwise("training/distributed.py keeps DeepSpeed from compiling by deepspeed.ops.__compatible_ops__: find the list"):
        assert isinstance(vars(ops).get("__compatible_ops__", {}), dict)
    with otherwise("training/distributed.py::convert calls ds_to_universal.main with a namespace: follow its arguments"):
        assert list(inspect.signature(universal.main).parameters) == ["args"]
        read = inspect.getsource(universal)
        assert all(
            f"args.{name}" in read for name in ("input_folder", "output_folder", "num_extract_workers", "num_merge_workers", "strict")
        )
    with otherwise("training/distributed.py allows DeepSpeed's loss scalers in checkpoints: find where they are defined"):
        assert scaler.LossScaler and scaler.DynamicLossScaler


# ---- W&B and datasets


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_s_settings_and_calls():
    import wandb

    with otherwise("tracking/weights_and_biases.py sets these of wandb.Settings: follow its fields"):
        named = {"init_timeout": 30, "finish_timeout": 300, "console": "off", "quiet": True, "x_disable_stats": True}
        settings = wandb.Settings(**named)
        assert settings.console == "off" and settings.x_disable_stats
        with pytest.raises(Exception, match="project"):
            wandb.Settings(project="a/b")
    with otherwise("tracking/weights_and_biases.py calls these: follow their arguments"):
        assert {"project", "entity", "dir", "name", "group", "tags", "job_type", "config", "reinit", "settings", "mode"} <= parameters(
            wandb.init
        )
        assert "verify" in parameters(wandb.login) and {"columns", "data"} <= parameters(wandb.Table.__init__)
        assert {"step_metric", "step_sync", "summary"} <= parameters(wandb.Run.define_metric)
        assert {"caption", "boxes"} <= parameters(wandb.Image.__init__)


def test_datasets_names_the_file_that_it_cannot_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no parquet")
    heard: list[str] = []
    reader = logging.getLogger("datasets.packaged_modules.parquet.parquet")

    def listen(record: logging.LogRecord) -> bool:
        heard.append(record.getMessage())
        return False

    reader.addFilter(listen)
    try:
        with otherwise("benchmarks/rows.py learns the broken file from a logger of `datasets`: find what it says now"):
            with pytest.raises(Exception, match=r"."):
                datasets.load_dataset(
                    "parquet", data_files={"test": str(tmp_path / "x.parquet")}, split="test", cache_dir=str(tmp_path / "c")
                )
            assert any("x.parquet' with error" in line for line in heard) or sys.platform == "win32"
    finally:
        reader.removeFilter(listen)


# ---- deprecations


def test_deprecations_that_are_logged_or_warned_are_noticed(no_deprecations):
    """By a handler of the tests (conftest.py), and by pytest's filters (pyproject.toml)."""
    logging.getLogger("transformers.some.module").warning("`a` is deprecated and will be removed in version 6")
    assert no_deprecations.messages.pop().startswith("transformers.some.module: `a` is deprecated")
    for package in ("transformers", "pytorch_lightning", "deepspeed", "hydra", "wandb"):
        for kind in (DeprecationWarning, FutureWarning):
            with pytest.raises(kind):
                warnings.warn_explicit("old", kind, "x.py", 1, module=f"{package}.module")
