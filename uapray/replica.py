"""One copy of the model with the images, in one process. Knows no Ray."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uapray.ascent import Ascending, Ascent, ascend
from uapray.attack.control import Draw
from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate, add_in_order
from uapray.attack.projection import norms
from uapray.attack.rules import State
from uapray.attack.sequential import Ahead, Visit, Visiting, visit
from uapray.config import FP32, Arithmetic
from uapray.errors import TrialError
from uapray.measures import likeness
from uapray.models.arithmetic import compiled, gpu_arithmetic
from uapray.models.tuning import tune
from uapray.rendering import Rendering
from uapray.steady import one_thread

ANSWER_S = 2.0  # after which a replica begins nothing more before it answers: a run that is to stop waits for it


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that one replica takes at once. A batch is never split: its last bits depend on its company.

    Attributes:
        deck: Name of the image array.
        indices: Rows of it, int64 ``(b,)``.
        reference: Classes predicted for the clean images, int64 ``(b,)``; None where nobody asks.
    """

    deck: str
    indices: NDArray[np.int64]
    reference: NDArray[np.int64] | None = None

    def part(self, places: slice) -> "Batch":
        """Return some of the images."""
        return Batch(self.deck, self.indices[places], None if self.reference is None else self.reference[places])


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What is said of one draw of a control.

    Attributes:
        logits: Of the images with it, ``(n, k)``, in the order of the batches.
        l2: Its l2 norm, pixel units.
        linf: Its linf norm, pixel units.
    """

    logits: NDArray[np.float32]
    l2: float
    linf: float


class Replica:
    """A model made fast for input gradients, and read-only uint8 images ``(n, h, w, c)`` by name.

    Every answer depends on the arguments alone, so a request may be repeated, here or on another replica.
    """

    def __init__(
        self,
        module: nn.Module,
        decks: Mapping[str, NDArray[np.uint8]],
        *,
        device: str = "cpu",
        threads: int = 1,
        arithmetic: Arithmetic = FP32,
        tuned: bool = False,
    ) -> None:
        """Make the model fast, unless it is ``tuned`` already."""
        self._device = torch.device(device)
        self._threads = threads
        self._arithmetic = arithmetic
        self._decks = dict(decks)
        with self._settled():
            fast = module if tuned else tune(module, first_pixels(next(iter(self._decks.values()))))
            self._module = fast.to(self._device)
        self._of_rounds = compiled(self._module) if arithmetic.compiled else self._module

    def gradient(
        self,
        v: NDArray[np.float32],
        batches: Sequence[Batch],
        objective: Objective,
        along: NDArray[np.float32] | None = None,
    ) -> list[PartialUpdate]:
        """Return for each batch the sum of its images' gradients of the gain with respect to ``v``.

        Pixels are clipped to [0, 1] after adding ``v``; where that cuts, the gradient is zero.

        Args:
            v: Perturbation, float32 ``(c, h, w)``.
            batches: Each becomes one partial update.
            objective: What is to be raised.
            along: If given, each image's gradient counts by its inner product with this direction ``(c, h, w)``:
                one step of the power iteration towards the leading direction of the gradients.
        """
        with self._searching():
            moved = self._perturbation(v)
            towards = None if along is None else self._perturbation(along)
            return [self._gradient(moved, batch, objective, towards) for batch in batches]

    def logits(
        self, v: NDArray[np.float32] | None, batches: Sequence[Batch], rendering: Rendering | None = None
    ) -> list[NDArray[np.float32]]:
        """Return for each batch the logits ``(b, k)`` of its images: perturbed, clipped to [0, 1], rendered."""
        with self._settled(), torch.inference_mode():
            moved = None if v is None else self._perturbation(v)
            return [self._logits(moved, batch, rendering).float().cpu().numpy() for batch in batches]

    def likeness(self, v: NDArray[np.float32], batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Return for each batch how like its clean self each perturbed image is; as ``measures.likeness``."""
        with self._settled(), torch.inference_mode():
            moved = self._perturbation(v)
            return [self._likeness(moved, batch).cpu().numpy() for batch in batches]

    def drawn(self, v: NDArray[np.float32], draws: Sequence[Draw], batches: Sequence[Batch]) -> list[Drawn]:
        """Draw controls of a perturbation and return what is said of the batches' images with each."""
        return [self._drawn(torch.tensor(v), draw, batches) for draw in draws]

    def ascend(self, state: State, images: Batch, first: int, how: Ascending) -> Ascent:
        """Make rounds until their images are used up or two seconds are over; as ``ascent.ascend``.

        Args:
            state: Where the search stands.
            images: Those of all rounds, one after another.
            first: Number of the first round, counted from the beginning of the search.
            how: How they follow one another.
        """

        def gradient(point: Tensor, places: slice) -> PartialUpdate:
            size = how.pace.batch_size
            batches = [images.part(slice(begin, begin + size)) for begin in range(places.start, places.stop, size)]
            return add_in_order(self.gradient(point.numpy(), batches, how.objective))

        return ascend(gradient, state, len(images.indices), first, how, ANSWER_S)

    def visit(self, v: NDArray[np.float32], batch: Batch, how: Visiting, ahead: Ahead) -> Visit:
        """Visit images one after another in the order of the batch; as ``attack.sequential.visit``.

        Args:
            v: Perturbation, float32 ``(c, h, w)``.
            batch: The images, with the classes predicted for them when clean.
            how: Inner step, ball and target.
            ahead: How far to look at first.
        """
        assert batch.reference is not None
        with self._searching():
            reference = torch.from_numpy(batch.reference).to(self._device)
            forward = self._of_clipped if how.clip else self._in_precision
            came = visit(forward, self._pixels(batch), reference, self._perturbation(v)[0], how, ahead)
            return replace(came, v=came.v.cpu().contiguous())

    def _of_clipped(self, pixels: Tensor) -> Tensor:
        return self._in_precision(pixels.clamp(0, 1))

    def _in_precision(self, pixels: Tensor) -> Tensor:
        return self._rounded(self._module, pixels)

    def _rounded(self, forward: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Return logits as a search takes them; those that are judged come from the module itself, in fp32."""
        if self._arithmetic.precision != "bf16":
            return forward(pixels)
        with torch.autocast(self._device.type, torch.bfloat16):
            logits = forward(pixels)
        return logits.float()

    def _gradient(self, v: Tensor, batch: Batch, objective: Objective, along: Tensor | None) -> PartialUpdate:
        pixels = self._pixels(batch)
        reference = self._reference(pixels, batch, objective)
        free = pixels.add_(v)
        clipped = free.clamp(0, 1)
        inside = clipped.eq(free)
        clipped.requires_grad_()
        logits = self._rounded(self._of_rounds, clipped)
        if not logits.requires_grad:
            raise TrialError("the classifier's logits do not depend on the pixels, so there is no gradient")
        gain = objective.gain(logits, reference).sum()
        (each,) = torch.autograd.grad(gain, clipped)
        each = each.mul_(inside)
        if along is not None:
            each = each * (each * along).sum((1, 2, 3), keepdim=True)
        total = each.sum(0, dtype=torch.float64).contiguous()
        return PartialUpdate(total.cpu(), len(batch.indices))

    def _reference(self, pixels: Tensor, batch: Batch, objective: Objective) -> Tensor:
        """Return what the objective compares with: the clean logits, or the classes that came with the batch."""
        if objective.compares_logits:
            with torch.no_grad():
                return self._in_precision(pixels)
        return (torch.empty(0) if batch.reference is None else torch.from_numpy(batch.reference)).to(self._device)

    def _logits(self, v: Tensor | None, batch: Batch, rendering: Rendering | None) -> Tensor:
        pixels = self._pixels(batch)
        moved = pixels if v is None else pixels.add_(v).clamp_(0, 1)
        logits: Tensor = self._module(moved if rendering is None else rendering(moved))
        return logits

    def _drawn(self, v: Tensor, draw: Draw, batches: Sequence[Batch]) -> Drawn:
        with one_thread():
            control = draw.of(v)
            l2, linf = norms(control)
        return Drawn(np.concatenate(self.logits(control.numpy(), batches)), l2, linf)

    def _likeness(self, v: Tensor, batch: Batch) -> Tensor:
        clean = self._pixels(batch)
        return likeness(clean, (clean + v).clamp_(0, 1))

    def _pixels(self, batch: Batch) -> Tensor:
        """Return the batch in [0, 1], float32 ``(b, c, h, w)``, channels last in memory."""
        grey = torch.from_numpy(self._decks[batch.deck][batch.indices]).to(self._device)
        return grey.permute(0, 3, 1, 2).to(torch.float32).div_(255)

    def _perturbation(self, v: NDArray[np.float32]) -> Tensor:
        batch = torch.tensor(v).to(self._device).unsqueeze(0)
        return batch.contiguous(memory_format=torch.channels_last)

    def _searching(self) -> AbstractContextManager[None]:
        return self._settled(tf32=self._arithmetic.precision == "tf32")

    @contextmanager
    def _settled(self, *, tf32: bool = False) -> Iterator[None]:
        """Fix what could change the last bits, and put it back: other code in this process may want it else."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with gpu_arithmetic(tf32=tf32) if self._device.type == "cuda" else nullcontext():
                yield
        finally:
            torch.set_num_threads(threads)


def first_pixels(images: NDArray[np.uint8]) -> Tensor | None:
    """Return two images as a classifier takes them, ``(2, c, h, w)`` in [0, 1]; None if there are none."""
    return torch.tensor(images[:2]).permute(0, 3, 1, 2).float() / 255 if len(images) else None
