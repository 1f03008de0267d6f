from nemotron_core.errors import NemotronError


def test_an_error_is_one_line_with_what_where_and_remedy() -> None:
    error = NemotronError("two\nlines", where="file", remedy="do this")
    assert str(error) == "two lines [file]: do this"
