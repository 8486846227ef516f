"""Training frameworks: which imported names are stood in for by something that does what they do to gradients.

Everything else of a framework is a ghost (``step_calls`` knows what a few of their methods do).
"""

from __future__ import annotations

from typing import Any, Dict

from step_accelerate import Accelerator, GradientAccumulationPlugin
from step_apex import Amp
from step_deepspeed import initialize
from step_fabric import Fabric

_ACCELERATE = {"Accelerator": Accelerator, "GradientAccumulationPlugin": GradientAccumulationPlugin}
_AMP = Amp()

NAMES: Dict[str, Dict[str, Any]] = {
    "accelerate": _ACCELERATE,
    "accelerate.accelerator": _ACCELERATE,
    "accelerate.utils": {"GradientAccumulationPlugin": GradientAccumulationPlugin},
    "lightning": {"Fabric": Fabric},
    "lightning.fabric": {"Fabric": Fabric},
    "lightning.fabric.fabric": {"Fabric": Fabric},
    "lightning_fabric": {"Fabric": Fabric},
    "apex": {"amp": _AMP},
    "apex.amp": {
        "initialize": _AMP.initialize,
        "scale_loss": _AMP.scale_loss,
        "master_params": _AMP.master_params,
    },
    "deepspeed": {"initialize": initialize},
}
"""By module: the names in it that are not ghosts."""
