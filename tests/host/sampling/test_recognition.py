"""Apply Recipe proposes from the files behind its model: what FewStep wrote into them, names, titles; and the model's class."""

import hashlib

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host
from safetensors.torch import save_file

import_host()

import comfy.model_base
import folder_paths
from comfyui_fewstep.nodes import NODE_CLASS_MAPPINGS, previews
from comfyui_fewstep.nodes.host import folders
from comfyui_fewstep.nodes.host.editor.graph import Execution, files_behind
from comfyui_fewstep.nodes.sampling import recipes, recognition
from hosting import Failed
from test_recipes import recipe_of
from test_sampling import model_of

RECOGNISED = recipes.RECOGNISED


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """Writes LoRA files where the host looks for them."""
    monkeypatch.setattr(folders, "known_weights", lambda: tmp_path / "known.json")
    folder_paths.add_model_folder_path("loras", str(tmp_path))

    def write(name, **metadata):
        name, told = f"{tmp_path.name}_{name}", {key.replace("__", "."): value for key, value in metadata.items()}
        save_file({"a": torch.ones(1)}, tmp_path / name, metadata=told)
        return name

    return write


def graph_of(*loaders, **inputs):
    """A graph in API format: loaders one behind the other, (file, strength) each, the first nearest to Apply Recipe."""
    nodes, before = (
        {"out": {"class_type": "FewStepApplyRecipe", "inputs": {"model": ["0", 0], "recipe": RECOGNISED, **inputs}}},
        None,
    )
    for number, (file, strength) in enumerate(loaders):
        before = [str(number + 1), 0] if number + 1 < len(loaders) else None
        given = {"file": file} | ({"strength_model": strength} if strength is not None else {})
        nodes[str(number)] = {"class_type": "Loader", "inputs": given | ({"model": before} if before else {})}
    return nodes


def applied(graph, model):
    """What the node gives, as the host would run the graph: (outputs, text)."""
    seen = []

    class Loader:
        RETURN_TYPES, FUNCTION = ("MODEL",), "load"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def load(self, **_):
            return (model,)

    class Watched(NODE_CLASS_MAPPINGS["FewStepApplyRecipe"]):
        def apply(self, *given, **named):
            seen.append(super().apply(*given, **named))
            return seen[-1]

    run = Execution(graph, classes={"Loader": Loader, "FewStepApplyRecipe": Watched})
    sigmas = run.output(("out", 2))
    return sigmas, "\n".join(seen[0]["ui"]["text"])


def flow_of(own):
    model = model_of("FLOW")
    model.model.__class__ = type(own, (type(model.model),), {})
    return model


@pytest.mark.parametrize(
    ("files", "own", "recipe"),
    [
        (["z_image_turbo_bf16.safetensors"], "Lumina2", "Z-Image-Turbo, 8 steps"),
        (
            ["Qwen-Image-Lightning-8steps-V1.0.safetensors", "qwen_image_fp8.safetensors"],
            "QwenImage",
            "Qwen-Image-Lightning, 8 steps",
        ),
        (["my style.safetensors", "krea2_turbo_bf16.gguf"], "Krea2", "Krea 2 Turbo, 8 steps"),
        (
            ["wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors"],
            "WAN21",
            "Wan 2.2 lightx2v, image to video, 4 steps",
        ),
    ],
)
def test_names_of_files_behind_the_model(files, own, recipe):
    model = flow_of(own)
    sigmas, text = applied(graph_of(*((file, None) for file in files)), model)
    _, _, expected, *_ = recipes.ApplyRecipe().apply(model, recipe)
    assert torch.equal(sigmas, expected)
    assert text.startswith(f"{recipe}, by the name of ")


def test_the_nearest_file_decides_and_a_lora_that_is_off_does_not():
    loaders = [
        ("Hyper-SDXL-8steps-lora.safetensors", 0),
        ("sdxl_lightning_4step_lora.safetensors", 1.0),
        ("sd_xl_turbo_1.0.safetensors", None),
    ]
    _, text = applied(graph_of(*loaders), model_of("EPS"))
    assert text.splitlines()[0] == "SDXL-Lightning, 4 steps, by the name of sdxl_lightning_4step_lora.safetensors."
    assert list(files_behind(graph_of(*loaders), "out", "model")) == [file for file, _ in loaders[1:]]


def test_it_says_what_else_there_is_and_what_is_to_do():
    _, text = applied(graph_of(("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors", 0.5)), flow_of("WAN21"))
    assert "Others for it: Wan 2.2 lightx2v, sound to video, 4 steps (uni_pc at shift 8, ComfyUI's templates)." in text
    assert "It is loaded at strength 0.5; the recipe asks for 1." in text
    assert "Two experts: high noise from 0.875 up" in text


def test_fewsteps_own_recipe_comes_before_names(loras):
    file = loras("z_image_turbo_student.safetensors", **recipe_of())
    sigmas, text = applied(graph_of((file, 1.0)), model_of("EPS"))
    assert sigmas.tolist() == pytest.approx([14.0, 1.6, 0.0])
    assert text == f"FewStep's own recipe in {file}."


@pytest.mark.parametrize("key", ["modelspec__title", "ss_output_name"])
def test_a_renamed_file_is_known_by_its_title(key, loras):
    file = loras("renamed.safetensors", **{key: "SDXL Lightning 2step LoRA"})
    sigmas, text = applied(graph_of((file, 1.0)), model_of("EPS"))
    assert len(sigmas) == 3
    assert text == f"SDXL-Lightning, 2 steps, by {key.replace('__', '.')} in the metadata of {file}."


def test_the_file_input_goes_before_what_is_behind_the_model(loras):
    file = f"loras/{loras('dmd2_sdxl_4step_lora.safetensors')}"
    graph = graph_of(("sd_xl_turbo_1.0.safetensors", None), file=file)
    _, text = applied(graph, model_of("EPS"))
    assert text.startswith(f"DMD2, 4 steps, by the name of {file}")


def test_the_models_class_chooses_among_what_a_name_proposes():
    """A file that is called as two families are is read as the model is."""
    refused = (
        "'Z-Image-Turbo, 8 steps', by the name of z_image_turbo.safetensors, is for models of ComfyUI's class Lumina2"
    )
    with pytest.raises(ValueError, match=f"{refused}, but the connected model is a WAN21"):
        applied(graph_of(("z_image_turbo.safetensors", None)), flow_of("WAN21"))
    _, text = applied(
        graph_of(("z_image_turbo.safetensors", None), ("self_forcing_dmd.safetensors", None)), flow_of("WAN21")
    )
    assert text.startswith("Self-Forcing or Causal-Forcing, whole clips, 4 steps")
    with pytest.raises(ValueError, match=r"is no recipe for this kind of model \(eps\)"):
        applied(graph_of(("z_image_turbo.safetensors", None)), model_of("EPS"))


def test_a_recipe_of_timesteps_is_proposed_for_no_model_of_continuous_levels():
    """Playground v2.5 with a speed LoRA of SDXL: the next file that says something fitting decides."""
    refused = r"'DMD2, 4 steps', by the name of dmd2_sdxl_4step_lora.safetensors, names training timesteps"
    with pytest.raises(ValueError, match=refused):
        applied(graph_of(("dmd2_sdxl_4step_lora.safetensors", None)), model_of("EDM"))
    files = ("dmd2_sdxl_4step_lora.safetensors", None), ("sdxl_lightning_4step_lora.safetensors", None)
    _, text = applied(graph_of(*files), model_of("EDM"))
    assert text.startswith("SDXL-Lightning, 4 steps")


def test_a_family_that_has_no_recipe_takes_none_of_anothers():
    """As AuraFlow, of which current hosts have a class and FewStep no recipe. A class of a pack's own is taken at its word."""
    model = model_of("FLOW")
    model.model.__class__ = type("Derived", (type(model.model), comfy.model_base.SD21UNCLIP), {})
    with pytest.raises(
        ValueError, match="for models of ComfyUI's class Lumina2, but the connected model is a SD21UNCLIP"
    ):
        recipes.ApplyRecipe().apply(model, "Z-Image-Turbo, 8 steps")
    assert recipes.ApplyRecipe().apply(model_of("FLOW"), "Z-Image-Turbo, 8 steps")


def test_a_file_whose_name_says_nothing_is_known_by_its_hash(loras, monkeypatch):
    """LCM-LoRAs are published as pytorch_lora_weights.safetensors. Nearest first, and hashed once."""
    style, file = loras("a_style.safetensors", note="of its own"), loras("pytorch_lora_weights.safetensors")
    digest = hashlib.sha256(folders.model_file(file).read_bytes()).hexdigest()
    monkeypatch.setitem(recognition.PUBLISHED, digest, "lcm-lora-sdxl")
    graph = graph_of((style, 1.0), (file, 1.0))
    _, text = applied(graph, model_of("EPS"))
    assert text.startswith(f"LCM or LCM-LoRA, 4 steps, by the hash of {file}")
    monkeypatch.setattr(folders, "file_sha256", None)
    assert applied(graph, model_of("EPS"))[1] == text, "known from then on"
    monkeypatch.setattr(recognition, "LARGEST", 10)
    with pytest.raises(ValueError, match="neither name, metadata nor hash"):
        applied(graph, model_of("EPS"))


def test_nothing_to_go_by_is_said():
    with pytest.raises(ValueError, match=r"no recipe is known for mine.safetensors: neither name, metadata nor hash"):
        applied(graph_of(("mine.safetensors", None)), model_of("EPS"))
    with pytest.raises(ValueError, match="no file of a model is known behind model"):
        recipes.ApplyRecipe().apply(model_of("EPS"), RECOGNISED)


def test_a_damaged_file_is_named(tmp_path):
    folder_paths.add_model_folder_path("loras", str(tmp_path))
    (tmp_path / "damaged_lora.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"damaged_lora.safetensors is damaged or not a safetensors file"):
        applied(graph_of(("damaged_lora.safetensors", 1.0)), model_of("EPS"))


def test_the_preview_shows_the_same(loras):
    told = previews.of_recipe({"recipe": RECOGNISED, "files": "a style.safetensors\nz_image_turbo_bf16.safetensors"})
    assert told["told"][0].startswith("Z-Image-Turbo, 8 steps, by the name of z_image_turbo_bf16.safetensors")
    assert len(told["sigmas"]) == 9
    mine = loras("mine.safetensors", **recipe_of())
    told = previews.of_recipe({"recipe": RECOGNISED, "file": "none", "files": mine})
    assert told["sigmas"] == pytest.approx([14.0, 1.6, 0.0])
    with pytest.raises(ValueError, match="no file of a model is known"):
        previews.of_recipe({"recipe": RECOGNISED})


# --- over a link -------------------------------------------------------------------------------------------------------


def prompt(**linked):
    """A queue in which inputs of Apply Recipe come from the host's own nodes for texts."""
    texts = {
        f"text {name}": {"class_type": "PrimitiveString", "inputs": {"value": value}} for name, value in linked.items()
    }
    links = {name: [f"text {name}", 0] for name in linked}
    given = {"recipe": "SDXL-Lightning, 4 steps", "model": ["teacher", 0]}
    return {
        **texts,
        "teacher": {"class_type": "FewStepDemoTeacher", "inputs": {}},
        "recipe": {"class_type": "FewStepApplyRecipe", "inputs": {**given, **links}},
        "positive": {"class_type": "FewStepDigitPrompt", "inputs": {"digits": "7"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 32, "batch_size": 1}},
        "draw": {
            "class_type": "SamplerCustom",
            "inputs": {
                **{"model": ["recipe", 0], "sampler": ["recipe", 1], "sigmas": ["recipe", 2], "cfg": ["recipe", 3]},
                **{"positive": ["positive", 0], "negative": ["positive", 0], "latent_image": ["latent", 0]},
                **{"add_noise": True, "noise_seed": 0},
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["draw", 0], "vae": ["teacher", 1]}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }


@pytest.fixture
def linking(server, client):
    if "PrimitiveString" not in server.get("/object_info"):
        pytest.skip("this host has no nodes that give typed values")
    return client


def test_a_linked_recipe_is_followed_and_a_wrong_one_named(linking):
    assert linking.run(prompt(recipe="SDXL-Lightning, 4 steps"))["outputs"]["show"]["images"]
    with pytest.raises(Failed, match="recipe is 'no such recipe'; allowed are LCM or LCM-LoRA, 4 steps"):
        linking.run(prompt(recipe="no such recipe"))


def test_a_linked_file_is_followed_and_a_wrong_one_named(linking, base):
    folder = base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"prediction_type": "v_prediction"}
    save_file({"a": torch.ones(1)}, folder / "linked_student.safetensors", metadata=recipe_of(**fields))
    linking.server.get("/object_info")
    given = {"recipe": recipes.FROM_FILE, "file": "loras/linked_student.safetensors"}
    assert linking.run(prompt(**given))["outputs"]["show"]["images"]
    with pytest.raises(Failed, match=r"file is 'loras/gone.safetensors'; allowed are none"):
        linking.run(prompt(**{**given, "file": "loras/gone.safetensors"}))


def test_a_link_of_another_type_is_still_refused():
    node = NODE_CLASS_MAPPINGS["FewStepApplyRecipe"]
    said = node.VALIDATE_INPUTS(recipe=None, file="none", input_types={"model": "LATENT", "recipe": "STRING"})
    assert said == "model is linked to LATENT; it takes MODEL."
    assert node.VALIDATE_INPUTS(recipe=None, file="none", input_types={"model": "MODEL", "recipe": "COMBO"}) is True
    assert node.VALIDATE_INPUTS(recipe=None, file=None, input_types={"model": "*", "width": "FLOAT,INT"}) is True
    assert "recipe is linked to INT" in node.VALIDATE_INPUTS(recipe=None, file="none", input_types={"recipe": "INT"})


def stack_of(*rows):
    """A loader of LoRAs in rows, (file, strength) each, as ComfyUI from 0.38 on has it (LoadLoraModel), behind Apply Recipe."""
    given = {
        f"loras.{i}.{name}": value
        for i, (file, strength) in enumerate(rows)
        for name, value in (("lora_name", file), ("strength", strength))
    }
    return {
        "out": {"class_type": "FewStepApplyRecipe", "inputs": {"model": ["0", 0], "recipe": RECOGNISED}},
        "0": {"class_type": "Loader", "inputs": given},
    }


def test_a_lora_in_a_row_is_off_or_of_its_strength_too():
    rows = [("Hyper-SDXL-8steps-lora.safetensors", 0), ("sdxl_lightning_4step_lora.safetensors", 0.5)]
    assert files_behind(stack_of(*rows), "out", "model") == {"sdxl_lightning_4step_lora.safetensors": 0.5}
    _, text = applied(stack_of(*rows), model_of("EPS"))
    assert text.splitlines()[0] == "SDXL-Lightning, 4 steps, by the name of sdxl_lightning_4step_lora.safetensors."
    assert "It is loaded at strength 0.5" in text


def test_a_row_may_be_one_value():
    """As rgthree's Power Lora Loader has it; a second strength is the text encoder's."""
    rows = {
        "lora_1": {"on": False, "lora": "Hyper-SDXL-8steps-lora.safetensors", "strength": 1.0},
        "lora_2": {"on": True, "lora": "sdxl_lightning_4step_lora.safetensors", "strength": 0.5, "strengthTwo": 0.25},
    }
    graph = stack_of()
    graph["0"]["inputs"] = {"PowerLoraLoaderHeaderWidget": {"type": "PowerLoraLoaderHeaderWidget"}, **rows}
    assert files_behind(graph, "out", "model") == {"sdxl_lightning_4step_lora.safetensors": 0.5}
