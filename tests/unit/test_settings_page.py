from docs.settings import PAGE, page


def test_the_page_of_settings_is_that_of_the_code():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make docs"
