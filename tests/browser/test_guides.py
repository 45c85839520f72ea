"""The guides as pages: reached from the list of runs, with tables, and with links that lead somewhere."""

from test_runs_browser import open_runs


def test_the_guides_are_reached_from_the_list(editor):
    links = open_runs(editor).get_by_role("navigation", name="Guides").get_by_role("link")
    assert links.all_text_contents() == ["Choose a method", "Words", "Examples"]
    with editor.page.context.expect_page() as waiting:
        links.nth(1).click()
    page = waiting.value
    page.get_by_role("heading", name="Glossary", level=1).wait_for()
    assert page.get_by_role("cell", name="run", exact=True).is_visible(), "a table is one"
    page.goto(page.url.replace("glossary", "examples"))
    example = page.get_by_role("link", name="cifar10.json")
    assert page.request.get(example.evaluate("(link) => link.href")).json()
    page.goto(page.url.replace("examples", "choose-a-method"))
    page.get_by_role("link", name="glossary").click()
    page.get_by_role("heading", name="Glossary", level=1).wait_for()
    assert page.title() == "Glossary - FewStep"
    page.close()


def test_a_link_shows_no_other_file_of_the_server(editor, runs, name):
    """Its scripts would run as the editor's own."""
    page = editor.page.context.new_page()
    folder = runs.parents[1] / name
    folder.mkdir(parents=True)
    (folder / "evil.md").write_text("<img src=x onerror='window.reached = true'>\n")
    address = f"{editor.server.address}/extensions/comfyui_fewstep/guide.html"
    for way in ("docs/../../../", "../../", "docs/..%2F..%2F..%2F"):
        page.goto(f"{address}?{way}view?filename=evil.md&subfolder={name}&type=output")
        page.locator("main").get_by_text("There is no page").wait_for()
        assert page.evaluate("() => window.reached") is None
    page.close()
