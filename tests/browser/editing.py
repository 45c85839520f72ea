"""What a user does in the editor, and what the editor says; the same for the editors of 2024 and of today."""

import json

SETTINGS = {
    "Comfy.TutorialCompleted": True,  # no dialog of templates at the first start
    "Comfy.Workflow.ShowMissingModelsWarning": False,  # files that a workflow wants are not in a test
    "Comfy.Workflow.Persist": False,
    "Comfy.VueNodes.Enabled": False,
}
MILLISECONDS = 30_000
_NOT_OURS = ("favicon", "user.css", "userdata", "i18n", "Failed to load resource", "JobsApiError")
"""The last: an editor newer than its host asks for what that has not."""


class Editor:
    def __init__(self, page, server):
        self.page, self.server = page, server
        self.errors = []
        page.set_default_timeout(MILLISECONDS)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.errors.append(f"{error} {getattr(error, 'stack', '')}"))

    def _heard(self, message):
        """The host itself asks for files that need not exist; a failed answer to a request of ours is ours."""
        asked = message.location.get("url", "")
        ours = "fewstep" in f"{message.text} {asked}".lower() and not asked.startswith("https://api.comfy.org")
        if message.type == "error" and (ours or not any(name in message.text for name in _NOT_OURS)):
            self.errors.append(f"{message.text} ({message.location.get('url')})")

    def open(self):
        self.page.goto(self.server.address)
        self._wait_until_ready()

    def reload(self):
        self.page.reload()
        self._wait_until_ready()

    def _wait_until_ready(self):
        self.page.wait_for_function(
            "() => window.app?.graph && app.extensions?.length && LiteGraph.registered_node_types.FewStepDistill"
            " && !document.querySelector('#splash, .splash')",
            timeout=120_000,  # hundreds of files, while the server trains
        )
        self.page.wait_for_timeout(1000)
        # what a host complains about in its own start is not ours, nor a message that came before it loaded what listens for it
        ours = [error for error in self.errors if "fewstep" in error.lower()]
        self.errors[:] = [error for error in ours if "Unknown message type" not in error]

    def load(self, workflow):
        """A workflow in UI format, as the Load button takes it."""
        self.page.evaluate("async (workflow) => { await app.loadGraphData(workflow) }", workflow)
        self.wait_until_drawn()

    def wait_until_drawn(self):
        """Until the page has drawn what has changed so far, however slow the machine is."""
        frames = "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))"
        self.page.evaluate(f"() => new Promise(done => {frames})")

    def prompt(self):
        """What the editor would queue, in API format."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def missing_nodes(self):
        """The kinds of nodes in the graph that the editor does not know, of which each editor tells in its own way."""
        return self.page.evaluate(
            "() => app.graph._nodes.map(node => node.type).filter(kind => !(kind in LiteGraph.registered_node_types))"
        )

    def add(self, kind, **widgets):
        """The id of a new node, made as the editor's menu makes it."""
        return self.page.evaluate(
            "([kind, values]) => { const node = LiteGraph.createNode(kind); node.pos = [60, 60]; app.graph.add(node);"
            " for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;"
            " return node.id }",
            [kind, widgets],
        )

    def set(self, node, **widgets):
        self.page.evaluate(
            "([id, values]) => { const node = app.graph.getNodeById(id);"
            " for (const [name, value] of Object.entries(values)) {"
            " const widget = node.widgets.find(w => w.name === name); widget.value = value; widget.callback?.(value) } }",
            [node, widgets],
        )

    def remove(self, node):
        self.page.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", node)

    def find(self, kind):
        """The id of the only node of a kind."""
        (found,) = self.page.evaluate("(kind) => app.graph._nodes.filter(n => n.type === kind).map(n => n.id)", kind)
        return found

    def queue(self):
        self.page.evaluate("() => app.queuePrompt(0, 1)")

    def hear(self, event, detail=None, *, then="null"):
        """As when the server says it. then: what is asked of the page at once, before anything else can change it."""
        return self.page.evaluate(
            "async ([event, detail]) => {"
            " (await import('/scripts/api.js')).api.dispatchEvent(new CustomEvent(event, { detail }));"
            f" return {then} }}",
            [event, detail],
        )

    def clear(self):
        """Numbers go on: editors of today keep what widgets hold by the node's number, also of nodes that are gone."""
        self.page.evaluate(
            "() => { const last = app.graph.last_node_id; app.graph.clear(); app.graph.last_node_id = last }"
        )

    def show(self, node, *, scale=1.0):
        """Brings a node to the top left of what is seen."""
        self.page.evaluate(
            "([id, scale]) => { const node = app.graph.getNodeById(id), view = app.canvas.ds; view.scale = scale;"
            " view.offset = [120 / scale - node.pos[0], 90 / scale - node.pos[1]]; app.canvas.setDirty(true, true) }",
            [node, scale],
        )
        self.wait_until_drawn()


def strip(prompt):
    """What matters of an API-format workflow."""
    return {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in prompt.items()}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))
