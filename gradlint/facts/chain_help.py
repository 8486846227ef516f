"""What a person would write to initialise the layers of a chain."""

from __future__ import annotations

from gradlint.facts.vanishing import ChainView


def fitting(v: ChainView) -> str:
    """The remedy whose initialiser fits the activation of a chain."""
    if v.activation == "selu":
        return "lecun"
    return "xavier" if v.family == "tanh" else "he"


_CLASSES = {
    "linear": "nn.Linear", "conv1d": "nn.Conv1d", "conv2d": "nn.Conv2d", "conv3d": "nn.Conv3d",
    "conv_transpose1d": "nn.ConvTranspose1d", "conv_transpose2d": "nn.ConvTranspose2d",
    "conv_transpose3d": "nn.ConvTranspose3d",
}  # fmt: skip
_CALLS = {
    "he": 'nn.init.kaiming_normal_(m.weight, nonlinearity="relu")',
    "xavier": "nn.init.xavier_uniform_(m.weight)",
    "lecun": 'nn.init.kaiming_normal_(m.weight, nonlinearity="linear")',
}


def initialising(v: ChainView, remedy: str) -> str:
    """The code that initialises the layers of a chain as ``remedy`` does."""
    names = [_CLASSES[op] for op in sorted(v.ops) if op in _CLASSES] or ["nn.Linear"]
    kinds = names[0] if len(names) == 1 else f"({', '.join(names)})"
    return f"""\
initialise the layers for their activation, at the end of __init__:
    for m in self.modules():
        if isinstance(m, {kinds}):
            {_CALLS[remedy]}
            if m.bias is not None:
                nn.init.zeros_(m.bias)"""


def named(init: str) -> str:
    """An initialiser as :class:`Node.init` names it, in words."""
    kind, _, number = init.partition(":")
    if kind == "normal":
        return f"a standard deviation of {float(number):.3g}"
    if kind == "gain":
        return f"a gain of {float(number) ** 0.5:.3g}"
    return {"he": "He", "xavier": "Xavier", "lecun": "LeCun", "orthogonal": "orthogonal"}.get(kind, kind)
