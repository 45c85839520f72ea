"""Links as other packs lay them, with stand-ins of their nodes: elements look where a queued graph would take a value from."""

import pytest

FILE = "z_image_bf16.safetensors"
STAND_INS = """() => {
  if (LiteGraph.registered_node_types.TestSet) return;
  const virtual = (name, made) => {
    class Kind extends LGraphNode { constructor(title) { super(title); this.isVirtualNode = true; made(this) } }
    Kind.title = name; LiteGraph.registerNodeType(name, Kind) };
  virtual("TestSet", node => {
    node.addInput("", "*"); node.addOutput("", "*"); node.addWidget("text", "name", "", () => {}, {}) });
  virtual("TestGet", node => {
    node.addOutput("", "*"); node.addWidget("text", "name", "", () => {}, {});
    node.findSetter = graph => graph._nodes.find(n => n.type === "TestSet" && n.widgets[0].value === node.widgets[0].value);
    node.getInputLink = slot => {
      const link = node.findSetter(node.graph)?.inputs[slot].link ?? null;
      if (link === null) { window.complaints = (window.complaints ?? 0) + 1; return null }
      return node.graph.getLink?.(link) ?? node.graph.links[link] } });
  virtual("TestReroute", node => { node.addInput("", "*"); node.addOutput("", "*") });
  const real = (name, inputs, outputs) => {
    class Kind extends LGraphNode { constructor(title) { super(title);
      for (const [one, type] of inputs) this.addInput(one, type); for (const type of outputs) this.addOutput(type, type) } }
    Kind.title = name; Kind.comfyClass = name; LiteGraph.registerNodeType(name, Kind) };
  real("TestSwitch", [["any_01", "MODEL"], ["any_02", "MODEL"]], ["MODEL"]);
  real("TestAny", [["any_01", "*"], ["any_02", "*"]], ["*"]);
  real("TestContext", [["base_ctx", "TEST_CONTEXT"], ["model", "MODEL"]], ["TEST_CONTEXT", "MODEL"]);
  real("TestFromPipe", [["pipe", "BASIC_PIPE"]], ["MODEL"]);
  real("TestToPipe", [["model", "MODEL"]], ["BASIC_PIPE"]);
}"""
MAKING = """
  const add = kind => { const node = LiteGraph.createNode(kind); app.graph.add(node); return node };
  const name = (node, text) => { node.widgets[0].value = text };
  const file = (node, text) => { node.widgets[0].value = text };
  const chain = (...nodes) => nodes.reduce((from, to) => (from.connect(0, to, 0), to));
  const into = (node, to) => node.connect(0, to, to.findInputSlot("model"));
"""
WAYS = {
    "a link": "into(loader, to)",
    "the host's Reroute": "into(chain(loader, add('Reroute')), to)",
    "two nodes of the editor alone": "into(chain(loader, add('TestReroute'), add('TestReroute')), to)",
    "Set and Get": "const set = add('TestSet'), get = add('TestGet'); name(set, 'M'); name(get, 'M');"
    " chain(loader, set); into(get, to)",
    "Set and Get behind a Reroute": "const set = add('TestSet'), get = add('TestGet'); name(set, 'M'); name(get, 'M');"
    " set.inputs[0].type = 'MODEL'; chain(loader, add('Reroute'), set); into(get, to)",
    "a bypassed node": "const lora = add('LoraLoaderModelOnly'); file(lora, 'flux-1.safetensors'); lora.mode = 4;"
    " into(chain(loader, lora), to)",
    "a switch whose first input is free": "const one = add('TestSwitch'); loader.connect(0, one, 1); into(one, to)",
    "a switch whose first model is muted": "const one = add('TestSwitch'), other = add('CheckpointLoaderSimple');"
    " file(other, 'flux1-dev.safetensors'); other.mode = 2; chain(other, one); loader.connect(0, one, 1); into(one, to)",
    "a node that takes anything": "const one = add('TestAny'); loader.connect(0, one, 1); into(one, to)",
    "a context": "const first = add('TestContext'), next = add('TestContext'); loader.connect(0, first, 1);"
    " first.connect(0, next, 0); next.connect(1, to, to.findInputSlot('model'))",
    "a pipe": "into(chain(loader, add('TestToPipe'), add('TestFromPipe')), to)",
    "a link that nobody sees": "app.ue_modified_prompt = () => {}; const all = add('TestAny');"
    " app.graph.extra = { ...app.graph.extra, ue_links: [{ downstream: to.id, downstream_slot: to.findInputSlot('model'),"
    " upstream: loader.id, upstream_slot: 0, controller: all.id, type: 'MODEL' }] }",
    "a subgraph around the loader": "into(loader, to); app.graph.convertToSubgraph(new Set([loader]))",
    "a subgraph in the middle": "const lora = add('LoraLoaderModelOnly'); file(lora, 'style.safetensors');"
    " into(chain(loader, lora), to); app.graph.convertToSubgraph(new Set([lora]))",
}
"""How a loader's MODEL comes to a node `to`."""


@pytest.fixture
def wired(editor):
    """Makes a loader of FILE and a node of a kind behind it in some way. Returns the node's id."""
    editor.page.evaluate(STAND_INS)

    def make(way, kind):
        if "convertToSubgraph" in way and not editor.page.evaluate("() => Boolean(app.graph.convertToSubgraph)"):
            pytest.skip("this editor has no subgraphs")
        return editor.page.evaluate(
            f"([kind, model]) => {{ {MAKING} const loader = add('CheckpointLoaderSimple'), to = add(kind); file(loader, model);"
            f" {way}; return to.id }}",
            [kind, FILE],
        )

    yield make
    editor.page.evaluate("() => { delete app.ue_modified_prompt; delete app.graph.extra?.ue_links }")


def wait_for_kind(editor, kind):
    editor.page.wait_for_function(
        "kind => document.querySelector('fewstep-schedule')?.choice.value === kind", arg=kind, timeout=10_000
    )


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_schedule_is_shown_for_the_model_behind(way, editor, wired):
    wired(way, "FewStepSchedule")
    wait_for_kind(editor, "flow3")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_recipe_is_recognised_by_the_file_behind(way, editor, wired):
    node = wired(way, "FewStepApplyRecipe")
    files = "async ([id, module]) => (await import(module)).filesBehind(app.graph.getNodeById(id)).split('\\n')"
    found = editor.page.evaluate(files, [node, "/extensions/comfyui_fewstep/fewstep_files.js"])
    assert FILE in found
    assert not any(name.startswith("flux") for name in found), "nothing that is bypassed or muted"


@pytest.mark.parametrize(
    "way", [WAYS["Set and Get"], WAYS["a link that nobody sees"]], ids=["Set and Get", "nobody sees"]
)
def test_a_run_is_named_with_the_file_behind(way, editor, wired):
    node = wired(way, "FewStepMakeItFast")
    value = (
        "id => app.graph.getNodeById(id).widgets.find(w => w.name === 'run_name').value === 'z_image_bf16 in 4 steps'"
    )
    editor.page.wait_for_function(value, arg=node)


def test_a_method_behind_set_and_get_knows_the_model_that_it_will_teach(editor, wired):
    node = wired(WAYS["Set and Get"], "FewStepDistill")
    editor.page.evaluate(
        f"id => {{ {MAKING} const method = add('FewStepGuidanceDistillation'), set = add('TestSet'), get = add('TestGet');"
        " name(set, 'METHOD'); name(get, 'METHOD'); method.connect(0, set, 0); const to = app.graph.getNodeById(id);"
        " get.connect(0, to, to.findInputSlot('method')) }",
        node,
    )
    wait_for_kind(editor, "flow3")
    value = "id => app.graph.getNodeById(id).widgets.find(w => w.name === 'run_name').value"
    editor.page.wait_for_function(f"id => ({value})(id) === 'z_image_bf16 guidance distillation'", arg=node)


def test_a_watched_run_is_that_of_a_node_behind_a_reroute(editor, wired):
    name = editor.page.evaluate(
        f"async module => {{ {MAKING} const [write, one, watch] = ['FewStepWriteRun', 'TestReroute', 'FewStepWatchRun'].map(add);"
        " write.widgets.find(w => w.name === 'run_name').value = 'of another';"
        " write.connect(0, one, 0); one.connect(0, watch, watch.findInputSlot('written'));"
        " return (await import(module)).runNamed(watch) }",
        "/extensions/comfyui_fewstep/fewstep_service.js",
    )
    assert name == "of another"


def test_nothing_is_known_behind_a_muted_node_or_a_get_without_its_set_which_is_not_asked_in_vain(editor, wired):
    """Get nodes complain to the user whenever somebody asks for a link that is not there, and we look again and again."""
    wired("const get = add('TestGet'); name(get, 'nothing'); into(get, to); loader.mode = 2", "FewStepSchedule")
    wait_for_kind(editor, "sd")
    editor.page.wait_for_timeout(700)
    assert not editor.page.evaluate("() => window.complaints")


def test_a_circle_has_an_end(editor, wired):
    wired(
        "const set = add('TestSet'), get = add('TestGet'); name(set, 'M'); name(get, 'M'); get.connect(0, set, 0); into(get, to)",
        "FewStepSchedule",
    )
    wait_for_kind(editor, "sd")


def test_a_place_in_what_is_queued_is_of_the_node_in_one_subgraph_alone(editor):
    is_at = """async module => {
      const { isAt } = await import(module), inside = { id: 3 };
      return [isAt('3', inside), isAt('7:3', inside), isAt('7:3', inside, { id: 7 }), isAt('9:7:3', inside, { id: 9 }),
        isAt('3:7', inside), isAt('8:3', inside, { id: 7 }), isAt(null, inside)] }"""
    assert editor.page.evaluate(is_at, "/extensions/comfyui_fewstep/fewstep_service.js") == [True] * 4 + [False] * 3
