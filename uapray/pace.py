"""How a pass over the source images is divided into rounds and measurements."""

from dataclasses import dataclass

from uapray.config import Search


@dataclass(frozen=True, slots=True)
class Pace:
    """How a pass over the source images is divided.

    Attributes:
        batch_size: Images of a batch; all of them where there are fewer than wanted.
        batches_a_round: Batches between two changes of the perturbation.
        rounds_an_epoch: Rounds of one pass, images that are left out included.
        legs_an_epoch: Measurements of one pass, a leg before each.
    """

    batch_size: int
    batches_a_round: int
    rounds_an_epoch: int
    legs_an_epoch: int

    @property
    def round_size(self) -> int:
        """Images of a round."""
        return self.batches_a_round * self.batch_size

    @property
    def rounds_a_leg(self) -> int:
        """Rounds of the shortest leg."""
        return self.rounds_an_epoch // self.legs_an_epoch


def pace_of(images: int, settings: Search, *, halved: bool = False, least_rounds: int = 0) -> Pace:
    """Return how a search of that many source images goes on: whole batches, whole rounds.

    Args:
        images: How many.
        settings: How the search divides them.
        halved: Whether a batch takes half of its images, those of one of two classes being left out.
        least_rounds: Rounds that the image-gradients allowed are to make; batches are smaller where they would not.
    """
    size = min(settings.batch_size, images)
    per_round = min(max(1, settings.round_size // size), images // size)
    if least_rounds and settings.budget.max_image_gradients is not None:
        few = max(1, settings.budget.max_image_gradients // (least_rounds * per_round))
        size = min(size, 2 * few if halved else few)
    rounds = images // (size * per_round)
    asked = max(1, size // 2) if halved else size
    return Pace(asked, per_round, rounds, min(settings.measures_per_epoch, rounds))
