"""Finds a checkpoint's files and checks that they are complete before anything is loaded.

Only safetensors are read, as they cannot run code, and no code of a repository is run. HF_HUB_OFFLINE=1 and HF_HOME work as in Hugging
Face's libraries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch

from blink_exp import hub
from blink_exp.backbone.supported import check_config, check_raw, read_by_library
from blink_exp.errors import UserError
from blink_exp.finite import first_nonfinite

T = TypeVar("T")
INDEX = "model.safetensors.index.json"
FILES = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.txt")  # downloaded files of a repository
KINDS = ("llava", "llava_next")


def is_folder(path: str) -> bool:
    """Whether ``path`` is a folder, not a hub id. Raises UserError if it is neither."""
    if Path(path).is_dir():
        return True
    if Path(path).is_file():
        raise UserError(f"model.path={path} is a file; give the folder that holds it, or a hub id")
    if path.count("/") != 1 or not all(path.split("/")):
        raise UserError(f"model.path={path} is neither a folder nor a hub id like llava-hf/llava-1.5-7b-hf; give one of them")
    return False


def find_config(path: str, revision: str | None) -> Path:
    """The folder with config.json: ``path`` itself or, for a hub id, the cache, to which only config.json is downloaded."""
    if not is_folder(path):
        from huggingface_hub import hf_hub_download

        return Path(_from_hub(lambda: hf_hub_download(path, "config.json", revision=revision), path, revision)).parent
    if not (Path(path) / "config.json").is_file():
        raise UserError(f"model.path={path} holds no config.json; give a folder in Hugging Face layout, or a hub id")
    return Path(path)


def read_config(folder: Path, path: str) -> Any:
    """The config of a LLaVA checkpoint. Raises UserError for another kind of model and for the original repository's layout."""
    from transformers import AutoConfig

    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"model.path={path} has a config.json that is no JSON ({error}); download it again") from error
    check_raw(raw, path)
    kind = raw.get("model_type")
    if kind not in KINDS or "text_config" not in raw:
        description = f"a model of type {kind}" if kind not in KINDS else "a LLaVA in the original repository's layout"
        raise UserError(
            f"model.path={path} holds {description}; use a LLaVA-1.5 or LLaVA-NeXT in Hugging Face layout, such as llava-hf/..."
        )
    with read_by_library(path, "config.json that makes a config"):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    check_config(config, path)
    return config


def fetch(path: str, revision: str | None) -> tuple[Path, str | None]:
    """(folder with all files of the checkpoint, commit). Downloads missing files of a hub id; commit is None for a folder."""
    if is_folder(path):
        return Path(path), None
    from huggingface_hub import snapshot_download

    folder = Path(_from_hub(lambda: snapshot_download(path, revision=revision, allow_patterns=list(FILES)), path, revision))
    return folder, folder.name


def _from_hub(call: Callable[[], T], path: str, revision: str | None) -> T:
    from huggingface_hub import errors

    hub.check_connection()
    setting = f"model.path={path}" + (f" (model.revision={revision})" if revision else "")
    try:
        return call()
    except errors.GatedRepoError as error:
        raise UserError(f"{setting} is gated; accept its terms on its page, then log in with: hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"model.revision={revision} is not in {path}; use a branch, tag or commit of it") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{setting} is not on the hub, or needs access; check the name, or log in with: hf auth login") from error
    except errors.HFValidationError as error:
        raise UserError(f"{setting} is neither a folder nor a valid hub id; give one of them") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"{setting} is not in the cache, and the hub is offline; run: hf download {path}, or give a folder") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{setting} holds no config.json; give a checkpoint in Hugging Face layout") from error
    except (errors.HfHubHTTPError, ConnectionError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{setting} could not be downloaded ({first}); try again, or give a folder") from error


def check_complete(folder: Path, path: str) -> None:
    """Raises UserError where weights are missing or incompletely downloaded."""
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"model.path={path} has an {INDEX} that names no files; {_again(path)}") from error
        odd = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        if odd:
            raise UserError(f"model.path={path}: {INDEX} names {odd[0]}, which is no file of the folder; {_again(path)}")
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        others = any(folder.glob("*.bin")) or any(folder.glob("*.pth"))
        why = "only this format is loaded, as it cannot run code" if others else "download the weights"
        raise UserError(f"model.path={path} holds no *.safetensors; {why}")
    if not index.is_file() and any("-of-" in name for name in names):
        raise UserError(f"model.path={path} holds parts of the weights but no {INDEX}; {_again(path)}")
    gone = [name for name in names if not (folder / name).is_file()]
    if gone:
        raise UserError(
            f"model.path={path} is half downloaded: {len(gone)} of {len(names)} files are missing, first {gone[0]}; {_again(path)}"
        )
    for name in names:
        fault = shard_fault(folder / name)
        if fault:
            raise UserError(f"model.path={path}: {name} {fault}; {_again(path)}")


def _again(path: str) -> str:
    return "download it again" if Path(path).is_dir() else f"run: hf download {path} --force-download"


def shard_fault(file: Path) -> str | None:
    """What is wrong with a safetensors file, by its header and length alone; None if nothing is."""
    size = file.stat().st_size
    with file.open("rb") as f:
        start = f.read(8)
        if start == b"version ":
            return "is a git-lfs pointer, not weights"
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > 100_000_000 or length + 8 > size:  # the format's own limit of a header
            return f"is cut off or no safetensors file ({size} bytes)"
        try:
            header = json.loads(f.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            end = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return "has a header that cannot be read"
    return None if size == end else f"has {size} bytes where its header says {end}"


def check_loaded(missing: Iterable[str], mismatched: Iterable[Any], path: str, unexpected: Iterable[str] = ()) -> None:
    """Raises UserError if a weight of the model is not in the checkpoint, which would leave it random, or if a layer's weights in the
    checkpoint are not used. ``mismatched``: (name, checkpoint shape, model shape)."""
    unused = sorted(name for name in unexpected if ".layers." in name and name.endswith((".weight", ".bias")))
    if unused:
        raise UserError(
            f"model.path={path} holds {len(unused)} weights of layers that its config.json leaves out, first {unused[0]}; give weights and"
            " config of one checkpoint"
        )
    for name, checkpoint_shape, model_shape in mismatched:
        raise UserError(
            f"model.path={path} holds {name} of shape {tuple(checkpoint_shape)}, but its config.json makes it {tuple(model_shape)};"
            " give the weights and config of one checkpoint"
        )
    wrong = sorted(map(str, missing))
    if wrong:
        raise UserError(f"model.path={path} lacks {len(wrong)} weights of its model, first {wrong[0]}; give a complete checkpoint")


def check_finite(model: Any, path: str, setting: str = "model.path") -> None:
    """Raises UserError where a weight is nan or inf: such a model answers with nothing, and every score of it is 0."""
    name = first_nonfinite(model.named_parameters())
    if name is not None:
        half = f", or it leaves the range of {setting.split('.')[0]}.dtype=float16" if model.dtype == torch.float16 else ""
        raise UserError(f"{setting}={path}: weight {name} holds nan or inf{half}; {'use bfloat16 or float32' if half else _again(path)}")


def read(folder: Path, ending: str) -> Any:
    """The tensor of the language model or projector whose name has this ending, as it was saved."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118
                if name.endswith(ending) and "vision_tower" not in name:
                    return f.get_tensor(name)
    raise KeyError(ending)
