"""The held-out number of a stage with its standard error, from units that all ranks have judged."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from espalier.maths.ratio import Estimate, ratio
from espalier.stages.parts import Units


def judged(units: Units | None, accelerator: Accelerator) -> Estimate | None:
    """The estimate over the units of all ranks; None where no rank has any."""
    own = [] if units is None else [(units[0].tolist(), units[1].tolist())]
    everything = gather_object(own) if accelerator.num_processes > 1 else own
    numerators = torch.tensor([x for part, _ in everything for x in part])
    denominators = torch.tensor([w for _, part in everything for w in part])
    if len(numerators) == 0 or float(denominators.sum()) == 0:
        return None
    return ratio(numerators, denominators)
