"""`scripts/code_lines.py` counts code, not comments, and product, not tests."""

from __future__ import annotations

from pathlib import Path

from scripts.code_lines import code_lines, count_rooms, is_product

SOURCE = '''"""Module docstring
of two lines."""

# comment
X = """a string
that is code"""


class A:
    """Docstring."""

    y: int = 1  # comment at the end
    """Attribute docstring."""

    def f(self) -> int:
        return (
            1 +

            2
        )
'''


def test_code_is_counted_without_docstrings_comments_and_blank_lines() -> None:
    assert code_lines(SOURCE) == 2 + 1 + 1 + 1 + 4
    assert code_lines("") == code_lines("# only a comment\n") == 0


def test_product_is_counted_in_every_layout() -> None:
    product = ("core/nemotron_core/files.py", "bench/nemotron_bench/run.py", "client/a/b.py")
    others = (
        *("bench/hops.py", "bench/measurements/hops.py", "tests/a.py", "tests/client/b.py"),
        *("scripts/code_lines.py", "docs/design.md", "helm/values.yaml"),
    )
    assert [path for path in (*product, *others) if is_product(path)] == list(product)
    rooms = count_rooms([*product, *others], lambda path: SOURCE)
    assert rooms == {"core": 9, "bench": 9, "client": 9}


def test_the_tree_has_product_code() -> None:
    root = Path(__file__).parents[2]
    paths = [str(path.relative_to(root)) for path in (root / "bench").rglob("*.py")]
    rooms = count_rooms(paths, lambda path: (root / path).read_text())
    assert 500 < rooms["bench"] < 2000
