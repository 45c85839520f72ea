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


def test_what_is_missing_and_where_the_report_is_are_seen_below_a_long_table(editor):
    """They stand last, and a table of several runs is higher than the node was made."""
    node = editor.add("FewStepStudentReport")
    editor.show(node)
    rows = "".join(f"| run {i} | 4 | 4 | 0.03 | 28.9 dB (23.3) | - | - | 0.12 |\n" for i in range(5))
    head = "| model | steps | forwards | seconds | PSNR (least) | LPIPS | CLIP score | diversity |\n"
    said = f"{head}{rows}\nLPIPS: not measured\n\n/a/report.html"
    editor.page.evaluate("([id, text]) => app.graph.getNodeById(id).onExecuted({ text: [text] })", [node, said])
    editor.page.wait_for_function(
        "() => { const table = document.querySelector('fewstep-table');"
        " return table?.rest.offsetHeight && table.scrollHeight <= table.clientHeight + 1 }",
        timeout=5000,
    )
