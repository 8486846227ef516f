"""From a measured model to a verdict on one of its chains; shared by the rules that speak of chains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gradlint.facts.models import ModelFacts
from gradlint.facts.vanishing import ChainView, Optimizer, cured, fired, healthy, line_of, measured, number, view
from gradlint.probe.worker.layergraph import Chain, LayerGraph, chains
from gradlint.rule import Candidate, Judgement, Location, Measurement, ModelExperiment

HIDDEN = "its arguments are not known: the calls that make it pass `*` or `**`, or are not in sight"
WHOLE = -1
"""The index of what is no chain of the graph: the large layers of the whole model."""
NUMBERS = ("rho_W", "rho_delta", "sigma_out")


def model_candidates(
    models: Sequence[ModelFacts],
    path: str,
    code: str,
    remedies: tuple[str, ...],
    wanted: Callable[[ChainView, ModelFacts], bool],
    describe: Callable[[ChainView, ModelFacts], tuple[str, str]],
    sick_on_paper: Callable[[ChainView, ModelFacts], bool],
    place: Callable[[ChainView, ModelFacts], Location | None] = lambda v, m: None,
) -> Iterator[Candidate]:
    """One candidate per model that holds a chain that ``wanted`` accepts, on the deepest such chain.

    ``describe`` gives message and help; ``place`` where to report it, if that is not the model.
    """
    for model in models:
        views = [view(c) for c in model.chains]
        suspects = [v for v in views if wanted(v, model)]
        if not suspects:
            continue
        deepest = max(suspects, key=lambda v: v.depth)
        message, text = describe(deepest, model)
        yield Candidate(
            code=code,
            path=path,
            location=place(deepest, model) or model.location,
            symbol=model.symbol,
            message=message,
            help=text,
            group=f"{path}:{model.location.line}",
            experiment=model_experiment(path, model, remedies),
            facts={"optimizer": model.optimizer, "made_at": model.made_at, "hidden": model.arguments_hidden},
            predicted_sick=not model.arguments_hidden and sick_on_paper(deepest, model),
        )


def model_experiment(
    path: str, model: ModelFacts, remedies: tuple[str, ...], measures: tuple[str, ...] = ()
) -> ModelExperiment:
    """The experiment on a model, as code outside of it has initialised it."""
    initialisers = tuple((i.function, i.how, i.home) for i in model.initialisers)
    return ModelExperiment(
        path, model.kind, model.qualname, model.scope, remedies, model.location.line, initialisers, measures
    )


def judge_chains(
    candidate: Candidate,
    measurement: Measurement,
    owns: Callable[[ChainView], bool],
    remedies: Callable[[ChainView], tuple[str, ...]],
    explain: Callable[[ChainView, Mapping[str, Any], str], tuple[str, str]],
) -> Judgement:
    """The verdict on the sickest measured chain that the rule owns.

    ``owns`` is asked of the traced chain, not of the static one. ``remedies`` are tried in order; the first that
    cures is named. ``explain`` gives message and help for a confirmed chain, its numbers and the remedy.
    """
    data = measurement.data
    if data is None:
        return Judgement("unverified", measurement.reason, detail=measurement.detail)
    if candidate.facts.get("hidden"):
        data = {**data, "assumed": {**data["assumed"], "arguments_hidden": True}}
    optimizer: Optimizer = candidate.facts["optimizer"]
    owned = [(c, v) for c, v in traced_views(data) if owns(v)]
    if not owned:
        return Judgement("refuted", detail="the traced model has no such chain", kind="replica")
    best: Judgement | None = None
    for chain, v in owned:
        judgement = _judge_one(chain, v, data, optimizer, remedies(v), explain)
        if best is None or _rank(judgement) > _rank(best):
            best = judgement
    assert best is not None
    return best


def traced_views(data: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], ChainView]]:
    """Each measured chain with its description, read off the traced graph."""
    graph = chains(LayerGraph.from_json(dict(data["graph"])))
    for measured_chain in data["chains"]:
        chain = _match(graph, measured_chain) if measured_chain.get("index") != WHOLE else None
        if chain is not None:
            yield measured_chain, view(chain, bool(measured_chain["default_init"]))


def _match(graph: Sequence[Chain], measured_chain: Mapping[str, Any]) -> Chain | None:
    index = measured_chain.get("index")
    if isinstance(index, int) and index < len(graph):
        return graph[index]
    for chain in graph:
        same_ends = (chain.layers[0].path, chain.layers[-1].path) == (measured_chain["first"], measured_chain["last"])
        if same_ends and chain.depth == measured_chain["depth"]:
            return chain
    return None


def _judge_one(
    chain: Mapping[str, Any],
    v: ChainView,
    data: Mapping[str, Any],
    optimizer: Optimizer,
    remedies: tuple[str, ...],
    explain: Callable[[ChainView, Mapping[str, Any], str], tuple[str, str]],
) -> Judgement:
    written = chain["written"]
    evidence: dict[str, Any] = {k: written.get(k) for k in NUMBERS}
    evidence |= {
        "depth": v.depth,
        "chain": [chain["first"], chain["last"]],
        "predicted": v.prediction.rho_W if v.prediction is not None and v.square else None,
        "seeds": chain["seeds"],
        "optimizer": optimizer,
        "trace": data["trace"],
    }
    common = {"kind": "replica", "measured": evidence, "threshold": line_of(optimizer), "assumed": data["assumed"]}
    if written.get("no_gradient") or not measured(written):
        return Judgement("unverified", "no-gradient", detail="no gradient reaches the end of the chain", **common)
    if not fired(written, optimizer):
        if healthy(written, optimizer):
            return Judgement("refuted", detail="gradients reach the first layer", **common)
        return Judgement("unverified", "inconclusive", detail="between the lines", **common)
    if data["assumed"].get("depth_guessed") or data["assumed"].get("arguments_hidden"):
        return Judgement(
            "unverified",
            "not-built",
            detail="its arguments are not known: `*` or `**` at the call, or no call at all",
            **common,
        )
    for remedy in remedies:
        after = chain["after"].get(remedy)
        if cured(written, after, optimizer):
            message, text = explain(v, chain, remedy)
            shown = {k: after[k] for k in NUMBERS} | {"remedy": remedy}
            return Judgement("confirmed", after_remedy=shown, message=message, help=text, **common)
    return Judgement("refuted", detail="the remedy does not cure: the cause lies elsewhere", **common)


def _rank(j: Judgement) -> tuple[int, float]:
    order = {"confirmed": 3, "unverified": 2, "refuted": 1}
    return order[j.verdict], -number(j.measured.get("rho_W") or 1.0)


def location_of(text: str, line: int) -> Location:
    """The statement that begins on a line, as far as it stands on it."""
    lines = text.split("\n")
    written = lines[line - 1] if 0 < line <= len(lines) else ""
    indent = len(written) - len(written.lstrip())
    return Location(line, indent + 1, line, max(len(written.rstrip()), indent) + 1)
