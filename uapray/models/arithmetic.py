"""What decides the last bits of answers beside a classifier's weights: how products are rounded, what is compiled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from uapray.errors import ConfigError

MOST_SHAPES = 64  # batch sizes that one replica may meet in its life; a search meets one


@contextmanager
def gpu_arithmetic(*, tf32: bool) -> Iterator[None]:
    """Take deterministic algorithms in the block, none chosen by a race, and products in fp32 or tf32.

    PyTorch itself rounds the factors of convolutions to tf32 unless told otherwise. What was set before is put back.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    products = torch.get_float32_matmul_precision()
    convolutions, race = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(mode=True)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=deterministic, warn_only=warn_only)
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = convolutions, race


def compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a classifier made by ``torch.compile`` for each batch size by itself.

    One graph for all sizes, or a fall-back to the module after too many of them, would make the bits depend on what a
    replica was asked before. Nothing is chosen by timing, where this PyTorch can do without.
    """
    import torch._dynamo
    import torch._inductor.config

    untimed: dict[str, Any] = {"deterministic": True} if hasattr(torch._inductor.config, "deterministic") else {}
    limits: dict[str, Any] = {"recompile_limit": MOST_SHAPES, "fail_on_recompile_limit_hit": True}
    made = torch.compile(module, dynamic=False, options=untimed)

    def forward(pixels: Tensor) -> Tensor:
        try:
            with torch._dynamo.config.patch(**limits):
                logits: Tensor = made(pixels)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise ConfigError(
                f"compiled: expected at most {MOST_SHAPES} batch sizes on one classifier, got more; "
                "take fewer, or 'compiled: false'"
            ) from error
        except torch._dynamo.exc.TorchDynamoException as error:
            why = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"compiled: torch.compile cannot make this classifier here ({why}); it needs a C++ compiler, on GPUs "
                "Triton too; or take 'compiled: false'"
            ) from error
        return logits

    return forward
