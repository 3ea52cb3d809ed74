"""A small copy of LLaVA-1.5's instruction data, made here in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

FOLDERS = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")


def picture(path: Path, i: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40 + i, 30), (7 * i % 256, 3 * i % 256, 11)).save(path)


def instruction_data(root: Path, each: int = 4) -> tuple[Path, Path]:
    """(JSON, image folder) in the published layout. ``each`` images a folder, every first one named by two rows; two text-only rows.

    Of OCR-VQA's, number 1 lies there as .png where the file says .jpg, and number 2 is missing; of vg/VG_100K, number 3 is cut off.
    """
    rows: list[dict] = [{"id": "t0", "conversations": [{"from": "human", "value": "Hi"}]}]
    for f, folder in enumerate(FOLDERS):
        for i in range(each):
            name = f"{folder}/{i:06d}.jpg"
            rows += [{"id": f"{f}-{i}", "image": name, "conversations": [{"from": "human", "value": '<image>\nWhat, [this] is "it"?'}]}]
            if folder.startswith("ocr_vqa") and i == 2:
                continue
            suffix = ".png" if folder.startswith("ocr_vqa") and i == 1 else ".jpg"
            picture((root / "images" / name).with_suffix(suffix), 10 * f + i)
        rows += [{"id": f"{f}-again", "image": f"{folder}/000000.jpg", "conversations": []}]
    rows += [{"id": "t1", "conversations": []}]
    if each > 3:
        cut = root / "images" / "vg/VG_100K/000003.jpg"
        cut.write_bytes(cut.read_bytes()[:200])
    path = root / "llava_v1_5_mix665k.json"
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path, root / "images"
