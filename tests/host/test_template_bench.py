"""The share of ComfyUI's templates that recipes cover, on graphs made for it: subgraphs, switches, primitives, other levels."""

import json

import pytest
from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.benchmarks.templates import command as templates
from comfyui_fewstep.benchmarks.templates.graph import Graph

LIST = "1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568, 0"


def node(number, kind, widgets=(), mode=0, outputs=(), **links):
    """links: input name to (link, type)."""
    slots = [{"name": name, "type": of, "link": link} for name, (link, of) in links.items()]
    given = [{"name": of, "type": of, "links": []} for of in outputs]
    return {
        "id": number,
        "type": kind,
        "mode": mode,
        "inputs": slots,
        "outputs": given,
        "widgets_values": list(widgets),
    }


def inside(sigmas, *, cfg=1, file="qwen_image_2.1_turbo_bf16.safetensors"):
    """A subgraph as the editor keeps one: the sampler's own inputs, and the number of switches around the network."""
    nodes = [
        node(1, "UNETLoader", [file, "default"], outputs=["MODEL"]),
        node(2, "UNETLoader", ["qwen_image_2.1_bf16.safetensors", "default"], outputs=["MODEL"]),
        node(
            3,
            "ComfySwitchNode",
            [False],
            switch=(10, "BOOLEAN"),
            on_true=(1, "MODEL"),
            on_false=(2, "MODEL"),
            outputs=["MODEL"],
        ),
        node(4, "CFGGuider", [cfg], model=(3, "MODEL"), outputs=["GUIDER"]),
        node(5, "KSamplerSelect", ["euler"], outputs=["SAMPLER"]),
        node(6, "ManualSigmas", [sigmas], outputs=["SIGMAS"]),
        node(
            7,
            "SamplerCustomAdvanced",
            guider=(4, "GUIDER"),
            sampler=(5, "SAMPLER"),
            sigmas=(6, "SIGMAS"),
            outputs=["LATENT"],
        ),
    ]
    joined = {1: (1, 0), 2: (2, 0), 3: (3, 0), 4: (4, 0), 5: (5, 0), 6: (6, 0), 10: (-10, 0)}
    links = [{"id": link, "origin_id": origin, "origin_slot": slot} for link, (origin, slot) in joined.items()]
    return {"id": "inside", "nodes": nodes, "links": links, "inputs": [{"name": "fast"}], "outputs": [{"linkIds": []}]}


def workflow(subgraph, *, fast):
    """The subgraph, its switch turned by a node outside."""
    nodes = [
        node(1, "PrimitiveBoolean", [fast], outputs=["BOOLEAN"]),
        node(2, "inside", fast=(1, "BOOLEAN"), outputs=["LATENT"]),
    ]
    return {"nodes": nodes, "links": [[1, 1, 0, 2, 0, "BOOLEAN"]], "definitions": {"subgraphs": [subgraph]}}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes templates, (name, usage, graph) each, as the installed package would have them; returns the page."""

    def made(*graphs):
        index = [{"templates": [{"name": name, "usage": usage} for name, usage, _ in graphs]}]
        (tmp_path / "index.json").write_text(json.dumps(index))
        for name, _, graph in graphs:
            (tmp_path / f"{name}.json").write_text(json.dumps(graph))
        return templates.uses_in(tmp_path)

    return made


def test_a_use_behind_a_switch_is_found_and_said_to_be_off(package):
    uses, read, unread = package(
        ("on", 90, workflow(inside(LIST), fast=True)), ("off", 9, workflow(inside(LIST), fast=False))
    )
    assert (read, unread) == (2, [])
    fast = [use for use in uses if use.recipe is not None]
    assert {(use.template, use.saved) for use in fast} == {("on", True), ("off", False)}
    assert {use.recipe for use in fast} == {"Qwen-Image 2.1 Turbo, 8 steps"}
    assert {use.why for use in uses if use.recipe is None} == {"no recipe knows the files"}
    assert templates.share(uses) == (50.0, 50.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sigmas": LIST.replace("0.978453", "0.97")}, "levels differ by 0.0085"),
        ({"sigmas": "1.0, 0.5, 0"}, "2 steps"),
        ({"sigmas": LIST, "file": "another.safetensors"}, "no recipe knows the files"),
    ],
)
def test_what_differs_is_said(changed, said, package):
    uses, *_ = package(("one", 5, workflow(inside(**changed), fast=True)))
    (why,) = {use.why for use in uses if use.saved}
    assert why.endswith(said)


def test_with_guidance_it_is_no_few_step_use(package):
    uses, *_ = package(("one", 5, workflow(inside(LIST, cfg=4), fast=True)))
    assert uses == []


def test_muted_nodes_do_not_sample(package):
    graph = workflow(inside(LIST), fast=True)
    graph["nodes"][1]["mode"] = 4
    uses, *_ = package(("one", 5, graph))
    assert uses == []


def test_a_stock_sampler_takes_its_steps_from_a_primitive():
    nodes = [
        node(1, "PrimitiveInt", [8], outputs=["INT"]),
        node(2, "KSampler", [0, "fixed", 20, 1, "euler", "simple", 1], steps=(1, "INT")),
    ]
    graph = Graph({"nodes": nodes, "links": [[1, 1, 0, 2, 0, "INT"]]})
    assert graph.widget((2,), "steps", {}) == 8
    assert graph.widget((2,), "scheduler", {}) == "simple"


def test_without_a_package_it_says_so_and_ends_well(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(templates, "PACKAGES", ("no_such_templates",))
    templates.main(["--folder", str(tmp_path)])
    assert "Not run: none of no_such_templates is installed here" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_page_says_what_is_covered_and_what_is_not(package):
    uses, read, unread = package(
        ("on", 90, workflow(inside(LIST), fast=True)), ("other", 10, workflow(inside("1, 0.5, 0"), fast=True))
    )
    said = templates.page([use for use in uses if use.saved], read=read, unread=unread, versions="here", command="this")
    assert "| samplings, every position of a switch | 90.0 % of 100 | 50.0 % of 2 |" in said
    assert "| Qwen-Image 2.1 Turbo, 8 steps | 90 | 1 |" in said
    assert "| 10 | Qwen-Image 2.1 Turbo, 8 steps: 2 steps |" in said
