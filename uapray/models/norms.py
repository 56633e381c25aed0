"""What batch norms have measured, measured again."""

import torch
from torch import nn

from uapray.data.images import ImageSet
from uapray.models.blocks import first_blocks
from uapray.models.recipe import Recipe
from uapray.models.sampling import balanced, shuffled

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def learnt_norms(module: nn.Module, recipe: Recipe) -> list[_BatchNorm]:
    """Return the batch norms whose means and variances a training by the recipe measures, those of no frozen block."""
    still = {part for block in first_blocks(module, recipe.frozen_blocks) for part in block.modules()}
    return [
        one for one in module.modules() if isinstance(one, _BatchNorm) and one.track_running_stats and one not in still
    ]


def measure_norms(
    module: nn.Module, images: ImageSet, recipe: Recipe, *, seed: int, device: str | torch.device = "cpu"
) -> None:
    """Measure the batch norms of a module again in place, which stays in evaluation mode.

    A mean and a variance are those of the batches of one epoch, drawn as training draws them, but not augmented;
    each batch counts the same. (Izmailov et al. 2018, section 3.2: needed wherever weights are averaged.) The rest of
    the module is in evaluation mode, so nothing is random.

    Args:
        module: A classifier of [0, 1] pixels.
        images: That it was trained on.
        recipe: Of its training: batch size, frozen blocks, whether classes are drawn equally often.
        seed: Of the order.
        device: Where the module is put.
    """
    batch = min(recipe.batch_size, len(images))
    draw = balanced if recipe.balanced else shuffled
    order = draw(images.labels, seed=seed, epoch=0)
    norms = learnt_norms(module, recipe)
    momenta = [norm.momentum for norm in norms]
    module.to(device).eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.inference_mode():
        for start in range(0, len(order) - batch + 1, batch):
            grey = torch.tensor(images.images[order[start : start + batch]]).to(device)
            module(grey.permute(0, 3, 1, 2).float().div_(255))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
