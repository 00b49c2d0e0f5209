"""What a program wrote to a terminal, as an animated picture: SVG with CSS alone, which web pages show in ``<img>``.

Lines are kept as they scroll away, so that a line which never changes is in the picture once, and one that is drawn
again (a bar) once for each time it is worth seeing. Readers that do not animate see the end.
"""

from __future__ import annotations

import re
from html import escape

from msgspec import Struct

CELL_WIDTH, LINE_HEIGHT, FONT_SIZE, MARGIN = 7.8, 18, 13, 14
LONGEST_WAIT = 2.0
"""Seconds between two lines, however long the program worked: a bar that moved for minutes moves faster."""
LEAST_BETWEEN = 0.3
"""Seconds between two states of one line: a bar that moves ten times a second would be most of the file."""
AT_THE_END = 6.0
"""Seconds for which the last screen stays."""

_SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[=>]|\x1b\][^\x07]*\x07")

_COLOURS = {
    30: "#484f58", 31: "#ff7b72", 32: "#7ee787", 33: "#d29922", 34: "#79c0ff", 35: "#d2a8ff", 36: "#56d4dd",
    37: "#c9d1d9", 90: "#6e7681", 91: "#ffa198", 92: "#56d364", 93: "#e3b341", 94: "#a5d6ff", 95: "#e2c5ff",
    96: "#b3f0ff", 97: "#ffffff",
}  # fmt: skip
_CUBE = (0, 95, 135, 175, 215, 255)


class Style(Struct, frozen=True):
    colour: str | None = None
    bold: bool = False
    dim: bool = False


class Version(Struct):
    """One state of a line, from ``begin`` until the next one."""

    begin: float
    cells: list[tuple[str, Style]]


class Terminal:
    """An endless page, ``columns`` wide, on which a program writes. As much of a terminal as progress bars need."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._row = self._column = 0
        self._style = Style()
        self.lines: list[list[tuple[str, Style]]] = [[]]

    @property
    def row(self) -> int:
        return self._row

    def feed(self, text: str) -> set[int]:
        """Take in ``text``; which lines it changed."""
        changed: set[int] = set()
        position = 0
        while position < len(text):
            found = _SEQUENCE.match(text, position)
            if found:
                if found[2]:
                    self._control(found[1], found[2], changed)
                position = found.end()
                continue
            self._character(text[position], changed)
            position += 1
        return changed

    def _character(self, character: str, changed: set[int]) -> None:
        if character == "\n":
            self._to_row(self._row + 1)
        elif character == "\r":
            self._column = 0
        elif character == "\b":
            self._column = max(0, self._column - 1)
        elif character >= " ":
            if self._column == self._columns:
                self._column = 0
                self._to_row(self._row + 1)
            line = self.lines[self._row]
            line += [(" ", Style())] * (self._column + 1 - len(line))
            line[self._column] = (character, self._style)
            self._column += 1
            changed.add(self._row)

    def _to_row(self, row: int) -> None:
        self._row = max(0, row)
        while len(self.lines) <= self._row:
            self.lines.append([])

    def _control(self, parameters: str, kind: str, changed: set[int]) -> None:
        numbers = [int(part) if part.isdigit() else 0 for part in parameters.split(";")]
        count = max(1, numbers[0])
        if kind == "m":
            self._restyle(numbers)
        elif kind == "A":
            self._to_row(self._row - count)
        elif kind == "B":
            self._to_row(self._row + count)
        elif kind == "C":
            self._column += count
        elif kind == "D":
            self._column = max(0, self._column - count)
        elif kind == "G":
            self._column = count - 1
        elif kind == "K":
            line = self.lines[self._row]
            if numbers[0] == 2:
                line.clear()
            elif numbers[0] == 0:
                del line[self._column :]
            changed.add(self._row)

    def _restyle(self, numbers: list[int]) -> None:
        while numbers:
            code = numbers.pop(0)
            style = self._style
            if code == 0:
                self._style = Style()
            elif code in {1, 2}:
                self._style = Style(style.colour, style.bold or code == 1, style.dim or code == 2)
            elif code == 22:
                self._style = Style(style.colour)
            elif code == 38 and numbers[:1] == [5]:
                self._style = Style(_palette(numbers[1]), style.bold, style.dim)
                del numbers[:2]
            elif code == 38 and numbers[:1] == [2]:
                self._style = Style("#{:02x}{:02x}{:02x}".format(*numbers[1:4]), style.bold, style.dim)
                del numbers[:4]
            elif code == 39 or code in _COLOURS:
                self._style = Style(_COLOURS.get(code), style.bold, style.dim)


def _palette(number: int) -> str:
    if number < 16:
        return _COLOURS[number + 30 if number < 8 else number + 82]
    if number < 232:
        red, green, blue = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
        return f"#{_CUBE[red]:02x}{_CUBE[green]:02x}{_CUBE[blue]:02x}"
    return "#" + f"{8 + 10 * (number - 232):02x}" * 3


class Film(Struct):
    """Every line with its states, and where the screen begins from when on."""

    lines: list[list[Version]]
    tops: list[tuple[float, int]]
    seconds: float

    def screen_at(self, seconds: float, rows: int) -> list[str]:
        """The text on the screen at a moment."""
        top = max((row for when, row in self.tops if when <= seconds), default=0)
        shown = []
        for versions in self.lines[top : top + rows]:
            there = [version for version in versions if version.begin <= seconds]
            shown.append("".join(cell[0] for cell in there[-1].cells) if there else "")
        return shown


def film(outputs: list[tuple[float, str]], columns: int, rows: int, prompt: str) -> Film:
    """What was seen: waits that are too long are shortened, and changes that follow too fast are left out."""
    terminal = Terminal(columns)
    made = Film([], [(0.0, 0)], 0.0)
    pending: set[int] = set()
    now = 0.0
    typed = [(0.5 + 0.07 * index, letter) for index, letter in enumerate(prompt)]
    start = typed[-1][0] + 0.5 if typed else 0.0
    stream = [(0.0, "$ "), *typed, (start, "\r\n")]
    stream += [(start + when, text) for when, text in _time_lapse(outputs, columns)]
    for now, text in stream:
        pending |= terminal.feed(text)
        for row in sorted(pending):
            if _keep(made, terminal, row, now):
                pending.discard(row)
        top = max(0, terminal.row + 1 - rows)
        if top > made.tops[-1][1]:
            made.tops.append((now, top))
    for row in sorted(pending):
        _keep(made, terminal, row, now, last=True)
    made.seconds = now + AT_THE_END
    return made


def _time_lapse(outputs: list[tuple[float, str]], columns: int) -> list[tuple[float, str]]:
    """The same with other times: what passes between two new lines takes :data:`LONGEST_WAIT` at most."""
    terminal = Terminal(columns)
    lapsed: list[tuple[float, str]] = []
    between: list[tuple[float, str]] = []
    now, before = 0.0, 0.0
    for when, text in outputs:
        lines = len(terminal.lines)
        terminal.feed(text)
        between.append((when, text))
        if len(terminal.lines) > lines or when == outputs[-1][0]:
            pace = min(1.0, LONGEST_WAIT / max(when - before, 1e-9))
            lapsed += [(now + pace * (each - before), written) for each, written in between]
            now += pace * (when - before)
            before = when
            between = []
    return lapsed + [(now, written) for _, written in between]


def _keep(made: Film, terminal: Terminal, row: int, now: float, *, last: bool = False) -> bool:
    """Note the line's state; False while it is too early for another one, and so still to be done."""
    while len(made.lines) <= row:
        made.lines.append([])
    versions = made.lines[row]
    cells = list(terminal.lines[row])
    if versions and versions[-1].cells == cells:
        return True
    if versions and now - versions[-1].begin < LEAST_BETWEEN and not last:
        return False
    # Between being erased and drawn again it is not worth seeing.
    if versions and not last and not any(character.strip() for character, _ in cells):
        return False
    versions.append(Version(now, cells))
    return True


def render(outputs: list[tuple[float, str]], columns: int, rows: int, prompt: str) -> str:
    """The whole picture."""
    return draw(film(outputs, columns, rows, prompt), columns, rows)


def draw(made: Film, columns: int, rows: int) -> str:
    """An SVG document of ``rows`` lines, over which the film's lines move up."""
    width, height = columns * CELL_WIDTH + 2 * MARGIN, rows * LINE_HEIGHT + 2 * MARGIN
    classes = _Classes()
    rules: list[str] = []
    texts: list[str] = []
    for row, versions in enumerate(made.lines):
        for index, version in enumerate(versions):
            spans = _spans(version.cells, classes)
            if not spans:
                continue
            end = versions[index + 1].begin if index + 1 < len(versions) else None
            name = f"l{len(texts)}"
            rules.append(_appears(name, version.begin, end, made.seconds))
            hidden = "" if end is None else ' opacity="0"'
            y = MARGIN + row * LINE_HEIGHT + FONT_SIZE
            texts.append(f'<text id="{name}" y="{y}"{hidden}>{spans}</text>')
    steps = [
        f"{100 * when / made.seconds:.3f}%{{transform:translateY({-top * LINE_HEIGHT}px)}}" for when, top in made.tops
    ]
    last = made.tops[-1][1] * LINE_HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" height="{height}" '
        'role="img" aria-label="A recording of make demo in a terminal">\n'
        f"<style>text{{font:{FONT_SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"fill:#c9d1d9;white-space:pre;animation-duration:{made.seconds:.2f}s;animation-timing-function:step-end;"
        "animation-iteration-count:infinite}"
        f"#page{{transform:translateY({-last}px);animation:scroll {made.seconds:.2f}s step-end infinite}}"
        f"@keyframes scroll{{{''.join(steps)}100%{{transform:translateY({-last}px)}}}}"
        f"{classes.rules()}{''.join(rules)}"
        "@media (prefers-reduced-motion:reduce){text,#page{animation:none!important}}</style>\n"
        f'<rect width="100%" height="100%" rx="8" fill="#0d1117"/>\n'
        f'<svg y="{MARGIN - 1}" width="{width:g}" height="{rows * LINE_HEIGHT + 8}" viewBox="0 {MARGIN - 1} {width:g} '
        f'{rows * LINE_HEIGHT + 8}"><g id="page">\n' + "\n".join(texts) + "\n</g></svg>\n</svg>\n"
    )


def _appears(name: str, begin: float, end: float | None, seconds: float) -> str:
    """The rule that shows a text from ``begin`` to ``end``."""
    share = f"{100 * begin / seconds:.3f}%"
    if end is None:
        if begin <= 0:
            return ""
        return (
            f"@keyframes {name}{{0%{{opacity:0}}{share}{{opacity:1}}100%{{opacity:1}}}}#{name}{{animation-name:{name}}}"
        )
    until = f"{100 * end / seconds:.3f}%"
    return (
        f"@keyframes {name}{{0%{{opacity:0}}{share}{{opacity:1}}{until}{{opacity:0}}100%{{opacity:0}}}}"
        f"#{name}{{animation-name:{name}}}"
    )


class _Classes:
    """Short names of the styles in use."""

    def __init__(self) -> None:
        self._names: dict[Style, str] = {}

    def of(self, style: Style) -> str:
        return self._names.setdefault(style, f"s{len(self._names)}")

    def rules(self) -> str:
        made = []
        for style, name in self._names.items():
            parts = [f"fill:{style.colour}"] if style.colour else []
            parts += ["font-weight:bold"] if style.bold else []
            parts += ["opacity:.65"] if style.dim else []
            made.append(f".{name}{{{';'.join(parts)}}}")
        return "".join(made)


def _spans(cells: list[tuple[str, Style]], classes: _Classes) -> str:
    """Runs of one style, each at its column: fonts differ in width, columns must not."""
    spans, start = [], 0
    while start < len(cells):
        style = cells[start][1]
        end = start
        while end < len(cells) and cells[end][1] == style:
            end += 1
        text = "".join(cell[0] for cell in cells[start:end])
        bare = text.strip()
        if bare:
            at = start + len(text) - len(text.lstrip())
            css = "" if style == Style() else f' class="{classes.of(style)}"'
            x = MARGIN + at * CELL_WIDTH
            spans.append(
                f'<tspan x="{x:g}" textLength="{len(bare) * CELL_WIDTH:g}" lengthAdjust="spacingAndGlyphs"{css}>'
                f"{escape(bare, quote=False)}</tspan>"
            )
        start = end
    return "".join(spans)
