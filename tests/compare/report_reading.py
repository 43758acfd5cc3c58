"""What tests read of a report: its elements, in a parser that insists on balanced tags."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import unquote

VOID = {"meta", "link", "img", "br"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    def text(self) -> str:
        """All text inside, one space between words."""
        return " ".join("".join(child if isinstance(child, str) else f" {child.text()} " for child in self.children)
                        .split())

    def all(self, *tags: str) -> list[Element]:
        """Elements inside with one of these tags, in order; all of them without a tag."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] if not tags or child.tag in tags else []
                found += child.all(*tags)
        return found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of <{tag}> is there twice"
        made = Element(tag, dict(attrs))
        self.open[-1].children.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(html: str) -> Element:
    """The whole page; raises AssertionError where its tags are not balanced."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert len(parser.open) == 1, f"never closed: {[one.tag for one in parser.open[1:]]}"
    return parser.root


def pictures(page: Element) -> dict[str, str]:
    """The SVG of every picture by its alternative text."""
    found = {}
    for image in page.all("img"):
        source = image.attributes["src"]
        assert source.startswith("data:image/svg+xml,"), source[:60]
        found[image.attributes["alt"]] = unquote(source.partition(",")[2])
    return found


def table(page: Element, number: int = 0) -> dict[str, dict[str, Element]]:
    """Row -> metric -> cell of the table of one data set."""
    shown = [one for one in page.all("table") if (one.attributes.get("class") or "") == "sortable"][number]
    (body,) = shown.all("tbody")
    return {row.all("th")[0].attributes["data-value"]: {cell.attributes["data-metric"]: cell for cell in row.all("td")
                                                        if "data-metric" in cell.attributes}
            for row in body.all("tr")}
