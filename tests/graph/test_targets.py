"""What a graph can be asked about: logits held to something, log-probabilities, sums, and any direction."""

from html import unescape
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.graph.document import document_of, graph_of
from depass_sae.graph.export.graphml import from_graphml, to_graphml
from depass_sae.graph.export.html import to_html
from depass_sae.graph.export.neuronpedia import to_neuronpedia
from depass_sae.graph.looks import graph_blocks
from depass_sae.graph.names import name_of
from depass_sae.graph.plot import plot_graph
from depass_sae.models.place import Place
from depass_sae.saes import encoder_direction
from depass_sae.view.terminal import text

from ..attribution.test_logits import WRITTEN, expected, logits_of
from ..attribution.tiny import D_MODEL, TEXT, activation, handle, random_sae
from ..passes.models import EVERY, PARALLEL
from .test_build import HOOKS, adds_up, lm_with

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing
W = torch.linspace(-1, 1, D_MODEL)
EVERYTHING = [*WRITTEN, "2/3@6", "logit-diff:7,9@4"]


def target_of(g: nx.DiGraph) -> dict[str, Any]:
    (target,) = g.graph["target"]
    return g.nodes[target["node"]]


@settings(deadline=None, max_examples=20)
@given(
    shape=st.sampled_from(EVERY),
    rule=st.sampled_from(["half", "linear", "softmax", "linear-norm", "max"]),
    targets=st.lists(st.sampled_from(WRITTEN), min_size=1, max_size=3, unique=True),
    at=st.sampled_from([(0, "resid_post"), (1, "resid_mid"), (2, "resid_pre"), (2, "mlp_out"), (1, "hook_z"), None]),
    max_nodes=st.integers(24, 90),
    edge_threshold=st.none() | st.floats(0.3, 1.0),
)
def test_every_target_is_the_sum_of_what_flows_in(
    shape: str, rule: str, targets: list[str], at: Any, max_nodes: int, edge_threshold: float | None
) -> None:
    hooks = [hook for hook in HOOKS if shape not in PARALLEL or "mid" not in hook]
    at = None if at is not None and at[1] == "resid_mid" and shape in PARALLEL else at
    lm = lm_with("jumprelu", shape, hooks)
    more: dict[str, Any] = {}
    if at is not None:
        width = lm._subject.adapter.width(Place(*at))
        more = {"direction": torch.linspace(-1, 1, width), "layer": at[0], "hook": at[1]}
    g = lm.graph(TEXT, targets, rule=rule, max_nodes=max_nodes, edge_threshold=edge_threshold, **more)
    assert adds_up(g)
    assert len(g.graph["target"]) == len(targets) + (at is not None)
    assert graph_of(document_of(g)).nodes == g.nodes
    z = logits_of(lm)[-1]
    for written, target in zip(targets, g.graph["target"], strict=False):
        if shape not in ("gemma2",) or "logprob" in written:  # others are read before the cap
            right = expected(z, written)
            assert g.nodes[target["node"]]["pre_activation"] == pytest.approx(right, rel=1e-3, abs=1e-3)


# -------------------------------------------------------------------------------------------------------------- logits


def test_the_top_predictions_are_over_the_vocabularys_mean_and_by_their_probability() -> None:
    lm = lm_with()
    g, z = lm.graph(TEXT, max_nodes=60), logits_of(lm)[-1]
    for target in g.graph["target"]:
        node = g.nodes[target["node"]]
        assert (node["against"], node["against_token"]) == ("mean", "the vocabulary's mean")
        assert node["pre_activation"] == pytest.approx((z[node["index"]] - z.mean()).item(), rel=1e-4)
        assert target["name"].endswith("against the vocabulary's mean")
    told = text(graph_blocks(g))
    assert " ".join(told.split()).count("over the vocabulary's mean") == 1


def test_what_all_logits_have_alike_is_no_part_of_a_centred_one() -> None:
    """Moving the whole unembedding by a vector moves every logit by the same; no edge of a centred graph notices."""
    lm = lm_with()
    before = {how: lm.graph(TEXT, f"logit:5 against {how}", edge_threshold=None) for how in ("mean", "rivals", "7,9")}
    raw = lm.graph(TEXT, "logit:5", edge_threshold=None)
    head = lm.model.lm_head.weight
    with torch.no_grad():
        head += W.to(head)
    try:
        for how, g in before.items():
            after = lm.graph(TEXT, f"logit:5 against {how}", edge_threshold=None)
            assert set(after.edges) == set(g.edges)
            assert all(after.edges[e]["weight"] == pytest.approx(g.edges[e]["weight"], abs=2e-4) for e in g.edges)
        moved = lm.graph(TEXT, "logit:5", edge_threshold=None)
        shared = raw.edges & moved.edges
        assert max(abs(raw.edges[e]["weight"] - moved.edges[e]["weight"]) for e in shared) > 0.1
    finally:
        with torch.no_grad():
            head -= W.to(head)


def test_against_goes_with_the_logits_that_do_not_say_so_themselves() -> None:
    lm = lm_with()
    g = lm.graph(TEXT, ["logit:5", "logit:7 against 9", "logprob:3"], logit=11, against="mean", max_nodes=40)
    assert [target["node"] for target in g.graph["target"]] == [
        "logit:5-mean@22", "logit:7-9@22", "logit:3-softmax@22", "logit:11-mean@22",
    ]  # fmt: skip
    for named in ({}, {"target": "logit:5 against mean"}, {"target": "2/3"}, {"logit_diff": (5, 7)}):
        with pytest.raises(UserError, match="name one that does not say so itself"):
            lm.graph(TEXT, against="rivals", **named)


def test_logits_and_log_probabilities_count_by_probability() -> None:
    lm = lm_with()
    p = logits_of(lm)[-1].softmax(0)
    g = lm.graph(TEXT, ["logit:5 against rivals", "logprob:7"], max_nodes=40)
    weights = [target["weight"] for target in g.graph["target"]]
    assert weights == pytest.approx([(p[5] / (p[5] + p[7])).item(), (p[7] / (p[5] + p[7])).item()], rel=1e-4)
    assert [t["weight"] for t in lm.graph(TEXT, ["logit:5+9", "logit:7"], max_nodes=40).graph["target"]] == [0.5, 0.5]


# ---------------------------------------------------------------------------------------------------------- directions


def test_a_direction_where_a_dictionary_stands_is_made_of_its_features_alone() -> None:
    lm = lm_with(hooks=("0.resid_post", "1.resid_post"))
    g = lm.graph(TEXT, direction=W, layer=1, pos=6, max_nodes=400, edge_threshold=None)
    sae = lm.saes[1]
    x = activation(lm.model, torch.tensor([lm.encode(TEXT).token_ids]), "1.resid_post")[0]
    acts = sae.encode(x)[6]
    (target,) = (entry["node"] for entry in g.graph["target"])
    assert target == "direction:1.resid_post/0@6"
    assert g.nodes[target]["pre_activation"] == pytest.approx((W @ x[6]).item(), rel=1e-4)
    firing = {f"feature:1/{i}@6": (acts[i] * sae.W_dec[i] @ W).item() for i in acts.nonzero()[:, 0].tolist()}
    inflow = {name: edge["weight"] for name, _, edge in g.in_edges(target, data=True)}
    assert {name for name in inflow if name.startswith("feature")} == set(firing)
    for name, value in firing.items():
        assert inflow[name] == pytest.approx(value, rel=1e-3, abs=1e-5)
    assert all(g.nodes[name]["layer"] == 1 for name in inflow)
    same = lm.graph(TEXT, direction=W, layer=2, hook="resid_pre", pos=6, max_nodes=400, edge_threshold=None)
    assert {n for n in same if "direction" not in n} == {n for n in g if "direction" not in n}
    assert graph_of(document_of(same)).nodes == same.nodes


@pytest.mark.parametrize("rule", ["half", "softmax"])
def test_a_direction_that_is_an_encoders_has_the_edges_of_its_feature(rule: str) -> None:
    lm = lm_with(hooks=("0.resid_post", "2.resid_post"))
    subject, pos = lm._subject, 6
    seen = subject.trace(lm.encode(TEXT), None)
    place = Place(2, "resid_post")
    read = encoder_direction(subject.saes[place], seen.at(place), 3)
    how = {"layers": [0], "max_nodes": 300, "edge_threshold": None, "rule": rule}
    g = lm.graph(TEXT, direction=read.w[pos], layer=2, pos=pos, **how)
    other = lm.graph(TEXT, f"2/3@{pos}", **how)
    name, feature = (one.graph["target"][0]["node"] for one in (g, other))
    mine, its = ({s: e for s, _, e in one.in_edges(n, data=True)} for one, n in ((g, name), (other, feature)))
    shared = mine.keys() & its.keys()
    assert len(shared) > 20
    for source in shared:
        if not source.startswith("remainder"):
            assert mine[source]["weight"] == pytest.approx(its[source]["weight"], rel=1e-4, abs=1e-6)
    assert g.nodes[name]["pre_activation"] == pytest.approx(
        other.nodes[feature]["pre_activation"] - read.c[pos].item(), rel=1e-4, abs=1e-5
    )
    assert all(sae["layer"] == 0 for sae in g.graph["saes"])


def test_directions_stand_beside_other_targets_and_each_has_a_number() -> None:
    lm = lm_with()
    subject = lm._subject
    from depass_sae.attribution.targets import make_target
    from depass_sae.graph.build import build_graph
    from depass_sae.passes.settings import Settings

    asked = [make_target(subject, direction=w, layer=1)[0] for w in (W, -W, W)]
    g = build_graph(subject, lm.encode(TEXT), [(one, pos) for one in asked for pos in (5, 7)], settings=Settings())
    assert [target["node"] for target in g.graph["target"]] == [
        f"direction:1.resid_post/{number}@{pos}" for number in (0, 1) for pos in (5, 7)
    ]
    assert adds_up(g)
    for target in g.graph["target"]:
        sign = -1 if "/1@" in target["node"] else 1
        assert target["direction"] == pytest.approx((sign * W).tolist())


def test_a_direction_below_every_dictionary_or_where_one_splits_what_is_read_is_refused() -> None:
    lm = lm_with(hooks=("1.mlp_out", "2.resid_post"))
    with pytest.raises(UserError, match=r"no dictionary stands at or below 0.resid_post"):
        lm.graph(TEXT, direction=W, layer=0)
    with pytest.raises(UserError, match=r"at 1.mlp_out an SAE splits what the direction is read from"):
        lm.graph(TEXT, direction=W, layer=1, hook="mlp_out")
    assert adds_up(lm.graph(TEXT, direction=W, layer=1, hook="resid_post"))
    assert adds_up(lm.graph(TEXT, direction=W, layer=2, hook="attn_out"))
    with pytest.raises(UserError, match=r"the direction has shape \[5\]"):
        lm.graph(TEXT, direction=W[:5], layer=1)
    with pytest.raises(UserError, match="layer and hook say where a direction is read"):
        lm.graph(TEXT, layer=1)
    with pytest.raises(UserError, match="a circuit's target is a feature or a logit, not a direction"):
        lm.circuit(TEXT, "direction:1:" + str(saved(Path("/tmp"), W)))


def saved(folder: Path, w: torch.Tensor) -> Path:
    path = folder / "probe.npy"
    np.save(path, w.numpy())
    return path


def test_a_direction_comes_from_a_file_that_holds_nothing_else(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    lm = lm_with()
    right = lm.graph(TEXT, direction=W, layer=1, pos=6, max_nodes=40)
    two = {"a": W, "b": -W}
    save_file(two, tmp_path / "two.safetensors")
    save_file({"only": W}, tmp_path / "one.safetensors")
    for file in (saved(tmp_path, W), tmp_path / "two.safetensors#a", tmp_path / "one.safetensors"):
        for place in ("1", "1.resid_post"):
            g = lm.graph(TEXT, f"direction:{place}:{file}@6", max_nodes=40)
            assert g.edges == right.edges
            assert g.graph["target"][0]["name"] == f"direction {file.name}"
    assert lm.attribute_tokens(TEXT, target=f"direction:1:{tmp_path}/one.safetensors@6").pre_activation == (
        pytest.approx(lm.attribute_tokens(TEXT, direction=W, layer=1, pos=6).pre_activation)
    )
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "square.npy", np.eye(3))
    np.save(tmp_path / "texts.npy", np.array(["a", "b"]))
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    for name, why in {
        "objects.npy": "cannot be read as a .npy of numbers",
        "square.npy": r"shape \[3, 3\]; a direction is one row",
        "texts.npy": "cannot be read as a .npy of numbers",
        "broken.safetensors": "cannot be read as safetensors",
        "absent.npy": "cannot be read as a .npy of numbers",
        "absent.safetensors": "cannot be read as safetensors",
        "two.safetensors": r"as two.safetensors#NAME; there are a, b",
        "two.safetensors#c": "there are a, b",
        "probe.npy#a": "has one array and no names",
        "probe.pt": "from a .npy or .safetensors file",
    }.items():
        with pytest.raises(UserError, match=why):
            lm.graph(TEXT, f"direction:1:{tmp_path}/{name}")
    for written in ("direction:1", "direction:1:", "direction:", "direction:x:probe.npy", "direction:1.up:probe.npy"):
        with pytest.raises(UserError, match=r"write a direction as|is not a hook"):
            lm.graph(TEXT, written)


# --------------------------------------------------------------------------------------------------- written and shown


@pytest.fixture(scope="module")
def graphs() -> dict[str, nx.DiGraph]:
    lm = lm_with()
    found = {written: lm.graph(TEXT, written, max_nodes=50) for written in EVERYTHING}
    found["several"] = lm.graph(TEXT, ["logit:5", "logit:7 against 9", "logit:7 against mean"], max_nodes=50)
    return found | {"direction": lm.graph(TEXT, direction=W, layer=1, pos=6, max_nodes=50)}


@pytest.mark.parametrize("written", [*EVERYTHING, "several", "direction"])
def test_every_graph_is_read_back_and_shown(graphs: dict[str, nx.DiGraph], written: str) -> None:
    g = graphs[written]
    for back in (graph_of(document_of(g)), from_graphml(to_graphml(g))):
        assert back.nodes == g.nodes
        assert back.edges == g.edges
        assert back.graph == g.graph
    names = [name_of(g, target["node"]) for target in g.graph["target"]]
    page = unescape(to_html(g))
    assert all(name in page for name in names)
    nodes = to_neuronpedia(g)["nodes"]
    assert len({node["node_id"] for node in nodes}) == len(nodes)
    if "/" not in written:
        assert sum(node["is_target_logit"] for node in nodes) == len(names)
    assert plot_graph(g).axes
    assert text(graph_blocks(g))


def test_names_say_what_a_target_is(graphs: dict[str, nx.DiGraph]) -> None:
    said = {
        written: name_of(g, g.graph["target"][0]["node"])
        for written, g in graphs.items()
        if written.startswith(("logit", "logprob"))
    }
    token = name_of(graphs["logit:5"], "logit:5@22").removeprefix("logit ")
    assert said["logit:5 against mean"] == f"logit {token} − the vocabulary's mean"
    assert said["logprob:5"] == f"log-probability {token}"
    assert said["logit:5+9"].startswith(f"logit {token} + ")
    assert f"{token} − the mean of 9 tokens (" in said["logit:5 against rivals"]
    assert f"{token} − the mean of " in said["logit:5 against 7,9,11"]
    assert name_of(graphs["direction"], "direction:1.resid_post/0@6") == "direction at 1.resid_post@6"


@pytest.mark.parametrize("written", [*EVERYTHING, "several", "direction"])
def test_a_graph_is_verified_from_its_file(graphs: dict[str, nx.DiGraph], written: str) -> None:
    lm, g = lm_with(), from_graphml(to_graphml(graphs[written]))
    checked = lm.verify(g, max_nodes=3).graph["verification"]
    whole = sum(target["weight"] * g.nodes[target["node"]]["pre_activation"] for target in g.graph["target"])
    assert checked["target"] == pytest.approx(whole, rel=1e-4)
    assert checked["together"]["shares"]["all_features"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"against": "median"}, "against: should be a token id, several like 7,9, mean or softmax"),
        ({"against": "7,,9"}, "against: should be a token id"),
        ({"against": -1}, "against: should be a token id"),
        ({"against": True}, "against: should be a token id"),
        ({"plus": "x"}, "plus: should be token ids"),
        ({"plus": str(2**31)}, "plus: should be token ids"),
        ({"against": "9,7"}, "its attributes make it"),
    ],
)
def test_a_document_whose_target_is_none_is_refused(graphs: dict[str, nx.DiGraph], change: Any, why: str) -> None:
    document = document_of(graphs["logit:5+9 against mean"].copy())
    nodes = [node | change if node["kind"] == "logit" else node for node in document["nodes"]]
    with pytest.raises(UserError, match=why):
        graph_of(document | {"nodes": nodes})


def test_nothing_comes_out_of_a_direction(graphs: dict[str, nx.DiGraph]) -> None:
    g = graphs["direction"].copy()
    g.add_node("logit:5@6", kind="logit", layer=3, pos=6, token="x", index=5, influence=0.0, label="", activation=0.0,
               pre_activation=0.0, constant=0.0)  # fmt: skip
    g.add_edge("direction:1.resid_post/0@6", "logit:5@6", kind="flow", weight=0.0, effect=0.0)
    with pytest.raises(UserError, match="edges point upwards"):
        graph_of(document_of(g))


def test_a_direction_without_its_vector_is_refused(graphs: dict[str, nx.DiGraph]) -> None:
    g = graphs["direction"].copy()
    g.graph["target"] = [{key: value for key, value in g.graph["target"][0].items() if key != "direction"}]
    with pytest.raises(UserError, match=r"the direction of node .direction:1.resid_post/0@6. is missing"):
        graph_of(document_of(g))


def test_a_graph_of_another_width_does_not_verify(graphs: dict[str, nx.DiGraph]) -> None:
    g = graphs["direction"].copy()
    g.graph["target"] = [g.graph["target"][0] | {"direction": [1.0, 2.0]}]
    with pytest.raises(UserError, match=r"the direction has shape \[2\]"):
        lm_with().verify(g)


@pytest.mark.parametrize("target", ["logit:5 against rivals", "logprob:5", "logit:5+9"])
def test_a_circuit_is_of_such_a_target_too(target: str) -> None:
    lm = handle([random_sae("jumprelu", "0.resid_post", seed=0), random_sae("jumprelu", "1.resid_post", seed=1)])
    g = lm.circuit(TEXT, target, seconds=1)
    assert adds_up(g)
    assert g.graph["circuit"]["measure"] in ("logit over the mean logit", "logit over the mean of others")


def test_what_is_left_of_a_direction_without_the_features_that_stand_there_is_error_and_constant() -> None:
    lm = lm_with(hooks=("1.resid_post",))
    g = lm.graph(TEXT, direction=W, layer=1, pos=6, max_nodes=200, edge_threshold=None)
    together = lm.verify(g, max_nodes=0).graph["verification"]["together"]
    inflow = [(name, edge["weight"]) for name, _, edge in g.in_edges(g.graph["target"][0]["node"], data=True)]
    left = sum(weight for name, weight in inflow if name.startswith(("error", "constant", "bias")))
    assert together["no_features"] == pytest.approx(left, rel=1e-3)
    assert abs(left - together["all_features"]) > 0.1
