"""Tables on a phone: each cell carries the name of its column, which wide.css shows where rows become cards."""

from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

_AFTER_INLINE = 15
"""A priority below that of the inline processor, which is 20: the names are text by then."""


class TableLabels(Extension):
    """Set `data-label` on every cell in the body of a table."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - as Markdown calls it
        """Register the processor."""
        md.treeprocessors.register(_Labels(md), "table_labels", _AFTER_INLINE)


class _Labels(Treeprocessor):
    def run(self, root: Element) -> None:
        for table in root.iter("table"):
            names = ["".join(cell.itertext()) for cell in table.iterfind("thead/tr/th")]
            for row in table.iterfind("tbody/tr"):
                for name, cell in zip(names, row, strict=False):
                    cell.set("data-label", name)
