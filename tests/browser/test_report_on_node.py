"""What Student Report says on its node when it has run."""


def test_a_report_says_its_figures_what_is_missing_and_where_it_is(editor):
    node = editor.add("FewStepStudentReport")
    editor.show(node)
    said = ["| model | steps |\n|---|--:|\n| teacher | 32 |\n| a\\|b | 4 |\n\nno LPIPS\n\n/a/report.html"]
    editor.page.evaluate("([id, text]) => app.graph.getNodeById(id).onExecuted({ text })", [node, said])
    table = editor.page.locator("fewstep-table")
    table.get_by_text("/a/report.html").wait_for()
    assert table.locator("td, th").all_text_contents() == ["model", "steps", "teacher", "32", "a|b", "4"]
    assert table.locator("p").inner_text() == "no LPIPS\n/a/report.html"
