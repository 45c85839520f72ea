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
