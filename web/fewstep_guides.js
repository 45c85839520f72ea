// The pack's own documentation, reached from the editor: commands, entries of its Help menu, and links in the list of runs.
import { app } from "../../scripts/app.js";
import { GUIDES, guideUrl } from "./fewstep_service.js";
import { say } from "./fewstep_words.js";

app.registerExtension({
  name: "comfyuifewstep.Guides",
  commands: Object.entries(GUIDES).map(([name, title]) => ({
    id: `comfyuifewstep.${name}`, label: `FewStep: ${say(title)}`, icon: "pi pi-book", function: () => window.open(guideUrl(name), "_blank", "noopener"),
  })),
  menuCommands: [{ path: ["Help", "FewStep"], commands: Object.keys(GUIDES).map((name) => `comfyuifewstep.${name}`) }],
});
