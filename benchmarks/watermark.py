"""Measure what docs/watermark.md says.

python benchmarks/watermark.py speed      pictures a second, against the autoencoder's
python benchmarks/watermark.py figures    all tables (an hour on two cores); resumes
python benchmarks/watermark.py frontier   bits, PSNR and accuracy of the learned schemes
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

OUT = Path("runs/watermark-figures")
DISTORTIONS = ["none", "jpeg:50", "jpeg:20", "crop:0.1", "crop:0.2", "noise", "noise:0.1"]
MORE = ["rotation", "scaling:0.5", "blur", "sharpening", "brightness", "contrast", "jpeg+crop"]
SWEEP = ["vae", *(f"regeneration:{level}" for level in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6))]
OTHER = ["regeneration:0.3:prompt=caption", "regeneration:0.3:times=2", "regeneration:0.3:times=4"]
OTHER += ["img2img:0.3", "inversion:0.3", "inversion:1", "inpainting:0.1", "inpainting:0.6"]
GUIDED = ["guided:0.3", "guided:0", "guided:0.3:gradient_steps=10:last_levels=3"]
PHOTOGRAPHS = (
    *("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina"),
    *("immunohistochemistry", "camera", "coins", "moon", "brick", "grass", "gravel"),
)


def photographs(folder: Path) -> Path:
    """scikit-image's photographs, the shorter side at 512 pixels, and their quarters at 256."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        picture = Image.fromarray(getattr(data, name)()).convert("RGB")
        width, height = picture.size
        halves = [(x, y, x + width // 2, y + height // 2) for x in (0, width // 2)
                  for y in (0, height // 2)]  # fmt: skip
        for number, part in enumerate([picture, *(picture.crop(box) for box in halves)]):
            factor = (256 if number else 512) / min(part.size)
            size = (round(part.width * factor), round(part.height * factor))
            part.resize(size, Image.Resampling.LANCZOS).save(folder / f"{name}-{number}.png")
    return folder


def bench(name: str, *arguments: str) -> dict[str, object]:
    """One run of the command line, kept under its name."""
    command = ["watermark", "bench", "--out", str(OUT / name), "--json", *arguments]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "expunge", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    log: dict[str, object] = json.loads(done.stdout)
    print(f"\n### {name}\n\n{table(log)}\n", flush=True)
    return log


def _rate(cell: dict[str, object], key: str, interval: str) -> str:
    if cell[interval] is None:
        return "–"
    low, high = cell[interval]  # type: ignore[misc]
    return f"{100 * cell[key]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"  # type: ignore[operator]


def table(log: dict[str, object]) -> str:
    """The cells as Markdown."""
    rows = [
        "| scheme | edit | level | n | bits, % | payload, % | detected, % | PSNR marked | edited |"
    ]
    rows.append("| --- | --- | ---: | ---: | --- | --- | --- | ---: | ---: |")
    for cell in log["cells"]:  # type: ignore[attr-defined]
        level = "" if cell["level"] is None else f"{cell['level']:.3g}"
        marked = cell["quality"]["original_marked"]["psnr"]
        rows.append(
            f"| {cell['scheme']} | {cell['edit']} | {level} | {cell['n']} "
            f"| {_rate(cell, 'bit_accuracy', 'ci')} | {_rate(cell, 'payload_rate', 'payload_ci')} "
            f"| {_rate(cell, 'detection_rate', 'detection_ci')} "
            f"| {marked:.1f} | {cell['psnr']:.1f} |"
        )
    for row in log["unmarked"]:  # type: ignore[attr-defined]
        low, high = row["mean_ci"]
        rows.append(
            f"\n{row['scheme']}: {row['n']} unmarked, {row['keys']} keys: mean {row['mean']:.4%} "
            f"[{low:.4%}, {high:.4%}], law {row['law']:.4%}; worst {row['worst']:.3%} "
            f"[{row['worst_ci'][0]:.3%}, {row['worst_ci'][1]:.3%}], law {row['law_worst']:.3%}."
        )
    for flag in log["flags"]:  # type: ignore[attr-defined]
        rows.append(f"\nFlag {flag['code']}: {flag['text']}")
    return "\n".join(rows)


def figures() -> None:
    """Every table of docs/watermark.md."""
    both = ["--schemes", "learned", "learned-vae"]
    pictures = photographs(OUT / "photographs-in")
    for size in ("64", "128"):
        edits = [*DISTORTIONS, *(MORE if size == "64" else [])]
        bench(f"distortions-{size}", *both, "--edits", *edits, "--count", "1000", "--size", size)
    bench(
        "photographs",
        *("--schemes", "learned", "learned-vae", "dwtdctsvd:bits=32", "rivagan"),
        *("--edits", *DISTORTIONS, "--images", str(pictures)),
    )
    none = ["--unmarked", "0"]
    bench("regeneration-miniature-sd", *both, "--edits", *SWEEP, "--count", "200", *none)
    bench("guided-miniature-sd", *both, "--edits", *GUIDED, "--count", "50", *none)
    flux = ["vae", "regeneration:0.1", "regeneration:0.3", "regeneration:0.6", "guided"]
    bench(
        "regeneration-miniature-flux",
        *(*both, "--edits", *flux, "--count", "100", "--model", "miniature-flux", *none),
    )
    bench("others", *both, "--edits", *OTHER, "--count", "30", *none)
    bench(
        "noise-schemes",
        *("--schemes", "tree-ring:radius=0.3", "gaussian-shading:bits=32"),
        *("--edits", "none", "jpeg:50", "vae", "regeneration:0.3"),
        *("--count", "50", "--unmarked", "300"),
    )


def frontier() -> None:
    """Accuracy of both variants embedded at other distances than their own."""
    distances = (32, 34, 35, 36, 38, 40)
    schemes = [f"{name}:psnr={psnr}" for name in ("learned", "learned-vae") for psnr in distances]
    edits = ["none", "jpeg:50", "crop:0.1", "noise", "vae", "regeneration:0.1"]
    options = ("--count", "300", "--unmarked", "0")
    bench("frontier", "--schemes", *schemes, "--edits", *edits, *options)


def picture() -> None:
    """Originals, marked ones, what was added, and the marked ones edited."""
    import expunge
    from expunge.backbone.load import as_backbone
    from expunge.grid import grid
    from expunge.watermark import names, pictures
    from expunge.watermark.edit.base import Subject
    from expunge.watermark.scheme.base import PictureScheme

    hosts = pictures.world(8, first=20)
    pixels = torch.stack([host.load() for host in hosts])
    seeds = [host.seed for host in hosts]
    backbone = as_backbone(expunge.load("miniature-sd", device="cpu"))
    rows = [("original", pixels)]
    for name in ("learned", "learned-vae"):
        scheme = names.scheme(name)
        assert isinstance(scheme, PictureScheme)
        payloads = scheme.payloads(seeds)
        marked = scheme.embed(pixels, payloads)
        change = (marked.float() - pixels.float()) * 10 + 128
        rows += [(f"marked by {name}", marked), ("what was added, ten times", change)]
        for text in ("jpeg:50", "regeneration:0.1", "regeneration:0.3"):
            captions = [host.caption for host in hosts]
            edited = names.edit(text)(Subject(marked, seeds, captions, backbone, scheme))
            right = (scheme.extract(edited).bits == payloads).mean()
            rows.append((f"{text}: {right:.0%} of bits read right", edited))
    shown = [
        (label, [Image.fromarray(each.permute(1, 2, 0).clamp(0, 255).byte().numpy())
                 for each in batch])
        for label, batch in rows
    ]  # fmt: skip
    grid(shown, 1).save("docs/watermark.png", optimize=True)


def _seconds(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def speed() -> None:
    """Embed, edit and extract 64 x 64 pictures in batches of 100."""
    import expunge
    from expunge.backbone.load import as_backbone
    from expunge.watermark import names, pictures
    from expunge.watermark.edit.base import Subject
    from expunge.watermark.scheme.base import PictureScheme

    pixels = torch.stack([host.load() for host in pictures.world(100)])
    seeds = list(range(100))
    scheme = names.scheme("learned")
    assert isinstance(scheme, PictureScheme)
    payloads = scheme.payloads(seeds)
    backbone = as_backbone(expunge.load("miniature-sd", device="cpu"))

    def through(text: str) -> float:
        edit = names.edit(text)

        def work() -> None:
            marked = scheme.embed(pixels, payloads)
            scheme.extract(edit(Subject(marked, seeds, [""] * 100, backbone, scheme)))

        return 100 / _seconds(work)

    found = {text: through(text) for text in ("none", "jpeg:50", "crop:0.1", "noise", "vae")}
    for text, rate in found.items():
        print(f"{text}: {rate:.0f} pictures a second, {rate / found['vae']:.1f} times vae's")
    for text in ("none", "jpeg:50", "crop:0.1", "noise"):
        assert found[text] >= 200, f"{text}: {found[text]:.0f} pictures a second, below 200"


if __name__ == "__main__":
    jobs = {"speed": speed, "figures": figures, "frontier": frontier, "picture": picture}
    if len(sys.argv) != 2 or sys.argv[1] not in jobs:
        raise SystemExit(__doc__)
    jobs[sys.argv[1]]()
