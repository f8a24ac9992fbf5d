"""Train the SAEs that the demo shows: ``python -m depass_sae.demo.train``.

Two stages, each kept as soon as it is done, so that a run that was killed goes on where it stopped:

1. *Capture.* SmolLM2 (bfloat16) reads the training contexts, each with ``<|endoftext|>`` before it, and the outputs of
   the decoder layers are written in shards. Position 0 is left out: it is an attention sink whose norm is 100 times
   that of the others and whose value never changes.
2. *Train.* Per layer one top-k SAE by sae-lens's own trainer, saved in sae-lens's format with the weights in float16.

Every file is written beside its place and renamed into it, so a half-written one is never taken for finished. A run
started beside another one shares its work: what one has locked, the other leaves alone. The figures are `evaluate`'s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..models.load import adapter_for
from ..models.smollm2 import MODEL_NAME, prepare
from ..passes.running import hooks, watch
from .corpus import CONTEXT_SIZE, Context, contexts, documents, fingerprint

LAYERS = (5, 11, 17, 23, 28)
SHARD_TOKENS = 32_768


@dataclass(frozen=True)
class Recipe:
    """How one SAE is trained; the defaults made the shipped ones."""

    d_sae: int = 4096
    k: int = 48
    rows: int = 1_500_000
    batch: int = 512
    lr: float = 1.5e-3
    decay_share: float = 0.4
    """The last part of the training, in which the learning rate falls to a tenth."""
    dead_after: int = 400
    """A feature that no batch has fired for so long is dead, and the auxiliary loss pulls it back."""
    seed: int = 0


def batches(texts: list[Context], tokens: int = 4096) -> Iterator[list[Context]]:
    """The contexts in runs of like length, each of at most `tokens` tokens when padded, so that little is padding."""
    run: list[Context] = []
    for context in sorted(texts, key=lambda context: len(context.ids)):
        if run and (len(run) + 1) * len(context.ids) > tokens:
            yield run
            run = []
        run.append(context)
    if run:
        yield run


@torch.inference_mode()
def residuals(model: Any, texts: list[Context], layers: tuple[int, ...]) -> dict[int, Float[Tensor, "row d_model"]]:
    """Layer → its output at every position but 0 of every context, in the model's dtype.

    Padding stands after the text, where causal attention does not see it, so no mask is needed.
    """
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    caught: dict[int, Tensor] = {}

    adapter = adapter_for(model)
    with hooks() as handles:
        for layer in layers:
            watch(adapter, (layer, "resid_post"), handles, partial(caught.__setitem__, layer))
        for run in batches(texts):
            longest = len(run[-1].ids)
            ids = torch.tensor([[*context.ids, *[0] * (longest - len(context.ids))] for context in run])
            lengths = torch.tensor([len(context.ids) for context in run])
            adapter.text(ids.to(model.device), use_cache=False)
            position = torch.arange(longest)[None]
            keep = ((position > 0) & (position < lengths[:, None])).to(model.device)
            for layer in layers:
                parts[layer].append(caught[layer][keep])
    return {layer: torch.cat(rows) for layer, rows in parts.items()}


def shards(texts: list[Context], tokens: int = SHARD_TOKENS) -> list[list[Context]]:
    """The contexts in order, in shards of about `tokens` tokens."""
    result: list[list[Context]] = [[]]
    filled = 0
    for context in texts:
        if filled >= tokens:
            result.append([])
            filled = 0
        result[-1].append(context)
        filled += len(context.ids) - 1
    return result


def capture(
    load_model: Callable[[], Any], texts: list[Context], layers: tuple[int, ...], folder: Path, progress: Any = None
) -> list[Path]:
    """Write the layers' outputs as ``shard-0000.safetensors`` and so on (layer → rows); the shards that exist stay."""
    from filelock import FileLock, Timeout
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    parts = shards(texts)
    paths = [folder / f"shard-{number:04d}.safetensors" for number in range(len(parts))]
    model = None
    bar = progress and progress.add_task("capture", total=len(parts))
    for wait in (False, True):  # first what nobody is at, then wait for those who share the work
        for path, part in zip(paths, parts, strict=True):
            if not path.exists():
                with contextlib.suppress(Timeout), FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0):
                    if not path.exists():
                        model = model or load_model()
                        rows = residuals(model, part, layers)
                        with replacing(path) as temporary:
                            save_file({str(layer): x.cpu().contiguous() for layer, x in rows.items()}, temporary)
            if progress:
                progress.update(bar, completed=sum(path.exists() for path in paths))
    return paths


def read_layer(paths: list[Path], layer: int) -> Float[Tensor, "row d_model"]:
    """One layer's rows out of all shards."""
    from safetensors import safe_open

    parts = []
    for path in paths:
        with safe_open(path, framework="pt") as file:
            parts.append(file.get_tensor(str(layer)))
    return torch.cat(parts)


def shuffled(rows: Float[Tensor, "row d_in"], batch: int, seed: int, device: str) -> Iterator[Float[Tensor, "b d_in"]]:
    """Endless batches in float32: every row once, in a new order, before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    rest = torch.empty(0, dtype=torch.long)
    while True:
        while len(rest) < batch:
            rest = torch.cat([rest, torch.randperm(len(rows), generator=generator)])
        now, rest = rest[:batch], rest[batch:]
        yield rows[now].to(device).float()


def capped(rows: Float[Tensor, "row d_in"], times: float = 2.0) -> Float[Tensor, "row d_in"]:
    """Rows longer than `times` the median scaled down to that: a few outliers would else be most of the squared error.

    A top-k SAE is nearly homogeneous, so it reconstructs them at their own length too.
    """
    norms = torch.cat([part.float().norm(dim=-1, keepdim=True) for part in rows.split(65_536)])
    return rows * (times * norms.median() / norms).clamp(max=1).to(rows.dtype)


def train_sae(rows: Float[Tensor, "row d_in"], recipe: Recipe, device: str, tick: Callable[[int], None]) -> Any:
    """A top-k SAE (sae-lens's training class) of these rows. `tick` is told how many rows each batch had.

    Training works on rows scaled to norm √d_in, which sae-lens folds into the weights at the end; it starts with
    b_dec at the rows' mean, or the first hundred batches would be spent on finding it.
    """
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(recipe.seed)
    d_in = rows.shape[1]
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=d_in,
            d_sae=recipe.d_sae,
            k=recipe.k,
            normalize_activations="expected_average_only_in",
            device=device,
        )
    )
    sample = rows[torch.randperm(len(rows))[:20_000]].float()
    sae.b_dec.data = (sample.mean(0) * d_in**0.5 / sample.norm(dim=-1).mean()).to(device)
    steps = recipe.rows // recipe.batch
    config = SAETrainerConfig(
        total_training_samples=steps * recipe.batch,
        train_batch_size_samples=recipe.batch,
        lr=recipe.lr,
        lr_end=recipe.lr / 10,
        lr_warm_up_steps=min(100, steps // 10),
        lr_decay_steps=int(steps * recipe.decay_share),
        n_batches_for_norm_estimate=20,
        dead_feature_window=recipe.dead_after,
        device=device,
        autocast=True,
        logger=LoggingConfig(log_to_wandb=False),
    )

    def provider() -> Iterator[Tensor]:
        for batch in shuffled(rows, recipe.batch, recipe.seed, device):
            tick(len(batch))
            yield batch

    with quiet():
        trainer = SAETrainer(cfg=config, sae=sae, data_provider=provider())
        for group in trainer.optimizer.param_groups:
            group["fused"] = True  # the same Adam in one pass over the weights: a quarter of a step's time on a CPU
        return trainer.fit()


@dataclass(frozen=True)
class Origin:
    """What an SAE says of the model that it was trained on; by default SmolLM2. module: where its layers are in it;
    context: how many tokens it read at once.
    """

    name: str = MODEL_NAME
    module: str = "model.layers"
    context: int = CONTEXT_SIZE


def save_sae(sae: Any, layer: int, folder: Path, of: Origin = Origin()) -> None:
    """Write `sae` in sae-lens's inference format, weight matrices in float16, biases and thresholds in float32."""
    from safetensors.torch import load_file, save_file

    sae.cfg.metadata.model_name = of.name
    sae.cfg.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
    sae.cfg.metadata.hf_hook_name = f"{of.module}.{layer}.output"
    sae.cfg.metadata.prepend_bos = True
    sae.cfg.metadata.context_size = of.context
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as temporary:
        sae.save_inference_model(temporary)
        weights = load_file(temporary / "sae_weights.safetensors")
        halved = {name: w.half() if name.startswith("W_") else w.float() for name, w in weights.items()}
        save_file(halved, temporary / "sae_weights.safetensors")
        (temporary / "sae_weights.safetensors").chmod(0o644)
        config = json.loads((temporary / "cfg.json").read_text(encoding="utf-8"))
        # saving has folded the decoder's norms in: they are 1, up to float16's rounding
        config |= {"device": "cpu", "dtype": "float32", "rescale_acts_by_decoder_norm": False}
        (temporary / "cfg.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends, and is gone if it does not end well."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        fresh = Path(temporary) / path.name
        yield fresh
        if path.is_dir():
            os.replace(path, Path(temporary) / "old")
        os.replace(fresh, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of the trainer and of transformers: ours counts all stages together."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def train(
    out: Path,
    work: Path,
    texts: list[Context],
    load_model: Callable[[], Any],
    layers: tuple[int, ...],
    recipe: Recipe,
    device: str,
    of: Origin = Origin(),
) -> None:
    """Both stages for these layers: ``out/layer_17`` and so on. What is there already is not made again."""
    from filelock import FileLock, Timeout
    from rich.console import Console
    from rich.progress import Progress

    captured = LAYERS if set(layers) <= set(LAYERS) else layers
    texts = [context for context in texts if not context.held_out]
    out.mkdir(parents=True, exist_ok=True)
    folder = work / f"activations-{fingerprint(texts)}-{'-'.join(map(str, captured))}"
    columns = (*Progress.get_default_columns()[:-1], _remaining())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        if all((out / f"layer_{layer}" / "cfg.json").exists() for layer in layers):
            progress.console.print(f"all of {out} is there")
            return
        paths = capture(load_model, texts, captured, folder, progress)
        bars = {layer: progress.add_task(f"layer {layer}", total=recipe.rows) for layer in layers}
        for wait in (False, True):
            for layer in layers:
                target = out / f"layer_{layer}"
                with (
                    contextlib.suppress(Timeout),
                    FileLock(work / f"{out.name}-layer-{layer}.lock", timeout=-1 if wait else 0),
                ):
                    if not (target / "cfg.json").exists():
                        rows = capped(read_layer(paths, layer))
                        sae = train_sae(rows, recipe, device, partial(progress.advance, bars[layer]))
                        save_sae(sae, layer, target, of)
                    progress.update(bars[layer], completed=recipe.rows)


def _remaining() -> Any:
    from rich.progress import TimeRemainingColumn

    return TimeRemainingColumn(elapsed_when_finished=True)


def load_smollm2(device: str, dtype: torch.dtype) -> Any:
    """SmolLM2 without gradients."""
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(prepare(), dtype=dtype)
    return model.to(device).eval().requires_grad_(False)


def load_contexts(human: Path | None) -> list[Context]:
    """Every context of the corpus, held out or not."""
    from transformers import AutoTokenizer

    return contexts(documents(human), AutoTokenizer.from_pretrained(prepare()))


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which text and where to compute; `train` and `evaluate` share them."""
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="where captured activations are kept")
    parser.add_argument("--human", type=Path, default=None, help="folder of the npm archives; default: WORK/human")
    parser.add_argument("--written-only", action="store_true", help="only the text that SmolLM2 wrote")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, nargs="+", default=list(LAYERS))


def main(arguments: list[str] | None = None) -> None:
    """The command line of ``python -m depass_sae.demo.train``."""
    parser = argparse.ArgumentParser(description="Train the demo SAEs on SmolLM2-135M.")
    add_text_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path(".demo/saes"))
    parser.add_argument("--tokens", type=int, default=None, help="take no more training tokens than this")
    parser.add_argument(
        "--rows", type=int, default=Recipe.rows, help="rows that each SAE is trained on, repeats counted"
    )
    parser.add_argument("--k", type=int, default=Recipe.k)
    parser.add_argument("--d-sae", type=int, default=Recipe.d_sae)
    parser.add_argument("--fresh", action="store_true", help="delete what OUT holds of these layers first")
    args = parser.parse_args(arguments)
    try:
        texts = load_contexts(None if args.written_only else args.human or args.work / "human")
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    texts = limited(texts, args.tokens)
    if args.fresh:
        for layer in args.layers:
            shutil.rmtree(args.out / f"layer_{layer}", ignore_errors=True)
    recipe = Recipe(rows=args.rows, k=args.k, d_sae=args.d_sae)
    train(
        args.out,
        args.work,
        texts,
        lambda: load_smollm2(args.device, torch.bfloat16),
        tuple(args.layers),
        recipe,
        args.device,
    )


def limited(texts: list[Context], tokens: int | None) -> list[Context]:
    """The first contexts with about `tokens` training tokens; the held-out ones all stay."""
    if tokens is None:
        return texts
    kept, count = [], 0
    for context in texts:
        if context.held_out or count < tokens:
            kept.append(context)
            count += 0 if context.held_out else len(context.ids) - 1
    return kept


if __name__ == "__main__":
    main()
