"""A template whose files are not there: the editor's own list of missing models names each with folder and link, and fetches it.

No test fetches anything: what the browser asks of other machines is answered here.
"""

import pytest
from comfyui_fewstep.commands.server import ServerError, serving
from editing import SETTINGS, Editor
from hosting import ROOT
from test_first_run import MILLISECONDS, User

pytestmark = pytest.mark.thorough

TEMPLATE = "SDXL DMD2 in 4 steps"
FILES = {
    "checkpoints/sd_xl_base_1.0.safetensors": "stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "loras/dmd2_sdxl_4step_lora_fp16.safetensors": "tianweiy/DMD2/resolve/main/dmd2_sdxl_4step_lora_fp16.safetensors",
}
"""What the template loads, and where on Hugging Face it is."""
MOST_CLICKS = 6
SIZE = {"content-length": "1048576", "access-control-allow-origin": "*", "access-control-expose-headers": "*"}


@pytest.fixture
def base(tmp_path):
    for place in FILES:
        (tmp_path / "models" / place).parent.mkdir(parents=True)
    return tmp_path


@pytest.fixture
def asking(base):
    """A server whose editor says which files a workflow lacks."""
    with serving(base=base) as running:
        try:
            running.get("/workflow_templates")
        except (ServerError, ValueError):
            pytest.skip("this host has no template browser, and its editor no list of missing models")
        running.post("/settings", {**SETTINGS, "Comfy.Workflow.ShowMissingModelsWarning": True})
        yield running


def answered(route):
    """As Hugging Face: the size first, then the file."""
    head = route.request.method == "HEAD"
    route.fulfill(
        status=200, headers=SIZE if head else {}, content_type="application/octet-stream", body=b"" if head else b"x"
    )


def test_missing_files_are_named_fetched_and_found(chromium, asking, base):
    assert (ROOT / "workflows" / f"{TEMPLATE}.json").is_file()
    with chromium.new_context(viewport={"width": 1600, "height": 1000}, accept_downloads=True) as context:
        context.route("https://huggingface.co/**", answered)
        editor = Editor(context.new_page(), asking)
        page = editor.page
        page.set_default_timeout(MILLISECONDS)
        editor.open()
        user = User(editor)
        user.click(page.get_by_role("button", name="Templates").first)
        page.get_by_placeholder("Search").last.fill("DMD2")  # typed
        user.click(page.get_by_text(TEMPLATE, exact=True).first)
        user.click(page.get_by_role("button", name="View details"))
        missing = page.get_by_test_id("error-group-missing-model")
        missing.get_by_role("button", name="Download all").wait_for()
        said = missing.inner_text()
        for place in FILES:
            folder, _, file = place.partition("/")
            assert f"{file}\n{folder}" in said
        fetched = []
        context.on("response", lambda response: fetched.append(response.url))
        page.on("download", lambda download: fetched.append(download.url))
        user.click(missing.get_by_role("button", name="Download all"))
        wanted = {f"https://huggingface.co/{address}" for address in FILES.values()}
        for _ in range(100):
            if wanted <= {address.partition("?")[0] for address in fetched}:
                break
            page.wait_for_timeout(100)
        assert wanted <= {address.partition("?")[0] for address in fetched}
        for place in FILES:  # where a user puts what the browser has fetched
            (base / "models" / place).write_bytes(b"x")
        user.click(page.get_by_test_id("missing-model-header-refresh"))
        missing.wait_for(state="detached")
        assert user.clicks <= MOST_CLICKS
