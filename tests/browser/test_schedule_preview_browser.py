"""The steps of a schedule on its node: live, and what the node will make."""

import pytest
from editing import read
from hosting import ROOT


def preview(editor, number=0):
    return editor.page.locator("fewstep-schedule").nth(number)


def column(editor, name):
    """The numbers of a column of the table that is shown."""
    return preview(editor).evaluate(
        "(element, name) => { const table = element.shadowRoot.querySelector('table');"
        " const at = [...table.rows[0].cells].findIndex(cell => cell.textContent === name);"
        " return [...table.rows].slice(1).map(row => Number(row.cells[at].textContent)) }",
        name,
    )


def wait_for(editor, name, numbers):
    editor.page.wait_for_function(
        "([name, wanted]) => { const table = document.querySelector('fewstep-schedule')?.shadowRoot.querySelector('table');"
        " if (!table) return false; const at = [...table.rows[0].cells].findIndex(cell => cell.textContent === name);"
        " const shown = [...table.rows].slice(1).map(row => Number(row.cells[at]?.textContent));"
        " return JSON.stringify(shown) === JSON.stringify(wanted) }",
        arg=[name, numbers],
        timeout=20_000,
    )


@pytest.fixture
def schedule(editor):
    return editor.add("FewStepSchedule")


def test_the_preview_asks_only_for_what_has_changed(editor, schedule):
    wait_for(editor, "timestep", [999, 749, 499, 249])
    asked = []
    editor.page.on("request", lambda request: asked.append(request.url) if "/fewstep/schedule" in request.url else None)
    editor.page.wait_for_timeout(1000)
    assert asked == []
    editor.set(schedule, steps=2)
    wait_for(editor, "timestep", [999, 499])
    assert len(asked) == 1


def test_the_preview_follows_every_widget(editor, schedule):
    wait_for(editor, "timestep", [999, 749, 499, 249])
    editor.set(schedule, schedule="lcm")
    wait_for(editor, "timestep", [999, 759, 499, 259])
    assert column(editor, "noise from")[0] == 14.6
    editor.set(schedule, steps=2)
    wait_for(editor, "timestep", [999, 499])
    editor.set(schedule, strength=0.5)
    wait_for(editor, "timestep", [499, 259])
    editor.set(schedule, schedule="timesteps", values="800, 20", strength=1.0)
    wait_for(editor, "timestep", [800, 20])


def test_what_the_node_would_refuse_is_said_while_typing(editor, schedule):
    editor.set(schedule, schedule="lcm", steps=60)
    preview(editor).locator(".error", has_text="steps is 60; an LCM schedule of 50 original steps").wait_for()
    assert [preview(editor).locator(shown).is_visible() for shown in ("table", "svg")] == [False, False]
    editor.set(schedule, steps=4)
    wait_for(editor, "timestep", [999, 759, 499, 259])
    assert preview(editor).locator("svg").is_visible()
    assert preview(editor).locator(".error").text_content() == ""


def test_the_kind_of_model_is_chosen_and_kept_in_the_graph(editor, schedule):
    wait_for(editor, "timestep", [999, 749, 499, 249])
    preview(editor).get_by_label("Kind of model that the schedule is shown for").select_option("flow")
    wait_for(editor, "noise from", [1, 0.75, 0.5, 0.25])
    saved = editor.page.evaluate("() => app.graph.serialize()")
    editor.clear()
    editor.load(saved)
    wait_for(editor, "noise from", [1, 0.75, 0.5, 0.25])
    assert preview(editor).locator("select").input_value() == "flow"


def test_a_flow_model_before_the_node_is_noticed(editor):
    editor.load(read(ROOT / "workflows" / "Consistency model in 2 steps.json"))
    editor.page.wait_for_function(
        "() => document.querySelector('fewstep-schedule')?.shadowRoot.querySelector('select').value === 'consistency'"
    )
    assert column(editor, "noise from")[0] == 80


def test_a_recipe_says_its_kind_of_model_itself(editor):
    recipe = editor.add("FewStepApplyRecipe", recipe="FLUX.1 schnell, 4 steps")
    wait_for(editor, "noise from", [1, 0.75, 0.5, 0.25])
    assert "FLUX.1 schnell" in preview(editor).locator("div.soft").text_content()
    assert not preview(editor).locator("select").is_visible()
    editor.set(recipe, recipe="SDXL-Lightning, 2 steps")
    wait_for(editor, "timestep", [999, 499])


def test_a_method_shows_its_halvings_and_its_students_steps(editor):
    method = editor.add("FewStepProgressiveDistillation", start_steps=16)
    wait_for(editor, "timestep", [999, 749, 499, 249])
    said = preview(editor).get_by_text("Trains 16 to 8 steps, 8 to 4 steps: 2000 iterations.")
    said.wait_for()
    editor.set(method, target_steps=2, iterations=100)
    wait_for(editor, "timestep", [999, 499])
    preview(editor).get_by_text("Trains 16 to 8 steps, 8 to 4 steps, 4 to 2 steps: 300 iterations.").wait_for()
    editor.set(method, target_steps=3)
    preview(editor).locator(".error", has_text="start_steps is 16 and target_steps is 3").wait_for()
    assert not said.is_visible()


def test_consistency_shows_the_levels_it_is_sampled_at(editor):
    method = editor.add("FewStepConsistencyDistillation")
    wait_for(editor, "timestep", [999, 759, 499, 259])
    editor.set(method, steps=1)
    wait_for(editor, "timestep", [999])
    preview(editor).get_by_text("Trains consistency over 50 levels: 2000 iterations.").wait_for()


def test_a_method_knows_the_model_that_it_will_teach(editor):
    """Through the node that it is connected to."""
    editor.page.evaluate(
        "() => { const [sd3, distill, method] = ['ModelSamplingSD3', 'FewStepDistill', 'FewStepProgressiveDistillation']"
        ".map(kind => { const node = LiteGraph.createNode(kind); app.graph.add(node); return node });"
        " sd3.connect(0, distill, distill.findInputSlot('model')); method.connect(0, distill, distill.findInputSlot('method')) }"
    )
    wait_for(editor, "noise from", [1, 0.9, 0.75, 0.5])


@pytest.mark.parametrize("node", ["ModelSamplingSD3", "ModelSamplingAuraFlow"])
def test_levels_are_those_of_the_shift_that_a_node_sets(node, editor):
    """They were those of shift 3, whatever it was; through the node for one of two experts they were Stable Diffusion's."""
    if not editor.page.evaluate("kind => kind in LiteGraph.registered_node_types", node):
        pytest.skip(f"this host has no {node}")
    ids = editor.page.evaluate(
        "(kind) => { const [shift, distill, part, method] = [kind, 'FewStepDistill', 'FewStepExpertsPart',"
        " 'FewStepProgressiveDistillation'].map(kind => { const node = LiteGraph.createNode(kind); app.graph.add(node);"
        " return node }); shift.connect(0, distill, distill.findInputSlot('model')); shift.widgets[0].value = 5;"
        " method.connect(0, part, part.findInputSlot('method')); part.connect(0, distill, distill.findInputSlot('method'));"
        " return [shift.id, method.id] }",
        node,
    )
    wait_for(editor, "noise from", [1, 0.938, 0.833, 0.625])
    shown = "element => element.selectedOptions[0].textContent"
    assert preview(editor).locator("select").evaluate(shown) == "a flow model of shift 5, as set before it"
    editor.set(ids[0], shift=8.0)
    wait_for(editor, "noise from", [1, 0.96, 0.889, 0.727])
    assert preview(editor).locator("select").evaluate(shown) == "a flow model of shift 8 (Wan)"


def test_a_preview_goes_with_its_node(editor, schedule):
    wait_for(editor, "timestep", [999, 749, 499, 249])
    editor.remove(schedule)
    assert editor.page.locator("fewstep-schedule").count() == 0


def test_a_recipe_is_recognised_by_the_files_behind_the_model(editor):
    """Live, through LoRAs: the nearest file that says something; one that is off says nothing."""
    recipe = editor.add("FewStepApplyRecipe", recipe="recognised by the model's files")
    preview(editor).locator(".error", has_text="no file of a model is known behind model").wait_for()
    after, loras = recipe, []
    for file in ("style.safetensors", "sdxl_lightning_4step_lora.safetensors", "sd_xl_turbo.safetensors"):
        loras.append(editor.add("LoraLoaderModelOnly", lora_name=file))
        editor.page.evaluate(
            "([from, to]) => { const node = app.graph.getNodeById(to), at = node.inputs.findIndex(slot => slot.name === 'model');"
            " app.graph.getNodeById(from).connect(0, node, at) }",
            [loras[-1], after],
        )
        after = loras[-1]
    wait_for(editor, "timestep", [999, 749, 499, 249])
    preview(editor).get_by_text(
        "SDXL-Lightning, 4 steps, by the name of sdxl_lightning_4step_lora.safetensors"
    ).wait_for()
    editor.set(loras[1], strength_model=0)
    wait_for(editor, "timestep", [999])


ROWS = """async ([module, widgets]) => {
  const { filesBehind } = await import(module);
  const loader = { widgets, inputs: [] };
  const graph = { links: { 1: { origin_id: 1, origin_slot: 0 } }, getNodeById: () => loader };
  return filesBehind({ graph, inputs: [{ type: 'MODEL', link: 1 }] });
}"""


@pytest.mark.parametrize(
    ("widgets", "found"),
    [
        ({"lora_name": "a.safetensors", "strength_model": 0.5}, "a.safetensors"),
        ({"lora_name": "a.safetensors", "strength_model": 0}, ""),
        (
            {
                "loras.0.lora_name": "a.safetensors",
                "loras.0.strength": 0,
                "loras.1.lora_name": "b.safetensors",
                "loras.1.strength": 1,
            },
            "b.safetensors",
        ),
        (
            {
                "lora_1": {"on": True, "lora": "a.safetensors", "strength": 1},
                "lora_2": {"on": False, "lora": "b.safetensors", "strength": 1},
            },
            "a.safetensors",
        ),
    ],
    ids=["alone", "of strength 0", "in rows", "in values"],
)
def test_loras_that_are_off_are_none_of_the_files_behind_a_node(editor, widgets, found):
    made = [{"name": name, "value": value} for name, value in widgets.items()]
    assert editor.page.evaluate(ROWS, ["/extensions/comfyui_fewstep/fewstep_files.js", made]) == found


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        *[
            ("z_image_bf16.safetensors", "flow3"),
            ("sd3.5_large.safetensors", "flow3"),
            ("qwen_image_fp8.safetensors", "flux"),
        ],
        *[
            ("Wan2_1-T2V.safetensors", "flow8"),
            ("video\\wan2.2_t2v.gguf", "flow8"),
            ("swan_and_taiwan_xl.safetensors", "sd"),
        ],
        *[
            ("flux1-schnell.safetensors", "flow"),
            ("flux1-dev.safetensors", "flux"),
            ("flux-2-klein-4b.safetensors", "flux2"),
        ],
    ],
)
def test_the_kind_of_model_is_taken_from_its_file(file, kind, editor, schedule):
    """A schedule of a DiT was shown at Stable Diffusion's levels unless somebody chose another, and so was a method."""
    method = editor.add("FewStepProgressiveDistillation")
    editor.page.evaluate(
        "([file, ids]) => { const add = kind => { const node = LiteGraph.createNode(kind); app.graph.add(node); return node };"
        " const [loader, lora, distil] = ['CheckpointLoaderSimple', 'LoraLoaderModelOnly', 'FewStepDistill'].map(add);"
        " loader.widgets[0].value = file; lora.widgets[0].value = 'qwen_image_style.safetensors'; loader.connect(0, lora, 0);"
        " const [schedule, method] = ids.map(id => app.graph.getNodeById(id));"
        " lora.connect(0, schedule, schedule.findInputSlot('model')); loader.connect(0, distil, distil.findInputSlot('model'));"
        " method.connect(0, distil, distil.findInputSlot('method')); if (!file.startsWith('swan')) return;"
        " lora.widgets[0].value = 'none' }",
        [file, [schedule, method]],
    )
    for number in (0, 1):
        editor.page.wait_for_function(
            "([number, kind]) => document.querySelectorAll('fewstep-schedule')[number]?.choice.value === kind",
            arg=[number, kind],
            timeout=10_000,
        )
