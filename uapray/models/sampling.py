"""Which images make up an epoch; the same on every worker, drawn from (seed, epoch) alone."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray


def seeded(*parts: int | str) -> torch.Generator:
    """Return a CPU generator that depends on the parts alone and shares no draws with other parts."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def shuffled(labels: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return every index once, in random order."""
    return torch.randperm(len(labels), generator=seeded(seed, epoch, "order")).numpy()


def balanced(labels: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return as many indices as there are labels, in random order, each class that occurs equally often.

    Within a class an image comes again only when all have come; a balanced set is thus merely shuffled.
    """
    generator = seeded(seed, epoch, "order")
    members = [torch.from_numpy(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    shares = torch.full((len(members),), len(labels) // len(members))
    spare = torch.randperm(len(members), generator=generator)[: len(labels) % len(members)]
    shares[spare] += 1
    drawn = torch.cat([_draw(own, int(share), generator) for own, share in zip(members, shares, strict=True)])
    return drawn[torch.randperm(len(drawn), generator=generator)].numpy()


def _draw(members: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    rounds = -(-count // len(members))
    orders = [members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)]
    return torch.cat([members[:0], *orders])[:count]
