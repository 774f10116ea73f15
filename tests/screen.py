"""A terminal's screen, as far as the tests of what is drawn on one need it: rows, a cursor, a region that scrolls."""

from __future__ import annotations

import re

TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b([78DM])|([\s\S])")


class Screen:
    """What a terminal shows after what was written to it; rows that scrolled out of the top are kept."""

    def __init__(self, columns: int = 100, rows: int = 30) -> None:
        self.columns, self.rows = columns, rows
        self.lines = [""] * rows
        self.gone: list[str] = []
        self._row = self._column = 0
        self._saved = (0, 0)
        self._top, self._bottom = 0, rows - 1

    def feed(self, text: str) -> None:
        """Takes text with its control sequences; anything unknown is an error."""
        for match in TOKEN.finditer(text):
            given, letter, short, char = match.groups()
            if char is not None:
                self._put(char)
            elif short == "7":
                self._saved = self._row, self._column
            elif short == "8":
                self._row, self._column = self._saved
            elif short == "D":
                self._down()
            else:
                self._sequence([int(n or 0) for n in given.split(";")] if given[:1] != "?" else [], letter or short)

    @property
    def text(self) -> str:
        """All that was written and not written over, top first."""
        return "\n".join(line.rstrip() for line in [*self.gone, *self.lines]).rstrip() + "\n"

    def _sequence(self, numbers: list[int], letter: str) -> None:
        first = numbers[0] if numbers else 0
        if letter == "r":
            self._top = max(first, 1) - 1
            self._bottom = (numbers[1] if len(numbers) > 1 and numbers[1] else self.rows) - 1
            self._row = self._column = 0
        elif letter == "H":
            self._row, self._column = max(first, 1) - 1, (numbers[1] if len(numbers) > 1 else 1) - 1
        elif letter == "A":
            self._row = max(self._row - max(first, 1), 0)
        elif letter == "K":
            line = self.lines[self._row]
            self.lines[self._row] = "" if first == 2 else line[: self._column]
        elif letter not in "mhl":
            raise AssertionError(f"the screen does not know \\x1b[{numbers}{letter}")

    def _put(self, char: str) -> None:
        if char == "\n":
            self._down()
        elif char == "\r":
            self._column = 0
        elif char >= " ":
            if self._column >= self.columns:
                self._column = 0
                self._down()
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + char + line[self._column + 1 :]
            self._column += 1

    def _down(self) -> None:
        if self._row == self._bottom:
            top = self.lines.pop(self._top)
            if self._top == 0:
                self.gone.append(top)
            self.lines.insert(self._bottom, "")
        else:
            self._row = min(self._row + 1, self.rows - 1)
